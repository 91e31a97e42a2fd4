"""A machine with a job on a worker, and what may be said to it."""

from typing import Any, Literal

import msgspec

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decision import Decision
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import State
from dscrapy.messages import DIGEST_BYTES, FINGERPRINT_BYTES
from dscrapy.model import (
    FEEDS_WRITTEN,
    CloseLimits,
    HostLimits,
    JobSpec,
    Outcome,
    Submission,
    Versions,
)

NOW = Now(run=100.0, wall=1_000_000.0)
SPEC = JobSpec(project="p", spider="s", retries=1)
ID, OTHER = f"{1:016x}", "e" * 16
CLIENT, WORKER = 1, 5
ITEM = (msgspec.Raw(b'{"a":1}'),)
VERSIONS = Versions(dscrapy="1", scrapy="2", python="3")
FINISHED = Outcome(finish_reason="finished")
WRITTEN = Outcome(finish_reason=FEEDS_WRITTEN)
Kind = Literal[
    "page",
    "start",
    "started",
    "opened",
    "idle",
    "late",
    "batch",
    "ending",
    "closed",
]


def later(seconds: float) -> Now:
    """Return the instant so much later, on both clocks."""
    return Now(run=NOW.run + seconds, wall=NOW.wall + seconds)


# ---- the machine, driven -------------------------------------------------------------


def new_machine() -> Machine:
    """Return a machine that has begun."""
    machine = Machine()
    carry_out(machine, machine.begin(NOW))
    return machine


def decision_of(machine: Machine, *records: r.Record | r.Volatile) -> Decision:
    """Return a decision of these records."""
    decision = machine.decision(NOW)
    decision.records += records
    return decision


def let_be(machine: Machine, *records: r.Record | r.Volatile) -> None:
    """Let records be facts, and look at nothing that follows."""
    machine.carry_out(decision_of(machine, *records))


def carry_out(machine: Machine, decision: Decision, now: Now = NOW) -> Decision:
    """Carry out the decision and all that follows; return it as one.

    Raises what a step of the core has raised.
    """
    whole = machine.decision(now)
    for one in (machine.carry_out(decision), *machine.settle(now)):
        for bug in one.bugs:
            raise bug.error
        whole.take(one)
    return whole


def ask(
    machine: Machine, command: object, session: int = CLIENT, now: Now = NOW
) -> Decision:
    """Decide a command, and carry it out."""
    return carry_out(machine, machine.decide(session, command, now), now)  # type: ignore[arg-type]  # what is no command is tried, too


def restarted(machine: Machine) -> Machine:
    """Return the next master on what the machine's state is worth after a crash."""
    other = Machine(state=State.decode_snapshot(machine.state.encode_snapshot()))
    carry_out(other, other.begin(NOW))
    return other


# ---- what is sent --------------------------------------------------------------------


def answers(decision: Decision, session: int) -> list[Any]:
    """Return what is sent to one session."""
    return [message for to, message in decision.sends if to == session]


def told(decision: Decision, kind: type[Any], process: int | None = None) -> list[Any]:
    """Return the messages of a kind, to one process or to whoever gets them."""
    return [
        message
        for _, message in decision.sends
        if isinstance(message, kind)
        and (process is None or getattr(message, "process", process) == process)
    ]


def leases(decision: Decision) -> dict[int, list[int]]:
    """Return the requests that were granted, by process."""
    found: dict[int, list[int]] = {}
    for _, process, granted in decision.grants:
        found.setdefault(process.number, []).extend(granted.requests)
    return found


# ---- what clients say ----------------------------------------------------------------


def submit(every_s: float | None = None, spec: JobSpec = SPEC) -> m.Submit:
    """Return the submission of one job or schedule."""
    one = Submission(id=ID, spec=spec, every_s=every_s)
    return m.Submit(call=1, part=0, last=True, submissions=(one,))


def submit_other(*ids: str, priority: int = 0) -> m.Submit:
    """Return a submission of further jobs."""
    spec = JobSpec(project="p", spider="s", priority=priority)
    every = tuple(Submission(id=one, spec=spec) for one in ids or (OTHER,))
    return m.Submit(call=1, part=0, last=True, submissions=every)


def change(
    machine: Machine, verb: Any, job: str = ID, *, fresh: bool = False, count: int = 1
) -> Decision:
    """Ask for a change of a job."""
    call = m.ChangeJob(call=2, verb=verb, job=job, fresh=fresh, count=count)
    return ask(machine, call, CLIENT)


# ---- what workers say ----------------------------------------------------------------


def registration(
    name: str = "w",
    slots: int = 1,
    held: tuple[m.Held, ...] = (),
    instance: str = "1",
) -> m.Register:
    """Return what a worker registers with."""
    return m.Register(
        name=name,
        instance=instance,
        host="h",
        port=1,
        slots=slots,
        draining=False,
        versions=VERSIONS,
        held=held,
    )


def register(
    machine: Machine, session: int = WORKER, name: str = "w", slots: int = 1
) -> Decision:
    """Let a worker come that holds nothing."""
    return ask(machine, registration(name, slots), session)


def started(decision: Decision) -> m.Start:
    """Return the one process that was started."""
    (start,) = told(decision, m.Start)
    assert isinstance(start, m.Start)
    return start


def opened(process: int, job: str = ID, **fields: Any) -> m.Opened:
    """Return what an open process says: a host takes what the window allows."""
    values: dict[str, Any] = {
        "window": 16,
        "lifo": False,
        "start_lifo": False,
        "default_host": HostLimits(concurrency=16, delay_s=0.0),
        "hosts": {},
        "limits": CloseLimits(),
        "has_feeds": False,
    }
    return m.Opened(job=job, process=process, **(values | fields))


def ended(process: int, job: str = ID, how: Any = "exited", **fields: Any) -> m.Ended:
    """Return the end of a process."""
    return m.Ended(job=job, process=process, how=how, **fields)


def children(*numbers: int, host: str = "h", flags: int = 0) -> m.Children:
    """Return requests that are the same where their numbers are."""
    count = len(numbers)
    return m.Children(
        fingerprints=b"".join(n.to_bytes(FINGERPRINT_BYTES, "big") for n in numbers),
        hosts=(host,) if count else (),
        host_of=(0,) * count,
        priorities=(0,) * count,
        flags=(flags,) * count,
        bodies=tuple(msgspec.Raw(b'{"n":%d}' % number) for number in numbers),
    )


def page(request: int, **fields: Any) -> m.Commit:
    """Return the whole commit of a request."""
    return m.Commit(request=request, **fields)


def unit(number: int, kind: Kind = "late", **fields: Any) -> m.Commit:
    """Return a whole unit."""
    if kind == "start":
        fields = {"digest": number.to_bytes(DIGEST_BYTES, "big")} | fields
    if kind == "closed":
        fields = {"end": FINISHED} | fields
    return m.Commit(unit=number, kind=kind, **fields)


def commits(process: int, *every: m.Commit, job: str = ID) -> m.Commits:
    """Return a message of commits."""
    return m.Commits(job=job, process=process, commits=every)


def commit(
    machine: Machine, process: int, *every: m.Commit, session: int = WORKER
) -> Decision:
    """Let a process commit."""
    return ask(machine, commits(process, *every), session)


def results(decision: Decision) -> list[str]:
    """Return what became of each part of the one message of commits."""
    (answer,) = told(decision, m.CommitsSeen)
    return [one.result for one in answer.seen]


# ---- lives ---------------------------------------------------------------------------


def running(
    spec: JobSpec = SPEC, *, slots: int = 1, **fields: Any
) -> tuple[Machine, m.Start]:
    """Return a machine whose worker runs its one job; the process is open and leads.

    ``fields`` are those of ``Opened``.
    """
    machine = new_machine()
    ask(machine, submit(spec=spec))
    start = started(register(machine, WORKER, slots=slots))
    assert told(ask(machine, opened(start.process, **fields), WORKER), m.Lead)
    return machine, start


def crawling(
    count: int, spec: JobSpec = SPEC, *, slots: int = 1, **fields: Any
) -> tuple[Machine, m.Start]:
    """Return such a machine after ``start()`` gave so many requests, all leased.

    Its units so far are 1 and 2.
    """
    machine, start = running(spec, slots=slots, **fields)
    first = unit(1, "start", children=children(*range(1, count + 1)))
    decision = commit(machine, start.process, first, unit(2, "started"))
    given = {start.process: list(range(1, count + 1))} if count else {}
    assert leases(decision) == given
    return machine, start


def wide(
    hosts: int = 2, *, slots: int = 2, parallelism: int = 2, **fields: Any
) -> tuple[Machine, m.Start, m.Start]:
    """Return a machine whose job has two open processes; 1 leads.

    Request n is of host ``hn``; all were leased to the first process when it was
    alone, with a window of ``hosts`` beyond which two stay pending.
    """
    spec = msgspec.structs.replace(SPEC, parallelism=parallelism)
    values: dict[str, Any] = {"window": hosts} | fields
    machine, first = running(spec, slots=slots, **values)
    given = [
        unit(number, "start", children=children(number, host=f"h{number}"))
        for number in range(1, hosts + 3)
    ]
    decision = commit(machine, first.process, *given, unit(hosts + 3, "started"))
    second = started(decision)
    ask(machine, opened(second.process, **values), WORKER)
    return machine, first, second


def finish(machine: Machine, process: int, units: int) -> Decision:
    """Let the leader, which committed so many units, end its job; it exits."""
    closing = m.Closing(job=ID, process=process, reason="finished")
    ask(machine, closing, WORKER)
    decision = commit(machine, process, unit(units + 1, "closed"))
    exited = ask(machine, ended(process), WORKER)
    decision.sends += exited.sends
    decision.records += exited.records
    return decision


def succeed(machine: Machine, start: m.Start) -> Decision:
    """Let an open process that leads find nothing to do, and end its job."""
    commit(machine, start.process, unit(1, "started"))
    return finish(machine, start.process, 1)
