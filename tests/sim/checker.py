"""What must hold at each step, whatever fails; looked at where the master speaks.

The checker stands between the master and its sessions: what leaves is compared with the
ledger of what is durable, and a lease with what every crawl process of the simulation
really has in hand. The first rule that is broken ends the run.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decision import Command, Decision
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Worker
from dscrapy.master.session import Sessions
from tests.doubles.watched import WatchedMachine
from tests.sim.crawl import CONCURRENCY, SimCrawl
from tests.sim.ledger import Ledger

if TYPE_CHECKING:
    from tests.doubles.wire import Way

# The run clock is beaten this often, and counts so much of a gap at most.
BEAT_S = 0.5
GAP_S = 1.0


@attrs.frozen
class Violation:
    """A rule that was broken, when, and how."""

    rule: str
    detail: str
    at: float

    def __str__(self) -> str:
        return f"at {self.at:.3f} s: {self.rule}: {self.detail}"


@attrs.define(eq=False, kw_only=True)
class Trace:
    """What has happened, in order; its lines are made only when they are read."""

    entries: list[tuple[object, ...]] = attrs.field(factory=list)

    def note(self, *what: object) -> None:
        """Add an entry."""
        self.entries.append((round(trio.current_time(), 6), *what))

    def lines(self, count: int | None = None) -> list[str]:
        """Return the last ones for people."""
        last = self.entries if count is None else deque(self.entries, count)
        return [f"{at:10.3f}  {' '.join(map(str, what))}" for at, *what in last]


# Two deaths make a suspect, two more alone are proof.
PROOF = 4


@attrs.define(eq=False, kw_only=True)
class RunTime:
    """Time in which the master ran, by the simulation's own account."""

    gaps: list[tuple[float, float]] = attrs.field(factory=list)

    def add_gap(self, begin: float, end: float) -> None:
        """The master did not run, or its clock leapt."""
        self.gaps.append((begin, end))

    def since(self, instant: float, now: float) -> tuple[float, int]:
        """Return for how long it ran since then, and how many gaps there were."""
        gaps = [(a, b) for a, b in self.gaps if b > instant]
        away = sum(b - max(a, instant) for a, b in gaps)
        return now - instant - away, len(gaps)


@attrs.define(eq=False, kw_only=True)
class Checker:
    """See the module. ``stop`` ends the run; ``counts`` what has happened."""

    trace: Trace
    counts: Counter[str]
    stop: Callable[[], None]
    ledger: Ledger = attrs.field(init=False)
    run_time: RunTime = attrs.field(factory=RunTime)
    crawls: dict[int, SimCrawl] = attrs.field(factory=dict)
    violation: Violation | None = None
    # The master that runs: its state, since when, the way from each worker's instance.
    machine: Machine | None = None
    master_at: float = 0.0
    ways: dict[str, "Way"] = attrs.field(factory=dict)
    way_of: dict[int, "Way"] = attrs.field(factory=dict)
    granted_to: dict[tuple[str, int], int] = attrs.field(factory=dict)
    # Deaths that count in which a request was under way: of a job, its number.
    blamed: Counter[tuple[str, int]] = attrs.field(factory=Counter)
    # Deaths of each job's processes that count.
    counted: Counter[str] = attrs.field(factory=Counter)
    epoch: int = 0
    starts: int = 0

    def live(self) -> State | None:
        """Return the state of the master that runs, if one does."""
        return None if self.machine is None else self.machine.state

    def broken(self, rule: str, detail: str) -> None:
        """A rule does not hold."""
        if self.violation is None:
            self.violation = Violation(rule, detail, trio.current_time())
            self.trace.note("VIOLATION", rule, detail)
            self.stop()

    # ---- what leaves the master ----------------------------------------------------

    def leaves(self, session: int, message: m.Message) -> None:
        """Look at a message that is on its way to a peer."""
        shadow = self.ledger.shadow
        match message:
            case m.Grant():
                self._granted(message)
            case m.CommitsSeen():
                self._answered(message)
            case m.EndedSeen() if message.process in shadow.processes:
                text = f"process {message.process}"
                self.broken("an end was acknowledged and is not durable", text)
            case m.Start():
                self.trace.note("start", message.process, message.job)
                self.starts += 1
                if message.process not in shadow.processes:
                    text = f"process {message.process}"
                    self.broken("a process starts and that is not durable", text)
            case m.Registered():
                self._registered(session, message)
            case m.Stop() | m.Finish() | m.Lead() | m.Done():
                self.trace.note(type(message).__name__.lower(), message.process)
            case _:
                pass

    def _registered(self, session: int, message: m.Registered) -> None:
        assert self.machine is not None
        state = self.machine.state
        name = state.sessions.get(session)
        if name is None:
            # Replaced by a later registration of the same group.
            return
        instance = state.workers[name].instance
        self.counts["workers registered"] += 1
        self.trace.note("registered", instance, "drop", *message.drop)
        if instance in self.ways:
            self.way_of[session] = self.ways[instance]
        if message.epoch != self.epoch:
            text = f"{message.epoch} after {self.epoch}"
            self.broken("an epoch is not one more than the last", text)
        for number in message.drop:
            process = self.ledger.shadow.processes.get(number)
            if process is not None and process.worker == name:
                text = f"process {number} of {name}"
                self.broken("a process is dropped that was not given up", text)

    def _answered(self, message: m.CommitsSeen) -> None:
        job, process = message.job, message.process
        self.trace.note(
            "seen",
            job[-2:],
            process,
            *((s.request, s.unit, s.result) for s in message.seen),
        )
        for seen in message.seen:
            self.counts[f"parts {seen.result}"] += 1
            is_there = self.ledger.has(job, process, seen.request, seen.unit)
            key = f"r{seen.request}" if seen.request else f"u{seen.unit}"
            is_stored = is_there or (process, key, seen.part) in self.ledger.stored
            if seen.result == "published" and not is_there:
                self.broken("acknowledged and not durable", f"{job} {process} {key}")
            if seen.result in ("stored", "taken") and not is_stored:
                self.broken("a part is stored and not durable", f"{process} {key}")

    def _granted(self, message: m.Grant) -> None:
        job, process = message.job, message.process
        self.trace.note("grant", job[-2:], process, *message.requests)
        self.counts["leases"] += len(message.requests)
        crawl = self.ledger.shadow.crawls.get(job)
        for request in message.requests:
            self.granted_to[job, request] = process
            self._is_fit(message, request)
            if crawl is None or not crawl.frontier.is_open(request):
                self.broken(
                    "a request is leased that is not durable, or done",
                    f"{job} request {request} to {process}",
                )
        for other in self.crawls.values():
            if other.start.job != job or not other.is_alive:
                continue
            unstarted = other.unstarted()
            for request in message.requests:
                if request in unstarted or request in other.working:
                    self._has_two(request, process, other, request in unstarted)

    def _is_fit(self, message: m.Grant, request: int) -> None:
        """What may be poisoned goes out alone, what is poisoned not at all."""
        state = self.live()
        crawl = None if state is None else state.crawls.get(message.job)
        if crawl is None:
            return
        frontier, text = crawl.frontier, f"{message.job} request {request}"
        if request in frontier.poisoned:
            self.broken("a poisoned request is leased", text)
        if frontier.is_suspect(request) and (
            frontier.quarantine.isolator != message.process
        ):
            self.broken("a suspect has company", f"{text} to {message.process}")
        if frontier.quarantine.isolator == message.process:
            held = frontier._rights.processes[message.process].leases
            if not all(map(frontier.is_suspect, (request, *held))):
                self.broken("a suspect has company", f"{text} to {message.process}")
        job = state.jobs[message.job]  # type: ignore[union-attr]  # it is there
        leads = crawl.leader == message.process
        if frontier.is_suspect(request) and leads and not job.begin().start_done:
            self.broken("a suspect goes to who consumes start()", text)

    def _has_two(
        self, request: int, process: int, other: SimCrawl, is_unstarted: bool
    ) -> None:
        """A request goes to one process while another one has it in hand."""
        number = other.start.process
        text = f"request {request} to {process}, while {number} has it"
        if number in self.ledger.shadow.processes:
            self.broken("two live leases of one request", text)
        elif is_unstarted and other.has_right:
            self.broken("a lease goes on while its old holder may begin it", text)

    # ---- what crawl processes and workers do ---------------------------------------

    def begun(self, crawl: SimCrawl, request: int, host: str) -> None:
        """A process begins a request of a host."""
        job, number = crawl.start.job, crawl.start.process
        latest = self.granted_to.get((job, request))
        if latest != number:
            text = f"request {request} by {number}, leased to {latest}"
            self.broken("a request is begun whose lease went elsewhere", text)
        # Who may begin no request any more counts no more: it is given up.
        by_others = sum(
            one.downloads_at(host)
            for one in self.crawls.values()
            if one.start.job == job and one.has_right and one is not crawl
        )
        under_way = 1 + crawl.downloads_at(host) + by_others
        text = f"{under_way} at {host} of {job}, the last by {number}"
        if under_way > CONCURRENCY:
            self.broken("a host has more requests under way than it may", text)
        if by_others and crawl.site.delay_s > 0:
            self.broken("several processes ask a host that has a delay", text)

    def died(self, crawl: SimCrawl) -> None:
        """A process dies by its job's own doing."""
        self.counted[crawl.start.job] += 1
        for request in crawl.working:
            self.blamed[crawl.start.job, request] += 1

    def poisoned(self, record: r.RequestPoisoned) -> None:
        """The master sets a request aside."""
        self.counts["requests poisoned"] += 1
        deaths = self.blamed[record.job, record.request]
        if deaths < PROOF:
            text = f"{record.job} request {record.request}, {deaths} deaths"
            self.broken("a request is poisoned without proof", text)

    def ended(self, record: r.ProcessEnded) -> None:
        """The master takes a process for gone."""
        crawl = self.crawls.get(record.process)
        if record.counted and (
            crawl is None or not (crawl.death and crawl.death.counted)
        ):
            text = f"process {record.process}: {record.text}"
            self.broken("a death counts that was not the job's own doing", text)

    def reaps(self, worker: Worker, spans: tuple[float, float]) -> None:
        """The master gives a worker up; ``spans`` for open and lost connections."""
        now = trio.current_time()
        self.trace.note("reap", worker.name, worker.instance)
        self.counts["workers reaped"] += 1
        if worker.instance and worker.session is None:
            return
        instant = self.master_at
        if worker.session is not None:
            way = self.way_of.get(worker.session)
            if way is None or self.ways.get(worker.instance) is not way:
                # It dials again already; what it says there was not read yet.
                return
            instant = max(instant, way.arrived_at(now))
        silent_s, gaps = self.run_time.since(instant, now)
        # The master's clock counts a little of each gap.
        if silent_s + gaps * GAP_S + BEAT_S < spans[0]:
            text = f"{worker.name} after {silent_s:.1f} s of {spans[0]:g}"
            self.broken("a worker was reaped that was not silent", text)


class BookedSessions(Sessions):
    """The master's sessions, seen by the checker."""

    def __init__(self, checker: Checker, is_dead: Callable[[], bool]) -> None:
        super().__init__()
        self._checker = checker
        self._is_dead = is_dead

    def send(self, session: int, message: m.Message) -> None:
        if not self._is_dead():
            self._checker.leaves(session, message)
            super().send(session, message)


@attrs.define(kw_only=True)
class BookedMachine(WatchedMachine):
    """The master's decisions, seen by the checker where they give somebody up."""

    checker: Checker

    def decide(self, session: int, command: Command, now: Now) -> Decision:
        decision = super().decide(session, command, now)
        spans = self.policy.spans
        for record in decision.records:
            if isinstance(record, r.WorkerGone):
                worker = self.state.workers[record.name]
                if now.run >= spans.deadline(worker):
                    both = (spans.die_after_s, spans.reconnect_grace_s)
                    self.checker.reaps(worker, both)
        return decision
