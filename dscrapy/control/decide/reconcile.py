"""What a running job needs next: a leader, leases, an end.

The loop reconciles a job whenever something about it has changed. No leases are given
out while a process of the job has not been reported since the master's start: it may
hold leases that the master does not know.
"""

import math
from typing import Any, Self

import attrs

from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decide.conclusion import Conclusion
from dscrapy.control.decide.placement import drained_first
from dscrapy.control.decision import Decision
from dscrapy.control.state import closespider
from dscrapy.control.state.closespider import Watch
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.feed_exports import is_over
from dscrapy.control.state.jobs import Job
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.endings import came_to_end
from dscrapy.frontier.politeness import at_once
from dscrapy.messages import (
    DIGEST_BYTES,
    AllWait,
    Finish,
    ItemsEnd,
    Lead,
    Recall,
    Release,
    Skip,
    StartMay,
    WorkShort,
)
from dscrapy.model import (
    JOB_PAUSES,
    PROCESS_IDLES,
    PROCESS_REASONS,
    SLOT_NEEDED,
    WORKER_DRAINS,
    CloseLimits,
    Outcome,
)

# Elements of start() that the leading process may commit ahead of the answers; the
# crawl process holds no more than these.
START_AHEAD = 200
# Pending requests beyond which start() waits: so start() alone never makes the frontier
# much larger than this.
START_PENDING_MAX = 10_000
# Digests in one ``Skip``: some 500 KiB of JSON.
SKIP_DIGESTS = 50_000
# A kill of the master may lose this much of a job's time: where the time is limited, it
# is journalled this often.
TIME_NOTED_S = 10.0
# A process that does not lead and has had no lease for so long gives its slot back.
# Starting one costs about a second.
PROCESS_IDLE_S = 10.0
# Pages that only wait, with nothing else left to do, are named after so long: they may
# wait for what never comes.
ALL_WAIT_S = 30.0
_NO_LIMITS = CloseLimits()


@attrs.frozen
class JobReconciler:
    """Decides for one job; adds to ``decision``."""

    decision: Decision
    job: Job
    crawl: Crawl
    processes: list[Process]

    @classmethod
    def of(cls, decision: Decision, job: str) -> Self:
        """Return the reconciler of a job that has a crawl."""
        state = decision.state
        processes = state.processes_of(job)
        return cls(decision, state.jobs[job], state.crawls[job], processes)

    @property
    def crawling(self) -> list[Process]:
        """The job's processes that crawl."""
        return [process for process in self.processes if process.role == "crawl"]

    @property
    def state(self) -> State:
        return self.decision.state

    @property
    def now(self) -> Now:
        return self.decision.now

    def reconcile(self) -> None:
        """Decide all that the job's present state asks for."""
        job = self.job
        if job.is_final or self._waits_for_workers():
            return
        self._let_write()
        Conclusion(self.decision, job, self.crawl, self.processes).reconcile()
        if not job.is_crawling:
            return
        reason = closespider.reached(
            self._limits, self.crawl.counters, len(self.crawl.received)
        )
        if reason:
            self.decision.close_job(job, reason)
            return
        processes = self.crawling
        if self._isolate(processes):
            # Reconciled again once the record is applied.
            return
        self._narrow(processes)
        for request, why in self.crawl.frontier.leases.unreadable().items():
            self._fail_request(request, why)
        if self.decision.records:
            # Reconciled again once the records are applied.
            return
        for process in processes:
            self._note_waits(process)
        self._recall()
        able = [process for process in processes if self._may_take(process)]
        for process in able:
            self._grant(process)
        self._tell_short(able)
        self._lead()

    def _narrow(self, processes: list[Process]) -> None:
        """Stop processes beyond the job's ceiling, which was lowered."""
        leader = self.crawl.leader
        staying = [process for process in processes if not process.stopping]
        surplus = len(staying) - self.job.parallelism if self.job.parallelism else 0
        for process in drained_first(staying, self.crawl):
            if surplus > 0 and process.number != leader:
                self.decision.stop(process, SLOT_NEEDED)
                surplus -= 1

    def _waits_for_workers(self) -> bool:
        unknown = self.state.unknown
        return bool(unknown) and any(
            process.number in unknown for process in self.crawling
        )

    def _may_take(self, process: Process) -> bool:
        worker = self.state.workers.get(process.worker)
        return (
            worker is not None
            and worker.session is not None
            and process.opened is not None
            and not process.stopping
            and not process.is_through
        )

    def _grant(self, process: Process) -> None:
        number = process.number
        frontier = self.crawl.frontier
        idles = not frontier.leases.count_of(number)
        if idles != (process.idle_since is not None):
            since = self.now.run if idles else None
            self.decision.records.append(
                r.ProcessIdles(job=self.job.id, process=number, since=since)
            )
        count = frontier.capacity.room(number)
        if count and frontier.pending_count:
            # A lease ends the idleness of its process: ``apply`` notes it.
            self.decision.records.append(
                r.LeasesWanted(
                    job=self.job.id, process=number, count=count, at=self.now.wall
                )
            )

    def _recall(self) -> None:
        """Let holders of hosts that others wait for lower their shares."""
        leases = self.crawl.frontier.leases
        for at, (process, hosts) in enumerate(leases.recalls().items()):
            fields: dict[str, Any] = {
                "job": self.job.id,
                "process": process,
                "number": leases.next_recall + at,
                "hosts": hosts,
            }
            self.decision.records.append(r.HostsRecalled(**fields))
            self.decision.notify(self.state.processes[process], Recall(**fields))

    def _note_waits(self, process: Process) -> None:
        waits = self.crawl.frontier.leases.all_wait(process.number)
        if waits != (process.waits_since is not None):
            since = self.now.run if waits else None
            self.decision.records.append(
                r.ProcessWaits(job=self.job.id, process=process.number, since=since)
            )

    def _tell_short(self, able: list[Process]) -> None:
        """Tell the processes whether another one waits for what their pages ask for.

        A process that is alone knows by itself.
        """
        crawl, job = self.crawl, self.job.id
        is_short = len(able) > 1 and crawl.frontier.capacity.is_short(
            was_short=bool(crawl.told_short)
        )
        for process in able:
            number = process.number
            if (number in crawl.told_short) != is_short:
                self.decision.records.append(
                    r.WorkShortSent(job=job, process=number, on=is_short)
                )
                message = WorkShort(job=job, process=number, on=is_short)
                self.decision.notify(process, message)

    def _isolate(self, processes: list[Process]) -> bool:
        """Choose the process that runs the suspects, and nothing else: not the one that
        consumes ``start()``."""
        frontier = self.crawl.frontier
        if not frontier.quarantine.wants_isolator:
            return False
        for process in processes:
            starts = process.number == self.crawl.leader and not self._is_started
            is_free = not starts and not frontier.leases.count_of(process.number)
            if is_free and self._may_take(process):
                self.decision.records.append(
                    r.ProcessIsolates(job=self.job.id, process=process.number)
                )
                return True
        return False

    @property
    def _is_started(self) -> bool:
        return self.job.progress.start_done

    def _let_write(self) -> None:
        """Tell the processes that write feeds that all is committed, once it is."""
        if not is_over(self.job, self.state.crawling):
            return
        course = self.job.progress
        for process in self.processes:
            number = process.number
            has_all = process.closed or process.items_end_sent
            if not self._may_write(process) or has_all:
                continue
            self.decision.records.append(
                r.ItemsEndSent(job=self.job.id, process=number)
            )
            end = ItemsEnd(
                job=self.job.id,
                process=number,
                items=course.items,
                items_bytes=course.items_bytes,
                tagged_bytes=course.tagged_bytes,
            )
            self.decision.notify(process, end)

    def _may_write(self, process: Process) -> bool:
        """Whether a process may write what is left of the feeds when the crawl is over:
        one that began before the job failed does not know of NAME.failed."""
        is_whole = not process.beside or came_to_end(self.job.progress.failure)
        return process.role == "export" and is_whole

    def writes_rest(self, process: Process) -> bool:
        """Whether this process, and no later one, writes what is left of the feeds."""
        return not process.beside or process.items_end_sent

    # ---- who leads --------------------------------------------------------------

    def _lead(self) -> None:
        crawl = self.crawl
        if crawl.leader is None:
            process = next(
                (
                    candidate
                    for candidate in self.crawling
                    if self._may_take(candidate)
                    and candidate.number != crawl.frontier.quarantine.isolator
                ),
                None,
            )
            if process is None:
                return
            self._give_lead(process)
        else:
            process = self.state.processes[crawl.leader]
            if not self._may_take(process):
                return
        self._let_start(process)
        self._let_finish(process)

    def _give_lead(self, process: Process) -> None:
        job = self.job.id
        course = self.job.progress
        if not course.start_done:
            digests = b"".join(self.crawl.skip.elements())
            step = SKIP_DIGESTS * DIGEST_BYTES
            for part, at in enumerate(range(0, max(len(digests), 1), step)):
                piece = digests[at : at + step]
                skip = Skip(job=job, process=process.number, part=part, digests=piece)
                self.decision.notify(process, skip)
        lead = Lead(
            job=job,
            process=process.number,
            start=not course.start_done,
            opened=not course.opened,
        )
        self.decision.records.append(r.LeadGiven(job=job, process=process.number))
        self.decision.notify(process, lead)

    def _let_start(self, process: Process) -> None:
        """Raise how far ``start()`` may go, as Scrapy's engine would take it.

        While the leader's engine holds back, which only its process knows: as far as
        ``START_AHEAD`` allows, raised in steps of half of that. Otherwise: as far as
        what it gives can be started at once. Where all that is pending waits for hosts
        of other processes, Scrapy's one engine, which has those requests in its slots,
        would hold back.
        """
        crawl = self.crawl
        frontier = crawl.frontier
        if self.job.progress.start_done:
            return
        is_new = crawl.leader != process.number
        last_may = (0, 0) if is_new else crawl.start_may
        upto, upto_free = last_may
        if frontier.pending_count < START_PENDING_MAX:
            upto = process.starts + START_AHEAD
        spare = frontier.capacity.spare_places()
        # Where all places are taken, one element may be committed ahead.
        free = process.starts + (spare or 1)
        # This bound rises in steps, too: of half of what the leader can have under way.
        assert process.opened is not None
        step = max(at_once(process.opened.window) // 2, 1)
        if spare >= 0 and free - upto_free >= step:
            upto_free = free
        elif (
            spare <= 0
            and upto - upto_free >= START_AHEAD // 2
            and frontier.capacity.waits_for_others(process.number)
        ):
            upto_free = upto
        if upto - last_may[0] < START_AHEAD // 2 and upto_free == last_may[1]:
            return
        job = self.job.id
        self.decision.records.append(
            r.StartMayGiven(job=job, upto=upto, upto_free=upto_free)
        )
        may = StartMay(job=job, process=process.number, upto=upto, upto_free=upto_free)
        self.decision.notify(process, may)

    def _let_finish(self, process: Process) -> None:
        crawl, course = self.crawl, self.job.progress
        number = course.finish + 1
        is_sent = crawl.leader == process.number and crawl.finish_sent == number
        if is_sent or not course.start_done or self._has_work():
            return
        self.decision.records.append(r.FinishSent(job=self.job.id, number=number))
        finish = Finish(job=self.job.id, process=process.number, number=number)
        self.decision.notify(process, finish)

    def _has_work(self) -> bool:
        frontier = self.crawl.frontier
        return bool(frontier.pending_count or frontier.leased_count)

    # ---- ends -------------------------------------------------------------------

    @property
    def _limits(self) -> CloseLimits:
        for process in self.processes:
            if process.opened is not None:
                return process.opened.limits
        return _NO_LIMITS

    def close_by_itself(self, process: Process, reason: str) -> None:
        """Decide about a process that closes its spider for a reason that may be the
        job's."""
        job = self.job
        if process.role == "export":
            return
        ours = process.stopping or not job.is_crawling
        if ours or reason in PROCESS_REASONS:
            return
        if reason in ("finished", "start_error"):
            # After a restart no process leads yet; only the former leader was told
            # to finish.
            is_leader = self.crawl.leader in (None, process.number)
            # Unless work came up since it was told to finish, this is the end.
            if is_leader and not self._has_work() and job.progress.start_done:
                failure = job.progress.start_failure
                self.decision.close_job(job, reason, failure, exclude=process.number)
            return
        self.decision.close_job(job, reason, exclude=process.number)

    def fail_by(self, process: Process, failure: Outcome) -> None:
        """Close the job for a failure of this process that belongs to the job, whatever
        the job closes for already."""
        job = self.job
        if job.is_final:
            return
        reason = failure.finish_reason
        if not reason or reason in PROCESS_REASONS:
            reason = failure.failure
        self.decision.close_job(job, reason, failure, exclude=process.number)

    # ---- what comes from outside ------------------------------------------------

    def take_back(self, process: Process, release: Release) -> None:
        """Take back leases of a process, which may be unable to read the requests."""
        frontier = self.crawl.frontier
        # A suspect goes out alone: an unreadable one is not tried in other processes.
        lost = [
            request
            for request in release.requests
            if release.unreadable and frontier.is_suspect(request)
        ]
        for request in lost:
            self._fail_request(request, release.unreadable)
        self.decision.records.append(
            r.Released(
                job=self.job.id,
                process=process.number,
                requests=tuple(
                    request for request in release.requests if request not in lost
                ),
                at=self.now.wall,
                unreadable=release.unreadable,
            )
        )

    def _fail_request(self, request: int, why: str) -> None:
        self.decision.records.append(
            r.RequestFailed(job=self.job.id, request=request, text=why)
        )

    def resync(self, process: Process) -> None:
        """Stop a process again that may have missed its stop while it was away."""
        reason = self.stop_reason(process)
        if reason and not process.closed:
            self.decision.stop(process, reason)

    def stop_reason(self, process: Process) -> str:
        """Return why the process may not go on, empty if it may."""
        job, course = self.job, self.job.progress
        if job.is_final or course.cancelling:
            return "cancelled"
        if job.paused:
            return JOB_PAUSES
        if course.closing and (course.feeds_done or not self._may_write(process)):
            return course.closing
        worker = self.state.workers.get(process.worker)
        if worker is not None and worker.draining:
            return WORKER_DRAINS
        # A master that has restarted knows only that the process was to stop.
        return SLOT_NEEDED if process.stopping else ""

    # ---- time -------------------------------------------------------------------

    def wait_s(self) -> float:
        """Return in how many seconds ``tick`` may have something to do."""
        if not self.job.is_crawling:
            return math.inf
        waits = [
            since + PROCESS_IDLE_S - self.now.run for _, since in self._idle_processes()
        ]
        waits += [
            until - self.now.run
            for until in (self._patient_until(), self._note_at())
            if until is not None
        ]
        if self.crawl.runs_since is not None:
            watch = self.job.progress.watch
            noted_at = watch.ran_s + TIME_NOTED_S
            look_at = min(watch.next_deadline(self._limits), noted_at)
            waits.append(look_at - self._ran_s(watch))
        return max(min(waits, default=math.inf), 0.0)

    def _idle_processes(self) -> list[tuple[Process, float]]:
        """Return the processes that hold a slot for nothing, and since when."""
        crawl = self.crawl
        return [
            (process, process.idle_since)
            for process in self.crawling
            if process.idle_since is not None
            and process.number != crawl.leader
            and not process.stopping
            and not crawl.frontier.leases.count_of(process.number)
        ]

    def _patient_until(self) -> float | None:
        """Return until when suspects that only wait are tried without others, which
        they may be waiting for."""
        isolator = self.crawl.frontier.quarantine.isolator
        process = self.state.processes.get(isolator or 0)
        if process is None or process.waits_since is None:
            return None
        return process.waits_since + self.decision.policy.suspect_patience_s

    def _note_at(self) -> float | None:
        """Return when to note that all open pages only wait, and nothing else is left;
        None if that is not so, or is noted already."""
        frontier = self.crawl.frontier
        is_all = self._is_started and not frontier.pending_count
        if not is_all or not frontier.leased_count or self.crawl.all_wait:
            return None
        since = [
            process.waits_since
            for process in self.crawling
            if frontier.leases.count_of(process.number)
        ]
        if None in since:
            return None
        return max(filter(None, since), default=0.0) + ALL_WAIT_S

    def _note_all_wait(self) -> None:
        job, pages = self.job.id, self.crawl.frontier.leased_count
        self.decision.records.append(r.AllWaitNoted(job=job))
        for process in self.crawling:
            if process.waits_since is not None:
                number = process.number
                note = AllWait(job=job, process=number, pages=pages)
                self.decision.notify(process, note)

    def tick(self) -> None:
        """Stop processes that idle too long; close the job if it ran too long."""
        if not self.job.is_crawling:
            return
        for process, since in self._idle_processes():
            if self.now.run >= since + PROCESS_IDLE_S:
                self.decision.stop(process, PROCESS_IDLES)
        patient = self._patient_until()
        if patient is not None and self.now.run >= patient:
            self.decision.records.append(r.CompaniesGiven(job=self.job.id))
        note_at = self._note_at()
        if note_at is not None and self.now.run >= note_at:
            self._note_all_wait()
        if self.crawl.runs_since is not None:
            self._look_at_time()

    def _look_at_time(self) -> None:
        """Close the job when its time is up, or note how much of it is used."""
        watch, items = self.job.progress.watch, self.crawl.counters.items
        ran_s = self._ran_s(watch)
        reason = watch.expired(self._limits, items, ran_s)
        if reason:
            self.decision.close_job(self.job, reason)
            return
        later = watch.at(self._limits, items, ran_s)
        is_due = ran_s >= watch.ran_s + TIME_NOTED_S
        if is_due or later.period_at != watch.period_at:
            self._note_time(self.now.run)

    def mind_time(self) -> None:
        """Let the job's time run while a process of it is open, and stand otherwise.

        The time is of the run clock: it counts no stop of the master, no jump of the
        wall clock, and nothing that processes do while there is no master.
        """
        limits, since = self._limits, self.crawl.runs_since
        is_limited = bool(limits.timeout_s or limits.timeout_no_item_s)
        runs = is_limited and self.job.is_crawling
        if runs and since is None:
            self._let_time_run(self.now.run)
        elif not runs and since is not None:
            self._note_time(None)

    def _note_time(self, since: float | None) -> None:
        course = self.job.progress
        ran_s = self._ran_s(course.watch)
        watch = course.watch.at(self._limits, self.crawl.counters.items, ran_s)
        self.decision.records.append(
            r.JobRan(
                job=self.job.id,
                ran_s=watch.ran_s,
                period_at=watch.period_at,
                period_items=watch.period_items,
            )
        )
        self._let_time_run(since)

    def _let_time_run(self, since: float | None) -> None:
        self.decision.records.append(r.TimeRuns(job=self.job.id, since=since))

    def _ran_s(self, watch: Watch) -> float:
        """Return how long the job has run by now."""
        since = self.crawl.runs_since
        return watch.ran_s + (0.0 if since is None else self.now.run - since)
