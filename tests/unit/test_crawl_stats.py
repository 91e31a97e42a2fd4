"""Deltas of stats by the operation that wrote them."""

import copy
import json
import math
import pickle
import pprint
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.statscollectors import MemoryStatsCollector, StatsCollector

from dscrapy.crawl.scrapy_side.stats_collector import (
    VALUE_BYTES_MAX,
    Delta,
    merged,
    note_changed,
    recording,
)


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
        # What is removed is so whatever was written, and what comes then is all.
        ([("sum", "a", 4), ("drop", "a", None)], {"drop": {"a": b"null"}}),
        ([("last", "a", 4), ("drop", "a", None)], {"drop": {"a": b"null"}}),
        ([("drop", "a", None), ("sum", "a", 2)], {"last": {"a": b"2"}}),
        ([("drop", "a", None), ("max", "a", 2)], {"last": {"a": b"2"}}),
        ([("drop", "a", None), ("last", "a", "x")], {"last": {"a": b'"x"'}}),
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
    collector.get_stats()["f"] = 1
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
        "f": 1,
        "when": datetime(2020, 1, 1, tzinfo=UTC),
    }


# ---- the dict that get_stats() gives ----------------------------------------------


class Counting(MemoryStatsCollector):
    """A project's collector, which counts its own calls."""

    def inc_value(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Count, beside the key, how often that was done."""
        super().inc_value(key, *args, **kwargs)
        self._stats["calls"] = self._stats.get("calls", 0) + 1


class Elsewhere(StatsCollector):
    """A project's collector that shows copies."""

    def get_stats(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return a copy."""
        return dict(self._stats)


def collecting(base: type[Any] = MemoryStatsCollector) -> tuple[Any, Delta]:
    delta = Delta()
    return recording(base, lambda: delta)(Crawler(Spider)), delta


def reads_adds(stats: Any) -> None:
    stats["a"] = stats.get("a", 0) + 1
    stats["a"] += 2
    if "b" not in stats:
        stats["b"] = 0
    stats["b"] += 5
    stats.setdefault("c", 0)
    stats["c"] += 0.5


def replaces(stats: Any) -> None:
    stats["a"] = 7
    stats.update({"b": 0.25}, c=3)
    stats |= {"d": "x"}


def removes(stats: Any) -> None:
    stats.update(a=1, b=2, c=3)
    stats.pop("a")
    del stats["b"]
    assert stats.pop("never", 0) == 0
    stats.popitem()


@pytest.mark.parametrize(
    ("writes", "held", "delta"),
    [
        (reads_adds, {"a": 3, "b": 5, "c": 0.5}, {"sum": {"a": 3, "b": 5, "c": 0.5}}),
        (
            replaces,
            {"a": 7, "b": 0.25, "c": 3, "d": "x"},
            {"last": {"a": 7, "b": 0.25, "c": 3, "d": "x"}},
        ),
        (removes, {}, {"drop": {"a": None, "b": None, "c": None}}),
    ],
)
def test_writes_into_the_dict_count(
    writes: Callable[[Any], None], held: dict[str, Any], delta: dict[str, Any]
) -> None:
    """A number that follows from what was read adds, other values replace."""
    collector, noted = collecting()
    writes(collector.get_stats())
    assert collector.get_stats() == held
    assert {
        operation: {key: json.loads(raw) for key, raw in group.items()}
        for operation, group in encoded(noted).items()
    } == delta


def test_the_methods_writes_count_once_each() -> None:
    """Also those of a class that has its own, and what that writes beside."""
    for base, more in ((MemoryStatsCollector, {}), (Counting, {"calls": b"2"})):
        collector, noted = collecting(base)
        collector.inc_value("a")
        collector.inc_value("a", 2)
        collector.max_value("b", 3)
        collector.min_value("c", 4)
        collector.set_value("d", 5)
        assert encoded(noted) == {
            "sum": {"a": b"3", **more},
            "max": {"b": b"3"},
            "min": {"c": b"4"},
            "last": {"d": b"5"},
        }
        # What the methods read is no read of the project's.
        collector.get_stats()["a"] = 1
        assert encoded(noted)["last"] == {"d": b"5", "a": b"1"}


def test_cleared_stats_are_dropped() -> None:
    """By the collector's method, by the dict's, and by other stats in their place."""
    for how in range(3):
        collector, noted = collecting()
        collector.inc_value("a")
        match how:
            case 0:
                collector.clear_stats()
            case 1:
                collector.get_stats().clear()
            case _:
                collector.set_stats({})
        assert encoded(noted) == {"drop": {"a": b"null"}}
        assert collector.get_stats() == {}


def test_what_is_changed_in_place_is_noted_at_the_end() -> None:
    """Once more, as it is then; numbers and texts cannot be."""
    collector, noted = collecting()
    collector.set_value("a", [])
    collector.set_value("b", 1)
    noted.clear()
    collector.get_value("a").append(1)
    note_changed(collector)
    assert encoded(noted) == {"last": {"a": b"[1]"}}
    note_changed(None)


def test_copies_are_plain_dicts() -> None:
    """However they are made; what is written to them is nobody's."""
    collector, noted = collecting()
    collector.inc_value("a")
    stats = collector.get_stats()
    for made in (
        stats.copy(),
        copy.copy(stats),
        copy.deepcopy(stats),
        pickle.loads(pickle.dumps(stats)),  # noqa: S301 - our own
        stats | {},
    ):
        assert type(made) is dict
        made["a"] = 9
    assert pprint.pformat(stats) == "{'a': 1}"
    assert json.dumps(stats) == '{"a": 1}'
    collector.close_spider(reason="finished")
    assert encoded(noted) == {"sum": {"a": b"1"}}


def test_a_collector_with_a_place_of_its_own_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By class; its methods count all the same."""
    collector, noted = collecting(Elsewhere)
    for _ in range(2):
        collector.get_stats()["a"] = 1
    collector.inc_value("b")
    (told,) = caplog.messages
    assert f"{Elsewhere.__module__}.Elsewhere" in told
    assert encoded(noted) == {"sum": {"b": b"1"}}
    collecting()[0].get_stats()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("is_own", [False, True])
def test_what_is_taken_over_is_counted_already(is_own: bool) -> None:
    """The job's stats in the last process: only what is written after counts."""

    class Elsewhere(MemoryStatsCollector):
        def __init__(self, crawler: Crawler) -> None:
            super().__init__(crawler)
            self._stats = {}
            self._mine: dict[str, Any] = {}

        def get_value(self, key: str, default: Any = None, spider: Any = None) -> Any:
            return self._mine.get(key, default)

        def get_stats(self, spider: Any = None) -> Any:
            return dict(self._mine)

        def set_value(self, key: str, value: Any, spider: Any = None) -> None:
            self._mine[key] = value

        def clear_stats(self, spider: Any = None) -> None:
            self._mine.clear()

    delta = Delta()
    base = Elsewhere if is_own else MemoryStatsCollector
    collector = recording(base, lambda: delta)(Crawler(Spider))
    collector.set_value("mine", 1)
    delta.clear()
    collector.take_over({"pages": 40, "when": "now"})
    assert not delta
    assert collector.get_stats() == {"pages": 40, "when": "now"}
    collector.set_value("verdict", "good")
    if not is_own:
        collector.inc_value("pages", 2)
    assert encoded(delta).get("last") == {"verdict": b'"good"'}
    assert encoded(delta).get("sum") == (None if is_own else {"pages": b"2"})
