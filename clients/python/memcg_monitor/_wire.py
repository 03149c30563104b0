"""The packets of the two sockets: what is sent, and what the answers mean."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from dataclasses import dataclass, fields
from typing import Any, Dict, List, Optional, Tuple

from ._errors import AnswerError, EndedError, RefusedError, syscall

SOCKET = "/run/memcg-monitor/event_control.sock"
"""Path of the registration socket, unless the agent was started with another `--socket`."""

CONTROL_SOCKET = "/run/memcg-monitor/control.sock"
"""Path of the admin socket, unless the agent was started with another `--control-socket`."""

LARGEST_ANSWER = 256 * 1024

LONGEST_POLL = 24 * 3600.0
"""Seconds of one poll: it takes an int of milliseconds, and its callers poll again."""

ENDED = "the agent ended; register again once it is back"
UNANSWERED = (
    "the agent ended the connection without an answer: it ended itself, or this user has as many "
    "connections open as one may have"
)


@dataclass(frozen=True)
class Victim:
    """A victim of the OOM killer: a process, or the whole group without `pid`. What the agent
    could not learn is None; memory is in bytes."""

    cgroup: str
    pid: Optional[int] = None
    """Process id on the agent's host; `own_pid` is the one in the process's own pid namespace."""
    own_pid: Optional[int] = None
    comm: Optional[str] = None
    command: Optional[Tuple[str, ...]] = None
    """The command line, its first 1,024 bytes; `command_cut` says whether there is more."""
    command_cut: bool = False
    exe: Optional[str] = None
    uid: Optional[int] = None
    oom_score_adj: Optional[int] = None
    total_vm: Optional[int] = None
    anon_rss: Optional[int] = None
    file_rss: Optional[int] = None
    shmem_rss: Optional[int] = None
    swap: Optional[int] = None
    page_tables: Optional[int] = None
    unit: Optional[str] = None
    """The innermost unit of systemd in the group's path."""
    pod_uid: Optional[str] = None
    container_id: Optional[str] = None


@dataclass(frozen=True)
class Event:
    """One event of a followed registration; what it has no value for is None."""

    time: float
    """Seconds since 1970, UTC."""
    cgroup: str
    event: str
    """`crossed`, `oom`, `oom_kill`, `oom_group_kill`, `host_oom_kill`, `pressure`, `empty` or
    `removed`."""
    signals: int
    """Amount added to the eventfd: 0 for an event that only adds detail to an OOM."""
    on: Optional[str] = None
    threshold: Optional[int] = None
    direction: Optional[str] = None
    usage: Optional[int] = None
    origin: Optional[str] = None
    """The group whose limit caused the OOM, or whose reclaim made the pressure."""
    reason: Optional[str] = None
    """The reason of a kill: `limit`, `lowered_limit` or `host`."""
    level: Optional[str] = None
    victim: Optional[Victim] = None
    id: int = 0
    """The inode number of the group's directory; this and the next five are of a watch."""
    spec: Optional[str] = None
    limit: Optional[int] = None
    growth: Optional[int] = None
    """Bytes a second; below 0 where usage falls."""
    peak: Optional[int] = None
    late: bool = False
    """True where it happened before the group could be registered on."""
    lost: int = 0
    """Events that this follower was too slow for, just before this one."""


def line(event_fd: int, control_fd: int, args: str) -> str:
    """Returns the line of a registration."""
    return f"{event_fd} {control_fd} {args}"


def listen_request(text: str) -> bytes:
    """Returns the admin socket's packet that follows a registration."""
    return json.dumps({"listen": text}, separators=(",", ":")).encode()


def check_answer(packet: bytes) -> None:
    """Raises what an answer of the registration socket means, if it is no success."""
    text = packet.decode(errors="replace")
    if text == "0":
        return
    if not text:
        raise EndedError(UNANSWERED)
    number, _, why = text.partition(" ")
    if not (number[:1] == "-" and number[1:].isascii() and number[1:].isdigit() and int(number) < 0):
        raise AnswerError(f"the agent answered {text!r}")
    raise RefusedError(why, -int(number))


def decode(packet: bytes) -> Optional[Event]:
    """Reads an answer of the admin socket: an event, or None for `listening`."""
    if not packet:
        raise EndedError(ENDED)
    try:
        answer = json.loads(packet)
        kind = answer["type"]
        if kind == "listening":
            return None
        if kind == "error":
            raise RefusedError(answer["why"], int(answer["errno"]))
        if kind == "event":
            return _event(answer)
    except (ValueError, KeyError, TypeError):
        pass
    raise AnswerError(f"the agent answered {packet.decode(errors='replace')!r}")


def _event(answer: Any) -> Event:
    found = answer.get("victim")
    own = ("cgroup", "event", "time", "signals", "victim", "id", "late", "lost")
    return Event(
        time=float(answer["time"]),
        cgroup=answer["cgroup"],
        event=answer["event"],
        signals=int(answer["signals"]),
        victim=_victim(found) if found else None,
        id=int(answer.get("id", 0)),
        late=bool(answer.get("late", False)),
        lost=int(answer.get("lost", 0)),
        **_others(Event, own, answer),
    )


def _victim(found: Any) -> Victim:
    command = found.get("command")
    return Victim(
        cgroup=found["cgroup"],
        command=None if command is None else tuple(command),
        command_cut=bool(found.get("command_cut", False)),
        **_others(Victim, ("cgroup", "command", "command_cut"), found),
    )


def _others(kind: Any, own: Tuple[str, ...], found: Any) -> Dict[str, Any]:
    """Returns the fields that are as the packet has them, None where it has none."""
    return {field.name: found.get(field.name) for field in fields(kind) if field.name not in own}


def connect(path: str) -> socket.socket:
    """Connects to one of the agent's sockets."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        hint = " (is `memcg-monitor agent` running?)" if error.errno in (2, 111) else ""
        raise syscall(f"connect {path}{hint}", error) from None
    return connection


def send(connection: socket.socket, packet: bytes, descriptors: List[int]) -> None:
    """Sends one packet, with descriptors."""
    try:
        socket.send_fds(connection, [packet], descriptors)
    except OSError as error:
        raise syscall("sendmsg to the agent", error) from None


def receive(connection: socket.socket) -> bytes:
    """Receives one packet; it is empty when the agent ended the connection."""
    try:
        return connection.recv(LARGEST_ANSWER)
    except ConnectionResetError:
        return b""
    except OSError as error:
        raise syscall("recvmsg from the agent", error) from None


def poll(descriptors: List[int], timeout: Optional[float]) -> List[int]:
    """Returns which descriptors are readable, at most `timeout` seconds later; none of them after
    a day, too.
    """
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    step = None if timeout is None else min(timeout, LONGEST_POLL)
    milliseconds = None if step is None else max(0, -int(-step * 1000 // 1))
    try:
        return [descriptor for descriptor, _ in poller.poll(milliseconds)]
    except OSError as error:
        raise syscall("poll", error) from None


def deadline_of(timeout: Optional[float]) -> Optional[float]:
    """Returns the time at which a wait is over."""
    return None if timeout is None else time.monotonic() + timeout


def time_to(deadline: Optional[float]) -> Optional[float]:
    """Returns the seconds that are left, 0 when none are: what is there already is found by a poll."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def left_of(deadline: Optional[float]) -> Optional[float]:
    """Returns the seconds that are left; fails with TimeoutError when none are."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("nothing was signalled within the time-out")
    return left


def close(descriptor: int) -> None:
    """Closes a descriptor that nothing is written to."""
    try:
        os.close(descriptor)
    except OSError:
        pass
