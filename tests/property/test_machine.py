"""The frontier against a naive model: any order of commands, crashes of the master."""

from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dscrapy import messages as m
from dscrapy.frontier import records as r
from dscrapy.frontier.clock import Now
from dscrapy.frontier.decision import Decision, OnClosed, OnTick
from dscrapy.frontier.derive import Append, Discard, Move, items_name, writes_of
from dscrapy.frontier.jobs import Course
from dscrapy.frontier.machine import Machine
from dscrapy.frontier.state import State
from dscrapy.frontier.workers import Spans
from dscrapy.model import FINAL_STATES, JobSpec, Outcome, Submission, Versions

SPANS = Spans(heartbeat_s=2.0, die_after_s=20.0, reconnect_grace_s=5.0)
VERSIONS = Versions(dscrapy="1", scrapy="2", python="3")
NAMES = ("w0", "w1", "w2")


class Files:
    """Derived files as bytes; writes at a wrong place are errors."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def write(self, write: Any) -> None:
        """Do a write as the master's files do."""
        match write:
            case Append():
                old = self.content.get(write.name, b"")
                assert len(old) >= write.at
                self.content[write.name] = old[: write.at] + write.data
            case Move():
                old = self.content.get(write.name, b"")
                data = self.content[write.spool][: write.count]
                assert len(old) >= write.at
                assert len(data) == write.count
                self.content[write.name] = old[: write.at] + data
            case Discard():
                # The real ones stay until the next snapshot, too.
                pass


class Peer:
    """A worker as the model knows it: what it holds and has not had answered."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.instance = 0
        self.session: int | None = None
        self.starts: dict[int, m.Start] = {}
        # Given up by the master, but still at work: what they commit comes too late.
        self.zombies: dict[int, m.Start] = {}
        self.held: set[int] = set()
        self.sent: dict[int, list[m.Commit]] = {}

    def forget(self) -> None:
        """Restart: nothing is held any more."""
        self.instance += 1
        self.session = None
        self.starts.clear()
        self.zombies.clear()
        self.held.clear()


class MachineModel(RuleBasedStateMachine):
    """Drives a ``Machine`` as the committer does, and its workers as they behave."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.run = 0.0
        self.wall = 1_000_000.0
        self.journal: list[bytes] = []
        self.files = Files()
        self.peers = {name: Peer(name, slots) for name, slots in zip(NAMES, (1, 2, 3))}  # noqa: B905 - three each
        self.next_session = 1
        self.submitted: dict[str, JobSpec] = {}
        # What the first whole commit of each run held: job -> lines.
        self.published: dict[str, list[bytes]] = {}
        # Requests of runs that another run has replaced: job -> the latest of them.
        self.given_up: dict[str, int] = {}
        self.machine = self.new_machine(State())

    def new_machine(self, state: State) -> Machine:
        """Return a machine on ``state``."""
        return Machine(state=state, spans=SPANS, start_deaths_max=3)

    @initialize(workers=st.integers(0, 3), jobs=st.integers(0, 3))
    def begin(self, workers: int, jobs: int) -> None:
        """The first start, with some workers and jobs at once."""
        self.commit([self.machine.begin(self.now())])
        for name in NAMES[:workers]:
            self.connect(name)
        for number in range(jobs):
            self.submit(number, 0, 1, False)

    def now(self) -> Now:
        """Return this instant."""
        return Now(run=self.run, wall=self.wall)

    # ---- the committer, naively ---------------------------------------------------

    def commit(self, decisions: list[Decision]) -> list[tuple[int, m.Message]]:
        """Apply, journal and answer one group; then assign what can be."""
        facts: list[r.Record] = []
        sends: list[tuple[int, m.Message]] = []

        def carry_out(decision: Decision) -> None:
            for record in decision.records:
                for write in writes_of(self.machine.state, record):
                    self.files.write(write)
                self.machine.state.apply(record)
                if isinstance(record, r.Record):
                    facts.append(record)
                if isinstance(record, r.JobAgain):
                    job = self.machine.state.jobs[record.job]
                    latest = self.given_up.get(job.id, 0) + 1
                    self.given_up[job.id] = latest
                    assert job.begin().request == latest + 1
                if isinstance(record, r.Published):
                    self.check_published(record)
            self.machine.complete(decision)
            sends.extend(decision.sends)
            for session in decision.closes:
                self.closed(session)

        for decision in decisions:
            carry_out(decision)
        while True:
            best = self.best_ready()
            assignment = self.machine.assign(self.now())
            if assignment is None:
                break
            (started,) = assignment.records
            assert isinstance(started, r.ProcessStarted)
            assert best is not None
            chosen = self.machine.state.jobs[started.job]
            assert (-chosen.priority, chosen.number) == best
            carry_out(assignment)
        if facts:
            self.journal.append(r.encode_group(facts))
        for session, message in sends:
            self.deliver(session, message)
        return sends

    def best_ready(self) -> tuple[int, int] | None:
        """Return the order of the job that must be next, by looking at them all."""
        free = [
            worker
            for worker in self.machine.state.workers.values()
            if worker.session is not None
            and not worker.draining
            and len(worker.processes) < worker.slots
        ]
        orders = [
            (-job.priority, job.number)
            for job in self.machine.state.jobs.values()
            if job.is_assignable
            and any(job.id not in worker.differs for worker in free)
        ]
        return min(orders, default=None)

    def closed(self, session: int) -> None:
        """The master ended a session."""
        for peer in self.peers.values():
            if peer.session == session:
                peer.session = None

    def deliver(self, session: int, message: m.Message) -> None:
        """A message reaches the worker of this session."""
        peer = next(
            (one for one in self.peers.values() if one.session == session), None
        )
        if peer is None:
            return
        if isinstance(message, m.Start):
            assert len(peer.starts) < peer.slots
            peer.starts[message.process] = message
            peer.sent[message.process] = []
        elif isinstance(message, m.Registered):
            for process in message.drop:
                peer.zombies[process] = peer.starts.pop(process)
        elif isinstance(message, m.Hold):
            (peer.held.add if message.on else peer.held.discard)(message.process)

    def ask(self, session: int, command: Any) -> list[tuple[int, m.Message]]:
        """Let the master decide a command of this session."""
        return self.commit([self.machine.decide(session, command, self.now())])

    # ---- clients --------------------------------------------------------------------

    @rule(
        target=jobs,
        number=st.integers(0, 2**64 - 1),
        priority=st.integers(-2, 2),
        retries=st.integers(0, 2),
        twice=st.booleans(),
    )
    def submit(self, number: int, priority: int, retries: int, twice: bool) -> str:
        """Submit a job, perhaps twice under its id: it is one job."""
        identity = f"{number:016x}"
        spec = JobSpec(project="p", spider="s", priority=priority, retries=retries)
        spec = self.submitted.setdefault(identity, spec)
        submission = Submission(id=identity, spec=spec)
        for _ in range(2 if twice else 1):
            before = len(self.machine.state.jobs)
            known = identity in self.machine.state.jobs
            submit = m.Submit(call=1, part=0, last=True, submissions=(submission,))
            self.ask(0, submit)
            assert len(self.machine.state.jobs) == before + (not known)
        return identity

    @rule(
        job=jobs,
        verb=st.sampled_from(["cancel", "pause", "resume", "retry"]),
        fresh=st.booleans(),
    )
    def change(self, job: str, verb: Any, fresh: bool) -> None:
        """Change a job's life; what cannot be is refused and changes nothing."""
        had_items = self.files.content.get(items_name(job), b"")
        (answer,) = [
            message
            for session, message in self.ask(
                0, m.ChangeJob(call=1, verb=verb, job=job, fresh=fresh)
            )
            if session == 0
        ]
        if isinstance(answer, m.Shown) and verb == "retry":
            assert fresh or not had_items
            self.published.pop(job, None)

    # ---- workers --------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def connect(self, name: str) -> None:
        """A worker that has no session dials and registers."""
        peer = self.peers[name]
        if peer.session is not None:
            return
        peer.session = self.next_session
        self.next_session += 1
        held = tuple(
            m.Held(job=start.job, process=number)
            for number, start in peer.starts.items()
        )
        register = m.Register(
            name=name,
            instance=str(peer.instance),
            host="h",
            port=1,
            slots=peer.slots,
            draining=False,
            versions=VERSIONS,
            held=held,
        )
        session = peer.session
        answers = self.ask(session, register)
        kinds = [type(one) for to, one in answers if to == session]
        if m.Registered not in kinds:
            assert kinds == [m.Refused]
            peer.session = None

    @rule(name=st.sampled_from(NAMES), restart=st.booleans())
    def disconnect(self, name: str, restart: bool) -> None:
        """A worker's connection breaks, or the worker was killed."""
        peer = self.peers[name]
        session, peer.session = peer.session, None
        if restart:
            peer.forget()
        if session is not None:
            self.ask(session, OnClosed())

    def running(self) -> list[tuple[Peer, int]]:
        """Return the processes that connected workers hold."""
        return [
            (peer, number)
            for peer in self.peers.values()
            if peer.session is not None
            for number in peer.starts
        ]

    def committing(self) -> list[tuple[Peer, m.Start]]:
        """Return what connected workers may commit for, zombies too."""
        return [
            (peer, start)
            for peer in self.peers.values()
            if peer.session is not None
            for start in (*peer.starts.values(), *peer.zombies.values())
        ]

    @precondition(lambda self: self.committing())
    @rule(
        data=st.data(),
        items=st.lists(st.integers(0, 9), max_size=3),
        last=st.sampled_from([False, False, True]),
        failure=st.sampled_from(["", "", "start_error", "unknown_spider"]),
        again=st.booleans(),
    )
    def work(
        self, data: Any, items: list[int], last: bool, failure: str, again: bool
    ) -> None:
        """A process commits its next part, perhaps twice."""
        choice = data.draw(st.integers(0, len(self.committing()) - 1))
        peer, start = self.committing()[choice]
        number, sent = start.process, peer.sent[start.process]
        if sent and sent[-1].last:
            commit = sent[-1]
        else:
            commit = m.Commit(
                job=start.job,
                process=number,
                request=start.request,
                part=len(sent),
                last=last,
                items=tuple(
                    msgspec.Raw(b'{"p":%d,"i":%d}' % (number, item)) for item in items
                ),
                outcome=Outcome(finish_reason="finished", failure=failure)
                if last
                else None,
            )
            sent.append(commit)
        assert peer.session is not None
        session = peer.session
        is_live = number in peer.starts
        job = self.machine.state.jobs[start.job]
        runs = job.status == "running" and job.begin().request == start.request
        may_retry = job.retries_left > 0
        results = []
        for _ in range(2 if again else 1):
            answers = self.ask(session, commit)
            results += [
                one.result
                for to, one in answers
                if to == session and isinstance(one, m.CommitSeen)
            ]
        if is_live and runs and not commit.last:
            assert set(results) == {"stored"}
        if is_live and runs and commit.last and not may_retry:
            assert set(results) == {"published"}
        if start.request <= self.given_up.get(start.job, 0):
            # A run that failed, or was started afresh, is over for good.
            assert set(results) == {"settled"}
        if not is_live and commit.part > 0:
            assert set(results) == {"settled"}

    @precondition(lambda self: self.running())
    @rule(
        data=st.data(), how=st.sampled_from(["exited", "other_code"]), own=st.booleans()
    )
    def end(self, data: Any, how: Any, own: bool) -> None:
        """A process ends, by its own doing or not."""
        peer, number = data.draw(st.sampled_from(self.running()))
        start = peer.starts.pop(number)
        assert peer.session is not None
        ended = m.Ended(job=start.job, process=number, how=how, counted=own)
        self.ask(peer.session, ended)

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 25.0]), heard=st.booleans())
    def pass_time(self, seconds: float, heard: bool) -> None:
        """Time passes; connected workers were heard, or not."""
        self.run += seconds
        self.wall += seconds
        if heard:
            for peer in self.peers.values():
                if peer.session is not None:
                    self.machine.heard(peer.session, self.now())
        self.ask(0, OnTick())

    @rule(snapshot=st.booleans())
    def restart_master(self, snapshot: bool) -> None:
        """The master is killed; its journal, or a snapshot, gives the same state."""
        state = self.replayed()
        assert durable(state) == durable(self.machine.state)
        if snapshot:
            encoded = self.machine.state.encode_snapshot()
            state = State.decode_snapshot(encoded)
            assert durable(state) == durable(self.machine.state)
        for peer in self.peers.values():
            peer.session = None
        self.machine = self.new_machine(state)
        self.run = 0.0
        self.commit([self.machine.begin(self.now())])

    def replayed(self) -> State:
        """Return the state that the journal gives, and check the derived files."""
        state, files = State(), Files()
        for payload in self.journal:
            for record in r.decode_group(payload):
                for write in writes_of(state, record):
                    files.write(write)
                state.apply(record)
        for name, content in files.content.items():
            assert self.files.content[name] == content
        return state

    # ---- what must always hold

    def check_published(self, record: r.Published) -> None:
        """A run is published once, with the items of one process alone."""
        assert record.job not in self.published
        content = self.files.content.get(items_name(record.job), b"")
        lines = content.splitlines()
        sent = [
            bytes(item)
            for peer in self.peers.values()
            for commit in peer.sent.get(record.process, [])
            for item in commit.items
        ]
        assert lines == sent
        self.published[record.job] = lines

    @invariant()
    def no_acknowledged_job_is_lost(self) -> None:
        """Every submitted job is there, with what was asked for."""
        for identity, spec in self.submitted.items():
            job = self.machine.state.jobs[identity]
            assert msgspec.json.decode(job.spec, type=JobSpec) == spec

    @invariant()
    def a_job_has_one_process_and_a_worker_no_more_than_its_slots(self) -> None:
        """Never two live leases of one request, never over a slot."""
        state = self.machine.state
        jobs = [process.job for process in state.processes.values()]
        assert len(jobs) == len(set(jobs))
        for worker in state.workers.values():
            assert worker.instance == "" or len(worker.processes) <= worker.slots
            for number in worker.processes:
                assert state.processes[number].worker == worker.name

    @invariant()
    def indexes_agree_with_the_jobs(self) -> None:
        """Counts, and running jobs having a process."""
        state = self.machine.state
        for name in {*state.counts, "ready", "running"}:
            count = sum(job.state == name for job in state.jobs.values())
            assert state.counts[name] == count
        for job in state.jobs.values():
            assert (job.status == "running") <= job.has_process

    @invariant()
    def derived_files_are_as_long_as_the_state_says(self) -> None:
        """A restart cuts files to these lengths."""
        for job in self.machine.state.jobs.values():
            content = self.files.content.get(items_name(job.id), b"")
            course = job.course or Course()
            assert course.items_bytes == len(content)
            assert course.items == content.count(b"\n")

    @invariant()
    def processes_of_paused_jobs_are_held(self) -> None:
        """Whoever is connected knows which of its jobs are paused."""
        for peer in self.peers.values():
            if peer.session is None:
                continue
            for number, start in peer.starts.items():
                job = self.machine.state.jobs[start.job]
                if job.status == "running" and not job.begin().cancelling:
                    assert (number in peer.held) == job.paused

    @invariant()
    def nothing_waits_while_a_worker_is_free(self) -> None:
        """What can be assigned is assigned."""
        assert self.best_ready() is None

    def teardown(self) -> None:
        """Faults stop: every job that is not paused comes to its end."""
        if not self.journal:
            return
        for _ in range(2 * len(self.submitted) * 4 + 8):
            self.pass_time(6.0, True)
            for name in NAMES:
                self.connect(name)
            for peer, number in self.running():
                start = peer.starts[number]
                sent = peer.sent[number]
                assert peer.session is not None
                commit = m.Commit(
                    job=start.job,
                    process=number,
                    request=start.request,
                    part=len(sent),
                    last=True,
                    outcome=Outcome(finish_reason="finished"),
                )
                if not sent or not sent[-1].last:
                    sent.append(commit)
                self.ask(peer.session, sent[-1])
                peer.starts.pop(number)
                ended = m.Ended(job=start.job, process=number, how="exited")
                self.ask(peer.session, ended)
        for job in self.machine.state.jobs.values():
            differing = all(
                job.id in self.machine.state.workers[name].differs for name in NAMES
            )
            assert job.status in FINAL_STATES or job.paused or differing, job


def durable(state: State) -> tuple[Any, ...]:
    """Return what must survive a restart."""
    return (
        state.epoch,
        state.next_process,
        state.jobs,
        state.processes,
        state.schedules,
        {name: count for name, count in state.counts.items() if count},
    )


MachineModel.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None
)
TestMachine = MachineModel.TestCase
