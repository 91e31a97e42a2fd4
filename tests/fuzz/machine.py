"""Target: sequences of messages against the frontier, as the committer drives it.

Peers here have proved the token and say anything that decodes. Whatever they say: the
machine refuses it by our own error or decides it; what it decides applies; journal and
snapshot give the same state again; no request is leased twice.
"""

from random import Random
from typing import Any, get_args

import msgspec

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.apply import apply
from dscrapy.control.clock import Now
from dscrapy.control.decision import Decision, OnClosed, OnTick, Policy
from dscrapy.control.effects import coalesced
from dscrapy.control.machine import Machine
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Spans
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import Decoder, encode
from tests import builders as b
from tests.fuzz.catalogue import Tally, Target
from tests.fuzz.draw import JOBS, Draw
from tests.property.actors import Files

SPANS = Spans(heartbeat_s=2.0, die_after_s=20.0, reconnect_grace_s=5.0)
CLIENT, WORKERS = 1, (2, 3)
# Messages of one input; deep states need some dozens.
STEPS_MAX = 200
# Those that reach the machine; the others are answered by the shell.
SHELL = (m.GetStatus, m.ReadFile, m.Log, m.Read)
CALLS = tuple(kind for kind in get_args(m.ClientCall) if kind not in SHELL)
SAID = tuple(kind for kind in get_args(m.FromWorker) if kind not in SHELL)
# What leads somewhere, in the order in which it does, so that small bytes do.
USUAL = (
    *(m.Commits, m.Commits, m.Commits, m.Opened, m.Release, m.Closing, m.Offer),
    *(m.Commits, m.Commits, m.Commits, m.Feeds, m.Started, m.Ended, m.Register),
)
UNITS = ("start", "start", "started", "late", "idle", "opened", "closed")
FROM_CLIENT: Decoder[Any] = Decoder(m.ClientCall)
FROM_WORKER: Decoder[Any] = Decoder(m.FromWorker)


class Master:
    """The machine, driven, with a journal and files in memory."""

    def __init__(self) -> None:
        self.run = 0.0
        self.wall = 1_000_000.0
        self.journal: list[bytes] = []
        self.files = Files()
        # What was leased to each process, whatever became of it.
        self.leases: dict[int, list[int]] = {}
        self.machine = Machine(policy=Policy(spans=SPANS, start_deaths_max=3))
        self.commit(self.machine.begin(self.now()))

    def now(self) -> Now:
        """Return this instant."""
        return Now(run=self.run, wall=self.wall)

    def ask(self, session: int, command: Any) -> None:
        """Decide a command and commit it; a refused one ends its session."""
        try:
            decision = self.machine.decide(session, command, self.now())
        except RemoteProtocolError:
            decision = self.machine.decide(session, OnClosed(), self.now())
        self.commit(decision)

    def commit(self, decision: Decision) -> None:
        """Carry out, journal and encode what leaves."""
        facts: list[r.Record] = []
        writes = []
        closes: list[int] = []
        machine = self.machine
        for one in (machine.carry_out(decision), *machine.settle(self.now())):
            for bug in one.bugs:
                raise bug.error
            facts += [fact for fact in one.records if isinstance(fact, r.Record)]
            writes += one.effects.writes
            for _, message in one.sends:
                encode(message)
            for _, process, granted in one.grants:
                self.leases.setdefault(process.number, []).extend(granted.requests)
            closes += one.closes
        for write in coalesced(writes):
            self.files.write(write)
        if facts:
            payload = r.encode_group(facts)
            assert r.decode_group(payload) == tuple(facts)
            self.journal.append(payload)
        for session in closes:
            self.ask(session, OnClosed())

    # ---- what must always hold ----------------------------------------------------

    def check(self) -> None:
        """Journal, snapshot, leases, indexes and what people are shown."""
        state = self.machine.state
        snapshot = state.encode_snapshot()
        assert State.decode_snapshot(snapshot).encode_snapshot() == snapshot
        assert self._replayed().encode_snapshot() == snapshot
        for identity, crawl in state.crawls.items():
            numbers = state.by_job.get(identity, ())
            by_each = sum(crawl.frontier.leases.count_of(number) for number in numbers)
            assert crawl.frontier.leased_count == by_each
        for name in {*state.counts, "ready", "running"}:
            count = sum(job.state == name for job in state.jobs.values())
            assert state.counts[name] == count
        for job in state.jobs.values():
            assert job.processes + job.exports == len(state.processes_of(job.id))
            encode(views.show(state, 1, job.id) or m.Ping(call=1))
        for worker in state.workers.values():
            assert not worker.instance or worker.busy <= worker.slots
        assert self.machine.next_deadline_s(self.now()) >= 0
        status = views.status(
            state,
            SPANS,
            self.now(),
            call=1,
            host="h",
            port=1,
            uptime_s=0.0,
            versions=b.VERSIONS,
            note="",
        )
        encode(status)

    def _replayed(self) -> State:
        state, files = State(), Files()
        for payload in self.journal:
            for record in r.decode_group(payload):
                for write in apply(state, record).writes:
                    files.write(write)
        assert files.content == self.files.content
        return state


def _machine(data: bytes, tally: Tally) -> None:
    draw, master = Draw(data), Master()
    master.ask(CLIENT, b.submit(JOBS[0], parallelism=draw.below(3), retries=1))
    for _ in range(STEPS_MAX):
        if draw.is_empty:
            break
        tally.frames += 1
        _step(draw, master)
    master.check()


def _step(draw: Draw, master: Master) -> None:
    session = draw.pick(WORKERS)
    match draw.below(16):
        case 0:
            master.run += (seconds := draw.pick((0.5, 3.0, 6.0, 25.0)))
            master.wall += seconds
            master.ask(0, OnTick())
        case 1:
            master.ask(draw.pick((CLIENT, *WORKERS)), OnClosed())
        case 2:
            _say(master, CLIENT, draw.struct(draw.pick(CALLS)), FROM_CLIENT)
        case 3 | 4:
            # Whatever, about whatever.
            _say(master, session, draw.struct(draw.pick(SAID)), FROM_WORKER)
        case _:
            if session not in master.machine.state.sessions:
                message = draw.struct(m.Register)
            else:
                message = _fitting(draw, master, session)
            _say(master, session, message, FROM_WORKER)


def _fitting(draw: Draw, master: Master, session: int) -> m.Message:
    """Return a message about a process of this session's worker, if it has one."""
    state = master.machine.state
    numbers = sorted(state.workers[state.sessions[session]].processes)
    kind = draw.pick(USUAL)
    message: m.Message = draw.struct(kind)
    if not numbers or not hasattr(message, "process"):
        return message
    process = state.processes[draw.pick(numbers)]
    if process.opened is None and draw.below(4):
        message = draw.struct(m.Opened)
    leases = master.leases.get(process.number, [])
    if isinstance(message, m.Commits):
        commits = tuple(
            _commit(draw, process, leases) for _ in range(1 + draw.below(2))
        )
        message = msgspec.structs.replace(message, commits=commits)
    if isinstance(message, m.Release) and leases:
        message = msgspec.structs.replace(message, requests=(draw.pick(leases),))
    return msgspec.structs.replace(message, job=process.job, process=process.number)


def _commit(draw: Draw, process: Process, leases: list[int]) -> m.Commit:
    commit: m.Commit = draw.struct(m.Commit)
    if not draw.below(8):
        return commit
    if leases and draw.below(2):
        request = draw.pick(leases)
        return msgspec.structs.replace(commit, request=request, unit=0, kind="page")
    unit = process.units + draw.pick((1, 1, 1, 0, 2))
    kind = draw.pick(UNITS) if commit.kind == "page" else commit.kind
    return msgspec.structs.replace(commit, request=0, unit=unit, kind=kind)


def _say(master: Master, session: int, message: Any, decoder: Decoder[Any]) -> None:
    """Say what a decoder lets through, as it lets it through."""
    try:
        decoded = decoder.decode(encode(message))
    except (RemoteProtocolError, UnicodeEncodeError):
        return
    master.machine.heard(session, master.now())
    master.ask(session, decoded)


def _seeds() -> list[bytes]:
    random = Random(1)
    return [random.randbytes(200 + 100 * number) for number in range(16)]


MACHINE = Target(run=_machine, seeds=_seeds, bytes_max=4096)
