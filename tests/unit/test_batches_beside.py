"""Feeds with batches: who writes them while the crawl goes on, and from where."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decision import OnClosed, OnDamage
from dscrapy.control.machine import Machine
from dscrapy.control.state.feed_exports import BESIDE_DEATHS_MAX
from dscrapy.control.state.state import State
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import (
    JOB_PAUSES,
    PROCESS_IDLES,
    SLOT_NEEDED,
    WORKER_DRAINS,
    FeedFiles,
    Outcome,
)
from tests import builders as b
from tests.unit import machine_driver as d

FEEDS: dict[str, Any] = {"has_feeds": True, "batch_items": 3}


NONE_OF_IT = FeedFiles(feed="b", first="b-1", last="b-1", files=1, items=-1)


def batch(number: int, item: int, full_at: int, **fields: Any) -> m.Batch:
    """Return a batch of the one feed."""
    uri = f"b-{number}"
    return m.Batch(
        feed="b-%(batch_id)d",
        number=number,
        uri=uri,
        item=item,
        full_at=full_at,
        items_at=8 * item,
        tagged_at=5 * item,
        **fields,
    )


def give(machine: Machine, number: int, items: int) -> Any:
    """Let the crawl process commit so many items."""
    return d.commit(machine, 1, b.unit(number, items=b.ITEM * items))


def beside() -> tuple[Machine, m.Start]:
    """Return a machine whose crawl has given what fills a batch, and who writes it.

    The crawl process has committed a unit, and so has the other.
    """
    machine, _ = d.running(slots=2, **FEEDS)
    export = d.started(give(machine, 1, 3))
    assert (export.role, export.came_to_end) == ("export", True)
    begin = b.unit(1, "batch", batches=(batch(1, 0, 3),))
    assert d.results(d.commit(machine, export.process, begin)) == ["published"]
    return machine, export


def course(machine: Machine) -> Any:
    """Return what the job has been through."""
    return machine.state.jobs[b.ID].begin()


# ---- when one starts -----------------------------------------------------------------


def test_an_export_starts_when_a_batch_may_be_full() -> None:
    """Not before, and one for a job; its crawl process goes on, and takes its slot."""
    machine, _ = d.running(**FEEDS)
    assert d.told(give(machine, 1, 2), m.Start) == []
    export = d.started(give(machine, 2, 1))
    assert export.role == "export"
    job = machine.state.jobs[b.ID]
    assert (job.processes, job.exports, job.status) == (1, 1, "running")
    assert d.told(give(machine, 3, 9), m.Start) == []
    assert machine.state.crawls[b.ID].leader == 1


def test_no_export_starts_where_no_feed_has_batches() -> None:
    """Feeds in one file wait for the end of the crawl."""
    machine, _ = d.running(has_feeds=True)
    assert d.told(give(machine, 1, 100), m.Start) == []


def test_an_export_begins_where_the_last_one_stopped() -> None:
    """It is told so when it asks, also by the next master."""
    machine, export = beside()
    one = b.unit(2, "batch", batches=(batch(2, 3, 6),), delivered=("f1",))
    d.commit(machine, export.process, one)
    for state in (machine, d.restarted(machine)):
        assert course(state).batches == (batch(2, 3, 6),)
    feeds = m.Feeds(job=b.ID, process=export.process, lengths={})
    (seen,) = d.answers(d.ask(machine, feeds, d.WORKER), d.WORKER)
    assert seen.batches == (batch(2, 3, 6),)


def test_a_file_that_is_delivered_is_forgotten() -> None:
    """Nobody is to cut or remove it any more, and the master keeps no list of them."""
    machine, export = beside()
    feeds = m.Feeds(job=b.ID, process=export.process, lengths={"f1": -1, "f2": 7})
    d.ask(machine, feeds, d.WORKER)
    one = b.unit(2, "batch", batches=(batch(2, 3, 6),), delivered=("f1", "f9"))
    d.commit(machine, export.process, one)
    assert course(machine).feeds == {"f2": 7}


def test_one_that_idles_is_started_again_when_it_has_something_to_do() -> None:
    """It says how many items are needed: a filter may refuse any number of them."""
    machine, export = beside()
    end = Outcome(finish_reason=PROCESS_IDLES)
    closed = b.unit(2, "closed", end=end, batches=(batch(1, 0, 5),))
    decision = d.commit(machine, export.process, closed)
    assert d.told(decision, m.Done) == [
        m.Done(job=b.ID, process=export.process, stats=None)
    ]
    assert d.told(d.ask(machine, b.ended(export.process), d.WORKER), m.Start) == []
    assert machine.state.jobs[b.ID].is_crawling
    assert d.told(give(machine, 2, 1), m.Start) == []
    assert d.started(give(machine, 3, 1)).role == "export"


def test_batches_that_are_full_are_written_by_the_next_master() -> None:
    """As soon as the crawl process has told it again what its project asks for."""
    machine, export = beside()
    d.ask(machine, b.ended(export.process), d.WORKER)
    other = d.restarted(machine)
    held = (b.held(1, opened=b.opened(1, **FEEDS), leads=True),)
    decision = d.ask(other, b.registration(slots=2, held=held))
    assert d.started(decision).role == "export"


# ---- deaths --------------------------------------------------------------------------


def test_deaths_of_exports_beside_a_crawl_are_bounded_and_cost_it_nothing() -> None:
    """Then batches wait for the end of the crawl; one that is delivered counts anew."""
    machine, export = beside()
    for _ in range(BESIDE_DEATHS_MAX - 1):
        decision = d.ask(machine, b.ended(export.process, counted=True), d.WORKER)
        export = d.started(decision)
    d.commit(machine, export.process, b.unit(1, "batch", batches=(batch(2, 3, 6),)))
    assert course(machine).export_deaths == 0
    give(machine, 2, 3)
    for left in reversed(range(BESIDE_DEATHS_MAX)):
        decision = d.ask(machine, b.ended(export.process, counted=True), d.WORKER)
        starts = d.told(decision, m.Start)
        assert len(starts) == (1 if left else 0)
        export = starts[0] if left else export
    assert course(machine).deaths == 0
    assert machine.state.jobs[b.ID].is_crawling
    # The end of the crawl gives it another chance.
    d.commit(machine, 1, b.unit(3, "started"))
    assert d.started(d.finish(machine, 1, 3)).role == "export"
    assert course(machine).export_deaths == 0


@pytest.mark.parametrize(
    "end",
    [Outcome(failure="spider_error", text="no such format"), b.WRITTEN],
    ids=["fails", "cannot"],
)
def test_an_export_that_cannot_write_leaves_it_to_the_end(end: Outcome) -> None:
    """The crawl goes on, and is not failed for it."""
    machine, export = beside()
    d.commit(machine, export.process, b.unit(2, "closed", end=end))
    assert d.told(d.ask(machine, b.ended(export.process), d.WORKER), m.Start) == []
    assert d.told(give(machine, 2, 9), m.Start) == []
    job = machine.state.jobs[b.ID]
    assert (job.is_crawling, course(machine).feeds_failure) == (True, None)


def test_a_damaged_file_costs_the_crawl_nothing() -> None:
    """Whoever reads it beside the crawl is given up, a bounded number of times; what
    becomes of the feeds is decided when they are to be written."""
    machine, export = beside()
    for left in reversed(range(BESIDE_DEATHS_MAX)):
        damage = OnDamage(job=b.ID, process=export.process, text="it lacks bytes")
        starts = d.told(d.ask(machine, damage), m.Start)
        assert len(starts) == (1 if left else 0)
        export = starts[0] if left else export
    assert machine.state.jobs[b.ID].is_crawling
    assert course(machine).feeds_failure is None


def test_a_worker_that_cannot_begin_an_export_costs_the_job_nothing() -> None:
    """It gets no more of the job, or the batches wait; the crawl goes on."""
    machine, _ = d.running(slots=2, **FEEDS)
    export = d.started(give(machine, 1, 3))
    why = Outcome(failure="unknown_project", text="no folder")
    d.ask(machine, b.ended(export.process, how="failed", outcome=why), d.WORKER)
    assert machine.state.jobs[b.ID].is_crawling
    assert course(machine).failure is None


# ---- the end of the crawl ------------------------------------------------------------


def test_who_writes_batches_writes_the_rest() -> None:
    """It is not stopped with the others, but told that all items are there."""
    machine, export = beside()
    d.commit(machine, 1, b.unit(2, "started"))
    closing = m.Closing(job=b.ID, process=1, reason="finished")
    assert d.told(d.ask(machine, closing, d.WORKER), m.Stop) == []
    decision = d.finish(machine, 1, 2)
    assert d.told(decision, m.Stop) == []
    assert d.told(decision, m.Start) == []
    end = m.ItemsEnd(
        job=b.ID, process=export.process, items=3, items_bytes=24, tagged_bytes=15
    )
    assert d.told(decision, m.ItemsEnd) == [end]
    assert machine.state.jobs[b.ID].status == "running"
    d.commit(machine, export.process, b.unit(2, "closed", end=b.WRITTEN))
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_that_all_items_are_there_is_told_once_all_have_closed() -> None:
    """And again to one whose worker or master was away; once otherwise."""
    machine, first, second = d.wide(**FEEDS)
    export = d.started(
        d.commit(machine, first.process, b.unit(6, items=b.ITEM * 3), session=d.WORKER)
    )
    closing = m.Closing(job=b.ID, process=first.process, reason="enough")
    assert d.told(d.ask(machine, closing, d.WORKER), m.ItemsEnd) == []
    end = Outcome(finish_reason="enough")
    decision = d.commit(machine, first.process, b.unit(7, "closed", end=end))
    assert d.told(decision, m.ItemsEnd) == []
    decision = d.commit(machine, second.process, b.unit(1, "closed", end=end))
    (told_end,) = d.told(decision, m.ItemsEnd)
    assert d.told(d.ask(machine, b.ended(first.process), d.WORKER), m.ItemsEnd) == []
    d.ask(machine, b.ended(second.process), d.WORKER)
    d.ask(machine, OnClosed(), d.WORKER)
    held = (m.HeldProcess(job=b.ID, process=export.process),)
    for one in (machine, d.restarted(machine)):
        decision = d.ask(one, b.registration(slots=2, held=held))
        assert d.told(decision, m.ItemsEnd) == [told_end]
        assert d.told(decision, m.Stop) == []


def test_feeds_after_the_crawl_are_told_so_at_once() -> None:
    """With the order to start."""
    machine, start = d.running(has_feeds=True)
    decision = d.succeed(machine, start)
    export = d.started(decision)
    (end,) = d.told(decision, m.ItemsEnd)
    assert (end.process, end.items) == (export.process, 0)
    kinds = [type(one) for _, one in decision.sends]
    assert kinds.index(m.Start) < kinds.index(m.ItemsEnd)


def test_a_crawl_that_fails_stops_who_writes_its_batches() -> None:
    """It began while all was well; what there is goes to NAME.failed by another."""
    machine, export = beside()
    machine.state.jobs[b.ID].retries_left = 0
    end = Outcome(failure="spider_error", text="why")
    decision = d.commit(machine, 1, b.unit(2, "closed", end=end))
    (stop,) = d.told(decision, m.Stop)
    assert stop.process == export.process
    assert d.told(decision, m.ItemsEnd) == []
    stopped = Outcome(finish_reason=stop.reason)
    d.commit(machine, export.process, b.unit(2, "closed", end=stopped))
    assert not course(machine).feeds_done
    decision = d.ask(machine, b.ended(export.process), d.WORKER)
    again = d.started(decision)
    assert (again.role, again.came_to_end) == ("export", False)
    assert d.told(decision, m.ItemsEnd)
    d.commit(machine, again.process, b.unit(1, "closed", end=b.WRITTEN))
    assert machine.state.jobs[b.ID].status == "failed"


def test_what_an_export_beside_the_crawl_could_not_write_is_tried_once_more() -> None:
    """It failed as the crawl ended, before it was told so: that is no verdict yet."""
    machine, first, second = d.wide(**FEEDS)
    machine.state.jobs[b.ID].retries_left = 0
    export = d.started(d.commit(machine, first.process, b.unit(6, items=b.ITEM * 3)))
    d.ask(
        machine, m.Closing(job=b.ID, process=first.process, reason="enough"), d.WORKER
    )
    end = Outcome(failure="spider_error", text="no room")
    d.commit(machine, export.process, b.unit(1, "closed", end=end))
    d.ask(machine, b.ended(export.process), d.WORKER)
    end = Outcome(finish_reason="enough")
    d.commit(machine, first.process, b.unit(7, "closed", end=end))
    decision = d.commit(machine, second.process, b.unit(1, "closed", end=end))
    again = d.started(decision)
    assert again.role == "export"
    end = Outcome(failure="spider_error", text="no room")
    d.commit(machine, again.process, b.unit(1, "closed", end=end))
    assert course(machine).feeds_failure == end


# ---- orders --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_job_that_is_cancelled_or_paused_stops_its_export(verb: str) -> None:
    """It keeps the batches that it has; a job that goes on begins behind them."""
    machine, export = beside()
    reason = "cancelled" if verb == "cancel" else JOB_PAUSES
    stop = m.Stop(job=b.ID, process=export.process, reason=reason)
    assert stop in d.told(d.change(machine, verb), m.Stop)
    end = Outcome(finish_reason=reason)
    d.commit(machine, 1, b.unit(2, "closed", end=end))
    closed = b.unit(2, "closed", end=end, batches=(batch(2, 3, 6),))
    d.commit(machine, export.process, closed)
    for number in (1, export.process):
        assert d.told(d.ask(machine, b.ended(number), d.WORKER), m.Start) == []
    job = machine.state.jobs[b.ID]
    assert job.state == ("cancelled" if verb == "cancel" else "paused")
    d.change(machine, "retry" if verb == "cancel" else "resume")
    assert (job.status, course(machine).batches) == ("running", (batch(2, 3, 6),))


def test_a_fresh_run_begins_anew() -> None:
    """Its items are others, so where batches began means nothing any more."""
    machine, export = beside()
    d.change(machine, "cancel")
    end = Outcome(finish_reason="cancelled")
    for number in (1, export.process):
        d.commit(machine, number, b.unit(2, "closed", end=end))
        d.ask(machine, b.ended(number), d.WORKER)
    d.change(machine, "retry", fresh=True)
    assert course(machine).batches == ()


def test_a_drained_worker_stops_an_export_and_another_goes_on() -> None:
    """When it has something to do, and not on the worker that drains."""
    machine, export = beside()
    decision = d.ask(machine, m.Draining(), d.WORKER)
    assert {stop.process for stop in d.told(decision, m.Stop)} == {1, export.process}
    end = Outcome(finish_reason=WORKER_DRAINS)
    d.commit(machine, export.process, b.unit(2, "closed", end=end))
    decision = d.ask(machine, b.ended(export.process), d.WORKER)
    assert d.told(decision, m.Start) == []
    assert d.started(d.register(machine, 6, "v")).role == "export"


def test_a_job_whose_crawl_process_died_gets_another_beside_its_export() -> None:
    """An export is no crawl: a job that has only that is ready for a slot."""
    machine, export = beside()
    decision = d.ask(machine, b.ended(1), d.WORKER)
    again = d.started(decision)
    assert again.role == "crawl"
    assert d.told(d.ask(machine, b.opened(again.process, **FEEDS), d.WORKER), m.Lead)
    job = machine.state.jobs[b.ID]
    assert (job.processes, job.exports) == (1, 1)
    assert machine.state.processes[export.process].beside


def test_an_unknown_export_holds_up_no_crawl() -> None:
    """It has no leases that nobody else could know."""
    machine, _ = beside()
    other = d.restarted(machine)
    held = b.held(1, opened=b.opened(1, **FEEDS))
    other.state.unknown.discard(1)
    decision = d.ask(other, b.registration(held=(held,)))
    assert d.told(decision, m.Lead)


def test_slots_are_taken_from_crawl_processes_alone() -> None:
    """An export frees no slot when it goes, so nobody asks it to."""
    machine, first, second = d.wide(**FEEDS)
    export = d.started(d.commit(machine, first.process, b.unit(6, items=b.ITEM * 3)))
    assert export.process > second.process
    (stop,) = d.told(d.ask(machine, b.submit(b.OTHER), d.CLIENT), m.Stop)
    assert (stop.process, stop.reason) == (second.process, SLOT_NEEDED)
    # Nor is it counted where the ceiling is lowered.
    d.change(machine, "parallelism", count=1)
    assert machine.state.jobs[b.ID].processes == 2


# ---- what is no batch ----------------------------------------------------------------


def test_an_export_has_no_spider_to_close() -> None:
    """Whatever it says: the crawl goes on."""
    machine, export = beside()
    d.ask(
        machine, m.Closing(job=b.ID, process=export.process, reason="enough"), d.WORKER
    )
    assert machine.state.jobs[b.ID].is_crawling


def test_only_an_export_tells_of_batches() -> None:
    """From anybody else it is dropped."""
    machine, _ = beside()
    one = b.unit(2, "batch", batches=(batch(9, 3, 6),))
    assert d.results(d.commit(machine, 1, one)) == ["settled"]
    assert course(machine).batches == (batch(1, 0, 3),)


@pytest.mark.parametrize(
    "one",
    [
        b.unit(2, "late", batches=(batch(2, 3, 6),)),
        b.unit(2, "batch", batches=(batch(2, -1, 6),)),
        b.unit(2, "batch", batches=(batch(-2, 1, 6),)),
        b.unit(2, "batch", batches=(batch(2, 3, 6, before=NONE_OF_IT),)),
        b.unit(2, "closed", end=b.WRITTEN, written=(NONE_OF_IT,)),
        b.unit(2, "batch", written=(msgspec.structs.replace(NONE_OF_IT, items=0),)),
    ],
)
def test_what_cannot_be_a_batch_ends_the_session_or_its_process(one: m.Commit) -> None:
    """It would place a batch where no item is, or files beside the end."""
    machine, export = beside()
    with pytest.raises(RemoteProtocolError):
        d.commit(machine, export.process, one)


def test_a_snapshot_of_before_has_no_batches() -> None:
    """It is read, and a job of it begins with the first."""
    machine, _ = d.running(slots=2, **FEEDS)
    snapshot = msgspec.json.decode(machine.state.encode_snapshot())
    for name in ("batches", "export_deaths"):
        del snapshot["jobs"][0]["course"][name]
    del snapshot["processes"][0]["beside"]
    old = State.decode_snapshot(msgspec.json.encode(snapshot))
    assert old.encode_snapshot() == machine.state.encode_snapshot()
