"""The master's state: ``apply`` changes it, one record at a time.

Everything but the workers and waiters is rebuilt from the journal: replaying the
records that were journalled, or a snapshot and the records after it, gives the
same state. Indexes (counts, what is ready) follow from the jobs.

``apply`` trusts its records: what is wrong with one is our own bug and asserts.
"""

import struct
from collections import Counter, deque
from sys import intern
from typing import assert_never

import attrs
import msgspec

from dscrapy.control import events as r
from dscrapy.control.state.closespider import Watch
from dscrapy.control.state.crawls import Crawl, CrawlSnapshot
from dscrapy.control.state.feed_exports import is_export_due, note_end
from dscrapy.control.state.job_stats import Totals
from dscrapy.control.state.jobs import (
    Course,
    Job,
    Process,
    Schedule,
    Status,
    position_of,
    project_label,
)
from dscrapy.control.state.ready_jobs import ReadyJobs
from dscrapy.control.state.workers import Worker, forgive
from dscrapy.frontier.frontier import Granted
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
    crawls: dict[str, CrawlSnapshot]
    # 0 in those of masters that removed nothing.
    next_job: int = 0


@attrs.define(kw_only=True)
class State:
    """See the module. Read it freely; change it through ``apply`` alone."""

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
    # Jobs with something to see to, and leases to send; the machine empties both.
    touched: dict[str, None] = attrs.field(factory=dict)
    granted: list[tuple[Process, Granted]] = attrs.field(factory=list)
    by_job: dict[str, set[int]] = attrs.field(factory=dict)
    # Jobs with processes that may have several, in order of their first.
    wide: dict[str, None] = attrs.field(factory=dict)
    # Jobs that need a process which writes feeds, and have none.
    exports_due: dict[str, None] = attrs.field(factory=dict)
    # volatile; ``unknown`` processes have not been told of since the master's start
    unknown: set[int] = attrs.field(factory=set)
    workers: dict[str, Worker] = attrs.field(factory=dict)
    sessions: dict[int, str] = attrs.field(factory=dict)
    waiters: dict[str, list[tuple[int, int]]] = attrs.field(factory=dict)
    # Ended jobs to remove once their processes are gone, with the calls to answer.
    removing: dict[str, list[tuple[int, int]]] = attrs.field(factory=dict)
    # Bytes of logs of ended jobs, as far as somebody has looked.
    log_bytes: dict[str, int] = attrs.field(factory=dict)

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
            case r.ScheduleRemoved():
                del self.schedules[record.id]
            case r.JobRemoved():
                self._remove_job(self.jobs[record.job])
            case r.SchedulePaused():
                self.schedules[record.id].paused = record.on
            case r.JobRan():
                self.jobs[record.job].begin().watch = Watch(
                    ran_s=record.ran_s,
                    period_at=record.period_at,
                    period_items=record.period_items,
                )
            case r.ProcessStarted():
                self._start_process(record)
            case r.PartStored():
                process = self.processes[record.process]
                self.crawls[record.job].store(record, process)
            case r.Published():
                self._publish(record)
            case r.ProcessEnded():
                self._end_process(record)
            case r.Concludes():
                self.processes[record.process].concludes = True
                self.jobs[record.job].begin().conclusions += 1
            case r.RequestPoisoned():
                course = self.jobs[record.job].begin()
                self.crawls[record.job].set_aside(record, course)
                self.touched[record.job] = None
            case r.RequestFailed():
                self.crawls[record.job].fail(record, self.jobs[record.job].begin())
                self.touched[record.job] = None
            case (
                r.CrawlOpened()
                | r.CodeSeen()
                | r.FeedsBegun()
                | r.Closes()
                | r.JobEnded()
                | r.JobAgain()
                | r.JobPaused()
                | r.ParallelismSet()
                | r.CancelAsked()
            ):
                self._change_job(record)
            case _:
                self._apply_volatile(record)

    def processes_of(self, job: str) -> list[Process]:
        """Return the job's processes that are not known to be gone."""
        numbers = sorted(self.by_job.get(job, ()))
        return [self.processes[number] for number in numbers]

    def crawling(self, job: str) -> list[Process]:
        """Return those of ``processes_of`` that crawl."""
        return [one for one in self.processes_of(job) if one.role == "crawl"]

    def _add_job(self, record: r.JobAdded) -> None:
        spec = record.spec
        assert record.id not in self.jobs
        job = Job(
            number=self.next_job,
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
        self.next_job += 1
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
        entry = (-job.priority, job.number, job.id)
        if job.is_assignable:
            self.ready.add(entry)
        else:
            self.ready.discard(entry)

    def _start_process(self, record: r.ProcessStarted) -> None:
        job = self.jobs[record.job]
        assert record.process >= self.next_process
        self.next_process = record.process + 1
        course = job.begin()
        process = Process(
            number=record.process,
            job=job.id,
            worker=record.worker,
            instance=record.instance,
            role=record.role,
            beside=record.role == "export" and not course.closing,
        )
        if job.id not in self.crawls:
            self.crawls[job.id] = Crawl.begun_at(course.next_request)
        self._take_in(process)
        job.count_process(process.role, 1)
        course.processes_count += 1
        course.worker = intern(record.worker)
        course.reason = ""
        if course.started_at is None:
            course.started_at = record.at
        self._set_status(job, "running")
        self._queue(job)
        worker = self.workers.get(record.worker)
        if worker is not None:
            worker.take_in(process.number, process.role)
        self._note_due(job)
        self.touched[job.id] = None

    def _take_in(self, process: Process) -> None:
        self.processes[process.number] = process
        self.by_job.setdefault(process.job, set()).add(process.number)
        self._note_wide(self.jobs[process.job])

    def _note_wide(self, job: Job) -> None:
        is_wide = job.parallelism != 1 and job.id in self.by_job
        if is_wide and job.id in self.crawls:
            self.wide[job.id] = None
        else:
            self.wide.pop(job.id, None)

    def _note_due(self, job: Job) -> None:
        """Note whether the job needs a process that writes its feeds."""
        crawl = self.crawls.get(job.id)
        if is_export_due(job, crawl, self.crawling):
            self.exports_due[job.id] = None
        else:
            self.exports_due.pop(job.id, None)

    def _is_export(self, process: int) -> bool:
        known = self.processes.get(process)
        return known is not None and known.role == "export"

    def _set_status(self, job: Job, status: Status) -> None:
        self.counts[job.state] -= 1
        job.status = status
        self.counts[job.state] += 1

    def _publish(self, record: r.Published) -> None:
        course = self.jobs[record.job].begin()
        process = self.processes.get(record.process)
        if process is not None and process.role == "export" and record.end is not None:
            note_end(course, record.end)
        self.crawls[record.job].publish(record, course, process)
        self.touched[record.job] = None
        self._note_due(self.jobs[record.job])

    def _end_process(self, record: r.ProcessEnded) -> None:
        process = self.processes.pop(record.process)
        self.by_job[process.job].remove(process.number)
        if not self.by_job[process.job]:
            del self.by_job[process.job]
        self._note_wide(self.jobs[process.job])
        self.unknown.discard(process.number)
        worker = self.workers.get(process.worker)
        if worker is not None:
            worker.forget(process.number)
        job = self.jobs[record.job]
        job.count_process(process.role, -1)
        course = job.begin()
        if process.role == "export":
            is_death = record.counted or record.how == "failed"
            course.export_deaths += is_death and not process.closed
        else:
            course.deaths += record.counted and not record.blamed
            course.end_failures += record.end_failed
        crawl = self.crawls.get(job.id)
        if crawl is not None:
            crawl.forget_process(process, record.at)
            crawl.frontier.count_death(record.blamed, alone=record.alone)
        if record.text and not job.is_final:
            course.reason = record.text
        if job.status == "running" and not job.has_processes:
            self._set_status(job, "ready")
        self._let_go(job)
        self.touched[job.id] = None
        self._note_due(job)
        self._queue(job)

    def _change_job(self, record: r.JobChange) -> None:
        job = self.jobs[record.job]
        self.counts[job.state] -= 1
        match record:
            case r.CrawlOpened():
                job.begin().opened_at = record.at
                job.begin().has_feeds = record.has_feeds
                job.begin().has_once = record.has_once
                job.begin().own_lines = record.own_lines
            case r.CodeSeen():
                job.begin().digest = record.digest
            case r.FeedsBegun():
                feeds = job.begin().feeds or {}
                job.begin().feeds = {**feeds, **record.lengths}
            case r.Closes():
                job.begin().close(record)
            case r.JobEnded():
                self._end_job(job, record)
            case r.JobAgain():
                self._again(job, record)
            case r.JobPaused():
                job.paused, job.paused_at = record.on, record.at
            case r.ParallelismSet():
                job.parallelism = record.count
            case r.CancelAsked():
                job.begin().cancelling = True
            case _:
                assert_never(record)
        self.counts[job.state] += 1
        self._note_wide(job)
        self._note_due(job)
        self.touched[job.id] = None
        self._queue(job)

    def _end_job(self, job: Job, record: r.JobEnded) -> None:
        job.status = record.state
        course = job.begin()
        course.reason = record.reason
        course.traceback = record.traceback
        course.finished_at = record.at
        course.cancelling = False
        course.came_to_end = record.came_to_end
        crawl = self.crawls.get(job.id)
        if crawl is not None:
            reason = course.closing or record.reason
            course.stats = msgspec.json.encode(crawl.totals.final(reason))
            course.next_request = crawl.frontier.next_request
            self._let_go(job)
        if record.state == "failed":
            self.failed.append(job.id)
        self.ended[job.id] = None

    def _let_go(self, job: Job) -> None:
        """Drop a crawl that is of no use any more, once no process needs it."""
        if job.status == "succeeded" and not job.has_processes:
            self.crawls.pop(job.id, None)
            # What a fresh run begins without, and nobody is shown.
            course = job.begin()
            course.feeds, course.batches, course.watch = None, (), Watch()

    def _remove_job(self, job: Job) -> None:
        """Forget an ended job without processes; nothing may grow with such."""
        assert job.is_final, job
        assert not job.has_processes, job
        del self.jobs[job.id]
        del self.order[position_of(self.order, job.number)]
        self.counts[job.state] -= 1
        if job.id in self.failed:
            self.failed.remove(job.id)
        for jobs in (self.ended, self.wide, self.exports_due, self.touched):
            jobs.pop(job.id, None)
        self.crawls.pop(job.id, None)
        self.removing.pop(job.id, None)
        self.log_bytes.pop(job.id, None)
        forgive(self.workers.values(), job.id)
        schedule = self.schedules.get(job.schedule or "")
        if schedule is not None and schedule.job == job.id:
            schedule.job = None

    def _again(self, job: Job, record: r.JobAgain) -> None:
        job.status = "ready"
        self.ended.pop(job.id, None)
        self.log_bytes.pop(job.id, None)
        course = job.begin()
        if record.automatic:
            job.retries_left -= 1
        else:
            job.paused = False
        if record.fresh:
            # The next process begins another, or one that has not gone yet needs it.
            self.crawls.pop(job.id, None)
            job.course = Course(
                processes_count=course.processes_count,
                next_request=course.next_request,
                errors=0,
            )
            if job.has_processes:
                self.crawls[job.id] = Crawl.begun_at(course.next_request)
        elif job.id in self.crawls:
            self.crawls[job.id].frontier.pardon()
        again = job.begin()
        if not record.automatic:
            # Whoever asks for it may have mended the code; any copy may begin it.
            again.digest = ""
            forgive(self.workers.values(), job.id)
        else:
            live = [one for one in self.workers.values() if one.session is not None]
            if not any(one.may_begin(job.id) for one in live):
                # Nobody who is here would try it: that retry would be none.
                forgive(self.workers.values(), job.id)
        again.begin_again(record.reason)
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
            case r.WorkerBarred():
                worker = self.workers[record.name]
                worker.bar(record.job, record.why, beside=record.beside)
            case r.WorkerFailed():
                failed = self.workers[record.name].failed
                failed[record.job] = failed.get(record.job, 0) + 1
            case r.WorkersForgiven():
                forgive(self.workers.values(), record.job)
            case r.WaiterAdded():
                waiting = self.waiters.setdefault(record.job, [])
                waiting.append((record.session, record.call))
            case r.RemovalAsked():
                waiting = self.removing.setdefault(record.job, [])
                waiting.append((record.session, record.call))
                self.touched[record.job] = None
            case r.LogsMeasured():
                for job, size in record.sizes.items():
                    if job in self.ended:
                        self.log_bytes[job] = size
            case r.SessionGone():
                for job, waiting in list(self.waiters.items()):
                    left = [entry for entry in waiting if entry[0] != record.session]
                    if left:
                        self.waiters[job] = left
                    else:
                        del self.waiters[job]
                for job, waiting in self.removing.items():
                    left = [entry for entry in waiting if entry[0] != record.session]
                    self.removing[job] = left
            case _:
                self._apply_to_crawl(record)

    def _apply_to_crawl(self, record: r.CrawlChange) -> None:
        if isinstance(record, r.ProcessKnown):
            self.unknown.discard(record.held.process)
            self.crawls[record.held.job].know(record.held, record.at)
            self.touched[record.held.job] = None
            self._note_due(self.jobs[record.held.job])
            return
        if isinstance(record, r.ProcessOpened):
            job = record.opened.job
            self.crawls[job].opened[record.opened.process] = record.opened
            self.crawls[job].frontier.leases.open_process(
                record.opened.process, record.opened
            )
            self.touched[job] = None
            self._note_due(self.jobs[job])
            return
        crawl = self.crawls[record.job]
        match record:
            case r.ProcessCloses() | r.ProcessStops():
                # One that writes feeds holds neither leases nor a slot.
                if not self._is_export(record.process):
                    crawl.stop(record.process)
                self.touched[record.job] = None
            case r.ProcessIdles():
                crawl.note_idle(record.process, record.since)
            case r.ProcessIsolates():
                crawl.frontier.quarantine.isolate(record.process)
                self.touched[record.job] = None
            case r.ProcessDismissed():
                crawl.dismissed.add(record.process)
            case r.ItemsEndSent():
                crawl.told_end.add(record.process)
            case r.ProcessOrdered():
                crawl.ordered.add(record.process)
            case r.LeadGiven():
                crawl.leader = record.process
                crawl.start_may, crawl.finish_sent = (0, 0), 0
            case r.StartMayGiven():
                crawl.start_may = record.upto, record.upto_free
            case r.FinishSent():
                crawl.finish_sent = record.number
            case r.TimeRuns():
                crawl.runs_since = record.since
            case r.LeasesWanted():
                granted = crawl.frontier.lease(record.process, record.count, record.at)
                if granted.requests:
                    crawl.idle_since.pop(record.process, None)
                    self.granted.append((self.processes[record.process], granted))
            case r.Released():
                crawl.take_back(record)
                self.touched[record.job] = None
            case _:
                assert_never(record)

    def _welcome(self, record: r.WorkerCame) -> None:
        said = record.register
        known = self.workers.get(said.name)
        if known is not None and known.session is not None:
            self.sessions.pop(known.session, None)
        self.workers[said.name] = Worker.come(said, record.session, record.now, known)
        self.sessions[record.session] = said.name

    def expect_workers(self, now: float) -> None:
        """After a replay: expect whoever holds processes to come back."""
        for process in self.processes.values():
            worker = self.workers.setdefault(
                process.worker,
                Worker(name=process.worker, since=now, expected=process.instance),
            )
            worker.take_in(process.number, process.role)
            self.unknown.add(process.number)
        self.touched = dict.fromkeys(self.crawls)

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
            # Its checksum is right, so no disk made this.
            raise msgspec.ValidationError(f"it contradicts itself: {error!r}") from None

    @classmethod
    def _restore(cls, snapshot: _Snapshot) -> "State":
        state = cls(epoch=snapshot.epoch, next_process=snapshot.next_process)
        # Counted anew: up to format 3 those that write feeds were not apart.
        count = Counter((process.job, process.role) for process in snapshot.processes)
        for job in snapshot.jobs:
            job.processes = count[job.id, "crawl"]
            job.exports = count[job.id, "export"]
            job.project = intern(job.project)
            job.spider = intern(job.spider)
            state._index(job)
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
            # Earlier formats had them in the order in which they came.
            process.units_beyond.sort()
            state._take_in(process)
        for job in snapshot.jobs:
            state._note_due(job)
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
