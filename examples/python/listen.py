#!/usr/bin/python3
"""Hears about a group's memory, with the standard library only (Python 3.10).

    listen.py CONTROL_FILE [ARGUMENT]
    listen.py /run/memcg-monitor/cgroup/a/memory.usage_in_bytes 512M
    listen.py /run/memcg-monitor/cgroup/a/memory.pressure_level medium
    listen.py --socket /sys/fs/cgroup/a/memory.current 512M

Without --socket by the files that cgroup v1 had, with it by the agent's socket
and the group's own file. Prints `registered`, then `signals: N` each time, then
`removed` when the group is gone, and exits with 0.
"""

import errno
import os
import socket
import sys

AGENT = "/run/memcg-monitor/event_control.sock"

HINTS = {
    errno.ENOENT: "is there such a group, and does the agent run?",
    errno.ECONNREFUSED: "does the agent run?",
    errno.EACCES: "the control file must be readable for you",
    errno.EINVAL: "is the argument one that this control file takes?",
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


def by_socket(event, control, argument):
    """One packet to the agent, with both descriptors along."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(AGENT)
        line = f"{event} {control} {argument}".encode()
        socket.send_fds(connection, [line], [event, control])
        answer = connection.recv(1024).decode()
    if not answer:
        raise OSError(errno.ECONNRESET, "the agent closed the connection", AGENT)
    if answer != "0":  # "-ERRNO NAME: why"
        number, why = answer.split(" ", 1)
        raise OSError(-int(number), why, AGENT)


def listen(path, argument, through_socket):
    event = os.eventfd(0, os.EFD_CLOEXEC)
    control = os.open(path, os.O_RDONLY)
    if through_socket:
        by_socket(event, control, argument)
    else:
        by_file(event, control, path, argument)
    os.close(control)  # the registration lives as long as the eventfd
    print("registered", flush=True)
    while True:
        signals = os.eventfd_read(event)
        # A removal signals once more, when the files are gone already.
        try:
            os.stat(path)
        except FileNotFoundError:
            print("removed", flush=True)
            return
        print(f"signals: {signals}", flush=True)


def main(arguments):
    through_socket = arguments[:1] == ["--socket"]
    arguments = arguments[through_socket:]
    if len(arguments) not in (1, 2):
        print("usage: listen.py [--socket] CONTROL_FILE [ARGUMENT]", file=sys.stderr)
        return 2
    try:
        listen(arguments[0], "".join(arguments[1:]), through_socket)
    except OSError as error:
        hint = HINTS.get(error.errno)
        print(f"{error}{f'; {hint}' if hint else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
