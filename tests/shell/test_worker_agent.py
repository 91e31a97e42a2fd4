"""The worker joined to a whole master, on networks that fail, in virtual time."""

import random
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
from dscrapy.worker.agent import Worker
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import MasterInMemory, running, submit
from tests.shell.worker_in_memory import (
    NEVER,
    Crawls,
    Fault,
    Network,
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
    return f"{number:016x}"


def status_of(master: MasterInMemory, number: int = 1) -> str:
    """Return how the job stands."""
    return master.committer.machine.state.jobs[job_id(number)].status


def is_settled(worker: Worker) -> bool:
    """Whether the worker has nothing left to say or to do."""
    return not worker.held and worker.outbox.is_settled


async def add_jobs(master: MasterInMemory, *numbers: int) -> None:
    """Submit jobs of the project ``p``."""
    client = await master.connect("client")
    answer = await master.ask(client, submit(*numbers))
    assert isinstance(answer, m.Accepted)


async def change(master: MasterInMemory, verb: Any, number: int = 1) -> None:
    """Change a job's life."""
    client = await master.connect("client")
    answer = await master.ask(
        client, m.ChangeJob(call=1, verb=verb, job=job_id(number))
    )
    assert isinstance(answer, m.Shown), answer


async def items_of(master: MasterInMemory, number: int = 1) -> bytes:
    """Return the job's items."""
    await master.files.caught_up()
    return await master.files.read(job_id(number), "items", 0, 1 << 20)


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
    master: MasterInMemory, numbers: Iterable[int], items: bytes
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
    # Without faults there are fewer frames than the last cut.
    assert len(network.dialled) == 2 or frames > 30


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
            worker_of(network, crawls, tmp_path, name=f"w{number}", slots=2)
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
