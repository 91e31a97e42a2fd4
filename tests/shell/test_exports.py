"""Processes that write feeds at the master: they read what is committed, and wait for
more while the crawl goes on."""

from typing import Any

import msgspec
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.model import FEEDS_WRITTEN, Outcome
from dscrapy.net.connection import Connection
from tests import builders as b
from tests.shell.master_in_memory import CrawlInMemory, MasterInMemory, receive, running

ITEM = b'{"a":1}\n'


class Export:
    """A process that reads as it is told, and says what it is asked for."""

    def __init__(self, worker: Connection[Any], start: m.Start) -> None:
        self.worker = worker
        self.job, self.process = start.job, start.process

    async def read(self, offset: int, *, wait: bool = True) -> None:
        """Ask for items from there on."""
        await self.worker.send(
            m.Read(
                job=self.job,
                process=self.process,
                file="items",
                offset=offset,
                limit=1000,
                wait=wait,
            )
        )

    async def silent(self) -> bool:
        """Whether it is told no items for long, while a heartbeat is answered."""
        await self.worker.send(m.Heartbeat(number=1))
        await receive(self.worker, m.HeartbeatSeen)
        with trio.move_on_after(5) as scope:
            await receive(self.worker, m.ReadSeen)
        return scope.cancelled_caught


async def begun(master: MasterInMemory) -> tuple[CrawlInMemory, Export]:
    """Return a crawl that has given an item, and who writes its batches."""
    client = await master.connect("client")
    await master.ask(client, b.submit(1))
    worker = await master.register("w")
    fields: dict[str, Any] = {"has_feeds": True, "batch_items": 1}
    crawl = await CrawlInMemory.begun(worker, **fields)
    await give(crawl)
    start = await receive(worker, m.Start)
    assert start.role == "export"
    return crawl, Export(worker, start)


async def give(crawl: CrawlInMemory) -> None:
    """Commit an item."""
    await crawl.send(crawl.unit("late", items=(msgspec.Raw(ITEM.strip()),)))
    assert (await receive(crawl.worker, m.CommitsSeen)).seen[0].result == "published"


async def test_a_read_waits_for_items(autojump_clock: MockClock) -> None:
    """It is answered when they are written, and holds up nobody meanwhile."""
    async with running() as master:
        crawl, export = await begun(master)
        await export.read(0)
        assert (await receive(export.worker, m.ReadSeen)).data == ITEM
        await export.read(len(ITEM))
        assert await export.silent()
        await give(crawl)
        seen = await receive(export.worker, m.ReadSeen)
        assert (seen.offset, seen.data) == (len(ITEM), ITEM)
        await export.read(2 * len(ITEM), wait=False)
        assert (await receive(export.worker, m.ReadSeen)).data == b""


async def test_the_next_read_takes_the_place_of_one_that_waits(
    autojump_clock: MockClock,
) -> None:
    """A process reads one piece at a time; what it does not wait for any more is not
    answered."""
    async with running() as master:
        crawl, export = await begun(master)
        await export.read(len(ITEM))
        assert await export.silent()
        await export.read(0)
        assert (await receive(export.worker, m.ReadSeen)).offset == 0
        await crawl.send(crawl.unit("late", items=(msgspec.Raw(ITEM.strip()),)))
        # Nor is it while the commit is answered, which nobody waits for here.
        with trio.move_on_after(5) as scope:
            await receive(export.worker, m.ReadSeen)
        assert scope.cancelled_caught


async def test_a_process_that_ends_waits_no_more(autojump_clock: MockClock) -> None:
    """Its read is forgotten with it."""
    async with running() as master:
        crawl, export = await begun(master)
        await export.read(len(ITEM))
        assert await export.silent()
        ended = b.ended(export.process, export.job)
        await export.worker.send(ended)
        await receive(export.worker, m.EndedSeen)
        # There is another one by now, which has not asked.
        assert (await receive(export.worker, m.Start)).role == "export"
        await give(crawl)
        assert await export.silent()


async def test_the_end_of_the_items_is_told_when_they_can_be_read(
    autojump_clock: MockClock,
) -> None:
    """All of them, without waiting; then the job ends with its feeds."""
    async with running() as master:
        crawl, export = await begun(master)
        await crawl.send(crawl.unit("started"))
        await receive(crawl.worker, m.CommitsSeen)
        closing = m.Closing(job=crawl.job, process=crawl.process, reason="finished")
        await crawl.worker.send(closing)
        await crawl.send(crawl.unit("closed", items=(msgspec.Raw(ITEM.strip()),)))
        end = await receive(export.worker, m.ItemsEnd)
        assert (end.items, end.items_bytes) == (2, 2 * len(ITEM))
        await export.read(0, wait=False)
        assert (await receive(export.worker, m.ReadSeen)).data == ITEM * 2
        closed = m.Commit(
            unit=1, kind="closed", end=Outcome(finish_reason=FEEDS_WRITTEN)
        )
        told = b.commits(export.process, closed, job=export.job)
        await export.worker.send(told)
        await receive(export.worker, m.Done)
        state = master.committer.machine.state
        assert state.jobs[export.job].status == "succeeded"
