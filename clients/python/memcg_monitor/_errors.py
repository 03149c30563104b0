"""The errors of the client, each with the errno where there is one."""

from __future__ import annotations

import errno as errnos
import os
from typing import Optional


class Error(Exception):
    """A failure of a client's call, or a refusal by the agent; its text is one line."""

    def __init__(self, text: str, errno: Optional[int] = None) -> None:
        super().__init__(text)
        self.errno = errno
        """Positive errno of the system call or the refusal; None where there is none."""


class SyscallError(Error):
    """A failed system call."""


class FileError(Error):
    """A file that cannot be opened or looked at."""


class RefusedError(Error):
    """A refusal by the agent: the errno that the kernel would give, and the agent's text."""


class AnswerError(Error):
    """An answer that this version does not understand."""


class EndedError(Error):
    """The end of the agent, or of its connection."""


def named(number: Optional[int]) -> str:
    """Returns the name and the text of an errno."""
    number = number or 0
    return f"{errnos.errorcode.get(number, number)}: {os.strerror(number)}"


def syscall(call: str, error: OSError) -> SyscallError:
    """Makes the error of a system call."""
    return SyscallError(f"{call}: {named(error.errno)}", error.errno)


def file(call: str, path: str, error: OSError) -> FileError:
    """Makes the error of a file."""
    return FileError(f"{call} {path}: {named(error.errno)}", error.errno)
