"""A client that removes ended jobs, one by one or by rules, whatever fails meanwhile.

In some seeds only: the others stay what they were.
"""

import random
from typing import TYPE_CHECKING

import attrs
import trio

from dscrapy import messages as m
from dscrapy.client import Client
from dscrapy.errors import RefusedError, UnreachableError
from dscrapy.keep import Keep
from tests.sim.killable_programs import wait_until

if TYPE_CHECKING:
    from tests.sim.world import World

# The part of the seeds in which jobs are removed.
PART = 0.4
# Why a removal may be refused: the job runs or is gone already, the disk is full.
REFUSALS = frozenset({"bad_state", "no_such_job", "disk_full"})


@attrs.define(eq=False)
class Removals:
    """``asked`` are jobs that are to go by their name, ``has_rules`` whether others may
    go: somebody has asked for it, or masters are started with rules."""

    world: "World"
    rng: random.Random
    is_on: bool = False
    rate: float = 0.0
    asked: set[str] = attrs.field(factory=set)
    has_rules: bool = False

    def __attrs_post_init__(self) -> None:
        self.is_on = self.rng.random() < PART
        self.rate = self.rng.choice((0.1, 0.3, 1.0))

    def draw_keep(self) -> Keep:
        """Return what a master that starts keeps by itself."""
        if not self.is_on or self.rng.random() < 0.5:
            return Keep()
        self.has_rules = True
        return self.rng.choice((Keep(jobs=1), Keep(days=0.02), Keep(bytes=100)))

    def may_go(self, job: str) -> bool:
        """Whether somebody has asked that this job goes."""
        return job in self.asked or self.has_rules

    async def run(self) -> None:
        """Remove jobs now and then, while things fail."""
        clients = self.world.clients
        async with clients.client("remover") as client:
            while not clients.is_calm:
                await trio.sleep(self.rng.expovariate(self.rate))
                if not clients.is_calm:
                    await self._remove_some(client)

    async def at_last(self) -> None:
        """With nothing else failing: remove two of the jobs while the master dies."""
        world = self.world
        jobs = list(world.checker.ledger.shadow.jobs)
        async with world.clients.client("last remover") as client:
            for job in self.rng.sample(jobs, min(len(jobs), 2)):
                self._let_master_die()
                while job in world.checker.ledger.shadow.jobs:
                    await self._try(client, job)
        world.master.storage.calls_left = None
        await wait_until(lambda: world.master.running is not None)
        await world.clients.check_that_files_follow()

    async def _try(self, client: Client, job: str) -> None:
        try:
            await self._remove(client, job)
        except UnreachableError:
            await trio.sleep(0.5)
        except RefusedError as error:
            if error.code != "no_such_job":
                self.world.checker.broken("a removal is refused", str(error))

    async def _remove_some(self, client: Client) -> None:
        clients, jobs = self.world.clients, self.world.checker.ledger.shadow.jobs
        # One whose submission may come once more would be there again.
        known = [job for job in jobs if job.partition("-")[0] in clients.accepted]
        try:
            if known and self.rng.random() < 0.8:
                ended = [job for job in known if jobs[job].is_final]
                among = ended if self.rng.random() < 0.9 else known
                if among:
                    await self._remove(client, self.rng.choice(among))
            elif len(clients.accepted) == len(clients.planned):
                await self._prune(client)
        except UnreachableError:
            self.world.trace.note("answer", "none")
        except RefusedError as error:
            self.world.trace.note("answer", error.code)
            if error.code not in REFUSALS:
                self.world.checker.broken("a removal is refused", str(error))

    async def _remove(self, client: Client, job: str) -> None:
        self.world.count("client: rm")
        self.world.trace.note("asks rm", job)
        self.asked.add(job)
        if self.rng.random() < 0.2:
            self._let_master_die()
        await client.remove(job)
        self._require_gone(job)

    def _let_master_die(self) -> None:
        """In one of the next calls to its disk: before the removal is in the journal,
        or before all of the files are gone."""
        master = self.world.master
        if master.program is not None and master.storage.calls_left is None:
            self.world.count("master to die in a removal")
            master.power = self.rng.choice(("kill", "all"))
            master.storage.calls_left = self.rng.randint(0, 8)

    async def _prune(self, client: Client) -> None:
        self.world.count("client: prune")
        keep_jobs = self.rng.randint(0, 2)
        self.world.trace.note("asks prune", keep_jobs)
        self.has_rules = True
        pruned = await client.prune(m.Prune(call=0, keep_jobs=keep_jobs))
        for job in pruned.jobs:
            self._require_gone(job)

    def _require_gone(self, job: str) -> None:
        self.world.trace.note("answer", "removed", job)
        if job in self.world.checker.ledger.shadow.jobs:
            self.world.checker.broken("a removal is acknowledged and not durable", job)
