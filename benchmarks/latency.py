"""How long is it from ``submit`` to the first request, with a free slot?

The spider asks for one page, so a request in the site's log tells the run it belongs
to. ``scrapy crawl`` of the same spider takes turns with it.
"""

import argparse
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
from tests.e2e.crawl_harness import PROJECT, requests_in, running_site


@attrs.frozen(kw_only=True)
class Run:
    """One crawl: seconds to its first request, and of CPU until its end."""

    to_request_s: float
    cpu_s: float


@attrs.define
class Site:
    """The site's address and its log."""

    address: str
    log: Path

    def seen(self) -> int:
        """Return how many requests there were."""
        return len(requests_in(self.log)) if self.log.exists() else 0

    def first_after(self, seen: int) -> float:
        """Return the instant of the first request after ``seen`` others."""
        return requests_in(self.log)[seen][0]


async def ours(
    fleet: Fleet,
    site: Site,
    master: subprocess.Popen[bytes],
    worker: subprocess.Popen[bytes],
) -> tuple[Run, float, float, float]:
    """Run a job; return it, seconds from durable to request, and the CPU of the
    command and of the crawl process."""
    seen = site.seen()
    before = cpu_s(master.pid) + cpu_s(worker.pid) + children_cpu_s(worker.pid)
    crawls = children_cpu_s(worker.pid)
    words = ("-a", f"site={site.address}", "-a", "count=1")
    submit = fleet.begin("submit", "pages", "--project", str(PROJECT), *words).finish()
    async with fleet.client() as client:
        shown = await client.wait(submit.output.strip())
        await until_idle(client)
    assert shown.job is not None
    assert shown.job.state == "succeeded"
    requested = site.first_after(seen)
    after = cpu_s(master.pid) + cpu_s(worker.pid) + children_cpu_s(worker.pid)
    run = Run(
        to_request_s=requested - submit.begin,
        cpu_s=after - before + submit.cpu_s,
    )
    crawl_s = children_cpu_s(worker.pid) - crawls
    return run, requested - submit.said, submit.cpu_s, crawl_s


def plain(site: Site, folder: Path) -> Run:
    """Run ``scrapy crawl``."""
    seen = site.seen()
    words = ("pages", "-a", f"site={site.address}", "-a", "count=1")
    done = plain_scrapy(*words, folder=folder).finish()
    requested = site.first_after(seen)
    return Run(to_request_s=requested - done.begin, cpu_s=done.cpu_s)


async def measure(rounds: int) -> None:
    """Take turns and print."""
    mine: list[tuple[Run, float, float, float]] = []
    theirs: list[Run] = []
    with tempfile.TemporaryDirectory() as name, running_fleet() as fleet:
        folder = Path(name)
        with running_site(folder / "site.txt") as address:
            site = Site(address, folder / "site.txt")
            master, _ = await fleet.start_master()
            worker = await fleet.start_worker("w", 1)
            # The first of each fills the caches of the disk.
            for _ in range(rounds + 1):
                mine.append(await ours(fleet, site, master, worker))
                theirs.append(plain(site, folder))
    del mine[0], theirs[0]
    table(
        ["from", "to the first request at the site"],
        [
            ["start of `submit`", spread([m[0].to_request_s for m in mine], "s", 2)],
            ["the job's id printed (durable)", spread([m[1] for m in mine], "s", 2)],
            [
                "start of `scrapy crawl`",
                spread([t.to_request_s for t in theirs], "s", 2),
            ],
        ],
    )
    table(
        ["CPU of a one-page job", "seconds"],
        [
            ["all processes", spread([m[0].cpu_s for m in mine], "s", 2)],
            ["of these `submit`", spread([m[2] for m in mine], "s", 2)],
            ["of these the crawl process", spread([m[3] for m in mine], "s", 2)],
            ["`scrapy crawl`", spread([t.cpu_s for t in theirs], "s", 2)],
        ],
    )
    say(f"n = {rounds} each, taking turns; median (min-max)")
    say()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    header("latency", sys.argv[1:])
    trio.run(measure, rounds)


if __name__ == "__main__":
    main()
