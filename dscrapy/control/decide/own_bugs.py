"""What is decided instead when the core has raised: a bug met in one command, or at one
job, must not end the others.

The state is as it was then. A client is told ``internal_error``. A worker offers what
is not answered again, on its next session and for ever, so the ``TIMES_MAX``-th time
the command is set aside: a page's request as if it were poisoned, a process as if it
had died, a registration without what it holds. A job that cannot be assigned or looked
at is left out, and the ``TIMES_MAX``-th time it fails. The rest goes on.
"""

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decide.conclusion import Conclusion
from dscrapy.control.decision import Culprit, Decision, OwnCommand
from dscrapy.control.machine import Machine
from dscrapy.control.state.jobs import Process
from dscrapy.control.state.verdict import Verdict
from dscrapy.endings import ENDINGS
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import Outcome

TIMES_MAX = 3
# Commands that are remembered; there is one for each bug that is met, and its like.
KEYS_MAX = 10_000
TEXT = "internal error of the master; its log has the traceback"

Command = m.ClientCall | m.FromWorker | OwnCommand
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
        if isinstance(command, OwnCommand):
            return decision
        process = self._process_of(session, command)
        page = _page_of(command)
        times = self._count(_key_of(session, command, page))
        if page is not None and isinstance(command, m.Commits):
            self._give_back(session, command, page, times, decision, now)
        elif isinstance(command, m.Register) and times >= TIMES_MAX:
            return self._machine.register_empty(session, command, now)
        else:
            worker = self._machine.state.sessions.get(session)
            _end_session(session, worker, decision, now)
            if process is not None and times >= TIMES_MAX:
                self._give_up(process, TEXT, decision, now)
        return decision

    def instead_of_refused(
        self, session: int, command: Command, error: RemoteProtocolError, now: Now
    ) -> Decision:
        """Return the decision for what may not be said: its session ends.

        Offered again it would end the next one, so the process that said it is given
        up at once, and nothing else of its worker's.
        """
        decision = Decision()
        decision.refuse(session, -1, error.code, error.detail)
        worker = self._machine.state.sessions.get(session)
        _end_session(session, worker, decision, now)
        if not isinstance(command, m.FromWorker):
            return decision
        process = self._process_of(session, command)
        if process is not None:
            text = f"it broke the protocol ({error})"
            self._give_up(process, text, decision, now)
        return decision

    def instead_of_follow_up(self, job: str, now: Now) -> Decision:
        """Return the decision for a job of which following up raised."""
        return self._fail_in_the_end("follow_up", job, now)

    def instead_of_assign(self, culprit: Culprit, now: Now) -> Decision:
        """Return the decision for a job that could not be assigned."""
        return self._fail_in_the_end("assign", culprit[1], now)

    def instead_of_tick(self, culprit: Culprit, now: Now) -> Decision:
        """Return the decision for whom a tick raised; the tick goes on without it."""
        kind, name = culprit
        return self._fail_in_the_end("tick", name, now) if kind == "job" else Decision()

    def instead_of_complete(self, decision: Decision, now: Now) -> Decision:
        """Return what makes up for completing a decision that has been applied.

        What was shown is refused. Leases that were not told are lost like those of a
        connection that breaks: the next registration takes them back. Apply the
        records; there is nothing to complete.
        """
        machine, instead = self._machine, Decision()
        state = machine.state
        shows = list(decision.shows)
        for record in decision.records:
            if isinstance(record, r.JobEnded):
                shows += [
                    (*entry, record.job) for entry in state.waiters.pop(record.job, [])
                ]
        answered = {
            (session, message.call)
            for session, message in decision.sends
            if isinstance(message, m.Shown)
        }
        for session, call, _ in shows:
            if (session, call) not in answered:
                instead.refuse(session, call, "internal_error", TEXT)
        told = {id(granted) for _, _, granted in decision.grants}
        lost = [one for one in state.granted if id(one[1]) not in told]
        state.granted.clear()
        for process in {one.number: one for one, _ in lost}.values():
            self._lose_grants(process, instead, now)
        return instead

    def _lose_grants(self, process: Process, instead: Decision, now: Now) -> None:
        worker = self._machine.state.workers.get(process.worker)
        if worker is not None and worker.session is not None:
            _end_session(worker.session, worker.name, instead, now)
        failing = self._fail_in_the_end("complete", process.job, now)
        instead.records += failing.records
        instead.sends += failing.sends
        for record in failing.records:
            if isinstance(record, r.JobEnded):
                waiting = self._machine.state.waiters.pop(record.job, [])
                for session, call in waiting:
                    instead.refuse(session, call, "internal_error", TEXT)

    def _fail_in_the_end(self, step: str, job: str, now: Now) -> Decision:
        """Let a job fail at which a step has raised ``TIMES_MAX`` times."""
        decision = Decision()
        state = self._machine.state
        known = state.jobs.get(job)
        if known is None or known.is_final:
            return decision
        if self._count((step, job)) >= TIMES_MAX:
            decision.end_job(known, Verdict(ENDINGS["internal_error"], TEXT), now)
            crawl = state.crawls.get(job)
            if crawl is not None:
                decision.stop_all(state, known, "failed")
                conclusion = Conclusion(state, known, crawl, now, decision)
                conclusion.retire(state.crawling(job))
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

    def _give_up(
        self, process: Process, text: str, decision: Decision, now: Now
    ) -> None:
        """Let the process be lost, by its job's own doing; its worker kills it when it
        is back."""
        state = self._machine.state
        job = state.jobs[process.job]
        decision.lose(process, text, now, counted=True)
        course, is_export = job.begin(), process.role == "export"
        deaths = (course.export_deaths if is_export else course.deaths) + 1
        if not job.is_final and deaths >= self._machine.start_deaths_max:
            failure = Outcome(failure="died", text=text)
            if is_export and course.closing:
                decision.fail_feeds(job, failure)
            elif not is_export:
                decision.close_job(state, job, "died", failure, but=process.number)


def _end_session(
    session: int, worker: str | None, decision: Decision, now: Now
) -> None:
    """End a session; its worker takes nothing until it is back.

    A start that it was sent now would find the slots still taken by what it holds.
    """
    decision.closes.append(session)
    if worker is not None:
        decision.records.append(r.WorkerAway(name=worker, now=now.run))


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
