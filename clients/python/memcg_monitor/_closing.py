"""The ends of registrations: by `close`, at the end of a `with`, or with their last reference."""

from __future__ import annotations

from types import TracebackType
from typing import Optional, Type, TypeVar

_Self = TypeVar("_Self", bound="Closing")
_AsyncSelf = TypeVar("_AsyncSelf", bound="AsyncClosing")


class Closing:
    """An object with a `close` that may be called more than once."""

    #: The eventfd, once the object is made.
    _event: int

    def close(self) -> None:
        """Ends the registration."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_event"):
            self.close()


class AsyncClosing:
    """The same for asyncio; what it wraps ends with the last reference."""

    def close(self) -> None:
        """Ends the registration, and the wait of another task."""
        raise NotImplementedError

    async def __aenter__(self: _AsyncSelf) -> _AsyncSelf:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()
