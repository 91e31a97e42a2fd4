"""Real processes to measure: a master, workers, commands, and plain Scrapy beside.

Unlike the tests' cluster it lets Python keep its compiled files, as a person's shell
does; else each command would be measured compiling itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import trio

from dscrapy.client import Client, Target
from dscrapy.net.host import boot_instant
from tests.e2e.crawl_harness import PROJECT, ROOT

# Longer than anything measured here takes on a busy machine.
WAIT_S = 300.0
# How often a fact that no event tells is looked at; the error of what it dates.
LOOK_S = 0.005
_TICKS = os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    """Return this process's environment without what changes how children run."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DSCRAPY_", "SCRAPY_", "PYTHON"))
    }
    return {**kept, "PYTHONPATH": str(ROOT)}


@attrs.frozen(kw_only=True)
class Done:
    """A command from start to exit; instants of the boot clock, ``cpu_s`` of it
    and of children it waited for."""

    begin: float
    said: float
    end: float
    cpu_s: float
    output: str

    @property
    def wall_s(self) -> float:
        """Seconds from start to exit."""
        return self.end - self.begin


@attrs.define
class Command:
    """A command that runs; ``finish`` waits for it."""

    process: subprocess.Popen[bytes]
    begin: float

    def finish(self) -> Done:
        """Wait for a success; ``said`` is when its first output was there."""
        process = self.process
        assert process.stdout is not None
        with process.stdout as stdout:
            output = stdout.read(1)
            said = boot_instant()
            output += stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        end = boot_instant()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{process.args!r} exits with {process.returncode}")
        return Done(
            begin=self.begin,
            said=said,
            end=end,
            cpu_s=usage.ru_utime + usage.ru_stime,
            output=output.decode(),
        )


def begin(words: list[str], cwd: Path, log: Path) -> Command:
    """Start a command; its stderr goes to ``log``."""
    with log.open("ab") as errors:
        instant = boot_instant()
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    return Command(process, instant)


@attrs.define
class Fleet:
    """Master and workers of one state folder."""

    folder: Path
    port: int = 0
    processes: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    @property
    def state(self) -> Path:
        """The master's state folder."""
        return self.folder / "state"

    @property
    def log(self) -> Path:
        """What all of them log."""
        return self.folder / "log.txt"

    def configure(self, master: str) -> None:
        """Write the conf file; ``master`` is the body of its table."""
        (self.folder / "conf.toml").write_text(f"[dscrapy.master]\n{master}\n")

    async def start_master(self) -> tuple[subprocess.Popen[bytes], float]:
        """Start the master; return it and the seconds until it answers a call."""
        endpoint = self.state / "endpoint.json"
        endpoint.unlink(missing_ok=True)
        started = boot_instant()
        process = self._start("master", "--port", str(self.port))
        # The file alone is no answer, but before it nobody knows the port.
        await until(trio.Path(endpoint).exists)
        self.port = json.loads(endpoint.read_text())["port"]
        async with self.client() as client:
            await client.status()
        return process, boot_instant() - started

    async def start_worker(self, name: str, slots: int) -> subprocess.Popen[bytes]:
        """Start a worker and wait until the master knows it."""
        words = ("--name", name, "--port", "0", "--slots", str(slots))
        process = self._start("worker", *words)
        async with self.client() as client:

            async def is_known() -> bool:
                return name in {one.name for one in (await client.status()).workers}

            await until(is_known)
        return process

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.words(*arguments),
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def words(self, *arguments: str) -> list[str]:
        """Return the words of a command of this fleet."""
        where = ["--state", str(self.state), "--conf", str(self.folder / "conf.toml")]
        start = [sys.executable, "-P", "-m", "dscrapy", arguments[0]]
        return [*start, *where, *arguments[1:]]

    def begin(self, *arguments: str) -> Command:
        """Start a client command."""
        return begin(self.words(*arguments), self.folder, self.log)

    def client(self) -> Client:
        """Return a client of the master."""
        return Client(self._target, connect_timeout_s=WAIT_S)

    def _target(self) -> Target:
        token = (self.state / "token").read_text().strip()
        return Target(
            host="127.0.0.1", port=self.port, token=token, token_from=str(self.state)
        )

    def end(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Send a signal and wait for the end."""
        process.send_signal(number)
        process.wait(WAIT_S)

    def close(self) -> None:
        """End everything, what was frozen too."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(WAIT_S)


@contextlib.contextmanager
def running_fleet(master: str = "") -> Iterator[Fleet]:
    """A fleet without processes yet, in a folder that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="dscrapy-bench-") as folder:
        fleet = Fleet(Path(folder))
        fleet.configure(master)
        try:
            yield fleet
        finally:
            fleet.close()


def plain_scrapy(*arguments: str, folder: Path) -> Command:
    """Start ``scrapy crawl`` in the test project, items to a file in ``folder``."""
    words = [sys.executable, "-P", "-m", "scrapy", "crawl", *arguments]
    words += ["-O", str(folder / f"{boot_instant():.6f}.jsonl")]
    return begin(words, PROJECT, folder / "scrapy.txt")


async def until(holds: Callable[[], Awaitable[bool]]) -> float:
    """Wait for a fact that no event tells; return the instant it was seen."""
    with trio.fail_after(WAIT_S):
        while True:
            if await holds():
                return boot_instant()
            await trio.sleep(LOOK_S)


async def until_idle(client: Client) -> None:
    """Wait until no worker has a process: it leaves a moment after its job's end."""

    async def is_idle() -> bool:
        return not any(worker.busy for worker in (await client.status()).workers)

    await until(is_idle)


# ---- what the kernel knows of a process ----------------------------------------


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, without its children."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children_cpu_s(pid: int) -> float:
    """Return the CPU seconds of children that the process has waited for."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS


def _stat(pid: int) -> list[str]:
    # The name in parentheses may hold anything; fields are counted behind it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no VmRSS")


def crawl_pids(worker: subprocess.Popen[bytes]) -> list[int]:
    """Return the crawl processes of a worker."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{worker.pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return [pid for pid in found if _is_crawl(pid)]


def _is_crawl(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"dscrapy.crawl" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def freeze(pids: list[int]) -> None:
    """SIGSTOP them all."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
