"""Decisions one by one, where the property test would need luck to meet them."""

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.frontier import records as r
from dscrapy.frontier.clock import Now, RunClock
from dscrapy.frontier.decision import Decision, OnTick
from dscrapy.frontier.jobs import Schedule
from dscrapy.frontier.machine import Machine
from dscrapy.model import JobSpec, Outcome, Submission, Versions

NOW = Now(run=100.0, wall=1_000_000.0)
SPEC = JobSpec(project="p", spider="s", retries=1)
ID = f"{1:016x}"


def new_machine() -> Machine:
    """Return a machine that has begun."""
    machine = Machine()
    apply(machine, machine.begin(NOW))
    return machine


def apply(machine: Machine, decision: Decision) -> Decision:
    """Apply the decision as the committer does; return it with its answers."""
    for record in decision.records:
        machine.state.apply(record)
    machine.complete(decision)
    return decision


def ask(machine: Machine, command: object, session: int = 1) -> Decision:
    """Decide a command now, and apply that."""
    return apply(machine, machine.decide(session, command, NOW))  # type: ignore[arg-type]  # what is no command is tried, too


def submit(every_s: float | None = None, spec: JobSpec = SPEC) -> m.Submit:
    """Return the submission of one job or schedule."""
    one = Submission(id=ID, spec=spec, every_s=every_s)
    return m.Submit(call=1, part=0, last=True, submissions=(one,))


def register(machine: Machine, session: int = 5, name: str = "w") -> None:
    """Let a worker of one slot come."""
    versions = Versions(dscrapy="1", scrapy="2", python="3")
    command = m.Register(
        name=name,
        instance="1",
        host="h",
        port=1,
        slots=1,
        draining=False,
        versions=versions,
        held=(),
    )
    ask(machine, command, session)


def started(machine: Machine) -> m.Start:
    """Assign; return what the worker was told."""
    decision = machine.assign(NOW)
    assert decision is not None
    apply(machine, decision)
    (_, start) = decision.sends[0]
    assert isinstance(start, m.Start)
    return start


def commit(start: m.Start, **fields: object) -> m.Commit:
    """Return the only part of a run."""
    whole = m.Commit(
        job=start.job,
        process=start.process,
        request=start.request,
        part=0,
        last=True,
        outcome=Outcome(finish_reason="finished"),
    )
    return msgspec.structs.replace(whole, **fields)


def test_a_tick_makes_no_second_run_while_one_goes_on() -> None:
    """Whatever the tick was for."""
    machine = new_machine()
    ask(machine, submit(every_s=10.0))
    ask(machine, OnTick())
    assert len(machine.state.jobs) == 1
    later = Now(run=NOW.run, wall=NOW.wall + 100)
    assert machine.decide(0, OnTick(), later).records == []


def test_a_cancelled_schedule_makes_no_run_and_its_run_goes_on() -> None:
    """Cancelling the schedule and cancelling the run are two things."""
    machine = new_machine()
    ask(machine, submit(every_s=10.0))
    ask(machine, OnTick())
    ask(machine, m.ChangeJob(call=2, verb="cancel", job=ID))
    (run,) = machine.state.jobs
    assert machine.state.jobs[run].status == "ready"
    ask(machine, m.ChangeJob(call=3, verb="cancel", job=run))
    assert machine.state.jobs[run].state == "cancelled"
    later = Now(run=NOW.run, wall=NOW.wall + 100)
    assert machine.decide(0, OnTick(), later).records == []


@pytest.mark.parametrize(
    ("wall", "due"),
    [(99.0, False), (100.0, True), (1000.0, True), (89.0, True)],
)
def test_a_schedule_is_due_at_its_time_or_when_the_clock_was_set_back(
    wall: float, due: bool
) -> None:
    """A clock set back by a year must not hold it up for a year."""
    schedule = Schedule(id=ID, spec=b"{}", every_s=10.0, next_at=100.0)
    assert schedule.is_due(wall) is due


@pytest.mark.parametrize(
    ("wall", "after"), [(100.0, 110.0), (109.0, 110.0), (131.0, 140.0), (5.0, 15.0)]
)
def test_missed_runs_collapse_and_the_rhythm_stays(wall: float, after: float) -> None:
    """The next run is due at the next beat of the first one's time."""
    schedule = Schedule(id=ID, spec=b"{}", every_s=10.0, next_at=100.0)
    assert schedule.next_after(wall) == after


def test_time_not_run_is_left_out_of_the_run_clock() -> None:
    """A gap counts as two beats at most; a clock that goes back counts nothing."""
    clock = RunClock(beat_s=0.5)
    instants = [10.0, 10.4, 10.9, 500.0, 499.0, 499.3]
    ran = [clock.at(instant) for instant in instants]
    assert ran == pytest.approx([0.0, 0.4, 0.9, 1.9, 1.9, 2.2])


def test_a_failure_that_a_retry_may_mend_costs_a_retry() -> None:
    """start() raised: again, then failed; what it gave the first time is void."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    item = (msgspec.Raw(b'{"a":1}'),)
    outcome = Outcome(failure="start_error", text="boom")
    first = started(machine)
    ask(machine, commit(first, items=item, outcome=outcome), 5)
    job = machine.state.jobs[ID]
    assert (job.status, job.retries_left) == ("ready", 0)
    assert machine.assign(NOW) is None, "its first process is not gone yet"
    ask(machine, m.Ended(job=ID, process=first.process, how="exited"), 5)
    second = started(machine)
    ask(machine, commit(second, items=item, outcome=outcome), 5)
    assert job.status == "failed"
    assert job.begin().items == 1


@pytest.mark.parametrize("failure", ["unknown_spider", "unsupported"])
def test_a_failure_that_no_retry_mends_fails_at_once(failure: str) -> None:
    """The spider is not there: trying again would only say so again."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    ask(machine, commit(started(machine), outcome=Outcome(failure=failure)), 5)
    assert machine.state.jobs[ID].status == "failed"


@pytest.mark.parametrize(
    ("counted", "retries", "state"),
    [(True, 0, "failed"), (True, 1, "ready"), (False, 0, "ready")],
)
def test_deaths_of_its_own_doing_fail_a_job_and_kills_from_outside_never(
    counted: bool, retries: int, state: str
) -> None:
    """``start_deaths_max`` deaths; a retry starts the count anew."""
    machine = new_machine()
    spec = msgspec.structs.replace(SPEC, retries=retries)
    ask(machine, submit(spec=spec))
    register(machine)
    for _ in range(machine.start_deaths_max):
        number = started(machine).process
        ended = m.Ended(job=ID, process=number, how="exited", counted=counted)
        ask(machine, ended, 5)
    assert machine.state.jobs[ID].state == state


def test_a_worker_with_other_code_gets_nothing_more_of_that_job() -> None:
    """The job waits for another worker, and says why."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    start = started(machine)
    ended = m.Ended(job=ID, process=start.process, how="other_code", text="differs")
    ask(machine, ended, 5)
    assert machine.assign(NOW) is None
    (_, shown) = ask(machine, m.ShowJob(call=1, job=ID)).sends[-1]
    assert isinstance(shown, m.Shown)
    assert shown.job is not None
    assert "differs" in shown.job.reason
    register(machine, session=6, name="other")
    assert started(machine).process == start.process + 1


def test_all_processes_of_a_job_have_one_hash_seed_and_jobs_differ() -> None:
    """``start()`` that iterates a set gives the same order each time it runs."""
    machine = new_machine()
    ask(machine, submit())
    other = Submission(id="f" * 16, spec=SPEC)
    ask(machine, m.Submit(call=1, part=0, last=True, submissions=(other,)))
    register(machine)
    first = started(machine)
    ended = m.Ended(job=ID, process=first.process, how="exited")
    ask(machine, ended, 5)
    again = started(machine)
    register(machine, session=6, name="v")
    assert (first.job, again.job) == (ID, ID)
    assert first.hash_seed == again.hash_seed != started(machine).hash_seed
    assert 0 <= first.hash_seed < 2**32


def test_retry_lets_mended_code_run() -> None:
    """Whoever retries a job may have changed its code: any copy may begin it."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    start = started(machine)
    seen = m.Started(job=ID, process=start.process, digest="d1")
    ask(machine, seen, 5)
    failure = Outcome(failure="unknown_spider")
    ask(machine, commit(start, outcome=failure), 5)
    ask(machine, m.Ended(job=ID, process=start.process, how="exited"), 5)
    machine.state.workers["w"].differs.add(ID)
    ask(machine, m.ChangeJob(call=1, verb="retry", job=ID))
    assert started(machine).digest == ""


@pytest.mark.parametrize(
    ("verbs", "text"),
    [
        (["cancel", "cancel"], "already cancelled"),
        (["pause", "pause"], "already paused"),
        (["resume"], "not paused"),
        (["retry"], "not ended"),
        (["cancel", "pause"], "already cancelled"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(verbs: list[str], text: str) -> None:
    """The state decides, and stays."""
    machine = new_machine()
    ask(machine, submit())
    for verb in verbs:
        command = m.ChangeJob(call=1, verb=verb, job=ID)  # type: ignore[arg-type]  # from a table
        (_, answer) = ask(machine, command).sends[-1]
    assert isinstance(answer, m.Refused)
    assert text in answer.text
    assert "\n" not in answer.text


def test_cancelling_a_running_job_twice_tells_that_it_is_under_way() -> None:
    """The process is told once; its end is the job's end."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    start = started(machine)
    cancel = m.ChangeJob(call=1, verb="cancel", job=ID)
    assert m.Stop(job=ID, process=1, reason="cancelled") in [
        message for _, message in ask(machine, cancel).sends
    ]
    (_, again) = ask(machine, cancel).sends[-1]
    assert isinstance(again, m.Refused)
    assert "already being cancelled" in again.text
    ask(machine, commit(start), 5)
    assert machine.state.jobs[ID].status == "cancelled"


def test_retry_never_undoes_what_was_committed() -> None:
    """Items stay unless ``--fresh`` says otherwise."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    ask(machine, commit(started(machine), items=(msgspec.Raw(b"{}"),)), 5)
    retry = m.ChangeJob(call=1, verb="retry", job=ID)
    (_, refused) = ask(machine, retry).sends[-1]
    assert isinstance(refused, m.Refused)
    assert "--fresh" in refused.text
    fresh = m.ChangeJob(call=1, verb="retry", job=ID, fresh=True)
    ask(machine, fresh)
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().items, job.begin().request) == ("ready", 0, 2)


@pytest.mark.parametrize(
    "submission",
    [
        Submission(id="short", spec=SPEC),
        Submission(id=ID + "-1", spec=SPEC),
        Submission(id=ID, spec=JobSpec(spider="s")),
        Submission(id=ID, spec=JobSpec(project="../p", spider="s")),
        Submission(id=ID, spec=JobSpec(project="p", spider="")),
        Submission(id=ID, spec=JobSpec(project="p", spider="s", parallelism=-1)),
        Submission(id=ID, spec=SPEC, every_s=0.0),
        Submission(id=ID, spec=SPEC, every_s=float("nan")),
    ],
)
def test_a_bad_submission_is_refused_whole(submission: Submission) -> None:
    """One bad job in many: none is submitted."""
    machine = new_machine()
    good = Submission(id="f" * 16, spec=SPEC)
    both = m.Submit(call=1, part=0, last=True, submissions=(good, submission))
    (_, answer) = ask(machine, both).sends[-1]
    assert isinstance(answer, m.Refused)
    assert not machine.state.jobs


def test_an_id_of_another_job_is_refused() -> None:
    """The same id with the same content is the same job; with other content none."""
    machine = new_machine()
    ask(machine, submit())
    assert isinstance(ask(machine, submit()).sends[-1][1], m.Accepted)
    other = submit(spec=msgspec.structs.replace(SPEC, spider="other"))
    assert isinstance(ask(machine, other).sends[-1][1], m.Refused)
    assert isinstance(ask(machine, submit(every_s=5.0)).sends[-1][1], m.Refused)


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome": None},
        {"tagged": (msgspec.Raw(b"null"),)},
    ],
)
def test_a_malformed_commit_ends_the_session(fields: dict[str, object]) -> None:
    """The last part has an outcome; tagged forms are one for each item, or none."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    start = started(machine)
    with pytest.raises(RemoteProtocolError):
        ask(machine, commit(start, **fields), 5)


def test_a_commit_for_another_jobs_process_ends_the_session() -> None:
    """A worker cannot commit what it was not granted."""
    machine = new_machine()
    ask(machine, submit())
    register(machine)
    start = started(machine)
    other = Submission(id="e" * 16, spec=SPEC)
    ask(machine, m.Submit(call=1, part=0, last=True, submissions=(other,)))
    register(machine, session=6, name="v")
    started(machine)
    with pytest.raises(RemoteProtocolError):
        ask(machine, commit(start, job="e" * 16), 6)


def test_records_survive_the_journals_encoding() -> None:
    """A group read back is the group that was written."""
    machine = new_machine()
    facts: list[r.Record] = []
    for decision in (
        ask(machine, submit()),
        ask(machine, m.ChangeJob(call=1, verb="pause", job=ID)),
    ):
        facts += [one for one in decision.records if isinstance(one, r.Record)]
    assert r.decode_group(r.encode_group(facts)) == tuple(facts)
    assert len(facts) == 2
