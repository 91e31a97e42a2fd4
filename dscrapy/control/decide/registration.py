"""A worker comes, or comes back: what it keeps, what it drops, what is lost."""

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decide.reconcile import JobReconciler
from dscrapy.control.decision import Decision
from dscrapy.control.state.workers import Worker
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import NAME_PATTERN

# More slots than this on one machine is a slip of the finger.
SLOTS_MAX = 10_000
# A crawl process holds as many requests as its downloader works on, times a small
# factor; Scrapy's own default is 16.
WINDOW_MAX = 1_000_000


def is_sound(opened: m.Opened) -> bool:
    """Whether a project's settings may ask for that."""
    return 1 <= opened.window <= WINDOW_MAX


def register(
    decision: Decision, session: int, command: m.Register, *, is_empty: bool = False
) -> None:
    """Take in a worker with the processes that it still has.

    With ``is_empty`` the worker counts as having none and drops all of them. Raises
    ``RemoteProtocolError`` for a worker that may not register.
    """
    state, name = decision.state, command.name
    if not NAME_PATTERN.match(name) or not 1 <= command.slots <= SLOTS_MAX:
        raise RemoteProtocolError(
            "bad_worker", "a worker needs a plain name and 1 to 10,000 slots"
        )
    if session in state.sessions:
        raise RemoteProtocolError("bad_worker", "a session registers once")
    former = state.workers.get(name)
    former_instance = former and (former.instance or former.expected)
    if former is not None and former_instance and former_instance != command.instance:
        # Processes of the former instance may live, and start what they have leased,
        # until that instance is given up.
        _refuse_name(decision, session, former)
        return
    if former is not None and former.session is not None:
        decision.closes.append(former.session)
    decision.records.append(
        r.WorkerCame(session=session, register=command, now=decision.now.run)
    )
    decision.came[name] = session
    # The processes that the worker has, the sound ones, and those the master expects.
    reported = {entry.process for entry in command.held}
    usable = {
        entry.process: entry
        for entry in command.held
        if not is_empty and (entry.opened is None or is_sound(entry.opened))
    }
    expected = set(former.processes) if former is not None else set()
    decision.send(
        session,
        m.Registered(
            epoch=state.epoch,
            heartbeat_s=decision.policy.spans.heartbeat_s,
            die_after_s=decision.policy.spans.die_after_s,
            reconnect_grace_s=decision.policy.spans.reconnect_grace_s,
            drop=tuple(sorted(reported - (usable.keys() & expected))),
        ),
    )
    for number in sorted(expected - usable.keys()):
        why = f"worker {name} no longer has the process; the job goes on"
        decision.lose(state.processes[number], why, counted=False)
    for number, entry in usable.items():
        if number in expected:
            _welcome_back(decision, entry)


def _welcome_back(decision: Decision, report: m.HeldProcess) -> None:
    process = decision.state.processes[report.process]
    job = decision.state.jobs[process.job]
    if job.is_final or report.job != job.id:
        # The job has ended, so the process may end.
        done = m.Done(job=report.job, process=report.process, stats=None)
        decision.notify(process, done)
        return
    reconciler = JobReconciler.of(decision, report.job)
    if report.closing and not process.closed:
        reconciler.close_by_itself(process, report.closing)
    decision.records.append(r.ProcessKnown(held=report, at=decision.now.wall))
    if not report.closing:
        reconciler.resync(process)


def _refuse_name(decision: Decision, session: int, worker: Worker) -> None:
    heard_at = worker.heard_at if worker.instance else worker.since
    silence_s = decision.now.run - heard_at
    # A live worker is another one of the same name. A silent one may be the refused
    # worker before its restart: then the refused one may try again.
    is_live = worker.session is not None and silence_s <= decision.policy.spans.silent_s
    text = (
        f"a worker named {worker.name} is already here "
        f"({worker.host}:{worker.port}): choose another --name"
        if is_live
        else f"a worker named {worker.name} was here {silence_s:.0f} s ago and "
        "is not given up yet"
    )
    code = "name_taken" if is_live else "name_silent"
    decision.closes.append(session)
    decision.refuse(session, -1, code, text)
