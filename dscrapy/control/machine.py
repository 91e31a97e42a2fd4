"""Decide what a message means: records and answers, from the state as it stands.

``decide`` is pure: when it raises, nothing has happened. The caller applies the
records in order before it decides anything else, and lets the answers leave only
when the records are durable.

Which side a command is on shows in its module: clients' calls in ``calls``, what
workers say here.
"""

from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import assert_never

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.clock import Now
from dscrapy.control.decide import client_calls, retention
from dscrapy.control.decide.commits import decide_commits
from dscrapy.control.decide.damage import damaged, missing
from dscrapy.control.decide.placement import assign
from dscrapy.control.decide.process_exits import bar_unfit, decide_ended, goes_elsewhere
from dscrapy.control.decide.reconcile import Running
from dscrapy.control.decision import (
    Decision,
    OnClosed,
    OnDamage,
    OnMeasured,
    OnMissing,
    OnPrune,
    OnTick,
    OwnCommand,
    deciding_on,
)
from dscrapy.control.state.jobs import Job, Process, Schedule
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Spans, Worker
from dscrapy.errors import RemoteProtocolError
from dscrapy.keep import Keep
from dscrapy.model import NAME_PATTERN, WORKER_DRAINS, JobSpec, Outcome

# More slots than this on one machine is a slip of the finger.
SLOTS_MAX = 10_000
# What the keys of jobs are for: those of another purpose would be others.
KEY_PURPOSE = b"dscrapy pickles"
# A crawl process holds as many requests as its downloader works on, times a small
# factor; Scrapy's own default is 16.
WINDOW_MAX = 1_000_000


def _is_sound(opened: m.Opened) -> bool:
    """Whether a project's settings may ask for that."""
    return 1 <= opened.window <= WINDOW_MAX


@attrs.define(kw_only=True)
class Machine:
    """The master's decisions.

    ``secret`` is what the keys of jobs are made from; without one they have none.
    ``keep`` is what stays of ended jobs by itself, beside those of ``kept_names``.
    """

    state: State = attrs.field(factory=State)
    spans: Spans = attrs.field(factory=Spans)
    start_deaths_max: int = 3
    secret: bytes = attrs.field(default=b"", repr=False)
    keep: Keep = attrs.field(factory=Keep)
    kept_names: frozenset[str] = frozenset()

    def begin(self, now: Now) -> Decision:
        """Decide what a starting master says first, after the replay."""
        self.state.expect_workers(now.run)
        epoch = self.state.epoch + 1
        return Decision(records=[r.MasterStarted(epoch=epoch, at=now.wall)])

    def decide(
        self,
        session: int,
        command: m.ClientCall | m.FromWorker | OwnCommand,
        now: Now,
    ) -> Decision:
        """Return what ``command`` of this session leads to.

        Raises ``RemoteProtocolError`` when the session must end for it.
        """
        match command:
            case OnTick():
                return self._tick(command, now)
            case OnClosed():
                return self._closed(session, now)
            case OnMissing():
                return missing(self.state, command)
            case OnDamage():
                return damaged(self.state, command, now)
            case OnMeasured():
                return Decision(records=[r.LogsMeasured(sizes=command.sizes)])
            case OnPrune():
                return retention.prune_by_itself(
                    self.state, self.keep, self.kept_names, now
                )
            case m.Prune():
                return retention.prune(self.state, session, command, self.keep, now)
            case m.Register():
                return self._register(session, command, now)
            case (
                m.Heartbeat()
                | m.Draining()
                | m.Leaving()
                | m.Started()
                | m.Log()
                | m.Ended()
                | m.Opened()
                | m.Commits()
                | m.Release()
                | m.Closing()
                | m.Offer()
                | m.Feeds()
                | m.Read()
            ):
                return self._from_worker(session, command, now)
            case _:
                return client_calls.decide_call(self.state, session, command, now)

    def complete(self, decision: Decision) -> None:
        """After its records are applied: add what shows how things stand now.

        Those are leases that were taken, the answers of ``shows``, and of whoever
        waited for a job that ended.
        """
        for record in decision.records:
            if isinstance(record, r.JobEnded):
                waiting = self.state.waiters.pop(record.job, [])
                decision.shows += [(*entry, record.job) for entry in waiting]
        for process, granted in self.state.granted:
            worker = self.state.workers[process.worker]
            assert worker.session is not None
            decision.grants.append((worker.session, process, granted))
        self.state.granted.clear()
        for session, call, identity in decision.shows:
            shown = views.show(self.state, call, identity)
            assert shown is not None
            decision.send(session, shown)

    def heard(self, session: int, now: Now) -> None:
        """Take any frame of a worker as a sign of life."""
        name = self.state.sessions.get(session)
        if name is not None:
            self.state.workers[name].heard_at = now.run

    def holds(self, session: int, message: m.Log | m.Read) -> bool:
        """Whether the worker of this session holds the message's process."""
        worker = self.state.sessions.get(session, "")
        return self._process_of(message.process, message.job, worker) is not None

    def next_deadline_s(self, now: Now) -> float:
        """Return in how many seconds ``OnTick`` may have something to do.

        When it raises, ``OnTick`` finds out for whom.
        """
        waits = [
            self.spans.deadline(worker) - now.run
            for worker in self.state.workers.values()
        ]
        waits += [
            0.0 if schedule.is_due(now.wall) else schedule.next_at - now.wall
            for schedule in self._waiting_schedules()
        ]
        # There are no more jobs that crawl than slots.
        waits += [
            self._running(identity, now, Decision()).wait_s()
            for identity in self.state.by_job
        ]
        return max(min(waits, default=float("inf")), 0.0)

    # ---- time -----------------------------------------------------------------

    def _waiting_schedules(self) -> Iterator[Schedule]:
        """Yield the schedules whose next run waits for its time alone."""
        for schedule in self.state.schedules.values():
            latest = self.state.jobs.get(schedule.job or "")
            rests = schedule.cancelled or schedule.paused
            if not rests and (latest is None or latest.is_final):
                yield schedule

    def _tick(self, command: OnTick, now: Now) -> Decision:
        """Raises ``StepError`` for whom it raises at."""
        decision, but = Decision(), command.but
        for worker in self.state.workers.values():
            if ("worker", worker.name) not in but:
                with deciding_on("worker", worker.name):
                    if now.run >= self.spans.deadline(worker):
                        self._reap(worker, decision, now)
        for schedule in self._waiting_schedules():
            if ("schedule", schedule.id) not in but:
                with deciding_on("schedule", schedule.id):
                    if schedule.is_due(now.wall):
                        decision.records.append(_run_of(schedule, now))
        for identity in self.state.by_job:
            if ("job", identity) not in but:
                with deciding_on("job", identity):
                    self._running(identity, now, decision).tick()
        return decision

    def _running(self, job: str, now: Now, decision: Decision) -> Running:
        state = self.state
        return Running(state, state.jobs[job], state.crawls[job], now, decision)

    def _reap(self, worker: Worker, decision: Decision, now: Now) -> None:
        why = f"worker {worker.name} was lost; goes on"
        for number in sorted(worker.processes):
            decision.lose(self.state.processes[number], why, now, counted=False)
        decision.records.append(r.WorkerGone(name=worker.name))
        if worker.session is not None:
            decision.closes.append(worker.session)

    def _closed(self, session: int, now: Now) -> Decision:
        decision = Decision(records=[r.SessionGone(session=session)])
        name = self.state.sessions.get(session)
        if name is not None:
            decision.records.append(r.WorkerAway(name=name, now=now.run))
        return decision

    # ---- workers --------------------------------------------------------------

    def _register(
        self,
        session: int,
        command: m.Register,
        now: Now,
        *,
        is_empty: bool = False,
    ) -> Decision:
        name = command.name
        if not NAME_PATTERN.match(name) or not 1 <= command.slots <= SLOTS_MAX:
            raise RemoteProtocolError(
                "bad_worker", "a worker needs a plain name and 1 to 10,000 slots"
            )
        if session in self.state.sessions:
            raise RemoteProtocolError("bad_worker", "a session registers once")
        known = self.state.workers.get(name)
        its = known and (known.instance or known.expected)
        if known is not None and its and its != command.instance:
            # Its processes may live, and start what they hold, until it is given up.
            return self._refuse_name(session, known, now)
        decision = Decision()
        if known is not None and known.session is not None:
            decision.closes.append(known.session)
        decision.records.append(
            r.WorkerCame(session=session, register=command, now=now.run)
        )
        decision.came[name] = session
        said = {entry.process for entry in command.held}
        told = tuple(
            entry
            for entry in command.held
            if not is_empty and (entry.opened is None or _is_sound(entry.opened))
        )
        held = {entry.process for entry in told}
        mine = set(known.processes) if known is not None else set()
        decision.send(
            session,
            m.Registered(
                epoch=self.state.epoch,
                heartbeat_s=self.spans.heartbeat_s,
                die_after_s=self.spans.die_after_s,
                reconnect_grace_s=self.spans.reconnect_grace_s,
                drop=tuple(sorted(said - (held & mine))),
            ),
        )
        for number in sorted(mine - held):
            why = f"worker {name} no longer has it; goes on"
            decision.lose(self.state.processes[number], why, now, counted=False)
        for entry in told:
            if entry.process in mine:
                self._welcome_back(entry, decision, now)
        return decision

    def register_empty(self, session: int, command: m.Register, now: Now) -> Decision:
        """Register a worker as if it held nothing: it drops all that it holds."""
        return self._register(session, command, now, is_empty=True)

    def _welcome_back(self, held: m.Held, decision: Decision, now: Now) -> None:
        process = self.state.processes[held.process]
        job = self.state.jobs[process.job]
        if job.is_final or held.job != job.id:
            # Its job has ended; so will it.
            done = m.Done(job=held.job, process=held.process, stats=None)
            decision.tell(self.state, process, done)
            return
        running = self._running(held.job, now, decision)
        if held.closing and not process.closed:
            running.close_by_itself(process, held.closing)
        decision.records.append(r.ProcessKnown(held=held, at=now.wall))
        if not held.closing:
            running.resync(process)

    def _refuse_name(self, session: int, known: Worker, now: Now) -> Decision:
        silence_s = now.run - (known.heard_at if known.instance else known.since)
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
        command: m.FromWorker,
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
                self._drain(self.state.workers[name], decision)
            case m.Leaving():
                self._reap(self.state.workers[name], decision, now)
            case m.Started():
                self._started(command, name, decision)
            case m.Commits():
                self._commits(session, command, name, decision, now)
            case m.Ended():
                self._ended(session, command, name, decision, now)
            case m.Register() | m.Log() | m.Read():
                raise AssertionError(f"{type(command).__name__} is not decided here")
            case _:
                process = self._process_of(command.process, command.job, name)
                if process is not None and process.job in self.state.crawls:
                    self._from_process(session, command, process, decision, now)
        return decision

    def _drain(self, worker: Worker, decision: Decision) -> None:
        decision.records.append(r.WorkerDrains(name=worker.name))
        for number in sorted(worker.processes):
            process = self.state.processes[number]
            crawl = self.state.crawls.get(process.job)
            if crawl is not None and number not in crawl.stopping:
                decision.stop(self.state, process, WORKER_DRAINS)

    def _from_process(
        self,
        session: int,
        command: m.Opened | m.Release | m.Closing | m.Offer | m.Feeds,
        process: Process,
        decision: Decision,
        now: Now,
    ) -> None:
        job, number = process.job, process.number
        running = self._running(job, now, decision)
        match command:
            case m.Opened():
                if not _is_sound(command):
                    raise RemoteProtocolError(
                        "bad_opened", f"a window is of 1 to {WINDOW_MAX:,} leases"
                    )
                self._note_opened(running.job, command, decision, now)
                decision.records.append(r.ProcessOpened(opened=command))
                reason = running.stop_reason(process)
                if reason:
                    # It was decided before there was anybody to hear it.
                    decision.stop(self.state, process, reason)
            case m.Release():
                running.take_back(process, command)
            case m.Closing():
                running.close_by_itself(process, command.reason)
                decision.records.append(r.ProcessCloses(job=job, process=number))
            case m.Offer():
                if len(command.fingerprints) % m.FINGERPRINT_BYTES:
                    raise RemoteProtocolError("bad_offer", "a fingerprint is cut short")
                seen = running.crawl.frontier.seen_of(command.fingerprints)
                decision.send(
                    session,
                    m.Offered(
                        job=job, process=number, number=command.number, seen=seen
                    ),
                )
            case m.Feeds():
                known = running.job.begin().feeds or {}
                asked = command.lengths
                new = {name: asked[name] for name in asked if name not in known}
                if new:
                    decision.records.append(r.FeedsBegun(job=job, lengths=new))
                lengths = {name: known.get(name, asked[name]) for name in asked}
                decision.send(
                    session,
                    m.FeedsSeen(
                        job=job,
                        process=number,
                        lengths=lengths or known,
                        batches=running.job.begin().batches,
                    ),
                )
            case _:
                assert_never(command)

    def _note_opened(
        self, job: Job, command: m.Opened, decision: Decision, now: Now
    ) -> None:
        course = job.begin()
        opened = r.CrawlOpened(
            job=job.id,
            at=now.wall if course.opened_at is None else course.opened_at,
            has_feeds=command.has_feeds,
            has_once=command.has_once,
            own_lines=command.own_lines,
        )
        known = r.CrawlOpened(
            job=job.id,
            at=opened.at,
            has_feeds=course.has_feeds,
            has_once=course.has_once,
            own_lines=course.own_lines,
        )
        if course.opened_at is None or opened != known:
            decision.records.append(opened)

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

    # ---- commits --------------------------------------------------------------

    def _commits(
        self,
        session: int,
        command: m.Commits,
        worker: str,
        decision: Decision,
        now: Now,
    ) -> None:
        answer = decide_commits(self.state, worker, command, decision)
        decision.send(session, answer)
        process = self.state.processes.get(command.process)
        if process is None:
            return
        for commit, seen in zip(command.commits, answer.seen, strict=True):
            if commit.end is not None and seen.result == "published":
                self._closes(process, commit, commit.end, decision, now)

    def _closes(
        self,
        process: Process,
        commit: m.Commit,
        end: Outcome,
        decision: Decision,
        now: Now,
    ) -> None:
        """A process has done with its crawl: look what that means for its job."""
        if commit.kind not in ("ending", "closed"):
            return
        running = self._running(process.job, now, decision)
        if process.role == "export":
            if end.failure and running.writes_rest(process):
                decision.fail_feeds(running.job, end)
        elif not end.failure or end.failure == end.finish_reason == "start_error":
            # What start() raised stands in the unit that said it is over.
            running.close_by_itself(process, end.finish_reason)
        elif process.number not in running.crawl.opened and goes_elsewhere(
            self.state, process, end, self.start_deaths_max
        ):
            # It is this worker that cannot run it.
            bar_unfit(self.state, process, end.text, decision)
        else:
            running.fail_by(process, end)

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
        decide_ended(self.state, process, command, self.start_deaths_max, now, decision)

    # ---- assignment -------------------------------------------------------------

    def next_touched(self) -> str | None:
        """Return a job of which something has changed, None when there is none."""
        while self.state.touched:
            identity, _ = self.state.touched.popitem()
            if identity in self.state.crawls or identity in self.state.removing:
                return identity
        return None

    def follow_up(self, job: str, now: Now) -> Decision:
        """Decide what comes of what has changed of a job.

        To be asked, and applied, until nothing is touched; then ``assign``.
        """
        if job in self.state.removing and self.state.jobs[job].is_over:
            return retention.remove_at_last(self.state, job)
        decision = Decision()
        if job not in self.state.crawls:
            return decision
        running = self._running(job, now, decision)
        running.follow_up()
        running.mind_time()
        return decision

    def assign(self, now: Now, but: Collection[str] = ()) -> Decision | None:
        """Decide the next assignment, or None when there is none to make.

        Apply the decision, then ask for what is touched again. ``but`` are jobs that
        are left out. Raises ``StepError`` for the job at which it raises.
        """
        decision = assign(self.state, now, but)
        if decision is not None and self.secret:
            decision.sends = [(to, self._keyed(one)) for to, one in decision.sends]
        return decision

    def _keyed(self, message: m.Message) -> m.Message:
        """Add the key of its job to a start: the same in every life of the state."""
        # Feeds are written from items, which hold no pickles.
        if not isinstance(message, m.Start) or message.role != "crawl":
            return message
        job = message.job.encode()
        key = blake2b(job, key=self.secret, person=KEY_PURPOSE).digest()
        return msgspec.structs.replace(message, key=key)


def _run_of(schedule: Schedule, now: Now) -> r.JobAdded:
    return r.JobAdded(
        id=f"{schedule.id}-{schedule.runs + 1}",
        spec=msgspec.json.decode(schedule.spec, type=JobSpec),
        at=now.wall,
        schedule=schedule.id,
        next_at=schedule.next_after(now.wall),
    )
