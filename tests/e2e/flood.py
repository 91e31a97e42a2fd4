"""Strangers who hold connections open, from an address of their own."""

import contextlib
import resource
import socket
import threading
from pathlib import Path

# All of 127/8 is this machine's; peers of ours are at 127.0.0.1.
ADDRESS = "127.0.0.2"
# One byte on so many of them, then a pause of so long.
BATCH = 50
PAUSE_S = 0.02


class Flood:
    """Keeps ``count`` connections open: dials again whenever one is ended, and sends a
    byte on every other of them now and then."""

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.sockets = [self._dial() for _ in range(count)]
        self.ended = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _dial(self) -> socket.socket:
        one = socket.create_connection(
            ("127.0.0.1", self.port), 30, source_address=(ADDRESS, 0)
        )
        one.setblocking(False)
        return one

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in self.sockets:
            one.close()

    def _run(self) -> None:
        at = 0
        while not self._stop.wait(PAUSE_S):
            for _ in range(BATCH):
                at = (at + 1) % len(self.sockets)
                self._tend(at)

    def _tend(self, at: int) -> None:
        one = self.sockets[at]
        try:
            if at % 2:
                one.send(b"\0")
            if one.recv(1000):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        one.close()
        self.ended += 1
        with contextlib.suppress(OSError):
            self.sockets[at] = self._dial()


def memory_bytes(pid: int) -> int:
    """Return what a process holds in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def open_files(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def limits_allow(count: int) -> bool:
    """Return whether this process may have so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200 <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200, hard))
        soft = count + 200
    return soft >= count + 200
