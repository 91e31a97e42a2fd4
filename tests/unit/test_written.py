"""What a job has written of its project's feeds: told once, whatever is repeated."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.machine import Machine
from dscrapy.control.state.feed_totals import (
    FEED_CHARS_MAX,
    FEEDS_KEPT_MAX,
    note_written,
)
from dscrapy.control.state.jobs import Course
from dscrapy.control.state.state import State
from dscrapy.model import FeedFiles
from dscrapy.text import without_password
from tests import builders as b
from tests.unit import machine_driver as d

FEED = "b-%(batch_id)d"


def files(count: int, feed: str = FEED, **fields: Any) -> FeedFiles:
    """Return so many files of two items each."""
    number = {"first": "b-1", "last": f"b-{count}", "items": 2 * count}
    return FeedFiles(feed=feed, files=count, **{**number, **fields})


def batch(number: int, before: FeedFiles | None = None) -> m.Batch:
    """Return a batch of two items, the next one behind those before it."""
    at = 2 * (number - 1)
    return m.Batch(
        feed=FEED,
        number=number,
        uri=f"b-{number}",
        full_at=at + 2,
        item=at,
        before=before,
    )


def shown(machine: Machine) -> list[FeedFiles]:
    """Return what people see."""
    answer = views.show(machine.state, 0, b.ID)
    assert answer is not None
    return list(answer.feeds)


def test_files_are_told_when_the_job_has_ended() -> None:
    """With who wrote them; a restart knows them still, from the journal's facts as from
    a snapshot, and a retry that begins anew forgets them."""
    machine, start = d.running(has_feeds=True)
    export = d.started(d.succeed(machine, start))
    written = (files(1), FeedFiles(feed="f", first="x", last="x", failed=1))
    done = b.unit(1, "closed", end=b.WRITTEN, written=written)
    assert d.results(d.commit(machine, export.process, done)) == ["published"]
    with_workers = [msgspec.structs.replace(one, workers=("w",)) for one in written]
    assert machine.state.jobs[b.ID].status == "succeeded"
    assert shown(machine) == shown(d.restarted(machine)) == with_workers
    d.commit(machine, export.process, done)
    assert shown(machine) == with_workers
    again = r.JobAgain(job=b.ID, at=0.0, fresh=True, automatic=False, reason="")
    d.let_be(machine, again)
    assert shown(machine) == []


def test_batches_are_told_while_the_crawl_goes_on() -> None:
    """All before the one that is written now; what is told twice counts once."""
    machine, _ = d.running(slots=2, has_feeds=True, batch_items=2)
    export = d.started(d.commit(machine, 1, b.unit(1, items=b.ITEM * 2)))
    d.commit(machine, export.process, b.unit(1, "batch", batches=(batch(1),)))
    assert shown(machine) == []
    for number in (2, 3):
        told = (batch(number, files(number - 1)),)
        d.commit(machine, export.process, b.unit(number, "batch", batches=told))
        assert [one.files for one in shown(machine)] == [number - 1]
    # The next one learns it, tells it again and goes on behind it.
    d.let_be(
        machine,
        r.Published(
            job=b.ID, process=export.process, unit=4, kind="batch", batches=told
        ),
    )
    assert [(one.files, one.workers) for one in shown(machine)] == [(2, ("w",))]


def test_that_lines_are_the_projects_own_is_handed_on() -> None:
    """To whoever writes files of them; a restart knows it, and a process that finds it
    changed says so."""
    machine, _ = d.running(slots=2, own_lines=True)
    for one in (machine, d.restarted(machine)):
        answer = views.show(one.state, 0, b.ID)
        assert answer is not None
        assert answer.own_lines
    d.ask(machine, b.opened(1), d.WORKER)
    answer = views.show(machine.state, 0, b.ID)
    assert answer is not None
    assert not answer.own_lines


# ---- many --------------------------------------------------------------------------


def publish(course: Course, worker: str, *batches: m.Batch, **fields: Any) -> None:
    """Let an export process on this worker commit."""
    record = r.Published(job=b.ID, process=1, unit=1, batches=batches, **fields)
    note_written(record, course, worker)


def test_a_hundred_thousand_batches_are_no_more_than_one() -> None:
    """What is kept of a feed does not grow with its files."""
    course = Course()
    publish(course, "w", batch(2, files(1)))
    small = len(msgspec.json.encode(course.written))
    for number in range(2, 100_000, 9_999):
        publish(course, "w", batch(number + 1, files(number)))
    assert len(msgspec.json.encode(course.written)) < small + 20
    assert len(course.written) == 1


def test_feeds_that_have_other_names_each_time_do_not_pile_up() -> None:
    """The latest are kept; one whose name alone would fill an answer is not."""
    course = Course()
    for number in range(3 * FEEDS_KEPT_MAX):
        publish(course, "w", written=(files(1, f"at-{number}"),))
    assert len(course.written) == FEEDS_KEPT_MAX
    assert course.written[-1].feed == f"at-{3 * FEEDS_KEPT_MAX - 1}"
    publish(course, "w", written=(files(1, "x" * FEED_CHARS_MAX),))
    assert course.written[-1].feed == f"at-{3 * FEEDS_KEPT_MAX - 1}"


def test_a_file_that_is_written_again_is_where_it_was_written_last() -> None:
    """On the worker of the second try; batches may be on both."""
    course = Course()
    for worker in ("v", "w"):
        publish(course, worker, written=(files(1, "f"), files(2)))
        publish(course, worker, written=(files(3),))
    workers = {one.feed: one.workers for one in course.written}
    assert workers == {"f": ("w",), FEED: ("v", "w")}


def test_states_of_before_know_of_no_files() -> None:
    """A snapshot and a record that were written without them are read."""
    machine, start = d.running(has_feeds=True)
    d.succeed(machine, start)
    snapshot = msgspec.json.decode(machine.state.encode_snapshot())
    (job,) = snapshot["jobs"]
    del job["course"]["written"]
    old = State.decode_snapshot(msgspec.json.encode(snapshot))
    assert old.encode_snapshot() == machine.state.encode_snapshot()
    record = r.Published(job=b.ID, process=1, batches=(batch(1),))
    assert b"written" not in msgspec.json.encode(record)
    assert b"before" not in msgspec.json.encode(record)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ftp://me:word@host/a", "ftp://me:***@host/a"),
        ("ftp://me:word@host/a@b.csv", "ftp://me:***@host/a@b.csv"),
        ("ftp://me:w@rd@host/a", "ftp://me:***@host/a"),
        ("s3://key:one/two@bucket/a", "s3://key:***@bucket/a"),
        ("ftp://host:21/a@b.csv", "ftp://host:21/a@b.csv"),
        ("ftp://me@host/a:b", "ftp://me@host/a:b"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("/a/me:word@host", "/a/me:word@host"),
    ],
)
def test_no_password_is_told(uri: str, told: str) -> None:
    """Wherever it ends; what is none stays."""
    assert without_password(uri) == told
