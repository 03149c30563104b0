"""Control files: opened by v1's names on v1, on v2 and in the view."""

from __future__ import annotations

import errno
import os
from typing import Iterable, Optional

from ._errors import file

CGROUP_ROOT = "/sys/fs/cgroup"
"""Directory on which the cgroup v2 hierarchy is mounted."""

VIEW = "/run/memcg-monitor/cgroup"
"""Directory of the view, unless the agent was started with another `--mount`."""

EVENT_CONTROL = "cgroup.event_control"

AGENT_GONE = (errno.ENOTCONN, errno.ECONNABORTED)
"""The errnos of a view without its agent; ECONNABORTED comes to a call that was under way."""

USAGE_FILE = "memory.current"
CONTROL_FILES = (
    "memory.usage_in_bytes",
    "memory.memsw.usage_in_bytes",
    "memory.working_set_bytes",
    "memory.anon_bytes",
    "memory.oom_control",
    "memory.pressure_level",
    "cgroup.procs",
)


class RemovalCheck:
    """A check whether a group is still there, by the name and identity of a file of it."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        try:
            found = os.fstat(descriptor)
        except OSError as error:
            raise file("look at", path, error) from None
        self._identity = (found.st_dev, found.st_ino)

    def is_there(self) -> bool:
        """Returns whether the file is still there; fails with FileError if that is unclear."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            # ENODEV: the group went between the look-up and the look.
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise file("look at", self.path, error) from None
        return (found.st_dev, found.st_ino) == self._identity


class Target:
    """An open control file, or the directory of a group that has no such file."""

    def __init__(self, group: str, name: str) -> None:
        """Opens the control file `name` of `group`, or the directory if it has none."""
        path = os.path.join(group, name)
        self._prefix = ""
        descriptor, missing = _open(path)
        if descriptor is None and missing is not None:
            path, descriptor = self._without_file(group, name, path, missing)
        assert descriptor is not None
        self.fd = descriptor
        if not self._prefix:
            self.mark = RemovalCheck(path, self.fd)
        self.path = path

    def _without_file(self, group: str, name: str, path: str, missing: OSError) -> "tuple[str, int]":
        if name != USAGE_FILE and name not in CONTROL_FILES:
            raise file("open", path, missing)
        is_usage = name in (USAGE_FILE, CONTROL_FILES[0])
        marks = [os.path.join(group, mark) for mark in (USAGE_FILE, "cgroup.procs")]
        for mark in marks:
            descriptor, _ = _open(mark)
            if descriptor is None:
                continue
            if is_usage and mark == marks[0]:
                return mark, descriptor
            try:
                self.mark = RemovalCheck(mark, descriptor)
            finally:
                os.close(descriptor)
            directory, failed = _open(group)
            if failed is not None or directory is None:
                raise file("open", group, failed or missing)
            self._prefix = f"{CONTROL_FILES[0] if is_usage else name} "
            return group, directory
        raise file("open", path, missing)

    def args(self, args: str) -> str:
        """Returns the arguments to send: behind the file's name if a directory is open."""
        return self._prefix + args

    def close(self) -> None:
        """Closes the descriptor; the mark stays."""
        os.close(self.fd)


class Served:
    """The `cgroup.event_control` that serves a registration, held open to know the view by: that of
    the next agent has the same path."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise file("open", path, error) from None

    def is_over(self) -> bool:
        """Returns whether the view has ended with its agent; one that was handed on has not."""
        try:
            os.fstat(self._descriptor)
        except OSError as error:
            return error.errno in AGENT_GONE
        return False

    def close(self) -> None:
        """Closes the descriptor; the path stays."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def event_control(group: str, view: str = VIEW, root: str = CGROUP_ROOT) -> Optional[str]:
    """Returns the `cgroup.event_control` for a group: its own, or the view's, or None."""
    own = os.path.join(group, EVENT_CONTROL)
    if exists(own):
        return own
    group, root = os.path.normpath(group), os.path.normpath(root)
    if group != root and not group.startswith(root + "/"):
        return None
    return os.path.normpath(os.path.join(view, os.path.relpath(group, root), EVENT_CONTROL))


def exists(path: str) -> bool:
    """Returns whether there is a file of this name that answers."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, *AGENT_GONE)
    return True


def is_kernels(path: str) -> bool:
    """Returns whether a `cgroup.event_control` is the kernel's own, in a cgroup v1 hierarchy."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            return is_cgroup_v1(f"{os.major(device)}:{os.minor(device)}", mounts)
    except OSError:
        return False


def is_cgroup_v1(device: str, mounts: Iterable[str]) -> bool:
    """Returns whether a device of a mountinfo is a cgroup v1 hierarchy."""
    for mount in mounts:
        fields, _, kind = mount.partition(" - ")
        if fields.split(" ")[2:3] == [device]:
            return kind.split(" ")[0] == "cgroup"
    return False


def has_view_above(path: str) -> bool:
    """Returns whether a directory above has a `cgroup.event_control`: then the view is there."""
    directory = os.path.dirname(path)
    while directory != os.path.dirname(directory):
        directory = os.path.dirname(directory)
        if exists(os.path.join(directory, EVENT_CONTROL)):
            return True
    return False


def _open(path: str) -> "tuple[Optional[int], Optional[OSError]]":
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), None
    except OSError as error:
        return None, error
