"""A master on a disk in memory, under virtual time, with peers on memory streams."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.errors import JournalError
from dscrapy.frontier import views
from dscrapy.frontier.clock import Now
from dscrapy.frontier.machine import Machine
from dscrapy.frontier.workers import Spans
from dscrapy.master.committer import Committer
from dscrapy.master.files import JobFiles
from dscrapy.master.journal import Journal
from dscrapy.master.reaper import reap
from dscrapy.master.session import Sessions, SessionServer
from dscrapy.master.storage import Storage
from dscrapy.model import JobSpec, Outcome, Submission, Versions
from dscrapy.net.connection import Connection, greet
from dscrapy.proto.session import Role
from tests.doubles.storage import MemoryStorage

T = TypeVar("T")
TOKEN = "t" * 32
SPANS = Spans(heartbeat_s=2.0, die_after_s=20.0, reconnect_grace_s=5.0)
VERSIONS = Versions(dscrapy="1", scrapy="2", python="3")


async def in_place(call: Callable[[], T], /) -> T:
    """Run a blocking call at once: virtual time must not run past a thread."""
    await trio.lowlevel.checkpoint()
    return call()


class MasterInMemory:
    """The master's parts, composed as ``master.server`` composes them."""

    def __init__(self, storage: Storage, *, disk_free_bytes_min: int = 0) -> None:
        self.storage = storage
        self.sessions = Sessions()
        self.files = JobFiles(storage, log_bytes_max=100_000, in_thread=in_place)
        self.committer = Committer(
            Machine(spans=SPANS),
            Journal.open(storage),
            self.files,
            storage,
            self.sessions,
            snapshot_after_bytes=1 << 30,
            disk_free_bytes_min=disk_free_bytes_min,
            instant=trio.current_time,
            in_thread=in_place,
            wall=trio.current_time,
        )
        self.committer.status = self.status
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
            machine.spans,
            now,
            call=call.call,
            host="h",
            port=1,
            uptime_s=0.0,
            versions=VERSIONS,
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
        await worker.send(registration(name, slots))
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


def registration(name: str, slots: int = 1, instance: str = "1") -> m.Register:
    """Return what a worker registers with."""
    return m.Register(
        name=name,
        instance=instance,
        host="h",
        port=1,
        slots=slots,
        draining=False,
        versions=VERSIONS,
        held=(),
    )


def submit(*numbers: int, every_s: float | None = None) -> m.Submit:
    """Return the submission of jobs with these numbers as ids."""
    spec = JobSpec(project="p", spider="s")
    return m.Submit(
        call=1,
        part=0,
        last=True,
        submissions=tuple(
            Submission(id=f"{number:016x}", spec=spec, every_s=every_s)
            for number in numbers
        ),
    )


def last_part(start: m.Start, *items: bytes) -> m.Commit:
    """Return a whole commit of the run that ``start`` granted."""
    return m.Commit(
        job=start.job,
        process=start.process,
        request=start.request,
        part=0,
        last=True,
        items=tuple(msgspec.Raw(item) for item in items),
        outcome=Outcome(finish_reason="finished"),
    )
