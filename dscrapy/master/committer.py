"""The one task that owns the state: decide, apply, append, sync, then answer.

Commands wait in a bounded channel. All that wait form one group: the machine decides
and applies each in turn, their records are appended to the journal as one record and
synced in a thread, and only then do answers and assignments leave. Meanwhile the next
group gathers.

An error in ``apply``, the journal or a sync stops the master: replay makes that safe.
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
from dscrapy.control.apply import apply
from dscrapy.control.clock import Now, RunClock
from dscrapy.control.decision import Bug, Command, Decision, OnMissing, OnTick
from dscrapy.control.effects import Write, coalesced
from dscrapy.control.machine import Machine
from dscrapy.control.projections import known_lengths
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.errors import JournalFullError
from dscrapy.frontier.frontier import Granted, Place
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
# Commands that are refused while nothing can be appended at all.
_CHANGES = (m.Submit, m.ChangeJob, m.Remove, m.Prune)
# Commands that are answered from memory, also while nothing can be appended.
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
    # The decisions that are answered from memory, if the group has to wait for room.
    readings: list[Decision] = attrs.field(factory=list)


class Committer:
    """The task of this module. ``instant`` reads a clock that counts suspend, ``wall``
    the time of day; ``status`` answers ``GetStatus``."""

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
        # Commands received while the disk was full and not decided yet.
        self._kept: deque[_Waiting] = deque()
        # Whether the last append failed for lack of room.
        self._stuck = False
        # Groups begun and committed, for those who wait for the group under way.
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
        """Return this instant, and beat the run clock."""
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
                    self._files.write_now(apply(state, record).writes)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._journal.unreadable(error) from None
        self._files.end_replay(known_lengths(self.machine.state))
        if self._journal.torn is not None:
            logger.warning("%s", self._journal.torn)

    async def submit(
        self, session: int, command: Command, room: Room | None = None, weight: int = 0
    ) -> None:
        """Hand over a command; waits while too many wait already.

        The caller has taken ``weight`` of ``room`` for the command; it is given back
        when the command is done. When this is cancelled the caller must give it back.
        """
        await self._waiting[0].send(_Waiting(session, command, room, weight))

    async def committed(self) -> None:
        """Wait until all that is decided is durable, and handed over to the files."""
        goal = self._groups
        while self._groups_done < goal:
            await self._group_done.wait()

    def jobs_over(self) -> trio.Event:
        """Return the event set when a job or process has ended or a job is removed."""
        return self._job_over

    async def run(self) -> None:
        """Commit groups until cancelled; raises ``JournalError``."""
        group = _Group()
        machine = self.machine
        self._take(group, machine.carry_out(machine.begin(self.now())))
        await self._commit(group)
        while True:
            batch = await self._next_commands()
            if self._full:
                # Refused work appends nothing, so no append would find the room.
                self._watch_room(await self._in_thread(self._storage.free_bytes))
            self._groups += 1
            await self._commit(self._decide_all(batch))
            self._groups_done += 1
            self._group_done.set()
            self._group_done = trio.Event()
            for waiting in batch:
                waiting.give_back()
            batch.clear()

    async def _next_commands(self) -> list[_Waiting]:
        """Wait for a command; return it with those behind it, as far as one group goes.

        Commands kept while the disk was full come first.
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
        for waiting in batch:
            self._decide(waiting.session, waiting.command, now, group)
            if isinstance(waiting.command, _READERS):
                group.readings.append(group.decisions[-1])
        if group.records and self.next_deadline_s(now) == 0:
            self._decide(NO_SESSION, OnTick(), now, group)
        self._take(group, *self.machine.settle(now))
        return group

    def next_deadline_s(self, now: Now) -> float:
        """Return in how many seconds ``OnTick`` may have something to do.

        When the machine raises here, ``OnTick`` is due at every beat of the clock: it
        skips the worker or schedule at fault, and the others get their turn.
        """
        try:
            return self.machine.next_deadline_s(now)
        except Exception as error:  # noqa: BLE001 - see above
            self._bug_logger.log(Bug("looking for the next deadline", "", error))
            return 0.0

    def _decide(self, session: int, command: Command, now: Now, group: _Group) -> None:
        if isinstance(command, m.GetStatus):
            decision = self.machine.decision(now)
            decision.send(session, self.status(command, now))
            self._take(group, decision)
        elif session > 0 and self._is_refused(command):
            # Jobs of ``--jobs`` come from no session: nobody could submit them again.
            decision = self.machine.decision(now)
            decision.refuse(session, command.call, "disk_full", self.note)
            self._take(group, decision)
        else:
            self._take(group, *self.machine.handle(session, command, now))

    def _is_refused(self, command: Command) -> TypeGuard[m.Submit | m.ChangeJob]:
        """Whether the disk has no room for the command: new work, or any while stuck.

        People cancel, pause and remove jobs because the disk is full, so these commands
        may use the room that is kept.
        """
        if not self.note:
            return False
        makes_work = isinstance(command, m.Submit) or (
            isinstance(command, m.ChangeJob) and command.verb == "retry"
        )
        return makes_work or (self._stuck and isinstance(command, _CHANGES))

    def _take(self, group: _Group, *decisions: Decision) -> None:
        """Add decisions that the machine has carried out to the group, and log them."""
        for decision in decisions:
            group.decisions.append(decision)
            group.writes += decision.effects.writes
            for bodies in decision.effects.bodies:
                self._bodies.keep(bodies.job, bodies.at, bodies.payloads)
            for record in decision.records:
                if isinstance(record, r.Record):
                    group.records.append(record)
                if isinstance(record, r.JobEnded | r.ProcessEnded):
                    self._files.wake_readers(record.job)
                if isinstance(record, r.JobEnded | r.ProcessEnded | r.JobRemoved):
                    self._job_over.set()
                    self._job_over = trio.Event()
                _log(record)
            if decision.violation is not None:
                logger.warning("a session ends: %s", decision.violation)
            for bug in decision.bugs:
                self._bug_logger.log(bug)

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
        """Hand work to the files; while they find no room, serve what needs none."""
        while not self._files.hand_over_nowait(work):
            if self._files.note:
                # The next group looks at the room anew before it is decided.
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
        """Return the leases whose bodies were found; queue the others as ``OnMissing``.

        No process has the others, so they must not wait behind a full channel.
        """
        absent = [place for place, body in found.items() if body is None]
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

        Commands that change the state wait: their records could not be written in
        order. Readers of the stuck group are answered too.
        """
        for decision in stuck.readings:
            for session, message in decision.sends:
                self._sessions.send(session, message)
            decision.sends.clear()
        stuck.readings.clear()
        with trio.move_on_after(seconds):
            while len(self._kept) < WAITING_MAX:
                waiting = await self._waiting[1].receive()
                if isinstance(waiting.command, OnTick):
                    # Decided later, this tick would come before messages received by
                    # then and find their senders silent. The next tick comes soon.
                    continue
                if not isinstance(waiting.command, (*_READERS, *_CHANGES)):
                    self._kept.append(waiting)
                    continue
                group = _Group()
                self._decide(waiting.session, waiting.command, self.now(), group)
                self._answer(group)
                waiting.give_back()
            await trio.sleep_forever()

    # ---- snapshots --------------------------------------------------------------

    async def _begin_snapshot(self) -> None:
        """Snapshot the state of now, to be written once the files are as far."""
        payload = self.machine.state.encode_snapshot()
        # After a failure for lack of room the next try comes as many bytes later.
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
        """Write the snapshot, if there is room; return whether it is written."""
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
    """Log events that somebody has to look into; crawl processes made the texts."""
    match record:
        case r.RequestPoisoned(job=job, request=request, url=url, text=text):
            subject = show(url or f"request {request}")
            logger.warning("job %s: %s is poisoned: %s", job, subject, show(text))
        case r.RequestFailed(job=job, request=request, text=text):
            subject = f"request {request} is not done, no process can read it"
            logger.warning("job %s: %s: %s", job, subject, show(text))
        case r.WorkerBarred(name=name, job=job, why=why):
            logger.warning(
                "worker %s gets no more processes of job %s: %s", name, job, show(why)
            )
        case _:
            pass


def _grants(
    process: Process, granted: Granted, found: dict[Place, msgspec.Raw | None]
) -> Iterator[m.Grant]:
    """Yield messages for these leases, each of a size that travels well."""
    start = size = 0
    # Values of the message that is being filled; it holds each once.
    values: dict[Place, None] = {}
    for index, (request, place) in enumerate(
        zip(granted.requests, granted.places, strict=True)
    ):
        needed = granted.values.get(request, ())
        length = place[1] + sum(value[1] for value in needed if value not in values)
        if index > start and size + length > GRANT_BYTES_MAX:
            yield _grant_of(process, granted, found, values, range(start, index))
            start, size = index, 0
            values = {}
            length = place[1] + sum(value[1] for value in needed)
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
    requests = tuple(granted.requests[at] for at in which)
    hosts = [granted.hosts[at] for at in which]
    index = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    return m.Grant(
        job=process.job,
        process=process.number,
        requests=requests,
        hosts=tuple(index),
        host_of=tuple(index[host] for host in hosts),
        bodies=tuple(_payload_at(found, granted.places[at]) for at in which),
        shares={host: granted.shares[host] for host in index if host in granted.shares},
        values=tuple(_payload_at(found, place) for place in values),
        again=tuple(page for page in requests if page in granted.again),
    )


def _payload_at(found: dict[Place, msgspec.Raw | None], place: Place) -> msgspec.Raw:
    payload = found[place]
    assert payload is not None, place
    return payload
