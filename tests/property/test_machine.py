"""The frontier against a naive model: any order of commands, crashes of the master."""

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    initialize,
    invariant,
    precondition,
    rule,
)

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.apply import apply
from dscrapy.control.decision import OnClosed, OnTick
from dscrapy.control.projections import items_name
from dscrapy.control.state.jobs import Course
from dscrapy.control.state.state import State
from dscrapy.model import FINAL_STATES, JobSpec, Submission
from tests import builders as b
from tests.property.actors import (
    EXPECTED,
    IDLE_PAGE,
    Crawl,
    Files,
    Peer,
    expected_without,
)
from tests.property.machine_model import NAMES, DrivenMachine

# Steps that bring any job of this site to its end, with some to spare.
HEALING_ROUNDS = 200


class MachineModel(DrivenMachine):
    """Drives a ``Machine`` as the committer does, and its workers as they behave."""

    jobs = Bundle("jobs")

    @initialize(
        workers=st.integers(1, 3),
        jobs=st.integers(1, 2),
        rounds=st.integers(0, 12),
        bad=st.sampled_from([None, 0, 4, IDLE_PAGE]),
    )
    def begin(self, workers: int, jobs: int, rounds: int, bad: int | None) -> None:
        """The first start, with some workers and jobs, that get on for a while.

        The page ``bad`` kills its process each time.
        """
        self.bad = bad
        self.commit(self.machine.begin(self.now()))
        for name in NAMES[-workers:]:
            self.connect(name)
        for number in range(jobs):
            # As many processes as there are slots, and one.
            self.submit(number, 0, 1, number)
        for choice in range(rounds):
            for peer, crawl in self.crawling():
                self.let_go_on(peer, crawl, True, choice)

    # ---- clients --------------------------------------------------------------------

    @rule(
        target=jobs,
        number=st.integers(0, 2),
        priority=st.integers(-1, 1),
        retries=st.integers(0, 2),
        parallelism=st.integers(0, 3),
    )
    def submit(self, number: int, priority: int, retries: int, parallelism: int) -> str:
        """Submit a job, perhaps again under its id: it is one job."""
        identity = b.job_id(number)
        if identity in self.removed:
            # Ids are drawn, so nobody has one a second time.
            return identity
        spec = JobSpec(
            project="p",
            spider="s",
            priority=priority,
            retries=retries,
            parallelism=parallelism,
        )
        spec = self.submitted.setdefault(identity, spec)
        submission = Submission(id=identity, spec=spec)
        known = identity in self.machine.state.jobs
        before = len(self.machine.state.jobs)
        self.ask(0, b.submission(submission))
        assert len(self.machine.state.jobs) == before + (not known)
        return identity

    @rule(
        job=jobs,
        verb=st.sampled_from(["cancel", "pause", "resume", "retry", "parallelism"]),
        fresh=st.booleans(),
        count=st.integers(0, 3),
    )
    def change(self, job: str, verb: Any, fresh: bool, count: int) -> None:
        """Change a job's life; what cannot be is refused and changes nothing."""
        call = m.ChangeJob(call=1, verb=verb, job=job, fresh=fresh, count=count)
        had = list(self.published.get(job, []))
        answers = [one for to, one in self.ask(0, call) if to == 0]
        assert len([one for one in answers if one.call == 1]) == 1  # type: ignore[attr-defined]  # answers have a call
        if not fresh:
            assert self.published.get(job, []) == had

    @rule(job=jobs)
    def remove(self, job: str) -> None:
        """Remove a job: at once, when its processes are gone, or not at all."""
        state = self.machine.state
        known = state.jobs.get(job)
        answers = [one for to, one in self.ask(0, m.Remove(call=1, job=job)) if to == 0]
        if known is None or not known.is_final:
            assert [type(one) for one in answers] == [m.Refused]
        elif known.has_processes:
            assert answers == []
        else:
            assert answers == [m.Accepted(call=1, count=1)]
            assert job not in state.jobs

    # ---- workers --------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def connect(self, name: str) -> None:
        """A worker that has no session dials, registers and offers again what was not
        answered."""
        peer = self.peers[name]
        if peer.session is not None:
            return
        peer.session, peer.cut_after = self.next_session, None
        self.next_session += 1
        session = peer.session
        answers = self.ask(session, peer.register())
        kinds = [type(one) for to, one in answers if to == session]
        if m.Registered not in kinds:
            assert kinds == [m.Refused]
            peer.session = None
            return
        for crawl in [*peer.crawls.values(), *peer.zombies]:
            self.offer(peer, crawl, *crawl.unacked)

    @rule(name=st.sampled_from(NAMES), restart=st.booleans())
    def disconnect(self, name: str, restart: bool) -> None:
        """A worker's connection breaks, or the worker was killed."""
        peer = self.peers[name]
        session, peer.session = peer.session, None
        if restart:
            peer.forget()
        if session is not None:
            self.ask(session, OnClosed())

    @rule(name=st.sampled_from(NAMES), count=st.integers(0, 4))
    def weaken(self, name: str, count: int) -> None:
        """After so many more messages nothing reaches the worker any more."""
        self.peers[name].cut_after = count

    def offer(self, peer: Peer, crawl: Crawl, *commits: m.Commit) -> None:
        """Send commits of a process."""
        if peer.session is not None and commits:
            job, number = crawl.start.job, crawl.number
            said = b.commits(number, *commits, job=job)
            self.ask(peer.session, said)

    # ---- crawl processes -------------------------------------------------------------

    def crawling(self) -> list[tuple[Peer, Crawl]]:
        """Return the processes there are; also of workers that are cut off."""
        return [
            (peer, crawl)
            for peer in self.peers.values()
            for crawl in [*peer.crawls.values(), *peer.zombies]
        ]

    @precondition(lambda self: self.crawling())
    @rule(
        which=st.integers(0, 100),
        last=st.booleans(),
        choice=st.integers(0, 100),
        twice=st.booleans(),
        count=st.integers(1, 8),
    )
    def step(
        self, which: int, last: bool, choice: int, twice: bool, count: int
    ) -> None:
        """A process does the next things that it can; each commit may go out twice."""
        every = self.crawling()
        peer, crawl = every[which % len(every)]
        for number in range(count):
            if crawl in [*peer.crawls.values(), *peer.zombies]:
                self.let_go_on(peer, crawl, last, choice + number, twice=twice)

    def let_go_on(
        self, peer: Peer, crawl: Crawl, last: bool, choice: int, *, twice: bool = False
    ) -> None:
        """Open, commit a page or part of one, an element of ``start()``, close, end."""
        job, number = crawl.start.job, crawl.number
        if not crawl.is_open:
            crawl.is_open = True
            self.say(peer, crawl.opened())
            return
        if crawl.may_end:
            self.end(peer, crawl, counted=False)
            return
        if crawl.has_closed:
            return
        free = [one for one in crawl.held if not crawl.is_under_way(one)]
        if crawl.is_stopped and not crawl.closing:
            self.close(peer, crawl, crawl.stop_reason)
            return
        if crawl.is_stopped:
            unstarted = tuple(
                one
                for one in free
                if one not in crawl.parts and one not in crawl.downloaded
            )
            if unstarted:
                for one in unstarted:
                    crawl.forget(one)
                self.say(peer, m.Release(job=job, process=number, requests=unstarted))
                return
        commit: m.Commit | str | None = None
        if choice % 3 == 0 and not crawl.is_stopped:
            commit = crawl.next_of_start()
        if commit is None and free:
            request = free[choice % len(free)]
            if crawl.held[request] == self.bad:
                others = [one for one in free if one != request]
                self.end(peer, crawl, counted=True, under_way=(request, *others[:1]))
                return
            commit = crawl.page(request, last=last)
        if commit is None and not crawl.is_stopped:
            commit = crawl.next_of_start() or crawl.next_of_finish()
        if isinstance(commit, m.Commit):
            self.offer(peer, crawl, *([commit, commit] if twice else [commit]))
        elif commit is not None:
            self.close(peer, crawl, commit)
            self.leave(peer, crawl)
        elif crawl.is_stopped and not crawl.unacked:
            self.leave(peer, crawl)

    @precondition(lambda self: self.crawling())
    @rule(which=st.integers(0, 100), count=st.integers(1, 2))
    def download(self, which: int, count: int) -> None:
        """Pages are past their download, and wait."""
        every = self.crawling()
        peer, crawl = every[which % len(every)]
        fresh = [one for one in crawl.held if one not in crawl.downloaded][:count]
        crawl.downloaded.update(fresh)
        ids: Any = {"job": crawl.start.job, "process": crawl.number}
        self.say(peer, m.Progress(**ids, downloaded=tuple(fresh)))

    def leave(self, peer: Peer, crawl: Crawl) -> None:
        """Say what comes last, unless that has to wait for an order."""
        last = crawl.last_of_all()
        if last is not None:
            self.offer(peer, crawl, last)

    def close(self, peer: Peer, crawl: Crawl, reason: str) -> None:
        """The spider closes: that is said at once, before anything is given back."""
        crawl.closing = reason
        crawl.is_stopped = True
        self.say(
            peer, m.Closing(job=crawl.start.job, process=crawl.number, reason=reason)
        )

    def say(self, peer: Peer, message: m.Message) -> None:
        """Send what is not repeated when it is lost."""
        if peer.session is not None:
            self.ask(peer.session, message)

    @precondition(lambda self: self.crawling())
    @rule(which=st.integers(0, 100), counted=st.booleans(), count=st.integers(0, 2))
    def die(self, which: int, counted: bool, count: int) -> None:
        """A process is killed, with all that it had not sent, or dies by itself with so
        many requests under way."""
        every = self.crawling()
        peer, crawl = every[which % len(every)]
        free = [one for one in crawl.held if not crawl.is_under_way(one)]
        self.end(peer, crawl, counted=counted, under_way=tuple(free[:count]))

    def end(
        self,
        peer: Peer,
        crawl: Crawl,
        *,
        counted: bool,
        under_way: tuple[int, ...] = (),
    ) -> None:
        """A process is gone; its worker says so if it can."""
        if crawl in peer.zombies:
            peer.zombies.remove(crawl)
        else:
            del peer.crawls[crawl.number]
        free = [one for one in crawl.held if not crawl.is_under_way(one)]
        ended = b.ended(
            crawl.number,
            crawl.start.job,
            counted=counted,
            under_way=tuple(m.UnderWay(request=one, url="u") for one in under_way),
            alone=len(free) == 1,
        )
        self.say(peer, ended)

    # ---- time and the master ---------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 25.0]), heard=st.booleans())
    def pass_time(self, seconds: float, heard: bool) -> None:
        """Time passes; connected workers were heard, or not."""
        self.run += seconds
        self.wall += seconds
        if heard:
            for peer in self.peers.values():
                if peer.session is not None and peer.cut_after != 0:
                    self.machine.heard(peer.session, self.now())
        self.ask(0, OnTick())

    @rule(snapshot=st.booleans())
    def restart_master(self, snapshot: bool) -> None:
        """The master is killed; its journal, or a snapshot, gives the same state."""
        state = self.replayed()
        assert state.encode_snapshot() == self.machine.state.encode_snapshot()
        if snapshot:
            encoded = self.machine.state.encode_snapshot()
            state = State.decode_snapshot(encoded)
            assert state.encode_snapshot() == encoded
        self.take_over(state)

    @precondition(lambda self: self.crawling())
    @rule(which=st.integers(0, 100))
    def crash_in_a_group(self, which: int) -> None:
        """The master dies after it decided a commit and before that was on disk: it
        answered nothing, and the next master knows nothing of it."""
        every = self.crawling()
        peer, crawl = every[which % len(every)]
        free = [
            one
            for one, key in crawl.held.items()
            if not crawl.is_under_way(one) and key != self.bad
        ]
        if peer.session is None or not free:
            return
        commit = crawl.page(free[0], last=True)
        said = b.commits(crawl.number, commit, job=crawl.start.job)
        decision = self.machine.decide(peer.session, said, self.now())
        self.commit(decision, crashes=True)
        self.take_over(self.replayed())

    def take_over(self, state: State) -> None:
        """Start the next master on this state."""
        for peer in self.peers.values():
            peer.session = None
        self.machine = self.new_machine(state)
        self.run = 0.0
        self.commit(self.machine.begin(self.now()))

    def replayed(self) -> State:
        """Return the state that the journal gives, and check the derived files."""
        state, files = State(), Files()
        for payload in self.journal:
            for record in r.decode_group(payload):
                for write in apply(state, record).writes:
                    files.write(write)
        for name, content in files.content.items():
            assert self.files.content[name] == content
        return state

    # ---- what must always hold

    @invariant()
    def no_acknowledged_job_is_lost(self) -> None:
        """Every submitted job is there, with what was asked for."""
        for identity, spec in self.submitted.items():
            if identity in self.removed:
                continue
            job = self.machine.state.jobs[identity]
            assert msgspec.json.decode(job.spec, type=JobSpec) == spec

    @invariant()
    def items_are_those_of_published_commits_each_once(self) -> None:
        """In their order, none twice, all that were acknowledged; as the state says."""
        for job in self.machine.state.jobs.values():
            content = self.files.content.get(items_name(job.id), b"")
            lines = content.splitlines()
            assert lines == self.published.get(job.id, [])
            assert Counter(lines) <= Counter(EXPECTED)
            assert self.acknowledged.get(job.id, set()) <= set(lines)
            course = job.course or Course()
            assert course.items_bytes == len(content)
            assert course.items == len(lines)

    @invariant()
    def no_request_is_leased_to_two(self) -> None:
        """Of the processes that the master counts on; and only what is not done."""
        state = self.machine.state
        for identity, crawl in state.crawls.items():
            holders: dict[int, int] = {}
            for _, process in self.crawling():
                known = state.processes.get(process.number)
                if known is None or known.job != identity:
                    continue
                for request in process.held:
                    if crawl.frontier.is_open(request):
                        assert request not in holders, (request, holders)
                        holders[request] = process.number
            numbers = state.by_job.get(identity, ())
            by_each = sum(crawl.frontier.leases.count_of(number) for number in numbers)
            assert crawl.frontier.leased_count == by_each
            for _, process in self.crawling():
                holder = crawl.frontier._rights.processes.get(process.number)
                active = 0 if holder is None else holder.active
                assert active <= process.window or not process.is_open

    @invariant()
    def request_numbers_only_rise(self) -> None:
        """A number is never used for two requests, not even of two runs."""
        for identity, crawl in self.machine.state.crawls.items():
            number = crawl.frontier.next_request
            assert number >= self.highest.get(identity, 1)
            self.highest[identity] = number

    @invariant()
    def indexes_agree_with_the_jobs(self) -> None:
        """Counts; processes by job and by worker; who leads is there."""
        state = self.machine.state
        for name in {*state.counts, "ready", "running"}:
            count = sum(job.state == name for job in state.jobs.values())
            assert state.counts[name] == count
        for job in state.jobs.values():
            processes = state.processes_of(job.id)
            assert job.processes == len(processes)
            assert (job.status == "running") <= bool(processes)
            if processes:
                leader = state.crawls[job.id].leader
                assert leader in (None, *(one.number for one in processes))
        for worker in state.workers.values():
            assert worker.instance == "" or len(worker.processes) <= worker.slots
            for number in worker.processes:
                assert state.processes[number].worker == worker.name

    @invariant()
    def a_lead_is_of_one_process(self) -> None:
        """Of those that the master counts on, one may consume ``start()``."""
        state = self.machine.state
        leading: dict[str, int] = {}
        for _, crawl in self.crawling():
            if crawl.leads and crawl.number in state.processes:
                assert crawl.start.job not in leading
                leading[crawl.start.job] = crawl.number

    @invariant()
    def the_master_may_always_be_asked_for_its_deadline(self) -> None:
        """Its reaper does, at any time."""
        assert self.machine.next_deadline_s(self.now()) >= 0

    # ---- the end ---------------------------------------------------------------

    def teardown(self) -> None:
        """Faults stop: every job comes to its end, and one that succeeded has all."""
        if not self.journal:
            return
        for identity in self.submitted:
            self.change(identity, "resume", False, 0)
        assert not self.removed & self.machine.state.jobs.keys()
        for _ in range(HEALING_ROUNDS):
            if all(job.is_final for job in self.machine.state.jobs.values()):
                break
            for name, peer in self.peers.items():
                if peer.cut_after is not None:
                    self.disconnect(name, False)
                self.connect(name)
            self.pass_time(0.5, True)
            for peer, crawl in self.crawling():
                for choice in range(2):
                    if crawl in [*peer.crawls.values(), *peer.zombies]:
                        self.let_go_on(peer, crawl, True, choice)
        for job in self.machine.state.jobs.values():
            assert job.status in FINAL_STATES, job
            its = self.machine.state.crawls.get(job.id)
            is_poisoned = its is not None and bool(its.frontier.poisoned)
            if job.status == "succeeded":
                assert sorted(self.published[job.id]) == EXPECTED
                assert not is_poisoned
                assert self.bad is None
            elif job.status == "failed" and "the rest is done" in (job.begin().reason):
                assert its is not None
                assert its.frontier.poisoned
                assert its.frontier.pending_count == its.frontier.leased_count == 0
                if len(its.frontier.poisoned) == 1 and self.bad is not None:
                    assert sorted(self.published[job.id]) == expected_without(self.bad)
        self.items_are_those_of_published_commits_each_once()


MachineModel.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None
)
TestMachine = MachineModel.TestCase
