"""What a process writes to its stats, by way of commits, is what the job has."""

from functools import partial
from itertools import repeat
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.statscollectors import MemoryStatsCollector

from dscrapy.control.state.job_stats import Totals
from dscrapy.crawl.scrapy_side.stats_collector import Delta, merged, recording

# What holds for one process alone: its own numbers are the job's. Floats that sums
# keep exact.
KEYS = st.sampled_from("abc")
NUMBERS = st.integers(-9, 9) | st.sampled_from((0.5, -0.25))
VALUES = NUMBERS | st.sampled_from(("text", True, None))
WRITES = st.tuples(
    st.sampled_from(
        ("inc", "max", "min", "set", "assign", "add", "update", "pop", "new", "clear")
    ),
    KEYS,
    VALUES,
    NUMBERS,
)
COMMITS = st.lists(st.lists(WRITES, max_size=6), max_size=6)


def write(collector: Any, how: str, key: str, value: Any, number: Any) -> None:
    """Make one write, where plain Scrapy could."""
    stats = collector.get_stats()
    held = dict.get(stats, key)
    is_number = held is None or type(held) in (int, float)
    if dict.__contains__(stats, key) and held is None:
        is_number = False
    match how:
        case "inc" if is_number:
            collector.inc_value(key, number)
        case "max" if is_number:
            collector.max_value(key, number)
        case "min" if is_number:
            collector.min_value(key, number)
        case "set":
            collector.set_value(key, value)
        case "assign":
            stats[key] = value
        case "add" if is_number:
            stats[key] = stats.get(key, 0) + number
        case "update":
            stats.update({key: value})
        case "pop":
            stats.pop(key, None)
        case "new":
            stats.setdefault(key, number)
        case "clear":
            collector.clear_stats()


@given(COMMITS, st.integers(0, 6))
def test_one_processs_stats_are_the_jobs(
    commits: list[list[tuple[str, str, Any, Any]]], restart: int
) -> None:
    """Whatever it writes in whatever way, in how many commits, and when the master
    starts from a snapshot in between."""
    delta, totals = Delta(), Totals()
    collector: Any = recording(MemoryStatsCollector, lambda: delta)(Crawler(Spider))
    for number, writes in enumerate(commits):
        if number == restart:
            totals = Totals.decode(totals.encode())
        for one in writes:
            write(collector, *one)
        totals.merge(delta.encoded())
        delta.clear()
    assert merged(totals.encode()) == collector.get_stats()
    assert totals._bytes == Totals.decode(totals.encode())._bytes


@given(st.lists(st.tuples(st.integers(0, 2), KEYS, st.integers(-9, 9))))
def test_sums_of_several_processes_add_up(adds: list[tuple[int, str, int]]) -> None:
    """By ``+=`` as by ``inc_value``, in whatever order commits come."""
    totals, expected = Totals(), dict[str, int]()
    deltas = [Delta() for _ in range(3)]
    collectors: list[Any] = [
        recording(MemoryStatsCollector, partial(next, repeat(delta)))(Crawler(Spider))
        for delta in deltas
    ]
    for process, key, number in adds:
        stats = collectors[process].get_stats()
        stats[key] = stats.get(key, 0) + number
        expected[key] = expected.get(key, 0) + number
        totals.merge(deltas[process].encoded())
        deltas[process].clear()
    assert merged(totals.encode()) == expected
