#!/usr/bin/python3
"""Receives a group's memory events, with the standard library only (Python 3.10).

    listen.py CONTROL_FILE [ARGUMENT]
    listen.py /run/memcg-monitor/cgroup/a/memory.usage_in_bytes 512M
    listen.py /run/memcg-monitor/cgroup/a/memory.pressure_level medium
    listen.py --socket /sys/fs/cgroup/a/memory.current 512M
    listen.py --socket=PATH /sys/fs/cgroup/a memory.oom_control

Without --socket by the files that cgroup v1 had, with it by the agent's socket
(at PATH) and the group's own file or directory. Prints `registered`, then
`signals: N` each time, then `removed` when the group is gone, and exits with 0.
With --socket, prints `agent ended` when the agent ends: signals go on once an
agent that keeps registrations is back; after any other, start this again.
"""

import errno
import os
import select
import socket
import sys

DEFAULT_SOCKET = "/run/memcg-monitor/event_control.sock"

HINTS = {
    errno.ENOENT: "is there such a group, and does the agent run?",
    errno.ECONNREFUSED: "does the agent run?",
    errno.EACCES: "the control file must be readable, and the socket or cgroup.event_control writable for you",
    errno.EINVAL: "is the argument one that this control file takes?",
    errno.EPERM: "the agent may not take descriptors (sysctl kernel.yama.ptrace_scope): use --socket",
    errno.EDQUOT: "you have as many registrations as one may have",
    errno.ENOMEM: "the agent's tables are full: its log names the option",
    errno.EOPNOTSUPP: "this host does not report it: see `memcg-monitor check`",
    errno.ENOTCONN: "the agent has died: start it again",
}


def by_file(event, control, path, argument):
    """One write to the group's cgroup.event_control."""
    event_control = os.path.join(os.path.dirname(path), "cgroup.event_control")
    descriptor = os.open(event_control, os.O_WRONLY)
    try:
        os.write(descriptor, f"{event} {control} {argument}".encode())
    finally:
        os.close(descriptor)


def by_socket(event, control, argument, path):
    """One packet to the agent, with both descriptors along; returns the connection."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    line = f"{event} {control} {argument}".encode()
    socket.send_fds(connection, [line], [event, control])
    answer = connection.recv(1024).decode()
    if not answer:
        raise OSError(errno.ECONNRESET, "the agent closed the connection", path)
    if answer != "0":  # "-ERRNO NAME: why"
        number, why = answer.split(" ", 1)
        raise OSError(-int(number), why, path)
    return connection


def listen(path, argument, agent):
    event = os.eventfd(0, os.EFD_CLOEXEC)
    control = os.open(path, os.O_RDONLY)
    poll = select.poll()
    poll.register(event, select.POLLIN)
    if agent:
        # The eventfd does not show the agent's end; the connection's hang-up does.
        connection = by_socket(event, control, argument, agent)
        poll.register(connection, select.POLLIN)
    else:
        by_file(event, control, path, argument)
    os.close(control)  # the registration lives as long as the eventfd
    print("registered", flush=True)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ready - {event}:
            print("agent ended", flush=True)
            poll.unregister(connection)
            connection.close()
        if event not in ready:
            continue
        signals = os.eventfd_read(event)
        # A removal signals once more, when the files are gone already.
        try:
            os.stat(path)
        except FileNotFoundError:
            print("removed", flush=True)
            return
        print(f"signals: {signals}", flush=True)


def main(arguments):
    agent = None
    if arguments and arguments[0].split("=")[0] == "--socket":
        agent = arguments[0].partition("=")[2] or DEFAULT_SOCKET
        arguments = arguments[1:]
    if len(arguments) not in (1, 2):
        print("usage: listen.py [--socket[=PATH]] CONTROL_FILE [ARGUMENT]", file=sys.stderr)
        return 2
    try:
        listen(arguments[0], "".join(arguments[1:]), agent)
    except OSError as error:
        hint = HINTS.get(error.errno)
        print(f"{error}{f'; {hint}' if hint else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
