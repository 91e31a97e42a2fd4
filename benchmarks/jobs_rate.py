"""How many one-URL jobs a second do two slots run, beside two ``scrapy crawl``?

The jobs come in rounds of one ``submit --file`` each, between which plain Scrapy runs
two processes at a time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import trio

from benchmarks.fleet import (
    Fleet,
    children_cpu_s,
    cpu_s,
    plain_scrapy,
    running_fleet,
    until_idle,
)
from benchmarks.report import header, say, spread, table
from dscrapy.net.host import boot_instant
from tests.e2e.crawl_harness import PROJECT, running_site

SLOTS = 2


@attrs.frozen(kw_only=True)
class Round:
    """Jobs a second, and CPU seconds a job, by who used them."""

    rate: float
    master_s: float = 0.0
    worker_s: float = 0.0
    crawl_s: float


def write_jobs(path: Path, address: str, count: int) -> None:
    """Write a file of jobs that fetch one page each."""
    job = {
        "spider": "pages",
        "project_dir": str(PROJECT),
        "args": {"site": address, "count": "1"},
    }
    path.write_text("".join(f"{json.dumps(job)}\n" for _ in range(count)))


async def ours(
    fleet: Fleet,
    master: subprocess.Popen[bytes],
    worker: subprocess.Popen[bytes],
    jobs: Path,
    count: int,
) -> Round:
    """Run one file of jobs; time runs from the start of the command."""
    cpu = (cpu_s(master.pid), cpu_s(worker.pid), children_cpu_s(worker.pid))
    submit = fleet.begin("submit", "--file", str(jobs)).finish()
    ids = submit.output.split()
    assert len(ids) == count
    async with fleet.client() as client:
        for identity in ids:
            shown = await client.wait(identity)
            assert shown.job is not None
            assert shown.job.state == "succeeded"
            assert shown.job.items == 1
        wall_s = boot_instant() - submit.begin
        await until_idle(client)
    return Round(
        rate=count / wall_s,
        master_s=(cpu_s(master.pid) - cpu[0]) / count,
        worker_s=(cpu_s(worker.pid) - cpu[1]) / count,
        crawl_s=(children_cpu_s(worker.pid) - cpu[2]) / count,
    )


async def plain(address: str, folder: Path, count: int) -> Round:
    """Run ``scrapy crawl`` as often, always two at a time."""
    words = ("pages", "-a", f"site={address}", "-a", "count=1")
    left = iter(range(count))
    used: list[float] = []

    async def run_some() -> None:
        for _ in left:
            crawl = plain_scrapy(*words, folder=folder)
            used.append((await trio.to_thread.run_sync(crawl.finish)).cpu_s)

    begin = boot_instant()
    async with trio.open_nursery() as nursery:
        for _ in range(SLOTS):
            nursery.start_soon(run_some)
    assert len(used) == count
    return Round(rate=count / (boot_instant() - begin), crawl_s=sum(used) / count)


async def measure(rounds: int, count: int, plain_count: int) -> None:
    """Take turns and print."""
    mine: list[Round] = []
    theirs: list[Round] = []
    with tempfile.TemporaryDirectory() as name, running_fleet() as fleet:
        folder = Path(name)
        with running_site() as address:
            write_jobs(folder / "jobs.jsonl", address, count)
            master, _ = await fleet.start_master()
            worker = await fleet.start_worker("w", SLOTS)
            await plain(address, folder, SLOTS)
            for _ in range(rounds):
                jobs = folder / "jobs.jsonl"
                mine.append(await ours(fleet, master, worker, jobs, count))
                theirs.append(await plain(address, folder, plain_count))
    table(
        ["", "jobs a second", "CPU a job: crawl process", "worker", "master"],
        [
            [
                f"dscrapy, {rounds} x {count} jobs",
                spread([one.rate for one in mine], "/s", 2),
                spread([one.crawl_s for one in mine], "s", 2),
                spread([one.worker_s for one in mine], "ms", 1),
                spread([one.master_s for one in mine], "ms", 1),
            ],
            [
                f"`scrapy crawl`, {rounds} x {plain_count}",
                spread([one.rate for one in theirs], "/s", 2),
                spread([one.crawl_s for one in theirs], "s", 2),
                "-",
                "-",
            ],
        ],
    )
    say(f"{SLOTS} at a time; rounds taking turns; median (min-max) of rounds")
    say()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=50, help="jobs in a round")
    parser.add_argument("--plain", type=int, default=10, help="scrapy crawls in one")
    options = parser.parse_args()
    header("jobs_rate", sys.argv[1:])
    trio.run(measure, options.rounds, options.jobs, options.plain)


if __name__ == "__main__":
    main()
