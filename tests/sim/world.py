"""One simulation: what there is, what clients ask for, and the run from start to end.

First everything works under faults (``faults.py``); then all of them are healed, and
within a bounded time every job has to end with exactly the items that its site gives.
"""

import hashlib
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing

from dscrapy.control.state.jobs import Job
from tests.doubles.storage import MemoryStorage
from tests.sim.checker import Checker, Trace, Violation
from tests.sim.clients import Clients
from tests.sim.faults import Faults
from tests.sim.killable_programs import deterministic, know_programs, wait_until
from tests.sim.ledger import Ledger
from tests.sim.machines import Machine, SimMaster, project_config
from tests.sim.network import SimNetwork
from tests.sim.removals import Removals
from tests.sim.site import Site, draw_site

# Faults end after so long (virtual seconds, drawn), and the rest has so long.
FAULTS_S = (20.0, 70.0)
CALM_S = 600.0


@attrs.frozen(kw_only=True)
class Result:
    """What became of a seed; ``trace`` has its last lines, ``counts`` what happened."""

    seed: int
    violation: Violation | None
    virtual_s: float
    digest: str
    counts: Counter[str]
    trace: list[str]


@attrs.define(eq=False)
class World:
    """See the module. Randomness for each concern comes from the seed and its name."""

    seed: int
    config: Any
    folder: Path
    nursery: trio.Nursery
    trace: Trace = attrs.field(factory=Trace)
    counts: Counter[str] = attrs.field(factory=Counter)
    checker: Checker = attrs.field(init=False)
    network: SimNetwork = attrs.field(init=False)
    master: SimMaster = attrs.field(init=False)
    machines: list[Machine] = attrs.field(factory=list)
    clients: Clients = attrs.field(init=False)
    removals: Removals = attrs.field(init=False)
    faults: Faults = attrs.field(init=False)
    # Fewer sites than jobs, so that they are worked out once.
    _sites: list[Site] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.checker = Checker(
            trace=self.trace,
            counts=self.counts,
            stop=self.stop,
        )
        self.checker.ledger = Ledger(
            broken=self.checker.broken,
            site_of=self.site_of,
            ended=self.checker.ended,
            poisoned=self.checker.poisoned,
            live=self.checker.live,
            may_go=lambda job: self.removals.may_go(job),
        )
        self.removals = Removals(self, self.random("removals"))
        self.network = SimNetwork(self.nursery, self.random("network"))
        rng = self.random("disk")
        self.master = SimMaster(self, MemoryStorage(rng=rng), self.random("master"))
        rng = self.random("machines")
        self.machines = [
            Machine(
                self,
                f"w{number}",
                rng.randint(1, 3),
                self.folder,
                self.random(f"machine {number}"),
            )
            for number in range(rng.randint(2, 4))
        ]
        rng = self.random("sites")
        self._sites = [draw_site(rng) for _ in range(3)]
        self.clients = Clients(self, self.random("clients"))
        self.faults = Faults(self, self.random("faults"))

    def random(self, name: str) -> random.Random:
        """Return the source of randomness for one concern."""
        return random.Random(f"{self.seed}/{name}")

    def site_of(self, job: str) -> Site:
        """Return the site of a job; runs of a schedule have that of their schedule."""
        return self._sites[int(job[:16], 16) % len(self._sites)]

    def count(self, what: str) -> None:
        """Count something that happened."""
        self.counts[what] += 1

    def power_goes(self, power: str) -> None:
        """The master died in a call to its disk, alone or with everything else."""
        if power == "kill":
            self.count("master killed in a disk call")
            self.trace.note("master killed in a disk call")
            self.master.gone(silently=False)
            self.master.start_in(self.master.rng.uniform(0.1, 3.0))
        else:
            self.cut_power()

    def cut_power(self) -> None:
        """Everything loses power; the disk keeps what was synced, and some more."""
        self.count("power cut of everything")
        self.trace.note("power cut")
        master = self.master
        room = master.storage.room
        master.gone(silently=True)
        master.storage = master.storage.crash(master.rng)
        master.storage.room = room
        master.start_in(master.rng.uniform(0.5, 3.0))
        for machine in self.machines:
            if machine.program is not None:
                machine.kill(silently=True)
                machine.start_in(machine.rng.uniform(0.5, 5.0))

    def stop(self) -> None:
        """End the run; a stopped program has to go on, or it would never end."""
        self.master.go_on()
        for machine in self.machines:
            machine.go_on()
        self.nursery.cancel_scope.cancel()

    # ---- the run -------------------------------------------------------------------

    async def run(self) -> None:
        """Run it all; what is wrong is the checker's to tell."""
        self.master.start()
        for machine in self.machines:
            machine.start_in(machine.rng.uniform(0.0, 3.0))
        self.nursery.start_soon(self.clients.run)
        if self.removals.is_on:
            self.nursery.start_soon(self.removals.run)
        rng = self.random("length")
        with trio.move_on_after(rng.uniform(*FAULTS_S)):
            await self.faults.run()
        self.trace.note("faults end")
        self.clients.is_calm = True
        self.faults.heal()
        await self._finish()
        self.counts["jobs removed"] += len(self.checker.ledger.removed)
        self.nursery.cancel_scope.cancel()

    async def _finish(self) -> None:
        """Require that everything ends, and is as it must be."""
        with trio.move_on_after(CALM_S) as scope:
            await self.clients.see_to_the_end()
            await self._settle()
        if scope.cancelled_caught:
            self.checker.broken("it does not finish", self._what_is_left())
            return
        await self._restart_once_more()
        if self.removals.is_on:
            with trio.move_on_after(CALM_S) as scope:
                await self.removals.at_last()
            if scope.cancelled_caught:
                self.checker.broken("a removal does not finish", self._what_is_left())

    async def _settle(self) -> None:
        """Wait until nobody holds anything and all is acknowledged."""
        await wait_until(self._is_settled)

    def _is_settled(self) -> bool:
        running = self.master.running
        if running is None or running.committer.machine.state.processes:
            return False
        files = running.files
        return files.done == files.handed and all(
            machine.worker is not None
            and machine.worker.outbox.is_settled
            and not machine.worker.processes
            for machine in self.machines
        )

    async def _restart_once_more(self) -> None:
        """The state that was reached is the one that a last restart finds."""
        master = self.master
        master.gone(silently=False)
        master.start()
        await wait_until(lambda: master.running is not None)
        assert master.running is not None
        ledger, state = self.checker.ledger, master.running.committer.machine.state
        for job in state.order:
            self._check_job(job)
        if state.processes or ledger.shadow.processes:
            self.checker.broken("processes are left", str(state.processes))
        for crawl in state.crawls.values():
            if crawl.frontier.leased_count or crawl.stored:
                self.checker.broken("leases or parts are left", str(crawl.stored))

    def _check_job(self, job: Job) -> None:
        book = self.checker.ledger.book(job.id)
        site, state = self.site_of(job.id), self.checker.ledger.shadow
        asked = self.clients.asked[job.id]
        crawl = state.crawls.get(job.id)
        poisoned = {} if crawl is None else crawl.frontier.poisoned
        # Others may be, too, if chance had them under way in four deaths.
        innocent = any(
            not site.pages[int(one.url.removeprefix("page/"))].kills
            for one in poisoned.values()
        )
        is_whole = job.status == "succeeded" or (poisoned and not innocent)
        if is_whole and job.status != "cancelled" and book.counts != site.expected:
            missing = site.expected - book.counts
            self.checker.broken("items are lost", f"{job.id}: {dict(missing)}")
        if job.status == "succeeded" and (poisoned or site.is_deadly):
            self.checker.broken("a page that kills is not told", job.id)
        if job.status == "cancelled" and "cancel" not in asked:
            self.checker.broken("a job is cancelled that nobody cancelled", job.id)
        if not job.is_final or (job.status == "failed" and not poisoned):
            self.checker.broken("a job has not ended well", f"{job.id} {job.status}")
        self.counts[f"jobs {job.status}"] += 1
        self.counts["items"] += sum(book.counts.values())

    def _what_is_left(self) -> str:
        running = self.master.running
        if running is None:
            return "no master runs"
        state = running.committer.machine.state
        jobs = [
            f"{job.id}: {job.state} {job.processes} {job.course and job.course.reason}"
            for job in state.order
            if not job.is_final
        ]
        workers = [
            f"{one.name} {one.session} {sorted(one.processes)} {sorted(one.barred)}"
            for one in state.workers.values()
        ]
        held = [
            f"{one.name}: {one.worker and list(one.worker.processes)}"
            for one in self.machines
        ]
        clients = self.clients
        missing = [one.id for one in clients.planned if one.id not in clients.accepted]
        files = f"files {running.files.done} of {running.files.handed}"
        return "; ".join([*jobs, *workers, *held, f"not accepted {missing}", files])


class _Log(logging.Handler):
    """Takes what the product logs as an error of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.world: World | None = None

    def emit(self, record: logging.LogRecord) -> None:
        world = self.world
        if world is not None and record.exc_info is not None:
            text = f"{record.getMessage()}: {record.exc_info[1]!r}"
            world.checker.broken("internal error", text)


def simulate(seed: int, folder: Path) -> Result:
    """Run one seed; ``folder`` is for the project of the workers."""
    log, logger = _Log(), logging.getLogger("dscrapy")
    before = logger.level, logger.propagate
    logger.addHandler(log)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        with deterministic(seed):
            return trio.run(
                _simulate,
                seed,
                folder,
                log,
                clock=trio.testing.MockClock(autojump_threshold=0),
            )
    finally:
        logger.removeHandler(log)
        logger.setLevel(before[0])
        logger.propagate = before[1]


async def _simulate(seed: int, folder: Path, log: _Log) -> Result:
    know_programs()
    async with trio.open_nursery() as nursery:
        world = World(seed, project_config(folder), folder, nursery)
        log.world = world
        nursery.start_soon(world.run)
    log.world = None
    digest = hashlib.sha256()
    for entry in world.trace.entries:
        digest.update(repr(entry).encode())
    return Result(
        seed=seed,
        violation=world.checker.violation,
        virtual_s=trio.current_time(),
        digest=digest.hexdigest(),
        counts=world.counts,
        trace=world.trace.lines(),
    )


__all__ = ["Result", "World", "simulate"]
