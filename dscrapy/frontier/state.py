"""The master's state: ``apply`` changes it, one record at a time.

Everything but the workers and waiters is rebuilt from the journal: replaying the
records that were journalled, or a snapshot and the records after it, gives the
same state. Indexes (counts, what is ready) follow from the jobs.

``apply`` trusts its records: what is wrong with one is our own bug and asserts.
"""

import heapq
from collections import Counter, deque
from sys import intern
from typing import assert_never

import attrs
import msgspec

from dscrapy.frontier import records as r
from dscrapy.frontier.jobs import Course, Job, Process, Schedule, project_label
from dscrapy.frontier.workers import Worker
from dscrapy.model import Stats

# The failed jobs that ``status`` names.
FAILED_SHOWN_MAX = 5


class _Snapshot(msgspec.Struct, kw_only=True):
    """All that survives a restart. The journal's format version covers it."""

    epoch: int
    next_process: int
    jobs: list[Job]
    processes: list[Process]
    schedules: list[Schedule]


@attrs.define(kw_only=True)
class State:
    """See the module. Read it freely; change it through ``apply`` alone."""

    epoch: int = 0
    next_process: int = 1
    jobs: dict[str, Job] = attrs.field(factory=dict)
    processes: dict[int, Process] = attrs.field(factory=dict)
    schedules: dict[str, Schedule] = attrs.field(factory=dict)
    # derived
    order: list[Job] = attrs.field(factory=list)
    counts: Counter[str] = attrs.field(factory=Counter)
    failed: deque[str] = attrs.field(factory=lambda: deque(maxlen=FAILED_SHOWN_MAX))
    ready: list[tuple[int, int, str]] = attrs.field(factory=list)
    # volatile
    workers: dict[str, Worker] = attrs.field(factory=dict)
    sessions: dict[int, str] = attrs.field(factory=dict)
    progress: dict[str, r.ProgressSeen] = attrs.field(factory=dict)
    waiters: dict[str, list[tuple[int, int]]] = attrs.field(factory=dict)

    def apply(self, record: r.Record | r.Volatile) -> None:
        """Let ``record`` be a fact."""
        match record:
            case r.MasterStarted():
                self.epoch = record.epoch
            case r.JobAdded():
                self._add_job(record)
            case r.ScheduleAdded():
                self.schedules[record.id] = Schedule(
                    id=record.id,
                    spec=msgspec.json.encode(record.spec),
                    every_s=record.every_s,
                    next_at=record.at,
                )
            case r.ScheduleCancelled():
                self.schedules[record.id].cancelled = True
            case r.ProcessStarted():
                self._start_process(record)
            case r.PartStored():
                process = self.processes[record.process]
                assert process.parts == record.part
                process.parts += 1
                process.spool_items += len(record.items)
                process.spool_bytes += len(r.lines_of(record.items))
                tagged = r.tagged_lines_of(record.items, record.tagged)
                process.spool_tagged_bytes += len(tagged)
            case r.Published():
                self._publish(record)
            case r.ProcessEnded():
                self._end_process(record)
            case (
                r.CodeSeen()
                | r.JobEnded()
                | r.JobAgain()
                | r.JobPaused()
                | r.CancelAsked()
            ):
                self._change_job(record)
            case _:
                self._apply_volatile(record)

    def _add_job(self, record: r.JobAdded) -> None:
        spec = record.spec
        assert record.id not in self.jobs
        job = Job(
            number=len(self.order),
            id=record.id,
            spec=msgspec.json.encode(spec),
            project=intern(project_label(spec)),
            spider=intern(spec.spider),
            name=spec.name,
            priority=spec.priority,
            parallelism=spec.parallelism,
            retries_left=spec.retries,
            submitted_at=record.at,
            schedule=record.schedule,
        )
        self._index(job)
        if record.schedule is not None:
            schedule = self.schedules[record.schedule]
            schedule.job = job.id
            schedule.runs += 1
            schedule.next_at = record.next_at

    def _index(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.order.append(job)
        self.counts[job.state] += 1
        if job.status == "failed":
            self.failed.append(job.id)
        self._queue(job)

    def _queue(self, job: Job) -> None:
        if job.is_assignable:
            heapq.heappush(self.ready, (-job.priority, job.number, job.id))

    def _start_process(self, record: r.ProcessStarted) -> None:
        job = self.jobs[record.job]
        assert job.is_assignable
        assert record.process >= self.next_process
        self.next_process = record.process + 1
        course = job.begin()
        process = Process(
            number=record.process,
            job=job.id,
            worker=record.worker,
            request=course.request,
        )
        self.processes[process.number] = process
        course.process = process.number
        course.processes_count += 1
        course.worker = intern(record.worker)
        course.reason = ""
        if course.started_at is None:
            course.started_at = record.at
        self.counts[job.state] -= 1
        job.status = "running"
        self.counts[job.state] += 1
        worker = self.workers.get(record.worker)
        if worker is not None:
            worker.processes.add(process.number)

    def _publish(self, record: r.Published) -> None:
        course = self.jobs[record.job].begin()
        assert course.request == record.request
        assert not course.done
        course.done = True
        process = self.processes.get(record.process)
        if process is not None:
            course.items += process.spool_items
            course.items_bytes += process.spool_bytes
            course.tagged_bytes += process.spool_tagged_bytes
            process.spool_items = 0
            process.spool_bytes = process.spool_tagged_bytes = 0
            process.parts += 1
        course.items += len(record.items)
        course.items_bytes += len(r.lines_of(record.items))
        tagged = r.tagged_lines_of(record.items, record.tagged)
        course.tagged_bytes += len(tagged)
        course.pages = count_of(record.stats, "response_received_count")
        course.stats = msgspec.json.encode(record.stats)
        self.progress.pop(record.job, None)

    def _end_process(self, record: r.ProcessEnded) -> None:
        process = self.processes.pop(record.process)
        worker = self.workers.get(process.worker)
        if worker is not None:
            worker.processes.discard(process.number)
        job = self.jobs[record.job]
        course = job.begin()
        if course.process == process.number:
            course.process = None
        course.deaths += record.counted
        if job.status == "running":
            self.counts[job.state] -= 1
            job.status = "ready"
            self.counts[job.state] += 1
            course.reason = record.text
            self.progress.pop(job.id, None)
        self._queue(job)

    def _change_job(
        self,
        record: r.CodeSeen | r.JobEnded | r.JobAgain | r.JobPaused | r.CancelAsked,
    ) -> None:
        job = self.jobs[record.job]
        self.counts[job.state] -= 1
        match record:
            case r.CodeSeen():
                job.begin().digest = record.digest
            case r.JobEnded():
                self._end_job(job, record)
            case r.JobAgain():
                self._again(job, record)
            case r.JobPaused():
                job.paused = record.on
            case r.CancelAsked():
                job.begin().cancelling = True
            case _:
                assert_never(record)
        self.counts[job.state] += 1
        if isinstance(record, r.JobAgain | r.JobPaused):
            self._queue(job)

    def _end_job(self, job: Job, record: r.JobEnded) -> None:
        job.status = record.state
        course = job.begin()
        course.reason = record.reason
        course.traceback = record.traceback
        course.finished_at = record.at
        course.cancelling = False
        self.progress.pop(job.id, None)
        if record.state == "failed":
            self.failed.append(job.id)

    def _again(self, job: Job, record: r.JobAgain) -> None:
        job.status = "ready"
        job.paused = False
        course = job.begin()
        if record.automatic:
            job.retries_left -= 1
        if record.fresh:
            job.course = Course(
                process=course.process, processes_count=course.processes_count
            )
        fresh = job.begin()
        if not record.automatic:
            # Whoever asks for it may have mended the code; any copy may begin it.
            fresh.digest = ""
            for worker in self.workers.values():
                worker.differs.discard(job.id)
        fresh.request = course.request + 1
        fresh.done = False
        fresh.cancelling = False
        fresh.deaths = 0
        fresh.reason = record.reason
        fresh.traceback = ""
        fresh.finished_at = None
        if job.id in self.failed:
            self.failed.remove(job.id)

    def _apply_volatile(self, record: r.Volatile) -> None:
        match record:
            case r.WorkerCame():
                self._welcome(record)
            case r.WorkerAway():
                worker = self.workers[record.name]
                if worker.session is not None:
                    self.sessions.pop(worker.session, None)
                worker.session = None
                worker.since = record.now
            case r.WorkerGone():
                worker = self.workers.pop(record.name)
                assert not worker.processes
                if worker.session is not None:
                    self.sessions.pop(worker.session, None)
            case r.WorkerDrains():
                self.workers[record.name].draining = True
            case r.WorkerDiffers():
                self.workers[record.name].differs.add(record.job)
            case r.ProgressSeen():
                self.progress[record.job] = record
            case r.WaiterAdded():
                waiting = self.waiters.setdefault(record.job, [])
                waiting.append((record.session, record.call))
            case r.SessionGone():
                for job, waiting in list(self.waiters.items()):
                    left = [entry for entry in waiting if entry[0] != record.session]
                    if left:
                        self.waiters[job] = left
                    else:
                        del self.waiters[job]
            case _:
                assert_never(record)

    def _welcome(self, record: r.WorkerCame) -> None:
        said = record.register
        known = self.workers.get(said.name)
        same = known is not None and known.instance == said.instance
        if known is not None and known.session is not None:
            self.sessions.pop(known.session, None)
        self.workers[said.name] = Worker(
            name=said.name,
            since=record.now,
            session=record.session,
            instance=said.instance,
            host=said.host,
            port=said.port,
            slots=said.slots,
            draining=said.draining,
            versions=said.versions,
            heard_at=record.now,
            processes=known.processes if known is not None else set(),
            differs=known.differs if known is not None and same else set(),
        )
        self.sessions[record.session] = said.name

    def expect_workers(self, now: float) -> None:
        """After a replay: expect whoever holds processes to come back."""
        for process in self.processes.values():
            worker = self.workers.setdefault(
                process.worker, Worker(name=process.worker, since=now)
            )
            worker.processes.add(process.number)

    # ---- snapshots ----------------------------------------------------------

    def encode_snapshot(self) -> bytes:
        """Return all that survives a restart, as JSON."""
        return msgspec.json.encode(
            _Snapshot(
                epoch=self.epoch,
                next_process=self.next_process,
                jobs=self.order,
                processes=list(self.processes.values()),
                schedules=list(self.schedules.values()),
            )
        )

    @classmethod
    def decode_snapshot(cls, payload: bytes) -> "State":
        """Return the state of a snapshot; raises ``msgspec.DecodeError``."""
        snapshot = msgspec.json.decode(payload, type=_Snapshot)
        state = cls(epoch=snapshot.epoch, next_process=snapshot.next_process)
        for job in snapshot.jobs:
            job.project = intern(job.project)
            job.spider = intern(job.spider)
            state._index(job)
        state.processes = {process.number: process for process in snapshot.processes}
        state.schedules = {schedule.id: schedule for schedule in snapshot.schedules}
        return state


def count_of(stats: Stats, key: str) -> int:
    """Return the summed stat of this name, 0 when there is no such number."""
    value = stats.get("sum", {}).get(key)
    if value is None:
        return 0
    try:
        return int(msgspec.json.decode(value, type=float))
    except msgspec.DecodeError:
        # A project may write anything into its stats.
        return 0
