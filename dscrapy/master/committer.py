"""The one task that owns the state: decide, apply, append, sync, then answer.

Commands wait in a bounded channel. All that wait form one group: each is decided and
applied in turn, their records are appended to the journal as one record and synced
in a thread, and only then do answers and assignments leave. Meanwhile the next group
gathers.

A step of the core that raises leaves the state as it was; ``frontier.faults`` says what
comes of its command or job. An error in ``apply``, the journal or a sync stops the
master: replay makes that safe.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeGuard

import attrs
import msgspec
import trio

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.clock import Now, RunClock
from dscrapy.control.decide.own_bugs import Faults
from dscrapy.control.decision import Decision, OnMissing, OnTick, OwnCommand, StepError
from dscrapy.control.machine import Machine
from dscrapy.control.projections import Write, coalesced, known_lengths, writes_of
from dscrapy.control.state.jobs import Process
from dscrapy.control.state.state import State
from dscrapy.errors import JournalFullError, RemoteProtocolError
from dscrapy.frontier.frontier import Granted, Place, payloads
from dscrapy.master.bodies import Bodies
from dscrapy.master.buglog import BugLogger
from dscrapy.master.files import Barrier, JobFiles
from dscrapy.master.journal import Journal
from dscrapy.master.storage import Storage
from dscrapy.net.byte_budget import Room
from dscrapy.net.threads import InThread
from dscrapy.text import show

logger = logging.getLogger(__name__)

# Commands in one group. More would only make the first of them wait longer.
GROUP_COMMANDS_MAX = 512
# Commands that may wait; then sessions wait, and with them their peers.
WAITING_MAX = 1024
# How long to wait before trying again on a full disk.
RETRY_S = 1.0
# Bytes of bodies in one message of leases; a single longer one goes alone.
GRANT_BYTES_MAX = 1024 * 1024

Command = m.ClientCall | m.FromWorker | OwnCommand
# The session of the master's own commands: nobody is there to be answered.
NO_SESSION = 0


@attrs.frozen
class _Waiting:
    """A command that waits, and gives back the room that it takes when it is done."""

    session: int
    command: Command
    room: Room | None = None
    weight: int = 0

    def give_back(self) -> None:
        if self.room is not None:
            self.room.give(self.weight)


# Commits in one group: as many of the longest frames stay far below what one journal
# record may hold.
GROUP_COMMITS_MAX = 32
# Refused while nothing can be appended at all.
_CHANGES = (m.Submit, m.ChangeJob, m.Remove, m.Prune)
# What is answered from memory, also while nothing can be appended.
_READERS = (m.GetStatus, m.ListJobs, m.ShowJob, m.Ping, m.Heartbeat)


class Sessions(Protocol):
    """Where answers go; both calls never wait."""

    def send(self, session: int, message: m.Message) -> None:
        """Queue the message for the session, if it is still there."""

    def close(self, session: int) -> None:
        """End the session once what is queued has left."""


@attrs.define(kw_only=True)
class _Group:
    records: list[r.Record] = attrs.field(factory=list)
    writes: list[Write] = attrs.field(factory=list)
    decisions: list[Decision] = attrs.field(factory=list)
    # Those of them that are answered from memory, if the group has to wait for room.
    readings: list[Decision] = attrs.field(factory=list)


class Committer:
    """See the module. ``instant`` reads a clock that counts suspend, ``wall`` the
    time of day; ``status`` answers ``GetStatus``."""

    def __init__(
        self,
        machine: Machine,
        journal: Journal,
        files: JobFiles,
        storage: Storage,
        sessions: Sessions,
        *,
        snapshot_after_bytes: int,
        disk_free_bytes_min: int,
        instant: Callable[[], float],
        in_thread: InThread = trio.to_thread.run_sync,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.machine = machine
        self._faults = Faults(machine)
        self._bug_logger = BugLogger()
        self.status: Callable[[m.GetStatus, Now], m.Status]
        self._journal = journal
        # The snapshot is written by the files' task, between two groups.
        self._journal_lock = threading.Lock()
        self._files = files
        self._bodies = Bodies(storage)
        self._storage = storage
        self._sessions = sessions
        self._snapshot_after_bytes = snapshot_after_bytes
        self._snapshot_at_bytes = snapshot_after_bytes
        self._snapshot_under_way = False
        self._disk_free_bytes_min = disk_free_bytes_min
        self._clock = RunClock()
        self._instant = instant
        self._in_thread = in_thread
        self._wall = wall
        self._full = ""
        # Read while the disk was full, and not yet decided.
        self._kept: deque[_Waiting] = deque()
        # Nothing can be appended now; the last try failed.
        self._stuck = False
        # Whoever waits for the group under way to be committed.
        self._groups = self._groups_done = 0
        self._group_done = trio.Event()
        self._job_over = trio.Event()
        self._waiting: tuple[
            trio.MemorySendChannel[_Waiting], trio.MemoryReceiveChannel[_Waiting]
        ] = trio.open_memory_channel(WAITING_MAX)

    @property
    def note(self) -> str:
        """What is wrong with the disk, for ``status``; empty when nothing is."""
        return self._full or self._files.note

    def now(self) -> Now:
        """Return this instant; also what beats the run clock."""
        return Now(run=self._clock.at(self._instant()), wall=self._wall())

    def replay(self) -> None:
        """Rebuild state and derived files from the journal, blocking."""
        snapshot = self._journal.snapshot
        try:
            if snapshot is not None:
                self.machine.state = State.decode_snapshot(snapshot)
            state = self.machine.state
            self._files.begin_replay(set(state.processes))
            for payload in self._journal.groups():
                for record in r.decode_group(payload):
                    self._files.write_now(writes_of(state, record))
                    state.apply(record)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._journal.unreadable(error) from None
        self._files.end_replay(known_lengths(self.machine.state))
        if self._journal.torn is not None:
            logger.warning("%s", self._journal.torn)

    async def submit(
        self, session: int, command: Command, room: Room | None = None, weight: int = 0
    ) -> None:
        """Hand over a command; waits while too many wait already.

        ``weight`` is what has been taken of ``room`` for it: given back when it is
        done. When this is cancelled it is the caller's still.
        """
        await self._waiting[0].send(_Waiting(session, command, room, weight))

    async def committed(self) -> None:
        """Wait until all that is decided is durable, and handed over to the files."""
        goal = self._groups
        while self._groups_done < goal:
            await self._group_done.wait()

    def jobs_over(self) -> trio.Event:
        """Return what is set when a job or a process has ended, or a job is removed."""
        return self._job_over

    async def run(self) -> None:
        """Commit groups until cancelled; raises ``JournalError``."""
        group = _Group()
        now = self.now()
        self._carry_out(self.machine.begin(now), now, group)
        await self._commit(group)
        while True:
            batch = await self._next_commands()
            if self._full:
                # Refused work appends nothing that would show that there is room.
                self._watch_room(await self._in_thread(self._storage.free_bytes))
            self._groups += 1
            await self._commit(self._decide_all(batch))
            self._groups_done += 1
            self._group_done.set()
            self._group_done = trio.Event()
            for one in batch:
                one.give_back()
            batch.clear()

    async def _next_commands(self) -> list[_Waiting]:
        """Wait for a command; return it with those behind it, as far as one group goes.

        Those kept from a full disk come first.
        """
        batch: list[_Waiting] = []
        commits = 0
        while len(batch) < GROUP_COMMANDS_MAX and commits < GROUP_COMMITS_MAX:
            if self._kept:
                batch.append(self._kept.popleft())
            elif not batch:
                batch.append(await self._waiting[1].receive())
            else:
                try:
                    batch.append(self._waiting[1].receive_nowait())
                except trio.WouldBlock:
                    break
            commits += isinstance(batch[-1].command, m.Commits)
        return batch

    # ---- deciding ---------------------------------------------------------------

    def _decide_all(self, batch: list[_Waiting]) -> _Group:
        group = _Group()
        now = self.now()
        for one in batch:
            self._decide(one.session, one.command, now, group)
            if isinstance(one.command, _READERS):
                group.readings.append(group.decisions[-1])
        if group.records and self.next_deadline_s(now) == 0:
            self._decide(-1, OnTick(), now, group)
        self._follow_up(now, group)
        return group

    def _follow_up(self, now: Now, group: _Group) -> None:
        machine = self.machine
        left_out: set[str] = set()
        while True:
            while (job := machine.next_touched()) is not None:
                try:
                    decision = machine.follow_up(job, now)
                except Exception:
                    self._bug_logger.exception("following up a job", job)
                    decision = self._faults.instead_of_follow_up(job, now)
                self._carry_out(decision, now, group)
            assigned = self._assign(now, left_out)
            if assigned is None:
                return
            self._carry_out(assigned, now, group)

    def _assign(self, now: Now, left_out: set[str]) -> Decision | None:
        """Return the next assignment; a job at which that raises is added to
        ``left_out``, so that the others are assigned."""
        try:
            return self.machine.assign(now, left_out)
        except StepError as error:
            self._bug_logger.exception("assigning", error)
            left_out.add(error.culprit[1])
            return self._faults.instead_of_assign(error.culprit, now)
        except Exception:
            # At none in particular: tried again with the next group.
            self._bug_logger.exception("assigning")
            return None

    def next_deadline_s(self, now: Now) -> float:
        """Return in how many seconds ``OnTick`` may have something to do.

        Where that raises one is due: it leaves out whom it raises at, and the others
        get their turn at every beat of the clock.
        """
        try:
            return self.machine.next_deadline_s(now)
        except Exception:
            self._bug_logger.exception("looking for the next deadline")
            return 0.0

    def _decide(self, session: int, command: Command, now: Now, group: _Group) -> None:
        try:
            if isinstance(command, m.GetStatus):
                status = self.status(command, now)
                decision = Decision(sends=[(session, status)])
            elif session > 0 and self._is_refused(command):
                # Jobs of a file come from no session: nobody there could repeat them.
                decision = Decision()
                decision.refuse(session, command.call, "disk_full", self.note)
            else:
                decision = self.machine.decide(session, command, now)
        except RemoteProtocolError as error:
            logger.warning("session %d ends: %s", session, error)
            decision = self._faults.instead_of_refused(session, command, error, now)
        except StepError as error:
            assert isinstance(command, OnTick)
            self._bug_logger.exception("looking at", error)
            decision = self._faults.instead_of_tick(error.culprit, now)
            self._carry_out(decision, now, group)
            rest = OnTick(but=command.but | {error.culprit})
            self._decide(session, rest, now, group)
            return
        except Exception:
            # A bug met in one command must not end the others'.
            if isinstance(command, m.Commits) and len(command.commits) > 1:
                for commit in command.commits:
                    one = msgspec.structs.replace(command, commits=(commit,))
                    self._decide(session, one, now, group)
                return
            self._bug_logger.exception("deciding", type(command).__name__)
            decision = self._faults.instead(session, command, now)
        self._carry_out(decision, now, group)

    def _is_refused(self, command: Command) -> TypeGuard[m.Submit | m.ChangeJob]:
        """Whether there is no room for that: new work, or anything while stuck.

        Cancelling, pausing and removing are what people would do about a full disk, so
        they may use the room that is kept.
        """
        if not self.note:
            return False
        makes_work = isinstance(command, m.Submit) or (
            isinstance(command, m.ChangeJob) and command.verb == "retry"
        )
        return makes_work or (self._stuck and isinstance(command, _CHANGES))

    def _carry_out(self, decision: Decision, now: Now, group: _Group) -> None:
        """Apply, and complete what is to leave."""
        self._apply(decision, group)
        try:
            self.machine.complete(decision)
        except Exception:
            self._bug_logger.exception("completing a decision")
            instead = self._faults.instead_of_complete(decision, now)
            self._apply(instead, group)
            # Before what has been decided since: it may be shown in one line with it.
            decision.sends += instead.sends
            decision.closes += instead.closes
        group.decisions.append(decision)

    def _apply(self, decision: Decision, group: _Group) -> None:
        """Apply; the derived writes are worked out just before each record."""
        state = self.machine.state
        for record in decision.records:
            group.writes += writes_of(state, record)
            if isinstance(record, r.PartStored | r.Published):
                at = state.crawls[record.job].frontier.body_bytes
                self._bodies.keep(record.job, at, payloads(record.children))
            state.apply(record)
            if isinstance(record, r.Record):
                group.records.append(record)
            if isinstance(record, r.JobEnded | r.ProcessEnded):
                self._files.wake_readers(record.job)
            if isinstance(record, r.JobEnded | r.ProcessEnded | r.JobRemoved):
                self._job_over.set()
                self._job_over = trio.Event()
            _log(record)

    # ---- committing -------------------------------------------------------------

    async def _commit(self, group: _Group) -> None:
        if group.records:
            payload = r.encode_group(group.records)
            await self._append(payload, group)
            if group.writes:
                await self._hand_over(coalesced(group.writes), group)
                self._bodies.handed_over(self._files.handed)
        self._answer(group)
        await self._grant(group)
        is_due = self._journal.tail_bytes > self._snapshot_at_bytes
        if is_due and not self._snapshot_under_way:
            await self._begin_snapshot()

    async def _hand_over(self, work: list[Write] | Barrier, group: _Group) -> None:
        """Let the files have it; while they find no room, serve what needs none."""
        while not self._files.hand_over_nowait(work):
            if self._files.note:
                # Until the next group: its room is looked at before it is decided.
                self._full, self._stuck = self._files.note, True
                await self._serve_readers(RETRY_S, group)
            else:
                with trio.move_on_after(RETRY_S):
                    await self._files.progress()
        self._stuck = False

    def _answer(self, group: _Group) -> None:
        for decision in group.decisions:
            for session, message in decision.sends:
                self._sessions.send(session, message)
            for session in decision.closes:
                self._sessions.close(session)

    async def _grant(self, group: _Group) -> None:
        """Send the group's leases: their records are on disk, their bodies at hand."""
        for decision in group.decisions:
            for session, process, granted in decision.grants:
                places = granted.all_places
                read = partial(self._bodies.read, process.job, places)
                if self._bodies.has_all(process.job, places):
                    found = read()
                else:
                    found = await self._in_thread(read)
                payloads_at = dict(zip(places, found, strict=True))
                whole = self._without_missing(process, granted, payloads_at)
                if not whole.requests:
                    continue
                for grant in _grants(process, whole, payloads_at):
                    self._sessions.send(session, grant)
        self._bodies.trim(self._files.done)

    def _without_missing(
        self,
        process: Process,
        granted: Granted,
        found: dict[Place, msgspec.Raw | None],
    ) -> Granted:
        """Return the leases whose bodies are there; the others are seen to next.

        Nobody has these, so they must not wait behind a full channel.
        """
        absent = [place for place, one in found.items() if one is None]
        whole, lacking = granted.split(set(absent))
        if lacking:
            command = OnMissing(process.job, lacking)
            self._kept.append(_Waiting(NO_SESSION, command))
        return whole

    async def _append(self, payload: bytes, group: _Group) -> None:
        """Append and sync; on a full disk serve what needs no room, and try again."""
        while True:
            try:
                free_bytes = await self._in_thread(
                    partial(self._append_blocking, payload)
                )
            except JournalFullError as error:
                if not self._full:
                    logger.error("no room for the journal, trying again: %s", error)
                self._full = "disk full: new work is refused until there is room"
                self._stuck = True
                await self._serve_readers(RETRY_S, group)
            else:
                self._stuck = False
                self._watch_room(free_bytes)
                return

    def _append_blocking(self, payload: bytes) -> int:
        with self._journal_lock:
            self._journal.append(payload)
        return self._storage.free_bytes()

    def _watch_room(self, free_bytes: int) -> None:
        if free_bytes >= self._disk_free_bytes_min:
            if self._full:
                logger.warning("there is room again; new work is taken")
            self._full = ""
        elif not self._full:
            self._full = (
                f"disk full: {free_bytes // 2**20} MiB are free at "
                f"{self._storage.path('')}, {self._disk_free_bytes_min // 2**20} MiB "
                "are kept for accepted work"
            )
            logger.error("%s", self._full)

    async def _serve_readers(self, seconds: float, stuck: _Group) -> None:
        """Answer readers and heartbeats from memory, refuse new work.

        What changes the state waits: its records could not be written in order. Who
        only looked does not, though it came in one group with those.
        """
        for decision in stuck.readings:
            for session, message in decision.sends:
                self._sessions.send(session, message)
            decision.sends.clear()
        stuck.readings.clear()
        with trio.move_on_after(seconds):
            while len(self._kept) < WAITING_MAX:
                one = await self._waiting[1].receive()
                if isinstance(one.command, OnTick):
                    # Decided later it would come before what is received by then, and
                    # find those silent who speak. The next one comes soon.
                    continue
                if not isinstance(one.command, (*_READERS, *_CHANGES)):
                    self._kept.append(one)
                    continue
                group = _Group()
                self._decide(one.session, one.command, self.now(), group)
                self._answer(group)
                one.give_back()
            await trio.sleep_forever()

    # ---- snapshots --------------------------------------------------------------

    async def _begin_snapshot(self) -> None:
        """Snapshot the state as of here; written once the files are as far."""
        payload = self.machine.state.encode_snapshot()
        # One that fails for lack of room is tried again when as much has come again.
        self._snapshot_at_bytes += self._snapshot_after_bytes
        try:
            number = await self._in_thread(self._journal.rotate)
        except JournalFullError as error:
            logger.error("no room for a snapshot: %s", error)
            return
        self._snapshot_under_way = True
        logger.info("snapshot %d: %d bytes", number, len(payload))
        barrier = Barrier(partial(self._snapshot, number, payload))
        await self._hand_over(barrier, _Group())

    def _snapshot(self, number: int, payload: bytes) -> bool:
        """Write it, if there is room; return whether it is there."""
        try:
            with self._journal_lock:
                self._journal.write_snapshot(number, payload)
            self._snapshot_at_bytes = self._snapshot_after_bytes
            return True
        except JournalFullError as error:
            logger.error("no room for a snapshot: %s", error)
            return False
        finally:
            self._snapshot_under_way = False


def _log(record: r.Record | r.Volatile) -> None:
    """Tell what somebody has to look into; crawl processes made the texts."""
    match record:
        case r.RequestPoisoned(job=job, request=request, url=url, text=text):
            what = show(url or f"request {request}")
            logger.warning("job %s: %s is poisoned: %s", job, what, show(text))
        case r.RequestFailed(job=job, request=request, text=text):
            what = f"request {request} is not done, no process can read it"
            logger.warning("job %s: %s: %s", job, what, show(text))
        case r.WorkerBarred(name=name, job=job, why=why):
            logger.warning("worker %s gets no more of job %s: %s", name, job, show(why))
        case _:
            pass


def _grants(
    process: Process, granted: Granted, found: dict[Place, msgspec.Raw | None]
) -> Iterator[m.Grant]:
    """Yield messages for these leases, each of a size that travels well."""
    start = size = 0
    # Values of the message that is being filled; each travels once in it.
    values: dict[Place, None] = {}
    for index, (request, place) in enumerate(
        zip(granted.requests, granted.places, strict=True)
    ):
        needed = granted.values.get(request, ())
        length = place[1] + sum(one[1] for one in needed if one not in values)
        if index > start and size + length > GRANT_BYTES_MAX:
            yield _grant_of(process, granted, found, values, range(start, index))
            start, size = index, 0
            values = {}
            length = place[1] + sum(one[1] for one in needed)
        values.update(dict.fromkeys(needed))
        size += length
    whole = range(start, len(granted.requests))
    yield _grant_of(process, granted, found, values, whole)


def _grant_of(
    process: Process,
    granted: Granted,
    found: dict[Place, msgspec.Raw | None],
    values: Iterable[Place],
    which: range,
) -> m.Grant:
    hosts = [granted.hosts[at] for at in which]
    index = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    return m.Grant(
        job=process.job,
        process=process.number,
        requests=tuple(granted.requests[at] for at in which),
        hosts=tuple(index),
        host_of=tuple(index[host] for host in hosts),
        bodies=tuple(_there(found, granted.places[at]) for at in which),
        shares={host: granted.shares[host] for host in index if host in granted.shares},
        values=tuple(_there(found, place) for place in values),
    )


def _there(found: dict[Place, msgspec.Raw | None], place: Place) -> msgspec.Raw:
    payload = found[place]
    assert payload is not None, place
    return payload
