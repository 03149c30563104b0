"""A registration that counts signals, at the socket or through a `cgroup.event_control`."""

from __future__ import annotations

import errno
import os
import socket as sockets
from typing import Iterator, List, Optional

from . import _closing, _eventfd, _wire
from ._errors import EndedError, Error, FileError, RefusedError, SyscallError, file, named
from ._requests import Request
from ._target import (
    AGENT_GONE,
    CGROUP_ROOT,
    VIEW,
    RemovalCheck,
    Served,
    Target,
    event_control,
    exists,
    has_view_above,
    is_kernels,
)

UNREACHABLE = (errno.ENOENT, errno.ECONNREFUSED, errno.EACCES, errno.EPERM)
"""The errnos of `connect` after which the registration goes through the view."""

LOOK = 1.0
"""Seconds between two looks at a view, which does not report that the agent was killed."""

NOT_KEPT = (
    "the agent ended; signals go on once an agent that keeps registrations (--supervised, or a "
    "descriptor store) is back; after any other, close this and register again"
)
VIEW_GONE = "the view is gone: the agent ended, or unmounted it; register again once it is back"
KERNELS_OWN = (
    "this is the kernel's own cgroup v1, which knows no percent, direction, hysteresis, exact, "
    "working set, anon or empty"
)
CLOSED = "the registration is closed"


class Registration(_closing.Closing):
    """A registration with an eventfd of its own; closing it ends it. One thread at a time uses it.

    Iterating gives the number of signals each time, and ends when the group is removed.
    """

    def __init__(
        self,
        event: int,
        mark: RemovalCheck,
        route: str,
        connection: Optional[sockets.socket],
        served: Optional[Served],
    ) -> None:
        self.route = route
        """Path of the socket or of the `cgroup.event_control` that took the registration."""
        self._event = event
        self._mark = mark
        self._connection = connection
        self._served = served
        self._pending = 0
        self._is_view_gone = False

    def wait(self, timeout: Optional[float] = None) -> Optional[int]:
        """Waits for signals, and returns their number since the last call; None once the
        group is gone.

        Fails with TimeoutError after `timeout` seconds, and with EndedError when the agent has
        ended. At the socket that is once: wait again if that agent keeps registrations, or
        else register again.
        """
        deadline = _wire.deadline_of(timeout)
        while True:
            self._take()
            is_over, signals = self._step(self._look())
            if is_over:
                return signals
            ready = _wire.poll(self._descriptors(), self._shortened(_wire.time_to(deadline)))
            self._heed(ready)
            if not ready:
                _wire.left_of(deadline)

    def fileno(self) -> int:
        """Returns the eventfd: while it is readable, `wait` does not block."""
        return self._event

    def close(self) -> None:
        """Ends the registration."""
        if self._event >= 0:
            _wire.close(self._event)
            self._event = -1
        if self._served is not None:
            self._served.close()
        self._hang_up()

    def __iter__(self) -> Iterator[int]:
        while True:
            signals = self.wait()
            if signals is None:
                return
            yield signals

    def _take(self) -> None:
        self._check_open()
        self._pending += _eventfd.take(self._event) or 0

    def _check_open(self) -> None:
        if self._event < 0:
            raise Error(CLOSED)

    def _step(self, seen: str) -> "tuple[bool, Optional[int]]":
        """Decides whether a wait is over, after a look; what was taken is kept until then."""
        if seen == "removed":
            self._pending = 0
            return True, None
        # The agent's last signal says that it ends, and counts nothing. A view that comes
        # back is another agent's, without this registration.
        if seen == "ended" or self._is_view_gone:
            self._is_view_gone, self._pending = True, 0
            raise EndedError(VIEW_GONE)
        if self._pending:
            signals, self._pending = self._pending, 0
            return True, signals
        return False, None

    def _look(self) -> str:
        """Returns "there", "removed" or "ended": how it stands with the group and the view."""
        # First: by names the view of the next agent is the same, with or without the group.
        is_over = self._served is not None and self._served.is_over()
        if is_over and self._connection is None:
            return "ended"
        try:
            is_there = self._mark.is_there()
        except FileError as error:
            if error.errno in AGENT_GONE:
                return "ended"
            raise
        if not is_there:
            is_shown = self._served is not None and os.path.dirname(self._mark.path) == os.path.dirname(
                self._served.path
            )
            return "ended" if is_shown and (is_over or not has_view_above(self._mark.path)) else "removed"
        # A group that has left a view which is still there is being removed.
        served = self._served.path if self._served is not None and self._connection is None else None
        if served is not None and not exists(served) and not has_view_above(served):
            return "ended"
        return "there"

    def _descriptors(self) -> List[int]:
        connection = [] if self._connection is None else [self._connection.fileno()]
        return [self._event, *connection]

    def _shortened(self, left: Optional[float]) -> Optional[float]:
        if self._served is None or self._connection is not None:
            return left
        return LOOK if left is None else min(left, LOOK)

    def _heed(self, ready: List[int]) -> None:
        """Reports the agent's end, after the signals that came before it."""
        if self._connection is None or self._connection.fileno() not in ready or self._event in ready:
            return
        self._hang_up()
        raise EndedError(NOT_KEPT)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def register(
    group: str,
    request: Request,
    *,
    socket: Optional[str] = _wire.SOCKET,
    view: Optional[str] = VIEW,
    cgroup_root: str = CGROUP_ROOT,
    keep_connection: bool = True,
) -> Registration:
    """Registers on `group`, a directory of a cgroup hierarchy or of the view.

    The socket comes first, since it gives the agent's reason with a refusal and reports the
    agent's end. Where it cannot be reached, the `cgroup.event_control` of the group or of the
    view is written. None for `socket` or `view` leaves that way out. The agent admits 256
    connections of a user: with more registrations, pass `keep_connection=False`, which gives up
    noticing the agent's end.

    Fails with FileError if the control file cannot be opened, SyscallError if no way leads to
    an agent, RefusedError with the errno if it refuses.
    """
    target = Target(group, request.file)
    try:
        event = _eventfd.create()
        try:
            return _by_any(event, target, group, request.args, socket, view, cgroup_root, keep_connection)
        except BaseException:
            _wire.close(event)
            raise
    finally:
        target.close()


def _by_any(
    event: int,
    target: Target,
    group: str,
    args: str,
    socket: Optional[str],
    view: Optional[str],
    root: str,
    keeps: bool,
) -> Registration:
    text = _wire.line(event, target.fd, target.args(args))
    control = None if view is None else event_control(group, view, root)
    failed: Optional[Error] = None
    if socket is not None:
        try:
            connection = _wire.connect(socket)
        except SyscallError as error:
            if control is None or error.errno not in UNREACHABLE:
                raise
            failed = error
        else:
            return _by_socket(connection, event, target, text, socket, control, keeps)
    if control is None:
        raise SyscallError(f"{group} has no {'socket and no ' if view is None else ''}cgroup.event_control")
    try:
        # Before the write: an agent that comes between is seen as another, and not the other way round.
        served = Served(control)
        try:
            _write(control, text, failed)
        except BaseException:
            served.close()
            raise
    except FileError as error:
        if failed is None:
            raise
        raise SyscallError(f"{failed}; {error}", failed.errno) from None
    return Registration(event, target.mark, control, None, served)


def _by_socket(
    connection: sockets.socket,
    event: int,
    target: Target,
    text: str,
    socket: str,
    control: Optional[str],
    keeps: bool,
) -> Registration:
    served: Optional[Served] = None
    try:
        # Only a group of the view itself goes when the view goes.
        if control is not None and os.path.dirname(target.mark.path) == os.path.dirname(control):
            served = Served(control)
        _wire.send(connection, text.encode(), [event, target.fd])
        _wire.check_answer(_wire.receive(connection))
    except BaseException:
        connection.close()
        if served is not None:
            served.close()
        raise
    kept: Optional[sockets.socket] = connection
    if not keeps:
        connection.close()
        kept = None
    return Registration(event, target.mark, socket, kept, served)


def _write(control: str, text: str, failed: Optional[Error]) -> None:
    try:
        descriptor = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise file("open", control, error) from None
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise _refused(control, error, is_kernels(control), failed) from None
    finally:
        os.close(descriptor)


def _refused(control: str, error: OSError, is_kernels_own: bool, failed: Optional[Error]) -> Error:
    """Makes the error of a failed write to a `cgroup.event_control`, after that of the socket."""
    why = f"write to {control}: {named(error.errno)}"
    if error.errno in AGENT_GONE:
        return EndedError(f"{why}; {VIEW_GONE}")
    if not is_kernels_own:
        return RefusedError(f"{why}; the reason is in the agent's log", error.errno)
    agent = "the agent's socket was left out" if failed is None else f"the agent was not reached: {failed}"
    return RefusedError(f"{why}; {KERNELS_OWN}; {agent}", error.errno)
