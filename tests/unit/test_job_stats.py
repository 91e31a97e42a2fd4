"""Stats merged over processes by the operation that wrote them."""

from typing import Any

import msgspec
import pytest

from dscrapy.control.state import job_stats as module
from dscrapy.control.state.job_stats import DROPPED_KEY, Totals
from dscrapy.model import Stats


def stats(**by_operation: dict[str, Any]) -> Stats:
    """Return stats whose values are encoded."""
    return {
        operation: {
            key: msgspec.Raw(msgspec.json.encode(value))
            for key, value in values.items()
        }
        for operation, values in by_operation.items()
    }


def raw(operation: str, key: str, text: str) -> Stats:
    """Return stats of one value, as it stands."""
    return {operation: {key: msgspec.Raw(text.encode())}}


def plain(told: Stats) -> dict[str, dict[str, Any]]:
    """Return stats with their values decoded."""
    return {
        operation: {key: msgspec.json.decode(value) for key, value in values.items()}
        for operation, values in told.items()
    }


def merged(*deltas: Stats) -> dict[str, dict[str, Any]]:
    """Return what deltas come to, which a snapshot keeps."""
    totals = Totals()
    for delta in deltas:
        totals.merge(delta)
    told = msgspec.json.encode(totals.encode())
    again = Totals.decode(msgspec.json.decode(told, type=Stats))
    assert plain(again.encode()) == plain(totals.encode())
    return plain(totals.encode())


def moment(text: str, zone: int | None = 0) -> dict[str, Any]:
    """Return a tagged datetime; ``zone`` in microseconds."""
    return {"$dt": [text, 0, zone]}


def test_each_operation_merges_its_way() -> None:
    """Sums add, extremes stay, the last replaces."""
    first = stats(sum={"a": 1}, max={"b": 5}, min={"c": 5}, last={"d": "x"})
    second = stats(sum={"a": 2}, max={"b": 4}, min={"c": 4}, last={"d": "y"})
    assert merged(first, second) == {
        "sum": {"a": 3},
        "max": {"b": 5},
        "min": {"c": 4},
        "last": {"d": "y"},
    }
    third = stats(max={"b": 6}, min={"c": 6})
    assert merged(first, second, third)["max"] == {"b": 6}
    assert merged(first, second, third)["min"] == {"c": 4}


def test_whole_numbers_stay_whole() -> None:
    """However large; only a float makes a float."""
    assert repr(merged(*[stats(sum={"a": 2**70})] * 2)["sum"]["a"]) == str(2**71)
    assert repr(merged(stats(sum={"a": 1}), stats(sum={"a": 0.5}))["sum"]["a"]) == "1.5"


def test_a_sum_beyond_floats_stays_what_it_was() -> None:
    """JSON has no infinity, and a snapshot has to hold it."""
    assert merged(*[raw("sum", "a", "1e308")] * 3)["sum"] == {"a": 1e308}
    assert merged(*[raw("sum", "a", "-1e308")] * 3)["sum"] == {"a": -1e308}


@pytest.mark.parametrize("operation", ["sum", "max", "min", "last", "other"])
@pytest.mark.parametrize(
    "value", ['"text"', "null", "true", "[1]", '{"$f":"inf"}', "1" * 33, "1e999"]
)
def test_what_is_no_number_is_kept_as_it_is(operation: str, value: str) -> None:
    """It replaces what was there, whichever operation wrote it."""
    totals = Totals()
    totals.merge(stats(sum={"a": 1}))
    totals.merge(raw(operation, "a", value))
    assert totals.encode() == raw("last", "a", value)
    assert totals.count("a") == 0
    totals.merge(stats(sum={"a": 2}))
    assert plain(totals.encode()) == {"sum": {"a": 2}}


def test_a_number_that_was_set_can_be_added_to() -> None:
    """As in one collector: set to 5 and incremented is 6."""
    assert merged(stats(last={"a": 5}), stats(sum={"a": 1})) == {"sum": {"a": 6}}
    assert merged(stats(sum={"a": 5}), stats(last={"a": 1})) == {"last": {"a": 1}}
    assert merged(stats(other={"a": 5})) == {"last": {"a": 5}}


def test_the_largest_memory_use_counts() -> None:
    """Over the processes, whichever operation wrote it."""
    one = stats(max={"memusage/max": 5}, last={"memusage/startup": 9})
    two = stats(max={"memusage/max": 7}, last={"memusage/startup": 8})
    assert merged(one, two) == {
        "max": {"memusage/max": 7},
        "last": {"memusage/startup": 9},
    }


def test_a_job_runs_from_the_first_start_to_the_last_finish() -> None:
    """In whatever order processes tell, in whatever zone."""
    early, late = moment("2026-01-01T10:00:00"), moment("2026-01-01T11:00:00")
    zoned = moment("2026-01-01T12:30:00", 2 * 3600 * 10**6)  # 10:30 in UTC
    naive = moment("2026-01-01T10:45:00", None)
    for order in (early, late, zoned, naive), (naive, zoned, late, early):
        told = [stats(last={"start_time": one, "finish_time": one}) for one in order]
        assert merged(*told) == {"last": {"start_time": early, "finish_time": late}}


@pytest.mark.parametrize(
    "value",
    [
        5,
        "2026-01-01",
        moment("no date"),
        {"$dt": ["2026-01-01T10:00:00", 0, "Europe/Prague"]},
        {"$dt": ["2026-01-01T10:00:00", 7, 0]},
        {"$dt": ["2026-01-01T10:00:00", 0, 10**30]},
        {"$dt": ["2026-01-01T10:00:00", 0, 10**12]},
        {"$dt": ["2026-01-01T10:00:00", 0, 0], "x": 1},
    ],
)
def test_an_instant_that_cannot_be_read_is_the_last_value(value: Any) -> None:
    """Then nothing is computed from it."""
    known = moment("2026-01-01T10:00:00")
    told = [stats(last={"start_time": one}) for one in (known, value)]
    assert merged(*told) == {"last": {"start_time": value}}
    totals = Totals()
    totals.merge(stats(last={"start_time": value, "finish_time": known}))
    last = plain(totals.final("finished"))["last"]
    assert last["responses_per_minute"] is None
    assert "elapsed_time_seconds" not in last


def test_the_final_stats_are_scrapys() -> None:
    """Reason, span and rates are the job's, whatever its processes told of theirs."""
    totals = Totals()
    start, finish = moment("2026-01-01T10:00:00.5"), moment("2026-01-01T10:02:00.75")
    told = {
        "start_time": start,
        "finish_time": finish,
        "finish_reason": "shutdown",
        "elapsed_time_seconds": 3.0,
        "responses_per_minute": 1.0,
        "own": [1],
    }
    totals.merge(stats(last=told, max={"items_per_minute": 9}))
    totals.inc("response_received_count", 240)
    totals.merge(stats(sum={"item_scraped_count": 60}))
    assert plain(totals.final("closespider_itemcount")) == {
        "sum": {"response_received_count": 240, "item_scraped_count": 60},
        "last": {
            "start_time": start,
            "finish_time": finish,
            "finish_reason": "closespider_itemcount",
            "elapsed_time_seconds": 120.25,
            "responses_per_minute": 120.0,
            "items_per_minute": 30.0,
            "own": [1],
        },
    }
    # It is a copy: the totals go on.
    assert plain(totals.encode())["last"]["finish_reason"] == "shutdown"


def test_there_are_no_rates_below_a_second() -> None:
    """As in Scrapy; and after a day they are those of the whole time."""
    for finish, rate in (("2026-01-01T10:00:00.9", None), ("2026-01-03T10:00:00", 1)):
        totals = Totals()
        start = moment("2026-01-01T10:00:00")
        told = {"start_time": start, "finish_time": moment(finish)}
        totals.merge(stats(last=told, sum={"item_scraped_count": 2880}))
        assert plain(totals.final("finished"))["last"]["items_per_minute"] == rate


def test_nothing_merged_has_final_stats() -> None:
    """A job that never opened has a reason and no rates."""
    assert plain(Totals().final("cancelled")) == {
        "last": {
            "finish_reason": "cancelled",
            "responses_per_minute": None,
            "items_per_minute": None,
        }
    }


def test_counts_are_whole_numbers() -> None:
    """The master's own sums and the processes' are the same."""
    totals = Totals()
    totals.inc("a")
    totals.merge(stats(sum={"a": 2.5}))
    assert (totals.count("a"), totals.count("b")) == (3, 0)


def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones beyond the limit are dropped and counted; the known ones go on."""
    monkeypatch.setattr(module, "STATS_KEYS_MAX", 3)
    totals = Totals()
    totals.merge(stats(sum={"a": 1, "b": 1, "c": 1, "d": 1}, last={"e": "x"}))
    totals.merge(stats(sum={"a": 1, "d": 1}))
    assert plain(totals.encode()) == {"sum": {"a": 2, "b": 1, "c": 1, DROPPED_KEY: 3}}
    assert plain(Totals.decode(totals.encode()).encode()) == plain(totals.encode())


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that grows is dropped like a new one; what shrinks makes room."""
    monkeypatch.setattr(module, "STATS_BYTES_MAX", 150)
    totals = Totals()
    totals.merge(stats(last={"a": "x" * 97}))
    totals.merge(stats(last={"b": "x" * 47}))
    assert list(plain(totals.encode())["last"]) == ["a", "b"]
    totals.merge(stats(last={"a": "x" * 98, "b": "y" * 47, "c": ""}))
    assert plain(totals.encode()) == {
        "last": {"a": "x" * 97, "b": "y" * 47},
        "sum": {DROPPED_KEY: 2},
    }
    totals.merge(stats(sum={"b": 5}))
    totals.merge(stats(last={"c": "x" * 14}))
    assert plain(totals.encode()) == {
        "last": {"a": "x" * 97, "c": "x" * 14},
        "sum": {DROPPED_KEY: 2, "b": 5},
    }
    totals.merge(stats(last={"a": ""}))
    totals.merge(stats(sum={"d": 1}))
    assert totals.count("d") == 1


def test_a_value_does_not_keep_its_message_alive() -> None:
    """What is kept is a copy of the value's own bytes."""
    delta = msgspec.json.decode(b'{"last":{"a":"text"}}', type=Stats)
    totals = Totals()
    totals.merge(delta)
    assert type(totals._others["a"]) is bytes


@pytest.mark.parametrize(
    ("counted", "errors"),
    [
        ({}, 0),
        ({"item_scraped_count": 5, "log_count/WARNING": 3}, 0),
        # A callback's exception is logged too.
        ({"log_count/ERROR": 3, "spider_exceptions/count": 3}, 3),
        ({"log_count/ERROR": 5, "log_count/CRITICAL": 1, "spider_exceptions/A": 2}, 6),
        # What Scrapy's counter did not see: after the end, below LOG_LEVEL.
        ({"log_count/ERROR": 2, "dscrapy/errors_logged": 1}, 3),
        # A project that silences its log.
        ({"spider_exceptions/count": 4, "log_count/ERROR": 1}, 4),
        # Nobody could log these.
        ({"dscrapy/poisoned_requests": 2, "log_count/ERROR": 1}, 3),
        # A project may write what it likes.
        ({"log_count/ERROR": -3}, 0),
    ],
)
def test_an_error_counts_once(counted: dict[str, int], errors: int) -> None:
    """However many stats tell of it, and whatever the log leaves out."""
    totals = Totals()
    totals.merge(stats(sum=counted))
    assert totals.errors == errors
    assert Totals.decode(totals.encode()).errors == errors


def test_what_is_dropped_is_gone_and_may_come_again() -> None:
    """Of whatever kind; nothing is left of it in snapshots, and its room is free."""
    totals = Totals()
    totals.merge(stats(sum={"a": 1}, max={"b": 2}, last={"c": "text", "d": 4}))
    totals.merge(stats(drop={"a": None, "b": None, "c": None, "never": None}))
    assert plain(totals.encode()) == {"last": {"d": 4}}
    assert plain(Totals.decode(totals.encode()).encode()) == {"last": {"d": 4}}
    totals.merge(stats(sum={"a": 5}, min={"b": 7}))
    expected = {"last": {"d": 4}, "sum": {"a": 5}, "min": {"b": 7}}
    assert plain(totals.encode()) == expected
    assert totals._bytes == Totals.decode(totals.encode())._bytes
