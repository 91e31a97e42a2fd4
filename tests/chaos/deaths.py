"""Processes that end by their own doing: exit, segfault, abort, out of memory.

A page that ends its process once must cost nothing. One that does so each time is
*poisoned*: it is set aside, and everything else is done. Kills from outside, however
many, poison nothing.
"""

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from dscrapy.client import Client
from tests.chaos.cgroup import memory_cgroup
from tests.chaos.rig import JOB_LIMIT_S, Rig, Work, running_rig, say, send
from tests.chaos.table import Wrong
from tests.equivalence.ours import items_of

WORKERS = ("w0", "w1")
HOWS = ("exit", "segfault", "abort")
# Jobs of the row of deaths, each with this many deadly pages of a hundred.
JOBS = 6
DEADLY = 3
PAGES = 100
MS = {"ms": "40"}
# A crawl process has a third of this before it takes more; a machine has it to spare.
MEMORY_BYTES = 384 * 1024 * 1024
MEMORY_JOBS = 3
OUTSIDE_KILLS = 200
OUTSIDE_PAGES = 2000
OUTSIDE_PAUSE_S = (0.1, 0.7)
POISON_PAGES = 2000
# So many pages wait at a time. Scrapy starts a hundred tasks for each.
CROWD = 2000
CROWD_BYTES = 1024 * 1024 * 1024


def deadly(
    folder: Path, number: int, rng: random.Random, hows: tuple[str, ...]
) -> Work:
    """Return a job some pages of which end their process, once each."""
    flags = folder / f"flags-{number}"
    flags.mkdir()
    # Far apart: a job whose processes die again and again without a commit fails.
    places = [n * PAGES // DEADLY + rng.randrange(10) for n in range(DEADLY)]
    deaths = ",".join(f"{rng.choice(hows)}:{place}" for place in places)
    ours = {"deaths": deaths, "flags": str(flags), **MS}
    return Work("deadly", {"count": str(PAGES)}, ours)


async def own_deaths(folder: Path, seed: int, minutes: float) -> str:
    """Callbacks that end their process between two items, each once."""
    del minutes
    async with running_rig(folder, random.Random(f"deaths-{seed}")) as rig:
        runs = await _deadly_jobs(rig, JOBS, HOWS)
        return f"{_died(rig)} deaths in {runs} processes; {rig.counts}"


async def out_of_memory(folder: Path, seed: int, minutes: float) -> str:
    """Workers in a memory cgroup; callbacks that take memory until the kernel kills."""
    del minutes
    with memory_cgroup(MEMORY_BYTES) as group:
        rng = random.Random(f"memory-{seed}")
        async with running_rig(folder, rng) as rig:
            runs = await _deadly_jobs(rig, MEMORY_JOBS, ("memory",), group.add)
            kills, died = group.kills(), _died(rig)
        if kills < died:
            raise Wrong(f"{died} processes ran out of memory, {kills} kernel kills")
        return (
            f"{kills} kills by the kernel at {MEMORY_BYTES >> 20} MiB "
            f"({group.version}) in {runs} processes; {rig.counts}"
        )


async def outside_kills(folder: Path, seed: int, minutes: float) -> str:
    """SIGKILL of crawl processes, 200 times: no request is blamed for any."""
    del minutes
    work = Work("deadly", {"count": str(OUTSIDE_PAGES)}, {"ms": "250"})
    kills = 0
    async with running_rig(folder, random.Random(f"outside-{seed}")) as rig:
        await rig.plain(work)
        await rig.start_master()
        for name in WORKERS:
            rig.start_worker(name)
        async with rig.client() as client:
            while kills < OUTSIDE_KILLS:
                job = await rig.submit(client, work, 3)
                kills += await _kill_often(rig, client, job, OUTSIDE_KILLS - kills)
                shown = await rig.check(client, job, work)
                assert shown.job is not None
                if shown.job.poisoned:
                    raise Wrong(f"kills from outside poisoned: {shown.job}")
        return f"{kills} SIGKILLs of crawl processes, poisoned 0; {rig.counts}"


async def _kill_often(rig: Rig, client: Client, job: str, count: int) -> int:
    """Kill crawl processes while the job runs; return how many were.

    Between two kills some page is committed: a process that never gets to a page
    shows nothing.
    """
    kills, pages = 0, 0
    while kills < count:
        await trio.sleep(rig.rng.uniform(*OUTSIDE_PAUSE_S))
        shown = (await client.show(job)).job
        assert shown is not None
        if shown.state not in ("ready", "running"):
            break
        if shown.pages > pages and (pids := rig.crawl_pids()):
            send(rig.rng.choice(pids), signal.SIGKILL)
            kills, pages = kills + 1, shown.pages
            if kills % 25 == 0:
                say(f"{kills:4} kills, {shown.pages} pages")
    return kills


async def poisoned(folder: Path, seed: int, minutes: float) -> str:
    """One page among thousands that ends its process each time: it is set aside."""
    del minutes
    rng = random.Random(f"poison-{seed}")
    async with running_rig(folder, rng) as rig:
        page, runs = await _poisoned_page(rig, POISON_PAGES, "segfault", 3)
        return (
            f"page {page} of {POISON_PAGES} segfaults each time: job failed, poisoned "
            f"1, {runs} processes; the other items: {rig.counts}"
        )


async def floods(folder: Path, seed: int, minutes: float) -> str:
    """Workers in a memory cgroup; a response takes all memory while it is read."""
    del minutes
    with memory_cgroup(MEMORY_BYTES) as group:
        async with running_rig(folder, random.Random(f"floods-{seed}")) as rig:
            told = []
            for processes in (1, 3):
                page, runs = await _poisoned_page(
                    rig, PAGES, "flood", processes, group.add
                )
                told.append(f"page {page}: {runs} processes")
        return (
            f"a page of {PAGES} floods its process each time, -p 1 and -p 3: jobs "
            f"failed, poisoned 1 ({'; '.join(told)}), {group.kills()} kills by the "
            f"kernel; the other items: {rig.counts}"
        )


async def crowded(folder: Path, seed: int, minutes: float) -> str:
    """Workers in a memory cgroup; memory runs out once, while 2,000 pages wait."""
    del minutes
    work = Work("crowd", {"count": str(2 * CROWD), "crowd": str(CROWD)})
    flag = folder / "flag"
    with memory_cgroup(CROWD_BYTES) as group:
        async with running_rig(folder, random.Random(f"crowd-{seed}")) as rig:
            await rig.plain(work)
            await rig.start_master()
            group.add(rig.start_worker("w0", slots=1))
            async with rig.client() as client:
                took_s = []
                for ours in ({}, {"flag": str(flag)}):
                    began = trio.current_time()
                    await rig.run(client, attrs.evolve(work, ours=ours), 1)
                    took_s.append(trio.current_time() - began)
        without_s, with_s = took_s
        if group.kills() < 1 or not flag.exists():
            raise Wrong("memory did not run out")
        if with_s > 2 * without_s:
            raise Wrong(f"{with_s:.1f} s, without a death {without_s:.1f} s")
        return (
            f"{CROWD} pages of {2 * CROWD} wait when memory runs out: poisoned 0, "
            f"{with_s:.0f} s, without a death {without_s:.0f} s; {rig.counts}"
        )


async def _poisoned_page(
    rig: Rig,
    pages: int,
    how: str,
    processes: int,
    add: Callable[[int], None] = lambda pid: None,
) -> tuple[int, int]:
    """Run a job one page of which ends its process each time; check that it alone is
    missing. Return its number, and how many processes the job had.

    ``add`` gets the number of each worker before it has any crawl process.
    """
    page = rig.rng.randrange(pages)
    work = Work("deadly", {"count": str(pages)}, {"deaths": f"{how}:{page}", **MS})
    plain = await rig.plain(work)
    if not rig.workers:
        await rig.start_master()
        for name in WORKERS:
            add(rig.start_worker(name))
    async with rig.client() as client:
        job = await rig.submit(client, work, processes)
        with trio.fail_after(JOB_LIMIT_S):
            shown = await client.wait(job)
        items = Counter(await items_of(client, job))
    told = await trio.to_thread.run_sync(rig.cluster.job, job)
    assert shown.job is not None
    if shown.job.state != "failed" or told["poisoned"] != 1:
        raise Wrong(f"page {page} is poisoned, and the job {shown.job}")
    # Both its items are missing: what came before its process died, too.
    without = Counter(
        {line: n for line, n in plain.items.items() if f'/leaf/{page}"' not in line}
    )
    assert plain.items.total() - without.total() == 2
    rig.compare(work.key, items, without)
    return page, shown.job.runs


async def _deadly_jobs(
    rig: Rig,
    count: int,
    hows: tuple[str, ...],
    add: Callable[[int], None] = lambda pid: None,
) -> int:
    """Run jobs with deadly pages; return the processes that this took.

    ``add`` gets the number of each worker before it has any crawl process.
    """
    await rig.start_master()
    for name in WORKERS:
        add(rig.start_worker(name))
    runs = 0
    async with rig.client() as client:
        for number in range(count):
            work = deadly(rig.folder, number, rig.rng, hows)
            shown = await rig.run(client, work, rig.rng.choice((1, 3)))
            assert shown.job is not None
            runs += shown.job.runs
            say(f"{number + 1:4} {work.ours['deaths']}: {shown.job.runs} processes")
    if _died(rig) != count * DEADLY:
        raise Wrong(f"{_died(rig)} pages of {count * DEADLY} ended their process")
    return runs


def _died(rig: Rig) -> int:
    """Return how many pages have ended a process."""
    return len(list(rig.folder.glob("flags-*/*")))
