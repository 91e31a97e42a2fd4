"""The worker joined to a whole master, on networks that fail, in virtual time."""

import random
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.model import WORKER_DRAINS
from dscrapy.worker.agent import LEAVE_S, Worker
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import MasterInMemory, running
from tests.shell.worker_in_memory import (
    DYING_S,
    NEVER,
    Crawl,
    Crawls,
    Fault,
    Network,
    Slow,
    config_of,
    worker_of,
)

FAULTS: tuple[Fault, ...] = ("closed", "torn", "silent")
# Longer than any of these jobs takes with all its faults.
END_S = 600.0


async def until(holds: Callable[[], bool], step_s: float = 0.05) -> None:
    """Wait in virtual time until something holds that nobody announces."""
    with trio.fail_after(END_S):
        while not holds():  # noqa: ASYNC110 - no event tells it
            await trio.sleep(step_s)


def job_id(number: int = 1) -> str:
    """Return the id of ``submit(number)``."""
    return b.job_id(number)


def status_of(master: MasterInMemory, number: int = 1) -> str:
    """Return how the job stands."""
    return master.committer.machine.state.jobs[job_id(number)].status


def is_settled(worker: Worker) -> bool:
    """Whether the worker has nothing left to say or to do."""
    return not worker.processes and worker.outbox.is_settled


async def add_jobs(master: MasterInMemory, *numbers: int) -> None:
    """Submit jobs of the project ``p``."""
    client = await master.connect("client")
    answer = await master.ask(client, b.submit(*numbers))
    assert isinstance(answer, m.Accepted)


async def change(master: MasterInMemory, verb: Any, number: int = 1) -> None:
    """Change a job's life."""
    client = await master.connect("client")
    answer = await master.ask(
        client, m.ChangeJob(call=1, verb=verb, job=job_id(number))
    )
    assert isinstance(answer, m.Shown), answer


async def items_of(master: MasterInMemory, number: int = 1) -> list[bytes]:
    """Return the job's items, sorted."""
    await master.files.caught_up()
    lines = await master.files.read(job_id(number), "items", 0, 1 << 20)
    return sorted(lines.splitlines())


async def log_of(master: MasterInMemory, number: int = 1) -> bytes:
    """Return the job's log."""
    await master.files.caught_up()
    return await master.files.read(job_id(number), "log", 0, 1 << 20)


@asynccontextmanager
async def joined(
    folder: Path,
    *,
    crawls: Crawls | None = None,
    faults: Iterator[tuple[int, Fault]] | None = None,
    **fields: Any,
) -> AsyncIterator[tuple[MasterInMemory, Network, Worker, Crawls]]:
    """A master and one running worker with a network between them."""
    crawls = crawls or Crawls()
    async with running() as master:
        network = Network(master.nursery, master.server.serve, faults)
        worker = worker_of(network, crawls, folder, **fields)
        master.nursery.start_soon(worker.run)
        yield master, network, worker, crawls


async def all_succeed(
    master: MasterInMemory, numbers: Iterable[int], items: list[bytes]
) -> None:
    """Wait for these jobs; each has succeeded with exactly these items."""
    for number in numbers:
        job = master.committer.machine.state.jobs[job_id(number)]
        await until(partial(getattr, job, "is_final"))
        assert status_of(master, number) == "succeeded"
        assert await items_of(master, number) == items


# ---- connections that end anywhere --------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("frames", range(40))
async def test_a_connection_that_ends_anywhere_costs_nothing(
    frames: int, fault: Fault, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The first connection ends after each frame in turn, within its handshake too:
    the job ends ``succeeded`` with exactly its items once, and nothing stays."""
    faults = chain([(frames, fault)], repeat((NEVER, fault)))
    async with joined(tmp_path, faults=faults) as (master, network, worker, crawls):
        await add_jobs(master, 1)
        await until(lambda: status_of(master) == "succeeded")
        assert await items_of(master) == crawls.lines
        await until(partial(is_settled, worker))
        assert not master.committer.machine.state.processes
        crawls.check_fences()
        # Once for each that failed, and it did unless all was said before.
        await until(lambda: len(network.dialled) == 1 + network.failed)
        assert network.failed == 1 or frames > 30


@pytest.mark.parametrize("seed", range(30))
async def test_no_connection_lasts_and_the_master_is_killed(
    seed: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Every connection ends somewhere and the master's machine loses its power twice:
    every job succeeds with exactly its items, and no process works at a job that
    another has taken over."""
    rng = random.Random(seed)
    faults = ((rng.randrange(60), rng.choice(FAULTS)) for _ in count())
    crawls = Crawls()
    storage = MemoryStorage()
    async with trio.open_nursery() as nursery:
        networks = [Network(nursery, None, faults) for _ in range(2)]
        workers = [
            worker_of(
                network, crawls, tmp_path, name=f"w{number}", slots=2, draw=rng.random
            )
            for number, network in enumerate(networks)
        ]
        for worker in workers:
            nursery.start_soon(worker.run)
        for life in range(3):
            async with running(storage) as master:
                for network in networks:
                    network.serve = master.server.serve
                if life == 0:
                    await add_jobs(master, *range(1, 9))
                if life < 2:
                    await trio.sleep(rng.random() * 12)
                    storage = storage.crash(rng)
                    for network in networks:
                        await network.down()
                    continue
                await all_succeed(master, range(1, 9), crawls.lines)
                # Whatever is still to be said is said.
                for worker in workers:
                    await until(partial(is_settled, worker))
        crawls.check_fences()
        nursery.cancel_scope.cancel()


# ---- who may work at a job ----------------------------------------------------------


@pytest.mark.parametrize("fault", ["closed", "silent"])
async def test_a_worker_that_is_cut_off_does_nothing_once_another_has_its_job(
    fault: Fault, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whether it knows of its loss or not: its process starts nothing after its span,
    and is killed when the worker is back; each item is there once."""
    crawls = Crawls(pages=60, page_s=0.5, window=20)
    async with joined(tmp_path, crawls=crawls) as (master, network, worker, _):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started))
        other = Network(master.nursery, master.server.serve)
        master.nursery.start_soon(worker_of(other, crawls, tmp_path, name="o").run)
        await trio.sleep(3)
        await network.down(fault)
        await until(lambda: len(crawls.started) == 2)
        await trio.sleep(5)
        network.serve = master.server.serve
        await until(lambda: status_of(master) == "succeeded")
        await until(partial(is_settled, worker))
        assert [one.end for one in crawls.started] == ["killed", "exited"]
        assert await items_of(master) == crawls.lines
        # It was at work before, so the fence was met.
        assert crawls.started[0].worked
        crawls.check_fences()


async def test_the_commit_of_a_worker_that_was_given_up_still_counts_if_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It comes back with a page done while another is still at it: its commit is
    offered although its process is dropped, and the other's is of no use."""
    crawls = Crawls(pages=1, page_s=8.0)
    config = config_of(tmp_path, reconnect_s_max=0.5)
    async with joined(tmp_path, crawls=crawls, config=config) as (
        master,
        network,
        worker,
        _,
    ):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started))
        other = Network(master.nursery, master.server.serve)
        master.nursery.start_soon(worker_of(other, crawls, tmp_path, name="o").run)
        await trio.sleep(1)
        await network.down()
        await until(lambda: len(crawls.started) == 2)
        await until(lambda: bool(worker.outbox.requests_of(1)))
        network.serve = master.server.serve
        first, second = crawls.started
        await until(lambda: first.end == "killed")
        await until(lambda: worker.outbox.is_settled)
        # Both worked at it, and the first was first.
        assert await items_of(master) == crawls.lines
        assert len(second.worked) == 1
        assert "settled" not in results_of(second)
        await until(lambda: status_of(master) == "succeeded")
        assert results_of(second).count("settled") == 1
        assert await items_of(master) == crawls.lines


def results_of(crawl: Crawl) -> list[str]:
    """Return what became of the parts that a process has committed."""
    seen = [one.seen for one in crawl.told if isinstance(one, m.CommitsSeen)]
    return [part.result for parts in seen for part in parts]


async def test_a_death_that_nobody_heard_of_is_told_on_the_next_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A process ends while the master is away for a moment: the job goes on."""
    crawls = Crawls(deaths=[2])
    async with joined(tmp_path, crawls=crawls) as (master, network, _, _):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started))
        await trio.sleep(1.5)
        await network.down()
        await until(lambda: crawls.started[0].end == "exited")
        network.serve = master.server.serve
        await until(lambda: status_of(master) == "succeeded")
        assert await items_of(master) == crawls.lines
        assert len(crawls.started) == 2


async def test_processes_that_end_at_once_tell_it_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Each with its log: none waits for what another has to say."""
    crawls = Crawls(pages=1)
    async with joined(tmp_path, crawls=crawls, slots=8) as (master, *_):
        await add_jobs(master, *range(1, 9))
        began = trio.current_time()
        await until(lambda: not master.committer.machine.state.ready)
        await until(lambda: not master.committer.machine.state.processes)
        assert trio.current_time() - began < crawls.page_s + 1
        for number in range(1, 9):
            log = await log_of(master, number)
            assert log.endswith(b' on w ---\npage {"n":0}\n')


# ---- what comes before a process has started ----------------------------------------


async def test_a_stop_that_comes_before_its_process_is_not_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Cancelled while the worker still reads the project: no page is crawled."""
    slow = Slow()
    async with joined(tmp_path, in_thread=slow) as (master, _, _, crawls):
        await add_jobs(master, 1)
        await until(lambda: slow.asked > 0)
        await change(master, "cancel")
        slow.go.set()
        await until(lambda: status_of(master) == "cancelled")
        assert await items_of(master) == []
        assert all(not one.worked for one in crawls.started)


async def test_a_pause_that_comes_before_its_process_is_not_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Paused while the worker still reads the project: nothing is crawled, no process
    stays; it works when resumed."""
    slow = Slow()
    async with joined(tmp_path, in_thread=slow) as (master, _, worker, crawls):
        await add_jobs(master, 1)
        await until(lambda: slow.asked > 0)
        await change(master, "pause")
        slow.go.set()
        await trio.sleep(30)
        assert all(not one.worked for one in crawls.started)
        assert is_settled(worker)
        await change(master, "resume")
        await until(lambda: status_of(master) == "succeeded")
        assert await items_of(master) == crawls.lines


async def test_stops_and_pauses_reach_a_process_that_runs(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A paused job has no process: the one that runs finishes its page and gives the
    rest back. Resumed the job goes on with another, cancelled that one ends."""
    crawls = Crawls(pages=50, page_s=2.0)
    async with joined(tmp_path, crawls=crawls) as (master, _, worker, _):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started) and len(crawls.started[0].worked) == 3)
        await change(master, "pause")
        await trio.sleep(3)
        assert is_settled(worker)
        await trio.sleep(30)
        (first,) = crawls.started
        assert (first.end, len(first.worked)) == ("exited", 3)
        assert len(await items_of(master)) == 3
        await change(master, "resume")
        await until(lambda: len(crawls.started) == 2)
        second = crawls.started[1]
        await until(lambda: len(second.worked) == 2)
        await change(master, "cancel")
        await until(lambda: status_of(master) == "cancelled")
        await until(lambda: second.end == "exited")
        assert len(await items_of(master)) == 5


# ---- leaving -------------------------------------------------------------------------


async def run_noting(worker: Worker, left: trio.Event) -> None:
    """Run the worker; ``left`` tells when it is gone."""
    await worker.run()
    left.set()


@asynccontextmanager
async def leaving(
    folder: Path, **fields: Any
) -> AsyncIterator[tuple[MasterInMemory, Network, Worker, trio.Event]]:
    """As ``joined``; the event tells that the worker's run has returned."""
    crawls = fields.pop("crawls", Crawls())
    async with running() as master:
        network = Network(master.nursery, master.server.serve)
        worker = worker_of(network, crawls, folder, **fields)
        left = trio.Event()
        master.nursery.start_soon(run_noting, worker, left)
        await until(lambda: worker.link.connected)
        yield master, network, worker, left


async def test_a_drained_worker_finishes_what_it_started_and_leaves(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Asked by the master: the page under way is committed, the rest is given back,
    and the job goes on elsewhere."""
    crawls = Crawls(pages=9, page_s=2.0)
    async with leaving(tmp_path, crawls=crawls) as (master, _, worker, left):
        await add_jobs(master, 1, 2)
        await until(lambda: bool(crawls.started) and len(crawls.started[0].worked) == 3)
        client = await master.connect("client")
        drain = m.DrainWorker(call=1, worker="w")
        assert isinstance(await master.ask(client, drain), m.Accepted)
        await until(lambda: worker.draining)
        await until(left.is_set)
        (first,) = crawls.started
        assert (first.end, len(first.worked)) == ("exited", 3)
        assert len(await items_of(master)) == 3
        assert [status_of(master, number) for number in (1, 2)] == ["ready", "ready"]
        assert master.committer.machine.state.workers == {}
        assert worker.outbox.is_settled
        assert not worker.forced
        assert not worker.link.connected
        other = Network(master.nursery, master.server.serve)
        master.nursery.start_soon(worker_of(other, crawls, tmp_path, name="o").run)
        await all_succeed(master, (1, 2), crawls.lines)


async def test_a_worker_without_jobs_leaves_as_soon_as_it_drains(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whether a master is there or not."""
    async with leaving(tmp_path) as (_, network, worker, left):
        await network.down()
        await trio.sleep(1)
        worker.drain()
        worker.drain()
        await until(left.is_set)
        assert trio.current_time() < 5


async def test_a_draining_worker_waits_for_a_master_that_is_away(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Items that the master has not acknowledged are worth waiting for, its orders
    are not: the processes stop without it."""
    crawls = Crawls(pages=1)
    async with leaving(tmp_path, crawls=crawls) as (master, network, worker, left):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started) and bool(crawls.started[0].worked))
        worker.drain()
        await network.down("silent")
        await trio.sleep(300)
        assert not left.is_set()
        assert worker.processes[1].closing == WORKER_DRAINS
        network.serve = master.server.serve
        await until(left.is_set)
        assert await items_of(master) == crawls.lines
        other = Network(master.nursery, master.server.serve)
        master.nursery.start_soon(worker_of(other, crawls, tmp_path, name="o").run)
        await all_succeed(master, (1,), crawls.lines)


async def test_a_start_that_crosses_a_drain_is_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Or is carried out before it: in either case the job succeeds."""
    async with leaving(tmp_path) as (master, _, worker, left):
        await add_jobs(master, 1)
        # The assignment is on its way, or is not read yet.
        worker.drain()
        other = Network(master.nursery, master.server.serve)
        crawls = Crawls()
        master.nursery.start_soon(worker_of(other, crawls, tmp_path, name="o").run)
        await until(lambda: status_of(master) == "succeeded")
        await until(left.is_set)


async def test_the_second_signal_kills_and_the_job_runs_elsewhere_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The first one drains; forced, the worker still logs out, so nobody waits for
    its return."""
    crawls = Crawls(pages=2, page_s=20.0)
    async with leaving(tmp_path, crawls=crawls) as (master, _, worker, left):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started) and bool(crawls.started[0].worked))
        await master.nursery.start(worker.watch_signals)
        other = Network(master.nursery, master.server.serve)
        master.nursery.start_soon(worker_of(other, crawls, tmp_path, name="o").run)
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: worker.draining)
        await trio.sleep(3)
        assert not left.is_set()
        signal.raise_signal(signal.SIGTERM)
        began = trio.current_time()
        await until(left.is_set)
        assert worker.forced
        assert crawls.started[0].end == "killed"
        await until(lambda: len(crawls.started) == 2)
        assert trio.current_time() - began < 1
        await until(lambda: status_of(master) == "succeeded")
        assert await items_of(master) == crawls.lines
        crawls.check_fences()


async def test_the_first_signal_never_kills_also_when_the_master_drains_already(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whoever stops the service of a worker that is drained loses no page by it."""
    crawls = Crawls(pages=1, page_s=8.0)
    async with leaving(tmp_path, crawls=crawls) as (master, _, worker, left):
        await add_jobs(master, 1)
        await until(lambda: bool(crawls.started) and bool(crawls.started[0].worked))
        worker.drain()
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.watch_signals)
            signal.raise_signal(signal.SIGTERM)
            await until(left.is_set)
            nursery.cancel_scope.cancel()
        assert not worker.forced
        assert crawls.started[0].end == "exited"
        assert await items_of(master) == crawls.lines


async def test_a_forced_worker_does_not_wait_for_a_master_that_is_away(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Neither for its answers nor to log out."""
    async with leaving(tmp_path) as (master, network, worker, left):
        await add_jobs(master, 1)
        await until(lambda: bool(worker.processes))
        await network.down("silent")
        await master.nursery.start(worker.watch_signals)
        # Two of a kind that come at once are one.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        began = trio.current_time()
        await until(left.is_set)
        assert trio.current_time() - began <= DYING_S + LEAVE_S + 0.1


async def test_a_worker_of_a_name_that_is_taken_ends_with_the_reason(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The other one of that name is not disturbed."""
    async with leaving(tmp_path) as (master, network, worker, _):
        second = worker_of(network, Crawls(), tmp_path)
        await second.run()
        assert second.failure is not None
        assert "choose another --name" in str(second.failure)
        assert not second.forced
        assert worker.link.connected
        assert list(master.committer.machine.state.workers) == ["w"]


async def test_a_cancelled_worker_kills_its_processes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """No process outlives its worker's run."""
    crawls = Crawls(pages=99)
    async with running() as master:
        network = Network(master.nursery, master.server.serve)
        worker = worker_of(network, crawls, tmp_path, slots=3)
        await add_jobs(master, 1, 2, 3)
        with trio.move_on_after(5):
            await worker.run()
        assert [one.end for one in crawls.started] == ["killed"] * 3
