"""Plays the worker to a real crawl process, and runs plain Scrapy beside it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from dscrapy.messages import (
    RUN_REQUEST,
    Commit,
    CommitSeen,
    FromCrawl,
    Message,
    Run,
)
from dscrapy.model import JobSpec, Outcome
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame

ROOT = Path(__file__).parents[2]
SITE = ROOT / "tests" / "site"
PROJECT = SITE / "project"
# Longer than any of these crawls takes on a busy machine.
WAIT_S = 60.0


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
        site.wait(10)
        site.stdout.close()


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
) -> str:
    """Run ``scrapy crawl -O output``, also to ``more`` files; return its log."""
    command = "runspider" if spider.endswith(".py") else "crawl"
    words = [sys.executable, "-P", "-m", "scrapy", command, spider]
    for path in (output, *more):
        words += ["-O", str(path)]
    # In a process of its own these would collide with whatever else runs here.
    words += ["-s", "TELNETCONSOLE_ENABLED=0", "-s", "REMOTE_CONTROL_ENABLED=0"]
    words += ["-s", "LOG_FILE=", "-s", "JOBDIR="]
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
    """A crawl process whose worker is the test.

    ``credit`` False leaves commits unanswered until ``answer`` is called.
    """

    def __init__(
        self, spec: JobSpec, folder: Path, log: Path, *, credit: bool = True
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        lifeline, self._lifeline = os.pipe()
        self.sock = ours
        self.credit = credit
        self.commits: list[Commit] = []
        self.others: list[Message] = []
        self._unanswered: list[Commit] = []
        self._reader = FrameReader()
        self._decoder: Decoder[Any] = Decoder(FromCrawl)
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
                ],
                cwd=folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
            )
        theirs.close()
        os.close(lifeline)
        self.send(Run(job="1" * 16, process=3, request=RUN_REQUEST, spec=spec))

    @property
    def log(self) -> str:
        """What the process has written so far."""
        return self._log.read_text()

    @property
    def lines(self) -> list[str]:
        """The committed lines, a wrapped one unwrapped."""
        return [line_of(raw) for commit in self.commits for raw in commit.items]

    @property
    def tagged(self) -> list[bytes]:
        """The tagged form of each committed line."""
        forms: list[bytes] = []
        for commit in self.commits:
            assert len(commit.tagged) in (0, len(commit.items))
            forms += map(bytes, commit.tagged or (b"null",) * len(commit.items))
        return forms

    @property
    def outcome(self) -> Outcome:
        """The outcome of the last part."""
        last = self.commits[-1]
        assert last.last
        assert last.outcome is not None
        return last.outcome

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """The last part's stats, decoded."""
        return {
            operation: {key: msgspec.json.decode(value) for key, value in group.items()}
            for operation, group in self.commits[-1].stats.items()
        }

    def send(self, message: Message) -> None:
        """Send a message to the process."""
        self.sock.sendall(encode_frame(encode(message)))

    def answer(self, result: Any = "stored") -> None:
        """Acknowledge what has been left unanswered."""
        while self._unanswered:
            self._acknowledge(self._unanswered.pop(0), result)

    def _acknowledge(self, commit: Commit, result: Any) -> None:
        self.send(
            CommitSeen(
                job=commit.job,
                process=commit.process,
                request=commit.request,
                part=commit.part,
                result=result,
            )
        )

    def read_until(self, condition: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
        """Read messages until the condition holds; False when time or link ends."""
        deadline = time.monotonic() + wait_s
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                return condition()
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return condition()
            self._reader.feed(data)
            while (frame := self._reader.next_frame()) is not None:
                self._take(self._decoder.decode(frame))
        return True

    def _take(self, message: Message) -> None:
        if not isinstance(message, Commit):
            self.others.append(message)
            return
        assert message.part == len(self.commits)
        self.commits.append(message)
        if self.credit:
            self._acknowledge(message, "published" if message.last else "stored")
        else:
            self._unanswered.append(message)

    def wait_for_log(self, text: str) -> None:
        """Read until the process has logged ``text``."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            self.read_until(lambda: False, 0.05)

    def finish(self) -> int:
        """Read to the last part and return the exit code."""
        ended = self.read_until(lambda: bool(self.commits) and self.commits[-1].last)
        assert ended, self.log
        return self.process.wait(WAIT_S)

    def cut_lifeline(self) -> None:
        """Let go of the lifeline, as a worker that died does."""
        os.close(self._lifeline)
        self._lifeline = -1

    def close(self) -> None:
        """End the process, whatever it does."""
        self.sock.close()
        if self._lifeline >= 0:
            self.cut_lifeline()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)


def line_of(raw: msgspec.Raw) -> str:
    """Return the line of ``items.jsonl`` for one of a commit's items."""
    text = bytes(raw).decode()
    if not text.startswith('"'):
        return text
    line = json.loads(text)
    assert isinstance(line, str)
    return line
