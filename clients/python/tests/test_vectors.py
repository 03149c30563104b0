"""The vectors that all clients share."""

import dataclasses
import json
import os
import tempfile
import unittest
from pathlib import Path

import memcg_monitor
from memcg_monitor import _registration, _target, _wire

VECTORS = json.loads((Path(__file__).parents[2] / "vectors.json").read_text(encoding="utf-8"))


class Vectors(unittest.TestCase):
    def each(self, kind):
        self.assertTrue(VECTORS[kind], kind)
        for vector in VECTORS[kind]:
            with self.subTest(vector):
                yield vector

    def test_requests(self):
        for vector in self.each("requests"):
            options = {k: v for k, v in vector.items() if k not in ("make", "file", "args", "level")}
            level = [vector["level"]] if "level" in vector else []
            request = getattr(memcg_monitor, vector["make"])(*level, **options)
            self.assertEqual((request.file, request.args), (vector["file"], vector["args"]))

    def test_lines(self):
        for vector in self.each("lines"):
            line = _wire.line(vector["event_fd"], vector["control_fd"], vector["args"])
            self.assertEqual(line, vector["line"])
            self.assertEqual(json.loads(_wire.listen_request(line)), json.loads(vector["listen"]))

    def test_targets(self):
        for vector in self.each("targets"):
            with tempfile.TemporaryDirectory() as group:
                for name in vector["has"]:
                    Path(group, name).write_text("0\n", encoding="ascii")
                if "errno" in vector:
                    with self.assertRaises(memcg_monitor.FileError) as caught:
                        _target.Target(group, vector["file"])
                    self.assertEqual(caught.exception.errno, vector["errno"])
                    continue
                target = _target.Target(group, vector["file"])
                opened = os.readlink(f"/proc/self/fd/{target.fd}")
                self.assertEqual(opened, os.path.join(group, vector["opens"]).rstrip("/"))
                self.assertEqual(target.args(vector["args"]), vector["sends"])
                self.assertEqual(target.mark.path, os.path.join(group, vector["mark"]))
                target.close()
                self.assertTrue(target.mark.is_there())
                Path(group, "another").write_text("", encoding="ascii")
                os.rename(os.path.join(group, "another"), target.mark.path)
                self.assertFalse(target.mark.is_there(), "a namesake is not the group")

    def test_event_controls(self):
        real = _target.exists
        self.addCleanup(setattr, _target, "exists", real)
        for vector in self.each("event_controls"):
            _target.exists = lambda path, has=vector["has"]: has
            self.assertEqual(_target.event_control(vector["group"]), vector["path"])

    def test_falls_back(self):
        for vector in self.each("falls_back"):
            self.assertEqual(vector["errno"] in _registration.UNREACHABLE, vector["falls_back"])

    def test_answers(self):
        for vector in self.each("answers"):
            self.outcome(vector, _wire.check_answer, "registered")

    def test_events(self):
        for vector in self.each("events"):
            if vector["outcome"] == "event":
                event = _wire.decode(vector["packet"].encode())
                # As JSON, which has no tuples.
                self.assertEqual(json.loads(json.dumps(dataclasses.asdict(event))), vector["event"])
            else:
                self.outcome(vector, _wire.decode, "listening")

    def outcome(self, vector, read, good):
        packet = vector["packet"].encode()
        if vector["outcome"] == good:
            self.assertIsNone(read(packet))
            return
        kind = {
            "refused": memcg_monitor.RefusedError,
            "ended": memcg_monitor.EndedError,
            "not understood": memcg_monitor.AnswerError,
        }[vector["outcome"]]
        with self.assertRaises(kind) as caught:
            read(packet)
        self.assertEqual(caught.exception.errno, vector.get("errno"))
        if "message" in vector:
            self.assertEqual(str(caught.exception), vector["message"])
