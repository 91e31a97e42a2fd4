"""Every spider: plain Scrapy, dscrapy with one process, dscrapy with three.

The items, the requests at the site and the stable stats are the same. What these are
stands in the table of cases, counted by hand, so that two empty runs are not equal.
Three processes run some of the spiders in every test run and all of them in ``make
equivalence``.
"""

from collections import Counter

import pytest

from tests.equivalence.cases import (
    BURST,
    BURST_ALLOWED,
    CASES,
    CLOSING_ITEMS_MAX,
    CLOSINGS,
    ROBOTS_BURST,
    UNDER_WAY_MAX,
    Case,
    Closing,
    stable,
)
from tests.equivalence.conftest import TOGETHER, Runs, runs_shared
from tests.equivalence.runs import Run

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_shared = pytest.mark.parametrize(
    "case", [one for one in CASES if runs_shared(one)], ids=lambda case: case.name
)


def differences(ours: Counter[object], theirs: Counter[object]) -> str:
    """Return what one has and the other has not, for people."""
    return f"missing {dict(theirs - ours)}\nadded {dict(ours - theirs)}"[:4000]


def assert_same(run: Run, plain: Run, apart: tuple[str, ...] = ()) -> None:
    """The items, requests and stable stats of two runs are the same."""
    items = Counter[object](run.items), Counter[object](plain.items)
    assert items[0] == items[1], f"{differences(*items)}\n{run.text}"
    requests = Counter[object](run.requests), Counter[object](plain.requests)
    assert requests[0] == requests[1], f"{differences(*requests)}\n{run.text}"
    assert stable(run.stats, apart) == stable(plain.stats, apart), run.text


@each_case
def test_plain_scrapy_gives_what_the_table_says(case: Case, plain: Runs) -> None:
    """The table's counts, made by hand, are those of plain Scrapy."""
    run = plain[case.name]
    assert run.items.total() == case.items > 0, run.text
    assert run.requests.total() == case.requests > 0, run.text
    assert run.stats["item_scraped_count"] == case.items
    assert run.stats["finish_reason"] == "finished"
    told = {key: run.stats.get(key) for key in case.stats}
    assert told == case.stats, run.text


@each_case
def test_one_process_is_plain_scrapy(
    case: Case, plain: Runs, one_process: Runs
) -> None:
    """With one process: the same items, requests and stats, all of them."""
    run, theirs = one_process[case.name], plain[case.name]
    assert_same(run, theirs)
    if case.ordered:
        assert run.asked == theirs.asked


@each_shared
def test_three_processes_are_plain_scrapy(
    case: Case, plain: Runs, three_processes: Runs
) -> None:
    """With three processes: the same items, requests and stats, but for what each
    process fetches for itself."""
    run = three_processes[case.name]
    assert_same(run, plain[case.name], case.apart)
    if case.shared:
        assert len(run.pids) >= TOGETHER, f"nothing was shared: {run.text}"


def test_what_a_process_cannot_read_goes_to_one_that_can(
    one_process: Runs, three_processes: Runs
) -> None:
    """With three processes some requests come to one that lacks their class."""
    name = "one_sided"
    assert "dscrapy/requests_passed_on" not in one_process[name].stats
    run = three_processes[name]
    assert run.stats["dscrapy/requests_passed_on"], run.text
    assert "dscrapy/unreadable_requests" not in run.stats


def test_robots_are_obeyed_by_a_burst(
    plain: Runs, one_process: Runs, three_processes: Runs
) -> None:
    """Twelve forbidden pages at once: stock Scrapy asks for most of them (its waiters
    for robots.txt are let through), dscrapy for none."""
    wrong = plain[ROBOTS_BURST.name]
    assert wrong.items.total() == ROBOTS_BURST.items
    assert wrong.requests.total() > ROBOTS_BURST.requests, "Scrapy has mended this"
    for runs in (one_process, three_processes):
        run = runs[ROBOTS_BURST.name]
        assert run.items.total() == ROBOTS_BURST.items, run.text
        assert run.requests.total() == ROBOTS_BURST.requests, run.text
        assert run.stats["robotstxt/forbidden"] == ROBOTS_BURST.items


def test_a_host_is_asked_by_two_at_a_time(
    plain: Runs, one_process: Runs, three_processes: Runs
) -> None:
    """CONCURRENT_REQUESTS_PER_DOMAIN of 2: stock Scrapy under asyncio has more under
    way (its slot releases its whole queue), dscrapy never more and sometimes two."""
    wrong = plain[BURST.name]
    assert wrong.active_max > BURST_ALLOWED, "Scrapy has mended this"
    for runs in (one_process, three_processes):
        assert_same(runs[BURST.name], wrong)
        assert runs[BURST.name].active_max == BURST_ALLOWED
    assert wrong.items.total() == BURST.items
    assert wrong.requests.total() == BURST.requests


@pytest.mark.parametrize(
    ("closing", "kind"),
    [
        pytest.param(one, kind, id=f"{one.name}-{kind}")
        for one in CLOSINGS
        for kind in ("plain", "one_process", "three_processes")
        if kind != "three_processes" or runs_shared(one)
    ],
)
def test_a_crawl_that_is_closed_ends_as_scrapy_says(
    closing: Closing, kind: str, request: pytest.FixtureRequest
) -> None:
    """Whoever runs it: Scrapy's finish reason; no page twice; the limit is reached,
    and passed by no more than was under way."""
    runs: Runs = request.getfixturevalue(kind)
    run = runs[closing.name]
    processes = 3 if kind == "three_processes" else 1
    assert run.stats["finish_reason"] == closing.reason, run.text
    assert set(run.items.values()) <= {1}, run.text
    assert set(run.requests.values()) == {1}, run.text
    assert run.items.total() < CLOSING_ITEMS_MAX, run.text
    assert run.stats.get("item_scraped_count", 0) == run.items.total()
    if closing.limit:
        counted = run.stats[closing.counts]
        assert isinstance(counted, int)
        most = closing.limit + processes * UNDER_WAY_MAX
        assert closing.limit <= counted <= most, run.text


def test_closing_at_a_page_keeps_the_page(
    plain: Runs, one_process: Runs, three_processes: Runs
) -> None:
    """The page whose callback closes the spider has given its item."""
    for runs in (plain, one_process, three_processes):
        lines = [line for line in runs["enough"].items if 'leaf/20"' in line]
        assert len(lines) == 1, runs["enough"].text
