"""A machine driven as the committer drives it, with what it publishes kept."""

from typing import Any

from hypothesis.stateful import (
    RuleBasedStateMachine,
)

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decision import Decision, Policy
from dscrapy.control.machine import Machine
from dscrapy.control.projections import items_name, requests_name
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Spans
from dscrapy.frontier.frontier import Granted
from dscrapy.model import JobSpec
from tests import builders as b
from tests.doubles.watched import WatchedMachine
from tests.property.actors import (
    Crawl,
    Files,
    Peer,
)

SPANS = Spans(heartbeat_s=2.0, die_after_s=20.0, reconnect_grace_s=5.0)
NAMES = ("w0", "w1", "w2")
SLOTS = (1, 2, 3)
# Looking at the whole state takes longer than deciding.
WATCHED_ONE_IN = 8


class DrivenMachine(RuleBasedStateMachine):
    """Drives a ``Machine`` as the committer does, one group at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.run = 0.0
        self.wall = 1_000_000.0
        self.journal: list[bytes] = []
        self.files = Files()
        self.peers = {
            name: Peer(name, slots) for name, slots in zip(NAMES, SLOTS, strict=True)
        }
        self.next_session = 1
        self.submitted: dict[str, JobSpec] = {}
        # Items of published commits in their order, and of those acknowledged.
        self.published: dict[str, list[bytes]] = {}
        self.acknowledged: dict[str, set[bytes]] = {}
        self.highest: dict[str, int] = {}
        self.removed: set[str] = set()
        self.machine = self.new_machine(State())

    def new_machine(self, state: State) -> Machine:
        """Return a machine on ``state``."""
        policy = Policy(spans=SPANS, start_deaths_max=3)
        return WatchedMachine(state=state, policy=policy, one_in=WATCHED_ONE_IN)

    def now(self) -> Now:
        """Return this instant."""
        return Now(run=self.run, wall=self.wall)

    # ---- the machine, driven ------------------------------------------------------

    def commit(
        self, decision: Decision, *, crashes: bool = False
    ) -> list[tuple[int, m.Message]]:
        """Carry out, journal and answer one group; a master that crashes does the
        first alone."""
        facts: list[r.Record] = []
        sends: list[tuple[int, m.Message]] = []
        grants: list[tuple[int, Process, Granted]] = []
        writes = []
        closes: list[int] = []
        machine = self.machine
        for one in (machine.carry_out(decision), *machine.settle(self.now())):
            for bug in one.bugs:
                raise bug.error
            facts += [fact for fact in one.records if isinstance(fact, r.Record)]
            writes += one.effects.writes
            sends += one.sends
            grants += one.grants
            closes += one.closes
        if crashes:
            return []
        for write in writes:
            self.files.write(write)
        if facts:
            self.journal.append(r.encode_group(facts))
            for fact in facts:
                self.note(fact)
        for session, message in sends:
            self.deliver(session, message)
        for session, process, granted in grants:
            self.deliver(session, (process, granted))
        for session in closes:
            self.closed(session)
        return sends

    def note(self, fact: r.Record) -> None:
        """Keep what is published."""
        match fact:
            case r.Published():
                lines = self.published.setdefault(fact.job, [])
                content = self.files.content.get(items_name(fact.job), b"")
                lines[:] = content.splitlines()
            case r.JobRemoved():
                self.removed.add(fact.job)
                self.published.pop(fact.job, None)
                self.acknowledged.pop(fact.job, None)
            case r.JobAgain(fresh=True):
                self.published[fact.job] = []
                self.acknowledged[fact.job] = set()

    def closed(self, session: int) -> None:
        """The master ended a session."""
        for peer in self.peers.values():
            if peer.session == session:
                peer.session = None

    def deliver(
        self, session: int, message: m.Message | tuple[Process, Granted]
    ) -> None:
        """A message reaches the worker of this session, if it still does."""
        found = [one for one in self.peers.values() if one.session == session]
        if not found:
            return
        (peer,) = found
        if peer.cut_after == 0:
            # The master finds out later.
            return
        if peer.cut_after is not None:
            peer.cut_after -= 1
        if isinstance(message, tuple):
            self.deliver_grant(peer, *message)
        elif isinstance(message, m.Start):
            assert len(peer.crawls) < peer.slots
            # Small ones, so that others find work, too.
            window = 1 + message.process % 2
            peer.crawls[message.process] = Crawl(message, window)
        elif isinstance(message, m.Registered):
            for process in message.drop:
                peer.zombies.append(peer.crawls.pop(process))
        elif isinstance(message, m.EndedSeen | m.HeartbeatSeen | m.Refused):
            return
        else:
            number = getattr(message, "process", 0)
            every = [*peer.crawls.values(), *peer.zombies]
            for crawl in every:
                if crawl.number == number:
                    self.acknowledge(crawl, message)
                    crawl.hear(message)

    def deliver_grant(self, peer: Peer, process: Process, granted: Granted) -> None:
        """Leases reach their process, with bodies read from the file."""
        content = self.files.content[requests_name(process.job)]
        bodies = [content[at : at + length] for at, length in granted.places]
        crawl = peer.crawls[process.number]
        frontier = self.machine.state.crawls[process.job].frontier
        suspects = [n for n in granted.requests if frontier.is_suspect(n)]
        if suspects:
            # Those that may be bad share their process with nothing.
            assert (len(granted.requests), crawl.held) == (len(suspects), {})
        assert not set(granted.requests) & set(frontier.poisoned)
        keys = [b.number_of(body) for body in bodies]
        crawl.take(granted.requests, keys, granted.again)

    def acknowledge(self, crawl: Crawl, message: m.Message) -> None:
        """Keep the items of what the master says to be published."""
        if not isinstance(message, m.CommitsSeen):
            return
        for seen in message.seen:
            if seen.result == "published":
                lines = self.acknowledged.setdefault(message.job, set())
                if seen.request in crawl.held:
                    lines.add(b'{"k":%d}' % crawl.held[seen.request])
                lines.update(
                    bytes(item)
                    for one in crawl.unacked
                    if (one.request, one.unit) == (seen.request, seen.unit)
                    for item in one.items
                )

    def ask(self, session: int, command: Any) -> list[tuple[int, m.Message]]:
        """Let the master decide a command of this session."""
        return self.commit(self.machine.decide(session, command, self.now()))
