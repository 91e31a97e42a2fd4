"""A machine with one job on one worker, and what may be said to it."""

from typing import Any

import msgspec

from dscrapy import messages as m
from dscrapy.frontier.clock import Now
from dscrapy.frontier.decision import Decision
from dscrapy.frontier.machine import Machine
from dscrapy.model import JobSpec, Outcome, Submission, Versions
from tests.unit.test_machine import (
    ID,
    NOW,
    SPEC,
    ask,
    commit,
    new_machine,
    register,
    started,
    submit,
)

CLIENT, WORKER = 1, 5
ITEM = (msgspec.Raw(b'{"a":1}'),)
OTHER = "e" * 16


def later(seconds: float) -> Now:
    """Return the instant so much later, on both clocks."""
    return Now(run=NOW.run + seconds, wall=NOW.wall + seconds)


def running(retries: int = 1) -> tuple[Machine, m.Start]:
    """Return a machine whose worker runs its one job."""
    machine = new_machine()
    ask(machine, submit(spec=msgspec.structs.replace(SPEC, retries=retries)))
    register(machine, WORKER)
    return machine, started(machine)


def answers(decision: Decision, session: int) -> list[Any]:
    """Return what is sent to one session."""
    return [message for to, message in decision.sends if to == session]


def again(held: tuple[int, ...] = (), instance: str = "1") -> m.Register:
    """Return the registration of the worker that is known as ``w``."""
    return m.Register(
        name="w",
        instance=instance,
        host="h",
        port=1,
        slots=1,
        draining=False,
        versions=Versions(dscrapy="1", scrapy="2", python="3"),
        held=tuple(m.Held(job=ID, process=process) for process in held),
    )


def change(machine: Machine, verb: Any, job: str = ID) -> Decision:
    """Ask for a change of a job."""
    return ask(machine, m.ChangeJob(call=2, verb=verb, job=job), CLIENT)


def submit_other(*ids: str, priority: int = 0) -> m.Submit:
    """Return a submission of further jobs."""
    spec = JobSpec(project="p", spider="s", priority=priority)
    every = tuple(Submission(id=one, spec=spec) for one in ids or (OTHER,))
    return m.Submit(call=1, part=0, last=True, submissions=every)


def part(start: m.Start, number: int, last: bool = False) -> m.Commit:
    """Return one of several parts."""
    outcome = Outcome(finish_reason="finished") if last else None
    return commit(start, part=number, last=last, outcome=outcome, items=ITEM)


def result(machine: Machine, said: m.Commit, session: int = WORKER) -> str:
    """Return the answer to a part, which repeats what it answers."""
    (seen,) = answers(ask(machine, said, session), session)
    assert (seen.job, seen.process, seen.request, seen.part) == (
        said.job,
        said.process,
        said.request,
        said.part,
    )
    return str(seen.result)
