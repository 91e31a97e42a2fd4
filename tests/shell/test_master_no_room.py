"""No room for what is derived: nothing that a later start needs goes away."""

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.errors import JournalFullError
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import (
    SPANS,
    CrawlInMemory,
    MasterInMemory,
    receive,
    running,
)

ITEM = (msgspec.Raw(b'{"n":1}'),)


async def begun(master: MasterInMemory) -> CrawlInMemory:
    """Return a crawl that has one lease."""
    client = await master.connect("client")
    await master.ask(client, b.submit(1))
    worker = await master.register("w")
    crawl = await CrawlInMemory.begun(worker, window=1)
    await crawl.commit(crawl.unit("start", children=b.children(b"1")))
    await crawl.hear(m.Grant)
    return crawl


async def snapshot_by(master: MasterInMemory, crawl: CrawlInMemory) -> None:
    """Let there be a snapshot of this instant, or a try."""
    master.committer._snapshot_at_bytes = 1
    await crawl.commit(crawl.unit("late"))
    master.committer._snapshot_at_bytes = 1 << 30
    await trio.sleep(1)
    await master.files.caught_up()


async def test_spools_outlive_a_snapshot_that_found_no_room(
    autojump_clock: MockClock,
) -> None:
    """The next start begins at the snapshot before, and moves the spool once more."""
    storage = MemoryStorage()
    async with running(storage) as master:
        crawl = await begun(master)
        await crawl.commit(m.Commit(request=1, last=False, items=ITEM))
        await snapshot_by(master, crawl)
        await crawl.commit(m.Commit(request=1, part=1))
        await master.files.caught_up()
        storage.room = storage.used_bytes() + 450
        await snapshot_by(master, crawl)
        assert storage.names("spool")
    assert [name for name in storage.names() if name.startswith("snapshot")] == [
        "snapshot-0000000002.bin"
    ]
    async with running(storage.copy()) as master:
        assert await master.files.read(crawl.job, "items", 0, 99) == b'{"n":1}\n'


async def test_a_start_without_room_for_items_says_so(
    autojump_clock: MockClock,
) -> None:
    """An error that names the file; a start with room goes on from there."""
    storage = MemoryStorage()
    async with running(storage) as master:
        crawl = await begun(master)
        await crawl.commit(m.Commit(request=1, items=ITEM))
        await master.files.caught_up()
    storage.remove(f"jobs/{crawl.job}/items.jsonl")
    storage.room = storage.used_bytes()
    with pytest.raises(JournalFullError, match=r"items\.jsonl"):
        async with running(storage):
            raise AssertionError("it started")
    storage.room = None
    async with running(storage) as master:
        assert await master.files.read(crawl.job, "items", 0, 99) == b'{"n":1}\n'


async def test_who_comes_again_while_there_is_no_room_is_not_reaped(
    autojump_clock: MockClock,
) -> None:
    """A registration that waits for the disk for longer than ``die_after_s`` is asked
    for again meanwhile; then what the master has received counts before the time."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2))
        worker = await master.register("w", slots=2)
        crawls = [await CrawlInMemory.begun(worker) for _ in range(2)]
    async with running(storage) as master:
        await master.connect("client")
        storage.room = storage.used_bytes()
        # The second process is gone: that has to be written before the answer leaves.
        held = m.HeldProcess(job=crawls[0].job, process=crawls[0].process)
        again = b.registration("w", slots=2, held=(held,))
        first = await master.connect("worker")
        await first.send(again)
        await trio.sleep(SPANS.die_after_s + 1)
        await first.aclose()
        second = await master.connect("worker")
        await second.send(again)
        await trio.testing.wait_all_tasks_blocked()
        storage.room = None
        registered = await receive(second, m.Registered)
        assert registered.drop == ()
        assert crawls[0].process in master.committer.machine.state.processes
