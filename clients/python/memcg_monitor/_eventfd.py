"""eventfds, also for Python 3.9, whose `os` has none."""

from __future__ import annotations

import os
import sys
from typing import Optional

from ._errors import syscall


def create() -> int:
    """Makes an eventfd that does not block and is closed by exec."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if hasattr(os, "eventfd"):
            return os.eventfd(0, flags)
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        descriptor = library.eventfd(0, flags)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "eventfd")
        return int(descriptor)
    except OSError as error:
        raise syscall("eventfd2", error) from None


def take(descriptor: int) -> Optional[int]:
    """Reads the signals since the last call, without waiting; None where there are none."""
    try:
        return int.from_bytes(os.read(descriptor, 8), byteorder=sys.byteorder)
    except BlockingIOError:
        return None
    except OSError as error:
        raise syscall("read of the eventfd", error) from None
