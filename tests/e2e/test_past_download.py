"""Pages past their download: nobody waits for them where nobody does in Scrapy."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.commands import run
from tests.e2e.crawl_harness import plain_scrapy
from tests.e2e.small_site import SmallSite, small_site

FOLDER = Path(__file__).parent / "project"
SPIDER = "waiting_pages.py"
GATHERS = {"ITEM_PIPELINES": '{"waiting_pages.Gather": 300}'}
SLOW = {"ITEM_PIPELINES": '{"waiting_pages.Slow": 300}'}


@pytest.fixture
def site() -> Iterator[SmallSite]:
    with small_site() as site:
        yield site


def pages_of(output: Path) -> list[str]:
    """Return the pages of a run's items, sorted."""
    lines = output.read_text().splitlines()
    return sorted(json.loads(line)["page"] for line in lines)


def plain(
    folder: Path, arguments: dict[str, str], settings: Mapping[str, str]
) -> list[str]:
    """Run plain Scrapy; return the pages of its items."""
    output = folder / "plain.jsonl"
    plain_scrapy(SPIDER, arguments, output, FOLDER, settings=settings)
    return pages_of(output)


def ours(
    folder: Path,
    arguments: dict[str, str],
    settings: Mapping[str, str],
    processes: int = 1,
) -> list[str]:
    """Run ``dscrapy crawl`` to its good end; return the pages of its items."""
    done, items = crawl(folder, arguments, settings, processes)
    assert done.returncode == 0, done.stderr
    return items


def crawl(
    folder: Path,
    arguments: dict[str, str],
    settings: Mapping[str, str],
    processes: int = 1,
    **variables: str,
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run ``dscrapy crawl``; return how it ended, and the pages of its items."""
    output = folder / f"ours-{processes}.jsonl"
    words = ["crawl", SPIDER, "-p", str(processes), "--fresh", "-O", str(output)]
    for name, value in settings.items():
        words += ["-s", f"{name}={value}"]
    for name, value in arguments.items():
        words += ["-a", f"{name}={value}"]
    done = run(*words, cwd=FOLDER, home=folder, **variables)
    return done, pages_of(output)


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ("hub", "100"),
        ("tree", "0"),
        pytest.param("chain", "20", marks=pytest.mark.long),
    ],
)
def test_one_request_at_a_time_goes_in_scrapy_s_order(
    site: SmallSite, tmp_path: Path, shape: str, n: str
) -> None:
    """With one process; where a page's requests come in while the next one is chosen
    already, too."""
    arguments = {"site": site.address, "shape": shape, "n": n}
    settings = {"CONCURRENT_REQUESTS": "1"}
    items = plain(tmp_path, arguments, settings)
    order, site.paths = site.paths, []
    assert len(order) > 20
    assert ours(tmp_path, arguments, settings) == items
    assert site.paths == order


@pytest.mark.parametrize("shape", ["own", "after"])
def test_a_callback_may_wait_for_another_page(
    site: SmallSite, tmp_path: Path, shape: str
) -> None:
    """One that it has asked for, and one that is asked for after its own."""
    arguments = {"site": site.address, "shape": shape}
    items = plain(tmp_path, arguments, {})
    assert len(items) == 40
    assert ours(tmp_path, arguments, {}) == items


@pytest.mark.parametrize(
    ("gather", "idle_s", "delay_s"),
    [
        ("16", "0", "0"),
        ("40", "0", "0"),
        ("30", "0.5", "0.01"),
    ],
)
def test_a_pipeline_may_gather_the_items_of_many_pages(
    site: SmallSite, tmp_path: Path, gather: str, idle_s: str, delay_s: str
) -> None:
    """More than are downloaded at a time, with a delay, too; where the last ones are
    fewer than it gathers it lets them go after a while, as it must in Scrapy."""
    arguments = {"site": site.address, "shape": "hub", "n": "79"}
    settings = {
        **GATHERS,
        "GATHER": gather,
        "GATHER_IDLE_S": idle_s,
        "DOWNLOAD_DELAY": delay_s,
    }
    items = plain(tmp_path, arguments, settings)
    assert len(items) == 80
    assert ours(tmp_path, arguments, settings) == items


@pytest.mark.parametrize("processes", [1, 3])
def test_a_slow_pipeline_holds_up_no_page(
    site: SmallSite, tmp_path: Path, processes: int
) -> None:
    """A chain of pages is crawled while the items of its first page are in the
    pipelines: all pages were asked for before the first item came out."""
    arguments = {"site": site.address, "shape": "chain", "n": "12"}
    settings = {**SLOW, "SLOW_S": "5"}
    items = ours(tmp_path, arguments, settings, processes)
    assert len(items) == 13
    # One page after another would take a minute.
    assert site.instants[-1] - site.instants[0] < 30


@pytest.mark.parametrize(
    ("shape", "n", "settings"),
    [
        ("chain", "8", {**SLOW, "SLOW_S": "1.5"}),
        pytest.param("hub", "39", {**SLOW, "SLOW_S": "3"}, marks=pytest.mark.long),
        ("hub", "39", {**GATHERS, "GATHER": "25", "GATHER_IDLE_S": "2"}),
    ],
)
def test_a_kill_while_pages_wait_changes_nothing(
    site: SmallSite,
    tmp_path: Path,
    shape: str,
    n: str,
    settings: dict[str, str],
) -> None:
    """What the pages have asked for is not crawled twice, and each item is there once:
    the site is asked again for pages that were not committed, and for no others."""
    arguments = {"site": site.address, "shape": shape, "n": n}
    items = plain(tmp_path, arguments, settings)
    order, site.paths = site.paths, []
    killed = {"killed_at": "2", "marker": str(tmp_path / "killed")}
    assert ours(tmp_path, {**arguments, **killed}, settings) == items
    assert (tmp_path / "killed").exists()
    again = Counter(site.paths) - Counter(order)
    assert again
    assert max(again.values()) == 1


@pytest.mark.long
def test_suspects_that_are_gathered_get_companions(
    site: SmallSite, tmp_path: Path
) -> None:
    """A page that crashes its process is found, though other suspects wait in a
    pipeline for more items than there are suspects."""
    arguments = {"site": site.address, "shape": "hub", "n": "47"}
    settings = {**GATHERS, "GATHER": "30", "GATHER_IDLE_S": "4"}
    items = plain(tmp_path, arguments, settings)
    done, found = crawl(
        tmp_path,
        {**arguments, "crashes_at": "20"},
        settings,
        DSCRAPY_MASTER_SUSPECT_PATIENCE_S="1",
    )
    assert done.returncode == 1
    assert "1 request is poisoned" in done.stderr
    assert sorted([*found, "20"]) == items
