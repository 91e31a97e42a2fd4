"""One connection of a client or worker, from its handshake to its end.

The reader hands commands to the committer; the writer sends what is queued. What is
queued is bounded: a peer that does not read its answers loses its session.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import trio

from dscrapy import messages as m
from dscrapy.control.decide.client_calls import no_job
from dscrapy.control.decision import Command, OnClosed
from dscrapy.errors import DamagedFileError, LocalProtocolError, RemoteProtocolError
from dscrapy.master.committer import Committer
from dscrapy.master.files import JobFiles
from dscrapy.master.process_reads import ProcessReads
from dscrapy.master.pruner import measure
from dscrapy.net.admission import NEWCOMERS_MAX, Admission
from dscrapy.net.byte_budget import Room, weight_of
from dscrapy.net.connection import Connection
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame
from dscrapy.proto.handshake import Role

logger = logging.getLogger(__name__)

# Answers that may wait for one peer, and bytes of them. A worker with hundreds of
# processes is told some megabytes at once.
OUTBOX_MAX = 4096
OUTBOX_BYTES_MAX = 256 * 1024 * 1024
# Bytes of answers that wait for all clients together: some dozen that each ask for as
# much as they may and read nothing. Workers have none of this.
CLIENTS_OUTBOX_BYTES_MAX = 512 * 1024 * 1024
# What a frame that waits costs beside its bytes.
FRAME_BYTES = 150
# Bytes of small frames that leave in one write.
WRITE_BYTES = 256 * 1024
# Bytes of frames that have begun to arrive, of all clients and of all workers: a few of
# the longest. Frames of up to 64 KiB are not counted.
CLIENTS_FRAMES_BYTES_MAX = 64 * 1024 * 1024
WORKERS_FRAMES_BYTES_MAX = 256 * 1024 * 1024
# Bytes of messages that wait for the committer, or are being decided, with their
# objects. A message of 1 MiB of items counts some 10 MiB (``byte_budget.weight_of``); a
# message of small values counts 160 times its bytes, and is let in alone.
CLIENTS_BYTES_MAX = 256 * 1024 * 1024
WORKERS_BYTES_MAX = 1024 * 1024 * 1024
# Messages below this are not counted: heartbeats, calls, the ends of processes. The
# committer's channel and the number of connections bound how many there are.
LIGHT_BYTES = 64 * 1024
# A worker whose message waits for the committer counts as heard this often.
HEARD_S = 1.0
# Jobs in one submission, in all its parts. They are held until the last one and then
# decided at once, which takes some seconds for so many.
SUBMISSIONS_MAX = 200_000
# Parts of one submission; with the longest frames still far below what one journal
# record may hold. Clients send parts of about 1 MiB.
PARTS_MAX = 64
# Bytes of unfinished submissions of all connections together, with their objects: some
# hundred clients that submit at once, or one that submits as much as it may.
SUBMITTING_BYTES_MAX = 512 * 1024 * 1024
# Reads of files that one connection may have under way, waiting ones included.
READS_MAX = 16
# Jobs that one connection may wait for at a time; the answer shows a whole job.
WAITS_MAX = 16
# Answers that a client may leave unread; then the master reads none of its calls. So a
# client costs some megabytes, not all that it could ask for.
ANSWERS_MAX = 16
# Bytes of a file that travel in one answer.
CHUNK_BYTES_MAX = 1024 * 1024
# No file is longer; the kernel takes no offset near 2**63.
OFFSET_MAX = 2**62
# A read that finds fewer bytes than are decided waits so long for the group under way.
COMMITTED_S = 1.0
# What is still queued for a session that is closed has this long to leave.
CLOSE_S = 5.0

_INCOMING: dict[Any, Any] = {"client": m.ClientCall, "worker": m.FromWorker}
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Sessions:
    """The sessions there are, by number; numbers are never used twice."""

    def __init__(self) -> None:
        self._outboxes: dict[int, trio.MemorySendChannel[_Queued]] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._waiting_bytes: Counter[int] = Counter()
        # The sessions of clients, and the bytes that wait for all of them.
        self._clients: set[int] = set()
        self.clients_bytes = 0
        self._next = 1

    def add(
        self,
        outbox: "trio.MemorySendChannel[_Queued]",
        scope: trio.CancelScope,
        role: Role,
    ) -> int:
        """Register a session; ``scope`` ends it when it does not read."""
        number = self._next
        self._next += 1
        self._outboxes[number] = outbox
        self._scopes[number] = scope
        if role == "client":
            self._clients.add(number)
        return number

    def remove(self, session: int) -> None:
        """Forget a session; what is sent to it from now on goes nowhere."""
        self._outboxes.pop(session, None)
        self._scopes.pop(session, None)
        self._forget_waiting(session)

    def send(self, session: int, message: m.Message) -> None:
        """Queue the message for the session, if it is still there."""
        outbox = self._outboxes.get(session)
        if outbox is None:
            return
        queued = _Queued.of(message)
        try:
            if self._waiting_bytes[session] > OUTBOX_BYTES_MAX:
                raise trio.WouldBlock
            outbox.send_nowait(queued)
        except trio.WouldBlock:
            self._cut_off(session)
        except trio.BrokenResourceError:
            # Its writer has ended; its reader is about to find out.
            self.remove(session)
        else:
            self._count(session, queued.weight)
            while self.clients_bytes > CLIENTS_OUTBOX_BYTES_MAX:
                # The client with the most bytes reads least; one that reads has few.
                self._cut_off(max(self._clients, key=self._waiting_bytes.__getitem__))

    def has_left(self, session: int, queued: "list[_Queued]") -> None:
        """Take note that these messages have left the queue."""
        if session in self._waiting_bytes:
            self._count(session, -sum(answer.weight for answer in queued))

    def _count(self, session: int, weight: int) -> None:
        self._waiting_bytes[session] += weight
        if session in self._clients:
            self.clients_bytes += weight

    def _forget_waiting(self, session: int) -> None:
        self._count(session, -self._waiting_bytes[session])
        del self._waiting_bytes[session]
        self._clients.discard(session)

    def _cut_off(self, session: int) -> None:
        logger.warning("session %d ends: it does not read its answers", session)
        scope = self._scopes.get(session)
        if scope is not None:
            scope.cancel()
        self.remove(session)

    def close(self, session: int) -> None:
        """End the session once what is queued has left."""
        outbox = self._outboxes.pop(session, None)
        scope = self._scopes.pop(session, None)
        if outbox is not None and scope is not None:
            outbox.close()
            # What is queued counts until it has left, or the session has.
            self._scopes[session] = scope
            scope.deadline = trio.current_time() + CLOSE_S
        else:
            self._forget_waiting(session)


@attrs.define(kw_only=True)
class SessionServer:
    """Serves connections; ``token`` is what both sides prove to know.

    ``connections`` counts the peers that have proved it; at most ``newcomers_max``
    others may be shaking hands.
    """

    token: str = attrs.field(repr=False)
    committer: Committer
    files: JobFiles
    sessions: Sessions
    handshake_timeout_s: float
    connections_max: int
    newcomers_max: int = NEWCOMERS_MAX
    connections: int = 0
    submitting_bytes: int = 0
    admission: Admission = attrs.field(init=False)
    frames: dict[Role, Room] = attrs.field(
        factory=lambda: {
            "client": Room(CLIENTS_FRAMES_BYTES_MAX),
            "worker": Room(WORKERS_FRAMES_BYTES_MAX),
        }
    )
    rooms: dict[Role, Room] = attrs.field(
        factory=lambda: {
            "client": Room(CLIENTS_BYTES_MAX),
            "worker": Room(WORKERS_BYTES_MAX),
        }
    )

    def __attrs_post_init__(self) -> None:
        self.admission = Admission(
            incoming=_INCOMING,
            handshake_timeout_s=self.handshake_timeout_s,
            logger=logger,
            newcomers_max=self.newcomers_max,
        )

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; closes the stream. Never raises."""
        try:
            connection = await self.admission.admit(stream, token=self.token)
            if connection is None:
                return
            async with connection:
                if self.connections >= self.connections_max:
                    await _turn_away(connection, self.connections_max)
                    return
                self.connections += 1
                try:
                    await self._serve(connection)
                finally:
                    self.connections -= 1
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, connection: Connection[Any]) -> None:
        send, receive = trio.open_memory_channel[_Queued](OUTBOX_MAX)
        role = connection.role
        async with trio.open_nursery() as nursery:
            session = self.sessions.add(send, nursery.cancel_scope, role)
            peer = _Peer(
                session=session, role=role, nursery=nursery, room=self.rooms[role]
            )
            connection.room = self.frames[role]
            connection.admit = partial(self._admit, peer)
            nursery.start_soon(self._write, connection, receive, peer)
            try:
                await self._read(connection, peer)
            except _GONE:
                logger.debug("session %d: connection lost", session)
            except RemoteProtocolError as error:
                logger.warning("session %d ends: %s", session, error)
                refused = m.Refused(call=-1, code=error.code, text=error.detail)
                self.sessions.send(session, refused)
            finally:
                self.submitting_bytes -= peer.submitting_bytes
                peer.give_back()
                self.sessions.close(session)
                with trio.move_on_after(CLOSE_S, shield=True):
                    await self.committer.submit(session, OnClosed())

    async def _write(
        self,
        connection: Connection[Any],
        outbox: "trio.MemoryReceiveChannel[_Queued]",
        peer: "_Peer",
    ) -> None:
        try:
            async with outbox:
                async for first in outbox:
                    written, size = [first], first.weight
                    while size < WRITE_BYTES:
                        try:
                            written.append(outbox.receive_nowait())
                        except (trio.WouldBlock, trio.EndOfChannel):
                            break
                        size += written[-1].weight
                    try:
                        await connection.send_frame(
                            b"".join(answer.frame for answer in written)
                        )
                    except _GONE:
                        break
                    self.sessions.has_left(peer.session, written)
                    peer.has_read(written)
        finally:
            self.sessions.remove(peer.session)
        peer.nursery.cancel_scope.cancel()

    async def _admit(self, peer: "_Peer", frame: bytes) -> None:
        """Wait until there is room for what is made of the frame."""
        peer.message_bytes = weight_of(frame)
        if peer.message_bytes >= LIGHT_BYTES:
            await self._take(peer, peer.message_bytes)

    async def _take(self, peer: "_Peer", weight: int) -> None:
        async def take() -> None:
            await peer.room.take(weight)
            peer.weight = weight

        await self._wait(peer, take)

    async def _hand_over(self, peer: "_Peer", command: Command) -> None:
        """Hand a command to the committer, with the room that it takes."""

        async def submit() -> None:
            room, weight = peer.room, peer.weight
            await self.committer.submit(peer.session, command, room, weight)
            peer.weight = 0

        await self._wait(peer, submit)

    async def _wait(self, peer: "_Peer", wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for the committer; a worker that waits meanwhile counts as heard."""
        with trio.move_on_after(HEARD_S) as scope:
            await wait()
        if not scope.cancelled_caught:
            return
        async with trio.open_nursery() as nursery:
            if peer.role == "worker":
                nursery.start_soon(self._keep_alive, peer.session)
            await wait()
            nursery.cancel_scope.cancel()

    async def _keep_alive(self, session: int) -> None:
        while True:
            self.committer.machine.heard(session, self.committer.now())
            await trio.sleep(HEARD_S)

    async def _read(self, connection: Connection[Any], peer: "_Peer") -> None:
        session = peer.session
        process_reads = ProcessReads(
            session=session,
            committer=self.committer,
            files=self.files,
            read_whole=self._read_whole,
            send=self.sessions.send,
            nursery=peer.nursery,
        )
        while (message := await connection.receive()) is not None:
            if peer.role == "worker":
                self.committer.machine.heard(session, self.committer.now())
            match message:
                case m.Submit():
                    peer.note_call(message)
                    await self._submit(peer, message)
                case m.ReadFile():
                    peer.note_read()
                    # The read may wait for long; the end of the connection ends it.
                    peer.nursery.start_soon(self._read_file, peer, message)
                case m.WaitJob():
                    peer.note_wait(message)
                    await self._hand_over(peer, message)
                case m.Prune():
                    peer.note_call(message)
                    await measure(self.committer, self.files)
                    await self._hand_over(peer, message)
                case m.Log():
                    # The id names a folder, so it must be a process of this worker.
                    if self.committer.machine.holds(session, message):
                        self.files.log_nowait(
                            message.job, message.data, message.process
                        )
                case m.Read():
                    if not 0 <= message.offset <= OFFSET_MAX:
                        text = f"no offset: {message.offset}"
                        raise RemoteProtocolError("bad_offset", text)
                    if self.committer.machine.holds(session, message):
                        process_reads.begin(message)
                case _:
                    peer.note_call(message)
                    await self._hand_over(peer, message)
            peer.give_back()
            await peer.wait_room()

    async def _submit(self, peer: "_Peer", message: m.Submit) -> None:
        """Gather the parts of a submission; the last one submits them all."""
        parts = peer.parts
        if message.part != len(parts):
            raise RemoteProtocolError("bad_part", f"part {message.part} out of order")
        parts.append(message)
        count = sum(len(part.submissions) for part in parts)
        if count > SUBMISSIONS_MAX or len(parts) > PARTS_MAX:
            raise RemoteProtocolError(
                "too_many",
                f"more than {SUBMISSIONS_MAX} jobs (or {PARTS_MAX} parts) in one "
                "submission: submit them in several",
            )
        peer.submitting_bytes += peer.message_bytes
        self.submitting_bytes += peer.message_bytes
        if self.submitting_bytes > SUBMITTING_BYTES_MAX:
            raise RemoteProtocolError(
                "too_many", "too many jobs are being submitted just now: try again"
            )
        if not message.last:
            accepted = m.Accepted(call=message.call, count=count)
            self.sessions.send(peer.session, accepted)
            return
        whole = m.Submit(
            call=message.call,
            part=0,
            last=True,
            submissions=tuple(
                submission for part in parts for submission in part.submissions
            ),
        )
        parts.clear()
        peer.give_back()
        await self._take(peer, peer.submitting_bytes)
        self.submitting_bytes -= peer.submitting_bytes
        peer.submitting_bytes = 0
        await self._hand_over(peer, whole)

    async def _read_file(self, peer: "_Peer", call: m.ReadFile) -> None:
        """Answer with bytes; with ``wait``, when there are some or the job ended."""
        try:
            await self._answer_read(peer.session, call)
        finally:
            peer.reads -= 1

    async def _read_whole(self, job: str, file: str, offset: int, limit: int) -> bytes:
        """Return bytes of a job's file, no fewer than the state knows to be there.

        Raises ``DamagedFileError``.
        """
        limit = max(1, min(limit, CHUNK_BYTES_MAX))
        found = self.committer.machine.state.jobs.get(job)
        course = None if found is None else found.course
        lengths = {} if course is None else course.lengths
        try:
            return await self.files.read(job, file, offset, limit, lengths.get(file, 0))
        except DamagedFileError:
            # Bytes that are decided may not be written yet.
            with trio.move_on_after(COMMITTED_S) as scope:
                await self.committer.committed()
            if scope.cancelled_caught:
                # The disk is full: the bytes that are written are all for now.
                return await self.files.read(job, file, offset, limit)
        return await self.files.read(job, file, offset, limit, lengths.get(file, 0))

    async def _answer_read(self, session: int, call: m.ReadFile) -> None:
        while True:
            job = self.committer.machine.state.jobs.get(call.job)
            is_sound = 0 <= call.offset <= OFFSET_MAX and call.limit >= 1
            if job is None or not is_sound:
                text = no_job(call.job)
                refused = m.Refused(call=call.call, code="no_such_job", text=text)
                self.sessions.send(session, refused)
                return
            ended = job.is_final and not (call.file == "log" and job.has_processes)
            # Get the event before reading, so that no write in between is missed.
            changes = self.files.log_changes(call.job) if call.wait else None
            try:
                data = await self._read_whole(
                    call.job, call.file, call.offset, call.limit
                )
            except DamagedFileError as error:
                logger.error("job %s: %s", call.job, error)
                refused = m.Refused(
                    call=call.call, code="file_damaged", text=str(error)
                )
                self.sessions.send(session, refused)
                return
            if data or ended or changes is None:
                chunk = m.Chunk(call=call.call, data=data, end=ended and not data)
                self.sessions.send(session, chunk)
                return
            await changes.wait()


@attrs.define(kw_only=True, eq=False)
class _Peer:
    """The calls, reads and bytes that one connection has under way, all bounded."""

    session: int
    role: str
    nursery: trio.Nursery
    room: Room
    # The most bytes that the message at hand may take, and those taken of the room.
    message_bytes: int = 0
    weight: int = 0
    parts: list[m.Submit] = attrs.field(factory=list)
    submitting_bytes: int = 0
    reads: int = 0
    # Numbers of calls that may wait for their answer, and of those answered at once.
    _waits: set[int] = attrs.field(factory=set)
    _unanswered: Counter[int] = attrs.field(factory=Counter)
    _has_read: trio.Event = attrs.field(factory=trio.Event)

    def give_back(self) -> None:
        """Give back the room of the message at hand, which is done."""
        self.room.give(self.weight)
        self.weight = 0

    def note_read(self) -> None:
        """Take note of a read, or raise for one too many; its end lowers ``reads``."""
        if self.reads >= READS_MAX:
            raise RemoteProtocolError("too_many", "too many reads under way")
        self.reads += 1

    def note_wait(self, call: m.WaitJob) -> None:
        """Take note of a call that may wait, or raise for one too many."""
        if len(self._waits) >= WAITS_MAX or call.call in self._waits:
            raise RemoteProtocolError("too_many", "too many waits under way")
        self._waits.add(call.call)

    def note_call(self, message: m.ClientCall | m.FromWorker) -> None:
        """Take note of a call that is answered at once; a worker makes none."""
        if isinstance(message, m.ClientCall):
            self._unanswered[message.call] += 1

    def has_read(self, queued: "list[_Queued]") -> None:
        """Take note of answers that have left."""
        for answer in queued:
            self._waits.discard(answer.call)
            if self._unanswered[answer.call] > 1:
                self._unanswered[answer.call] -= 1
            else:
                del self._unanswered[answer.call]
        self._has_read.set()
        self._has_read = trio.Event()

    async def wait_room(self) -> None:
        """Wait until a client has read most of its answers."""
        while self._unanswered.total() >= ANSWERS_MAX:
            await self._has_read.wait()


async def _turn_away(connection: Connection[Any], limit: int) -> None:
    logger.warning("a connection was turned away: there are %d already", limit)
    text = f"the master serves {limit} connections already (connections_max): try later"
    refused = m.Refused(call=-1, code="busy", text=text)
    with trio.move_on_after(CLOSE_S):
        try:
            await connection.send(refused)
        except _GONE:
            return


@attrs.frozen
class _Queued:
    """An answer, kept as its frame: its objects may take many times the memory."""

    frame: bytes
    call: int

    @classmethod
    def of(cls, message: m.Message) -> "_Queued":
        """Return the message's frame, and the call that it answers."""
        return cls(_frame_of(message), getattr(message, "call", -1))

    @property
    def weight(self) -> int:
        """Bytes that the answer takes while it waits."""
        return len(self.frame) + FRAME_BYTES


def _frame_of(message: m.Message) -> bytes:
    """Return the message's frame; an answer that fits in none becomes a refusal.

    Peers decide how long the answer about a job is, so its length is no bug of ours.
    """
    try:
        return encode_frame(encode(message))
    except LocalProtocolError as error:
        logger.error("%s is too long to send: %s", type(message).__name__, error)
        call = getattr(message, "call", -1)
        return encode_frame(
            encode(m.Refused(call=call, code="too_long", text=f"answer: {error}"))
        )
