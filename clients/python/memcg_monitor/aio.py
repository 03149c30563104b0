"""The client for asyncio: the same names, with waits that are awaited.

    registration = await aio.register("/sys/fs/cgroup/a", memcg_monitor.threshold("512M"))
    async for signals in registration:
        print("crossed", signals, "times")

One task at a time waits on a registration. A wait that is cancelled loses no signal; a wait whose
registration is closed fails with `memcg_monitor.Error`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, AsyncIterator, List, Optional, Set

from . import _closing, _follower, _registration, _wire
from ._requests import Request


class _Readers:
    """The loop's readers of a registration's descriptors, and the waits that they wake.

    No reader outlives its descriptor: the number may be another's by then.
    """

    def __init__(self) -> None:
        self._waits: "Set[asyncio.Future[None]]" = set()
        self._watched: Set[int] = set()
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    async def wait(self, descriptors: List[int], timeout: Optional[float]) -> None:
        """Waits until a descriptor is readable, for `timeout` seconds, or until `stop`."""
        self._loop = asyncio.get_running_loop()
        future: "asyncio.Future[None]" = self._loop.create_future()
        self._waits.add(future)
        try:
            for descriptor in descriptors:
                self._loop.add_reader(descriptor, self.stop)
                self._watched.add(descriptor)
            await asyncio.wait([future], timeout=timeout)
        finally:
            self._waits.discard(future)
            future.cancel()
            if not self._waits:
                self.stop()

    def stop(self) -> None:
        """Removes the readers, and wakes the waits."""
        for descriptor in self._watched:
            assert self._loop is not None
            self._loop.remove_reader(descriptor)
        self._watched.clear()
        for future in self._waits:
            if not future.done():
                future.set_result(None)


class AsyncRegistration(_closing.AsyncClosing):
    """A registration to await; closing it ends it."""

    def __init__(self, inner: _registration.Registration) -> None:
        self._inner = inner
        self._readers = _Readers()
        self.route = inner.route

    async def wait(self, timeout: Optional[float] = None) -> Optional[int]:
        """Waits for signals, like `Registration.wait`."""
        inner, deadline = self._inner, _wire.deadline_of(timeout)
        loop = asyncio.get_running_loop()
        while True:
            inner._take()
            # In a thread: a view waits for the next agent while one is restarted.
            seen = await loop.run_in_executor(None, inner._look)
            inner._check_open()
            is_over, signals = inner._step(seen)
            if is_over:
                return signals
            left = _wire.time_to(deadline)
            await self._readers.wait(inner._descriptors(), inner._shortened(left))
            inner._check_open()
            ready = _wire.poll(inner._descriptors(), 0)
            inner._heed(ready)
            if not ready:
                _wire.left_of(deadline)

    def close(self) -> None:
        """Ends the registration, and the wait of another task."""
        self._readers.stop()
        self._inner.close()

    async def __aiter__(self) -> AsyncIterator[int]:
        while True:
            signals = await self.wait()
            if signals is None:
                return
            yield signals


class AsyncFollower(_closing.AsyncClosing):
    """A registration that reports the cause of each signal, to await."""

    def __init__(self, inner: _follower.Follower) -> None:
        self._inner = inner
        self._readers = _Readers()

    async def wait_event(self, timeout: Optional[float] = None) -> Optional[_wire.Event]:
        """Waits for the next event, like `Follower.wait_event`."""
        deadline = _wire.deadline_of(timeout)
        self._inner._check_open()
        if self._inner._is_removed:
            return None
        while not _wire.poll([self._inner.fileno()], 0):
            await self._readers.wait([self._inner.fileno()], _wire.left_of(deadline))
            self._inner._check_open()
        return self._inner._next()

    def close(self) -> None:
        """Ends the registration, and the wait of another task."""
        self._readers.stop()
        self._inner.close()

    async def __aiter__(self) -> AsyncIterator[_wire.Event]:
        while True:
            event = await self.wait_event()
            if event is None:
                return
            yield event


async def register(group: str, request: Request, **options: Any) -> AsyncRegistration:
    """Registers, with the options of `memcg_monitor.register`."""
    call = functools.partial(_registration.register, group, request, **options)
    return AsyncRegistration(await asyncio.get_running_loop().run_in_executor(None, call))


async def follow(group: str, request: Request, **options: Any) -> AsyncFollower:
    """Follows, with the options of `memcg_monitor.follow`."""
    call = functools.partial(_follower.follow, group, request, **options)
    return AsyncFollower(await asyncio.get_running_loop().run_in_executor(None, call))
