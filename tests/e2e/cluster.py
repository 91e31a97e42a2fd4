"""A master and workers as real processes, for tests that kill them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import trio

from dscrapy.cli.output_files import copy_file
from dscrapy.cli.terminal.render import dump, shown_json, status_json
from dscrapy.client import Client, Target
from tests.e2e.crawl_harness import PROJECT, ROOT, child_environment
from tests.hang import HANG_S

T = TypeVar("T")

WAIT_S = HANG_S
# Spans of a machine so busy that nobody is given up who is alive.
CONF = """
[dscrapy.client]
connect_timeout_s = 1000

[dscrapy.master]
heartbeat_s = 15
reconnect_grace_s = 200
die_after_s = 200
handshake_timeout_s = 600
"""
# Short ones, for tests that wait until the dead are given up. On a busy machine the
# living may be, too: what such a test asserts holds all the same.
DYING = """
[dscrapy.client]
connect_timeout_s = 1000

[dscrapy.master]
heartbeat_s = 0.2
reconnect_grace_s = 1.0
die_after_s = 4.0
handshake_timeout_s = 600
"""


class Cluster:
    """Processes of one state folder; ``close`` ends them all."""

    def __init__(self, folder: Path, conf: str = CONF) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.conf = folder / "conf.toml"
        self.conf.write_text(conf)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.master: subprocess.Popen[bytes] | None = None
        self._port = 0

    # ---- processes ------------------------------------------------------------

    def start_master(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the master and wait until it listens; again on the same port."""
        with contextlib.suppress(FileNotFoundError):
            (self.state / "endpoint.json").unlink()
        port = ("--port", str(self._port))
        self.master = self._start("master", *port, *arguments)
        self.wait_until(lambda: (self.state / "endpoint.json").exists())
        self._port = json.loads((self.state / "endpoint.json").read_text())["port"]
        return self.master

    def start_worker(
        self, name: str, *arguments: str, within: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker; it may still be on its way to the master.

        ``within`` are words of a program that becomes the worker, elsewhere.
        """
        words = ("--name", name, "--port", "0", *arguments)
        return self._start("worker", *words, within=within)

    def _start(
        self, *arguments: str, within: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        log = (self.folder / "log.txt").open("ab")
        with log:
            process = subprocess.Popen(
                [*within, *self._command(*arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def _command(self, *arguments: str) -> list[str]:
        start = [sys.executable, "-m", "dscrapy", arguments[0]]
        where = ["--state", str(self.state), "--conf", str(self.conf)]
        return [*start, *where, *arguments[1:]]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL."""
        process.kill()
        process.wait(WAIT_S)

    def log(self) -> str:
        """Return what all of them logged."""
        return (self.folder / "log.txt").read_text()

    def close(self) -> None:
        """End everything; a process that was stopped too."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.processes:
            process.wait(WAIT_S)

    # ---- the command line -------------------------------------------------------

    def run(
        self, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a client command to its end."""
        return subprocess.run(
            self._command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            env={**child_environment(), **variables},
            cwd=self.folder,
        )

    def ok(self, *arguments: str) -> str:
        """Run a client command that must succeed; return its stdout."""
        done = self.run(*arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.log())
        return done.stdout

    def submit(self, spider: str, *arguments: str, **spider_arguments: Any) -> str:
        """Submit a job of the test project; return its id."""
        pairs = [f"{key}={value}" for key, value in spider_arguments.items()]
        words = [word for pair in pairs for word in ("-a", pair)]
        project = ("--project", str(PROJECT))
        return self.ok("submit", spider, *project, *words, *arguments).strip()

    # ---- a client in this process: a command takes a third of a second of CPU ------

    def status(self) -> dict[str, Any]:
        """Return what ``status --json`` prints."""

        async def ask(client: Client) -> str:
            return dump(status_json(await client.status(), await client.jobs()))

        status: dict[str, Any] = json.loads(self._ask(ask))
        return status

    def job(self, job: str) -> dict[str, Any]:
        """Return the job's object, as ``show --json`` prints it."""

        async def ask(client: Client) -> str:
            return dump(shown_json(await client.show(job)))

        shown: dict[str, Any] = json.loads(self._ask(ask))
        found = shown.get("job", shown)
        assert isinstance(found, dict)
        return found

    def items(self, job: str) -> Counter[str]:
        """Return the job's items as a multiset of lines."""
        data = bytearray()

        async def ask(client: Client) -> None:
            await copy_file(client, job, "items", data.extend)

        self._ask(ask)
        return Counter(data.decode().splitlines())

    def _ask(self, what: Callable[[Client], Awaitable[T]]) -> T:
        def find() -> Target:
            token = child_environment().get("DSCRAPY_TOKEN")
            token = token or (self.state / "token").read_text().strip()
            where = json.loads((self.state / "endpoint.json").read_text())
            return Target(
                host="127.0.0.1",
                port=where["port"],
                token=token,
                token_from=str(self.state),
            )

        async def converse() -> T:
            async with Client(find, connect_timeout_s=WAIT_S) as client:
                return await what(client)

        return trio.run(converse)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait for a fact that no event tells; fails after ``WAIT_S``."""
        wait_until(holds, self.log)

    def crawl_pids(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """Return the worker's crawl processes."""
        return crawls_of(worker.pid)


def wait_until(holds: Callable[[], bool], log: Callable[[], str] = str) -> None:
    """Wait for a fact that no event tells; fails after ``WAIT_S``, with the log."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, log()
        time.sleep(0.05)


def crawls_of(worker: int) -> list[int]:
    """Return the crawl processes of a worker, or of a ``crawl``, by its process id."""
    return [pid for pid in _children(worker) if _is_crawl(pid)]


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += [int(word) for word in text.split()]
    return found


def _is_crawl(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"dscrapy.crawl" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextlib.contextmanager
def running_cluster(folder: Path, conf: str = CONF) -> Iterator[Cluster]:
    """A cluster without processes yet; all are ended at the end."""
    cluster = Cluster(folder, conf)
    try:
        yield cluster
    finally:
        cluster.close()


__all__ = ["ROOT", "Cluster", "running_cluster"]
