"""A player of the agent: a socket that answers a registration as it is given to."""

import os
import socket
import tempfile
import threading


class Player:
    """Sends `packets` when a line and its two descriptors have come, and ends when `stop`ped."""

    def __init__(self, *packets, has=("memory.current", "cgroup.procs")):
        self._directory = tempfile.TemporaryDirectory()
        self.group = os.path.join(self._directory.name, "group")
        os.mkdir(self.group)
        for name in has:
            with open(os.path.join(self.group, name), "w", encoding="ascii") as file:
                file.write("0\n")
        self.socket = os.path.join(self._directory.name, "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.socket)
        self._listener.listen()
        self._packets = packets
        self._stop = threading.Event()
        self.line, self.descriptors, self.failure = None, [], None
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _play(self):
        connection, _ = self._listener.accept()
        with connection:
            packet, self.descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
            self.line = packet.decode()
            for packet in self._packets:
                connection.send(packet.encode())
            self._stop.wait()

    def signal(self, count=1):
        os.write(self.descriptors[0], count.to_bytes(8, "little"))

    def stop(self):
        """Ends the connection, as an agent that ends does."""
        self._stop.set()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self._listener.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._directory.cleanup()
