"""The master's state: jobs, processes, workers, and indexes that follow from them.

Everything but the workers and waiters is rebuilt from the journal: replaying the
records that were journalled, or a snapshot and the records after it, gives the
same state. Indexes (counts, what is ready) follow from the jobs.
"""

import struct
from collections import Counter, deque
from sys import intern

import attrs
import msgspec

from dscrapy.control.state.crawls import Crawl, CrawlSnapshot
from dscrapy.control.state.feed_exports import is_export_due
from dscrapy.control.state.job_stats import Totals
from dscrapy.control.state.jobs import Job, Schedule, Status
from dscrapy.control.state.processes import LastingProcess, Process
from dscrapy.control.state.ready_jobs import ReadyJobs
from dscrapy.control.state.workers import Worker
from dscrapy.model import Stats

# The failed jobs that ``status`` names.
FAILED_SHOWN_MAX = 5


class _Snapshot(msgspec.Struct, kw_only=True):
    """All that survives a restart. The journal's format version covers it."""

    epoch: int
    next_process: int
    jobs: list[Job]
    processes: list[LastingProcess]
    schedules: list[Schedule]
    crawls: dict[str, CrawlSnapshot]
    # 0 in a snapshot of an older master, which removed no jobs.
    next_job: int = 0


@attrs.define(kw_only=True)
class State:
    """See the module. Read it freely; ``apply`` alone changes it, by the methods below
    the line."""

    epoch: int = 0
    next_process: int = 1
    next_job: int = 0
    jobs: dict[str, Job] = attrs.field(factory=dict)
    processes: dict[int, Process] = attrs.field(factory=dict)
    schedules: dict[str, Schedule] = attrs.field(factory=dict)
    crawls: dict[str, Crawl] = attrs.field(factory=dict)
    # derived; ``order`` by number, ``ended`` as they ended
    order: list[Job] = attrs.field(factory=list)
    ended: dict[str, None] = attrs.field(factory=dict)
    counts: Counter[str] = attrs.field(factory=Counter)
    failed: deque[str] = attrs.field(factory=lambda: deque(maxlen=FAILED_SHOWN_MAX))
    ready: ReadyJobs = attrs.field(factory=ReadyJobs)
    by_job: dict[str, set[int]] = attrs.field(factory=dict)
    # Jobs with processes that may have several, in order of their first.
    wide: dict[str, None] = attrs.field(factory=dict)
    # Jobs that need a process which writes feeds, and have none.
    exports_due: dict[str, None] = attrs.field(factory=dict)
    # volatile; ``unknown`` processes have not been reported since the master's start
    unknown: set[int] = attrs.field(factory=set)
    workers: dict[str, Worker] = attrs.field(factory=dict)
    sessions: dict[int, str] = attrs.field(factory=dict)
    waiters: dict[str, list[tuple[int, int]]] = attrs.field(factory=dict)
    # Ended jobs to remove once their processes are gone, with the calls to answer.
    removing: dict[str, list[tuple[int, int]]] = attrs.field(factory=dict)
    # Bytes of logs of ended jobs, as far as they are measured.
    log_bytes: dict[str, int] = attrs.field(factory=dict)

    def processes_of(self, job: str) -> list[Process]:
        """Return the job's processes that are not known to be gone."""
        numbers = sorted(self.by_job.get(job, ()))
        return [self.processes[number] for number in numbers]

    def crawling(self, job: str) -> list[Process]:
        """Return the processes of ``processes_of`` that crawl."""
        return [
            process for process in self.processes_of(job) if process.role == "crawl"
        ]

    # ---- for ``apply`` ------------------------------------------------------

    def index(self, job: Job) -> None:
        """Take in a job that is new here."""
        self.jobs[job.id] = job
        self.order.append(job)
        self.counts[job.state] += 1
        if job.status == "failed":
            self.failed.append(job.id)
        self.queue(job)

    def queue(self, job: Job) -> None:
        """Note whether the job waits for its first process."""
        entry = (-job.priority, job.number, job.id)
        if job.is_assignable:
            self.ready.add(entry)
        else:
            self.ready.discard(entry)

    def take_in(self, process: Process) -> None:
        """Add a process."""
        self.processes[process.number] = process
        self.by_job.setdefault(process.job, set()).add(process.number)
        self.note_wide(self.jobs[process.job])

    def note_wide(self, job: Job) -> None:
        """Note whether the job has processes and may have several."""
        is_wide = job.parallelism != 1 and job.id in self.by_job
        if is_wide and job.id in self.crawls:
            self.wide[job.id] = None
        else:
            self.wide.pop(job.id, None)

    def note_export_due(self, job: Job) -> None:
        """Note whether the job needs a process that writes its feeds."""
        crawl = self.crawls.get(job.id)
        if is_export_due(job, crawl, self.crawling):
            self.exports_due[job.id] = None
        else:
            self.exports_due.pop(job.id, None)

    def set_status(self, job: Job, status: Status) -> None:
        """Give the job this status, and count it by that."""
        self.counts[job.state] -= 1
        job.status = status
        self.counts[job.state] += 1

    def forget_process(self, number: int) -> Process:
        """Remove a process; return it."""
        process = self.processes.pop(number)
        numbers = self.by_job[process.job]
        numbers.remove(number)
        if not numbers:
            del self.by_job[process.job]
        self.note_wide(self.jobs[process.job])
        self.unknown.discard(number)
        worker = self.workers.get(process.worker)
        if worker is not None:
            worker.forget(number)
        return process

    # ---- snapshots ----------------------------------------------------------

    def encode_snapshot(self) -> bytes:
        """Return all that survives a restart, as JSON."""
        return msgspec.json.encode(
            _Snapshot(
                epoch=self.epoch,
                next_process=self.next_process,
                jobs=self.order,
                processes=[process.lasting() for process in self.processes.values()],
                schedules=list(self.schedules.values()),
                crawls={job: crawl.snapshot() for job, crawl in self.crawls.items()},
                next_job=self.next_job,
            )
        )

    @classmethod
    def decode_snapshot(cls, payload: bytes) -> "State":
        """Return the state of a snapshot; raises ``msgspec.DecodeError``."""
        try:
            return cls._restore(msgspec.json.decode(payload, type=_Snapshot))
        except (LookupError, ValueError, AssertionError, struct.error) as error:
            # The snapshot's checksum is right, so this is no damage of the disk.
            raise msgspec.ValidationError(f"it contradicts itself: {error!r}") from None

    @classmethod
    def _restore(cls, snapshot: _Snapshot) -> "State":
        state = cls(epoch=snapshot.epoch, next_process=snapshot.next_process)
        # Counted anew: up to format 3 both roles were counted together.
        count = Counter((process.job, process.role) for process in snapshot.processes)
        for job in snapshot.jobs:
            job.processes = count[job.id, "crawl"]
            job.exports = count[job.id, "export"]
            job.project = intern(job.project)
            job.spider = intern(job.spider)
            state.index(job)
        last = snapshot.jobs[-1].number if snapshot.jobs else -1
        state.next_job = max(snapshot.next_job, last + 1)
        ended = [job for job in snapshot.jobs if job.is_final]
        ended.sort(key=lambda job: (job.ended_at, job.number))
        state.ended = {job.id: None for job in ended}
        state.schedules = {schedule.id: schedule for schedule in snapshot.schedules}
        state.crawls = {
            job: Crawl.restore(crawl) for job, crawl in snapshot.crawls.items()
        }
        for job in snapshot.jobs:
            state._count_errors(job)
        for process in snapshot.processes:
            state.take_in(Process.restore(process))
        for job in snapshot.jobs:
            state.note_export_due(job)
        return state

    def _count_errors(self, job: Job) -> None:
        """Count the errors of a job of which an older master wrote the snapshot."""
        course = job.course
        if course is None or course.errors is not None:
            return
        crawl = self.crawls.get(job.id)
        if crawl is not None:
            course.errors = crawl.totals.errors
        else:
            stats = msgspec.json.decode(course.stats, type=Stats)
            course.errors = Totals.decode(stats).errors
