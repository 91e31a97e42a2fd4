"""Workers that say what no worker of ours says: only their own session ends."""

import random
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.model import CloseLimits, HostLimits, Outcome
from dscrapy.net.connection import Connection
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import CrawlInMemory, MasterInMemory, receive, running
from tests.shell.test_hostile import JOB, assert_serves


@pytest.mark.parametrize("name", ["", "../w", "a/b", "w\n", "\x1b[2J", "w" * 101])
async def test_a_worker_needs_a_plain_name(
    name: str, autojump_clock: MockClock
) -> None:
    """Names of workers end in terminals and paths."""
    async with running() as master:
        worker = await master.connect("worker")
        await worker.send(b.registration(name))
        refused = await receive(worker, m.Refused)
        assert (refused.call, refused.code) == (-1, "bad_worker")
        assert await worker.receive() is None


@pytest.mark.parametrize("second", ["w", "other"])
async def test_a_session_registers_once(second: str, autojump_clock: MockClock) -> None:
    """Registering again ends the session, and no worker is left behind it."""
    async with running() as master:
        worker = await master.register("w")
        await worker.send(b.registration(second))
        refused = await receive(worker, m.Refused)
        assert refused.code == "bad_worker"
        assert await worker.receive() is None
        await trio.sleep(10)
        assert not master.committer.machine.state.workers


async def test_nothing_counts_before_registering(autojump_clock: MockClock) -> None:
    """A worker that did not register is hung up on, whatever it says."""
    async with running() as master:
        worker = await master.connect("worker")
        await worker.send(m.Heartbeat(number=1))
        assert await worker.receive() is None
        await assert_serves(master)


async def crawl_and_thief(
    master: MasterInMemory,
) -> tuple[CrawlInMemory, Connection[Any]]:
    """Return a crawl that has leased two requests, and another worker."""
    client = await master.connect("client")
    owner = await master.register("owner")
    await master.ask(client, b.submit(1))
    crawl = await CrawlInMemory.begun(owner)
    await crawl.commit(crawl.unit("start", children=b.children(b"[1]", b"[2]")))
    while len(crawl.bodies) < 2:
        await crawl.hear(m.Grant)
    return crawl, await master.register("thief")


@pytest.mark.parametrize(
    "commit",
    [
        m.Commit(request=1, items=(msgspec.Raw(b'"stolen"'),)),
        m.Commit(request=1, items=(msgspec.Raw(b'"stolen"'),), last=False),
        m.Commit(unit=2, kind="late", items=(msgspec.Raw(b'"stolen"'),)),
        m.Commit(unit=2, kind="closed", end=Outcome(finish_reason="stolen")),
    ],
)
async def test_a_worker_commits_for_its_own_processes_only(
    commit: m.Commit, autojump_clock: MockClock
) -> None:
    """Another worker's commit ends its session and puts nothing among the items."""
    async with running() as master:
        crawl, thief = await crawl_and_thief(master)
        said = b.commits(crawl.process, commit, job=crawl.job)
        await thief.send(said)
        assert (await receive(thief, m.Refused)).code == "bad_commit"
        assert await thief.receive() is None
        own = m.Commit(request=1, items=(msgspec.Raw(b'"own"'),))
        assert await crawl.commit(own) == ["published"]
        client = await master.connect("client")
        read = m.ReadFile(call=1, job=JOB, file="items", offset=0, limit=99)
        assert (await master.ask(client, read)).data == b"own\n"


async def test_a_worker_speaks_of_its_own_processes_only(
    autojump_clock: MockClock,
) -> None:
    """Another worker's word about a process changes nothing and tells nothing."""
    async with running() as master:
        crawl, thief = await crawl_and_thief(master)
        job, process = crawl.job, crawl.process
        lasting = master.committer.machine.state.encode_snapshot()
        fingerprints = b.children(b"[1]").fingerprints
        for said in (
            b.ended(process, job),
            m.Release(job=job, process=process, requests=(1, 2)),
            m.Closing(job=job, process=process, reason="stolen"),
            m.Offer(job=job, process=process, number=1, fingerprints=fingerprints),
            m.Feeds(job=job, process=process, lengths={"x": 1}),
            m.Read(job=job, process=process, file="items", offset=0, limit=9),
            m.Started(job=job, process=process, digest="stolen"),
            b.opened(crawl.process, crawl.job, window=1),
        ):
            await thief.send(said)
        await thief.send(m.Heartbeat(number=1))
        heard = [await thief.receive(), await thief.receive()]
        assert heard == [m.EndedSeen(process=process), m.HeartbeatSeen(number=1)]
        state = master.committer.machine.state
        assert state.encode_snapshot() == lasting
        assert state.crawls[job].frontier.leased_count == 2


HUGE = 10**400
COLUMNS = b.children(b"[3]", b"[4]")
WRONG: dict[str, m.Commit] = {
    "short fingerprints": m.Commit(
        request=1, children=msgspec.structs.replace(COLUMNS, fingerprints=b"x" * 39)
    ),
    "no hosts": m.Commit(
        request=1, children=msgspec.structs.replace(COLUMNS, hosts=())
    ),
    "a host beyond": m.Commit(
        request=1, children=msgspec.structs.replace(COLUMNS, host_of=(0, HUGE))
    ),
    "a host before": m.Commit(
        request=1, children=msgspec.structs.replace(COLUMNS, host_of=(0, -1))
    ),
    "few priorities": m.Commit(
        request=1, children=msgspec.structs.replace(COLUMNS, priorities=(0,))
    ),
    "many flags": m.Commit(
        request=1, children=msgspec.structs.replace(COLUMNS, flags=(0, 0, 0))
    ),
    "short seen": m.Commit(request=1, seen=b"x"),
    "a negative part": m.Commit(request=1, part=-1),
    "a unit far beyond": m.Commit(unit=HUGE, kind="late"),
    "a negative request": m.Commit(request=-1),
    "a negative unit": m.Commit(request=1, unit=-HUGE),
    "both": m.Commit(request=1, unit=1),
    "neither": m.Commit(),
    "no end": m.Commit(unit=2, kind="closed"),
    "no digest": m.Commit(unit=2, kind="start"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_a_commit_that_cannot_be_costs_its_process_alone(
    wrong: m.Commit, autojump_clock: MockClock
) -> None:
    """Nothing of that message has effect. The process is given up at once: offered
    again on the next session, as a worker does, it ends no further one."""
    async with running() as master:
        crawl, _ = await crawl_and_thief(master)
        client = await master.connect("client")
        await master.ask(client, b.submit(2))
        said = b.commits(
            crawl.process, m.Commit(request=2, last=False), wrong, job=crawl.job
        )
        await crawl.worker.send(said)
        assert (await crawl.hear(m.Refused)).code == "bad_commit"
        assert await crawl.worker.receive() is None
        state = master.committer.machine.state
        course = state.jobs[crawl.job].begin()
        assert (course.deaths, course.items) == (1, 0)
        frontier = state.crawls[crawl.job].frontier
        assert frontier.is_open(1)
        assert frontier.is_open(2)
        again = await master.connect("worker")
        held = m.HeldProcess(job=crawl.job, process=crawl.process, requests=(1, 2))
        await again.send(b.registration("owner", held=(held,)))
        registered = await receive(again, m.Registered)
        assert registered.drop == (crawl.process,)
        await again.send(said)
        seen = (await receive(again, m.CommitsSeen)).seen
        assert [one.result for one in seen] == ["settled"] * 2
        await again.send(m.Heartbeat(number=1))
        await receive(again, m.HeartbeatSeen)
        await assert_serves(master)


STRANGE: dict[str, tuple[m.Commit, str]] = {
    "a huge request": (m.Commit(request=HUGE), "settled"),
    "a huge part": (m.Commit(request=1, part=HUGE), "settled"),
    "a huge finish": (m.Commit(unit=3, kind="idle", finish=HUGE), "settled"),
    "huge priorities and flags": (
        m.Commit(
            request=1,
            children=msgspec.structs.replace(
                COLUMNS, priorities=(HUGE, -HUGE), flags=(HUGE, -HUGE)
            ),
        ),
        "published",
    ),
    "a strange host": (
        m.Commit(
            request=1,
            children=msgspec.structs.replace(
                COLUMNS, hosts=("", "h" * 5000 + "\0/../\x1b[2J"), host_of=(0, 1)
            ),
        ),
        "published",
    ),
    "strange stats": (
        m.Commit(
            request=1,
            stats={
                "sum": {"a": msgspec.Raw(b"1e308"), "b": msgspec.Raw(b"[1]")},
                "other": {"": msgspec.Raw(b"null")},
                "max": {"a": msgspec.Raw(b"%d" % HUGE)},
                "last": {"start_time": msgspec.Raw(b'{"$dt":["x",0,null]}')},
            },
        ),
        "published",
    ),
}


@pytest.mark.parametrize(("strange", "result"), STRANGE.values(), ids=STRANGE)
async def test_what_is_strange_but_sound_is_kept(
    strange: m.Commit, result: str, autojump_clock: MockClock
) -> None:
    """It is journalled, so a replay and a snapshot must bear it as well; the job comes
    to its end all the same."""
    storage = MemoryStorage()
    async with running(storage) as master:
        crawl, _ = await crawl_and_thief(master)
        assert await crawl.commit(strange) == [result]
        master.committer._snapshot_at_bytes = 1
        await crawl.commit(crawl.unit("late"))
        await trio.sleep(1)
        assert any(name.startswith("snapshot") for name in storage.names())
        client = await master.connect("client")
        shown = await master.ask(client, m.ShowJob(call=1, job=JOB))
        assert isinstance(shown, m.Shown)
        lasting = master.committer.machine.state.encode_snapshot()
    for disk in (storage, storage.crash(random.Random(1))):
        async with running(disk) as master:
            state = msgspec.json.decode(
                master.committer.machine.state.encode_snapshot()
            )
            before = msgspec.json.decode(lasting)
            assert state["crawls"] == before["crawls"]
            assert state["jobs"] == before["jobs"]
            await assert_serves(master)


@pytest.mark.parametrize(
    "fields",
    [
        {"window": 0},
        {"window": -1},
        {"window": HUGE},
        {"default_host": HostLimits(concurrency=HUGE, delay_s=1e308)},
        {"default_host": HostLimits(concurrency=-HUGE, delay_s=-1e308)},
        {"hosts": {"h": HostLimits(concurrency=0, delay_s=0.0)}},
        {"limits": CloseLimits(timeout_s=1e308, timeout_no_item_s=1e-300)},
        {"limits": CloseLimits(timeout_s=-1.0, timeout_no_item_s=-1.0)},
        {"limits": CloseLimits(items=-HUGE, pages=HUGE, errors=-1)},
    ],
)
async def test_what_a_process_says_on_opening_harms_nobody(
    fields: dict[str, Any], autojump_clock: MockClock
) -> None:
    """Settings that no project has: the job may suffer, the master does not."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        start = await receive(worker, m.Start)
        await worker.send(b.opened(start.process, start.job, **fields))
        crawl = CrawlInMemory(worker, start)
        await crawl.send(crawl.unit("start", children=b.children(b"[1]", b"[2]")))
        await crawl.send(m.Commit(request=1))
        # Also in its second life, and while time goes by.
        again = await master.connect("worker")
        held = b.held(
            start.process,
            *(HUGE, -1, 2, 2),
            job=start.job,
            opened=b.opened(start.process, start.job, **fields),
            leads=True,
        )
        await again.send(b.registration("w", held=(held,)))
        await trio.sleep(12)
        await assert_serves(master)


async def test_a_worker_that_holds_everything_holds_its_own(
    autojump_clock: MockClock,
) -> None:
    """Strangers' processes, jobs that are none, one process twice: the worker is told
    to drop what is not its own, and nobody loses a lease."""
    async with running() as master:
        crawl, _ = await crawl_and_thief(master)
        process = crawl.process
        robber = await master.connect("worker")
        held = (
            m.HeldProcess(job=crawl.job, process=process, requests=(1, 2), leads=True),
            m.HeldProcess(job="../x", process=99, requests=(1,), closing="finished"),
            m.HeldProcess(job=crawl.job, process=-HUGE),
        )
        await robber.send(b.registration("robber", held=held))
        registered = await receive(robber, m.Registered)
        assert sorted(registered.drop) == [-HUGE, process, 99]
        state = master.committer.machine.state
        assert state.crawls[crawl.job].frontier.leased_count == 2
        again = await master.connect("worker")
        held = (
            m.HeldProcess(job="e" * 16, process=process, requests=(1, 2)),
            m.HeldProcess(job=crawl.job, process=process, requests=(1, 2), leads=True),
            m.HeldProcess(job=crawl.job, process=process, requests=(1,)),
        )
        await again.send(b.registration("owner", held=held))
        await receive(again, m.Registered)
        await assert_serves(master)


async def test_an_offer_that_is_cut_short_ends_the_session(
    autojump_clock: MockClock,
) -> None:
    """Fingerprints have a length."""
    async with running() as master:
        crawl, _ = await crawl_and_thief(master)
        offer = m.Offer(
            job=crawl.job, process=crawl.process, number=1, fingerprints=b"x" * 21
        )
        await crawl.worker.send(offer)
        assert (await crawl.hear(m.Refused)).code == "bad_offer"
        await assert_serves(master)
