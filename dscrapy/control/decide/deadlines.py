"""Decides what is due: silent workers, runs of schedules, jobs that ran too long."""

from collections.abc import Iterator

import msgspec

from dscrapy.control import events as r
from dscrapy.control.decide.reconcile import JobReconciler
from dscrapy.control.decision import Decision, OnTick, deciding_on
from dscrapy.control.state.jobs import Schedule
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Worker
from dscrapy.model import JobSpec


def tick(decision: Decision, command: OnTick) -> None:
    """Decide all that is due; raises ``StepError`` with what deciding raised at."""
    state, now, exclude = decision.state, decision.now, command.exclude
    for worker in state.workers.values():
        if ("worker", worker.name) not in exclude:
            with deciding_on("worker", worker.name):
                if now.run >= decision.policy.spans.deadline(worker):
                    reap(decision, worker)
    for schedule in _waiting_schedules(state):
        if ("schedule", schedule.id) not in exclude:
            with deciding_on("schedule", schedule.id):
                if schedule.is_due(now.wall):
                    decision.records.append(_run_of(schedule, now.wall))
    for identity in state.by_job:
        if ("job", identity) not in exclude:
            with deciding_on("job", identity):
                JobReconciler.of(decision, identity).tick()


def next_deadline_s(decision: Decision) -> float:
    """Return in how many seconds ``tick`` may have something to do.

    When it raises, ``tick`` will raise too, and name what it raised at.
    """
    state, now = decision.state, decision.now
    waits = [
        decision.policy.spans.deadline(worker) - now.run
        for worker in state.workers.values()
    ]
    waits += [
        0.0 if schedule.is_due(now.wall) else schedule.next_at - now.wall
        for schedule in _waiting_schedules(state)
    ]
    # There are no more jobs that crawl than slots.
    waits += [
        JobReconciler.of(decision, identity).wait_s() for identity in state.by_job
    ]
    return max(min(waits, default=float("inf")), 0.0)


def reap(decision: Decision, worker: Worker) -> None:
    """Give a worker up: its processes are lost, and its session ends."""
    why = f"worker {worker.name} was lost; the job goes on"
    for number in sorted(worker.processes):
        decision.lose(decision.state.processes[number], why, counted=False)
    decision.records.append(r.WorkerGone(name=worker.name))
    if worker.session is not None:
        decision.closes.append(worker.session)


def _waiting_schedules(state: State) -> Iterator[Schedule]:
    """Yield the schedules whose next run waits for its time alone."""
    for schedule in state.schedules.values():
        latest = state.jobs.get(schedule.job or "")
        is_off = schedule.cancelled or schedule.paused
        if not is_off and (latest is None or latest.is_final):
            yield schedule


def _run_of(schedule: Schedule, at: float) -> r.JobAdded:
    return r.JobAdded(
        id=f"{schedule.id}-{schedule.runs + 1}",
        spec=msgspec.json.decode(schedule.spec, type=JobSpec),
        at=at,
        schedule=schedule.id,
        next_at=schedule.next_after(at),
    )
