"""The power goes at every single call to the disk: nothing that was answered is lost.

One life of a master (jobs, a crawl of several leases, commits in parts, a snapshot in
its middle, a second run, a fresh retry) is cut at each of its calls; then the disk, as
it may be found, starts a new master. What was answered before must hold, nothing counts
twice, and the requests that are left are those that what is committed gave, with their
bodies.
"""

import random
from collections.abc import Iterable
from typing import Any

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.control.projections import requests_name
from dscrapy.control.state.state import State
from dscrapy.errors import DamagedFileError
from dscrapy.master.bodies import Bodies
from dscrapy.net.connection import Connection
from tests import builders as b
from tests.doubles.storage import MemoryStorage, PowerCut
from tests.shell.master_in_memory import CrawlInMemory, MasterInMemory, receive, running

# What each request of a crawl gives: request -> bodies of its children. 0 is start().
GIVES = {
    0: [b'{"r":1}', b'{"r":2}'],
    2: [b'{"r":3}', b'{"r":4}'],
}
REQUESTS = 4
# More calls than any life here makes.
CALLS_MAX = 700


@attrs.define
class Known:
    """What a client or worker was told, or may still be true.

    ``items`` are the items of acknowledged commits of the job's present run; ``asked``
    those of commits that were sent. ``taken`` are requests of acknowledged early parts.
    ``fresh`` may or may not run afresh.
    """

    jobs: set[str] = attrs.field(factory=set)
    items: dict[str, list[bytes]] = attrs.field(factory=dict)
    asked: dict[str, list[bytes]] = attrs.field(factory=dict)
    taken: dict[str, set[int]] = attrs.field(factory=dict)
    succeeded: set[str] = attrs.field(factory=set)
    fresh: str = ""
    done: bool = False


async def live(master: MasterInMemory, known: Known) -> None:
    """The life; notes in ``known`` what was answered."""
    client = await master.connect("client")
    worker = await master.register("w")
    for number in (1, 2):
        await client.send(b.submit(number))
        await receive(client, m.Accepted)
        known.jobs.add(b.job_id(number))
    await run_job(master, worker, known, parts=True)
    # The second job goes by in one commit.
    crawl = await CrawlInMemory.begun(worker)
    known.asked[crawl.job] = [b'{"n":9}']
    await crawl.succeed(b'{"n":9}')
    known.items[crawl.job] = [b'{"n":9}']
    known.succeeded.add(crawl.job)
    first = b.job_id(1)
    known.fresh = first
    await client.send(m.ChangeJob(call=9, verb="retry", job=first, fresh=True))
    await receive(client, m.Shown)
    known.items[first], known.asked[first], known.taken[first] = [], [], set()
    known.succeeded.discard(first)
    known.fresh = ""
    await run_job(master, worker, known, parts=False)
    await master.files.caught_up()
    known.done = True


async def run_job(
    master: MasterInMemory, worker: Connection[Any], known: Known, *, parts: bool
) -> None:
    """Crawl a job to its end; with pages in parts there is a snapshot on the way."""
    crawl = await CrawlInMemory.begun(worker, window=2)
    job = crawl.job
    acknowledged = known.items.setdefault(job, [])
    asked = known.asked.setdefault(job, [])
    taken = known.taken.setdefault(job, set())

    async def commit(item: int, *parts: m.Commit) -> None:
        """Commit in one or several messages, of which the last one publishes."""
        asked.append(b'{"n":%d}' % item)
        for part in parts:
            (result,) = await crawl.commit(part)
            of_part = "taken" if part.digests else "stored"
            assert result == ("published" if part.last else of_part)
            if result == "taken":
                taken.update(numbers_in(part.children.bodies))
        acknowledged.append(b'{"n":%d}' % item)

    await commit(
        0,
        crawl.unit(
            "start",
            items=(msgspec.Raw(b'{"n":0}'),),
            children=b.children(*GIVES[0]),
        ),
    )
    assert await crawl.commit(crawl.unit("started")) == ["published"]
    for _ in range(REQUESTS):
        request = await next_lease(crawl)
        number = msgspec.json.decode(crawl.bodies.pop(request))["r"]
        gives = GIVES.get(number, [])
        item = (msgspec.Raw(b'{"n":%d}' % number),)
        whole = m.Commit(request=request, items=item, children=b.children(*gives))
        if not parts:
            await commit(number, whole)
            continue
        if number == 3:
            await commit(number, *in_pieces(request, b'{"n":3}'))
            continue
        if number == 2:
            snapshot_soon(master)
        await commit(
            number,
            b.part(request, 0, children=b.children(*gives[:1])),
            msgspec.structs.replace(whole, part=1),
        )
    await crawl.hear(m.Finish)
    await crawl.finish()
    known.succeeded.add(job)


def in_pieces(request: int, line: bytes) -> list[m.Commit]:
    """Return the parts that hold an item in pieces; the last one has none."""
    pieces = [
        m.Piece(line=line[:2]),
        m.Piece(line=line[2:], tagged=b"nu"),
        m.Piece(tagged=b"ll", end=True),
    ]
    return [
        *(
            m.Commit(request=request, part=part, last=False, piece=piece)
            for part, piece in enumerate(pieces)
        ),
        m.Commit(request=request, part=len(pieces)),
    ]


async def next_lease(crawl: CrawlInMemory) -> int:
    """Return the request that is to start next."""
    while not crawl.bodies:
        await crawl.hear(m.Grant)
    return next(iter(crawl.bodies))


def snapshot_soon(master: MasterInMemory) -> None:
    """Let the next group be followed by a snapshot."""
    master.committer._snapshot_at_bytes = 1


async def life_until_cut(storage: MemoryStorage) -> Known:
    """Run a life until it is done or the power is gone."""
    known = Known()
    try:
        async with running(storage, kept_bytes_max=10) as master:
            try:
                await live(master, known)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The master's side is gone; its own error follows.
                await trio.sleep_forever()
    except* PowerCut:
        assert not known.done
    return known


def is_prefix(one: list[bytes], other: list[bytes]) -> bool:
    """Whether the one list begins the other."""
    return other[: len(one)] == one


async def check(storage: MemoryStorage, known: Known) -> None:
    """A new master on this disk keeps what was answered, and no more than was asked."""
    async with running(storage) as master:
        state = master.committer.machine.state
        assert known.jobs <= set(state.jobs)
        for identity, job in state.jobs.items():
            data = await master.files.read(identity, "items", 0, 1000)
            lines = data.splitlines()
            forms = await master.files.read(identity, "tagged", 0, 1000)
            assert forms == b"null\n" * len(lines)
            asked = known.asked.get(identity, [])
            acknowledged = known.items.get(identity, [])
            if identity == known.fresh:
                is_old = job.status == "succeeded"
                assert lines == (acknowledged if is_old else [])
                continue
            assert is_prefix(acknowledged, lines), (acknowledged, lines)
            assert is_prefix(lines, asked), (lines, asked)
            if identity in known.succeeded:
                assert job.status == "succeeded"
            elif lines:
                taken = known.taken.get(identity, set())
                check_frontier(state, storage, identity, lines, taken)


def check_frontier(
    state: State,
    storage: MemoryStorage,
    identity: str,
    lines: list[bytes],
    taken: set[int],
) -> None:
    """What is open is what the committed pages gave and is not done itself, and what
    open pages gave early: that of which it was acknowledged, perhaps more."""
    if identity not in state.crawls:
        assert len(lines) == REQUESTS + 1 or lines == [b'{"n":9}']
        return
    committed = [msgspec.json.decode(line)["n"] for line in lines]
    given = [body for number in committed for body in GIVES.get(number, [])]
    left = set(numbers_in(given)) - set(committed)
    early = {
        number for page in left for number in numbers_in(GIVES.get(page, [])[:1])
    } - set(committed)
    frontier = state.crawls[identity].frontier
    snapshot = frontier.encode()
    places = [
        (int.from_bytes(offset, "little"), int.from_bytes(length, "little"))
        for offset, length in zip(
            eights(snapshot.offsets), eights(snapshot.lengths), strict=True
        )
    ]
    bodies = Bodies(storage).read(identity, places)
    found = numbers_in(body or b"" for body in bodies)
    assert len(found) == len(set(found))
    assert left | (taken & early) <= set(found) <= left | early
    if given:
        file = storage.read(requests_name(identity), 0, 10_000)
        assert len(file) >= frontier.body_bytes
    assert frontier.leased_count == 0


def numbers_in(bodies: Iterable[Any]) -> list[int]:
    """Return the numbers of these requests."""
    return [msgspec.json.decode(body)["r"] for body in bodies]


def eights(data: bytes) -> list[bytes]:
    """Return packed numbers, 8 bytes each."""
    return [data[at : at + 8] for at in range(0, len(data), 8)]


async def snapshot_then_items(storage: MemoryStorage) -> str:
    """Commit an item, take a snapshot, commit another one; return the job."""
    async with running(storage) as master:
        client = await master.connect("client")
        await client.send(b.submit(1))
        await receive(client, m.Accepted)
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        item = (msgspec.Raw(b'{"n":1}'),)
        await crawl.commit(crawl.unit("start", items=item, children=b.children(b"1")))
        snapshot_soon(master)
        await crawl.commit(crawl.unit("late"))
        await trio.sleep(1)
        master.committer._snapshot_at_bytes = 1 << 30
        await crawl.commit(crawl.unit("start", items=item, children=b.children(b"2")))
        await crawl.commit(crawl.unit("started"), m.Commit(request=1))
        await crawl.commit(m.Commit(request=2))
        await crawl.finish()
        await master.files.caught_up()
        return crawl.job


@pytest.mark.parametrize("is_fresh", [False, True])
async def test_a_file_that_is_too_short_is_told_unless_it_began_anew(
    is_fresh: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a snapshot a fresh run empties files that the snapshot knows to be longer:
    that is no damage. What nobody emptied is, and is told; the start goes on."""
    storage = MemoryStorage()
    job = await snapshot_then_items(storage)
    if is_fresh:
        async with running(storage) as master:
            client = await master.connect("client")
            retry = m.ChangeJob(call=9, verb="retry", job=job, fresh=True)
            await client.send(retry)
            await receive(client, m.Shown)
            await master.files.caught_up()
        async with running(storage) as master:
            assert await master.files.read(job, "items", 0, 99) == b""
            assert master.committer.machine.state.jobs[job].begin().items == 0
        assert "lacks" not in caplog.text
        return
    storage.put(f"jobs/{job}/items.jsonl", b"")
    async with running(storage) as master:
        assert f"job {job}: " in caplog.text
        assert "items.jsonl lacks 8 bytes at byte 0" in caplog.text
        with pytest.raises(DamagedFileError):
            await master.files.read(job, "items", 0, 99, 16)


async def test_the_power_may_go_at_any_call(autojump_clock: MockClock) -> None:
    """Cut at call 0, 1, 2, ... of the disk until a life ends uncut; each disk is
    found in several of its possible states, and as a killed process leaves it."""
    cuts = 0
    for calls in range(CALLS_MAX):
        storage = MemoryStorage(rng=random.Random(calls))
        storage.make_folder("jobs")
        storage.make_folder("spool")
        storage.calls_left = calls
        known = await life_until_cut(storage)
        await check(storage.copy(), known)
        for seed in range(3):
            await check(storage.crash(random.Random(seed)), known)
        if known.done:
            break
        cuts += 1
    assert cuts > 60, "a life has many calls"
    assert known.done
