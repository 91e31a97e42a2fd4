"""Decides instead when the core has raised: a bug in one command, or at one job, must
not end the others.

The state is as before the step that raised. A client is answered ``internal_error``. A
worker offers what is not answered again, on its next session and for ever, so the
``TIMES_MAX``-th time the command is set aside: a page's request as if it were poisoned
(also for a part of the page), a process as if it had died, a registration without what
it holds. A job that cannot be assigned or looked at is left out, and the
``TIMES_MAX``-th time it fails. The rest goes on.
"""

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decide.conclusion import Conclusion
from dscrapy.control.decide.registration import register
from dscrapy.control.decision import Command, Culprit, Decision, OwnCommand
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.verdict import Verdict
from dscrapy.endings import ENDINGS
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import Outcome

TIMES_MAX = 3
# Commands and jobs whose failures are counted; the oldest are forgotten.
KEYS_MAX = 10_000
TEXT = "internal error of the master; its log has the traceback"

Key = tuple[str | int, ...]


class Fallbacks:
    """Counts failures of steps; its methods decide about them, adding to a decision."""

    def __init__(self) -> None:
        self._times: dict[Key, int] = {}

    def for_command(self, decision: Decision, session: int, command: Command) -> None:
        """Decide about a command after deciding it raised."""
        if isinstance(command, m.ClientCall):
            decision.refuse(session, command.call, "internal_error", TEXT)
            return
        if isinstance(command, OwnCommand):
            return
        process = _process_of(decision.state, session, command)
        page = _page_of(command)
        times = self._count(_key_of(session, command, page))
        is_part = page is not None and not _is_whole(page)
        if is_part and times < TIMES_MAX:
            _end_session(decision, session)
        elif page is not None and isinstance(command, m.Commits):
            _give_back(decision, session, command, page, times)
        elif isinstance(command, m.Register) and times >= TIMES_MAX:
            register(decision, session, command, is_empty=True)
        else:
            _end_session(decision, session)
            if process is not None and times >= TIMES_MAX:
                _give_up(decision, process, TEXT)

    def for_violation(
        self,
        decision: Decision,
        session: int,
        command: Command,
        error: RemoteProtocolError,
    ) -> None:
        """Decide about a command that breaks the protocol: its session ends.

        Offered again it would end the next session, too, so the process that sent it
        is given up at once, and nothing else of its worker.
        """
        decision.violation = error
        decision.refuse(session, -1, error.code, error.detail)
        _end_session(decision, session)
        if not isinstance(command, m.FromWorker):
            return
        process = _process_of(decision.state, session, command)
        if process is not None:
            _give_up(decision, process, f"it broke the protocol ({error})")

    def for_tick(self, decision: Decision, culprit: Culprit) -> None:
        """Decide about what a tick raised at; the tick goes on without it."""
        kind, name = culprit
        if kind == "job":
            self.for_job(decision, "tick", name)

    def for_job(self, decision: Decision, step: str, job: str) -> None:
        """Fail a job at which a step has raised ``TIMES_MAX`` times."""
        state = decision.state
        failing = state.jobs.get(job)
        if failing is None or failing.is_final:
            return
        if self._count((step, job)) >= TIMES_MAX:
            decision.end_job(failing, Verdict(ENDINGS["internal_error"], TEXT))
            crawl = state.crawls.get(job)
            if crawl is not None:
                decision.stop_all(failing, "failed")
                crawling = state.crawling(job)
                Conclusion(decision, failing, crawl, crawling).retire(crawling)

    def for_completion(self, decision: Decision, broken: Decision) -> None:
        """Decide after completing an applied decision raised.

        Calls that were to be shown something are refused. Leases that were not sent
        are lost like those on a broken connection: the worker's next registration
        takes them back.
        """
        answered = {
            (session, message.call)
            for session, message in broken.sends
            if isinstance(message, m.Shown)
        }
        self.refuse_all(
            decision, [show for show in broken.all_shows if show[:2] not in answered]
        )
        sent = {id(granted) for _, _, granted in broken.grants}
        lost = [lease for lease in broken.effects.granted if id(lease[1]) not in sent]
        for process in {holder.number: holder for holder, _ in lost}.values():
            worker = decision.state.workers.get(process.worker)
            if worker is not None and worker.session is not None:
                _end_session(decision, worker.session)
            self.for_job(decision, "complete", process.job)

    @staticmethod
    def refuse_all(decision: Decision, shows: list[tuple[int, int, str]]) -> None:
        """Refuse the calls that were to be shown something."""
        for session, call, _ in shows:
            decision.refuse(session, call, "internal_error", TEXT)

    def _count(self, key: Key) -> int:
        times = self._times.pop(key, 0) + 1
        if times < TIMES_MAX:
            self._times[key] = times
        if len(self._times) > KEYS_MAX:
            del self._times[next(iter(self._times))]
        return times


def _process_of(state: State, session: int, command: m.FromWorker) -> Process | None:
    """Return the process of the command, if the session's worker has it."""
    process = state.processes.get(getattr(command, "process", 0))
    worker = state.sessions.get(session)
    return process if process is not None and process.worker == worker else None


def _give_back(
    decision: Decision, session: int, command: m.Commits, page: m.Commit, times: int
) -> None:
    """Let the page be done again, or set its request aside; its sender drops the
    commit."""
    job, number, request = command.job, command.process, page.request
    seen = m.Seen(request, page.unit, page.part, "settled")
    answer = m.CommitsSeen(job=job, process=number, seen=(seen,))
    decision.send(session, answer)
    crawl = decision.state.crawls.get(job)
    if crawl is None or not crawl.frontier.is_open(request):
        return
    if times >= TIMES_MAX:
        decision.records.append(
            r.RequestPoisoned(job=job, request=request, url="", text=TEXT)
        )
    else:
        at = decision.now.wall
        decision.records.append(
            r.Released(job=job, process=number, requests=(request,), at=at)
        )


def _give_up(decision: Decision, process: Process, text: str) -> None:
    """Give the process up, by its job's own doing; its worker kills it when the worker
    is back."""
    job = decision.state.jobs[process.job]
    decision.lose(process, text, counted=True)
    course, is_export = job.progress, process.role == "export"
    deaths = (course.export_deaths if is_export else course.deaths) + 1
    if not job.is_final and deaths >= decision.policy.start_deaths_max:
        failure = Outcome(failure="died", text=text)
        if is_export and course.closing:
            decision.fail_feeds(job, failure)
        elif not is_export:
            decision.close_job(job, "died", failure, exclude=process.number)


def _end_session(decision: Decision, session: int) -> None:
    """End a session; its worker takes nothing until it registers again.

    A start sent to the worker now would find the slots still taken.
    """
    decision.closes.append(session)
    worker = decision.state.sessions.get(session)
    if worker is not None:
        decision.records.append(r.WorkerAway(name=worker, now=decision.now.run))


def _page_of(command: Command) -> m.Commit | None:
    """Return the page if the command commits one page, or a part of one."""
    if not isinstance(command, m.Commits) or len(command.commits) != 1:
        return None
    (commit,) = command.commits
    return commit if commit.request else None


def _is_whole(page: m.Commit) -> bool:
    """Whether a page is committed in one part: it may be run again at once, since its
    process is through with it."""
    return page.last and not page.part


def _key_of(session: int, command: m.FromWorker, page: m.Commit | None) -> Key:
    """Return a key that a command keeps when it is offered on another session."""
    name = type(command).__name__
    if isinstance(command, m.Register):
        return name, command.name, command.instance
    if page is not None and isinstance(command, m.Commits):
        return name, command.job, page.request, page.part
    if isinstance(command, m.Commits):
        first = command.commits[0]
        return name, command.process, first.request, first.unit, first.part
    return name, getattr(command, "process", -session)
