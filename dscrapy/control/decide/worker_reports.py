"""Decides messages of workers, about themselves and their processes."""

from typing import assert_never

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decide.commits import decide_commits
from dscrapy.control.decide.deadlines import reap
from dscrapy.control.decide.process_exits import (
    bar_unfit,
    decide_ended,
    goes_elsewhere,
)
from dscrapy.control.decide.reconcile import JobReconciler
from dscrapy.control.decide.registration import WINDOW_MAX, is_sound, register
from dscrapy.control.decision import Decision
from dscrapy.control.state.jobs import Job
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Worker
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import WORKER_DRAINS, Outcome


def process_of(state: State, number: int, job: str, worker: str) -> Process | None:
    """Return the process if it is that job's, on that worker."""
    process = state.processes.get(number)
    if process is None or process.job != job or process.worker != worker:
        return None
    return process


def decide_worker(decision: Decision, session: int, command: m.FromWorker) -> None:
    """Decide what a worker's message leads to.

    Raises ``RemoteProtocolError`` for a message that it may not send.
    """
    if isinstance(command, m.Register):
        register(decision, session, command)
        return
    state = decision.state
    name = state.sessions.get(session)
    if name is None:
        # The session was reaped or replaced while the message was under way.
        decision.closes.append(session)
        return
    match command:
        case m.Commits():
            _commits(decision, session, name, command)
        case m.Heartbeat():
            decision.send(session, m.HeartbeatSeen(number=command.number))
        case m.Draining():
            _drain(decision, state.workers[name])
        case m.Leaving():
            reap(decision, state.workers[name])
        case m.Started():
            _started(decision, name, command)
        case m.Ended():
            _ended(decision, session, name, command)
        case m.Log() | m.Read():
            raise AssertionError(f"{type(command).__name__} is not decided here")
        case _:
            process = process_of(state, command.process, command.job, name)
            if process is not None and process.job in state.crawls:
                _from_process(decision, session, process, command)


def _drain(decision: Decision, worker: Worker) -> None:
    state = decision.state
    decision.records.append(r.WorkerDrains(name=worker.name))
    for number in sorted(worker.processes):
        process = state.processes[number]
        if process.job in state.crawls and not process.stopping:
            decision.stop(process, WORKER_DRAINS)


def _started(decision: Decision, worker: str, command: m.Started) -> None:
    state = decision.state
    process = process_of(state, command.process, command.job, worker)
    if process is not None and not state.jobs[process.job].progress.digest:
        fact = r.CodeSeen(job=process.job, digest=command.digest)
        decision.records.append(fact)


def _ended(decision: Decision, session: int, worker: str, command: m.Ended) -> None:
    decision.send(session, m.EndedSeen(process=command.process))
    process = process_of(decision.state, command.process, command.job, worker)
    if process is not None:
        decide_ended(decision, process, command)


# ---- messages of processes, but for commits ------------------------------------


def _from_process(
    decision: Decision,
    session: int,
    process: Process,
    command: m.Opened
    | m.Progress
    | m.Release
    | m.Yielded
    | m.Closing
    | m.Offer
    | m.Feeds,
) -> None:
    job, number = process.job, process.number
    reconciler = JobReconciler.of(decision, job)
    match command:
        case m.Opened():
            _opened(decision, process, command)
        case m.Progress():
            _proceed(decision, command)
        case m.Release():
            reconciler.take_back(process, command)
        case m.Yielded():
            decision.records.append(
                r.SharesYielded(
                    job=job,
                    process=number,
                    number=command.number,
                    hosts=command.hosts,
                )
            )
        case m.Closing():
            reconciler.close_by_itself(process, command.reason)
            decision.records.append(r.ProcessCloses(job=job, process=number))
        case m.Offer():
            if len(command.fingerprints) % m.FINGERPRINT_BYTES:
                raise RemoteProtocolError("bad_offer", "a fingerprint is cut short")
            seen = reconciler.crawl.frontier.seen_of(command.fingerprints)
            answer = m.Offered(
                job=job, process=number, number=command.number, seen=seen
            )
            decision.send(session, answer)
        case m.Feeds():
            _feeds(decision, session, reconciler.job, command)
        case _:
            assert_never(command)


def _proceed(decision: Decision, command: m.Progress | m.Commits) -> None:
    if command.started or command.downloaded or command.received:
        decision.records.append(
            r.ProcessProceeds(
                job=command.job,
                process=command.process,
                started=command.started,
                downloaded=command.downloaded,
                received=command.received,
                at=decision.now.wall,
            )
        )


def _opened(decision: Decision, process: Process, command: m.Opened) -> None:
    if not is_sound(command):
        raise RemoteProtocolError(
            "bad_opened", f"a window is of 1 to {WINDOW_MAX:,} leases"
        )
    reconciler = JobReconciler.of(decision, process.job)
    _note_opened(decision, reconciler.job, command)
    decision.records.append(r.ProcessOpened(opened=command))
    reason = reconciler.stop_reason(process)
    if reason:
        # The stop was decided before the process could receive it.
        decision.stop(process, reason)


def _note_opened(decision: Decision, job: Job, command: m.Opened) -> None:
    course = job.progress
    opened = r.CrawlOpened(
        job=job.id,
        at=decision.now.wall if course.opened_at is None else course.opened_at,
        has_feeds=command.has_feeds,
        has_once=command.has_once,
        own_lines=command.own_lines,
    )
    journalled = r.CrawlOpened(
        job=job.id,
        at=opened.at,
        has_feeds=course.has_feeds,
        has_once=course.has_once,
        own_lines=course.own_lines,
    )
    if course.opened_at is None or opened != journalled:
        decision.records.append(opened)


def _feeds(decision: Decision, session: int, job: Job, command: m.Feeds) -> None:
    """Answer how long the feeds' files were before the job wrote to them."""
    earlier = job.progress.feeds or {}
    asked = command.lengths
    new = {name: asked[name] for name in asked if name not in earlier}
    if new:
        decision.records.append(r.FeedsBegun(job=job.id, lengths=new))
    lengths = {name: earlier.get(name, asked[name]) for name in asked}
    decision.send(
        session,
        m.FeedsSeen(
            job=job.id,
            process=command.process,
            lengths=lengths or earlier,
            batches=job.progress.batches,
        ),
    )


# ---- commits ------------------------------------------------------------------


def _commits(decision: Decision, session: int, worker: str, command: m.Commits) -> None:
    answer = decide_commits(decision, worker, command)
    decision.send(session, answer)
    process = decision.state.processes.get(command.process)
    if process is None:
        return
    if command.job in decision.state.crawls:
        _proceed(decision, command)
    for commit, seen in zip(command.commits, answer.seen, strict=True):
        if commit.end is not None and seen.result == "published":
            _closes(decision, process, commit, commit.end)


def _closes(
    decision: Decision, process: Process, commit: m.Commit, end: Outcome
) -> None:
    """Decide what the end of a process's crawl means for its job."""
    if commit.kind not in ("ending", "closed"):
        return
    reconciler = JobReconciler.of(decision, process.job)
    if process.role == "export":
        if end.failure and reconciler.writes_rest(process):
            decision.fail_feeds(reconciler.job, end)
    elif not end.failure or end.failure == end.finish_reason == "start_error":
        # The unit ``started`` already says what start() raised.
        reconciler.close_by_itself(process, end.finish_reason)
    elif process.opened is None and goes_elsewhere(decision, process, end):
        # Another worker may run the job: only this one cannot.
        bar_unfit(decision, process, end.text)
    else:
        reconciler.fail_by(process, end)
