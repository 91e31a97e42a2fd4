"""Plays the worker to real crawl processes, and runs plain Scrapy beside them."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dscrapy import messages as m
from dscrapy.model import JobSpec, Outcome
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.worker.crawl_process import marks_file
from tests.e2e.naive_master import JOB, KEY, NaiveMaster
from tests.hang import HANG_S

ROOT = Path(__file__).parents[2]
SITE = ROOT / "tests" / "site"
PROJECT = SITE / "project"
WAIT_S = HANG_S


def child_environment() -> dict[str, str]:
    """Return this process's environment as a worker would hand it on."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DSCRAPY_", "SCRAPY_"))
    }
    environment["PYTHONPATH"] = str(ROOT)
    environment["PYTHONHASHSEED"] = "7"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


@contextmanager
def running_site(log: Path | None = None) -> Iterator[str]:
    """Serve the test site; yield its address."""
    arguments = [sys.executable, "-P", str(SITE / "server.py")]
    if log is not None:
        arguments += ["--log", str(log)]
    site = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert site.stdout is not None
    assert site.stdin is not None
    try:
        yield site.stdout.readline().strip()
    finally:
        site.stdin.close()
        site.wait(HANG_S)
        site.stdout.close()


class Gate:
    """Holds all but the first ``free`` of the site's pages until ``open``.

    So a crawl that has these ``arguments`` is in its middle until the test says
    otherwise, on any machine.
    """

    def __init__(self, folder: Path, free: int) -> None:
        self._path = folder / "gate"
        self.arguments = {"gate": str(self._path), "free": str(free)}

    def open(self) -> None:
        """Let all pages go, from now on."""
        self._path.touch()

    def close(self) -> None:
        """Hold the pages again of a crawl that begins after this."""
        self._path.unlink()


def requests_in(log: Path) -> list[tuple[float, str]]:
    """Return the instants (CLOCK_BOOTTIME) and paths in a site's log."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(float(at), path) for at, _, path in lines]


def plain_scrapy(
    spider: str,
    arguments: dict[str, str],
    output: Path,
    folder: Path = PROJECT,
    *,
    more: tuple[Path, ...] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run ``scrapy crawl -O output``, also to ``more`` files; return its log."""
    command = "runspider" if spider.endswith(".py") else "crawl"
    words = [sys.executable, "-P", "-m", "scrapy", command, spider]
    for path in (output, *more):
        words += ["-O", str(path)]
    # In a process of its own these would collide with whatever else runs here.
    words += ["-s", "TELNETCONSOLE_ENABLED=0", "-s", "REMOTE_CONTROL_ENABLED=0"]
    words += ["-s", "LOG_FILE=", "-s", "JOBDIR="]
    for name, value in settings.items():
        words += ["-s", f"{name}={value}"]
    for name, value in arguments.items():
        words += ["-a", f"{name}={value}"]
    done = subprocess.run(
        words,
        cwd=folder,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=WAIT_S,
        check=True,
    )
    return done.stderr.decode()


class CrawlProcess:
    """A crawl process whose worker is the test; ``master`` answers it.

    ``credit`` False leaves commits unanswered until ``answer`` is called. Several
    processes of one job share a master and have numbers of their own.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: Path,
        log: Path,
        *,
        credit: bool = True,
        master: NaiveMaster | None = None,
        number: int = 3,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        lifeline, self._lifeline = os.pipe()
        self.marks = marks_file()
        self.sock = ours
        self.credit = credit
        self.number = number
        self.master = NaiveMaster() if master is None else master
        self.received: list[m.Message] = []
        self.is_at_end = False
        self._unanswered: list[m.Commits] = []
        self._reader = FrameReader()
        self._decoder: Decoder[Any] = Decoder(m.FromCrawl)
        self._log = log
        with log.open("wb") as log_file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "dscrapy.crawl",
                    str(theirs.fileno()),
                    str(lifeline),
                    str(self.marks),
                ],
                cwd=folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(theirs.fileno(), lifeline, self.marks),
                start_new_session=True,
            )
        theirs.close()
        os.close(lifeline)
        self.master.came(number, self.send)
        self.peer = self.master.peers[number]
        self.send(m.Run(job=JOB, process=number, role="crawl", spec=spec, key=KEY))

    @property
    def log(self) -> str:
        """What the process has written so far."""
        return self._log.read_text()

    @property
    def lines(self) -> list[str]:
        """The committed lines of the job, a wrapped one unwrapped."""
        return self.master.lines

    @property
    def tagged(self) -> list[bytes]:
        """The tagged form of each committed line."""
        return self.master.tagged

    @property
    def outcome(self) -> Outcome:
        """How the process closed."""
        assert self.peer.outcome is not None
        return self.peer.outcome

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """The job's committed stats, merged by operation."""
        return self.master.stats

    def send(self, message: m.Message) -> None:
        """Send a message to the process; one that is dead gets nothing."""
        try:
            self.sock.sendall(encode_frame(encode(message)))
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self) -> None:
        """Let the master take what has been left unanswered."""
        waiting, self._unanswered = self._unanswered, []
        for message in waiting:
            self.master.take(message)

    def read_until(self, condition: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
        """Read messages until the condition holds; False when time or link ends."""
        return pump([self], condition, wait_s)

    def receive(self) -> None:
        """Take what the link holds, or its end."""
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self.is_at_end = True
        self._reader.feed(data)
        while (frame := self._reader.next_frame()) is not None:
            self._take(self._decoder.decode(frame))

    def _take(self, message: Any) -> None:
        self.received.append(message)
        if isinstance(message, m.Alive):
            return
        if isinstance(message, m.Commits) and not self.credit:
            self._unanswered.append(message)
        else:
            self.master.take(message)

    def wait_for_log(self, text: str) -> None:
        """Read until the process has logged ``text``."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            self.read_until(lambda: False, 0.05)

    def finish(self) -> int:
        """Read to the last commit and return the exit code."""
        assert self.read_until(lambda: self.peer.outcome is not None), self.log
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        """Kill the process, read what it has sent, and tell the master."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)
        while not self.is_at_end:
            self.receive()
        self.master.lost(self.number)

    def cut_lifeline(self) -> None:
        """Let go of the lifeline, as a worker that died does."""
        os.close(self._lifeline)
        self._lifeline = -1

    def close(self) -> None:
        """End the process, whatever it does."""
        self.sock.close()
        if self._lifeline >= 0:
            self.cut_lifeline()
        os.close(self.marks)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)


def pump(
    processes: list[CrawlProcess],
    condition: Callable[[], bool],
    wait_s: float = WAIT_S,
) -> bool:
    """Read messages of all until the condition holds; False at time's or links' end."""
    deadline = time.monotonic() + wait_s
    while not condition():
        left = deadline - time.monotonic()
        socks = {one.sock: one for one in processes if not one.is_at_end}
        if left <= 0 or not socks:
            return condition()
        for sock in select.select(list(socks), [], [], left)[0]:
            socks[sock].receive()
    return True
