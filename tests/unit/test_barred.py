"""A job that no worker may have: people see why, and `retry` or a new worker helps."""

from typing import Any

import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.decision import Decision, OnClosed
from dscrapy.control.machine import Machine
from dscrapy.model import Outcome
from tests import builders as b
from tests.unit import machine_driver as d

IMPORT = Outcome(failure="import_error", text="No module named x")
MAY_NOT = "no worker that is connected can run it"


def reason(machine: Machine) -> str:
    """Return what people see."""
    return views.view_job(machine.state, machine.state.jobs[b.ID]).reason


def barred(how: str = "other_code", **fields: Any) -> Machine:
    """Return a machine whose one worker may not have its one job."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    said = b.ended(start.process, how=how, text="the code differs", **fields)
    assert d.told(d.ask(machine, said, d.WORKER), m.Start) == []
    assert b.ID in machine.state.workers["w"].barred
    return machine


@pytest.mark.parametrize("how", ["other_code", "refused"])
def test_a_ready_job_says_why_and_retry_lets_it_run(how: str) -> None:
    """It has not ended, and is tried again all the same, from any code."""
    machine = barred(how)
    assert machine.state.jobs[b.ID].status == "ready"
    assert reason(machine).startswith(f"{MAY_NOT} (the code differs): ")
    decision = d.change(machine, "retry")
    assert isinstance(d.answers(decision, d.CLIENT)[0], m.Shown)
    start = d.started(decision)
    assert start.digest == ""
    assert reason(machine) == ""
    # There is nothing to forgive any more.
    refused = d.answers(d.change(machine, "retry"), d.CLIENT)
    assert (refused[0].code, "has not ended" in refused[0].text) == ("bad_state", True)


def test_fresh_is_for_jobs_that_have_ended() -> None:
    """It would throw away what is committed."""
    machine = barred()
    (refused,) = d.answers(d.change(machine, "retry", fresh=True), d.CLIENT)
    assert refused.code == "bad_state"
    assert b.ID in machine.state.workers["w"].barred


def test_a_new_worker_gets_what_the_others_may_not_have() -> None:
    """Also the old one in a new life."""
    machine = barred()
    assert d.started(d.register(machine, 6, "v")).job == b.ID
    machine = barred()
    d.ask(machine, m.Leaving(), d.WORKER)
    assert reason(machine).startswith("the code differs")
    assert d.started(d.ask(machine, b.registration(instance="2"), 6)).job == b.ID


@pytest.mark.parametrize("is_away", [False, True])
def test_a_worker_that_was_away_is_forgiven_too(is_away: bool) -> None:
    """It is barred for its life; a retry counts for those that are away, too."""
    machine = barred()
    d.ask(machine, OnClosed(), d.WORKER)
    if is_away:
        d.change(machine, "retry")
        assert d.started(d.ask(machine, b.registration(), 6)).job == b.ID
        return
    assert d.told(d.ask(machine, b.registration(), 6), m.Start) == []
    assert reason(machine).startswith(MAY_NOT)
    assert d.started(d.change(machine, "retry")).job == b.ID


def test_a_restarted_master_bars_nobody() -> None:
    """What was held against workers is not journalled."""
    machine = d.restarted(barred())
    assert d.started(d.register(machine, 6)).job == b.ID


def test_an_automatic_retry_is_tried_by_somebody() -> None:
    """It would be none if all who are here may not have the job."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    process = d.started(d.register(machine)).process
    machine.state.workers["w"].barred[b.ID] = "broken"
    said = b.ended(process, how="failed", outcome=IMPORT)
    decision = d.ask(machine, said, d.WORKER)
    assert machine.state.jobs[b.ID].retries_left == 0
    assert d.started(decision).job == b.ID


def test_a_failed_job_is_tried_again_by_all() -> None:
    """Whoever failed it gets it again."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    for number in (start.process, start.process + 1):
        said = b.ended(number, how="failed", outcome=IMPORT)
        d.ask(machine, said, d.WORKER)
    assert machine.state.jobs[b.ID].status == "failed"
    machine.state.workers["w"].barred[b.ID] = "broken"
    assert d.started(d.change(machine, "retry")).job == b.ID


def test_a_running_job_gets_its_barred_workers_back() -> None:
    """Its processes go on, with the code that they have."""
    machine, first, second = d.wide()
    machine.state.jobs[b.ID].begin().digest = "d"
    d.register(machine, 6, "v")
    machine.state.workers["v"].barred[b.ID] = "broken"
    decision: Decision = d.change(machine, "retry")
    assert isinstance(d.answers(decision, d.CLIENT)[0], m.Shown)
    assert machine.state.workers["v"].barred == {}
    assert machine.state.jobs[b.ID].begin().digest == "d"
    assert {first.process, second.process} <= set(machine.state.processes)
    assert machine.decide(d.CLIENT, m.Ping(call=1), d.NOW).records == []


def test_a_note_names_the_newest_and_leaves_out_what_is_gone() -> None:
    """A worker that has been here for a year has a note about today."""
    machine = barred()
    for number in range(5):
        one = b.job_id(number)[::-1]
        if one != b.ID:
            d.let_be(machine, r.WorkerBarred(name="w", job=one, why="why"))
    worker = machine.state.workers["w"]
    note = views.view_worker(worker, machine.policy.spans, d.NOW).note
    newest = list(reversed(worker.barred))
    assert [note.index(f"job {one} (0 s ago)") for one in newest[:3]] == sorted(
        note.index(f"job {one}") for one in newest[:3]
    )
    assert note.endswith(f"; and of {len(newest) - 3} more")
    gone = set(newest) - {b.ID}
    note = views.view_worker(worker, machine.policy.spans, d.NOW, gone).note
    assert note == f"gets no more processes of job {b.ID} (0 s ago): the code differs"


def test_a_job_that_waits_for_a_slot_says_so() -> None:
    """And one that is paused since when, also after a restart of the master."""
    machine, _ = d.running()
    d.ask(machine, b.submit(b.OTHER))
    (other,) = [job for job in machine.state.jobs if job != b.ID]

    def why() -> str:
        return views.view_job(machine.state, machine.state.jobs[other]).reason

    assert why() == "no slot is free: all 1 are taken"
    d.change(machine, "pause", other)
    assert why() == "since 1970-01-12 13:46:40 UTC"
    machine = d.restarted(machine)
    assert why() == "since 1970-01-12 13:46:40 UTC"
    d.change(machine, "resume", other)
    assert why() == "no worker is connected"
