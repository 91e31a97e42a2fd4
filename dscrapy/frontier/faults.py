"""What is decided instead when ``decide`` has raised: a bug met in one command must not
end the others.

The state is as it was then. A client is told ``internal_error``. A worker offers what
is not answered again, on its next session and for ever, so the ``TIMES_MAX``-th time
the command is set aside: a page's request as if it were poisoned, a process as if it
had died, a registration without what it holds. The rest goes on.
"""

from dscrapy import messages as m
from dscrapy.endings import ENDINGS
from dscrapy.frontier import records as r
from dscrapy.frontier.clock import Now
from dscrapy.frontier.decision import Decision, OnClosed, OnTick
from dscrapy.frontier.jobs import Process
from dscrapy.frontier.machine import Machine
from dscrapy.frontier.verdict import Verdict
from dscrapy.model import Outcome

TIMES_MAX = 3
# Commands that are remembered; there is one for each bug that is met, and its like.
KEYS_MAX = 10_000
TEXT = "internal error of the master; its log has the traceback"

Command = m.ClientCall | m.FromWorker | OnClosed | OnTick
Key = tuple[str | int, ...]


class Faults:
    """Counts what has raised; ``instead`` decides what comes of it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._times: dict[Key, int] = {}

    def instead(self, session: int, command: Command, now: Now) -> Decision:
        """Return the decision for a command of which ``decide`` raised."""
        decision = Decision()
        if isinstance(command, m.ClientCall):
            decision.refuse(session, command.call, "internal_error", TEXT)
            return decision
        if isinstance(command, OnTick | OnClosed):
            return decision
        process = self._process_of(session, command)
        page = _page_of(command)
        times = self._count(_key_of(session, command, page))
        if page is not None and isinstance(command, m.Commits):
            self._give_back(session, command, page, times, decision, now)
        elif isinstance(command, m.Register) and times >= TIMES_MAX:
            return self._machine.register_empty(session, command, now)
        else:
            decision.closes.append(session)
            if process is not None and times >= TIMES_MAX:
                self._give_up(process, decision, now)
        return decision

    def instead_of_follow_up(self, job: str, now: Now) -> Decision:
        """Return the decision for a job of which following up raised."""
        decision = Decision()
        state = self._machine.state
        known = state.jobs.get(job)
        if known is None or known.is_final:
            return decision
        if self._count(("follow_up", job)) >= TIMES_MAX:
            decision.end_job(known, Verdict(ENDINGS["internal_error"], TEXT), now)
            decision.stop_all(state, known, "failed")
        return decision

    def _count(self, key: Key) -> int:
        times = self._times.pop(key, 0) + 1
        if times < TIMES_MAX:
            self._times[key] = times
        if len(self._times) > KEYS_MAX:
            del self._times[next(iter(self._times))]
        return times

    def _process_of(self, session: int, command: m.FromWorker) -> Process | None:
        state = self._machine.state
        process = state.processes.get(getattr(command, "process", 0))
        worker = state.sessions.get(session)
        is_its = process is not None and process.worker == worker
        return process if is_its else None

    def _give_back(
        self,
        session: int,
        command: m.Commits,
        page: m.Commit,
        times: int,
        decision: Decision,
        now: Now,
    ) -> None:
        """Let the page be done again, or set its request aside; its sender drops it."""
        job, number, request = command.job, command.process, page.request
        seen = m.Seen(request, page.unit, page.part, "settled")
        answer = m.CommitsSeen(job=job, process=number, seen=(seen,))
        decision.send(session, answer)
        crawl = self._machine.state.crawls.get(job)
        if crawl is None or not crawl.frontier.is_open(request):
            return
        if times >= TIMES_MAX:
            decision.records.append(
                r.RequestPoisoned(job=job, request=request, url="", text=TEXT)
            )
        else:
            decision.records.append(
                r.Released(job=job, process=number, requests=(request,), at=now.wall)
            )

    def _give_up(self, process: Process, decision: Decision, now: Now) -> None:
        """Let the process be lost, by its job's own doing; its worker kills it when it
        is back."""
        state = self._machine.state
        job = state.jobs[process.job]
        decision.records.append(
            r.ProcessEnded(
                job=process.job,
                process=process.number,
                how="lost",
                counted=True,
                text=TEXT,
                at=now.wall,
            )
        )
        deaths = job.begin().deaths + 1
        if not job.is_final and deaths >= self._machine.start_deaths_max:
            failure = Outcome(failure="died", text=TEXT)
            if process.role == "export":
                decision.fail_feeds(job, failure)
            else:
                decision.close_job(state, job, "died", failure, but=process.number)


def _page_of(command: Command) -> m.Commit | None:
    """Return the one page that a command commits whole; what is stored in parts goes
    with its process alone."""
    if not isinstance(command, m.Commits) or len(command.commits) != 1:
        return None
    (commit,) = command.commits
    is_whole = commit.request and commit.last and not commit.part
    return commit if is_whole else None


def _key_of(session: int, command: m.FromWorker, page: m.Commit | None) -> Key:
    """Return what tells a command from others, also on another session."""
    name = type(command).__name__
    if isinstance(command, m.Register):
        return name, command.name, command.instance
    if page is not None and isinstance(command, m.Commits):
        return name, command.job, page.request
    if isinstance(command, m.Commits):
        first = command.commits[0]
        return name, command.process, first.request, first.unit, first.part
    return name, getattr(command, "process", -session)
