"""CLOSESPIDER_* over all processes of a job."""

import math

import attrs
import pytest

from dscrapy.control.state.closespider import Counters, Watch, reached
from dscrapy.model import CloseLimits


def counted(*commits: tuple[int, int, int]) -> Counters:
    """Return the counters after commits of (pages, items, errors)."""
    counters = Counters()
    for pages, items, errors in commits:
        counters.count(pages=pages, items=items, errors=errors)
    return counters


@pytest.mark.parametrize(
    ("limits", "short", "enough", "reason"),
    [
        (CloseLimits(items=3), [(1, 2, 0)], [(1, 2, 0), (1, 2, 0)], "itemcount"),
        (CloseLimits(pages=2), [(1, 0, 0)], [(1, 9, 0), (1, 9, 0)], "pagecount"),
        (CloseLimits(errors=2), [(1, 0, 1)], [(1, 0, 1), (1, 0, 1)], "errorcount"),
        (
            CloseLimits(pages_no_item=2),
            [(1, 0, 0), (0, 1, 0), (1, 0, 0)],
            [(1, 1, 0), (1, 0, 0), (1, 1, 0)],
            "pagecount_no_item",
        ),
    ],
)
def test_each_count_closes_at_its_limit(
    limits: CloseLimits,
    short: list[tuple[int, int, int]],
    enough: list[tuple[int, int, int]],
    reason: str,
) -> None:
    """At the limit or, in whole commits, beyond it; not before, and 0 is none."""
    assert reached(limits, counted(*short), 0) == ""
    assert reached(limits, counted(*enough), 0) == f"closespider_{reason}"
    assert reached(CloseLimits(), counted(*enough), 0) == ""


def test_a_page_counts_before_its_own_items() -> None:
    """As a response is seen before its items: with a limit of 1 any page closes."""
    assert reached(CloseLimits(pages_no_item=1), counted((1, 5, 0)), 0)
    alternating = counted(*[(1, 1, 0)] * 9)
    assert reached(CloseLimits(pages_no_item=2), alternating, 0) == ""
    assert alternating.pages_no_item == 0


def test_of_several_limits_the_first_reached_counts() -> None:
    """A page reaches limits of pages before those of what it gives."""
    every = CloseLimits(pages=1, pages_no_item=1, items=1, errors=1)
    reasons = []
    for name in ("pages", "pages_no_item", "items", "errors"):
        reasons.append(reached(every, counted((1, 1, 1)), 0))
        values = {
            one: getattr(every, one)
            for one in ("pages", "pages_no_item", "items", "errors")
        }
        every = CloseLimits(**{**values, name: 0})
    assert reasons == [
        "closespider_pagecount",
        "closespider_pagecount_no_item",
        "closespider_itemcount",
        "closespider_errorcount",
    ]
    assert reached(every, counted((1, 1, 1)), 0) == ""


def test_a_timeout_counts_from_the_opening() -> None:
    """It closes at its instant, however many items come."""
    limits = CloseLimits(timeout_s=10.0)
    watch = Watch()
    assert watch.next_deadline(limits) == 10.0
    assert watch.expired(limits, 50, 9.9) == ""
    assert watch.expired(limits, 99, 10.0) == "closespider_timeout"


def test_an_item_has_to_come_in_every_period() -> None:
    """Periods follow each other at a fixed pace; one without an item closes."""
    limits = CloseLimits(timeout_no_item_s=10.0)
    watch = Watch(ran_s=100.0, period_at=100.0, period_items=7)
    assert watch.next_deadline(limits) == 110.0
    assert watch.expired(limits, 7, 109.0) == ""
    assert watch.at(limits, 7, 109.0) == attrs.evolve(watch, ran_s=109.0)
    assert watch.expired(limits, 8, 112.0) == ""
    watch = watch.at(limits, 8, 112.0)
    assert watch.next_deadline(limits) == 120.0
    assert watch.expired(limits, 9, 145.0) == ""
    watch = watch.at(limits, 9, 145.0)
    assert watch.next_deadline(limits) == 150.0
    assert watch.expired(limits, 9, 150.0) == "closespider_timeout_no_item"


def test_the_nearer_deadline_is_next() -> None:
    """Without limits of time there is none."""
    watch = Watch()
    assert watch.next_deadline(CloseLimits()) == math.inf
    assert watch.expired(CloseLimits(), 0, 1e9) == ""
    both = CloseLimits(timeout_s=30.0, timeout_no_item_s=20.0)
    assert watch.next_deadline(both) == 20.0
    assert watch.expired(both, 1, 20.0) == ""
    assert watch.at(both, 1, 20.0).next_deadline(both) == 30.0
