"""A registration that reports the cause of each signal, at the admin socket."""

from __future__ import annotations

import socket as sockets
from typing import Iterator, Optional

from . import _closing, _eventfd, _wire
from ._errors import AnswerError, Error
from ._requests import Request
from ._target import Target


class Follower(_closing.Closing):
    """A registration that reports the cause of each signal; closing it ends it. One thread at a
    time uses it.

    Iterating gives an event each time, and ends after `removed`.
    """

    def __init__(self, connection: sockets.socket, event: int) -> None:
        self._connection = connection
        self._event = event
        self._is_removed = False

    def _check_open(self) -> None:
        if self._event < 0:
            raise Error("the follower is closed")

    def wait_event(self, timeout: Optional[float] = None) -> Optional[_wire.Event]:
        """Waits for the next event; None after `removed`, which is the last.

        Fails with TimeoutError after `timeout` seconds, and with EndedError when the agent has
        ended: then register again.
        """
        deadline = _wire.deadline_of(timeout)
        self._check_open()
        if self._is_removed:
            return None
        while not _wire.poll([self.fileno()], 0):
            _wire.poll([self.fileno()], _wire.left_of(deadline))
        return self._next()

    def _next(self) -> _wire.Event:
        event = _wire.decode(_wire.receive(self._connection))
        if event is None:
            raise AnswerError("the agent answered `listening` once more")
        self._is_removed = event.event == "removed"
        return event

    def fileno(self) -> int:
        """Returns the connection: while it is readable, `wait_event` does not block."""
        return self._connection.fileno()

    def close(self) -> None:
        """Ends the registration."""
        self._connection.close()
        if self._event >= 0:
            _wire.close(self._event)
            self._event = -1

    def __iter__(self) -> Iterator[_wire.Event]:
        while True:
            event = self.wait_event()
            if event is None:
                return
            yield event


def follow(group: str, request: Request, *, control_socket: str = _wire.CONTROL_SOCKET) -> Follower:
    """Registers at the admin socket, which reports the cause of each signal.

    The socket is root's alone unless the agent's options admit others. The view reports no
    causes, so nothing else is tried. Fails as `register` does, and with EndedError if the agent
    ends meanwhile.
    """
    target = Target(group, request.file)
    try:
        event = _eventfd.create()
        try:
            connection = _wire.connect(control_socket)
            try:
                text = _wire.line(event, target.fd, target.args(request.args))
                _wire.send(connection, _wire.listen_request(text), [event, target.fd])
                answer = _wire.decode(_wire.receive(connection))
                if answer is not None:
                    raise AnswerError(f"the agent answered {answer}")
            except BaseException:
                connection.close()
                raise
            return Follower(connection, event)
        except BaseException:
            _wire.close(event)
            raise
    finally:
        target.close()
