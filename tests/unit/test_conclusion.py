"""Who ends a job, with what, after whom; and what happens when that process dies."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decision import Decision
from dscrapy.control.machine import Machine
from dscrapy.model import JOB_PAUSES, WORKER_DRAINS, Outcome, Stats
from tests import builders as b
from tests.unit import machine_driver as d

ENOUGH = Outcome(finish_reason="enough")
ONCE: dict[str, Any] = {"has_once": True}


def ending(machine: Machine, process: int, number: int, **end: str) -> Decision:
    """Let a process say that it closes, and that all of it is committed."""
    outcome = Outcome(**{"finish_reason": "enough"} | end)
    said = m.Closing(job=b.ID, process=process, reason=outcome.finish_reason)
    decision = d.ask(machine, said, d.WORKER)
    further = d.commit(machine, process, b.unit(number, "ending", end=outcome))
    decision.sends += further.sends
    return decision


def leave(
    machine: Machine, process: int, number: int, session: int = d.WORKER
) -> Decision:
    """Let a process commit its last, and exit."""
    last = b.unit(number, "closed", end=ENOUGH)
    decision = d.commit(machine, process, last, session=session)
    exited = d.ask(machine, b.ended(process), session)
    decision.sends += exited.sends
    return decision


def orders(decision: Decision) -> list[tuple[str, int]]:
    """Return who was told to retire or to conclude."""
    return [
        (type(one).__name__, one.process)
        for _, one in decision.sends
        if isinstance(one, m.Retire | m.Conclude)
    ]


def test_one_alone_concludes_at_once() -> None:
    """With the job's stats so far; its own last commit adds to them."""
    machine, start = d.crawling(0)
    count: Stats = {"sum": {"n": msgspec.Raw(b"2")}}
    d.commit(machine, start.process, b.unit(3, "late", stats=count))
    decision = ending(machine, start.process, 4)
    (conclude,) = d.told(decision, m.Conclude)
    assert not conclude.again
    assert bytes(conclude.stats["sum"]["n"]) == b"2"
    assert machine.state.jobs[b.ID].status == "running"
    last = b.unit(5, "closed", end=ENOUGH, stats=count)
    (done,) = d.told(d.commit(machine, start.process, last), m.Done)
    assert bytes(done.stats["sum"]["n"]) == b"4"
    assert machine.state.jobs[b.ID].status == "succeeded"


@pytest.mark.parametrize("leader_first", [True, False])
def test_all_but_the_leader_retire(leader_first: bool) -> None:
    """It concludes when they are gone, not when they have only committed their last."""
    machine, first, second = d.wide()
    steps = [(first.process, 6), (second.process, 1)]
    if not leader_first:
        steps.reverse()
    assert orders(ending(machine, *steps[0])) == []
    assert orders(ending(machine, *steps[1])) == [("Retire", second.process)]
    closed = d.commit(machine, second.process, b.unit(2, "closed", end=ENOUGH))
    assert orders(closed) == []
    gone = d.ask(machine, b.ended(second.process), d.WORKER)
    assert orders(gone) == [("Conclude", first.process)]
    leave(machine, first.process, 7)
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_who_has_not_come_so_far_is_waited_for() -> None:
    """Whether it then says *ending*, or closes at once as one that did not come up."""
    machine, first, second = d.wide()
    assert orders(ending(machine, first.process, 6)) == []
    assert orders(leave(machine, second.process, 1)) == [("Conclude", first.process)]


@pytest.mark.parametrize("verb", ["pause", "finished too early"])
def test_who_ends_while_the_job_goes_on_retires(verb: str) -> None:
    """A reason to close that came when the job was paused, or that is not the job's."""
    machine, _, second = d.wide()
    if verb == "pause":
        d.change(machine, "pause")
        end = {"finish_reason": "enough"}
    else:
        end = {"finish_reason": "finished"}
    decision = ending(machine, second.process, 1, **end)
    assert orders(decision) == [("Retire", second.process)]
    leave(machine, second.process, 2)
    assert not machine.state.jobs[b.ID].is_final


@pytest.mark.parametrize("reason", [JOB_PAUSES, WORKER_DRAINS])
def test_who_stops_for_itself_has_no_orders(reason: str) -> None:
    """It says no *ending*; the job is not over, so nothing is called once for it."""
    machine, start = d.crawling(1, **ONCE)
    said = m.Closing(job=b.ID, process=start.process, reason=reason)
    assert orders(d.ask(machine, said, d.WORKER)) == []
    decision = leave(machine, start.process, 3)
    assert orders(decision) == []
    assert not machine.state.jobs[b.ID].is_final


def test_feeds_are_written_before_it() -> None:
    """By a process of their own, while the last one waits in its only slot."""
    machine, start = d.crawling(0, has_feeds=True)
    decision = ending(machine, start.process, 3)
    assert orders(decision) == []
    export = d.started(decision)
    assert export.role == "export"
    decision = d.commit(machine, export.process, b.unit(1, "closed", end=b.WRITTEN))
    assert orders(decision) == [("Conclude", start.process)]
    leave(machine, start.process, 4)
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_a_pause_does_not_hold_up_the_feeds_of_a_job_that_ends() -> None:
    """A process waits for them in its slot, which a paused job should not have."""
    machine, start = d.crawling(0, has_feeds=True)
    d.commit(machine, start.process)
    d.ask(
        machine, m.Closing(job=b.ID, process=start.process, reason="enough"), d.WORKER
    )
    d.change(machine, "pause")
    export = d.started(
        d.commit(machine, start.process, b.unit(3, "ending", end=ENOUGH))
    )
    d.commit(machine, export.process, b.unit(1, "closed", end=b.WRITTEN))
    d.ask(machine, b.ended(export.process), d.WORKER)
    leave(machine, start.process, 4)
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_a_failed_or_cancelled_job_is_concluded_too() -> None:
    """By who is there; plain Scrapy calls its handlers then as well."""
    machine, start = d.crawling(1, **ONCE)
    machine.state.jobs[b.ID].retries_left = 0
    decision = ending(machine, start.process, 3, failure="unsupported", text="why")
    assert orders(decision) == [("Conclude", start.process)]
    leave(machine, start.process, 4)
    assert machine.state.jobs[b.ID].status == "failed"
    machine, start = d.crawling(1, **ONCE)
    d.change(machine, "cancel")
    decision = ending(machine, start.process, 3, finish_reason="cancelled")
    assert orders(decision) == [("Conclude", start.process)]
    # Nobody comes after it to do what a crawl that is not whole does not need.
    d.ask(machine, b.ended(start.process), d.WORKER)
    assert machine.state.jobs[b.ID].status == "cancelled"


def test_a_job_that_is_retried_is_not_concluded() -> None:
    """It goes on: those that wait retire, and the next process comes after them."""
    machine, start = d.crawling(1, **ONCE)
    decision = ending(machine, start.process, 3, failure="spider_error", text="why")
    assert orders(decision) == [("Retire", start.process)]
    again = d.started(leave(machine, start.process, 4))
    assert (
        d.told(d.ask(machine, b.opened(again.process, **ONCE), d.WORKER), m.Stop) == []
    )


# ---- deaths and restarts -------------------------------------------------------------


def test_when_the_last_one_dies_another_one_comes_only_to_end_the_job() -> None:
    """It is told to stop when it opens, commits no page, and concludes."""
    machine, start = d.crawling(0, **ONCE)
    assert orders(ending(machine, start.process, 3)) == [("Conclude", start.process)]
    again = d.started(d.ask(machine, b.ended(start.process), d.WORKER))
    decision = d.ask(machine, b.opened(again.process, **ONCE), d.WORKER)
    stop = m.Stop(job=b.ID, process=again.process, reason="enough")
    assert [one for _, one in decision.sends] == [stop]
    (conclude,) = d.told(ending(machine, again.process, 1), m.Conclude)
    assert (conclude.process, conclude.again) == (again.process, True)
    leave(machine, again.process, 2)
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_where_nothing_is_called_once_nobody_comes() -> None:
    """All is done and committed: the job ends, though its last process died."""
    machine, start = d.crawling(0)
    ending(machine, start.process, 3)
    assert d.told(d.ask(machine, b.ended(start.process), d.WORKER), m.Start) == []
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_one_that_was_told_to_retire_cannot_conclude_any_more() -> None:
    """The chosen one died before the others were gone: another one comes."""
    machine, first, second = d.wide(**ONCE)
    ending(machine, first.process, 6)
    assert orders(ending(machine, second.process, 1)) == [("Retire", second.process)]
    assert orders(d.ask(machine, b.ended(first.process), d.WORKER)) == []
    again = d.started(leave(machine, second.process, 2))
    d.ask(machine, b.opened(again.process, **ONCE), d.WORKER)
    assert orders(ending(machine, again.process, 1)) == [("Conclude", again.process)]


def test_kills_from_outside_do_not_count() -> None:
    """However many; deaths by the project's own doing end it as the table says."""
    machine, start = d.crawling(0, **ONCE)
    process, number = start.process, 3
    for _ in range(3 * machine.policy.start_deaths_max):
        ending(machine, process, number)
        process = d.started(d.ask(machine, b.ended(process), d.WORKER)).process
        d.ask(machine, b.opened(process, **ONCE), d.WORKER)
        number = 1
    assert machine.state.jobs[b.ID].begin().end_failures == 0


def test_one_that_cannot_open_to_end_the_job_is_counted() -> None:
    """Nor is its worker barred: it is asked again, as often as deaths are borne."""
    machine, start = d.crawling(0, **ONCE)
    machine.state.jobs[b.ID].retries_left = 0
    ending(machine, start.process, 3)
    decision = d.ask(machine, b.ended(start.process), d.WORKER)
    for _ in range(machine.policy.start_deaths_max):
        process = d.started(decision).process
        end = Outcome(failure="open_error", text="the database is down")
        d.commit(machine, process, b.unit(1, "closed", end=end))
        decision = d.ask(machine, b.ended(process), d.WORKER)
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().came_to_end) == ("failed", True)
    assert machine.state.workers["w"].barred == {}


def held(process: int, *, leads: bool = False) -> m.HeldProcess:
    """Return what a worker says of an open process that closes."""
    opened = b.opened(process, window=2, **ONCE)
    return b.held(process, opened=opened, leads=leads, closing="enough")


def test_orders_are_given_again_after_the_master_was_away() -> None:
    """The same ones: who was to retire, and who was to conclude."""
    machine, first, second = d.wide(**ONCE)
    ending(machine, first.process, 6)
    ending(machine, second.process, 1)
    machine = d.restarted(machine)
    both = (held(1, leads=True), held(2))
    decision = d.ask(machine, b.registration(slots=2, held=both), d.WORKER)
    assert orders(decision) == [("Retire", second.process)]
    decision = leave(machine, second.process, 2)
    assert orders(decision) == [("Conclude", first.process)]
    machine = d.restarted(machine)
    decision = d.ask(machine, b.registration(slots=2, held=both[:1]), d.WORKER)
    assert orders(decision) == [("Conclude", first.process)]
    # Its last commit may come before that is said again.
    machine = d.restarted(machine)
    again = b.registration(slots=2, held=both[:1])
    machine.carry_out(machine.decide(d.WORKER, again, d.NOW))
    leave(machine, first.process, 7)
    assert machine.state.jobs[b.ID].status == "succeeded"
    assert machine.state.jobs[b.ID].begin().concluded


def test_orders_are_given_again_when_a_worker_was_away() -> None:
    """Whether it had them is not known."""
    machine, start = d.crawling(0, **ONCE)
    ending(machine, start.process, 3)
    decision = d.ask(machine, b.registration(held=(held(1, leads=True),)), 6)
    assert orders(decision) == [("Conclude", start.process)]
    d.register(machine, 7, "v")
    leave(machine, start.process, 4, session=6)
    assert machine.state.jobs[b.ID].status == "succeeded"
