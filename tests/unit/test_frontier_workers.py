"""Workers that come, fall silent, come again and speak late."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.frontier import views
from dscrapy.frontier.decision import OnClosed, OnTick
from dscrapy.frontier.machine import SLOTS_MAX, Machine
from dscrapy.frontier.state import State
from dscrapy.frontier.workers import Spans, Worker
from dscrapy.model import Outcome
from tests.unit.frontier_values import (
    CLIENT,
    ITEM,
    OTHER,
    WORKER,
    again,
    answers,
    change,
    later,
    part,
    result,
    running,
    submit_other,
)
from tests.unit.test_machine import (
    ID,
    NOW,
    SPEC,
    apply,
    ask,
    commit,
    new_machine,
    register,
    started,
    submit,
)

# ---- workers that come and go ------------------------------------------------------


def test_a_silent_worker_is_reaped_and_its_job_pays_nothing() -> None:
    """Not before its time; then its session ends and the job is ready for others."""
    machine, start = running()
    silent = later(machine.spans.die_after_s - 0.1)
    assert machine.next_deadline_s(silent) == pytest.approx(0.1)
    assert machine.decide(0, OnTick(), silent).records == []
    decision = apply(machine, machine.decide(0, OnTick(), later(20.0)))
    assert decision.closes == [WORKER]
    job = machine.state.jobs[ID]
    assert (job.status, job.retries_left, job.begin().deaths) == ("ready", 1, 0)
    assert machine.state.workers == {}
    assert machine.state.processes == {}
    register(machine, 6, "v")
    assert started(machine).process == start.process + 1


def test_any_word_of_a_worker_puts_its_death_off() -> None:
    """A word of somebody who is no worker does not."""
    machine, _ = running()
    machine.heard(CLIENT, later(10.0))
    assert machine.next_deadline_s(later(10.0)) == pytest.approx(10.0)
    machine.heard(WORKER, later(10.0))
    assert machine.next_deadline_s(later(10.0)) == pytest.approx(20.0)


def test_a_broken_connection_has_its_own_shorter_grace() -> None:
    """Away, then gone; in between nothing is given to it."""
    machine, start = running()
    ask(machine, OnClosed(), WORKER)
    ask(machine, submit_other(), CLIENT)
    assert machine.assign(NOW) is None
    assert machine.state.jobs[ID].status == "running"
    grace_s = machine.spans.reconnect_grace_s
    assert machine.next_deadline_s(NOW) == pytest.approx(grace_s)
    decision = apply(machine, machine.decide(0, OnTick(), later(grace_s)))
    assert decision.closes == []
    assert machine.state.jobs[ID].status == "ready"
    assert start.process not in machine.state.processes


def test_a_job_that_was_being_cancelled_ends_with_its_worker() -> None:
    """It is not run again only to be cancelled."""
    machine, _ = running()
    change(machine, "cancel")
    apply(machine, machine.decide(0, OnTick(), later(100.0)))
    assert machine.state.jobs[ID].status == "cancelled"


def test_a_worker_that_leaves_is_gone_at_once() -> None:
    """Its session is closed; whatever it says after that only closes it again."""
    machine, _ = running()
    assert ask(machine, m.Leaving(), WORKER).closes == [WORKER]
    assert machine.state.workers == {}
    late = ask(machine, m.Heartbeat(number=1), WORKER)
    assert (late.records, late.sends, late.closes) == ([], [], [WORKER])


def test_a_worker_says_that_it_drains() -> None:
    """It gets nothing more, and people see why."""
    machine = new_machine()
    register(machine, WORKER)
    ask(machine, m.Draining(), WORKER)
    ask(machine, submit(), CLIENT)
    assert machine.assign(NOW) is None
    worker = machine.state.workers["w"]
    assert views.view_worker(worker, machine.spans, NOW).state == "draining"


def test_a_heartbeat_is_answered_with_its_number() -> None:
    """And it is no fact: nothing is written for it."""
    machine, _ = running()
    decision = ask(machine, m.Heartbeat(number=8), WORKER)
    assert decision.sends == [(WORKER, m.HeartbeatSeen(number=8))]
    assert decision.records == []


@pytest.mark.parametrize(
    ("silence_s", "is_away", "code"),
    [
        (0.0, False, "name_taken"),
        (4.1, False, "name_silent"),
        (0.0, True, "name_silent"),
    ],
)
def test_a_second_worker_of_a_name_is_refused(
    silence_s: float, is_away: bool, code: str
) -> None:
    """For good while the first is heard; else it may be the same one, restarted."""
    machine, _ = running()
    if is_away:
        ask(machine, OnClosed(), WORKER)
    decision = apply(machine, machine.decide(6, again(instance="2"), later(silence_s)))
    (refused,) = answers(decision, 6)
    assert (refused.call, refused.code) == (-1, code)
    assert decision.closes == [6]
    assert decision.records == []


def test_a_worker_that_comes_again_keeps_what_both_sides_know() -> None:
    """Its old session ends; strangers among its processes are to be killed."""
    machine, start = running()
    decision = ask(machine, again(held=(start.process, 99)), 6)
    assert decision.closes == [WORKER]
    (registered, hold) = answers(decision, 6)
    assert registered.drop == (99,)
    assert hold == m.Hold(job=ID, process=start.process, on=False)
    assert machine.state.jobs[ID].status == "running"
    # The old connection's end comes late and concerns nobody.
    ask(machine, OnClosed(), WORKER)
    assert machine.state.workers["w"].session == 6


def test_what_a_worker_no_longer_holds_is_run_again() -> None:
    """It came back without the process: its end was lost on the way."""
    machine, start = running()
    ask(machine, again(), 6)
    job = machine.state.jobs[ID]
    assert (job.status, job.retries_left) == ("ready", 1)
    assert "no longer has it" in job.begin().reason
    assert started(machine).process == start.process + 1


def test_a_worker_that_was_away_learns_what_it_missed() -> None:
    """A pause, a cancel, or that its job has ended: each reaches the process."""

    def told(machine: Machine, process: int) -> Any:
        return answers(ask(machine, again(held=(process,)), 6), 6)[-1]

    machine, start = running()
    ask(machine, OnClosed(), WORKER)
    assert answers(change(machine, "pause"), WORKER) == []
    assert told(machine, start.process) == m.Hold(
        job=ID, process=start.process, on=True
    )
    machine, start = running()
    ask(machine, OnClosed(), WORKER)
    change(machine, "cancel")
    stop = m.Stop(job=ID, process=start.process, reason="cancelled")
    assert told(machine, start.process) == stop
    machine, start = running()
    ask(machine, commit(start), WORKER)
    ask(machine, OnClosed(), WORKER)
    stop = m.Stop(job=ID, process=start.process, reason="settled")
    assert told(machine, start.process) == stop
    machine, start = running()
    failed = Outcome(failure="start_error", text="boom")
    ask(machine, commit(start, outcome=failed), WORKER)
    ask(machine, OnClosed(), WORKER)
    assert machine.state.jobs[ID].status == "ready"
    assert told(machine, start.process) == stop


def test_a_started_master_waits_for_those_who_hold_something() -> None:
    """As long as for a silent one; they are away, and nobody else is expected."""
    machine, start = running()
    state = State.decode_snapshot(machine.state.encode_snapshot())
    restarted = Machine(state=state)
    apply(restarted, restarted.begin(NOW))
    assert restarted.state.epoch == machine.state.epoch + 1
    (worker,) = state.workers.values()
    seen = views.view_worker(worker, restarted.spans, later(3.0))
    assert (seen.state, seen.busy, seen.last_heartbeat_s) == ("away", 1, 3.0)
    assert restarted.next_deadline_s(NOW) == restarted.spans.die_after_s
    # Whatever its instance: this master does not know the one before.
    ask(restarted, again(held=(start.process,), instance="2"), 6)
    assert answers(ask(restarted, commit(start), 6), 6)[0].result == "published"


@pytest.mark.parametrize(
    ("worker", "now", "seen"),
    [
        (Worker(name="w", since=0.0), 0.0, "away"),
        (Worker(name="w", since=0.0, session=1), 4.0, "live"),
        (Worker(name="w", since=0.0, session=1), 4.1, "silent"),
        (Worker(name="w", since=0.0, session=1, draining=True), 4.0, "draining"),
        (Worker(name="w", since=0.0, session=1, draining=True), 4.1, "silent"),
    ],
)
def test_what_people_see_of_a_worker(worker: Worker, now: float, seen: str) -> None:
    """Two heartbeats of silence are shown, whatever else it does."""
    assert Spans(heartbeat_s=2.0).state(worker, now) == seen


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../w"},
        {"name": ""},
        {"name": "w\n"},
        {"slots": 0},
        {"slots": SLOTS_MAX + 1},
    ],
)
def test_a_worker_needs_a_plain_name_and_some_slots(fields: dict[str, Any]) -> None:
    """Its name stands in paths and on terminals; nothing is known of it after."""
    machine = new_machine()
    with pytest.raises(RemoteProtocolError, match="bad_worker"):
        ask(machine, msgspec.structs.replace(again(), **fields), WORKER)
    assert machine.state.workers == {}


def test_a_session_registers_once() -> None:
    """A second name on one connection would be two workers that die as one."""
    machine, _ = running()
    with pytest.raises(RemoteProtocolError, match="registers once"):
        ask(machine, msgspec.structs.replace(again(), name="v"), WORKER)


# ---- what workers say of processes -------------------------------------------------


def test_words_about_another_workers_process_change_nothing() -> None:
    """A worker speaks of its own: neither code, progress nor end of another's."""
    machine, start = running()
    register(machine, 6, "v")
    seen = m.Started(job=ID, process=start.process, digest="d")
    progress = m.Progress(
        job=ID, process=start.process, pages=1, items=1, errors=0, in_flight=0
    )
    ended = m.Ended(job=ID, process=start.process, how="exited")
    log = m.Log(job=ID, process=start.process, data=b"x")
    for said in (seen, progress, ended, log):
        assert ask(machine, said, 6).records == []
    assert not machine.holds(6, log)
    assert not machine.holds(CLIENT, log)
    assert machine.holds(WORKER, log)
    # Another job's name on it makes it another's, too.
    assert not machine.holds(WORKER, msgspec.structs.replace(log, job=OTHER))


def test_the_first_digest_stays() -> None:
    """Later processes are measured against it; telling it again writes nothing."""
    machine, start = running()
    seen = m.Started(job=ID, process=start.process, digest="d1")
    ask(machine, seen, WORKER)
    other = msgspec.structs.replace(seen, digest="d2")
    assert ask(machine, other, WORKER).records == []
    ask(machine, m.Ended(job=ID, process=start.process, how="exited"), WORKER)
    assert started(machine).digest == "d1"


def test_progress_is_shown_until_the_facts_are_there() -> None:
    """What is not published counts in the view; after the end only what is."""
    machine, start = running()
    progress = m.Progress(
        job=ID, process=start.process, pages=9, items=8, errors=0, in_flight=1
    )
    ask(machine, progress, WORKER)
    view = views.view_job(machine.state, machine.state.jobs[ID])
    assert (view.pages, view.items, view.leased) == (9, 8, 1)
    ask(machine, commit(start, items=ITEM), WORKER)
    assert ask(machine, progress, WORKER).records == []
    view = views.view_job(machine.state, machine.state.jobs[ID])
    assert (view.pages, view.items, view.workers) == (0, 1, ("w",))


@pytest.mark.parametrize(("is_draining", "differs"), [(False, True), (True, False)])
def test_a_worker_that_refuses_a_job_is_not_asked_again(
    is_draining: bool, differs: bool
) -> None:
    """Unless it refused because it drains: that says nothing of the job."""
    machine, start = running()
    if is_draining:
        ask(machine, m.Draining(), WORKER)
    ask(
        machine,
        m.Ended(job=ID, process=start.process, how="refused", text="no room"),
        WORKER,
    )
    worker = machine.state.workers["w"]
    assert (ID in worker.differs) == differs
    assert bool(views.view_worker(worker, machine.spans, NOW).note) == differs
    assert machine.state.jobs[ID].begin().reason == "no room on worker w"


@pytest.mark.parametrize(
    ("failure", "status"), [("unknown_spider", "failed"), ("import_error", "ready")]
)
def test_a_job_that_can_run_nowhere_fails(failure: str, status: str) -> None:
    """At once where a retry cannot help; else it costs one."""
    machine, start = running(retries=1)
    outcome = Outcome(failure=failure, text="why", traceback="where")
    ended = m.Ended(job=ID, process=start.process, how="failed", outcome=outcome)
    ask(machine, ended, WORKER)
    job = machine.state.jobs[ID]
    assert job.status == status
    assert "why" in job.begin().reason
    assert job.begin().traceback == ("where" if status == "failed" else "")


@pytest.mark.parametrize("how", ["exited", "refused", "failed"])
def test_a_process_that_ends_while_cancelled_ends_its_job(how: Any) -> None:
    """Also one that was killed, or never came to run."""
    machine, start = running()
    change(machine, "cancel")
    outcome = Outcome(failure="import_error") if how == "failed" else None
    ended = m.Ended(job=ID, process=start.process, how=how, outcome=outcome)
    ask(machine, ended, WORKER)
    assert machine.state.jobs[ID].status == "cancelled"


@pytest.mark.parametrize("how", ["exited", "failed"])
def test_an_end_after_the_commit_changes_no_result(how: Any) -> None:
    """The answer comes each time, since the first may have been lost."""
    machine, start = running()
    ask(machine, commit(start), WORKER)
    outcome = Outcome(failure="unknown_spider") if how == "failed" else None
    ended = m.Ended(
        job=ID, process=start.process, how=how, counted=True, outcome=outcome
    )
    for _ in range(2):
        decision = ask(machine, ended, WORKER)
        assert decision.sends == [(WORKER, m.EndedSeen(process=start.process))]
    assert machine.state.jobs[ID].status == "succeeded"


# ---- commits in parts --------------------------------------------------------------


def test_parts_count_once_and_in_order() -> None:
    """A part said again is answered again, a later one alone is worth nothing."""
    machine, start = running()
    assert result(machine, part(start, 1)) == "settled"
    assert result(machine, part(start, 0)) == "stored"
    assert result(machine, part(start, 0)) == "stored"
    assert result(machine, part(start, 2, last=True)) == "settled"
    assert result(machine, part(start, 1)) == "stored"
    assert machine.state.jobs[ID].begin().items == 0
    assert result(machine, part(start, 2, last=True)) == "published"
    assert result(machine, part(start, 2, last=True)) == "published"
    assert result(machine, part(start, 1)) == "stored"
    assert result(machine, part(start, 3, last=True)) == "settled"
    assert machine.state.jobs[ID].begin().items == 3


def test_a_commit_for_a_job_that_never_ran_is_settled() -> None:
    """Unknown here, or waiting: a master whose state was put back may be asked so."""
    machine = new_machine()
    register(machine, WORKER)
    stray = m.Start(job=ID, process=4, request=1, spec=SPEC, digest="", hash_seed=0)
    assert result(machine, part(stray, 0, last=True)) == "settled"
    ask(machine, submit(), CLIENT)
    assert result(machine, part(stray, 0, last=True)) == "settled"
    assert machine.state.jobs[ID].status == "ready"


def test_the_first_whole_commit_wins_though_its_worker_was_given_up() -> None:
    """The other process is told to stop, and its own commit is settled."""
    machine, first = running()
    apply(machine, machine.decide(0, OnTick(), later(100.0)))
    register(machine, 6, "v")
    second = started(machine)
    ask(machine, again(held=(first.process,)), 7)
    assert result(machine, part(first, 0), 7) == "settled"
    decision = ask(machine, part(first, 0, last=True), 7)
    assert answers(decision, 7)[0].result == "published"
    stop = m.Stop(job=ID, process=second.process, reason="settled")
    assert answers(decision, 6) == [stop]
    assert result(machine, part(second, 0, last=True), 6) == "settled"
    assert machine.state.jobs[ID].begin().items == 1


def test_a_failed_run_without_retries_keeps_its_items() -> None:
    """They are published with the failure; then only a fresh run takes them away."""
    machine, start = running(retries=0)
    outcome = Outcome(failure="start_error", text="boom", traceback="where")
    ask(machine, commit(start, items=ITEM, outcome=outcome), WORKER)
    (refused,) = answers(change(machine, "retry"), CLIENT)
    assert "keeps the 1 items" in refused.text
    fresh = m.ChangeJob(call=1, verb="retry", job=ID, fresh=True)
    (shown,) = answers(ask(machine, fresh, CLIENT), CLIENT)
    assert (shown.job.state, shown.job.items, shown.traceback) == ("ready", 0, "")
    assert list(machine.state.failed) == []


def test_a_run_that_was_replaced_ends_without_a_trace() -> None:
    """Its process outlives the retry; the end frees the slot and hurts no one."""
    machine, start = running()
    ask(machine, commit(start), WORKER)
    fresh = m.ChangeJob(call=1, verb="retry", job=ID, fresh=True)
    ask(machine, fresh, CLIENT)
    register(machine, 6, "v")
    assert machine.assign(NOW) is None, "its process is not known to be gone"
    assert result(machine, part(start, 1, last=True)) == "settled"
    ended = m.Ended(job=ID, process=start.process, how="exited", counted=True)
    ask(machine, ended, WORKER)
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().deaths, job.retries_left) == ("ready", 0, 1)
    assert started(machine).request == start.request + 1


# ---- assignment --------------------------------------------------------------------


def test_higher_priority_first_then_first_come_to_the_freest_worker() -> None:
    """The order in which jobs are given out, and to whom."""
    machine = new_machine()
    low, high = (f"{number:016x}" for number in (2, 3))
    ask(machine, submit(), CLIENT)
    ask(machine, submit_other(low), CLIENT)
    ask(machine, submit_other(high, priority=5), CLIENT)
    register(machine, 5, "one")
    roomy = msgspec.structs.replace(again(), name="two", slots=3)
    ask(machine, roomy, 6)
    given = []
    while (decision := machine.assign(NOW)) is not None:
        apply(machine, decision)
        given += [(to, start.job) for to, start in decision.sends]  # type: ignore[attr-defined]  # assignments send Start alone
    assert [job for _, job in given] == [high, ID, low]
    assert [to for to, _ in given][:2] == [6, 6]


def test_a_job_that_its_workers_cannot_run_holds_up_no_other() -> None:
    """It stays in its place for a worker that can."""
    machine, start = running()
    differs = m.Ended(job=ID, process=start.process, how="other_code", text="differs")
    ask(machine, differs, WORKER)
    ask(machine, submit_other(), CLIENT)
    assert started(machine).job == OTHER
    register(machine, 6, "v")
    assert started(machine).job == ID
