"""Which job gets a process on which worker.

Higher priority first, then first come, to the worker with most free slots. A job's
first process goes before anybody's second; a second one is started only where it
would help, and gives its slot back when a job of at least its priority has none.
Processes that write feeds take no slot, so they wait for nobody's.
"""

import zlib
from collections.abc import Collection, Iterator

import msgspec

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decision import Decision, deciding_on
from dscrapy.control.state.jobs import Job, Process, Role
from dscrapy.control.state.state import State
from dscrapy.control.state.verdict import verdict_of
from dscrapy.control.state.workers import Worker
from dscrapy.model import SLOT_NEEDED, JobSpec


def assign(state: State, now: Now, but: Collection[str] = ()) -> Decision | None:
    """Decide the next assignment, or None when there is none to make.

    Apply the decision, then ask again. ``but`` are jobs that are left out. Raises
    ``StepError`` for the job at which it raises.
    """
    decision = _export(state, now, but)
    if decision is None:
        decision = _first_process(state, now, but)
    if decision is None:
        decision = _further_process(state, now, but)
    return decision


def _export(state: State, now: Now, but: Collection[str]) -> Decision | None:
    """Start a process that writes the feeds of a job, whatever slots are free."""
    for identity in state.exports_due:
        if identity in but:
            continue
        with deciding_on("job", identity):
            job = state.jobs[identity]
            beside = not job.begin().closing
            worker = max(
                (
                    one
                    for one in state.workers.values()
                    if one.free_exports(beside=beside) and one.may_take(identity)
                ),
                key=lambda one: (
                    -one.failed.get(identity, 0),
                    one.free_exports(beside=beside),
                ),
                default=None,
            )
            if worker is not None:
                return _start(state, job, worker, "export", now)
    return None


def _first_process(state: State, now: Now, but: Collection[str]) -> Decision | None:
    for identity in state.ready:
        if identity in but:
            continue
        with deciding_on("job", identity):
            job = state.jobs[identity]
            if not any(_free_workers(state)):
                decision = _make_room(state, job)
                if decision is not None or not _is_barred(state, job):
                    return decision
                continue
            worker = _worker_for(state, job)
            if worker is not None:
                return _start(state, job, worker, "crawl", now)
    return None


def _free_workers(state: State) -> Iterator[Worker]:
    return (one for one in state.workers.values() if one.free)


def _worker_for(state: State, job: Job) -> Worker | None:
    # Where the job's processes died at once they may do so again.
    return max(
        (one for one in _free_workers(state) if _may_have(one, job)),
        key=lambda one: (-one.failed.get(job.id, 0), one.free),
        default=None,
    )


def _may_have(worker: Worker, job: Job) -> bool:
    return worker.may_take(job.id) if job.processes else worker.may_begin(job.id)


def _is_barred(state: State, job: Job) -> bool:
    """Whether some worker cannot run the job, so that others may get what it cannot."""
    return any(job.id in worker.barred for worker in state.workers.values())


def _make_room(state: State, job: Job) -> Decision | None:
    """Take a slot that the job can use from one of no higher priority that has
    several; one at a time."""
    best: list[Process] = []
    for identity in state.wide:
        other = state.jobs[identity]
        crawl = state.crawls[identity]
        if crawl.stopping:
            # One is on its way out already.
            return None
        if other.priority > job.priority or other.processes < 2:
            continue
        useful = [
            one
            for one in state.crawling(identity)
            if one.number != crawl.leader
            and _could_take(state.workers.get(one.worker), job)
        ]
        best = max(best, useful, key=len)
    if not best:
        return None
    decision = Decision()
    decision.stop(state, best[-1], SLOT_NEEDED)
    return decision


def _could_take(worker: Worker | None, job: Job) -> bool:
    return worker is not None and worker.may_begin(job.id)


def _further_process(state: State, now: Now, but: Collection[str]) -> Decision | None:
    """Start one more process of a running job where it would help."""
    if not state.wide or not any(_free_workers(state)):
        return None
    for identity in state.wide:
        if identity in but:
            continue
        with deciding_on("job", identity):
            job = state.jobs[identity]
            if has_room(job) and would_help(state, job):
                worker = _worker_for(state, job)
                if worker is not None:
                    return _start(state, job, worker, "crawl", now)
    return None


def has_room(job: Job) -> bool:
    """Whether the job's ceiling allows one more process; 0 is no ceiling."""
    return not job.parallelism or job.processes < job.parallelism


def would_help(state: State, job: Job) -> bool:
    """Whether one more process would find a host of its own, beside those that run
    or are about to."""
    if not job.is_crawling:
        return False
    crawl = state.crawls[job.id]
    frontier = crawl.frontier
    # Nobody knows the project's rules before a first process is open.
    if not crawl.opened:
        return False
    running = job.processes - len(crawl.stopping)
    if frontier.quarantine.wants_isolator and len(crawl.opened) == job.processes:
        return True
    if not frontier.capacity.wants_process():
        return False
    # Whoever has enough to do elsewhere takes none of these hosts.
    return (
        frontier.capacity.workable_count() + frontier.capacity.occupied_count()
        > running
    )


def _start(state: State, job: Job, worker: Worker, role: Role, now: Now) -> Decision:
    number = state.next_process
    assert worker.session is not None
    course = job.course
    decision = Decision(
        records=[
            r.ProcessStarted(
                job=job.id,
                process=number,
                worker=worker.name,
                instance=worker.instance,
                role=role,
                at=now.wall,
            )
        ]
    )
    spec = msgspec.json.decode(job.spec, type=JobSpec)
    start = m.Start(
        job=job.id,
        process=number,
        role=role,
        # It may have been changed since the job was submitted.
        spec=msgspec.structs.replace(spec, parallelism=job.parallelism),
        digest="" if course is None else course.digest,
        hash_seed=zlib.crc32(job.id.encode()),
        came_to_end=role == "crawl" or _came_to_end(state, job),
        opened_at=_opened_at(state, job),
    )
    decision.send(worker.session, start)
    return decision


def _came_to_end(state: State, job: Job) -> bool:
    """Whether the crawl whose feeds are to be written did its work, or still does."""
    verdict = verdict_of(job.begin(), state.crawls[job.id].frontier.poisoned)
    return verdict is None or verdict.ending.came_to_end


def _opened_at(state: State, job: Job) -> float | None:
    """Return when the job's crawl began, as its stats say if they do."""
    crawl = state.crawls.get(job.id)
    began_at = None if crawl is None else crawl.totals.start_at
    course = job.course
    return began_at if began_at or course is None else course.opened_at
