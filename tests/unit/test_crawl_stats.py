"""Deltas of stats by the operation that wrote them."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.statscollectors import StatsCollector

from dscrapy.crawl.stats import VALUE_BYTES_MAX, Delta, merged, recording


def written(*writes: tuple[str, str, Any]) -> dict[str, dict[str, bytes]]:
    delta = Delta()
    for write in writes:
        delta.write(*write)
    return encoded(delta)


def encoded(delta: Delta) -> dict[str, dict[str, bytes]]:
    return {
        operation: {key: bytes(raw) for key, raw in group.items()}
        for operation, group in delta.encoded().items()
    }


@pytest.mark.parametrize(
    ("writes", "stats"),
    [
        ([("sum", "a", 1), ("sum", "a", 2)], {"sum": {"a": b"3"}}),
        ([("sum", "a", 0.5), ("sum", "a", 1)], {"sum": {"a": b"1.5"}}),
        ([("max", "a", 1), ("max", "a", 5), ("max", "a", 3)], {"max": {"a": b"5"}}),
        ([("min", "a", 4), ("min", "a", 2), ("min", "a", 3)], {"min": {"a": b"2"}}),
        ([("last", "a", 4), ("last", "a", "x")], {"last": {"a": b'"x"'}}),
        # What was set and then counted up is set.
        ([("last", "a", 4), ("sum", "a", 2)], {"last": {"a": b"6"}}),
        ([("sum", "a", 4), ("last", "a", 2)], {"last": {"a": b"2"}}),
        ([("sum", "a", 4), ("max", "a", 9)], {"last": {"a": b"9"}}),
        # Only numbers can be merged.
        ([("sum", "a", math.nan)], {"last": {"a": b'{"$f":"nan"}'}}),
        ([("max", "a", "x")], {"last": {"a": b'"x"'}}),
        ([("max", "a", True)], {"last": {"a": b"true"}}),
        ([("sum", "a", 1), ("sum", "a", "x")], {"last": {"a": b'"x"'}}),
        ([("last", "a", "x" * VALUE_BYTES_MAX), ("sum", "b", 1)], {"sum": {"b": b"1"}}),
    ],
)
def test_writes_of_one_key(
    writes: list[tuple[str, str, Any]], stats: dict[str, dict[str, bytes]]
) -> None:
    """The delta is what the writes come to, with how it is merged."""
    assert written(*writes) == stats


def test_a_delta_takes_another() -> None:
    """As if all had been written to it; the other is empty."""
    ours, theirs = Delta(), Delta()
    ours.write("sum", "a", 1)
    theirs.write("sum", "a", 2)
    theirs.write("max", "b", 7)
    ours.take(theirs)
    assert encoded(ours) == {"sum": {"a": b"3"}, "max": {"b": b"7"}}
    assert not theirs


def test_the_collector_writes_both_its_own_numbers_and_the_delta() -> None:
    """Readers in the process see local numbers; each write is noted once."""
    deltas = [Delta(), Delta()]
    current = [0]
    cls = recording(StatsCollector, lambda: deltas[current[0]])
    collector = cls(Crawler(Spider))
    collector.inc_value("a")
    collector.inc_value("a", 2, start=10)
    collector.inc_value("b", count=1, start=10)
    collector.max_value("c", 3)
    collector.min_value("d", 4)
    current[0] = 1
    collector.inc_value("a")
    collector.max_value("c", 2)
    collector.set_value("when", datetime(2020, 1, 1, tzinfo=UTC))
    collector.set_stats({**collector.get_stats(), "e": 1})
    assert collector.get_value("a") == 4
    assert collector.get_value("b") == 11
    assert encoded(deltas[0]) == {
        "sum": {"a": b"3", "b": b"11"},
        "max": {"c": b"3"},
        "min": {"d": b"4"},
    }
    # Replacing all stats says what each of them is now.
    assert merged(deltas[1].encoded()) == {
        "a": 4,
        "b": 11,
        "c": 3,
        "d": 4,
        "e": 1,
        "when": datetime(2020, 1, 1, tzinfo=UTC),
    }
