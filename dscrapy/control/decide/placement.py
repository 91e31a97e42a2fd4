"""Which job gets a process on which worker.

Higher priority first, then first come, to the worker with most free slots. A job's
first process goes before anybody's second; a second one is started only where it
would help, and gives its slot back when a job of at least its priority has no process.
Processes that write feeds take no slot, so they never wait for one.
"""

import zlib
from collections.abc import Collection, Iterator
from hashlib import blake2b

import msgspec

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import Decision, deciding_on
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.jobs import Job
from dscrapy.control.state.processes import Process, Role
from dscrapy.control.state.state import State
from dscrapy.control.state.verdict import verdict_of
from dscrapy.control.state.workers import Worker
from dscrapy.model import SLOT_NEEDED, JobSpec

# Goes into each key of a job: a key for another purpose must differ.
KEY_PURPOSE = b"dscrapy pickles"


def place(decision: Decision, exclude: Collection[str] = ()) -> bool:
    """Decide the next assignment; return whether there is one to make.

    Apply the decision, then ask again. Jobs of ``exclude`` are left out. Raises
    ``StepError`` for the job at which it raises.
    """
    return (
        _export(decision, exclude)
        or _first_process(decision, exclude)
        or _further_process(decision, exclude)
    )


def _export(decision: Decision, exclude: Collection[str]) -> bool:
    """Start a process that writes the feeds of a job, whatever slots are free."""
    state = decision.state
    for identity in state.exports_due:
        if identity in exclude:
            continue
        with deciding_on("job", identity):
            job = state.jobs[identity]
            beside = not job.progress.closing
            worker = max(
                (
                    candidate
                    for candidate in state.workers.values()
                    if candidate.free_exports(beside=beside)
                    and candidate.may_take(identity)
                ),
                key=lambda candidate: (
                    -candidate.failed.get(identity, 0),
                    candidate.free_exports(beside=beside),
                ),
                default=None,
            )
            if worker is not None:
                _start(decision, job, worker, "export")
                return True
    return False


def _first_process(decision: Decision, exclude: Collection[str]) -> bool:
    state = decision.state
    for identity in state.ready:
        if identity in exclude:
            continue
        with deciding_on("job", identity):
            job = state.jobs[identity]
            if not any(_free_workers(state)):
                makes_room = _make_room(decision, job)
                if makes_room or not _is_barred(state, job):
                    return makes_room
                continue
            worker = _worker_for(state, job)
            if worker is not None:
                _start(decision, job, worker, "crawl")
                return True
    return False


def _free_workers(state: State) -> Iterator[Worker]:
    return (worker for worker in state.workers.values() if worker.free)


def _worker_for(state: State, job: Job) -> Worker | None:
    # Workers where the job's processes died at once come last: they may die again.
    return max(
        (worker for worker in _free_workers(state) if _may_have(worker, job)),
        key=lambda worker: (-worker.failed.get(job.id, 0), worker.free),
        default=None,
    )


def _may_have(worker: Worker, job: Job) -> bool:
    return worker.may_take(job.id) if job.processes else worker.may_begin(job.id)


def _is_barred(state: State, job: Job) -> bool:
    """Whether some worker cannot run the job, so that other jobs may have its slots."""
    return any(job.id in worker.barred for worker in state.workers.values())


def _make_room(decision: Decision, job: Job) -> bool:
    """Take a slot that the job can use from a job of no higher priority with several
    processes, one slot at a time. Return whether a slot is taken."""
    state = decision.state
    best: list[Process] = []
    for identity in state.wide:
        donor = state.jobs[identity]
        crawl = state.crawls[identity]
        processes = state.crawling(identity)
        if any(process.stopping for process in processes):
            # A slot will be free soon: wait for it.
            return False
        if donor.priority > job.priority or donor.processes < 2:
            continue
        useful = [
            process
            for process in processes
            if process.number != crawl.leader
            and _could_take(state.workers.get(process.worker), job)
        ]
        if len(useful) > len(best):
            best = drained_first(useful, crawl)
    if best:
        decision.stop(best[0], SLOT_NEEDED)
    return bool(best)


def drained_first(processes: list[Process], crawl: Crawl) -> list[Process]:
    """Return the processes in the order in which they are to be stopped: those with
    pages that only wait, perhaps for each other, come last; then the newest first."""
    waiting = crawl.frontier.leases.waiting_count
    return sorted(
        processes, key=lambda process: (waiting(process.number), -process.number)
    )


def _could_take(worker: Worker | None, job: Job) -> bool:
    return worker is not None and worker.may_begin(job.id)


def _further_process(decision: Decision, exclude: Collection[str]) -> bool:
    """Start one more process of a running job where it would help."""
    state = decision.state
    if not state.wide or not any(_free_workers(state)):
        return False
    for identity in state.wide:
        if identity in exclude:
            continue
        with deciding_on("job", identity):
            job = state.jobs[identity]
            if has_room(job) and would_help(state, job):
                worker = _worker_for(state, job)
                if worker is not None:
                    _start(decision, job, worker, "crawl")
                    return True
    return False


def has_room(job: Job) -> bool:
    """Whether the job's ceiling allows one more process; 0 is no ceiling."""
    return not job.parallelism or job.processes < job.parallelism


def would_help(state: State, job: Job) -> bool:
    """Whether one more process would find a host of its own, beside the processes
    that run or are about to."""
    if not job.is_crawling:
        return False
    crawl = state.crawls[job.id]
    frontier = crawl.frontier
    processes = state.crawling(job.id)
    # The project's rules are not known before a first process is open.
    open_count = sum(process.opened is not None for process in processes)
    if not open_count:
        return False
    running = sum(not process.stopping for process in processes)
    if frontier.quarantine.wants_isolator and open_count == job.processes:
        return True
    if not frontier.capacity.wants_process():
        return False
    # A process that has enough to do elsewhere takes none of these hosts.
    return (
        frontier.capacity.workable_count() + frontier.capacity.occupied_count()
        > running
    )


def _start(decision: Decision, job: Job, worker: Worker, role: Role) -> None:
    state = decision.state
    number = state.next_process
    assert worker.session is not None
    decision.records.append(
        r.ProcessStarted(
            job=job.id,
            process=number,
            worker=worker.name,
            instance=worker.instance,
            role=role,
            at=decision.now.wall,
        )
    )
    spec = msgspec.json.decode(job.spec, type=JobSpec)
    start = m.Start(
        job=job.id,
        process=number,
        role=role,
        # The parallelism may have been changed since the job was submitted.
        spec=msgspec.structs.replace(spec, parallelism=job.parallelism),
        digest=job.progress.digest,
        hash_seed=zlib.crc32(job.id.encode()),
        came_to_end=role == "crawl" or _came_to_end(state, job),
        opened_at=_opened_at(state, job),
        key=_key_of(job, role, decision.policy.secret),
    )
    decision.send(worker.session, start)


def _key_of(job: Job, role: Role, secret: bytes) -> bytes:
    """Return the key of the job's processes: the same in every life of the state."""
    # Feeds are written from items, which hold no pickles.
    if not secret or role != "crawl":
        return b""
    return blake2b(job.id.encode(), key=secret, person=KEY_PURPOSE).digest()


def _came_to_end(state: State, job: Job) -> bool:
    """Whether the crawl whose feeds are to be written did its work, or still does."""
    verdict = verdict_of(job.progress, state.crawls[job.id].frontier.poisoned)
    return verdict is None or verdict.ending.came_to_end


def _opened_at(state: State, job: Job) -> float | None:
    """Return when the job's crawl began, as its stats say if they do."""
    crawl = state.crawls.get(job.id)
    began_at = None if crawl is None else crawl.totals.start_at
    return began_at or job.progress.opened_at
