"""How long a job has run, where ``CLOSESPIDER_TIMEOUT`` and its like limit that."""

import pytest

from dscrapy import messages as m
from dscrapy.control.clock import Now
from dscrapy.control.decide.reconcile import TIME_NOTED_S
from dscrapy.control.decision import OnTick
from dscrapy.model import JOB_PAUSES, CloseLimits, Outcome
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    NOW,
    WORKER,
    ask,
    commits,
    ended,
    later,
    opened,
    registration,
    restarted,
    running,
    started,
    told,
    unit,
)


def test_the_time_of_a_job_is_time_in_which_it_ran() -> None:
    """Wall clocks may jump, the master may stop for long: neither counts. A paused job
    has no process, so its time stands; resumed it has what is left."""
    machine, start = running(limits=CloseLimits(timeout_s=60.0))
    leap = Now(run=later(30.0).run, wall=NOW.wall + 1e6)
    machine.heard(WORKER, leap)
    assert told(ask(machine, OnTick(), 0, leap), m.Stop) == []
    assert machine.next_deadline_s(leap) == pytest.approx(TIME_NOTED_S)
    ask(machine, m.ChangeJob(call=2, verb="pause", job=ID), CLIENT, later(40.0))
    end = Outcome(finish_reason=JOB_PAUSES)
    said = commits(start.process, unit(1, "closed", end=end))
    ask(machine, said, WORKER, later(41.0))
    ask(machine, ended(start.process), WORKER, later(42.0))
    assert machine.state.jobs[ID].begin().watch.ran_s == pytest.approx(40.0)
    resume = m.ChangeJob(call=3, verb="resume", job=ID)
    process = started(ask(machine, resume, CLIENT, later(500.0))).process
    opening = opened(process, limits=CloseLimits(timeout_s=60.0))
    ask(machine, opening, WORKER, later(510.0))
    machine.heard(WORKER, later(529.0))
    assert told(ask(machine, OnTick(), 0, later(529.0)), m.Stop) == []
    decision = ask(machine, OnTick(), 0, later(530.0))
    (stop,) = told(decision, m.Stop)
    assert stop.reason == "closespider_timeout"


def test_no_time_runs_while_there_is_no_master() -> None:
    """The next one knows how long the job has run, but for the last seconds; it runs on
    when a process of it is known again."""
    limits = CloseLimits(timeout_s=60.0)
    machine, start = running(limits=limits)
    for seconds in (12.0, 24.0, 36.0, 40.0):
        machine.heard(WORKER, later(seconds))
        ask(machine, OnTick(), 0, later(seconds))
    again = restarted(machine)
    known = again.state.jobs[ID].begin().watch.ran_s
    assert 40.0 - TIME_NOTED_S <= known <= 40.0
    assert again.next_deadline_s(later(900.0)) == 0
    held = m.Held(
        job=ID, process=start.process, opened=opened(start.process, limits=limits)
    )
    ask(again, registration(held=(held,)), 6, later(900.0))
    last = later(900.0 + 60.0 - known)
    again.heard(6, last)
    before = Now(run=last.run - 0.1, wall=last.wall)
    assert told(ask(again, OnTick(), 0, before), m.Stop) == []
    (stop,) = told(ask(again, OnTick(), 0, last), m.Stop)
    assert stop.reason == "closespider_timeout"


def test_a_job_without_limits_of_time_journals_none() -> None:
    """Most have none: it costs them no record."""
    machine, _ = running()
    machine.heard(WORKER, later(59.0))
    assert ask(machine, OnTick(), 0, later(59.0)).records == []
    assert machine.state.crawls[ID].runs_since is None
