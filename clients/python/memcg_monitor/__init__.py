"""Client of memcg-monitor, which gives cgroup v1's memory notifications on cgroup v2 kernels.

    import memcg_monitor

    with memcg_monitor.register("/sys/fs/cgroup/a", memcg_monitor.threshold("512M")) as registration:
        for signals in registration:
            print("crossed", signals, "times")

`register` gives a registration that counts signals; `follow` gives one that reports the cause of
each, and needs the rights of an operator. `memcg_monitor.aio` has both for asyncio.
"""

from ._errors import AnswerError, EndedError, Error, FileError, RefusedError, SyscallError
from ._follower import Follower, follow
from ._registration import Registration, register
from ._requests import Request, empty, oom, percent, pressure, removal, threshold
from ._target import CGROUP_ROOT, VIEW
from ._wire import CONTROL_SOCKET, SOCKET, Event, Victim

__all__ = [
    "AnswerError",
    "CGROUP_ROOT",
    "CONTROL_SOCKET",
    "EndedError",
    "Error",
    "Event",
    "FileError",
    "Follower",
    "RefusedError",
    "Registration",
    "Request",
    "SOCKET",
    "SyscallError",
    "VIEW",
    "Victim",
    "empty",
    "follow",
    "oom",
    "percent",
    "pressure",
    "register",
    "removal",
    "threshold",
]
