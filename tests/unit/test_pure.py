"""``apply`` alone changes the state: deciding and showing leave all of it as it was."""

from typing import get_args

import attrs
import pytest

from dscrapy import messages as m
from dscrapy.control import apply as applying
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.decide import deadlines
from dscrapy.control.decide.reconcile import JobReconciler
from dscrapy.control.decision import Decision, OnPrune, OnTick
from dscrapy.control.machine import Machine
from dscrapy.keep import Keep
from tests import builders as b
from tests.doubles.watched import ImpureError, WatchedMachine, unchanged
from tests.unit import machine_driver as d
from tests.unit.test_state import eventful


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that has been through much, each of its steps watched."""
    monkeypatch.setattr(d, "Machine", WatchedMachine)
    watched, _ = eventful()
    assert isinstance(watched, WatchedMachine)
    assert watched._steps > 50
    return watched


def test_what_is_due_and_what_is_asked_changes_nothing(machine: Machine) -> None:
    """Ticks at every deadline, and calls that change, refuse or only look."""
    for seconds in (0.0, 11.0, 61.0, 1000.0):
        d.ask(machine, OnTick(), 0, d.later(seconds))
        machine.next_deadline_s(d.later(seconds))
    for verb in ("pause", "resume", "parallelism", "retry", "cancel"):
        change = m.ChangeJob(call=1, verb=verb, job=b.ID)
        d.ask(machine, change, d.CLIENT)
    d.ask(machine, m.Prune(call=1, keep_jobs=0, dry_run=True), d.CLIENT)
    machine.policy = attrs.evolve(machine.policy, keep=Keep(jobs=0))
    d.ask(machine, OnPrune(), 0, d.later(10_000.0))


def test_views_change_nothing(machine: Machine) -> None:
    """Of jobs, schedules, workers and all of them."""
    state = machine.state
    with unchanged(state):
        for identity in (*state.jobs, *state.schedules, "unknown"):
            views.show(state, 1, identity)
        for worker in state.workers.values():
            views.view_worker(worker, machine.policy.spans, d.NOW)
        views.list_jobs(state, m.ListJobs(call=1, limit=100))
        views.status(
            state,
            machine.policy.spans,
            d.NOW,
            call=1,
            host="h",
            port=1,
            uptime_s=0.0,
            versions=b.VERSIONS,
            note="",
        )


@pytest.mark.parametrize("planted", ["reconciling", "a deadline"])
def test_a_step_that_changes_the_state_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """A course that is begun, a count, the order of a set: whatever it is."""

    def reconcile(self: JobReconciler) -> None:
        self.crawl.frontier.leases._rights.processes.pop(1, None)

    def deadline(decision: Decision) -> float:
        decision.state.sessions[999] = "nobody"
        return 0.0

    if planted == "reconciling":
        monkeypatch.setattr(JobReconciler, "reconcile", reconcile)
        with pytest.raises(ImpureError):
            machine.reconcile(b.ID, d.NOW)
    else:
        monkeypatch.setattr(deadlines, "next_deadline_s", deadline)
        with pytest.raises(ImpureError):
            machine.next_deadline_s(d.NOW)


def test_every_record_has_one_handler() -> None:
    """No record is left out, and nothing else is taken for one."""
    volatile = set(get_args(r.Volatile))
    assert set(applying._HANDLERS) == {*get_args(r.Record), *volatile}
