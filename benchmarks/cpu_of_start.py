"""What CPU do the URLs of ``start()`` cost, in this checkout and in another?

A spider whose ``start()`` gives one URL after another and whose pages give nothing:
URLs that need no network (``data:``), where the engine is never busy, and those of a
near site, which answers after some ms, so that it is. A job is the command ``crawl -p
1``, all its processes together (the site's are not). Both checkouts take turns;
without another one, plain Scrapy is the other side.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fleet import environment
from benchmarks.report import header, say, spread, table
from tests.e2e.crawl_harness import ROOT
from tests.e2e.small_site import small_site

SPIDER = """
from scrapy import Request, Spider

class StartSpider(Spider):
    name = "start"

    async def start(self):
        for number in range(int(self.count)):
            yield Request(f"{self.site}{number}")

    def parse(self, response):
        pass
"""
KINDS = ("data", "site")


def cpu_s(words: list[str], folder: Path, path: Path) -> float:
    """Return the CPU of a command and of all that it waited for."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**environment(), "PYTHONPATH": str(path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        text = (folder / "log.txt").read_text(errors="replace")
        raise SystemExit(f"{words!r} exits with {process.returncode}\n{text[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def run(folder: Path, checkout: Path | None, site: str, count: int) -> float:
    """Return the CPU seconds of one job, of plain Scrapy without a checkout."""
    spider = folder / "spider.py"
    spider.write_text(SPIDER)
    arguments = ["-a", f"site={site}", "-a", f"count={count}", "-L", "INFO"]
    python = [sys.executable, "-P", "-m"]
    if checkout is None:
        words = [*python, "scrapy", "runspider", str(spider), *arguments]
        return cpu_s(words, folder, ROOT)
    state = ["-p", "1", "--fresh", "--state", str(folder / "state")]
    words = [*python, "dscrapy", "crawl", str(spider), *state, *arguments]
    return cpu_s(words, folder, checkout)


@contextlib.contextmanager
def urls(kind: str) -> Iterator[str]:
    """What stands before the number of a page."""
    if kind == "data":
        yield "data:,"
        return
    with small_site() as site:
        yield f"{site.address}/p/"


def measure(kind: str, other: Path | None, rounds: int, count: int) -> None:
    """Take turns and print."""
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dscrapy-bench-") as name:
        for _ in range(rounds):
            with urls(kind) as site:
                ours.append(run(Path(name), ROOT, site, count))
                theirs.append(run(Path(name), other, site, count))
    ratio = statistics.median(ours) / statistics.median(theirs)
    table(
        [f"{count} URLs of start(), {kind}", "CPU"],
        [
            ["this checkout", spread(ours, "s", 1)],
            [str(other or "`scrapy runspider`"), spread(theirs, "s", 1)],
            ["ratio of the medians", f"{ratio:.2f} x"],
        ],
    )
    say(f"n = {rounds} pairs; median (min-max)")
    say()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, nargs="?", help="another checkout")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    header("cpu_of_start", sys.argv[1:])
    for kind in options.kinds:
        measure(kind, options.other, options.rounds, options.count)


if __name__ == "__main__":
    main()
