"""Items that are large, deep or bad: each one's trouble stays its own."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dscrapy.crawl.codec.items import ITEM_BYTES_SETTING
from dscrapy.crawl.outgoing.commit_parts import PIECE_BYTES_MAX
from tests.e2e.cluster import running_cluster
from tests.e2e.commands import run
from tests.e2e.crawl_harness import CrawlProcess, plain_scrapy, running_site

FOLDER = Path(__file__).parent / "project"
SPIDER = "weights.py"
LARGE = 40_000_000
Start = Callable[..., CrawlProcess]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with running_site() as address:
        yield address


def plain(site: str, folder: Path, **arguments: str) -> Counter[bytes]:
    """Return the lines of plain Scrapy."""
    output = folder / "plain.jsonl"
    plain_scrapy(SPIDER, {"site": site, **arguments}, output, FOLDER)
    return Counter(output.read_bytes().splitlines())


@pytest.mark.parametrize("processes", [1, 3])
def test_a_large_item_is_there_and_so_is_all_else(
    site: str, tmp_path: Path, processes: int
) -> None:
    """Five times as large as the longest message; the command succeeds."""
    output = tmp_path / "ours.jsonl"
    words = ["crawl", SPIDER, "-p", str(processes), "-O", str(output)]
    words += ["-a", f"site={site}", "-a", f"size={LARGE}"]
    done = run(*words, cwd=FOLDER, home=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = plain(site, tmp_path, size=str(LARGE))
    # Compared by parts, or a difference of 40 MB would be shown.
    found = Counter(output.read_bytes().splitlines())
    assert sum(found.values()) == sum(expected.values()) == 8
    assert not found - expected


@pytest.mark.long
def test_a_kill_among_the_pieces_costs_nothing(site: str, tmp_path: Path) -> None:
    """The crawl process dies when a part of the item is stored: the next one gives the
    item once, and nothing is left of the half one."""
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        worker = cluster.start_worker("w")
        words = ("--project", str(FOLDER), "-a", f"site={site}", "-a", f"size={LARGE}")
        job = cluster.ok("submit", SPIDER, *words).strip()
        spool = cluster.state / "spool"

        def is_begun() -> bool:
            return any(path.stat().st_size for path in spool.glob("*items.jsonl"))

        cluster.wait_until(is_begun)
        for pid in cluster.crawl_pids(worker):
            os.kill(pid, signal.SIGKILL)
        cluster.ok("wait", job)
        data = cluster.ok("items", job).encode()
    expected = plain(site, tmp_path, size=str(LARGE))
    found = Counter(data.splitlines())
    assert sum(found.values()) == sum(expected.values()) == 8
    assert not found - expected


def test_an_item_of_start_goes_in_pieces_too(site: str, start: Start) -> None:
    """Its unit has no number until it is whole."""
    args = {"site": site, "first": str(3 * PIECE_BYTES_MAX)}
    process = start(SPIDER, FOLDER, args=args)
    assert process.finish() == 0
    sizes = sorted(map(len, process.lines))
    assert sizes[-1] == 3 * PIECE_BYTES_MAX
    assert len(sizes) == 9


@pytest.mark.parametrize("over", [0, 1])
def test_an_item_over_the_limit_is_dropped_alone(
    site: str, start: Start, over: int
) -> None:
    """One of just the limit is kept; the error names what one has to know."""
    limit = 2 * PIECE_BYTES_MAX
    process = start(
        SPIDER,
        FOLDER,
        args={"site": site, "size": str(limit + over)},
        settings={ITEM_BYTES_SETTING: str(limit)},
    )
    assert process.finish() == 0
    assert len([line for line in process.lines if len(line) < 100]) == 7
    assert len(process.lines) == 8 - over
    sums = process.stats["sum"]
    assert sums["item_scraped_count"] == 8
    assert sums.get("dscrapy/items_too_large", 0) == over
    assert sums.get("log_count/ERROR", 0) == over
    if over:
        (error,) = [line for line in process.log.splitlines() if " ERROR: " in line]
        for word in ("dict", str(limit + 1), ITEM_BYTES_SETTING, str(limit)):
            assert word in error


def test_a_limit_that_is_none_is_one_clear_line(site: str, start: Start) -> None:
    """The job says so, and runs nothing."""
    process = start(
        SPIDER, FOLDER, args={"site": site}, settings={ITEM_BYTES_SETTING: "much"}
    )
    process.finish()
    assert process.outcome is not None
    assert process.outcome.text == (
        f"{ITEM_BYTES_SETTING} must be a number of bytes over 0, not 'much'"
    )
    assert process.lines == []


@pytest.mark.parametrize("ending", ["json", "csv", "xml"])
def test_a_deep_item_is_in_every_format(site: str, tmp_path: Path, ending: str) -> None:
    """From a real crawl, by way of master and export, as in plain Scrapy."""
    output = tmp_path / f"ours.{ending}"
    words = ["crawl", SPIDER, "-O", str(output), "-a", f"site={site}"]
    arguments = {"count": "3", "size": "50", "depth": "300"}
    for name, value in arguments.items():
        words += ["-a", f"{name}={value}"]
    done = run(*words, cwd=FOLDER, home=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = tmp_path / f"plain.{ending}"
    plain_scrapy(SPIDER, {"site": site, **arguments}, theirs, FOLDER)
    if ending == "json":
        key: Any = json.dumps
        found, expected = (json.loads(path.read_bytes()) for path in (output, theirs))
        assert len(expected) == 5
        assert sorted(map(key, found)) == sorted(map(key, expected))
    else:
        # Pages come in any order, and with them the lines of the file.
        found, expected = (
            sorted(path.read_bytes().splitlines()) for path in (output, theirs)
        )
        assert found == expected
        assert len(expected) > 5
