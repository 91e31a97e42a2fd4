"""The demonstration's master and workers, and the commands that are given to them.

All are processes of their own, in sessions of their own: Ctrl-C is for the
demonstration, which then ends these.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from dscrapy.demo import site
from dscrapy.demo.narration import Screen

WORKERS = ("worker-1", "worker-2")
# How long the master waits for a worker whose connection broke.
GRACE_S = 2.0
CONF = f"""\
[dscrapy.master]
heartbeat_s = 0.5
reconnect_grace_s = {GRACE_S}
"""
# How soon one more look for the master's address is worth while.
POLL_S = 0.05
LOG_LINES_SHOWN = 15

Environ = dict[str, str]


class DemoError(Exception):
    """The demonstration failed; the text says at what, on one line."""


@attrs.define
class Cluster:
    """Services and clients, with the variables of ``environ``; ``folder`` is theirs."""

    folder: Path
    screen: Screen
    environ: Environ
    services: dict[str, trio.Process] = attrs.field(factory=dict)
    _killed: set[str] = attrs.field(factory=set)

    # ---- processes ------------------------------------------------------------

    async def start(self) -> None:
        """Start a master and two workers that have one slot each.

        Raises ``DemoError``. Returns when the master listens.
        """
        await self._start("master", "master", "--port", "0")
        while not (self.folder / "state" / "endpoint.json").exists():
            self.check()
            await trio.sleep(POLL_S)
        for name in WORKERS:
            await self._start(name, "worker", "--name", name, "--slots", "1")

    async def _start(self, name: str, *words: str) -> None:
        self.screen.command("dscrapy", *words)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.services[name] = await trio.lowlevel.open_process(
                [sys.executable, "-m", "dscrapy", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environ(),
                start_new_session=True,
            )

    def _environ(self) -> Environ:
        conf = self.folder / "conf.toml"
        if not conf.exists():
            conf.write_text(CONF)
        state = self.folder / "state"
        variables = {"DSCRAPY_CONF": str(conf), "DSCRAPY_STATE": str(state)}
        return self.environ | variables

    def check(self) -> None:
        """Raise ``DemoError`` if a service has ended that was not killed."""
        for name, process in self.services.items():
            if name not in self._killed and process.poll() is not None:
                raise DemoError(f"{name} ended with status {process.returncode}")

    async def cut_power(self, name: str) -> None:
        """Kill a worker and its crawl processes, as when its machine loses power."""
        worker = self.services[name]
        self._killed.add(name)
        # A stopped worker tells the master nothing of the processes that die before
        # it, and waits for none of them, so no other process gets their numbers.
        worker.send_signal(signal.SIGSTOP)
        for child in children_of(worker.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        worker.kill()
        await worker.wait()

    async def close(self, grace_s: float) -> dict[str, int]:
        """End all services; return those that did not end well, and their statuses.

        Workers first, so that they can log out.
        """
        statuses: dict[str, int] = {}

        async def end(name: str) -> None:
            statuses[name] = await site.end(self.services[name], grace_s)

        async with trio.open_nursery() as nursery:
            for name in self.services.keys() & set(WORKERS):
                nursery.start_soon(end, name)
        if "master" in self.services:
            await end("master")
        return {
            name: status
            for name, status in statuses.items()
            if status and name not in self._killed
        }

    def kill(self) -> None:
        """Kill all services at once."""
        for process in self.services.values():
            process.kill()

    def show_logs(self) -> None:
        """Show the ends of the logs: they are in a folder that goes away."""
        for name in self.services:
            text = (self.folder / f"{name}.log").read_text(errors="replace")
            for line in text.splitlines()[-LOG_LINES_SHOWN:]:
                self.screen.say(f"  {name}: {line}")

    # ---- commands ---------------------------------------------------------------

    async def command(self, *words: str) -> str:
        """Show a command, run it to its end, return its output; or ``DemoError``."""
        self.screen.command("dscrapy", *words)
        return await self._call(*words)

    async def status(self) -> dict[str, Any]:
        """Return what the master tells of jobs and workers."""
        self.check()
        return _object(await self._call("status", "--json"))

    async def status_at(self, worker: dict[str, Any]) -> dict[str, Any]:
        """Return what a worker of the status tells itself, at its own port."""
        where = f"{worker['host']}:{worker['port']}"
        return _object(await self._call("status", "--json", "--at", where))

    async def _call(self, *words: str) -> str:
        command = [sys.executable, "-m", "dscrapy", *words]
        return await run(command, Path.cwd(), self._environ())


async def run(command: Sequence[str], folder: Path, environ: Environ) -> str:
    """Run a command to its end; return its output. Raises ``DemoError``."""
    done = await trio.run_process(
        list(command),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=folder,
        env=environ,
        start_new_session=True,
    )
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").strip()
        name = " ".join(command[2:4])
        raise DemoError(f"{name} ended with status {done.returncode}: {complaint}")
    return done.stdout.decode(errors="replace").strip()


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def children_of(pid: int) -> list[int]:
    """Return the processes that this one has started and that are not gone."""
    return [child for child, parent in _processes() if parent == pid]


def _processes() -> list[tuple[int, int]]:
    """Return each process of this machine and its parent."""
    if sys.platform == "linux":
        # Not every Linux has ``ps``.
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                # A name in parentheses, which may hold any character, comes first.
                fields = path.read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            found.append((int(path.parent.name), int(fields[1])))
        return found
    command = ["/bin/ps", "-A", "-o", "pid=,ppid="]
    listed = subprocess.run(command, capture_output=True, check=True).stdout
    pairs = (line.split() for line in listed.decode().splitlines())
    return [(int(pid), int(parent)) for pid, parent in pairs]
