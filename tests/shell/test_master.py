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
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import (
    SPANS,
    TOKEN,
    CrawlInMemory,
    MasterInMemory,
    receive,
    running,
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
        assert await master.ask(client, b.submit(1)) == m.Accepted(call=1, count=1)
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
            answer = await master.ask(client, b.submit(number))
            assert isinstance(answer, m.Accepted)
        crawl = await CrawlInMemory.begun(worker)
        await crawl.succeed(b'{"a":1}')
        survived = storage.crash(random.Random(seed))
    async with running(survived) as master:
        jobs = master.committer.machine.state.jobs
        assert set(jobs) == {b.job_id(number) for number in range(1, 4)}
        assert jobs[crawl.job].status == "succeeded"
        data = await master.files.read(crawl.job, "items", 0, 99)
        assert data == b'{"a":1}\n'


async def test_a_silent_worker_is_reaped_after_its_span_and_not_before(
    autojump_clock: MockClock,
) -> None:
    """An open connection without a word: ``die_after_s``, within two beats."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
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
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        start = await receive(worker, m.Start)
        await worker.aclose()
        await trio.sleep(SPANS.reconnect_grace_s - 1)
        again = await master.connect("worker")
        held = (m.HeldProcess(job=start.job, process=start.process),)
        await again.send(b.registration("w", held=held))
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
        await client.send(b.submit(1))
        await trio.testing.wait_all_tasks_blocked()
        other = await master.connect("client")
        refused = await master.ask(other, b.submit(2))
        assert refused.code == "disk_full"
        status = await master.ask(other, m.GetStatus(call=3))
        assert "disk full" in status.note
        await worker.send(m.Heartbeat(number=1))
        assert await worker.receive() == m.HeartbeatSeen(number=1)
        storage.room = None
        assert await client.receive() == m.Accepted(call=1, count=1)
        assert (await receive(worker, m.Start)).job == b.job_id(1)
        assert await master.ask(other, b.submit(2)) == m.Accepted(call=1, count=1)
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
        assert isinstance(await master.ask(client, b.submit(1)), m.Accepted)
        refused = await master.ask(client, b.submit(2))
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
        await client.send(b.submit(1))
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
            refused = await master.ask(client, b.submit(1))
        assert refused.code == "internal_error"
        assert master.committer.machine.state.jobs == State().jobs
        assert isinstance(await master.ask(other, b.submit(1)), m.Accepted)


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
        await second.send(b.registration("w", instance="2"))
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
        await master.ask(client, b.submit(9, every_s=60.0))
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
        await master.ask(client, b.submit(1))
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
        await worker.send(b.opened(start.process, start.job))
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
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        items = (msgspec.Raw(b'{"a":1}'),)
        given = crawl.unit("start", children=b.children(*BODIES[:2]))
        await crawl.commit(given)
        master.committer._snapshot_at_bytes = 1
        part = b.part(1, 0, items=items, children=b.children(*BODIES[2:4]))
        assert await crawl.commit(part) == ["taken"]
        await trio.sleep(1)
        assert any(name.startswith("snapshot") for name in storage.names())
        # Only what is in snapshots and behind them from here on.
        master.committer._snapshot_at_bytes = 1 << 30
        end = m.Commit(request=1, part=1, items=items, children=b.children(*BODIES[4:]))
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
