"""What the end of a process means for its job, its requests and its worker."""

import attrs

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import Decision
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.jobs import Course, Job
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Worker
from dscrapy.model import Outcome

# A worker where this many processes of a job died before they were open gets no more
# of the job: one death may be bad luck.
AT_ONCE_MAX = 2
# After so many deaths in a row that made no request a suspect, pages that only waited
# are blamed, too.
VAIN_DEATHS_MAX = 2
# This many requests set aside without a page in between are the spider's doing.
POISONED_IN_A_ROW_MAX = 3
# Failures that another worker may not have: this one lacks the project, a package, or
# what a pipeline opens.
_MAY_HELP_ELSEWHERE = frozenset({"unknown_project", "import_error", "open_error"})


def decide_ended(decision: Decision, process: Process, command: m.Ended) -> None:
    """Decide about the end of a process that its worker reports."""
    state, deaths_max = decision.state, decision.policy.start_deaths_max
    job = state.jobs[process.job]
    crawl = state.crawls.get(job.id)
    counted = command.counted and command.how == "exited" and not process.closed
    under_way: tuple[m.UnderWay, ...] = ()
    if counted and crawl is not None:
        frontier = crawl.frontier
        under_way = tuple(
            page
            for page in command.under_way
            if frontier.is_open(page.request) and page.request not in frontier.poisoned
        )
    blame = _blame(crawl, process, under_way, alone=command.alone)
    course = job.progress
    end_failed = _end_failed(state, process, command)
    where = f"on worker {process.worker}"
    again = "; the job goes on" if command.how == "exited" else ""
    decision.records.append(
        r.ProcessEnded(
            job=job.id,
            process=process.number,
            how=command.how,
            counted=counted,
            text="" if process.closed else f"{command.text} {where}{again}",
            at=decision.now.wall,
            blamed=blame.requests,
            alone=blame.alone,
            halved=blame.halved,
            end_failed=end_failed,
        )
    )
    _bar_if_unfit(decision, process, command)
    if end_failed and course.end_failures + 1 >= deaths_max:
        _give_up_end(decision, job, f"{command.text} {where}")
    # The job does not fail for it: its crawl is about to end, or goes on without feeds.
    is_spared = bool(course.closing) == (process.role == "crawl")
    if crawl is None or job.is_final or is_spared:
        return
    proven = [
        page
        for page in under_way
        if page.request in blame.requests
        and crawl.frontier.would_prove(page.request, alone=blame.alone)
    ]
    for page in proven:
        decision.records.append(
            r.RequestPoisoned(
                job=job.id, request=page.request, url=page.url, text=command.text
            )
        )
    failure: Outcome | None = None
    if command.how == "failed" and not process.closed:
        failure = _cannot_begin(decision, process, command)
    elif proven:
        failure = _poisoned(course, len(proven), command.text)
    elif counted and not under_way:
        failure = _died(decision, process, command.text)
    if failure is None or course.cancelling:
        return
    if process.role == "export":
        decision.fail_feeds(job, failure)
    else:
        reason = failure.failure
        decision.close_job(job, reason, failure, exclude=process.number)


@attrs.frozen
class _Blame:
    """The requests that a death is blamed on; ``alone`` if it is one that was tried
    alone; ``halved`` are suspects that were tried together."""

    requests: tuple[int, ...] = ()
    alone: bool = False
    halved: tuple[int, ...] = ()


def _blame(
    crawl: Crawl | None,
    process: Process,
    under_way: tuple[m.UnderWay, ...],
    *,
    alone: bool,
) -> _Blame:
    """Return what a counted death is blamed on.

    A page in its download may have caused it, and the one whose code ran last. Pages
    that only wait are blamed if there was nothing else, or if deaths in a row have led
    to no suspect.
    """
    if crawl is None or not under_way:
        return _Blame(alone=alone)
    every = tuple(page.request for page in under_way)
    frontier = crawl.frontier
    if frontier.quarantine.isolator == process.number:
        suspects = tuple(filter(frontier.is_suspect, every))
        is_single = alone or len(every) == 1
        return _Blame(every, is_single, () if is_single else suspects)
    active = tuple(
        page.request for page in under_way if page.stage == "download" or page.ran_last
    )
    if not active or crawl.vain_deaths >= VAIN_DEATHS_MAX:
        active = every
    return _Blame(active, alone)


def _give_up_end(decision: Decision, job: Job, text: str) -> None:
    times = decision.policy.start_deaths_max
    why = f"processes that were to end the job died {times} times, last: {text}"
    decision.fail_end(job, Outcome(failure="end_error", text=why))


def _end_failed(state: State, process: Process, command: m.Ended) -> bool:
    """Whether the process was the last of an ending job and died before it ended the
    job, or never opened."""
    job, crawl = state.jobs[process.job], state.crawls.get(process.job)
    course = job.progress
    is_due = course.has_once and course.closing and not course.concluded
    if crawl is None or job.is_final or not is_due:
        return False
    if state.crawling(job.id) != [process]:
        return False
    if not process.closed:
        return command.counted or command.how == "failed"
    return not process.ending and process.opened is None


def _cannot_begin(
    decision: Decision, process: Process, command: m.Ended
) -> Outcome | None:
    failure = command.outcome
    if failure is not None and goes_elsewhere(decision, process, failure):
        bar_unfit(decision, process, failure.text)
        return None
    return failure


def _poisoned(course: Course, count: int, text: str) -> Outcome | None:
    """Fail a job of which every page kills its process."""
    streak = course.poisoned_streak + count
    if streak < POISONED_IN_A_ROW_MAX:
        return None
    why = f"{streak} requests in a row killed their process, last: {text}"
    return Outcome(failure="poisoned", text=why)


def _died(decision: Decision, process: Process, text: str) -> Outcome | None:
    """Fail a job whose processes die again and again without a commit."""
    state, deaths_max = decision.state, decision.policy.start_deaths_max
    course = state.jobs[process.job].progress
    is_at_once = process.opened is None
    if is_at_once:
        _count_at_once(decision, process, text)
    deaths = (course.export_deaths if process.role == "export" else course.deaths) + 1
    if deaths < deaths_max or (is_at_once and _untried(state, process)):
        return None
    why = f"its processes died {deaths} times, last: {text} on worker {process.worker}"
    return Outcome(failure="died", text=why)


def goes_elsewhere(decision: Decision, process: Process, failure: Outcome) -> bool:
    """Whether a job that could not begin here runs on another worker, or may.

    A job that fails on ``start_deaths_max`` workers fails by its own fault. Only an
    unknown project is looked for everywhere: that costs nothing.
    """
    state, deaths_max = decision.state, decision.policy.start_deaths_max
    if is_disproved(state, process):
        return True
    if failure.failure not in _MAY_HELP_ELSEWHERE or not _untried(state, process):
        return False
    barred = sum(process.job in worker.barred for worker in state.workers.values())
    return failure.failure == "unknown_project" or barred + 1 < deaths_max


def is_disproved(state: State, process: Process) -> bool:
    """Whether other processes prove that the job can run, or may prove it soon, so that
    the job is not at fault for this process, which did not open."""
    course = state.jobs[process.job].progress
    if course.closing and course.opened_at is not None:
        # The job was open and is about to end: this process was one too many.
        return True
    others = [
        other for other in state.processes_of(process.job) if other is not process
    ]
    return any(
        other.opened is not None
        or other.number in state.unknown
        or (other.worker != process.worker and not other.closed)
        for other in others
    )


def bar(
    decision: Decision, process: Process, why: str, *, beside: bool = False
) -> None:
    """Give the process's worker no more processes of the job; with ``beside`` only
    while the job has another process."""
    decision.records.append(
        r.WorkerBarred(name=process.worker, job=process.job, why=why, beside=beside)
    )


def bar_unfit(decision: Decision, process: Process, why: str) -> None:
    """Bar the worker where a process did not open.

    A worker where another process of the job is open can run one of them, but not two:
    what a pipeline opens may be for one process alone.
    """
    state = decision.state
    if state.jobs[process.job].progress.closing:
        # There is nothing more to run.
        return
    beside = any(
        other.worker == process.worker and other.opened is not None
        for other in state.processes_of(process.job)
    )
    bar(decision, process, why, beside=beside)


def _bar_if_unfit(decision: Decision, process: Process, command: m.Ended) -> None:
    draining = decision.state.workers[process.worker].draining
    if command.how == "other_code" or (command.how == "refused" and not draining):
        bar(decision, process, command.text)


def _count_at_once(decision: Decision, process: Process, text: str) -> None:
    """Count a death before the spider was open; the second one bars the worker, if
    another worker may take the job."""
    state = decision.state
    worker = state.workers[process.worker]
    decision.records.append(r.WorkerFailed(name=worker.name, job=process.job))
    count = worker.failed.get(process.job, 0) + 1
    job = state.jobs[process.job]
    if count >= AT_ONCE_MAX and any(_other_workers(state, worker.name, job)):
        why = f"its processes died there before they had started, {count} times: {text}"
        bar(decision, process, why)


def _untried(state: State, process: Process) -> bool:
    """Whether the job has not failed yet on some other live worker."""
    job = state.jobs[process.job]
    return any(
        job.id not in worker.failed
        for worker in _other_workers(state, process.worker, job)
    )


def _other_workers(state: State, excluded: str, job: Job) -> list[Worker]:
    """Return the live workers that may take the job, without the excluded one."""
    return [
        worker
        for worker in state.workers.values()
        if worker.name != excluded
        and worker.session is not None
        and worker.may_take(job.id)
    ]
