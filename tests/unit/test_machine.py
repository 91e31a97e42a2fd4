"""Lives of jobs, step by step, where the property test would need luck to meet them."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now, RunClock
from dscrapy.control.decision import OnTick
from dscrapy.control.machine import Machine
from dscrapy.control.state.jobs import Schedule
from dscrapy.endings import FAILURES
from dscrapy.model import JobSpec, Outcome, Submission
from tests import builders as b
from tests.unit import machine_driver as d

# ---- schedules and clocks ------------------------------------------------------------


def test_a_tick_makes_no_second_run_while_one_goes_on() -> None:
    """Whatever the tick was for."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=10.0))
    d.ask(machine, OnTick())
    assert len(machine.state.jobs) == 1
    later = Now(run=d.NOW.run, wall=d.NOW.wall + 100)
    assert machine.decide(0, OnTick(), later).records == []


def test_a_cancelled_schedule_makes_no_run_and_its_run_goes_on() -> None:
    """Cancelling the schedule and cancelling the run are two things."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=10.0))
    d.ask(machine, OnTick())
    d.change(machine, "cancel")
    (run,) = machine.state.jobs
    assert machine.state.jobs[run].status == "ready"
    d.change(machine, "cancel", run)
    assert machine.state.jobs[run].state == "cancelled"
    later = Now(run=d.NOW.run, wall=d.NOW.wall + 100)
    assert machine.decide(0, OnTick(), later).records == []


@pytest.mark.parametrize(
    ("wall", "due"),
    [(99.0, False), (100.0, True), (1000.0, True), (89.0, True)],
)
def test_a_schedule_is_due_at_its_time_or_when_the_clock_was_set_back(
    wall: float, due: bool
) -> None:
    """A clock set back by a year must not hold it up for a year."""
    schedule = Schedule(id=b.ID, spec=b"{}", every_s=10.0, next_at=100.0)
    assert schedule.is_due(wall) is due


@pytest.mark.parametrize(
    ("wall", "after"), [(100.0, 110.0), (109.0, 110.0), (131.0, 140.0), (5.0, 15.0)]
)
def test_missed_runs_collapse_and_the_rhythm_stays(wall: float, after: float) -> None:
    """The next run is due at the next beat of the first one's time."""
    schedule = Schedule(id=b.ID, spec=b"{}", every_s=10.0, next_at=100.0)
    assert schedule.next_after(wall) == after


def test_time_not_run_is_left_out_of_the_run_clock() -> None:
    """A gap counts as two beats at most; a clock that goes back counts nothing."""
    clock = RunClock(beat_s=0.5)
    instants = [10.0, 10.4, 10.9, 500.0, 499.0, 499.3]
    ran = [clock.at(instant) for instant in instants]
    assert ran == pytest.approx([0.0, 0.4, 0.9, 1.9, 1.9, 2.2])


# ---- failures ------------------------------------------------------------------------


def fail_to_open(machine: Machine, process: int, failure: str) -> None:
    """Let a process commit that it cannot run, and end."""
    end = Outcome(failure=failure, text="why", traceback="where")
    d.commit(machine, process, b.unit(1, "closed", end=end))
    d.ask(machine, b.ended(process), d.WORKER)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("by_worker", [False, True])
def test_a_job_that_does_not_open_fails_or_costs_a_retry(
    failure: str, by_worker: bool
) -> None:
    """Said by the process or by its worker: where a retry may help it is run again,
    else it fails at once with reason and traceback."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    job = machine.state.jobs[b.ID]
    for retries_left in (1, 0):
        assert (job.status, job.retries_left) == ("running", retries_left)
        if by_worker:
            outcome = Outcome(failure=failure, text="why", traceback="where")
            said = b.ended(start.process, how="failed", outcome=outcome)
            d.ask(machine, said, d.WORKER)
        else:
            fail_to_open(machine, start.process, failure)
        if not FAILURES[failure]:
            break
        start = b.start(start.process + 1)
    assert job.status == "failed"
    assert job.retries_left == (0 if FAILURES[failure] else 1)
    assert (job.begin().reason, job.begin().traceback) == ("why", "where")
    assert list(machine.state.failed) == [b.ID]


def test_a_failed_job_waits_for_its_process_before_it_runs_again() -> None:
    """Two processes of a run would be two runs at once."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine, slots=2))
    end = Outcome(failure="import_error", text="why")
    decision = d.commit(machine, start.process, b.unit(1, "closed", end=end))
    assert d.told(decision, m.Done) == [
        m.Done(job=b.ID, process=start.process, stats=d.told(decision, m.Done)[0].stats)
    ]
    job = machine.state.jobs[b.ID]
    assert (job.status, job.retries_left, job.processes) == ("ready", 0, 1)
    assert machine.settle(d.NOW) == []
    assert d.started(d.ask(machine, b.ended(start.process), d.WORKER)).process == 2


def test_a_start_that_raises_fails_the_job_when_all_else_is_done() -> None:
    """What it gave before is crawled to its end; the retry runs ``start()`` again but
    for what is committed."""
    machine, start = d.running(msgspec.structs.replace(d.SPEC, retries=1))
    end = Outcome(failure="start_error", text="boom")
    first = b.unit(1, "start", children=b.children(1))
    decision = d.commit(machine, start.process, first, b.unit(2, "started", end=end))
    assert d.told(decision, m.Finish) == []
    decision = d.commit(machine, start.process, b.page(1, items=b.ITEM))
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=1, number=1)]
    again = d.started(d.finish(machine, start.process, 2))
    job = machine.state.jobs[b.ID]
    assert (job.status, job.retries_left, job.begin().items) == ("running", 0, 1)
    decision = d.ask(machine, b.opened(again.process), d.WORKER)
    (skip,), (lead,) = d.told(decision, m.Skip), d.told(decision, m.Lead)
    assert (skip.digests, skip.part) == (first.digest, 0)
    assert (lead.start, lead.opened) == (True, True)
    d.commit(machine, again.process, b.unit(1, "started", end=end))
    d.finish(machine, again.process, 1)
    assert (job.status, job.begin().reason, job.begin().items) == ("failed", "boom", 1)


def test_a_start_that_ran_through_the_second_time_mends_the_job() -> None:
    """The failure of the first run is not the second one's."""
    machine, start = d.running()
    end = Outcome(failure="start_error", text="boom")
    d.commit(machine, start.process, b.unit(1, "started", end=end))
    again = d.started(d.finish(machine, start.process, 1))
    d.ask(machine, b.opened(again.process), d.WORKER)
    d.succeed(machine, again)
    assert machine.state.jobs[b.ID].status == "succeeded"


@pytest.mark.parametrize(
    ("counted", "retries", "state"),
    [(True, 0, "failed"), (True, 1, "running"), (False, 0, "running")],
)
def test_deaths_of_its_own_doing_fail_a_job_and_kills_from_outside_never(
    counted: bool, retries: int, state: str
) -> None:
    """``start_deaths_max`` deaths; a retry starts the count anew."""
    machine = d.new_machine()
    d.ask(machine, d.submit(spec=msgspec.structs.replace(d.SPEC, retries=retries)))
    decision = d.register(machine)
    for _ in range(machine.policy.start_deaths_max):
        number = d.started(decision).process
        decision = d.ask(
            machine, b.ended(number, counted=counted, text="died"), d.WORKER
        )
    job = machine.state.jobs[b.ID]
    assert job.state == state
    assert job.retries_left == 0
    assert ("died 3 times" in job.begin().reason) == (state == "failed")


def test_a_commit_between_deaths_shows_that_the_job_gets_on() -> None:
    """Only deaths without one commit between them fail it: its pages may be many."""
    machine, start = d.crawling(5, msgspec.structs.replace(d.SPEC, retries=0))
    for request in (1, 2, 3, 4):
        d.commit(machine, start.process, b.page(request))
        for _ in range(machine.policy.start_deaths_max - 1):
            decision = d.ask(machine, b.ended(start.process, counted=True), d.WORKER)
            start = d.started(decision)
            decision = d.ask(machine, b.opened(start.process), d.WORKER)
            assert d.leases(decision)[start.process] == list(range(request + 1, 6))
    assert machine.state.jobs[b.ID].status == "running"


def test_a_death_after_the_last_commit_is_none() -> None:
    """The process had said its last: whatever kills it then, all is there."""
    machine, start = d.running(msgspec.structs.replace(d.SPEC, retries=0))
    d.commit(machine, start.process, b.unit(1, "started"))
    decision = d.commit(machine, start.process, b.unit(2, "closed"))
    assert d.told(decision, m.Done)[0].stats is not None
    outcome = Outcome(failure="unknown_spider")
    for how in ("exited", "failed"):
        said = b.ended(start.process, how=how, counted=True, outcome=outcome)
        decision = d.ask(machine, said, d.WORKER)
        assert d.told(decision, m.EndedSeen) == [m.EndedSeen(process=start.process)]
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().deaths) == ("succeeded", 0)


# ---- code, seeds, workers that cannot ------------------------------------------------


def test_a_worker_with_other_code_gets_nothing_more_of_that_job() -> None:
    """The job waits for another worker, and says why."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    said = b.ended(start.process, how="other_code", text="differs")
    assert d.told(d.ask(machine, said, d.WORKER), m.Start) == []
    (shown,) = d.answers(d.ask(machine, m.ShowJob(call=1, job=b.ID)), d.CLIENT)
    assert "differs" in shown.job.reason
    assert d.started(d.register(machine, 6, "v")).process == start.process + 1


def test_all_processes_of_a_job_have_one_hash_seed_and_jobs_differ() -> None:
    """``start()`` that iterates a set gives the same order each time it runs."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    d.ask(machine, b.submit(b.OTHER))
    first = d.started(d.register(machine))
    again = d.started(d.ask(machine, b.ended(first.process), d.WORKER))
    other = d.started(d.register(machine, 6, "v"))
    assert (first.job, again.job, other.job) == (b.ID, b.ID, b.OTHER)
    assert first.hash_seed == again.hash_seed != other.hash_seed
    assert 0 <= first.hash_seed < 2**32


def test_retry_lets_mended_code_run() -> None:
    """Whoever retries a job may have changed its code: any copy may begin it."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    d.ask(machine, m.Started(job=b.ID, process=start.process, digest="d1"), d.WORKER)
    fail_to_open(machine, start.process, "unknown_spider")
    machine.state.workers["w"].barred[b.ID] = "other code"
    assert d.started(d.change(machine, "retry")).digest == ""


# ---- a job's life, changed by people -------------------------------------------------


@pytest.mark.parametrize(
    ("verbs", "text"),
    [
        (["cancel", "cancel"], "already cancelled"),
        (["pause", "pause"], "already paused"),
        (["resume"], "not paused"),
        (["retry"], "not ended"),
        (["cancel", "pause"], "already cancelled"),
        (["cancel", "parallelism"], "already cancelled"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(verbs: list[str], text: str) -> None:
    """The state decides, and stays."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    for verb in verbs:
        (answer,) = d.answers(d.change(machine, verb), d.CLIENT)
    assert isinstance(answer, m.Refused)
    assert text in answer.text
    assert "\n" not in answer.text


def test_cancelling_a_running_job_tells_its_process_once() -> None:
    """What is committed on the way counts; its end is the job's end."""
    machine, start = d.crawling(2)
    stop = m.Stop(job=b.ID, process=start.process, reason="cancelled")
    assert d.answers(d.change(machine, "cancel"), d.WORKER) == [stop]
    (again,) = d.answers(d.change(machine, "cancel"), d.CLIENT)
    assert "already being cancelled" in again.text
    assert d.results(d.commit(machine, start.process, b.page(1, items=b.ITEM))) == [
        "published"
    ]
    closed = b.unit(3, "closed", end=Outcome(finish_reason="cancelled"))
    (done,) = d.told(d.commit(machine, start.process, closed), m.Done)
    assert b'"cancelled"' in bytes(done.stats["last"]["finish_reason"])
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().items) == ("cancelled", 1)
    d.ask(machine, b.ended(start.process), d.WORKER)
    # It goes on where it was when it is retried.
    again = d.started(d.change(machine, "retry"))
    decision = d.ask(machine, b.opened(again.process), d.WORKER)
    assert d.leases(decision) == {again.process: [2]}


def test_retry_never_undoes_what_was_committed_and_fresh_numbers_anew() -> None:
    """Items stay unless ``--fresh`` says otherwise; no request number is used twice,
    so what an old process commits late is settled."""
    machine, start = d.crawling(3)
    d.commit(machine, start.process, *map(b.page, (1, 2, 3)))
    d.finish(machine, start.process, 2)
    job = machine.state.jobs[b.ID]
    assert job.status == "succeeded"
    (refused,) = d.answers(d.change(machine, "retry"), d.CLIENT)
    assert "--fresh" in refused.text
    again = d.started(d.change(machine, "retry", fresh=True))
    assert (job.begin().items, job.begin().processes_count) == (0, 2)
    lead = d.told(d.ask(machine, b.opened(again.process), d.WORKER), m.Lead)
    assert lead == [m.Lead(job=b.ID, process=again.process, start=True, opened=True)]
    decision = d.commit(
        machine, again.process, b.unit(1, "start", children=b.children(1, 2))
    )
    assert d.leases(decision) == {again.process: [4, 5]}
    assert d.results(d.commit(machine, start.process, b.page(2))) == ["settled"]
    assert d.results(d.commit(machine, again.process, b.page(4))) == ["published"]


def test_a_fresh_run_waits_for_the_process_of_the_old_one() -> None:
    """It has committed its last and may take its time to end; nothing that is asked
    meanwhile trips over it."""
    machine, start = d.running()
    d.commit(machine, start.process, b.unit(1, "started"))
    d.commit(machine, start.process, b.unit(2, "closed"))
    assert machine.state.jobs[b.ID].status == "succeeded"
    assert machine.next_deadline_s(d.NOW) > 0
    assert d.told(d.change(machine, "retry", fresh=True), m.Start) == []
    assert machine.next_deadline_s(d.NOW) > 0
    for verb in ("pause", "resume"):
        assert isinstance(d.answers(d.change(machine, verb), d.CLIENT)[0], m.Shown)
    held = b.held(start.process, leads=True)
    d.ask(machine, b.registration(held=(held,)), 6)
    outcome = Outcome(failure="unknown_spider")
    said = b.ended(start.process, how="failed", outcome=outcome)
    assert d.results(
        d.commit(machine, start.process, b.unit(3, "late"), session=6)
    ) == ["settled"]
    decision = d.ask(machine, said, 6)
    assert d.told(decision, m.EndedSeen)
    assert d.started(decision).process == start.process + 1


# ---- submissions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "submission",
    [
        Submission(id="short", spec=d.SPEC),
        Submission(id=b.ID + "-1", spec=d.SPEC),
        Submission(id=b.ID, spec=JobSpec(spider="s")),
        Submission(id=b.ID, spec=JobSpec(project="../p", spider="s")),
        Submission(id=b.ID, spec=JobSpec(project="p", spider="")),
        Submission(id=b.ID, spec=JobSpec(project="p", spider="s", parallelism=-1)),
        Submission(id=b.ID, spec=d.SPEC, every_s=0.0),
        Submission(id=b.ID, spec=d.SPEC, every_s=float("nan")),
    ],
)
def test_a_bad_submission_is_refused_whole(submission: Submission) -> None:
    """One bad job in many: none is submitted."""
    machine = d.new_machine()
    good = Submission(id="f" * 16, spec=d.SPEC)
    both = b.submission(good, submission)
    (answer,) = d.answers(d.ask(machine, both), d.CLIENT)
    assert isinstance(answer, m.Refused)
    assert not machine.state.jobs


def test_an_id_of_another_job_is_refused() -> None:
    """The same id with the same content is the same job; with other content none."""
    machine = d.new_machine()
    d.ask(machine, d.submit())

    def answer(call: m.Submit) -> Any:
        return d.answers(d.ask(machine, call), d.CLIENT)[0]

    assert isinstance(answer(d.submit()), m.Accepted)
    other = d.submit(spec=msgspec.structs.replace(d.SPEC, spider="other"))
    assert isinstance(answer(other), m.Refused)
    assert isinstance(answer(d.submit(every_s=5.0)), m.Refused)


def test_records_survive_the_journals_encoding() -> None:
    """A group read back is the group that was written."""
    machine, start = d.running()
    facts: list[r.Record] = []
    for decision in (
        d.commit(machine, start.process, b.unit(1, "start", children=b.children(1, 2))),
        d.change(machine, "pause"),
    ):
        facts += [one for one in decision.records if isinstance(one, r.Record)]
    assert r.decode_group(r.encode_group(facts)) == tuple(facts)
    assert len(facts) == 2
