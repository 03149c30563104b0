"""Registrations against a player of the agent."""

import asyncio
import errno
import gc
import json
import os
import socket
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import memcg_monitor
from memcg_monitor import _registration, _target, _wire, aio, percent, threshold

from .player import Player

LISTENING = '{"type":"listening"}'
CROSSED = '{"type":"event","time":1.0,"cgroup":"/a","event":"crossed","signals":1}'
REMOVED = '{"type":"event","time":2.0,"cgroup":"/a","event":"removed","signals":1}'


def identity(descriptor):
    """The kernel's number of an eventfd, the same for all its descriptors."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    return next(line for line in text.splitlines() if line.startswith("eventfd-id:"))


def remove(group):
    for name in os.listdir(group):
        os.unlink(os.path.join(group, name))


class Blocking(unittest.TestCase):
    def test_signals_are_counted_until_the_group_is_gone(self):
        with Player("0") as player:
            with memcg_monitor.register(player.group, threshold("8M"), socket=player.socket) as registration:
                self.assertEqual(registration.route, player.socket)
                self.assertTrue(player.line.endswith(" 8M"), player.line)
                self.assertEqual(identity(player.descriptors[0]), identity(registration.fileno()))
                with self.assertRaises(TimeoutError):
                    registration.wait(0)
                player.signal(3)
                self.assertEqual(registration.wait(), 3)
                player.signal(2)
                remove(player.group)
                self.assertIsNone(registration.wait())
                self.assertIsNone(registration.wait(0))

    def test_the_agents_end_is_seen_once_after_what_it_signalled(self):
        with Player("0") as player:
            registration = memcg_monitor.register(player.group, percent(80), socket=player.socket)
            player.signal()
            player.stop()
            self.assertEqual(registration.wait(), 1)
            with self.assertRaises(memcg_monitor.EndedError):
                registration.wait()
            with self.assertRaises(TimeoutError):
                registration.wait(0.001)
            player.signal(5)
            self.assertEqual(registration.wait(), 5, "an agent that keeps registrations is back")

    def test_the_agents_end_is_seen_without_waiting(self):
        with Player("0") as player:
            registration = memcg_monitor.register(player.group, percent(80), socket=player.socket)
            player.signal(2)
            player.stop()
            self.assertEqual(registration.wait(0), 2)
            with self.assertRaises(memcg_monitor.EndedError):
                registration.wait(0)
            with self.assertRaises(TimeoutError):
                registration.wait(0)

    def test_a_connection_that_is_not_kept_is_closed(self):
        with Player("0") as player:
            registration = memcg_monitor.register(
                player.group, threshold(1), socket=player.socket, keep_connection=False
            )
            self.assertEqual(registration._descriptors(), [registration.fileno()])

    def test_a_refusal_carries_errno_and_text(self):
        with Player("-22 EINVAL: wrong byte") as player:
            with self.assertRaises(memcg_monitor.RefusedError) as caught:
                memcg_monitor.register(player.group, threshold("1MB"), socket=player.socket)
            self.assertEqual((caught.exception.errno, str(caught.exception)), (22, "EINVAL: wrong byte"))

    def test_a_refusal_at_the_socket_is_not_tried_again_at_the_view(self):
        with Player("-22 EINVAL: x", has=("memory.usage_in_bytes", "cgroup.event_control")) as player:
            with self.assertRaises(memcg_monitor.RefusedError):
                memcg_monitor.register(player.group, threshold("1MB"), socket=player.socket)
            self.assertEqual(Path(player.group, "cgroup.event_control").read_text(encoding="ascii"), "0\n")

    def test_no_descriptor_stays_open(self):
        # What earlier tests have dropped is closed now, and not in between.
        gc.collect()
        before = os.listdir("/proc/self/fd")
        with Player("-22 EINVAL: wrong byte") as player:
            with self.assertRaises(memcg_monitor.RefusedError):
                memcg_monitor.register(player.group, threshold("1MB"), socket=player.socket)
        with Player("0") as player:
            memcg_monitor.register(player.group, threshold("1M"), socket=player.socket).close()
        with Player(LISTENING) as player:
            memcg_monitor.follow(player.group, threshold("1M"), control_socket=player.socket).close()
        gc.collect()
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_a_follower_receives_causes_up_to_the_removal(self):
        with Player(LISTENING, CROSSED, REMOVED) as player:
            request = memcg_monitor.oom()
            with memcg_monitor.follow(player.group, request, control_socket=player.socket) as follower:
                self.assertEqual([event.event for event in follower], ["crossed", "removed"])
                self.assertIsNone(follower.wait_event(0))
            line = json.loads(player.line)["listen"]
            self.assertTrue(line.endswith(" memory.oom_control "), line)

    def test_a_follower_notices_time_outs_and_the_agents_end(self):
        with Player(LISTENING, CROSSED) as player:
            follower = memcg_monitor.follow(player.group, threshold("1M"), control_socket=player.socket)
            self.assertEqual(follower.wait_event().signals, 1)
            with self.assertRaises(TimeoutError):
                follower.wait_event(0)
            player.stop()
            with self.assertRaises(memcg_monitor.EndedError):
                follower.wait_event()
            follower.close()

    def test_a_time_out_has_no_upper_bound(self):
        month = 30 * 24 * 3600.0
        with Player(LISTENING, CROSSED) as player:
            follower = memcg_monitor.follow(player.group, threshold("1M"), control_socket=player.socket)
            self.assertEqual(follower.wait_event(month).signals, 1)
            follower.close()
        for timeout in (month, float("inf")):
            readable, writable = os.pipe()
            os.write(writable, b"x")
            self.assertEqual(_wire.poll([readable], timeout), [readable])
            os.close(readable)
            os.close(writable)

    def test_a_long_time_out_takes_several_polls(self):
        with Player("0") as player:
            registration = memcg_monitor.register(player.group, threshold("8M"), socket=player.socket)
            polls = []

            def poll(descriptors, timeout):
                polls.append(timeout)
                if len(polls) == 3:
                    player.signal(7)
                return real(descriptors, timeout)

            real = _wire.poll
            with mock.patch.object(_wire, "LONGEST_POLL", 0.001), mock.patch.object(_wire, "poll", poll):
                self.assertEqual(registration.wait(float("inf")), 7)
            self.assertEqual(len(polls), 3)
            registration.close()

    def test_a_closed_registration_says_so(self):
        with Player("0") as player:
            registration = memcg_monitor.register(player.group, threshold("8M"), socket=player.socket)
            registration.close()
            with self.assertRaisesRegex(memcg_monitor.Error, "is closed"):
                registration.wait()

    def test_a_refused_follower_carries_the_errno(self):
        with Player('{"type":"error","errno":1,"why":"EPERM: no operator"}') as player:
            with self.assertRaises(memcg_monitor.RefusedError) as caught:
                memcg_monitor.follow(player.group, threshold("1M"), control_socket=player.socket)
            self.assertEqual(caught.exception.errno, errno.EPERM)


class View(unittest.TestCase):
    """The way through a `cgroup.event_control`, played by files."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.view = Path(directory.name, "view")
        self.group = self.view / "a"
        self.group.mkdir(parents=True)
        for path in (self.view / "cgroup.event_control", self.group / "cgroup.event_control"):
            path.write_text("", encoding="ascii")
        (self.group / "memory.usage_in_bytes").write_text("0\n", encoding="ascii")
        self.socket = os.path.join(directory.name, "no", "socket")
        mock.patch.object(_registration, "LOOK", 0.01).start()
        self.addCleanup(mock.patch.stopall)

    def register(self):
        return memcg_monitor.register(str(self.group), threshold("8M"), socket=self.socket)

    def test_the_view_is_written_where_no_socket_is(self):
        with self.register() as registration:
            control = self.group / "cgroup.event_control"
            self.assertEqual(registration.route, str(control))
            event, _, args = control.read_text(encoding="ascii").split(" ")
            self.assertEqual((int(event), args), (registration.fileno(), "8M"))
            os.eventfd_write(registration.fileno(), 2) if hasattr(os, "eventfd_write") else os.write(
                registration.fileno(), (2).to_bytes(8, "little")
            )
            self.assertEqual(registration.wait(), 2)
            remove(self.group)
            self.assertIsNone(registration.wait())

    def test_a_view_that_is_gone_is_the_agents_end(self):
        with self.register() as registration:
            remove(self.group)
            (self.view / "cgroup.event_control").unlink()
            for _ in range(2):
                with self.assertRaises(memcg_monitor.EndedError):
                    registration.wait()

    def test_a_view_beside_the_real_group_is_seen_to_go(self):
        root = self.view.parent / "real"
        (root / "a").mkdir(parents=True)
        (root / "a" / "memory.current").write_text("0\n", encoding="ascii")
        registration = memcg_monitor.register(
            str(root / "a"), threshold("8M"), socket=self.socket, view=str(self.view), cgroup_root=str(root)
        )
        with registration:
            self.assertEqual(registration.route, str(self.group / "cgroup.event_control"))
            with self.assertRaises(TimeoutError):
                registration.wait(0.02)
            (self.group / "cgroup.event_control").unlink()
            with self.assertRaises(TimeoutError, msg="the group is being removed"):
                registration.wait(0.02)
            (self.view / "cgroup.event_control").unlink()
            with self.assertRaises(memcg_monitor.EndedError):
                registration.wait()

    def test_a_view_that_is_aborted_is_the_agents_end(self):
        for number in (errno.ECONNABORTED, errno.ENOTCONN):
            # What a look gives while a hung agent is killed, and after that.
            with self.register() as registration:
                with mock.patch.object(_target.os, "stat", side_effect=OSError(number, "")):
                    self.assertFalse(_target.exists(registration.route))
                    with self.assertRaises(memcg_monitor.EndedError):
                        registration.wait(0)

    def test_a_view_of_another_agent_at_the_same_path_is_the_agents_end(self):
        for is_group_there in (True, False):
            for number in (errno.ECONNABORTED, errno.ENOTCONN):
                with self.register() as registration:
                    if not is_group_there:
                        (self.group / "memory.usage_in_bytes").unlink()
                    # All paths answer, and the view that took the registration does not.
                    with mock.patch.object(_target.os, "fstat", side_effect=OSError(number, "")):
                        for _ in range(2):
                            with self.assertRaises(memcg_monitor.EndedError):
                                registration.wait(0)
                (self.group / "memory.usage_in_bytes").write_text("0\n", encoding="ascii")

    def test_a_view_that_is_handed_on_is_the_same(self):
        with self.register() as registration:
            for path in (self.view, self.group):
                # Other files, as those of another mount would be, while the held one answers.
                (path / "cgroup.event_control").unlink()
                (path / "cgroup.event_control").write_text("", encoding="ascii")
            with self.assertRaises(TimeoutError):
                registration.wait(0.02)

    def test_the_view_is_not_held_longer_than_the_registration(self):
        gc.collect()
        before = os.listdir("/proc/self/fd")
        self.register().close()
        control = self.group / "cgroup.event_control"
        control.unlink()
        control.symlink_to("/dev/full")
        with self.assertRaises(memcg_monitor.RefusedError):
            self.register()
        with Player("0", has=("memory.usage_in_bytes", "cgroup.event_control")) as player:
            registration = memcg_monitor.register(player.group, threshold("8M"), socket=player.socket)
            self.assertTrue(registration._served.path.startswith(player.group))
            registration.close()
        with Player("-22 EINVAL: x", has=("memory.usage_in_bytes", "cgroup.event_control")) as player:
            with self.assertRaises(memcg_monitor.RefusedError):
                memcg_monitor.register(player.group, threshold("8M"), socket=player.socket)
        gc.collect()
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_a_look_that_fails_loses_no_signal(self):
        with self.register() as registration:
            os.write(registration.fileno(), (3).to_bytes(8, "little"))
            with mock.patch.object(_target.os, "stat", side_effect=OSError(errno.EIO, "")):
                with self.assertRaises(memcg_monitor.FileError):
                    registration.wait(0)
            self.assertEqual(registration.wait(0), 3)

    def test_a_refused_write_says_where_the_reason_is(self):
        control = self.group / "cgroup.event_control"
        control.unlink()
        control.symlink_to("/dev/full")
        with self.assertRaisesRegex(memcg_monitor.RefusedError, "ENOSPC: .*in the agent's log"):
            self.register()
        with mock.patch.object(_registration, "is_kernels", return_value=True):
            with self.assertRaises(memcg_monitor.RefusedError) as caught:
                self.register()
        self.assertEqual(caught.exception.errno, errno.ENOSPC)
        for part in ("kernel's own cgroup v1", "no percent", f"connect {self.socket} ", "ENOENT"):
            self.assertIn(part, str(caught.exception))
        self.assertNotIn("log", str(caught.exception))

    def test_a_write_to_a_view_without_its_agent_is_the_agents_end(self):
        with mock.patch.object(_registration.os, "write", side_effect=OSError(errno.ECONNABORTED, "")):
            with self.assertRaises(memcg_monitor.EndedError):
                self.register()

    def test_the_kernels_own_event_control_is_known_by_its_mount(self):
        mounts = [
            "30 24 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory",
            "31 24 0:27 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw",
            "32 24 0:28 / /run/memcg-monitor/cgroup rw - fuse.memcg-monitor memcg-monitor rw",
        ]
        found = [_target.is_cgroup_v1(device, mounts) for device in ("0:26", "0:27", "0:28", "0:29")]
        self.assertEqual(found, [True, False, False, False])
        self.assertFalse(_target.is_kernels(str(self.group / "cgroup.event_control")))

    def test_without_either_the_sockets_error_comes_with_both_reasons(self):
        (self.group / "cgroup.event_control").unlink()
        with self.assertRaises(memcg_monitor.SyscallError) as caught:
            self.register()
        self.assertEqual(caught.exception.errno, errno.ENOENT)
        self.assertIn("is `memcg-monitor agent` running?", str(caught.exception))
        with self.assertRaises(memcg_monitor.SyscallError):
            memcg_monitor.register(str(self.group), threshold("8M"), socket=self.socket, view=None)


class Asyncio(unittest.TestCase):
    def test_signals_time_outs_and_the_removal_are_awaited(self):
        async def run(player):
            async with await aio.register(player.group, threshold("8M"), socket=player.socket) as registration:
                with self.assertRaises(TimeoutError):
                    await registration.wait(0.001)
                for count in (2, 5):
                    wait = asyncio.ensure_future(registration.wait())
                    await asyncio.sleep(0)
                    player.signal(count)
                    self.assertEqual(await wait, count)
                remove(player.group)
                player.signal()
                self.assertEqual([signals async for signals in registration], [])

        with Player("0") as player:
            asyncio.run(run(player))

    def test_the_agents_end_is_seen_without_waiting(self):
        async def run(player):
            registration = await aio.register(player.group, threshold("8M"), socket=player.socket)
            player.signal(2)
            player.stop()
            self.assertEqual(await registration.wait(0), 2)
            with self.assertRaises(memcg_monitor.EndedError):
                await registration.wait(0)
            with self.assertRaises(TimeoutError):
                await registration.wait(0)
            registration.close()

        with Player("0") as player:
            asyncio.run(run(player))

    def test_a_wait_that_is_cancelled_loses_no_signal(self):
        async def run(player):
            registration = await aio.register(player.group, threshold("8M"), socket=player.socket)
            for turns in range(6):
                wait = asyncio.ensure_future(registration.wait())
                player.signal(4)
                for _ in range(turns):
                    await asyncio.sleep(0)
                wait.cancel()
                try:
                    seen = await wait
                except asyncio.CancelledError:
                    seen = await registration.wait()
                self.assertEqual(seen, 4, turns)
            registration.close()

        with Player("0") as player:
            asyncio.run(run(player))

    def test_a_close_ends_the_wait_and_leaves_no_reader(self):
        async def run(make, wait):
            loop = asyncio.get_running_loop()
            before = set(loop._selector.get_map())
            registration = await make()
            task = asyncio.ensure_future(wait(registration))
            while set(loop._selector.get_map()) == before:
                await asyncio.sleep(0)
            registration.close()
            self.assertEqual(set(loop._selector.get_map()), before)
            # Another's descriptors take the numbers, and keep their readers.
            one, other = socket.socketpair()
            with one, other:
                one.setblocking(False)
                received = asyncio.ensure_future(loop.sock_recv(one, 1))
                await asyncio.sleep(0)
                with self.assertRaisesRegex(memcg_monitor.Error, "is closed"):
                    await task
                other.send(b"x")
                self.assertEqual(await received, b"x")
            with self.assertRaisesRegex(memcg_monitor.Error, "is closed"):
                await wait(registration)

        with Player("0") as player:
            request = threshold("8M")
            asyncio.run(
                run(lambda: aio.register(player.group, request, socket=player.socket), aio.AsyncRegistration.wait)
            )
        with Player(LISTENING) as player:
            asyncio.run(
                run(
                    lambda: aio.follow(player.group, request, control_socket=player.socket),
                    aio.AsyncFollower.wait_event,
                )
            )

    def test_a_close_during_a_look_ends_the_wait(self):
        async def run(player):
            registration = await aio.register(player.group, threshold("8M"), socket=player.socket)
            task = asyncio.ensure_future(registration.wait())
            await asyncio.sleep(0)
            registration.close()
            with self.assertRaisesRegex(memcg_monitor.Error, "is closed"):
                await task

        with Player("0") as player:
            asyncio.run(run(player))

    def test_a_wait_follows_a_cancelled_one_at_once(self):
        async def run(player):
            follower = await aio.follow(player.group, threshold("8M"), control_socket=player.socket)
            first = asyncio.ensure_future(follower.wait_event())
            await asyncio.sleep(0)
            first.cancel()
            second = asyncio.ensure_future(follower.wait_event(float("inf")))
            while not first.done():
                await asyncio.sleep(0)
            player.stop()
            with self.assertRaises(memcg_monitor.EndedError):
                await second
            follower.close()

        with Player(LISTENING) as player:
            asyncio.run(run(player))

    def test_causes_and_the_agents_end_are_awaited(self):
        async def run(player):
            follower = await aio.follow(player.group, threshold("8M"), control_socket=player.socket)
            self.assertEqual((await follower.wait_event()).event, "crossed")
            with self.assertRaises(TimeoutError):
                await follower.wait_event(0)
            player.stop()
            with self.assertRaises(memcg_monitor.EndedError):
                await follower.wait_event()
            follower.close()

        with Player(LISTENING, CROSSED) as player:
            asyncio.run(run(player))
