"""The program beside a real agent, which `cargo xtask test` starts: one for each client.

live.py SOCKET CONTROL_SOCKET GROUP SECOND_GROUP [asyncio]
"""

import asyncio
import sys

import memcg_monitor
from memcg_monitor import aio, threshold

SOCKET, CONTROL_SOCKET, GROUP, SECOND = sys.argv[1:5]
REQUEST = threshold("8M")


def say(*words):
    print(*words, flush=True)


def refused():
    try:
        memcg_monitor.register(GROUP, threshold("8MB"), socket=SOCKET)
    except memcg_monitor.RefusedError as error:
        say("refused", error.errno)


def blocking():
    refused()
    registration = memcg_monitor.register(GROUP, REQUEST, socket=SOCKET)
    follower = memcg_monitor.follow(GROUP, REQUEST, control_socket=CONTROL_SOCKET)
    second = memcg_monitor.register(SECOND, REQUEST, socket=SOCKET)
    say("registered")
    for event in follower:
        say("signals", registration.wait(), event.event, event.direction)
    try:
        while True:
            second.wait()
    except memcg_monitor.EndedError:
        say("ended")


async def awaiting():
    refused()
    registration = await aio.register(GROUP, REQUEST, socket=SOCKET)
    follower = await aio.follow(GROUP, REQUEST, control_socket=CONTROL_SOCKET)
    second = await aio.register(SECOND, REQUEST, socket=SOCKET)
    say("registered")
    async for event in follower:
        say("signals", await registration.wait(), event.event, event.direction)
    try:
        while True:
            await second.wait()
    except memcg_monitor.EndedError:
        say("ended")


if sys.argv[5:] == ["asyncio"]:
    asyncio.run(awaiting())
else:
    blocking()
