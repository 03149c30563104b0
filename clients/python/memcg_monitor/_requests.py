"""What can be registered: a control file's name, and the arguments behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

USAGE = "memory.usage_in_bytes"
MEMSW = "memory.memsw.usage_in_bytes"
WORKING_SET = "memory.working_set_bytes"
ANON = "memory.anon_bytes"


@dataclass(frozen=True)
class Request:
    """A control file of a group, and the arguments that a v1 client would write behind it."""

    file: str
    args: str = ""


def threshold(
    level: Union[int, str],
    *,
    direction: Optional[str] = None,
    hysteresis: Union[int, str, None] = None,
    exact: bool = False,
    on: str = USAGE,
) -> Request:
    """Memory crosses `level`: bytes, or text such as "512M".

    `direction` is "up", "down" or None for both; `exact` has the agent refuse where it would
    sample; `on` is the control file whose quantity counts.
    """
    words = [str(level)]
    if direction is not None:
        words.append(direction)
    if hysteresis is not None:
        words.append(f"hysteresis={hysteresis}")
    if exact:
        words.append("exact")
    return Request(on, ",".join(words))


def percent(
    level: Union[int, str],
    *,
    direction: Optional[str] = None,
    hysteresis: Union[int, str, None] = None,
    exact: bool = False,
    on: str = USAGE,
) -> Request:
    """Memory crosses a share of the group's effective limit: 80, or text such as "99.99"."""
    return threshold(f"{level}%", direction=direction, hysteresis=hysteresis, exact=exact, on=on)


def oom() -> Request:
    """The group, or a group above it, is out of memory."""
    return Request("memory.oom_control")


def pressure(level: str, mode: Optional[str] = None) -> Request:
    """Reclaim reaches "low", "medium" or "critical"; mode "default", "hierarchy" or "local"."""
    return Request("memory.pressure_level", level if mode is None else f"{level},{mode}")


def empty() -> Request:
    """The last process of the group and of those below it left."""
    return Request("cgroup.procs")


def removal() -> Request:
    """The group is removed, and nothing else: every registration notices that."""
    return Request(USAGE, "-1")
