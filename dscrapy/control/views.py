"""Views of the state, for people and scripts."""

from collections.abc import Container, Iterator
from datetime import UTC, datetime

import msgspec

from dscrapy import messages as m
from dscrapy.control.clock import Now
from dscrapy.control.decide.placement import has_room
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.jobs import Course, Job, Schedule, position_of, project_label
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Spans, Worker
from dscrapy.model import (
    JobSpec,
    JobView,
    PoisonedView,
    ScheduleView,
    Stats,
    Versions,
    WorkerView,
    waiting_text,
)

# Running jobs that ``status`` lists; more would not fit on a screen anyway.
RUNNING_SHOWN_MAX = 100

# Jobs that a worker's note names.
BARRED_SHOWN_MAX = 3
# Poisoned requests that ``show`` lists.
POISONED_SHOWN_MAX = 100


def view_job(state: State, job: Job) -> JobView:
    """Return the job as it stands."""
    course = job.progress
    crawl = state.crawls.get(job.id)
    is_over = job.is_final or crawl is None
    return JobView(
        id=job.id,
        name=job.name,
        project=job.project,
        spider=job.spider,
        state=job.state,
        reason=_why_barred(state, job)
        or _paused(job)
        or "; ".join(filter(None, _reasons(state, job, course, crawl)))
        or _why_narrow(state, job),
        priority=job.priority,
        parallelism=job.parallelism,
        pages=course.pages,
        items=course.items,
        errors=course.errors or 0,
        pending=0 if crawl is None else crawl.frontier.pending_count,
        leased=0 if is_over or crawl is None else crawl.frontier.leased_count,
        poisoned=0 if crawl is None else len(crawl.frontier.poisoned),
        processes=job.processes,
        retries_left=job.retries_left,
        runs=course.processes_count,
        workers=_workers_of(state, job, course),
        schedule=job.schedule,
        submitted_at=job.submitted_at,
        started_at=course.started_at,
        finished_at=course.finished_at,
        came_to_end=job.is_final and (course.came_to_end or job.status == "succeeded"),
    )


def _workers_of(state: State, job: Job, course: Course) -> tuple[str, ...]:
    """Return the workers where the job runs, or the last one where it ran."""
    names = {process.worker for process in state.processes_of(job.id)}
    if not names and course.worker:
        names = {course.worker}
    return tuple(sorted(names))


def _paused(job: Job) -> str:
    """Say since when a job is paused, and whether processes still run."""
    if job.state != "paused":
        return ""
    parts = []
    if job.paused_at:
        at = datetime.fromtimestamp(job.paused_at, UTC)
        parts.append(f"since {at:%Y-%m-%d %H:%M:%S} UTC")
    if job.processes:
        parts.append("its crawl processes finish the pages that they have begun")
    return "; ".join(parts)


def _why_waiting(state: State, job: Job) -> str:
    """Say why a ready job has no process; nothing where it is about to get one."""
    if job.status != "ready" or not job.is_assignable:
        return ""
    connected = [
        worker for worker in state.workers.values() if worker.session is not None
    ]
    if not connected:
        return "no worker is connected"
    live = [worker for worker in connected if not worker.draining]
    if not live:
        return "all workers that are connected are draining"
    free = [worker for worker in live if worker.free]
    if not free:
        slots = sum(worker.slots for worker in live)
        return f"no slot is free: all {slots} are taken"
    barred = [worker for worker in free if not worker.may_begin(job.id)]
    if len(barred) == len(free):
        why = barred[0].barred[job.id]
        return f"no slot is free on a worker that can run it; on others: {why}"
    return ""


def _reasons(
    state: State, job: Job, course: Course, crawl: Crawl | None
) -> Iterator[str]:
    yield course.reason
    yield _why_waiting(state, job)
    yield _why_standing(crawl)


def _why_standing(crawl: Crawl | None) -> str:
    """Say why a job makes no progress: all its pages wait, perhaps for ever."""
    if crawl is None or not crawl.all_wait:
        return ""
    return waiting_text(crawl.frontier.leased_count)


def _why_barred(state: State, job: Job) -> str:
    """Say why a job that could run does not: all connected workers are barred."""
    is_export = job.id in state.exports_due
    if not (job.is_assignable or is_export):
        return ""
    live = [
        worker
        for worker in state.workers.values()
        if worker.session is not None and not worker.draining
    ]
    may = [
        worker.may_take(job.id) if is_export else worker.may_begin(job.id)
        for worker in live
    ]
    if any(may) or not live:
        return ""
    return (
        f"no worker that is connected can run it ({live[0].barred[job.id]}): "
        f"`dscrapy retry {job.id}` lets them try again, so does a new worker"
    )


def _why_narrow(state: State, job: Job) -> str:
    """Say why the job has fewer processes than it may have."""
    if job.id not in state.wide or not job.is_crawling or not has_room(job):
        return ""
    crawl = state.crawls[job.id]
    processes = state.crawling(job.id)
    is_opening = not processes or any(process.opened is None for process in processes)
    if is_opening or crawl.frontier.capacity.wants_process():
        return ""
    ceiling = job.parallelism or "any number"
    return (
        f"{job.processes} of {ceiling} processes: more would find no host of their own"
    )


def view_schedule(schedule: Schedule) -> ScheduleView:
    """Return the schedule as it stands."""
    spec = msgspec.json.decode(schedule.spec, type=JobSpec)
    return ScheduleView(
        id=schedule.id,
        name=spec.name,
        project=project_label(spec),
        spider=spec.spider,
        every_s=schedule.every_s,
        state="cancelled"
        if schedule.cancelled
        else "paused"
        if schedule.paused
        else "active",
        runs=schedule.runs,
        job=schedule.job,
        next_at=None if schedule.cancelled or schedule.paused else schedule.next_at,
    )


def view_worker(
    worker: Worker, spans: Spans, now: Now, removed: Container[str] = ()
) -> WorkerView:
    """Return the worker as the master sees it now; its note leaves out jobs that are
    ``removed``."""
    heard_at = worker.heard_at if worker.instance else worker.since
    return WorkerView(
        name=worker.name,
        host=worker.host,
        port=worker.port,
        slots=worker.slots,
        busy=worker.busy,
        state=spans.state(worker, now.run),
        last_heartbeat_s=max(now.run - heard_at, 0.0),
        versions=msgspec.to_builtins(worker.versions),
        note=_note(worker, now, removed),
    )


def _note(worker: Worker, now: Now, removed: Container[str]) -> str:
    """Name the jobs that the worker cannot run, the newest first, as many as fit in a
    line."""
    newest = [job for job in reversed(worker.barred) if job not in removed]
    notes = [
        f"gets no more processes of job {job} "
        f"({_ago(now.run - worker.barred_at[job])} ago): {worker.barred[job]}"
        for job in newest[:BARRED_SHOWN_MAX]
    ]
    omitted = len(newest) - len(notes)
    return "; ".join([*notes, *([f"and of {omitted} more"] if omitted > 0 else [])])


def _ago(seconds: float) -> str:
    """Return how long ago something was, in the largest unit that has one."""
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return f"{int(max(seconds, 0))} s"


def show(state: State, call: int, identity: str) -> m.Shown | None:
    """Return all that is known of a job or schedule, None for an unknown id."""
    job = state.jobs.get(identity)
    if job is not None:
        course = job.progress
        return m.Shown(
            call=call,
            job=view_job(state, job),
            schedule=None,
            spec=msgspec.json.decode(job.spec, type=JobSpec),
            digest=course.digest,
            stats=_stats_of(state, job, course),
            traceback=course.traceback,
            poisoned=_poisoned(state, job),
            feeds=course.written,
            own_lines=course.own_lines,
        )
    schedule = state.schedules.get(identity)
    if schedule is None:
        return None
    return m.Shown(
        call=call,
        job=None,
        schedule=view_schedule(schedule),
        spec=msgspec.json.decode(schedule.spec, type=JobSpec),
    )


def _poisoned(state: State, job: Job) -> tuple[PoisonedView, ...]:
    crawl = state.crawls.get(job.id)
    if crawl is None:
        return ()
    first = list(crawl.frontier.poisoned.items())[:POISONED_SHOWN_MAX]
    return tuple(
        PoisonedView(
            request=request,
            url=poisoned.url or f"request {request}",
            reason=poisoned.text,
        )
        for request, poisoned in first
    )


def _stats_of(state: State, job: Job, course: Course) -> Stats:
    """Return the job's stats: final ones, or those counted so far."""
    crawl = state.crawls.get(job.id)
    if crawl is None or job.is_final:
        return msgspec.json.decode(course.stats, type=Stats)
    return crawl.totals.encode()


def status(
    state: State,
    spans: Spans,
    now: Now,
    *,
    call: int,
    host: str,
    port: int,
    uptime_s: float,
    versions: Versions,
    note: str,
) -> m.Status:
    """Return the master's answer to ``GetStatus``."""
    running = sorted(state.by_job)
    return m.Status(
        call=call,
        role="master",
        host=host,
        port=port,
        uptime_s=uptime_s,
        epoch=state.epoch,
        versions=versions,
        note=note,
        jobs={name: count for name, count in state.counts.items() if count},
        running=tuple(
            view_job(state, state.jobs[job])
            for job in running[:RUNNING_SHOWN_MAX]
            if not state.jobs[job].is_final
        ),
        failed=tuple(view_job(state, state.jobs[job]) for job in state.failed),
        schedules=tuple(
            view_schedule(schedule)
            for schedule in state.schedules.values()
            if not schedule.cancelled
        ),
        workers=tuple(
            view_worker(worker, spans, now, _removed_jobs(state, worker))
            for worker in state.workers.values()
        ),
    )


def _removed_jobs(state: State, worker: Worker) -> set[str]:
    """Return the jobs of the worker's note that were removed."""
    return {job for job in worker.barred if job not in state.jobs}


def list_jobs(state: State, command: m.ListJobs) -> m.Jobs:
    """Return a page of jobs in order of submission, or the latest first."""
    jobs: list[JobView] = []
    limit = max(1, min(command.limit, 1000))
    step = -1 if command.newest else 1
    order = state.order
    # ``after`` is the number of a job, which may have been removed since.
    if command.after is None:
        position = len(order) - 1 if command.newest else 0
    elif command.newest:
        position = position_of(order, command.after) - 1
    else:
        position = position_of(order, command.after + 1)
    while 0 <= position < len(state.order):
        job = state.order[position]
        if not command.states or job.state in command.states:
            jobs.append(view_job(state, job))
            if len(jobs) == limit:
                return m.Jobs(call=command.call, jobs=tuple(jobs), next=job.number)
        position += step
    return m.Jobs(call=command.call, jobs=tuple(jobs), next=None)
