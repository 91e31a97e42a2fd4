"""Leases: with their bodies, in messages of a size, to one process or several."""

import random
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import (
    CrawlInMemory,
    receive,
    running,
)

BODIES = [b'{"n":%d}' % number for number in range(1, 9)]


# ---- leases and their bodies ---------------------------------------------------------


@pytest.mark.parametrize("kept_bytes_max", [0, 1000, 1 << 20])
async def test_leases_bring_the_bodies_that_were_committed(
    kept_bytes_max: int, autojump_clock: MockClock
) -> None:
    """From memory or from the file, whatever order they are leased in, of two jobs at
    once; also those of parts, whose places in the file are not in order."""
    async with running(kept_bytes_max=kept_bytes_max) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2))
        worker = await master.register("w", slots=2)
        crawls = [await CrawlInMemory.begun(worker, window=2) for _ in range(2)]
        for crawl, mine in zip(crawls, (BODIES[:4], BODIES[4:]), strict=True):
            await crawl.commit(crawl.unit("start", children=b.children(*mine)))
            # A part of a later commit comes before the others.
            unit = crawl.unit("late", last=False, children=b.children(b"[2]", b"[3]"))
            await crawl.commit(
                unit,
                m.Commit(request=1, children=b.children(b'"one"', mine[0])),
                b.unit(unit.unit, part=1, children=b.children(b"[4]")),
                m.Commit(request=2),
            )
            await master.files.caught_up()
            for request in range(3, 9):
                while request not in crawl.bodies:
                    await crawl.hear(m.Grant)
                await crawl.commit(m.Commit(request=request))
            expected = [*mine, b'"one"', b"[2]", b"[3]", b"[4]"]
            assert crawl.bodies == dict(enumerate(expected, 1))


async def test_nothing_is_leased_before_it_is_durable(
    autojump_clock: MockClock,
) -> None:
    """No room: neither the commit's answer nor the leases that it leads to leave; with
    room again both do."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.hear(m.StartMay)
        storage.room = storage.used_bytes() + 10
        await crawl.send(crawl.unit("start", children=b.children(*BODIES)))
        heard: list[Any] = []

        async def listen() -> None:
            while True:
                heard.append(await worker.receive())

        master.nursery.start_soon(listen)
        await trio.sleep(1.5)
        assert master.committer.machine.state.crawls[crawl.job].frontier.leased_count
        assert heard == []
        storage.room = None
        await trio.sleep(1.5)
        assert [type(one) for one in heard] == [m.CommitsSeen, m.Grant]


async def test_leases_travel_in_messages_of_a_size(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each below the limit, or with a single longer body; together all, in order."""
    monkeypatch.setattr("dscrapy.master.committer.GRANT_BYTES_MAX", 30)
    long = b'"' + b"x" * 50 + b'"'
    given = [*BODIES[:4], long, *BODIES[4:]]
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.send(crawl.unit("start", children=b.children(*given)))
        grants: list[m.Grant] = []
        while sum(len(one.requests) for one in grants) < len(given):
            grants.append(await receive(worker, m.Grant))
        bodies = [[bytes(body) for body in one.bodies] for one in grants]
        assert [body for piece in bodies for body in piece] == given
        assert all(len(one) == 1 or sum(map(len, one)) <= 30 for one in bodies)
        assert len(grants) == 3
        assert [list(one.shares) for one in grants] == [["h"]] * 3
        assert {one.hosts for one in grants} == {("h",)}


async def test_a_fresh_run_has_bodies_of_its_own(autojump_clock: MockClock) -> None:
    """They stand where those of the run before stood: neither memory nor file mixes
    them up."""
    storage = MemoryStorage()
    async with running(storage, kept_bytes_max=1000) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.commit(
            crawl.unit("start", children=b.children(*BODIES[:4])), crawl.unit("started")
        )
        await crawl.commit(*(m.Commit(request=number) for number in range(1, 5)))
        await crawl.finish()
        fresh = m.ChangeJob(call=9, verb="retry", job=crawl.job, fresh=True)
        await master.ask(client, fresh)
        again = await CrawlInMemory.begun(worker, window=1)
        others = [b'{"m":%d}' % number for number in range(1, 5)]
        await again.commit(again.unit("start", children=b.children(*others)))
        for request in range(5, 9):
            while request not in again.bodies:
                await again.hear(m.Grant)
            await master.files.caught_up()
            await again.commit(m.Commit(request=request))
        assert again.bodies == dict(enumerate(others, 5))
        await master.files.caught_up()
        data = storage.read(f"jobs/{crawl.job}/requests.jsonl", 0, 999)
        assert data == b"".join(one + b"\n" for one in others)


# ---- several processes ---------------------------------------------------------------


async def test_two_processes_share_a_crawl(autojump_clock: MockClock) -> None:
    """On two workers, each with hosts of its own; the items are those of both, the last
    one gets the job's stats."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, parallelism=2))
        one = await master.register("one")
        first = await CrawlInMemory.begun(one, window=2)
        two = await master.register("two")
        for number, body in enumerate(BODIES):
            given = b.children(body, host=f"h{number}")
            await first.commit(first.unit("start", children=given))
        second = await CrawlInMemory.begun(two, window=2)
        await first.commit(first.unit("started"))
        stats = {"sum": {"n": msgspec.Raw(b"1")}}
        done: set[int] = set()
        await second.hear(m.Grant)
        while len(done) < len(BODIES):
            for crawl in (first, second):
                mine = sorted(crawl.bodies.keys() - done)
                done.update(mine)
                await crawl.commit(
                    *(
                        m.Commit(
                            request=number,
                            items=(msgspec.Raw(b'{"r":%d}' % number),),
                            stats=stats,
                        )
                        for number in mine
                    )
                )
        assert not first.bodies.keys() & second.bodies.keys()
        await first.hear(m.Finish)
        closing = m.Closing(job=first.job, process=1, reason="finished")
        await one.send(closing)
        assert (await second.hear(m.Stop)).reason == "finished"
        assert (await first.finish()).stats is None
        last = await second.finish()
        assert last.stats is not None
        assert bytes(last.stats["sum"]["n"]) == b"8"
        data = await master.files.read(first.job, "items", 0, 999)
        assert sorted(data.splitlines()) == [b'{"r":%d}' % n for n in range(1, 9)]


async def test_a_restarted_master_waits_for_its_workers_and_goes_on(
    autojump_clock: MockClock,
) -> None:
    """A process that lives on keeps its leases; what was pending is given then, with
    bodies that only the disk has."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker, window=2)
        await crawl.commit(crawl.unit("start", children=b.children(*BODIES[:5])))
        await crawl.commit(m.Commit(request=1))
    async with running(storage.crash(random.Random(5))) as master:
        again = await master.connect("worker")
        held = b.held(
            crawl.process,
            2,
            job=crawl.job,
            opened=b.opened(crawl.process, crawl.job, window=2),
            leads=True,
        )
        await again.send(b.registration("w", held=(held,)))
        assert (await receive(again, m.Registered)).drop == ()
        crawl.worker, crawl.bodies = again, {}
        while 3 not in crawl.bodies:
            await crawl.hear(m.Grant)
        assert crawl.bodies == {3: BODIES[2]}
        assert await crawl.commit(m.Commit(request=1), m.Commit(request=2)) == [
            "settled",
            "published",
        ]
