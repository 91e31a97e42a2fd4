"""Clients: they submit jobs and schedules, repeat what was not answered, and meddle."""

import random
from collections import defaultdict
from typing import TYPE_CHECKING

import attrs
import trio

from dscrapy import messages as m
from dscrapy.client import Client, Target
from dscrapy.errors import RefusedError, UnreachableError
from dscrapy.model import JobSpec, Submission
from tests.doubles.masters import TOKEN
from tests.sim.killable_programs import wait_until

if TYPE_CHECKING:
    from tests.sim.world import World

# A job that failed because its processes were killed is tried again so often.
RETRIES_MAX = 20
# The least ``start_deaths_max`` that a master is started with.
DEATHS_MIN = 2
VERBS = ("pause", "resume", "cancel", "parallelism", "retry", "fresh", "drain")


@attrs.define(eq=False)
class Clients:
    """``asked`` has what was asked of each job, whether it arrived or not."""

    world: "World"
    rng: random.Random
    asked: defaultdict[str, set[str]] = attrs.field(factory=lambda: defaultdict(set))
    planned: list[Submission] = attrs.field(factory=list)
    accepted: set[str] = attrs.field(factory=set)
    is_calm: bool = False

    def __attrs_post_init__(self) -> None:
        rng = self.rng
        for number in range(rng.randint(2, 5)):
            identity = f"{rng.getrandbits(56):014x}{number:02x}"
            self.planned.append(self._draw(identity, None))
        if rng.random() < 0.15:
            identity = f"{rng.getrandbits(56):014x}ff"
            self.planned.append(self._draw(identity, rng.choice((10.0, 30.0))))

    def _draw(self, identity: str, every_s: float | None) -> Submission:
        rng = self.rng
        spec = JobSpec(
            project="p",
            spider="s",
            parallelism=rng.choice((0, 1, 1, 2, 3)),
            priority=rng.choice((0, 0, 0, 1, 5)),
            retries=rng.choice((0, 0, 1, 2)),
        )
        return Submission(id=identity, spec=spec, every_s=every_s)

    def client(self, party: str) -> Client:
        """Return a client of the master, who goes on trying to reach it."""
        target = Target(host="master", port=1, token=TOKEN, token_from="a test")
        return Client(
            lambda: target,
            connect_timeout_s=60.0,
            patient=True,
            dial=self.world.network.dialler(party),
        )

    async def run(self) -> None:
        """Submit all that is planned; meddle meanwhile."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._submit_all)
            nursery.start_soon(self._meddle)

    async def _submit_all(self) -> None:
        async with self.client("submitter") as client:
            for submission in self.planned:
                await trio.sleep(0 if self.is_calm else self.rng.choice((0, 2, 12)))
                await self._submit(client, submission)

    async def _submit(self, client: Client, submission: Submission) -> None:
        while True:
            try:
                await client.submit([submission])
            except RefusedError as error:
                self.world.trace.note("refused", submission.id, error.code)
                if error.code != "disk_full":
                    self.world.checker.broken("a submission is refused", str(error))
                    return
                await trio.sleep(1)
            except UnreachableError:
                await trio.sleep(1)
            else:
                break
        ledger = self.world.checker.ledger
        known = (ledger.shadow.jobs, ledger.shadow.schedules, ledger.removed)
        if not any(submission.id in one for one in known):
            self.world.checker.broken("accepted and not durable", submission.id)
        self.accepted.add(submission.id)
        self.world.trace.note("accepted", submission.id)

    async def _meddle(self) -> None:
        """Change the life of jobs now and then."""
        rate = self.rng.choice((0.0, 0.02, 0.1))
        if not rate:
            return
        verbs = self.rng.sample(VERBS, self.rng.randint(1, len(VERBS)))
        async with self.client("meddler") as client:
            while not self.is_calm:
                await trio.sleep(self.rng.expovariate(rate))
                if self.accepted and not self.is_calm:
                    await self._change(client, self.rng.choice(verbs))

    async def _change(self, client: Client, verb: str) -> None:
        shadow = self.world.checker.ledger.shadow
        job = self.rng.choice(list(shadow.jobs) or [""])
        self.world.count(f"client: {verb}")
        try:
            if verb == "drain":
                machine = self.rng.choice(self.world.machines)
                self.world.trace.note("asks drain", machine.name)
                await client.drain(machine.name)
            elif job:
                self.world.trace.note("asks", verb, job)
                await self.change(client, verb, job)
        except (RefusedError, UnreachableError) as error:
            self.world.trace.note("answer", verb, type(error).__name__)
        else:
            self.world.trace.note("answer", verb)

    async def change(self, client: Client, verb: str, job: str) -> None:
        """Ask for one change of a job's life, once."""
        self.asked[job].add(verb)
        message = m.ChangeJob(
            call=0,
            verb="retry" if verb == "fresh" else verb,  # type: ignore[arg-type]  # it is one of VERBS
            job=job,
            fresh=verb == "fresh",
            count=self.rng.choice((0, 1, 2)),
        )
        await client.change(message)

    # ---- the end -------------------------------------------------------------------

    async def see_to_the_end(self) -> None:
        """With nothing failing any more, let every job end; run one of them afresh."""
        async with self.client("last") as client:
            await wait_until(lambda: len(self.accepted) == len(self.planned))
            await self._end_all(client)
            done = await client.jobs(("succeeded",))
            if done and self.rng.random() < 0.5:
                self.world.trace.note("fresh", done[0].id)
                await self._insist(client, "fresh", done[0].id)
                await self.check_that_files_follow()
                await self._end_all(client)

    async def check_that_files_follow(self) -> None:
        """Require that items files soon hold what is published, and no more: before
        the first page of a fresh run is done, nothing of the run before."""
        world, difference = self.world, ""
        for _ in range(10):
            await trio.sleep(0.02)
            difference = world.checker.ledger.difference_of_files(world.master.storage)
            if not difference:
                return
        world.checker.broken("a job's file differs from what is published", difference)

    async def _end_all(self, client: Client) -> None:
        for submission in self.planned:
            if submission.every_s is not None:
                await self._insist(client, "cancel", submission.id)
        for one in await client.jobs(("failed",)):
            self._check_failure(one.id, one.reason)
        retries = 0
        while True:
            jobs = await client.jobs()
            open_ones = [
                one
                for one in jobs
                if one.state not in ("succeeded", "cancelled")
                and not (one.state == "failed" and _is_poisoned(one.reason))
            ]
            if not open_ones:
                return
            for one in open_ones:
                if one.state == "paused":
                    await self._insist(client, "resume", one.id)
                elif one.state == "failed" and retries < RETRIES_MAX:
                    retries += 1
                    await self._insist(client, "retry", one.id)
            await trio.sleep(1.0)

    def _check_failure(self, job: str, reason: str) -> None:
        # Fewer never fail a job, whatever a master is started with.
        if _is_poisoned(reason):
            return
        if "died" not in reason or self.world.checker.counted[job] < DEATHS_MIN:
            self.world.checker.broken("a job failed", f"{job}: {reason}")
        self.world.count("jobs failed by counted deaths")

    async def _insist(self, client: Client, verb: str, job: str) -> None:
        """Ask until it is so; one that is so already refuses."""
        while True:
            try:
                await self.change(client, verb, job)
            except UnreachableError:
                await trio.sleep(0.5)
            except RefusedError as error:
                if error.code != "disk_full":
                    return
                await trio.sleep(0.5)
            else:
                return


def _is_poisoned(reason: str) -> bool:
    """Whether all of a failed job is done but for what is poisoned."""
    return reason.endswith("the rest is done")
