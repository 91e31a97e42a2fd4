"""What a job does beside its items is what plain Scrapy does: both are run."""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.e2e.commands import run
from tests.e2e.crawl_harness import plain_scrapy
from tests.e2e.small_site import SmallSite, small_site

FOLDER = Path(__file__).parent / "project"
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@pytest.fixture
def site() -> Iterator[SmallSite]:
    with small_site() as site:
        yield site


class Result:
    """A run's items, and the stats that its log dumps at the end."""

    def __init__(self, output: Path, log: str) -> None:
        self.items = [json.loads(line) for line in output.read_text().splitlines()]
        self.log = log
        dumped = log.rpartition("Dumping Scrapy stats:\n")[2].partition("}\n")[0]
        lines = [line for line in dumped.splitlines() if "datetime" not in line]
        # The first and the last key may be times, with the braces.
        body = "\n".join(lines).strip().removeprefix("{").rstrip(",")
        self.stats: dict[str, Any] = ast.literal_eval("{" + body + "}")


def plain(
    spider: str,
    folder: Path,
    arguments: dict[str, str],
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Result:
    """Run plain Scrapy."""
    output = folder / "plain.jsonl"
    log = plain_scrapy(spider, arguments, output, FOLDER, settings=settings)
    return Result(output, log)


def ours(
    spider: str,
    folder: Path,
    arguments: dict[str, str],
    settings: Mapping[str, str] = NO_SETTINGS,
    *,
    processes: int = 1,
) -> Result:
    """Run ``dscrapy crawl``; the exit code is of no matter here."""
    output = folder / f"ours-{processes}.jsonl"
    words = ["crawl", spider, "-p", str(processes), "--fresh", "-O", str(output)]
    for name, value in settings.items():
        words += ["-s", f"{name}={value}"]
    for name, value in arguments.items():
        words += ["-a", f"{name}={value}"]
    done = run(*words, cwd=FOLDER, home=folder)
    return Result(output, done.stderr)


# ---- start() ------------------------------------------------------------------


@pytest.mark.parametrize(
    "concurrency",
    [
        pytest.param(2, marks=pytest.mark.long),
        pytest.param(4, marks=pytest.mark.long),
        16,
    ],
)
def test_start_asks_when_something_could_be_started(
    tmp_path: Path, concurrency: int
) -> None:
    """A start() that ends with what a callback sees asks for as many pages as in plain
    Scrapy, and at most one more for each that can be under way."""
    settings = {"CONCURRENT_REQUESTS": str(concurrency)}
    arguments = {"how": "pages"}

    def asked(result: Result) -> int:
        (found,) = [item["asked"] for item in result.items if "asked" in item]
        return int(found)

    theirs = asked(plain("begins.py", tmp_path, arguments, settings))
    for processes in (1, 3):
        mine = ours("begins.py", tmp_path, arguments, settings, processes=processes)
        assert asked(mine) <= theirs + concurrency, mine.log


@pytest.mark.parametrize(
    ("how", "concurrency", "reason"),
    [
        pytest.param("looks", "1", "start_error", marks=pytest.mark.long),
        ("looks", "4", "finished"),
        ("raises", "4", "start_error"),
    ],
)
def test_a_start_that_looks_ends_as_in_plain_scrapy(
    site: SmallSite,
    tmp_path: Path,
    how: str,
    concurrency: str,
    reason: str,
) -> None:
    """With one request at a time the engine holds back from the first on and takes all
    of start() before that has come; with four it waits for what it has started."""
    arguments = {"how": how}
    if reason == "start_error":
        arguments["site"] = f"{site.address}/p/"
    settings = {"CONCURRENT_REQUESTS": concurrency}
    theirs = plain("begins.py", tmp_path, arguments, settings)
    assert theirs.stats["finish_reason"] == reason, theirs.log
    for processes in (1, 3):
        mine = ours("begins.py", tmp_path, arguments, settings, processes=processes)
        for key in ("finish_reason", "item_scraped_count", "spider_exceptions/count"):
            assert mine.stats.get(key) == theirs.stats.get(key), mine.log


@pytest.mark.long
def test_one_request_at_a_time_is_plain_scrapys_order(
    site: SmallSite, tmp_path: Path
) -> None:
    """The first element goes out before the others are known; then priorities count,
    of those and of what a page asks for."""
    arguments = {"how": "ordered", "site": f"{site.address}/p/"}
    settings = {"CONCURRENT_REQUESTS": "1"}
    plain("begins.py", tmp_path, arguments, settings)
    theirs, site.paths = site.paths, []
    ours("begins.py", tmp_path, arguments, settings)
    assert site.paths == theirs
    assert len(theirs) == 8 + 2
    assert theirs[0] == "/p/0?ms=3000"


# ---- CLOSESPIDER_* ------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "reason", "items"),
    [
        ("off", "finished", 30),
        ("replaced", "closespider_itemcount", 6),
        ("scrapys", "closespider_itemcount", 3),
    ],
)
def test_closespider_counts_where_the_extension_is_enabled(
    tmp_path: Path, who: str, reason: str, items: int
) -> None:
    """Switched off: all items; replaced by a class of the project's: as that says."""
    theirs = plain("closers.py", tmp_path, {"who": who})
    mine = ours("closers.py", tmp_path, {"who": who})
    for result in (theirs, mine):
        assert result.stats["finish_reason"] == reason, result.log
        # What is under way at the close is finished.
        assert items <= len(result.items) <= items + (reason != "finished"), result.log


# ---- stats --------------------------------------------------------------------

WRITTEN = ("pages/all", "pages/even", "version", "of_start", "coverage/page", "fields")


def test_stats_written_into_the_dict_count(tmp_path: Path) -> None:
    """Counted up, replaced, removed: what the dump holds is plain Scrapy's; the job
    knows its items all the same."""
    theirs = plain("stats_dict.py", tmp_path, {})
    mine = ours("stats_dict.py", tmp_path, {})
    shared = ours("stats_dict.py", tmp_path, {}, processes=3)
    expected = {"pages/all": 60, "pages/even": 30, "coverage/page": 1.0, "fields": 1}
    for result in (theirs, mine, shared):
        assert len(result.items) == 60
        held = {key: result.stats.get(key) for key in WRITTEN}
        assert held == {**expected, "version": "1", "of_start": "was here"}, result.log
        assert not result.stats.keys() & {"gone", "item_scraped_count"}, result.log
    for result in (mine, shared):
        assert "60 pages, 60 items" in result.log
