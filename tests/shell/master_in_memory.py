"""A master on a disk in memory, under virtual time, with peers on memory streams."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.control import views
from dscrapy.control.clock import Now
from dscrapy.control.decision import Policy
from dscrapy.control.machine import Machine
from dscrapy.control.state.workers import Spans
from dscrapy.errors import JournalError
from dscrapy.master.bodies import KEPT_BYTES_MAX, Bodies
from dscrapy.master.committer import Committer
from dscrapy.master.files import JobFiles
from dscrapy.master.journal import Journal
from dscrapy.master.reaper import reap
from dscrapy.master.session import Sessions, SessionServer
from dscrapy.master.storage import Storage
from dscrapy.net.connection import Connection, greet
from dscrapy.net.threads import InThread
from dscrapy.proto.handshake import Role
from tests import builders as b
from tests.doubles.storage import MemoryStorage

T = TypeVar("T")
TOKEN = "t" * 32
SPANS = Spans(heartbeat_s=2.0, die_after_s=20.0, reconnect_grace_s=5.0)
POLICY = Policy(spans=SPANS)


async def in_place(call: Callable[[], T], /) -> T:
    """Run a blocking call at once: virtual time must not run past a thread."""
    await trio.lowlevel.checkpoint()
    return call()


class MasterInMemory:
    """The master's parts, composed as ``master.server`` composes them."""

    def __init__(
        self,
        storage: Storage,
        *,
        machine: Machine | None = None,
        journal: Journal | None = None,
        sessions: Sessions | None = None,
        snapshot_after_bytes: int = 1 << 30,
        disk_free_bytes_min: int = 0,
        kept_bytes_max: int = KEPT_BYTES_MAX,
        instant: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = trio.current_time,
        in_thread: InThread = in_place,
    ) -> None:
        """``machine`` may be one with a bug."""
        self.storage = storage
        self.sessions = sessions or Sessions()
        self.files = JobFiles(storage, log_bytes_max=100_000, in_thread=in_thread)
        self.committer = Committer(
            machine or Machine(policy=POLICY),
            journal or Journal.open(storage),
            self.files,
            storage,
            self.sessions,
            snapshot_after_bytes=snapshot_after_bytes,
            disk_free_bytes_min=disk_free_bytes_min,
            instant=instant,
            in_thread=in_thread,
            wall=wall,
        )
        self.committer.status = self.status
        self.committer._bodies = Bodies(storage, kept_bytes_max=kept_bytes_max)
        self.server = SessionServer(
            token=TOKEN,
            committer=self.committer,
            files=self.files,
            sessions=self.sessions,
            handshake_timeout_s=5,
            connections_max=10,
        )
        self.failure: JournalError | None = None
        self.nursery: trio.Nursery

    def status(self, call: m.GetStatus, now: Now) -> m.Status:
        """Answer ``GetStatus``."""
        machine = self.committer.machine
        return views.status(
            machine.state,
            machine.policy.spans,
            now,
            call=call.call,
            host="h",
            port=1,
            uptime_s=0.0,
            versions=b.VERSIONS,
            note=self.committer.note,
        )

    async def guarded(self) -> None:
        """Run the committer; what stops it stops the master."""
        try:
            await self.committer.run()
        except JournalError as error:
            self.failure = error
            self.nursery.cancel_scope.cancel()

    async def connect(self, role: Role) -> Connection[Any]:
        """Return a peer's end of a new connection, after its handshake."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.server.serve, theirs)
        incoming: Any = m.Answer if role == "client" else m.ToWorker
        return await greet(ours, token=TOKEN, role=role, incoming=incoming)

    async def ask(self, client: Connection[Any], call: m.Message) -> Any:
        """Send a client's call; return the answer."""
        await client.send(call)
        return await client.receive()

    async def register(self, name: str, slots: int = 1) -> Connection[Any]:
        """Return the connection of a worker that is registered."""
        worker = await self.connect("worker")
        await worker.send(b.registration(name, slots))
        answer = await worker.receive()
        assert isinstance(answer, m.Registered), answer
        return worker


@asynccontextmanager
async def running(
    storage: Storage | None = None, **settings: Any
) -> AsyncIterator[MasterInMemory]:
    """A master that serves until the block ends."""
    master = MasterInMemory(storage or MemoryStorage(), **settings)
    master.committer.replay()
    async with trio.open_nursery() as nursery:
        master.nursery = nursery
        nursery.start_soon(master.guarded)
        nursery.start_soon(master.files.run)
        nursery.start_soon(reap, master.committer)
        yield master
        nursery.cancel_scope.cancel()


async def receive(connection: Connection[Any], kind: type[Any]) -> Any:
    """Return the next message of this kind; others are passed over.

    Raises ``trio.BrokenResourceError`` when the other side is gone.
    """
    while not isinstance(message := await connection.receive(), kind):
        if message is None:
            raise trio.BrokenResourceError
    return message


class CrawlInMemory:
    """One crawl process on a worker's connection, as naive as can be.

    It numbers its units and keeps the leases that it got.
    """

    def __init__(self, worker: Connection[Any], start: m.Start) -> None:
        self.worker = worker
        self.start = start
        self.job, self.process = start.job, start.process
        self.units = 0
        self.bodies: dict[int, bytes] = {}

    @classmethod
    async def begun(cls, worker: Connection[Any], **fields: Any) -> "CrawlInMemory":
        """Take the next start, and open; ``fields`` are those of ``Opened``."""
        crawl = cls(worker, await receive(worker, m.Start))
        await crawl.open(**fields)
        return crawl

    async def open(self, **fields: Any) -> None:
        """Tell that leases can be taken; ``fields`` are those of ``Opened``."""
        await self.worker.send(b.opened(self.process, self.job, **fields))

    def unit(self, kind: Any, **fields: Any) -> m.Commit:
        """Return the next unit."""
        self.units += 1
        return b.unit(self.units, kind, **fields)

    async def send(self, *commits: m.Commit) -> None:
        """Commit, without waiting for what becomes of it."""
        await self.worker.send(b.commits(self.process, *commits, job=self.job))

    async def commit(self, *commits: m.Commit) -> list[str]:
        """Commit; return what became of each part."""
        await self.send(*commits)
        return [one.result for one in (await self.hear(m.CommitsSeen)).seen]

    async def hear(self, kind: type[Any]) -> Any:
        """Return the next message of this kind; leases on the way are kept."""
        while True:
            message = await receive(self.worker, (m.Grant, kind))  # type: ignore[arg-type]  # of several kinds
            if isinstance(message, m.Grant):
                for number, body in zip(message.requests, message.bodies, strict=True):
                    self.bodies[number] = bytes(body)
            if isinstance(message, kind):
                return message

    async def finish(self) -> m.Done:
        """End ``start()`` if need be, close, and exit; return the last answer."""
        closing = m.Closing(job=self.job, process=self.process, reason="finished")
        await self.worker.send(closing)
        assert await self.commit(self.unit("closed")) == ["published"]
        done = await self.hear(m.Done)
        assert isinstance(done, m.Done)
        await self.worker.send(b.ended(self.process, self.job))
        await self.hear(m.EndedSeen)
        return done

    async def succeed(self, *items: bytes) -> m.Done:
        """Let ``start()`` give these items and no request, and be done."""
        given = self.unit("start", items=b.raws(*items))
        assert await self.commit(given, self.unit("started")) == ["published"] * 2
        return await self.finish()
