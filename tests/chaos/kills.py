"""Signals at random moments: SIGKILL, SIGSTOP and SIGTERM of anything, or of all.

One seed draws who is struck, how, and after how long; where in a crawl that falls is
left to chance. The kills at chosen stages are those of ``tests.equivalence.campaign``.
"""

import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from tests.chaos.rig import (
    DIE_AFTER_S,
    FACT_LIMIT_S,
    Rig,
    Work,
    running_rig,
    say,
    send,
    until,
)
from tests.chaos.table import Wrong, counted

WORKERS = ("w0", "w1", "w2")
JOBS_AT_A_TIME = 3
MS = {"ms": "60"}
# Trees, chains, closures, retries, what is idle, 20,000 items of one page (its commit
# travels in parts), and hosts enough for three processes.
WORKS = (
    *(
        Work(spider, ours=MS)
        for spider in (
            *("burst", "carried", "crawl_rules", "dont_filter", "engine_crawl"),
            *("idle", "inline", "lambdas", "many", "opened", "pipes", "redirects"),
            *("retries", "start_many", "sync_gen", "wide"),
        )
    ),
    Work("weighty", {"count": "300"}, MS),
)
# Seconds between two strokes, at least and at most.
PAUSE_S = (0.1, 1.5)
# How often each is drawn, against the others.
STROKES = {
    "SIGKILL process": 12,
    "SIGKILL worker": 5,
    "SIGKILL master": 5,
    "SIGKILL all": 2,
    "SIGSTOP process": 3,
    "SIGSTOP worker": 2,
    "SIGSTOP master": 1,
    "SIGTERM worker": 2,
    "SIGTERM master": 1,
}
# A stopped crawl process wakes before anybody has given it up.
STOPPED_S_MAX = 3.0


@attrs.define
class Killer:
    """Strikes until its time is over; every process is then back."""

    rig: Rig
    around: trio.Nursery
    struck: Counter[str] = attrs.Factory(Counter)
    # Workers that are stopped or on their way out are left alone.
    _busy: set[str] = attrs.Factory(set)

    async def run(self, seconds: float) -> None:
        """Strike for so long."""
        end = trio.current_time() + seconds
        rng = self.rig.rng
        names, weights = list(STROKES), list(STROKES.values())
        while trio.current_time() < end:
            await trio.sleep(rng.uniform(*PAUSE_S))
            (stroke,) = rng.choices(names, weights)
            if await self._strike(stroke):
                self.struck[stroke] += 1
                say(f"{self.struck.total():4} {stroke}; {self.rig.jobs} jobs so far")

    async def _strike(self, stroke: str) -> bool:
        """Do it if there is somebody; return whether there was."""
        rig, rng = self.rig, self.rig.rng
        free = [name for name in WORKERS if name not in self._busy]
        pids = rig.crawl_pids(*free) if free else []
        how, whom = stroke.split()
        if (whom == "process" and not pids) or (whom == "worker" and not free):
            return False
        match whom:
            case "process":
                self._process(rng.choice(pids), how)
            case "worker":
                await self._worker(rng.choice(free), how)
            case "master":
                await self._master(how)
            case "all":
                await self._all()
        return True

    def _process(self, pid: int, how: str) -> None:
        if how == "SIGKILL":
            send(pid, signal.SIGKILL)
        else:
            span_s = self.rig.rng.uniform(0.5, STOPPED_S_MAX)
            self.around.start_soon(self._freeze, [pid], span_s)

    async def _freeze(self, pids: list[int], span_s: float) -> None:
        for pid in pids:
            send(pid, signal.SIGSTOP)
        await trio.sleep(span_s)
        for pid in pids:
            send(pid, signal.SIGCONT)

    async def _worker(self, name: str, how: str) -> None:
        rig = self.rig
        match how:
            case "SIGKILL":
                rig.kill_worker(name)
                rig.start_worker(name)
            case "SIGSTOP":
                self._busy.add(name)
                self.around.start_soon(self._sleeper, name)
            case "SIGTERM":
                self._busy.add(name)
                self.around.start_soon(self._leaver, name)

    async def _sleeper(self, name: str) -> None:
        """A worker that is given up, with or without its processes, and wakes."""
        rig = self.rig
        pids = [rig.workers[name]]
        if rig.rng.random() < 0.5:
            pids += rig.crawl_pids(name)
        span_s = DIE_AFTER_S + rig.rng.uniform(0.5, 3.0)
        await self._freeze(pids, span_s)
        self._busy.discard(name)

    async def _leaver(self, name: str) -> None:
        """A worker that is asked to end, and comes back when it has."""
        process = self.rig.popen(name)
        process.send_signal(signal.SIGTERM)

        async def has_ended() -> bool:
            return process.poll() is not None

        await until(has_ended, f"the end of {name} after SIGTERM")
        # "SIGKILL all" may have been faster, with one of its own.
        if self.rig.popen(name) is process:
            self.rig.start_worker(name)
        self._busy.discard(name)

    async def _master(self, how: str) -> None:
        rig = self.rig
        master = rig.cluster.master
        assert master is not None
        match how:
            case "SIGKILL":
                await rig.kill_master()
            case "SIGSTOP":
                span_s = DIE_AFTER_S + rig.rng.uniform(0.5, 2.0)
                await self._freeze([master.pid], span_s)
            case "SIGTERM":
                master.send_signal(signal.SIGTERM)
                await trio.to_thread.run_sync(master.wait, FACT_LIMIT_S)
                await rig.start_master()

    async def _all(self) -> None:
        """Every process in one instant, as when the power goes."""
        rig = self.rig
        master = rig.cluster.master
        assert master is not None
        every = [rig.popen(name) for name in WORKERS]
        pids = rig.crawl_pids()
        for pid in (master.pid, *(one.pid for one in every), *pids):
            send(pid, signal.SIGKILL)
        for one in (master, *every):
            one.wait(FACT_LIMIT_S)
        for name in WORKERS:
            rig.start_worker(name)
        await rig.start_master()


def shuffled(rng: random.Random, works: tuple[Work, ...]) -> Iterator[Work]:
    """Yield all works again and again, each round in another order."""
    while True:
        yield from rng.sample(works, len(works))


async def random_kills(folder: Path, seed: int, minutes: float) -> str:
    """Jobs of many kinds while anything is struck at any moment."""
    async with running_rig(folder, random.Random(f"kills-{seed}")) as rig:
        await rig.start_master()
        for work in WORKS:
            await rig.plain(work)
        for name in WORKERS:
            rig.start_worker(name)
        works = shuffled(rig.rng, WORKS)
        end = trio.current_time() + minutes * 60
        async with trio.open_nursery() as around:
            killer = Killer(rig, around)
            for _ in range(JOBS_AT_A_TIME):
                around.start_soon(rig.feed, works, lambda: trio.current_time() >= end)
            await killer.run(minutes * 60)
        struck = killer.struck
        return f"{struck.total()} signals: {counted(struck)}; {rig.counts}"


async def long_stops(folder: Path, seed: int, minutes: float) -> str:
    """A stopped master gives up nobody; a stopped worker is given up and dropped."""
    del minutes
    work = Work("weighty", {"count": "400"}, {"ms": "150"})
    async with running_rig(folder, random.Random(f"stops-{seed}")) as rig:
        await rig.plain(work)
        await rig.start_master()
        for name in ("w0", "w1"):
            rig.start_worker(name)
        async with rig.client() as client:
            job = await rig.submit(client, work, 2)
            await pages_of(rig, job, 20)
            before = set(rig.crawl_pids())
            master = rig.cluster.master
            assert master is not None
            master.send_signal(signal.SIGSTOP)
            span_s = DIE_AFTER_S + 2
            await trio.sleep(span_s)
            master.send_signal(signal.SIGCONT)
            pages = (await client.show(job)).job
            assert pages is not None
            await pages_of(rig, job, pages.pages + 20)
            if not before <= set(rig.crawl_pids()):
                raise Wrong("a master that was stopped gave up a live process")
            names = sorted(one.name for one in (await client.status()).workers)
            if names != ["w0", "w1"]:
                raise Wrong(f"a master that was stopped knows only {names}")
            frozen = await _zombie(rig, job)
            await rig.check(client, job, work)
        return (
            f"master stopped for {span_s:g} s with die_after_s = {DIE_AFTER_S:g}: "
            f"{len(before)} processes went on; a worker stopped until another had its "
            f"{frozen} requests was told so when it woke; {rig.counts}"
        )


async def pages_of(rig: Rig, job: str, count: int) -> None:
    """Wait until a job has so many pages."""
    async with rig.client() as client:

        async def is_there() -> bool:
            shown = (await client.show(job)).job
            assert shown is not None
            return shown.pages >= count

        await until(is_there, f"{count} pages of a job")


async def _zombie(rig: Rig, job: str) -> int:
    """Stop a worker with all it has until it is given up, and wake it."""
    async with rig.client() as client:
        shown = (await client.show(job)).job
        assert shown is not None
        name = shown.workers[0]
        held = rig.crawl_pids(name)
        leased = shown.leased
        for pid in (rig.workers[name], *held):
            send(pid, signal.SIGSTOP)

        async def is_given_up() -> bool:
            shown = (await client.show(job)).job
            assert shown is not None
            return name not in shown.workers

        await until(is_given_up, f"{name} given up")
        for pid in (rig.workers[name], *held):
            send(pid, signal.SIGCONT)

        async def is_dropped() -> bool:
            return not set(held) & set(rig.crawl_pids(name))

        await until(is_dropped, f"the end of what {name} had")
        return leased
