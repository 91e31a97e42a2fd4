"""Are pages that wait past their download as fast as in plain Scrapy?

Slow pipelines, pipelines that gather the items of many pages, callbacks that await
other pages, a chain of pages: each is crawled by ``scrapy runspider`` and by ``dscrapy
crawl`` with one process, by turns. Compared are the items, which have to be equal, and
the time of the spider (``elapsed_time_seconds``), without the starts of processes.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

from benchmarks.report import header, say, spread, table
from tests.e2e.commands import environment
from tests.e2e.small_site import small_site

PROJECT = Path(__file__).parent.parent / "tests" / "e2e" / "project"
SPIDER = "waiting_pages.py"
SLOW = '{"waiting_pages.Slow": 300}'
GATHER = '{"waiting_pages.Gather": 300}'
# So much more time than plain Scrapy's is no failure: a crawl begins and ends with some
# messages, however short it is.
RATIO_MAX = 1.3
MORE_S = 0.1
# A run that takes longer hangs.
LIMIT_S = 300


@attrs.frozen
class Case:
    """A shape of the spider with ``n``, and settings."""

    name: str
    shape: str
    n: int
    settings: dict[str, str]


def gathering(count: int, n: int, **settings: str) -> Case:
    """Return a hub whose items are gathered; settings are those of the pipeline."""
    name = " ".join([f"{n + 1} pages, gathers {count}", *settings.values()])
    all_settings = {"ITEM_PIPELINES": GATHER, "GATHER": str(count), **settings}
    return Case(name, "hub", n, all_settings)


CASES = (
    gathering(16, 47),
    gathering(40, 79),
    gathering(200, 399, GATHER_IDLE_S="1"),
    gathering(150, 399, GATHER_IDLE_S="1"),
    gathering(16, 47, DOWNLOAD_DELAY="0.05", RANDOMIZE_DOWNLOAD_DELAY="0"),
    Case(
        "40 pages, 4 s in a pipeline",
        "hub",
        39,
        {"ITEM_PIPELINES": SLOW, "SLOW_S": "4"},
    ),
    Case(
        "a chain of 13, 1 s in a pipeline",
        "chain",
        12,
        {"ITEM_PIPELINES": SLOW, "SLOW_S": "1"},
    ),
    Case("20 callbacks await a page of their own", "own", 20, {}),
    Case("20 callbacks await a page asked for later", "after", 20, {}),
)


def run(words: list[str], home: Path, output: Path) -> tuple[list[str], float]:
    """Run a crawl; return its items, sorted, and the spider's time in seconds."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", *words, "-O", str(output)],
        cwd=PROJECT,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    found = re.findall(r"'elapsed_time_seconds': ([\d.]+)", done.stderr)
    lines = output.read_text().splitlines()
    return sorted(json.loads(line)["page"] for line in lines), float(found[-1])


def measure(rounds: int) -> int:
    """Take turns and print; return how many cases were wrong."""
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as name, small_site() as site:
        folder = Path(name)
        for case in CASES:
            options = ["-a", f"site={site.address}", "-a", f"shape={case.shape}"]
            options += ["-a", f"n={case.n}"]
            for key, value in case.settings.items():
                options += ["-s", f"{key}={value}"]
            # In a process of its own these would collide with whatever else runs here.
            alone = ["-s", "TELNETCONSOLE_ENABLED=0", "-s", "REMOTE_CONTROL_ENABLED=0"]
            plain = ["scrapy", "runspider", SPIDER, *options, *alone]
            ours = ["dscrapy", "crawl", SPIDER, "--fresh", *options]
            theirs_s, mine_s = [], []
            for _ in range(rounds):
                theirs, seconds = run(plain, folder, folder / "plain.jsonl")
                theirs_s.append(seconds)
                mine, seconds = run(ours, folder, folder / "ours.jsonl")
                mine_s.append(seconds)
                wrong += mine != theirs
            mine_middle_s, theirs_middle_s = map(statistics.median, (mine_s, theirs_s))
            ratio = mine_middle_s / theirs_middle_s
            wrong += mine_middle_s > RATIO_MAX * theirs_middle_s + MORE_S
            rows.append(
                [
                    case.name,
                    str(len(theirs)),
                    spread(theirs_s, "s", 2),
                    spread(mine_s, "s", 2),
                    f"{ratio:.2f} x",
                ]
            )
    table(["pages", "items", "`scrapy`", "`dscrapy`", "ratio of the medians"], rows)
    say(f"n = {rounds}; median (min-max); {wrong} wrong")
    say()
    return wrong


def main() -> int:
    """Parse, measure, print; the exit code is 1 if a case was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    header("waiting_pages", sys.argv[1:])
    return 1 if measure(options.rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
