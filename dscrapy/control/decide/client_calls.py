"""Decides calls of clients: about jobs, schedules and workers.

Every refusal is one line that says what to do; its code is fixed (docs/protocol.md).
"""

import msgspec

from dscrapy import messages as m
from dscrapy.conf.job_file import check_every, check_spec
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.decide import retention
from dscrapy.control.decision import Decision
from dscrapy.control.naming import find
from dscrapy.control.state.jobs import Job, Schedule
from dscrapy.control.state.state import State
from dscrapy.control.state.verdict import CANCELLED
from dscrapy.control.state.workers import is_blamed
from dscrapy.errors import UsageError
from dscrapy.model import (
    ID_PATTERN,
    JOB_PAUSES,
    JobSpec,
    Submission,
)


def decide_call(decision: Decision, session: int, command: m.ClientCall) -> None:
    """Decide what a client's call leads to.

    ``GetStatus`` and ``ReadFile`` are the shell's: they need more than the state.
    """
    match command:
        case m.Submit():
            _submit(decision, session, command)
        case m.ListJobs():
            decision.send(session, views.list_jobs(decision.state, command))
        case m.ShowJob():
            found = _found(decision, session, command.call, command.job)
            if found is not None:
                decision.shows.append((session, command.call, found))
        case m.WaitJob():
            _wait(decision, session, command)
        case m.ChangeJob():
            _change(decision, session, command)
        case m.Remove():
            found = _found(decision, session, command.call, command.job)
            if found is not None:
                named = msgspec.structs.replace(command, job=found)
                retention.remove(decision, session, named)
        case m.DrainWorker():
            _drain(decision, session, command)
        case m.Ping():
            decision.send(session, m.Accepted(call=command.call))
        case _:
            raise AssertionError(f"{type(command).__name__} is not decided here")


def _found(decision: Decision, session: int, call: int, word: str) -> str | None:
    """Return the id that the word stands for; refuse the call where there is none."""
    found = find(decision.state, word)
    if isinstance(found, str):
        return found
    decision.refuse(session, call, found.code, found.text)
    return None


def no_job(identity: str) -> str:
    """Return the text for an unknown id; a removed job is unknown, too."""
    return f"no job {identity} (unknown or removed): `dscrapy jobs` lists all"


# ---- submitting ---------------------------------------------------------------


def _submit(decision: Decision, session: int, command: m.Submit) -> None:
    """Add all jobs and schedules or none; skip those whose id has the same spec."""
    state = decision.state
    seen: set[str] = set()
    facts: list[r.Record] = []
    for submission in command.submissions:
        problem = _problem_of(state, submission, seen)
        if problem is not None:
            decision.refuse(session, command.call, *problem)
            return
        seen.add(submission.id)
        if submission.id in state.jobs or submission.id in state.schedules:
            continue
        facts.append(_fact_of(submission, decision.now.wall))
    decision.records.extend(facts)
    count = len(command.submissions)
    decision.send(session, m.Accepted(call=command.call, count=count))


def _fact_of(submission: Submission, at: float) -> r.Record:
    if submission.every_s is None:
        return r.JobAdded(id=submission.id, spec=submission.spec, at=at)
    return r.ScheduleAdded(
        id=submission.id,
        spec=submission.spec,
        every_s=submission.every_s,
        at=at,
    )


def _problem_of(
    state: State, submission: Submission, seen: set[str]
) -> tuple[str, str] | None:
    """Return code and text of what is wrong with the submission."""
    spec = submission.spec
    if not ID_PATTERN.match(submission.id) or "-" in submission.id:
        return "bad_id", "a job's id is 16 hexadecimal digits"
    if submission.id in seen:
        return "bad_id", f"the id {submission.id} stands twice in one submission"
    try:
        check_spec(spec)
        if submission.every_s is not None:
            check_every(submission.every_s)
    except UsageError as error:
        return "bad_spec", str(error)
    job: Job | None = state.jobs.get(submission.id)
    schedule = state.schedules.get(submission.id)
    stored = job.spec if job else schedule.spec if schedule else None
    differs = stored is not None and (
        msgspec.json.decode(stored, type=JobSpec) != spec
        or (schedule is not None) != (submission.every_s is not None)
    )
    if differs:
        return "id_taken", f"the id {submission.id} belongs to another job"
    return None


# ---- a job's life -------------------------------------------------------------


def _wait(decision: Decision, session: int, command: m.WaitJob) -> None:
    found = _found(decision, session, command.call, command.job)
    if found is None:
        return
    job = decision.state.jobs.get(found)
    if job is None:
        decision.refuse(
            session,
            command.call,
            "is_schedule",
            f"{found} is a schedule, which does not end: wait for its runs",
        )
    elif job.is_final:
        decision.shows.append((session, command.call, job.id))
    else:
        decision.records.append(
            r.WaiterAdded(session=session, call=command.call, job=job.id)
        )


def _change(decision: Decision, session: int, command: m.ChangeJob) -> None:
    found = _found(decision, session, command.call, command.job)
    if found is None:
        return
    job = decision.state.jobs.get(found)
    if job is None:
        schedule = decision.state.schedules[found]
        problem = _change_schedule(decision, schedule, command)
    else:
        change = {
            "cancel": _cancel,
            "pause": _pause,
            "resume": _resume,
            "retry": _retry,
            "parallelism": _set_parallelism,
        }[command.verb]
        problem = change(decision, job, command)
    if problem is not None:
        decision.refuse(session, command.call, "bad_state", problem)
    else:
        decision.shows.append((session, command.call, found))


def _change_schedule(
    decision: Decision, schedule: Schedule, command: m.ChangeJob
) -> str | None:
    if command.verb not in ("cancel", "pause", "resume"):
        verb = "retried" if command.verb == "retry" else "changed"
        return (
            f"{schedule.id} is a schedule: it can be cancelled and paused, not {verb}"
        )
    if schedule.cancelled:
        return f"schedule {schedule.id} is already cancelled"
    if command.verb == "cancel":
        decision.records.append(r.ScheduleCancelled(id=schedule.id))
        return None
    pauses = command.verb == "pause"
    if schedule.paused == pauses:
        how = "already paused" if pauses else "not paused"
        return f"schedule {schedule.id} is {how}"
    decision.records.append(r.SchedulePaused(id=schedule.id, on=pauses))
    return None


def _cancel(decision: Decision, job: Job, command: m.ChangeJob) -> str | None:
    if job.is_final:
        return f"job {job.id} is already {job.status}"
    if job.progress.cancelling:
        return f"job {job.id} is already being cancelled"
    if not job.has_processes:
        decision.end_job(job, CANCELLED)
        return None
    decision.records.append(r.CancelAsked(job=job.id))
    decision.stop_all(job, "cancelled")
    return None


def _pause(decision: Decision, job: Job, command: m.ChangeJob) -> str | None:
    if job.is_final:
        return f"job {job.id} is already {job.status}"
    if job.paused:
        return f"job {job.id} is already paused"
    decision.records.append(r.JobPaused(job=job.id, on=True, at=decision.now.wall))
    if job.has_processes:
        decision.stop_all(job, JOB_PAUSES)
    return None


def _resume(decision: Decision, job: Job, command: m.ChangeJob) -> str | None:
    if not job.paused or job.is_final:
        return f"job {job.id} is not paused but {job.state}"
    decision.records.append(r.JobPaused(job=job.id, on=False))
    return None


def _set_parallelism(decision: Decision, job: Job, command: m.ChangeJob) -> str | None:
    if job.is_final:
        return f"job {job.id} is already {job.status}"
    if command.count < 0:
        return f"{command.count} processes: 1 or more are needed, 0 is no ceiling"
    decision.records.append(r.ParallelismSet(job=job.id, count=command.count))
    return None


def _retry(decision: Decision, job: Job, command: m.ChangeJob) -> str | None:
    state = decision.state
    if not job.is_final:
        if command.fresh or not is_blamed(state.workers.values(), job.id):
            return f"job {job.id} has not ended: it is {job.state}"
        if not job.has_processes:
            # The code may have been mended: the job may begin with any copy of it.
            decision.records.append(r.CodeSeen(job=job.id, digest=""))
        decision.records.append(r.WorkersForgiven(job=job.id))
        return None
    if job.id in state.removing:
        return f"job {job.id} is being removed"
    if not command.fresh and job.status == "succeeded":
        return f"job {job.id} succeeded: `retry --fresh` runs it again with empty items"
    decision.records.append(
        r.JobAgain(
            job=job.id,
            fresh=command.fresh,
            automatic=False,
            reason="",
            at=decision.now.wall,
        )
    )
    return None


# ---- the fleet ----------------------------------------------------------------


def _drain(decision: Decision, session: int, command: m.DrainWorker) -> None:
    state = decision.state
    worker = state.workers.get(command.worker)
    if worker is None or worker.session is None:
        names = ", ".join(sorted(state.workers)) or "none"
        text = f"no worker {command.worker} is connected; workers: {names}"
        decision.refuse(session, command.call, "no_such_worker", text)
        return
    if worker.draining:
        text = f"worker {command.worker} is already draining"
        decision.refuse(session, command.call, "bad_state", text)
        return
    # The worker answers with ``Draining``; its processes are stopped then.
    decision.send(worker.session, m.Drain())
    decision.send(session, m.Accepted(call=command.call))
