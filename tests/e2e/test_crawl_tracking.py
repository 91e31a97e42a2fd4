"""What each page gave is committed with it, however its callback gives it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crawl_harness import WAIT_S, CrawlProcess, pump
from tests.e2e.naive_master import NaiveMaster, Page
from tests.e2e.small_site import SmallSite, small_site

FOLDER = Path(__file__).parent / "project"
Start = Callable[..., CrawlProcess]

# Kind of page -> for each of its leases: how its downloads ended, items without their
# kind, and of how many children, counted with multiplicity.
LEASES: dict[str, list[tuple[str, list[dict[str, Any]], int]]] = {
    "generator": [("200", [{"n": 1}, {"n": 2}], 3)],
    "asyncgen": [("200", [{"n": 1}, {"n": 2}], 1)],
    "coroutine": [("200", [{"n": 1}], 1)],
    "listed": [("200", [{"n": 1}], 1)],
    "nothing": [("200", [], 0)],
    "midway": [("200", [{"n": 1}], 1)],
    "atonce": [("200", [], 0)],
    "inline": [("200 302", [{"urls": ["inline", "inlined"]}], 1)],
    "again": [("200", [{"status": 200}], 1)],
    "pushes": [("200", [{"n": 1}], 1)],
    "background": [("200", [{"n": 1}], 0)],
    "pipeline": [("200", [{"slow": 0.3}], 0)],
    # Its lambda ran inside of it, once: the second was a duplicate.
    "local": [("200", [{"n": 1}, {"local": "lambda"}], 1)],
    "multiple": [("200", [], 3)],
    "missing": [("404", [{"error": "HttpError"}], 1)],
    "failing": [("503", [], 1), ("503", [], 0)],
    "refused": [
        ("DownloadConnectionRefusedError", [], 1),
        ("DownloadConnectionRefusedError", [{"error": "?"}], 0),
    ],
    "redirect": [("302", [], 1), ("200", [{"status": 200}], 0)],
    # Dropped before it came to the scheduler.
    "offsite": [("302", [], 0)],
}
ITEMS = sum(len(items) for group in LEASES.values() for _, items, _ in group)


@pytest.fixture
def site() -> Iterator[SmallSite]:
    with small_site() as site:
        yield site


def kind_of(page: Page) -> str:
    """Return the kind of page, or ``leaf``."""
    kind = page.request.get("cb_kwargs", {}).get("kind", "leaf")
    assert isinstance(kind, str)
    return kind


def shape_of(lease: tuple[str, list[Any], int]) -> str:
    """Return all of a lease but what is in its items."""
    results, items, children = lease
    return f"{results} {len(items)} {children}"


def check_leases(master: NaiveMaster, copies: int = 1) -> None:
    """Check that every lease holds exactly what its page gave."""
    found: dict[str, list[Any]] = {kind: [] for kind in LEASES}
    for page in master.pages():
        kind = kind_of(page)
        if kind == "leaf":
            assert (page.results, page.items, page.children) == (["200"], [], [])
            continue
        items = [
            {key: value for key, value in item.items() if key != "kind"}
            for item in page.items
        ]
        assert all(item["kind"] == kind for item in page.items)
        found[kind].append((" ".join(page.results), items, len(page.children)))
    for kind, leases in LEASES.items():
        # Its error says which port it was.
        key = str if kind != "refused" else shape_of
        wanted = sorted(map(key, leases * copies))
        assert sorted(map(key, found[kind])) == wanted, (kind, found[kind])


def test_every_lease_is_committed_with_what_its_page_gave(
    site: SmallSite, start: Start
) -> None:
    """Callbacks of every form, errbacks, hops, tasks, pipelines and local requests."""
    process = start("tracked.py", FOLDER, args={"site": site.address})
    assert process.finish() == 0
    assert process.outcome.finish_reason == "finished"
    master = process.master
    check_leases(master)
    # What came after its page was committed is a unit of its own, with its request.
    late = master.of_kind("late")
    assert sum(len(one.children.bodies) for one in late) == 1
    assert len(master.of_kind("start")) == len(LEASES)
    assert [one.kind for one in master.commits][-1] == "closed"
    sums = process.stats["sum"]
    assert sums["item_scraped_count"] == len(master.lines) == ITEMS
    assert sums["item_dropped_count"] == 1
    assert sums["later"] == 1
    assert sums["scheduler/unserializable"] == 2
    assert sums["scheduler/enqueued"] == sums["scheduler/dequeued"] == 1
    assert sums["dupefilter/filtered"] == 1
    assert sums["retry/count"] == 2
    assert process.log.count("cannot leave this process") == 1
    assert "object at 0x" not in master.lines


def test_two_processes_share_a_crawl_whoever_is_killed(
    site: SmallSite, start: Start
) -> None:
    """Each page's outcome is committed once, with a leader killed in the middle."""
    master = NaiveMaster()
    args = {"site": site.address, "copies": "6"}
    first = start("tracked.py", FOLDER, args=args, master=master)
    second = start("tracked.py", FOLDER, args=args, master=master)
    both = [first, second]
    assert pump(both, lambda: len(master.pages()) > 60)
    assert master.leader is not None
    victim, other = both if master.leader is first.peer else both[::-1]
    assert victim.peer.leases
    victim.kill()
    assert pump([other], lambda: other.peer.outcome is not None), other.log
    assert other.process.wait(WAIT_S) == 0
    check_leases(master, copies=6)
    assert len(master.of_kind("start")) == 6 * len(LEASES)
    # A killed page is done again, and what is committed of it is counted once.
    assert master.stats["sum"]["item_scraped_count"] == len(master.lines)
    assert len(master.lines) == 6 * ITEMS
    fields = [json.loads(line)["kind"] for line in master.lines]
    assert Counter(fields)["generator"] == 12
