#!/usr/bin/python3
"""Prints the signals of a group's memory, by the client for Python (PYTHONPATH=clients/python).

    client.py [--socket PATH] GROUP LEVEL
    client.py /sys/fs/cgroup/a 512M

The socket is PATH, else that of the environment variable MEMCG_MONITOR_SOCKET, else the default. Prints `registered`, then `signals: N` each time, then `removed` when the group is gone.
"""

import argparse
import os
import sys

import memcg_monitor


def main(group, level, socket):
    where = {"socket": socket} if socket else {}
    with memcg_monitor.register(group, memcg_monitor.threshold(level), **where) as registration:
        print("registered", flush=True)
        for signals in registration:
            print(f"signals: {signals}", flush=True)
    print("removed", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", metavar="PATH", default=os.environ.get("MEMCG_MONITOR_SOCKET"))
    parser.add_argument("group", metavar="GROUP")
    parser.add_argument("level", metavar="LEVEL")
    try:
        main(**vars(parser.parse_args()))
    except memcg_monitor.Error as error:
        sys.exit(str(error))
