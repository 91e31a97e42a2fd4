"""A job that no worker may have: people see why, and `retry` or a new worker helps."""

from typing import Any

import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.decision import Decision, OnClosed
from dscrapy.control.machine import Machine
from dscrapy.model import Outcome
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    NOW,
    WORKER,
    answers,
    ask,
    change,
    ended,
    let_be,
    new_machine,
    register,
    registration,
    restarted,
    running,
    started,
    submit,
    submit_other,
    told,
    wide,
)

IMPORT = Outcome(failure="import_error", text="No module named x")
MAY_NOT = "no worker that is connected can run it"


def reason(machine: Machine) -> str:
    """Return what people see."""
    return views.view_job(machine.state, machine.state.jobs[ID]).reason


def barred(how: str = "other_code", **fields: Any) -> Machine:
    """Return a machine whose one worker may not have its one job."""
    machine = new_machine()
    ask(machine, submit())
    start = started(register(machine))
    said = ended(start.process, how=how, text="the code differs", **fields)
    assert told(ask(machine, said, WORKER), m.Start) == []
    assert ID in machine.state.workers["w"].barred
    return machine


@pytest.mark.parametrize("how", ["other_code", "refused"])
def test_a_ready_job_says_why_and_retry_lets_it_run(how: str) -> None:
    """It has not ended, and is tried again all the same, from any code."""
    machine = barred(how)
    assert machine.state.jobs[ID].status == "ready"
    assert reason(machine).startswith(f"{MAY_NOT} (the code differs): ")
    decision = change(machine, "retry")
    assert isinstance(answers(decision, CLIENT)[0], m.Shown)
    start = started(decision)
    assert start.digest == ""
    assert reason(machine) == ""
    # There is nothing to forgive any more.
    refused = answers(change(machine, "retry"), CLIENT)
    assert (refused[0].code, "has not ended" in refused[0].text) == ("bad_state", True)


def test_fresh_is_for_jobs_that_have_ended() -> None:
    """It would throw away what is committed."""
    machine = barred()
    (refused,) = answers(change(machine, "retry", fresh=True), CLIENT)
    assert refused.code == "bad_state"
    assert ID in machine.state.workers["w"].barred


def test_a_new_worker_gets_what_the_others_may_not_have() -> None:
    """Also the old one in a new life."""
    machine = barred()
    assert started(register(machine, 6, "v")).job == ID
    machine = barred()
    ask(machine, m.Leaving(), WORKER)
    assert reason(machine).startswith("the code differs")
    assert started(ask(machine, registration(instance="2"), 6)).job == ID


@pytest.mark.parametrize("is_away", [False, True])
def test_a_worker_that_was_away_is_forgiven_too(is_away: bool) -> None:
    """It is barred for its life; a retry counts for those that are away, too."""
    machine = barred()
    ask(machine, OnClosed(), WORKER)
    if is_away:
        change(machine, "retry")
        assert started(ask(machine, registration(), 6)).job == ID
        return
    assert told(ask(machine, registration(), 6), m.Start) == []
    assert reason(machine).startswith(MAY_NOT)
    assert started(change(machine, "retry")).job == ID


def test_a_restarted_master_bars_nobody() -> None:
    """What was held against workers is not journalled."""
    machine = restarted(barred())
    assert started(register(machine, 6)).job == ID


def test_an_automatic_retry_is_tried_by_somebody() -> None:
    """It would be none if all who are here may not have the job."""
    machine = new_machine()
    ask(machine, submit())
    process = started(register(machine)).process
    machine.state.workers["w"].barred[ID] = "broken"
    said = ended(process, how="failed", outcome=IMPORT)
    decision = ask(machine, said, WORKER)
    assert machine.state.jobs[ID].retries_left == 0
    assert started(decision).job == ID


def test_a_failed_job_is_tried_again_by_all() -> None:
    """Whoever failed it gets it again."""
    machine = new_machine()
    ask(machine, submit())
    start = started(register(machine))
    for number in (start.process, start.process + 1):
        said = ended(number, how="failed", outcome=IMPORT)
        ask(machine, said, WORKER)
    assert machine.state.jobs[ID].status == "failed"
    machine.state.workers["w"].barred[ID] = "broken"
    assert started(change(machine, "retry")).job == ID


def test_a_running_job_gets_its_barred_workers_back() -> None:
    """Its processes go on, with the code that they have."""
    machine, first, second = wide()
    machine.state.jobs[ID].begin().digest = "d"
    register(machine, 6, "v")
    machine.state.workers["v"].barred[ID] = "broken"
    decision: Decision = change(machine, "retry")
    assert isinstance(answers(decision, CLIENT)[0], m.Shown)
    assert machine.state.workers["v"].barred == {}
    assert machine.state.jobs[ID].begin().digest == "d"
    assert {first.process, second.process} <= set(machine.state.processes)
    assert machine.decide(CLIENT, m.Ping(call=1), NOW).records == []


def test_a_note_names_the_newest_and_leaves_out_what_is_gone() -> None:
    """A worker that has been here for a year has a note about today."""
    machine = barred()
    for number in range(5):
        one = f"{number:016x}"[::-1]
        if one != ID:
            let_be(machine, r.WorkerBarred(name="w", job=one, why="why"))
    worker = machine.state.workers["w"]
    note = views.view_worker(worker, machine.policy.spans, NOW).note
    newest = list(reversed(worker.barred))
    assert [note.index(f"job {one} (0 s ago)") for one in newest[:3]] == sorted(
        note.index(f"job {one}") for one in newest[:3]
    )
    assert note.endswith(f"; and of {len(newest) - 3} more")
    gone = set(newest) - {ID}
    note = views.view_worker(worker, machine.policy.spans, NOW, gone).note
    assert note == f"gets no more of job {ID} (0 s ago): the code differs"


def test_a_job_that_waits_for_a_slot_says_so() -> None:
    """And one that is paused since when, also after a restart of the master."""
    machine, _ = running()
    ask(machine, submit_other())
    (other,) = [job for job in machine.state.jobs if job != ID]

    def why() -> str:
        return views.view_job(machine.state, machine.state.jobs[other]).reason

    assert why() == "no slot is free: all 1 are taken"
    change(machine, "pause", other)
    assert why() == "since 1970-01-12 13:46:40 UTC"
    machine = restarted(machine)
    assert why() == "since 1970-01-12 13:46:40 UTC"
    change(machine, "resume", other)
    assert why() == "no worker is connected"
