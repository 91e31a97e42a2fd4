"""Batches of feeds, written while the crawl goes on."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dscrapy import messages as m
from dscrapy.model import WORKER_DRAINS, Outcome
from tests.e2e.crawl_harness import (
    PROJECT,
)
from tests.e2e.feeds_harness import (
    Feeds,
    files_in,
    finish,
    is_at,
    job_of,
    lines_of,
    never,
    project_with,
    stats_of,
    written_of,
)


def batches_in(folder: Path) -> Feeds:
    """Return feeds of several sizes and filters, and one that has no batches."""
    return {
        f"{folder}/two-%(batch_id)d.json": {"format": "json", "batch_item_count": 2},
        f"{folder}/odd-%(batch_id)d-%(batch_time)s.csv": {
            "format": "csv",
            "batch_item_count": 2,
            "item_filter": "testsite.own.Odd",
        },
        f"{folder}/all.jsonl": {"format": "jsonl"},
    }


FILTER = (
    "class Odd:\n"
    "    def __init__(self, feed_options): pass\n"
    "    def accepts(self, item): return item['number'] % 2\n"
)


def named(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files under names without the time."""
    assert not [name for name in files if name.startswith(".")], files
    short = {re.sub(r"-20[^.]+\.\d+[^.]*", "", name): files[name] for name in files}
    assert len(short) == len(files)
    return short


ALL = {"all.jsonl": (1, 11, 0)}


def of_batches(files: int, items: int, name: str = "odd") -> dict[str, Any]:
    """Return what is told of a feed whose batches are so many."""
    feeds = {"two": "two-%(batch_id)d.json"}
    feed = feeds.get(name, "odd-%(batch_id)d-%(batch_time)s.csv")
    return {feed: (files, items, 0)}


def test_batches_are_written_when_they_are_full(tmp_path: Path) -> None:
    """While the crawl goes on, each as soon as its last item is there; what is not
    full, and the feed without batches, when it is over. All are those of one pass."""
    folder = project_with(tmp_path, "own.py", FILTER)
    once, ours = tmp_path / "once", tmp_path / "ours"
    items = lines_of(11, 10)
    finish(job_of(items, batches_in(once)), folder)
    expected = named(files_in(once))
    assert sorted(expected) == [
        "all.jsonl",
        *(f"odd-{number}.csv" for number in range(1, 4)),
        *(f"two-{number}.json" for number in range(1, 7)),
    ]
    seen: list[list[str]] = []

    def look(message: m.FromCrawl) -> bool:
        if isinstance(message, m.Read) and message.offset == job.length:
            files = named({k: v for k, v in files_in(ours).items() if k[0] != "."})
            assert all(expected[name] == files[name] for name in files)
            seen.append(sorted(files))
        return False

    job = job_of(items, batches_in(ours))
    job.there, job.arrives = 0, [1, 4, 6, 11]
    assert job.export(folder, look) == 0, job.log
    two = [f"two-{number}.json" for number in range(1, 6)]
    odd = ["odd-1.csv", "odd-2.csv"]
    assert seen == [[], [], [*odd[:1], *two[:2]], [*odd[:1], *two[:3]], [*odd, *two]]
    assert named(files_in(ours)) == expected
    begun = {batch.feed: batch.number for batch in job.batches}
    assert sorted(begun.values()) == [3, 6]
    before = [batch.before for batch in job.batches]
    assert sorted((one.files, one.items) for one in before if one) == [(2, 4), (5, 10)]
    assert written_of(job) == {**ALL, **of_batches(3, 5), **of_batches(6, 11, "two")}


@pytest.mark.long
def test_a_kill_at_any_moment_gives_the_same_batches(tmp_path: Path) -> None:
    """Killed at each of its messages in turn while the crawl goes on, and begun again
    from what it has told: the same files, under the names that were told first."""
    folder = project_with(tmp_path, "own.py", FILTER)
    items = lines_of(5, 10)
    ours = tmp_path / "ours"
    finish(job_of(items, batches_in(ours)), folder)
    expected = named(files_in(ours))
    moment, code = 0, None
    while code is None:
        moment += 1
        for path in ours.iterdir():
            path.unlink()
        job = job_of(items, batches_in(ours))
        job.there, job.arrives = 0, [3, 5]
        code = job.export(folder, partial(is_at, job, moment))
        if code is None:
            assert job.export(folder, never) == 0, job.log
        assert named(files_in(ours)) == expected, moment
        assert job.closed is not None
        assert stats_of(*job.told, job.closed)[SUCCESSES] == len(expected), moment
        # Nor is anything told twice, or left out.
        told = {**of_batches(1, 2), **of_batches(3, 5, "two"), "all.jsonl": (1, 5, 0)}
        assert written_of(job) == told, moment
    # What is known, where batches begin; items, their forms, a file, that it is there;
    # the same again with two files; that there is no more; all of it for the feed that
    # is whole; two files and the last commit; then none.
    assert moment == 2 + (2 + 1 + 1) + (2 + 2 + 1) + 1 + 2 + 3 + 1


SUCCESSES = "feedexport/success_count/FileFeedStorage"


@pytest.mark.parametrize("arrives", [[3, None], [None]])
def test_a_process_that_is_stopped_leaves_full_batches(
    arrives: list[int | None], tmp_path: Path
) -> None:
    """Nothing else: no part of a file, no feed that is not complete. The next one goes
    on behind them."""
    ours = tmp_path / "ours"
    feeds: Feeds = {
        f"{ours}/%(batch_id)d.jsonl": {"format": "jsonl", "batch_item_count": 2},
        f"{ours}/all.jsonl": {"format": "jsonl"},
    }
    items = lines_of(5, 10)
    lines = items.splitlines(keepends=True)
    job = job_of(items, feeds)
    job.there, job.arrives = 1, list(arrives)
    assert job.export(PROJECT, never) == 0, job.log
    assert job.closed is not None
    assert job.closed.end == Outcome(finish_reason=WORKER_DRAINS)
    first = {"1.jsonl": lines[0] + lines[1]} if len(arrives) > 1 else {}
    assert files_in(ours) == first
    # Of the batch that was begun two are missing, less what it has.
    assert job.batches[0].full_at == (4 if first else 2)
    # One that finds nothing to do hands on what it has learned.
    job.arrives = [None]
    assert job.export(PROJECT, never) == 0, job.log
    job.there = None
    finish(job)
    told = {"%(batch_id)d.jsonl": (3, 5, 0), "all.jsonl": (1, 5, 0)}
    assert written_of(job) == told
    assert files_in(ours) == {
        "1.jsonl": lines[0] + lines[1],
        "2.jsonl": lines[2] + lines[3],
        "3.jsonl": lines[4],
        "all.jsonl": items,
    }


def test_a_process_that_is_stopped_tells_how_many_items_are_missing(
    tmp_path: Path,
) -> None:
    """A filter has refused two of three: no batch is full before the job has four, so
    nobody is started in vain."""
    folder = project_with(tmp_path, "own.py", FILTER)
    options = {"format": "jsonl", "batch_item_count": 2}
    options |= {"item_filter": "testsite.own.Odd"}
    job = job_of(lines_of(4, 10), {f"{tmp_path}/out/%(batch_id)d": options})
    job.there, job.arrives = 0, [3, None]
    assert job.export(folder, never) == 0, job.log
    (batch,) = job.batches
    assert (batch.number, batch.item, batch.full_at) == (1, 0, 4)
    assert files_in(tmp_path / "out") == {}


def test_what_is_left_of_a_failed_job_goes_beside(tmp_path: Path) -> None:
    """Its full batches stay; behind them NAME.failed goes on, and tells of no batch:
    the job may be retried, and then these are written."""
    ours = tmp_path / "ours"
    items = lines_of(5, 10)
    lines = items.splitlines(keepends=True)
    feed = f"{ours}/%(batch_id)d.jsonl"
    job = job_of(
        items,
        {
            feed: {"format": "jsonl", "batch_item_count": 2},
            f"{ours}/all.jsonl": {"format": "jsonl"},
        },
    )
    job.batches = (
        m.Batch(
            feed=feed,
            number=2,
            uri=f"{ours}/2.jsonl",
            full_at=4,
            item=2,
            items_at=len(lines[0] + lines[1]),
            tagged_at=10,
        ),
    )
    job.came_to_end = False
    finish(job)
    assert files_in(ours) == {
        "2.jsonl.failed": lines[2] + lines[3],
        "3.jsonl.failed": lines[4],
        "all.jsonl.failed": items,
    }
    assert (job.told, job.batches[0].number) == ([], 2)
    told = {"%(batch_id)d.jsonl.failed": (2, 3, 0), "all.jsonl.failed": (1, 5, 0)}
    assert written_of(job) == told


def test_a_batch_that_cannot_be_stored_is_told_and_the_next_one_begins(
    tmp_path: Path,
) -> None:
    """As in Scrapy: an error in the log and a count, and what follows is written."""
    folder = project_with(
        tmp_path,
        "storages.py",
        "from pathlib import Path\n"
        "from scrapy.extensions.feedexport import BlockingFeedStorage\n"
        "class Broken(BlockingFeedStorage):\n"
        "    def __init__(self, uri, *, feed_options=None): self.uri = uri\n"
        "    def _store_in_thread(self, file):\n"
        "        file.seek(0)\n"
        "        if self.uri.endswith('1'): raise RuntimeError('it is broken')\n"
        "        Path(self.uri.removeprefix('own:')).write_bytes(file.read())\n",
    )
    feed = f"own:{tmp_path}/batch-%(batch_id)d"
    job = job_of(
        lines_of(3, 10),
        {feed: {"format": "jsonl", "batch_item_count": 1}},
        FEED_STORAGES=json.dumps({"own": "testsite.storages.Broken"}),
    )
    closed = finish(job, folder)
    lines = lines_of(3, 10).splitlines(keepends=True)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("batch-*")}
    assert written == {"batch-2": lines[1], "batch-3": lines[2]}
    assert "it is broken" in job.log
    counts = stats_of(*job.told, closed)
    assert counts["feedexport/failed_count/Broken"] == 1
    assert counts["feedexport/success_count/Broken"] == 2
    assert written_of(job) == {"batch-%(batch_id)d": (2, 2, 1)}
    (one,) = closed.written
    assert (one.first, one.last) == (feed % {"batch_id": 1}, feed % {"batch_id": 3})
