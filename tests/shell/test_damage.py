"""Job files that lost bytes: the master starts, says so, and the jobs go on."""

from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.control.decide.damage import TEXT
from dscrapy.master.files import SHORT_LOGGED_MAX
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import CrawlInMemory, MasterInMemory, receive, running

FIRST, SECOND = (b.job_id(number) for number in (1, 2))
ITEMS = [b'{"n":%d}' % number for number in range(10)]
LINES = b"".join(item + b"\n" for item in ITEMS)
BODIES = [b'{"r":%d}' % number for number in range(1, 6)]


async def read(master: MasterInMemory, job: str, offset: int = 0, **fields: Any) -> Any:
    """Return what a client hears that reads a job's items."""
    client = await master.connect("client")
    values: dict[str, Any] = {"file": "items", "limit": 1 << 20} | fields
    call = m.ReadFile(call=1, job=job, offset=offset, **values)
    return await master.ask(client, call)


async def finished(storage: MemoryStorage, *, snapshot: bool) -> None:
    """Let one job come to its end, and its files be synced behind a snapshot or not."""
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        crawl = await CrawlInMemory.begun(await master.register("w"))
        await crawl.succeed(*ITEMS)
        master.files.log_nowait(FIRST, b"a line\n")
        await master.files.caught_up()
        if snapshot:
            master.committer._snapshot_at_bytes = 1
            await master.ask(client, b.submit(2))
            await master.files.caught_up()
            assert any(name.startswith("snapshot") for name in storage.names())


@pytest.mark.parametrize("left", [None, 0, 40])
@pytest.mark.parametrize("file", ["items", "tagged"])
async def test_a_finished_job_whose_file_was_lost_says_so(
    left: int | None,
    file: str,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At start and to whoever reads it: what is there is given, then comes an error,
    not an end. Other jobs run; the file may be restored at any time."""
    storage = MemoryStorage()
    await finished(storage, snapshot=True)
    name = f"jobs/{FIRST}/{file}.jsonl"
    whole = storage.read(name, 0, 1 << 20)
    if left is None:
        storage.remove(name)
    else:
        storage.put(name, whole[:left])
    async with running(storage) as master:
        lacking = len(whole) - (left or 0)
        said = f"{file}.jsonl lacks {lacking} bytes at byte {left or 0}"
        (line,) = [one for one in caplog.messages if "lacks" in one]
        assert line.startswith(f"job {FIRST}: ")
        assert said in line
        at = 0
        while at < (left or 0):
            at += len((await read(master, FIRST, at, file=file)).data)
        refused = await read(master, FIRST, at, file=file)
        assert isinstance(refused, m.Refused), refused
        assert (refused.code, said in refused.text) == ("file_damaged", True)
        assert (await read(master, FIRST, file="log")).data == b"a line\n"
        crawl = await CrawlInMemory.begun(await master.register("w"))
        assert crawl.job == SECOND
        await crawl.succeed(*ITEMS)
        assert (await read(master, SECOND)).data == LINES
        storage.put(name, whole)
        chunk = await read(master, FIRST, file=file)
        assert chunk.data == whole
        assert (await read(master, FIRST, len(whole), file=file)).end


async def test_what_the_journal_holds_is_derived_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a snapshot behind it a file that is gone comes back whole."""
    storage = MemoryStorage()
    await finished(storage, snapshot=False)
    storage.remove(f"jobs/{FIRST}/items.jsonl")
    async with running(storage) as master:
        assert (await read(master, FIRST)).data == LINES
    assert "lacks" not in caplog.text


async def test_a_crawl_goes_on_behind_what_was_lost(autojump_clock: MockClock) -> None:
    """New items stand where they belong, in this master's life and the next: who reads
    what is missing hears so, and nobody takes later ones for earlier ones."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        crawl = await CrawlInMemory.begun(await master.register("w"))
        await crawl.commit(crawl.unit("late", items=tuple(map(msgspec.Raw, ITEMS))))
        await master.files.caught_up()
        storage.put(f"jobs/{FIRST}/items.jsonl", LINES[:25])
        # Nothing before this is derived again.
        master.committer._snapshot_at_bytes = 1
        await crawl.commit(crawl.unit("late"))
        await master.files.caught_up()
        await crawl.succeed(b'{"n":"new"}')
    for _ in range(2):
        async with running(storage) as master:
            assert (await read(master, FIRST)).data == LINES[:25]
            refused = await read(master, FIRST, 25)
            assert (type(refused), refused.code) == (m.Refused, "file_damaged")
            new = await read(master, FIRST, len(LINES))
            assert new.data == b'{"n":"new"}\n'
            assert (await read(master, FIRST, len(LINES) + len(new.data))).end


async def test_a_spool_that_was_lost_costs_its_own_items(
    autojump_clock: MockClock,
) -> None:
    """A commit in parts is published with what its parts gave; their items are told to
    be missing, and those of others stand where they belong."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        crawl = await CrawlInMemory.begun(await master.register("w"))
        part = crawl.unit("late", items=(msgspec.Raw(b'"part"'),), last=False)
        await crawl.commit(part)
        await master.files.caught_up()
        for name in storage.names("spool"):
            storage.remove(f"spool/{name}")
        rest = msgspec.structs.replace(part, part=1, last=True, items=())
        assert await crawl.commit(rest) == ["published"]
        await crawl.succeed(*ITEMS)
        assert master.failure is None
        assert (await read(master, FIRST)).code == "file_damaged"
        assert (await read(master, FIRST, len(b"part\n"))).data == LINES


@pytest.mark.parametrize("is_there", [False, True])
async def test_requests_whose_bodies_were_lost_are_set_aside(
    is_there: bool, autojump_clock: MockClock
) -> None:
    """Nobody can be told them: the job does the rest and fails for them by number, no
    lease stays open, and the master serves another job. Restored, `retry` does them."""
    storage = MemoryStorage()
    async with running(storage, kept_bytes_max=0) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2))
        worker = await master.register("w", slots=2)
        crawl = await CrawlInMemory.begun(worker, window=1)
        other = await CrawlInMemory.begun(worker)
        await crawl.commit(crawl.unit("start", children=b.children(*BODIES)))
        await master.files.caught_up()
        await crawl.commit(crawl.unit("started"))
        name = f"jobs/{crawl.job}/requests.jsonl"
        whole = storage.read(name, 0, 1 << 20)
        # The first is leased already, the second may stand there still.
        if is_there:
            storage.put(name, whole[: 2 * (len(BODIES[0]) + 1) + 3])
        else:
            storage.remove(name)
        assert await crawl.commit(m.Commit(request=1)) == ["published"]
        if is_there:
            while 2 not in crawl.bodies:
                await crawl.hear(m.Grant)
            assert await crawl.commit(m.Commit(request=2)) == ["published"]
        await crawl.hear(m.Finish)
        await crawl.finish()
        await client.send(m.ShowJob(call=2, job=crawl.job))
        shown = await receive(client, m.Shown)
        lost = [3, 4, 5] if is_there else [2, 3, 4, 5]
        assert [one.request for one in shown.poisoned] == lost
        assert {one.reason for one in shown.poisoned} == {TEXT}
        assert shown.job.state == "failed"
        assert TEXT in shown.job.reason
        assert shown.job.leased == 0
        await other.succeed(*ITEMS)
        assert (await read(master, other.job)).data == LINES
        assert master.failure is None
        storage.put(name, whole)
        await master.ask(client, m.ChangeJob(call=3, verb="retry", job=crawl.job))
        again = await CrawlInMemory.begun(worker)
        for request in lost:
            while request not in again.bodies:
                await again.hear(m.Grant)
            await again.commit(m.Commit(request=request))
        assert again.bodies == {number: BODIES[number - 1] for number in lost}


async def test_a_disk_full_of_lost_files_fills_no_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Some are named, the others counted."""
    storage = MemoryStorage()
    count = SHORT_LOGGED_MAX + 5
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(*range(1, count + 1)))
        worker = await master.register("w")
        for _ in range(count):
            await (await CrawlInMemory.begun(worker)).succeed(b'{"n":1}')
        master.committer._snapshot_at_bytes = 1
        await master.ask(client, b.submit(count + 1))
        await master.files.caught_up()
    for number in range(1, count + 1):
        storage.remove(f"jobs/{number:016x}/items.jsonl")
    async with running(storage) as master:
        assert (await read(master, FIRST)).code == "file_damaged"
    told = [one for one in caplog.messages if "lack" in one]
    assert len(told) == SHORT_LOGGED_MAX + 2
    assert "5 more files of jobs lack bytes" in told


async def test_what_is_decided_and_not_written_yet_is_no_damage(
    autojump_clock: MockClock,
) -> None:
    """While the disk is full people read what there is; with room again, the rest."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        crawl = await CrawlInMemory.begun(await master.register("w"))
        first, last = map(msgspec.Raw, ITEMS[:2])
        await crawl.commit(crawl.unit("late", items=(first,)))
        storage.room = storage.used_bytes() + 10
        await crawl.send(crawl.unit("late", items=(last,)))
        half = len(ITEMS[0]) + 1
        assert (await read(master, FIRST)).data == LINES[:half]
        chunk = await read(master, FIRST, half)
        assert (chunk.data, chunk.end) == (b"", False)
        storage.room = None
        await crawl.hear(m.CommitsSeen)
        assert (await read(master, FIRST, half)).data == LINES[half : 2 * half]
