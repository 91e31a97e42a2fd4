"""A master that says to one real worker what a test says, when it says so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from dscrapy import messages as m
from dscrapy.net.connection import Connection
from dscrapy.worker.agent import Worker
from tests import builders as b
from tests.shell.worker_in_memory import Crawls, Network, serving, worker_of

LEAD = m.Lead(job=b.ID, process=1, start=False, opened=False)


@attrs.define(eq=False)
class ManualMaster:
    """A master that says what a test says; ``heard`` has what each session told.

    It answers registrations (after ``late_s``) and heartbeats, nothing else.
    """

    late_s: float = 0.0
    drop: tuple[int, ...] = ()
    registers: list[m.Register] = attrs.field(factory=list)
    heard: list[list[Any]] = attrs.field(factory=list)
    connection: Connection[Any] | None = None

    async def play(self, connection: Connection[Any], register: m.Register) -> None:
        """Serve one session to its end."""
        self.registers.append(register)
        heard: list[Any] = []
        self.heard.append(heard)
        await trio.sleep(self.late_s)
        await connection.send(b.registered(*self.drop))
        self.connection = connection
        while (message := await connection.receive()) is not None:
            if isinstance(message, m.Heartbeat):
                await connection.send(m.HeartbeatSeen(number=message.number))
            else:
                heard.append(message)

    async def say(self, *messages: m.Message) -> None:
        """Send this, and let the worker act on it."""
        assert self.connection is not None
        for message in messages:
            await self.connection.send(message)
        await trio.sleep(0.1)

    def ends(self) -> list[m.Ended]:
        """Return the ends of processes that the latest session told."""
        return self.told(m.Ended)

    def told(self, *kinds: type[Any]) -> list[Any]:
        """Return the messages of these kinds that the latest session told."""
        return [one for one in self.heard[-1] if isinstance(one, kinds)]

    async def comes_back(self, network: Network) -> m.Register:
        """Break the connection; return what the worker registers with after it."""
        await network.cut()
        await trio.sleep(1)
        assert len(self.registers) == len(self.heard)
        return self.registers[-1]


@asynccontextmanager
async def ordered(
    folder: Path, crawls: Crawls | None = None, **fields: Any
) -> AsyncIterator[tuple[ManualMaster, Worker, Network, Crawls]]:
    """A worker that is registered at a master by script."""
    crawls = crawls or Crawls()
    master = ManualMaster()
    async with trio.open_nursery() as nursery:
        network = Network(nursery, serving(master.play))
        worker = worker_of(network, crawls, folder, **fields)
        nursery.start_soon(worker.run)
        await trio.sleep(0.1)
        yield master, worker, network, crawls
        nursery.cancel_scope.cancel()
