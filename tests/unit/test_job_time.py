"""How long a job has run, where ``CLOSESPIDER_TIMEOUT`` and its like limit that."""

import pytest

from dscrapy import messages as m
from dscrapy.control.clock import Now
from dscrapy.control.decide.reconcile import TIME_NOTED_S
from dscrapy.control.decision import OnTick
from dscrapy.model import JOB_PAUSES, CloseLimits, Outcome
from tests import builders as b
from tests.unit import machine_driver as d


def test_the_time_of_a_job_is_time_in_which_it_ran() -> None:
    """Wall clocks may jump, the master may stop for long: neither counts. A paused job
    has no process, so its time stands; resumed it has what is left."""
    machine, start = d.running(limits=CloseLimits(timeout_s=60.0))
    leap = Now(run=d.later(30.0).run, wall=d.NOW.wall + 1e6)
    machine.heard(d.WORKER, leap)
    assert d.told(d.ask(machine, OnTick(), 0, leap), m.Stop) == []
    assert machine.next_deadline_s(leap) == pytest.approx(TIME_NOTED_S)
    d.ask(machine, m.ChangeJob(call=2, verb="pause", job=b.ID), d.CLIENT, d.later(40.0))
    end = Outcome(finish_reason=JOB_PAUSES)
    said = b.commits(start.process, b.unit(1, "closed", end=end))
    d.ask(machine, said, d.WORKER, d.later(41.0))
    d.ask(machine, b.ended(start.process), d.WORKER, d.later(42.0))
    assert machine.state.jobs[b.ID].begin().watch.ran_s == pytest.approx(40.0)
    resume = m.ChangeJob(call=3, verb="resume", job=b.ID)
    process = d.started(d.ask(machine, resume, d.CLIENT, d.later(500.0))).process
    opening = b.opened(process, limits=CloseLimits(timeout_s=60.0))
    d.ask(machine, opening, d.WORKER, d.later(510.0))
    machine.heard(d.WORKER, d.later(529.0))
    assert d.told(d.ask(machine, OnTick(), 0, d.later(529.0)), m.Stop) == []
    decision = d.ask(machine, OnTick(), 0, d.later(530.0))
    (stop,) = d.told(decision, m.Stop)
    assert stop.reason == "closespider_timeout"


def test_no_time_runs_while_there_is_no_master() -> None:
    """The next one knows how long the job has run, but for the last seconds; it runs on
    when a process of it is known again."""
    limits = CloseLimits(timeout_s=60.0)
    machine, start = d.running(limits=limits)
    for seconds in (12.0, 24.0, 36.0, 40.0):
        machine.heard(d.WORKER, d.later(seconds))
        d.ask(machine, OnTick(), 0, d.later(seconds))
    again = d.restarted(machine)
    known = again.state.jobs[b.ID].begin().watch.ran_s
    assert 40.0 - TIME_NOTED_S <= known <= 40.0
    assert again.next_deadline_s(d.later(900.0)) == 0
    held = b.held(start.process, opened=b.opened(start.process, limits=limits))
    d.ask(again, b.registration(held=(held,)), 6, d.later(900.0))
    last = d.later(900.0 + 60.0 - known)
    again.heard(6, last)
    before = Now(run=last.run - 0.1, wall=last.wall)
    assert d.told(d.ask(again, OnTick(), 0, before), m.Stop) == []
    (stop,) = d.told(d.ask(again, OnTick(), 0, last), m.Stop)
    assert stop.reason == "closespider_timeout"


def test_a_job_without_limits_of_time_journals_none() -> None:
    """Most have none: it costs them no record."""
    machine, _ = d.running()
    machine.heard(d.WORKER, d.later(59.0))
    assert d.ask(machine, OnTick(), 0, d.later(59.0)).records == []
    assert machine.state.crawls[b.ID].runs_since is None


def test_time_may_be_up_when_the_worker_is_given_up() -> None:
    """In one tick: its process is gone when it is to be stopped, and the job ends."""
    machine, _ = d.running(limits=CloseLimits(timeout_s=60.0))
    d.ask(machine, OnTick(), 0, d.later(1000.0))
    assert machine.state.workers == {}
    assert machine.state.jobs[b.ID].status == "succeeded"
    assert machine.state.jobs[b.ID].begin().closing == "closespider_timeout"
