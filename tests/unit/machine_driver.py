"""A machine with a job on a worker, driven by hand: what is asked of it, what it says.

The messages themselves are those of ``tests.builders``.
"""

from typing import Any

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decision import Decision
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import State
from dscrapy.model import JobSpec, Submission
from tests import builders as b

NOW = Now(run=100.0, wall=1_000_000.0)
SPEC = b.spec(retries=1)
CLIENT, WORKER = 1, 5


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
    """Return the submission of the one job or schedule."""
    return b.submission(Submission(id=b.ID, spec=spec, every_s=every_s))


def change(
    machine: Machine, verb: Any, job: str = b.ID, *, fresh: bool = False, count: int = 1
) -> Decision:
    """Ask for a change of a job."""
    call = m.ChangeJob(call=2, verb=verb, job=job, fresh=fresh, count=count)
    return ask(machine, call, CLIENT)


# ---- what workers say ----------------------------------------------------------------


def register(
    machine: Machine, session: int = WORKER, name: str = "w", slots: int = 1
) -> Decision:
    """Let a worker come that holds nothing."""
    return ask(machine, b.registration(name, slots), session)


def started(decision: Decision) -> m.Start:
    """Return the one process that was started."""
    (start,) = told(decision, m.Start)
    assert isinstance(start, m.Start)
    return start


def commit(
    machine: Machine, process: int, *every: m.Commit, session: int = WORKER
) -> Decision:
    """Let a process commit."""
    return ask(machine, b.commits(process, *every), session)


def closing(machine: Machine, process: int, reason: str) -> list[m.Stop]:
    """Let a process close its spider; return who is stopped for that."""
    said = m.Closing(job=b.ID, process=process, reason=reason)
    return told(ask(machine, said, WORKER), m.Stop)


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
    assert told(ask(machine, b.opened(start.process, **fields), WORKER), m.Lead)
    return machine, start


def crawling(
    count: int, spec: JobSpec = SPEC, *, slots: int = 1, **fields: Any
) -> tuple[Machine, m.Start]:
    """Return such a machine after ``start()`` gave so many requests, all leased.

    Its units so far are 1 and 2.
    """
    machine, start = running(spec, slots=slots, **fields)
    first = b.unit(1, "start", children=b.children(*range(1, count + 1)))
    decision = commit(machine, start.process, first, b.unit(2, "started"))
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
    spec = b.spec(retries=1, parallelism=parallelism)
    values: dict[str, Any] = {"window": hosts} | fields
    machine, first = running(spec, slots=slots, **values)
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, hosts + 3)
    ]
    decision = commit(machine, first.process, *given, b.unit(hosts + 3, "started"))
    second = started(decision)
    ask(machine, b.opened(second.process, **values), WORKER)
    return machine, first, second


def finish(machine: Machine, process: int, units: int) -> Decision:
    """Let the leader, which committed so many units, end its job; it exits."""
    closing = m.Closing(job=b.ID, process=process, reason="finished")
    ask(machine, closing, WORKER)
    decision = commit(machine, process, b.unit(units + 1, "closed"))
    exited = ask(machine, b.ended(process), WORKER)
    decision.sends += exited.sends
    decision.records += exited.records
    return decision


def succeed(machine: Machine, start: m.Start) -> Decision:
    """Let an open process that leads find nothing to do, and end its job."""
    commit(machine, start.process, b.unit(1, "started"))
    return finish(machine, start.process, 1)
