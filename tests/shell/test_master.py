"""The master's sessions, committer and reaper, on memory streams in virtual time."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.control.clock import BEAT_S
from dscrapy.control.state.state import State
from dscrapy.net.connection import Connection, greet
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import (
    SPANS,
    TOKEN,
    CrawlInMemory,
    MasterInMemory,
    children,
    opened,
    receive,
    registration,
    running,
    submit,
)

BODIES = [b'{"n":%d}' % number for number in range(1, 9)]


async def until(holds: Callable[[], bool], step_s: float = BEAT_S / 10) -> None:
    """Wait in virtual time until something holds that nobody announces."""
    while not holds():  # noqa: ASYNC110 - no event tells it
        await trio.sleep(step_s)


async def beat(worker: Connection[Any], seconds: float) -> None:
    """Let a worker live for this long: a heartbeat each second, all answered."""
    for number in range(int(seconds)):
        await worker.send(m.Heartbeat(number=number))
        await receive(worker, m.HeartbeatSeen)
        await trio.sleep(1)


async def test_a_job_goes_to_a_worker_and_its_items_to_the_client(
    autojump_clock: MockClock,
) -> None:
    """Submit, run, commit, wait, read: what the worker committed is what is read."""
    async with running() as master:
        client = await master.connect("client")
        assert await master.ask(client, submit(1)) == m.Accepted(call=1, count=1)
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await client.send(m.WaitJob(call=2, job=crawl.job))
        await crawl.succeed(b'{"a":1}', b'"{\\"b\\": NaN}"')
        shown = await receive(client, m.Shown)
        assert shown.job.state == "succeeded"
        assert shown.job.items == 2
        read = m.ReadFile(call=3, job=crawl.job, file="items", offset=0, limit=99)
        chunk = await master.ask(client, read)
        assert chunk.data == b'{"a":1}\n{"b": NaN}\n'


@pytest.mark.parametrize("seed", range(10))
async def test_what_was_answered_outlives_a_power_cut(
    seed: int, autojump_clock: MockClock
) -> None:
    """No answer leaves before its records are synced: after a power cut every job
    whose submission was answered is there, and published items are whole."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        worker = await master.register("w")
        for number in range(1, 4):
            answer = await master.ask(client, submit(number))
            assert isinstance(answer, m.Accepted)
        crawl = await CrawlInMemory.begun(worker)
        await crawl.succeed(b'{"a":1}')
        survived = storage.crash(random.Random(seed))
    async with running(survived) as master:
        jobs = master.committer.machine.state.jobs
        assert set(jobs) == {f"{number:016x}" for number in range(1, 4)}
        assert jobs[crawl.job].status == "succeeded"
        data = await master.files.read(crawl.job, "items", 0, 99)
        assert data == b'{"a":1}\n'


async def test_a_silent_worker_is_reaped_after_its_span_and_not_before(
    autojump_clock: MockClock,
) -> None:
    """An open connection without a word: ``die_after_s``, within two beats."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, submit(1))
        silent = await master.register("silent")
        await receive(silent, m.Start)
        began = trio.current_time()
        other = await master.register("other")
        master.nursery.start_soon(beat, other, 60)
        workers = master.committer.machine.state.workers
        await until(lambda: "silent" not in workers)
        took = trio.current_time() - began
        assert SPANS.die_after_s <= took <= SPANS.die_after_s + 2 * BEAT_S
        (job,) = master.committer.machine.state.jobs.values()
        assert job.status == "running"
        assert job.begin().worker == "other"
        assert await silent.receive() is None


async def test_a_broken_connection_costs_the_grace_only(
    autojump_clock: MockClock,
) -> None:
    """A closed connection: ``reconnect_grace_s``; and a worker that is back in time
    keeps its process."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, submit(1))
        worker = await master.register("w")
        start = await receive(worker, m.Start)
        await worker.aclose()
        await trio.sleep(SPANS.reconnect_grace_s - 1)
        again = await master.connect("worker")
        held = (m.Held(job=start.job, process=start.process),)
        await again.send(registration("w", held=held))
        registered = await receive(again, m.Registered)
        assert registered.drop == ()
        assert start.process in master.committer.machine.state.processes
        await again.aclose()
        began = trio.current_time()
        processes = master.committer.machine.state.processes
        await until(lambda: not processes)
        took = trio.current_time() - began
        assert SPANS.reconnect_grace_s <= took <= SPANS.reconnect_grace_s + 2 * BEAT_S


async def test_time_in_which_the_master_did_not_run_does_not_count(
    autojump_clock: MockClock,
) -> None:
    """The master's clock leaps by an hour: nobody who is alive is reaped."""
    async with running() as master:
        worker = await master.register("w")
        master.nursery.start_soon(beat, worker, 50)
        await trio.sleep(5)
        leap = 3600.0
        # As after SIGSTOP and SIGCONT: the machine's clock went on without us.
        master.committer._instant = lambda: trio.current_time() + leap
        await trio.sleep(10)
        assert "w" in master.committer.machine.state.workers


async def test_a_full_disk_refuses_new_work_and_loses_none(
    autojump_clock: MockClock,
) -> None:
    """No room: the submission under way waits, new work is refused, status and
    heartbeats are served; with room again all goes on, and nothing was lost."""
    storage = MemoryStorage()
    async with running(storage) as master:
        worker = await master.register("w")
        client = await master.connect("client")
        storage.room = storage.used_bytes() + 10
        await client.send(submit(1))
        await trio.testing.wait_all_tasks_blocked()
        other = await master.connect("client")
        refused = await master.ask(other, submit(2))
        assert refused.code == "disk_full"
        status = await master.ask(other, m.GetStatus(call=3))
        assert "disk full" in status.note
        await worker.send(m.Heartbeat(number=1))
        assert await worker.receive() == m.HeartbeatSeen(number=1)
        storage.room = None
        assert await client.receive() == m.Accepted(call=1, count=1)
        assert (await receive(worker, m.Start)).job == f"{1:016x}"
        assert await master.ask(other, submit(2)) == m.Accepted(call=1, count=1)
    async with running(storage.crash(random.Random(1))) as master:
        assert len(master.committer.machine.state.jobs) == 2


async def test_little_room_refuses_new_work_before_the_disk_is_full(
    autojump_clock: MockClock,
) -> None:
    """``disk_free_bytes_min`` keeps room for what is accepted."""
    storage = MemoryStorage()
    async with running(storage, disk_free_bytes_min=10_000) as master:
        client = await master.connect("client")
        storage.room = storage.used_bytes() + 5_000
        assert isinstance(await master.ask(client, submit(1)), m.Accepted)
        refused = await master.ask(client, submit(2))
        assert refused.code == "disk_full"
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.succeed(b'{"a":1}')


async def test_a_failed_sync_stops_the_master(autojump_clock: MockClock) -> None:
    """Nobody is answered after a failed sync, and it is not tried again."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        storage.syncs_left = 0
        await client.send(submit(1))
        answer = await client.receive()
        assert answer is None
    assert master.failure is not None
    assert "sync" in str(master.failure)


async def test_an_error_in_decide_is_answered_and_harms_nobody_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one command: ``internal_error`` to that one, state as it was."""
    async with running() as master:
        client = await master.connect("client")
        other = await master.connect("client")

        def broken(*_: Any) -> None:
            raise ZeroDivisionError("planted")

        with monkeypatch.context() as patch:
            patch.setattr("dscrapy.control.decide.client_calls._submit", broken)
            refused = await master.ask(client, submit(1))
        assert refused.code == "internal_error"
        assert master.committer.machine.state.jobs == State().jobs
        assert isinstance(await master.ask(other, submit(1)), m.Accepted)


async def send_many(connection: Connection[Any], count: int) -> None:
    """Ask without ever reading an answer."""
    for call in range(count):
        await connection.send(m.Ping(call=call))


async def test_a_peer_that_does_not_read_loses_its_session(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that wait are bounded, and another peer is served meanwhile."""
    monkeypatch.setattr("dscrapy.master.session.OUTBOX_MAX", 8)
    monkeypatch.setattr("dscrapy.net.connection.SEND_TIMEOUT_S", 1e9)
    async with running() as master:
        # A stream that takes nothing: its receiver never reads.
        ours, theirs = trio.testing.lockstep_stream_pair()
        master.nursery.start_soon(master.server.serve, theirs)
        deaf = await greet(ours, token=TOKEN, role="client", incoming=m.Answer)
        gone = (trio.BrokenResourceError, trio.ClosedResourceError)
        with pytest.raises(gone):
            await send_many(deaf, 1000)
        client = await master.connect("client")
        assert await master.ask(client, m.Ping(call=1)) == m.Accepted(call=1)


async def test_a_second_live_worker_of_a_name_is_refused(
    autojump_clock: MockClock,
) -> None:
    """The one that is here stays; the reason names it."""
    async with running() as master:
        first = await master.register("w")
        second = await master.connect("worker")
        await second.send(registration("w", instance="2"))
        refused = await receive(second, m.Refused)
        assert refused.code == "name_taken"
        assert "another --name" in refused.text
        assert await second.receive() is None
        await first.send(m.Heartbeat(number=1))
        assert await first.receive() == m.HeartbeatSeen(number=1)


async def test_a_schedule_runs_at_once_and_never_twice_at_a_time(
    autojump_clock: MockClock,
) -> None:
    """Runs that were missed or overlap collapse into one."""
    async with running() as master:
        worker = await master.register("w", slots=5)
        client = await master.connect("client")
        await master.ask(client, submit(9, every_s=60.0))
        first = await CrawlInMemory.begun(worker)
        began = trio.current_time()
        assert first.job == f"{9:016x}-1"
        master.nursery.start_soon(beat_quietly, worker, 400)
        await trio.sleep(150)
        assert len(master.committer.machine.state.jobs) == 1
        await first.succeed()
        jobs = master.committer.machine.state.jobs
        await until(lambda: len(jobs) == 2)
        # Two runs were missed: one follows at once, the next keeps the rhythm.
        assert trio.current_time() - began < 152
        (schedule,) = master.committer.machine.state.schedules.values()
        assert schedule.runs == 2
        assert schedule.next_at == pytest.approx(began + 180, abs=1)


async def beat_quietly(worker: Connection[Any], seconds: float) -> None:
    """Let a worker live without reading its messages."""
    for number in range(int(seconds)):
        await worker.send(m.Heartbeat(number=number))
        await trio.sleep(1)


async def test_waiting_readers_of_a_log_are_woken(autojump_clock: MockClock) -> None:
    """``logs -f`` gets each piece as it comes, and its end when the process ends."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, submit(1))
        worker = await master.register("w")
        start = await receive(worker, m.Start)
        read = m.ReadFile(
            call=1, job=start.job, file="log", offset=0, limit=99, wait=True
        )
        await client.send(read)
        await trio.sleep(3)
        await worker.send(m.Log(job=start.job, process=start.process, data=b"one\n"))
        piece = b"--- process %d ---\none\n" % start.process
        assert await client.receive() == m.Chunk(call=1, data=piece, end=False)
        read = m.ReadFile(
            call=2,
            job=start.job,
            file="log",
            offset=len(piece),
            limit=99,
            wait=True,
        )
        await client.send(read)
        await worker.send(opened(start))
        await CrawlInMemory(worker, start).succeed()
        assert await client.receive() == m.Chunk(call=2, data=b"", end=True)


async def test_a_log_of_an_unknown_job_writes_nothing(
    autojump_clock: MockClock,
) -> None:
    """A job's id names a folder: an id that is no job's stays off the disk."""
    storage = MemoryStorage()
    async with running(storage) as master:
        worker = await master.register("w")
        await worker.send(m.Log(job="../../x", process=1, data=b"x\n"))
        await worker.send(m.Heartbeat(number=1))
        await receive(worker, m.HeartbeatSeen)
        await master.files.caught_up()
        assert storage.names("jobs") == []


async def test_a_snapshot_and_its_tail_give_state_and_items_back(
    autojump_clock: MockClock,
) -> None:
    """Parts before the snapshot and the rest behind it: the items are whole, and the
    requests are there with their bodies."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        items = (msgspec.Raw(b'{"a":1}'),)
        given = crawl.unit("start", children=children(*BODIES[:2]))
        await crawl.commit(given)
        master.committer._snapshot_at_bytes = 1
        part = m.Commit(
            request=1, last=False, items=items, children=children(*BODIES[2:4])
        )
        assert await crawl.commit(part) == ["stored"]
        await trio.sleep(1)
        assert any(name.startswith("snapshot") for name in storage.names())
        # Only what is in snapshots and behind them from here on.
        master.committer._snapshot_at_bytes = 1 << 30
        end = m.Commit(request=1, part=1, items=items, children=children(*BODIES[4:]))
        assert await crawl.commit(end) == ["published"]
        survived = storage.crash(random.Random(3))
    async with running(survived) as master:
        data = await master.files.read(crawl.job, "items", 0, 99)
        assert data == b'{"a":1}\n{"a":1}\n'
        assert await bodies_leased(master) == dict(enumerate(BODIES[1:], 2))


async def bodies_leased(master: MasterInMemory) -> dict[int, bytes]:
    """Return what a process gets that comes when the one before is given up."""
    worker = await master.register("v")
    await trio.sleep(SPANS.die_after_s / 2)
    await worker.send(m.Heartbeat(number=1))
    await trio.sleep(SPANS.die_after_s / 2 + 1)
    crawl = await CrawlInMemory.begun(worker)
    await worker.send(m.Heartbeat(number=2))
    await crawl.hear(m.HeartbeatSeen)
    frontier = master.committer.machine.state.crawls[crawl.job].frontier
    while len(crawl.bodies) < frontier.leased_count:
        await crawl.hear(m.Grant)
    return crawl.bodies


# ---- leases and their bodies ---------------------------------------------------------


@pytest.mark.parametrize("kept_bytes_max", [0, 1000, 1 << 20])
async def test_leases_bring_the_bodies_that_were_committed(
    kept_bytes_max: int, autojump_clock: MockClock
) -> None:
    """From memory or from the file, whatever order they are leased in, of two jobs at
    once; also those of parts, whose places in the file are not in order."""
    async with running(kept_bytes_max=kept_bytes_max) as master:
        client = await master.connect("client")
        await master.ask(client, submit(1, 2))
        worker = await master.register("w", slots=2)
        crawls = [await CrawlInMemory.begun(worker, window=2) for _ in range(2)]
        for crawl, mine in zip(crawls, (BODIES[:4], BODIES[4:]), strict=True):
            await crawl.commit(crawl.unit("start", children=children(*mine)))
            # A part of a later commit comes before the others.
            await crawl.commit(
                m.Commit(request=2, last=False, children=children(b"[2]", b"[3]")),
                m.Commit(request=1, children=children(b'"one"', mine[0])),
                m.Commit(request=2, part=1, children=children(b"[4]")),
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
        await master.ask(client, submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.hear(m.StartMay)
        storage.room = storage.used_bytes() + 10
        await crawl.send(crawl.unit("start", children=children(*BODIES)))
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
        await master.ask(client, submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.send(crawl.unit("start", children=children(*given)))
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
        await master.ask(client, submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        await crawl.commit(
            crawl.unit("start", children=children(*BODIES[:4])), crawl.unit("started")
        )
        await crawl.commit(*(m.Commit(request=number) for number in range(1, 5)))
        await crawl.finish()
        fresh = m.ChangeJob(call=9, verb="retry", job=crawl.job, fresh=True)
        await master.ask(client, fresh)
        again = await CrawlInMemory.begun(worker, window=1)
        others = [b'{"m":%d}' % number for number in range(1, 5)]
        await again.commit(again.unit("start", children=children(*others)))
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
        await master.ask(client, submit(1, parallelism=2))
        one = await master.register("one")
        first = await CrawlInMemory.begun(one, window=2)
        two = await master.register("two")
        for number, body in enumerate(BODIES):
            given = children(body, host=f"h{number}")
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
        await master.ask(client, submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker, window=2)
        await crawl.commit(crawl.unit("start", children=children(*BODIES[:5])))
        await crawl.commit(m.Commit(request=1))
    async with running(storage.crash(random.Random(5))) as master:
        again = await master.connect("worker")
        held = m.Held(
            job=crawl.job,
            process=crawl.process,
            requests=(2,),
            opened=opened(crawl.start, window=2),
            leads=True,
        )
        await again.send(registration("w", held=(held,)))
        assert (await receive(again, m.Registered)).drop == ()
        crawl.worker, crawl.bodies = again, {}
        while 3 not in crawl.bodies:
            await crawl.hear(m.Grant)
        assert crawl.bodies == {3: BODIES[2]}
        assert await crawl.commit(m.Commit(request=1), m.Commit(request=2)) == [
            "settled",
            "published",
        ]
