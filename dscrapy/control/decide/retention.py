"""Decides which ended jobs are removed: those beyond the limits, oldest end first.

A job that has not ended, or has a process left, is never removed. Each removal is
journalled, so a replay needs none of these rules.
"""

from collections.abc import Collection
from itertools import islice

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import Decision
from dscrapy.control.state.jobs import Job
from dscrapy.control.state.state import State
from dscrapy.keep import Keep

# Jobs that one decision removes at most: other work waits while files are removed.
REMOVED_MAX = 1000
# The master by itself removes no job that ended so recently: a client that waited for
# the job fetches its items now, and one that lost the answer to a submit repeats it.
SPARED_S = 300.0


def bytes_of(state: State, job: Job) -> int:
    """Return the bytes of the job's files: items, bodies of requests, log."""
    course, crawl = job.course, state.crawls.get(job.id)
    total = state.log_bytes.get(job.id, 0)
    if course is not None:
        total += course.items_bytes + course.tagged_bytes
    if crawl is not None:
        total += crawl.frontier.body_bytes
    return total


def surplus(
    state: State,
    keep: Keep,
    wall: float,
    *,
    names: Collection[str] = (),
    spared_s: float = 0.0,
) -> list[Job]:
    """Return the jobs that are beyond ``keep``, the oldest end first.

    Jobs of ``names`` do not count; jobs that ended within ``spared_s`` stay.
    """
    ended = [state.jobs[identity] for identity in state.ended]
    ended = [job for job in ended if job.is_over and job.name not in names]
    count, total = len(ended), 0
    if keep.bytes is not None:
        total = sum(bytes_of(state, job) for job in ended)
    found = []
    for job in ended:
        age_s = wall - job.ended_at
        # A job that seems to end in the future, since a clock was set back, may go.
        if keep.is_beyond(age_s, count, total) and not 0 <= age_s < spared_s:
            found.append(job)
            count -= 1
            total -= 0 if keep.bytes is None else bytes_of(state, job)
    return found


def prune_by_itself(decision: Decision) -> None:
    """Remove jobs by the master's own rules, as many as one decision may."""
    policy = decision.policy
    if not policy.keep.is_everything:
        found = surplus(
            decision.state,
            policy.keep,
            decision.now.wall,
            names=policy.kept_names,
            spared_s=SPARED_S,
        )
        _remove_all(decision, found[:REMOVED_MAX])


def prune(decision: Decision, session: int, command: m.Prune) -> None:
    """Answer a client with the jobs beyond its limits, or the master's if it gives
    none; unless it is a dry run, remove as many as one decision may."""
    state = decision.state
    asked = Keep(
        jobs=command.keep_jobs, days=command.keep_days, bytes=command.keep_bytes
    )
    if asked.is_everything:
        asked = decision.policy.keep
    if asked.is_everything:
        text = (
            "nothing says what to keep: give --keep-jobs, --keep-days or --keep-bytes, "
            "or set keep_jobs, keep_days or keep_bytes in [dscrapy.master]"
        )
        decision.refuse(session, command.call, "bad_rules", text)
        return
    found = surplus(state, asked, decision.now.wall)
    first = found[:REMOVED_MAX]
    answer = m.Pruned(
        call=command.call,
        jobs=tuple(job.id for job in first),
        bytes=sum(bytes_of(state, job) for job in first),
        left=len(found) - len(first),
        left_bytes=sum(
            bytes_of(state, job) for job in islice(found, REMOVED_MAX, None)
        ),
    )
    if not command.dry_run:
        _remove_all(decision, first)
    decision.send(session, answer)


def remove(decision: Decision, session: int, command: m.Remove) -> None:
    """Remove an ended job or a cancelled schedule; the id is known to exist.

    A job with processes that still end is removed, and the call answered, once they
    are gone.
    """
    job = decision.state.jobs.get(command.job)
    if job is None:
        schedule = decision.state.schedules[command.job]
        if not schedule.cancelled:
            text = (
                f"schedule {schedule.id} is active: `dscrapy cancel {schedule.id}` "
                "ends it, then it can be removed"
            )
            decision.refuse(session, command.call, "bad_state", text)
            return
        decision.records.append(r.ScheduleRemoved(id=schedule.id))
    elif not job.is_final:
        text = (
            f"job {job.id} is {job.state}, only ended jobs can be removed: "
            f"`dscrapy cancel {job.id}` ends it"
        )
        decision.refuse(session, command.call, "bad_state", text)
        return
    elif job.has_processes:
        decision.records.append(
            r.RemovalAsked(session=session, call=command.call, job=job.id)
        )
        return
    else:
        decision.records.append(r.JobRemoved(job=job.id))
    decision.send(session, m.Accepted(call=command.call, count=1))


def remove_at_last(decision: Decision, job: str) -> None:
    """Remove a job whose removal was asked for, now that its processes are gone."""
    decision.records.append(r.JobRemoved(job=job))
    for session, call in decision.state.removing[job]:
        decision.send(session, m.Accepted(call=call, count=1))


def _remove_all(decision: Decision, jobs: list[Job]) -> None:
    decision.records += [r.JobRemoved(job=job.id) for job in jobs]
    # A cancelled schedule is removed with its last run.
    removed = {job.id for job in jobs}
    decision.records += [
        r.ScheduleRemoved(id=schedule.id)
        for schedule in decision.state.schedules.values()
        if schedule.cancelled and schedule.job in removed
    ]
