"""What CPU does a page cost, all processes of dscrapy together, against plain Scrapy?

A light page (about 2.5 kB, two selectors, an item, two links) and a heavy one (about
40 kB, 200 links that a LinkExtractor reads, an item). The site runs in a process of
its own that is not counted. What a run costs apart from its pages (the start of a
process) is taken out: each kind is run short and long by turns, and a page costs the
difference over the pages more. dscrapy's processes are the master, the worker and its
crawl processes; the submitting command is not one of them. An early part is a record
of its own, so it is counted which part of the pages sent one, and groups of records
(each is one fsync) a page.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import trio

from benchmarks.fleet import (
    Fleet,
    begin,
    children_cpu_s,
    cpu_s,
    running_fleet,
    until_idle,
)
from benchmarks.report import header, say, spread, table
from dscrapy.cli.serve import new_id
from dscrapy.journal.record import RECORD_MAGIC
from dscrapy.model import JobSpec, Submission
from tests.equivalence.runs import PROJECT, Site, running_site

KINDS = ("light", "heavy")
# Pages of the short run; the long one is given.
SHORT = 50
# Scrapy's default of 16; the project's own settings are smaller.
SETTINGS = {"CONCURRENT_REQUESTS": "16", "CONCURRENT_REQUESTS_PER_DOMAIN": "16"}
# In a process of its own these would collide with whatever else runs here.
ALONE = {"TELNETCONSOLE_ENABLED": "0", "REMOTE_CONTROL_ENABLED": "0"}


@attrs.frozen(kw_only=True)
class Cost:
    """CPU seconds of one run; ``crawl_s`` of them in the crawl process. Of dscrapy also
    how many early parts there were, and groups of records in the journal."""

    all_s: float
    crawl_s: float
    early: int = 0
    groups: int = 0


@attrs.define
class Samples:
    """Microseconds of CPU a page, of one side."""

    all_us: list[float] = attrs.Factory(list)
    crawl_us: list[float] = attrs.Factory(list)
    early: list[float] = attrs.Factory(list)
    groups: list[float] = attrs.Factory(list)

    def add(self, short: Cost, long: Cost, pages: int) -> None:
        """Take a short and a long run."""
        self.all_us.append((long.all_s - short.all_s) / pages * 1e6)
        self.crawl_us.append((long.crawl_s - short.crawl_s) / pages * 1e6)
        self.early.append(100 * (long.early - short.early) / pages)
        self.groups.append((long.groups - short.groups) / pages)


@attrs.define
class Bench:
    """The site, the master and the worker."""

    fleet: Fleet
    site: Site
    folder: Path
    master: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]

    def _arguments(self, kind: str, pages: int) -> dict[str, str]:
        return {**self.site.arguments({}), "kind": kind, "count": str(pages)}

    async def ours(self, kind: str, pages: int) -> Cost:
        """Run a job of one process; check that every page gave its item."""
        before = self._cpu()
        spec = JobSpec(
            project_dir=str(PROJECT),
            spider="weighty",
            args=self._arguments(kind, pages),
            settings=SETTINGS,
        )
        async with self.fleet.client() as client:
            job = new_id()
            await client.submit([Submission(id=job, spec=spec)])
            shown = await client.wait(job)
            await until_idle(client)
        assert shown.job is not None
        assert shown.job.state == "succeeded", shown
        assert shown.job.items == pages, shown
        after = self._cpu()
        return Cost(
            all_s=after.all_s - before.all_s,
            crawl_s=after.crawl_s - before.crawl_s,
            early=after.early - before.early,
            groups=after.groups - before.groups,
        )

    def _cpu(self) -> Cost:
        crawl_s = children_cpu_s(self.worker.pid)
        own_s = cpu_s(self.master.pid) + cpu_s(self.worker.pid)
        # These runs are far too short for a snapshot, which would begin a new file.
        journal = b"".join(
            path.read_bytes() for path in self.fleet.state.glob("journal-*.log")
        )
        return Cost(
            all_s=own_s + crawl_s,
            crawl_s=crawl_s,
            early=journal.count(b'"type":"part_taken"'),
            groups=journal.count(RECORD_MAGIC),
        )

    def plain(self, kind: str, pages: int) -> Cost:
        """Run ``scrapy crawl``; check that every page gave its item."""
        output = self.folder / "plain.jsonl"
        words = [sys.executable, "-P", "-m", "scrapy", "crawl", "weighty"]
        for key, value in self._arguments(kind, pages).items():
            words += ["-a", f"{key}={value}"]
        for key, value in {**SETTINGS, **ALONE}.items():
            words += ["-s", f"{key}={value}"]
        done = begin([*words, "-O", str(output)], PROJECT, self.fleet.log).finish()
        with output.open() as lines:
            assert sum(1 for _ in lines) == pages
        return Cost(all_s=done.cpu_s, crawl_s=done.cpu_s)


async def measure(rounds: int, pages: int) -> None:
    """Take turns and print."""
    mine = {kind: Samples() for kind in KINDS}
    theirs = {kind: Samples() for kind in KINDS}
    with (
        tempfile.TemporaryDirectory() as name,
        running_site(Path(name) / "site.jsonl") as site,
        running_fleet() as fleet,
    ):
        master, _ = await fleet.start_master()
        worker = await fleet.start_worker("w", 1)
        bench = Bench(fleet, site, Path(name), master, worker)
        for _ in range(rounds):
            for kind in KINDS:
                more = pages - SHORT
                short, long = [await bench.ours(kind, n) for n in (SHORT, pages)]
                mine[kind].add(short, long, more)
                short, long = [bench.plain(kind, n) for n in (SHORT, pages)]
                theirs[kind].add(short, long, more)
    for kind in KINDS:
        pairs = zip(mine[kind].all_us, theirs[kind].all_us, strict=True)
        ratio = [ours / plain for ours, plain in pairs]
        table(
            [f"{kind} page", "CPU a page"],
            [
                ["dscrapy, all processes", spread(mine[kind].all_us, "us", 0)],
                ["of these the crawl process", spread(mine[kind].crawl_us, "us", 0)],
                ["`scrapy crawl`", spread(theirs[kind].all_us, "us", 0)],
                ["ratio, of each pair", spread(ratio, "x", 2)],
                ["ratio of the medians", f"{_ratio(mine[kind], theirs[kind]):.2f} x"],
                ["early parts, of the pages", spread(mine[kind].early, "%", 1)],
                ["fsyncs a page", spread(mine[kind].groups, "", 2)],
            ],
        )
    say(f"n = {rounds} pairs, {SHORT} and {pages} pages; median (min-max)")
    say()


def _ratio(mine: Samples, theirs: Samples) -> float:
    return statistics.median(mine.all_us) / statistics.median(theirs.all_us)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=1050)
    options = parser.parse_args()
    if options.pages <= SHORT:
        parser.error(f"--pages must be more than {SHORT}")
    header("cpu_per_page", sys.argv[1:])
    trio.run(measure, options.rounds, options.pages)


if __name__ == "__main__":
    main()
