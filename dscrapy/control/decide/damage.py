"""Decides about derived files that lack bytes: only what needs the bytes fails."""

from dscrapy.control import events as r
from dscrapy.control.decision import Decision, OnDamage, OnMissing
from dscrapy.messages import Stop
from dscrapy.model import Outcome

TEXT = "its body is missing: the job's requests.jsonl lacks bytes"


def missing(decision: Decision, command: OnMissing) -> None:
    """Set requests aside whose bodies are lost.

    The job does its other requests and then fails for these. ``retry`` looks again: the
    file may have been restored.
    """
    state = decision.state
    crawl = state.crawls.get(command.job)
    if crawl is None or state.jobs[command.job].is_final:
        return
    for request in command.requests:
        frontier = crawl.frontier
        if frontier.is_open(request) and request not in frontier.poisoned:
            decision.records.append(
                r.RequestPoisoned(job=command.job, request=request, url="", text=TEXT)
            )


def damaged(decision: Decision, command: OnDamage) -> None:
    """Let the job's feeds fail: without the missing bytes they would look whole.

    The process that writes them is given up, and told to stop. Beside a crawl this
    counts as a death by its own doing: the file may have been restored at the end.
    """
    process = decision.state.processes.get(command.process)
    if process is None or process.job != command.job or process.role != "export":
        return
    job = decision.state.jobs[command.job]
    is_beside = not job.progress.closing
    if not job.is_final:
        stop = Stop(job=job.id, process=process.number, reason="feeds_error")
        decision.notify(process, stop)
        decision.lose(process, "", counted=is_beside)
        failure = Outcome(failure="feeds_error", text=command.text)
        if not is_beside:
            decision.fail_feeds(job, failure)
