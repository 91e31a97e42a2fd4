"""Decide what a message means: records and answers, from the state as it stands.

``decide`` is pure: when it raises, nothing has happened. The caller applies the
records in order before it decides anything else, and lets the answers leave only
when the records are durable.

Which side a command is on shows in its module: clients' calls in ``calls``, what
workers say here.
"""

import heapq
import zlib
from collections.abc import Iterator
from typing import Literal, assert_never

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.frontier import calls, views
from dscrapy.frontier import records as r
from dscrapy.frontier.clock import Now
from dscrapy.frontier.decision import (
    Decision,
    OnClosed,
    OnTick,
    hold_message,
    stop_message,
)
from dscrapy.frontier.jobs import Job, Process, Schedule
from dscrapy.frontier.state import State
from dscrapy.frontier.workers import Spans, Worker
from dscrapy.model import FAILURES, NAME_PATTERN, JobSpec, Outcome

Result = Literal["stored", "published", "settled"]

# More slots than this on one machine is a slip of the finger.
SLOTS_MAX = 10_000


@attrs.define(kw_only=True)
class Machine:
    """The master's decisions."""

    state: State = attrs.field(factory=State)
    spans: Spans = attrs.field(factory=Spans)
    start_deaths_max: int = 3

    def begin(self, now: Now) -> Decision:
        """Decide what a starting master says first, after the replay."""
        self.state.expect_workers(now.run)
        epoch = self.state.epoch + 1
        return Decision(records=[r.MasterStarted(epoch=epoch, at=now.wall)])

    def decide(
        self,
        session: int,
        command: m.ClientCall | m.FromWorker | OnClosed | OnTick,
        now: Now,
    ) -> Decision:
        """Return what ``command`` of this session leads to.

        Raises ``RemoteProtocolError`` when the session must end for it.
        """
        match command:
            case OnTick():
                return self._tick(now)
            case OnClosed():
                return self._closed(session, now)
            case m.Register():
                return self._register(session, command, now)
            case (
                m.Heartbeat()
                | m.Draining()
                | m.Leaving()
                | m.Started()
                | m.Progress()
                | m.Log()
                | m.Commit()
                | m.Ended()
            ):
                return self._from_worker(session, command, now)
            case _:
                return calls.decide_call(self.state, session, command, now)

    def complete(self, decision: Decision) -> None:
        """After its records are applied: add the answers that show how things stand.

        Those are the ones of ``shows``, and of whoever waited for a job that ended.
        """
        for record in decision.records:
            if isinstance(record, r.JobEnded):
                waiting = self.state.waiters.pop(record.job, [])
                decision.shows += [(*entry, record.job) for entry in waiting]
        for session, call, identity in decision.shows:
            shown = views.show(self.state, call, identity)
            assert shown is not None
            decision.send(session, shown)

    def heard(self, session: int, now: Now) -> None:
        """Take any frame of a worker as a sign of life."""
        name = self.state.sessions.get(session)
        if name is not None:
            self.state.workers[name].heard_at = now.run

    def holds(self, session: int, message: m.Log) -> bool:
        """Whether the worker of this session holds the message's process."""
        worker = self.state.sessions.get(session, "")
        return self._process_of(message.process, message.job, worker) is not None

    def next_deadline_s(self, now: Now) -> float:
        """Return in how many seconds ``OnTick`` may have something to do."""
        waits = [
            self.spans.deadline(worker) - now.run
            for worker in self.state.workers.values()
        ]
        waits += [
            0.0 if schedule.is_due(now.wall) else schedule.next_at - now.wall
            for schedule in self._waiting_schedules()
        ]
        return max(min(waits, default=float("inf")), 0.0)

    # ---- time -----------------------------------------------------------------

    def _waiting_schedules(self) -> Iterator[Schedule]:
        """Yield the schedules whose next run waits for its time alone."""
        for schedule in self.state.schedules.values():
            latest = self.state.jobs.get(schedule.job or "")
            if not schedule.cancelled and (latest is None or latest.is_final):
                yield schedule

    def _tick(self, now: Now) -> Decision:
        decision = Decision()
        for worker in self.state.workers.values():
            if now.run >= self.spans.deadline(worker):
                self._reap(worker, decision, now)
        for schedule in self._waiting_schedules():
            if schedule.is_due(now.wall):
                decision.records.append(
                    r.JobAdded(
                        id=f"{schedule.id}-{schedule.runs + 1}",
                        spec=msgspec.json.decode(schedule.spec, type=JobSpec),
                        at=now.wall,
                        schedule=schedule.id,
                        next_at=schedule.next_after(now.wall),
                    )
                )
        return decision

    def _reap(self, worker: Worker, decision: Decision, now: Now) -> None:
        why = f"worker {worker.name} was lost; runs again"
        for number in sorted(worker.processes):
            self._lose(self.state.processes[number], why, decision, now)
        decision.records.append(r.WorkerGone(name=worker.name))
        if worker.session is not None:
            decision.closes.append(worker.session)

    def _lose(self, process: Process, why: str, decision: Decision, now: Now) -> None:
        """The process is beyond reach; that costs the job nothing."""
        decision.records.append(
            r.ProcessEnded(
                job=process.job,
                process=process.number,
                how="lost",
                counted=False,
                text=why,
                at=now.wall,
            )
        )
        job = self.state.jobs[process.job]
        if job.status == "running" and job.begin().cancelling:
            decision.end_job(job, "cancelled", "cancelled", now)

    def _closed(self, session: int, now: Now) -> Decision:
        decision = Decision(records=[r.SessionGone(session=session)])
        name = self.state.sessions.get(session)
        if name is not None:
            decision.records.append(r.WorkerAway(name=name, now=now.run))
        return decision

    # ---- workers --------------------------------------------------------------

    def _register(self, session: int, command: m.Register, now: Now) -> Decision:
        name = command.name
        if not NAME_PATTERN.match(name) or not 1 <= command.slots <= SLOTS_MAX:
            raise RemoteProtocolError(
                "bad_worker", "a worker needs a plain name and 1 to 10,000 slots"
            )
        if session in self.state.sessions:
            raise RemoteProtocolError("bad_worker", "a session registers once")
        known = self.state.workers.get(name)
        if known is not None and known.instance not in ("", command.instance):
            return self._refuse_name(session, known, now)
        decision = Decision()
        if known is not None and known.session is not None:
            decision.closes.append(known.session)
        decision.records.append(
            r.WorkerCame(session=session, register=command, now=now.run)
        )
        held = {entry.process for entry in command.held}
        mine = set(known.processes) if known is not None else set()
        decision.send(
            session,
            m.Registered(
                epoch=self.state.epoch,
                heartbeat_s=self.spans.heartbeat_s,
                die_after_s=self.spans.die_after_s,
                reconnect_grace_s=self.spans.reconnect_grace_s,
                drop=tuple(sorted(held - mine)),
            ),
        )
        for number in sorted(mine - held):
            why = f"worker {name} no longer has it; runs again"
            self._lose(self.state.processes[number], why, decision, now)
        for number in sorted(mine & held):
            process = self.state.processes[number]
            job = self.state.jobs[process.job]
            if job.begin().cancelling:
                decision.send(session, stop_message(process, "cancelled"))
            elif job.is_final or job.begin().request != process.request:
                decision.send(session, stop_message(process, "settled"))
            else:
                # It may have missed a pause or a resume.
                decision.send(session, hold_message(process, on=job.paused))
        return decision

    def _refuse_name(self, session: int, known: Worker, now: Now) -> Decision:
        silence_s = now.run - known.heard_at
        # A worker that is heard is a second one of that name; one that is silent may
        # be this very worker before its restart: the refused one may try again.
        is_live = known.session is not None and silence_s <= self.spans.silent_s
        text = (
            f"a worker named {known.name} is already here "
            f"({known.host}:{known.port}): choose another --name"
            if is_live
            else f"a worker named {known.name} was here {silence_s:.0f} s ago and "
            "is not given up yet"
        )
        code = "name_taken" if is_live else "name_silent"
        decision = Decision(closes=[session])
        decision.send(session, m.Refused(call=-1, code=code, text=text))
        return decision

    def _from_worker(
        self,
        session: int,
        command: m.Heartbeat
        | m.Draining
        | m.Leaving
        | m.Started
        | m.Progress
        | m.Log
        | m.Commit
        | m.Ended,
        now: Now,
    ) -> Decision:
        name = self.state.sessions.get(session)
        if name is None:
            # The session was reaped or replaced while this was under way.
            return Decision(closes=[session])
        decision = Decision()
        match command:
            case m.Heartbeat():
                decision.send(session, m.HeartbeatSeen(number=command.number))
            case m.Draining():
                decision.records.append(r.WorkerDrains(name=name))
            case m.Leaving():
                self._reap(self.state.workers[name], decision, now)
            case m.Started():
                self._started(command, name, decision)
            case m.Progress():
                self._progress(command, name, decision)
            case m.Log():
                pass
            case m.Commit():
                self._commit(session, command, name, decision, now)
            case m.Ended():
                self._ended(session, command, name, decision, now)
            case _:
                assert_never(command)
        return decision

    def _process_of(self, number: int, job: str, worker: str) -> Process | None:
        process = self.state.processes.get(number)
        if process is None or process.job != job or process.worker != worker:
            return None
        return process

    def _started(self, command: m.Started, worker: str, decision: Decision) -> None:
        process = self._process_of(command.process, command.job, worker)
        if process is None:
            return
        if not self.state.jobs[process.job].begin().digest:
            fact = r.CodeSeen(job=process.job, digest=command.digest)
            decision.records.append(fact)

    def _progress(self, command: m.Progress, worker: str, decision: Decision) -> None:
        process = self._process_of(command.process, command.job, worker)
        if process is None or self.state.jobs[process.job].is_final:
            return
        decision.records.append(
            r.ProgressSeen(
                job=process.job,
                pages=command.pages,
                items=command.items,
                errors=command.errors,
            )
        )

    # ---- commits --------------------------------------------------------------

    def _commit(
        self,
        session: int,
        command: m.Commit,
        worker: str,
        decision: Decision,
        now: Now,
    ) -> None:
        result = self._decide_commit(command, worker, decision, now)
        decision.send(
            session,
            m.CommitSeen(
                job=command.job,
                process=command.process,
                request=command.request,
                part=command.part,
                result=result,
            ),
        )

    def _decide_commit(
        self, command: m.Commit, worker: str, decision: Decision, now: Now
    ) -> Result:
        """The first commit of a request that is not done wins, whoever sends it."""
        job = self.state.jobs.get(command.job)
        if command.tagged and len(command.tagged) != len(command.items):
            raise RemoteProtocolError("bad_commit", "tagged and items differ in length")
        if command.last and command.outcome is None:
            raise RemoteProtocolError("bad_commit", "the last part has no outcome")
        if job is None or job.course is None:
            return "settled"
        process = self.state.processes.get(command.process)
        if process is not None and (process.job, process.worker) != (job.id, worker):
            raise RemoteProtocolError("bad_commit", "a process of another's")
        if command.request != job.course.request:
            # It was given up, or is run again.
            return "settled"
        parts = 0 if process is None else process.parts
        if process is not None and command.part < parts:
            # The answer was lost on the way; what it said still holds.
            is_published = command.last and job.course.done
            return "published" if is_published else "stored"
        is_open = job.status in ("running", "ready") and not job.course.done
        if not is_open:
            return "settled"
        if command.part != parts or (process is None and not command.last):
            # Earlier parts went with a process that was given up.
            return "settled"
        if not command.last:
            decision.records.append(
                r.PartStored(
                    job=job.id,
                    process=command.process,
                    part=command.part,
                    items=command.items,
                    tagged=command.tagged,
                )
            )
            return "stored"
        assert command.outcome is not None
        return self._settle(job, command, command.outcome, decision, now)

    def _settle(
        self,
        job: Job,
        command: m.Commit,
        outcome: Outcome,
        decision: Decision,
        now: Now,
    ) -> Result:
        course = job.begin()
        if self._runs_again(job, outcome):
            self._again(job, outcome.text, decision, now)
            return "settled"
        decision.records.append(
            r.Published(
                job=job.id,
                process=command.process,
                request=command.request,
                items=command.items,
                tagged=command.tagged,
                stats=command.stats,
            )
        )
        if course.process is not None and course.process != command.process:
            other = self.state.processes[course.process]
            decision.tell(self.state, other, stop_message(other, "settled"))
        if course.cancelling:
            decision.end_job(job, "cancelled", "cancelled", now)
        elif outcome.failure:
            decision.end_job(job, "failed", outcome.text, now, outcome.traceback)
        else:
            decision.end_job(job, "succeeded", outcome.finish_reason, now)
        return "published"

    def _runs_again(self, job: Job, outcome: Outcome) -> bool:
        helps = FAILURES.get(outcome.failure, False)
        return helps and job.retries_left > 0 and not job.begin().cancelling

    def _again(self, job: Job, reason: str, decision: Decision, now: Now) -> None:
        decision.records.append(
            r.JobAgain(
                job=job.id,
                fresh=False,
                automatic=True,
                reason=f"retry after: {reason}",
                at=now.wall,
            )
        )

    # ---- ends of processes ------------------------------------------------------

    def _ended(
        self,
        session: int,
        command: m.Ended,
        worker: str,
        decision: Decision,
        now: Now,
    ) -> None:
        decision.send(session, m.EndedSeen(process=command.process))
        process = self._process_of(command.process, command.job, worker)
        if process is None:
            return
        job = self.state.jobs[process.job]
        course = job.begin()
        runs = job.status == "running" and course.request == process.request
        counted = runs and command.counted and command.how == "exited"
        where = f"on worker {worker}"
        again = "; runs again" if command.how == "exited" else ""
        decision.records.append(
            r.ProcessEnded(
                job=job.id,
                process=process.number,
                how=command.how,
                counted=counted,
                text=f"{command.text} {where}{again}",
                at=now.wall,
            )
        )
        if command.how == "refused" and not self.state.workers[worker].draining:
            decision.records.append(r.WorkerDiffers(name=worker, job=job.id))
        if command.how == "other_code":
            decision.records.append(r.WorkerDiffers(name=worker, job=job.id))
        if not runs:
            return
        if course.cancelling:
            decision.end_job(job, "cancelled", "cancelled", now)
        elif command.how == "failed" and command.outcome is not None:
            self._fail(job, command.outcome, decision, now)
        elif counted and course.deaths + 1 >= self.start_deaths_max:
            text = (
                f"crawl process died {course.deaths + 1} times, last: "
                f"{command.text} {where}"
            )
            self._fail(job, Outcome(failure="died", text=text), decision, now)

    def _fail(self, job: Job, outcome: Outcome, decision: Decision, now: Now) -> None:
        if self._runs_again(job, outcome):
            self._again(job, outcome.text, decision, now)
        else:
            decision.end_job(job, "failed", outcome.text, now, outcome.traceback)

    # ---- assignment -------------------------------------------------------------

    def assign(self, now: Now) -> Decision | None:
        """Decide the next assignment, or None when there is none to make.

        Higher priority first, then first come, to the worker with most free slots.
        Apply the decision, then ask again.
        """
        set_aside = []
        decision = None
        while self.state.ready and decision is None:
            if not any(self._free_workers()):
                break
            entry = self.state.ready[0]
            heapq.heappop(self.state.ready)
            job = self.state.jobs[entry[2]]
            if not job.is_assignable:
                continue
            worker = max(
                (one for one in self._free_workers() if job.id not in one.differs),
                key=lambda one: one.free,
                default=None,
            )
            if worker is None:
                set_aside.append(entry)
            else:
                decision = self._grant(job, worker, now)
        for entry in set_aside:
            heapq.heappush(self.state.ready, entry)
        return decision

    def _free_workers(self) -> Iterator[Worker]:
        return (one for one in self.state.workers.values() if one.free)

    def _grant(self, job: Job, worker: Worker, now: Now) -> Decision:
        number = self.state.next_process
        assert worker.session is not None
        decision = Decision(
            records=[
                r.ProcessStarted(
                    job=job.id, process=number, worker=worker.name, at=now.wall
                )
            ]
        )
        course = job.course
        start = m.Start(
            job=job.id,
            process=number,
            request=m.RUN_REQUEST if course is None else course.request,
            spec=msgspec.json.decode(job.spec, type=JobSpec),
            digest="" if course is None else course.digest,
            hash_seed=zlib.crc32(job.id.encode()),
        )
        decision.send(worker.session, start)
        return decision
