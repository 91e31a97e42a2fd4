"""What does one large item cost, and does that grow with its size only?

A job is one page that gives one item, by the command ``crawl -p 1`` (master, worker and
crawl process), written in turn to each kind of file: ``-O`` by the command, ``FEEDS``
by an export process. CPU is that of all its processes; peaks of memory are those of the
crawl process, beside plain Scrapy's, and of the command with master and worker in it.
"""

import argparse
import contextlib
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fleet import environment
from benchmarks.report import header, say, table

SPIDER = """
import resource

from scrapy import Spider

class LargeSpider(Spider):
    name = "large"
    start_urls = ["data:,"]

    def parse(self, response):
        yield {"text": "y" * int(self.size)}

    def closed(self, reason):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.logger.info("peak of %d KiB", peak)
"""
MIB = 1024 * 1024
# Small, and then the two whose ratio is asked for.
SIZES = (0, 16, 64)
KINDS = ("jsonl", "json", "csv", "FEEDS")
_POLL_S = 0.05


class Costs:
    """What one job took: CPU seconds, and peaks in MiB."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        """Run a command to its end."""
        log = folder / "log.txt"
        self.command = 0.0
        with log.open("wb") as file:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
            before = _cpu_s()
            while process.poll() is None:
                self._look(process.pid)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        text = log.read_text(errors="replace")
        if process.returncode:
            code = process.returncode
            raise SystemExit(f"{words!r} exits with {code}\n{text[-2000:]}")
        self.cpu_s = _cpu_s() - before
        self.crawl = max(
            (int(found) / 1024 for found in re.findall(r"peak of (\d+) KiB", text)),
            default=0.0,
        )

    def _look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found is not None:
            self.command = max(self.command, int(found[1]) / 1024)


def _cpu_s() -> float:
    """Return the CPU of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(folder: Path, kind: str, size: int, *, plain: bool = False) -> Costs:
    """Run one job of an item of so many MiB."""
    spider = folder / "spider.py"
    spider.write_text(SPIDER)
    output = folder / f"items.{kind}"
    words = [sys.executable, "-P", "-m"]
    arguments = ["-a", f"size={size * MIB}", "-L", "INFO"]
    if kind == "FEEDS":
        feeds = {str(folder / "feed.json"): {"format": "json", "overwrite": True}}
        arguments += ["-s", f"FEEDS={json.dumps(feeds)}"]
    else:
        arguments += ["-O", str(output)]
    if plain:
        return Costs([*words, "scrapy", "runspider", str(spider), *arguments], folder)
    state = ["-p", "1", "--fresh", "--state", str(folder / "state")]
    return Costs([*words, "dscrapy", "crawl", str(spider), *state, *arguments], folder)


def measure(rounds: int) -> None:
    """Take turns and print."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="dscrapy-bench-") as name:
        for kind in KINDS:
            every = {
                size: [run(Path(name), kind, size) for _ in range(rounds)]
                for size in SIZES
            }
            peak = run(Path(name), kind, SIZES[-1], plain=True).crawl
            none, middle, large = (
                statistics.median(one.cpu_s for one in every[size]) for size in SIZES
            )
            last = every[SIZES[-1]]
            rows.append(
                [
                    kind,
                    *(f"{cpu_s:.2f} s" for cpu_s in (none, middle, large)),
                    f"{large / middle:.1f} x",
                    f"{(large - none) / (middle - none):.1f} x",
                    f"{max(one.crawl for one in last):.0f} MiB",
                    f"{peak:.0f} MiB",
                    f"{max(one.command for one in last):.0f} MiB",
                ]
            )
    titles = ["written to", *(f"{size} MiB" for size in SIZES)]
    titles += ["64 by 16", "without a job's own"]
    titles += ["peak: crawl process", "plain Scrapy", "command"]
    table(titles, rows)
    say(f"n = {rounds}; medians of CPU, largest of memory")
    say()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    header("large_items", sys.argv[1:])
    measure(options.rounds)


if __name__ == "__main__":
    main()
