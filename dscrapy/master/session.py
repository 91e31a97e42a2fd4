"""One connection of a client or worker, from its handshake to its end.

The reader hands commands to the committer; the writer sends what is queued. What is
queued is bounded: a peer that does not read its answers loses its session.
"""

import logging
from collections import Counter
from typing import Any

import attrs
import trio

from dscrapy import messages as m
from dscrapy.errors import LocalProtocolError, RemoteProtocolError
from dscrapy.frontier.decision import OnClosed
from dscrapy.master.committer import Committer
from dscrapy.master.files import JobFiles
from dscrapy.net.connection import Connection
from dscrapy.net.entrance import NEWCOMERS_MAX, Entrance
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame

logger = logging.getLogger(__name__)

# Answers that may wait for one peer, and bytes of files and bodies in them. A worker
# with hundreds of processes is told some megabytes at once.
OUTBOX_MAX = 4096
OUTBOX_BYTES_MAX = 256 * 1024 * 1024
# Messages that leave in one write.
WRITE_MESSAGES_MAX = 64
# Jobs in one submission, in all its parts. They are held until the last one and then
# decided at once, which takes some seconds for so many.
SUBMISSIONS_MAX = 200_000
# Parts of one submission; with the longest frames still far below what one journal
# record may hold. Clients send parts of about 1 MiB.
PARTS_MAX = 64
# Bytes of unfinished submissions of all connections together: some hundred clients
# that submit at once, or one that sends the largest submission there is.
SUBMITTING_BYTES_MAX = 512 * 1024 * 1024
# Reads of files that one connection may have under way, waiting ones included.
READS_MAX = 16
# Jobs that one connection may wait for at a time; the answer shows a whole job.
WAITS_MAX = 16
# Answers that a client has not read yet; then it is not heard further, so that it can
# make us hold some megabytes, but not all that it could ask for.
ANSWERS_MAX = 16
# Bytes of a file that travel in one answer.
CHUNK_BYTES_MAX = 1024 * 1024
# No file is longer; the kernel takes no offset near 2**63.
OFFSET_MAX = 2**62
# What is still queued for a session that is closed has this long to leave.
CLOSE_S = 5.0

_INCOMING: dict[Any, Any] = {"client": m.ClientCall, "worker": m.FromWorker}
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Sessions:
    """The sessions there are, by number; numbers are never used twice."""

    def __init__(self) -> None:
        self._outboxes: dict[int, trio.MemorySendChannel[m.Message]] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._waiting_bytes: Counter[int] = Counter()
        self._next = 1

    def add(
        self, outbox: trio.MemorySendChannel[m.Message], scope: trio.CancelScope
    ) -> int:
        """Register a session; ``scope`` ends it when it does not read."""
        number = self._next
        self._next += 1
        self._outboxes[number] = outbox
        self._scopes[number] = scope
        return number

    def remove(self, session: int) -> None:
        """Forget a session; what is sent to it from now on goes nowhere."""
        self._outboxes.pop(session, None)
        self._scopes.pop(session, None)
        del self._waiting_bytes[session]

    def send(self, session: int, message: m.Message) -> None:
        """Queue the message for the session, if it is still there."""
        outbox = self._outboxes.get(session)
        if outbox is None:
            return
        try:
            if self._waiting_bytes[session] > OUTBOX_BYTES_MAX:
                raise trio.WouldBlock
            outbox.send_nowait(message)
            self._waiting_bytes[session] += _weight_of(message)
        except trio.WouldBlock:
            logger.warning("session %d ends: it does not read its answers", session)
            self._scopes[session].cancel()
            self.remove(session)
        except trio.BrokenResourceError:
            # Its writer has ended; its reader is about to find out.
            self.remove(session)

    def has_left(self, session: int, messages: list[m.Message]) -> None:
        """These messages are queued no more."""
        if session in self._outboxes:
            self._waiting_bytes[session] -= sum(map(_weight_of, messages))

    def close(self, session: int) -> None:
        """End the session once what is queued has left."""
        del self._waiting_bytes[session]
        outbox = self._outboxes.pop(session, None)
        scope = self._scopes.pop(session, None)
        if outbox is not None and scope is not None:
            outbox.close()
            scope.deadline = trio.current_time() + CLOSE_S


@attrs.define(kw_only=True)
class SessionServer:
    """Serves connections; ``token`` is what both sides prove to know.

    ``connections`` counts those that have proved it; of others there are at most
    ``newcomers_max``.
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
    entrance: Entrance = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.entrance = Entrance(
            incoming=_INCOMING,
            handshake_timeout_s=self.handshake_timeout_s,
            logger=logger,
            newcomers_max=self.newcomers_max,
        )

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; closes the stream. Never raises."""
        try:
            connection = await self.entrance.admit(stream, token=self.token)
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
        send, receive = trio.open_memory_channel[m.Message](OUTBOX_MAX)
        async with trio.open_nursery() as nursery:
            session = self.sessions.add(send, nursery.cancel_scope)
            peer = _Peer(session=session, role=connection.role, nursery=nursery)
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
                self.sessions.close(session)
                with trio.move_on_after(CLOSE_S, shield=True):
                    await self.committer.submit(session, OnClosed())

    async def _write(
        self,
        connection: Connection[Any],
        outbox: trio.MemoryReceiveChannel[m.Message],
        peer: "_Peer",
    ) -> None:
        async with outbox:
            async for message in outbox:
                written = [message]
                while len(written) < WRITE_MESSAGES_MAX:
                    try:
                        written.append(outbox.receive_nowait())
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                self.sessions.has_left(peer.session, written)
                try:
                    frames = b"".join(map(_frame_of, written))
                    await connection.send_frame(frames)
                except _GONE:
                    break
                peer.has_read(written)
        peer.nursery.cancel_scope.cancel()

    async def _read(self, connection: Connection[Any], peer: "_Peer") -> None:
        session = peer.session
        while (message := await connection.receive()) is not None:
            if peer.role == "worker":
                self.committer.machine.heard(session, self.committer.now())
            match message:
                case m.Submit():
                    peer.has_asked(message)
                    await self._submit(peer, message, connection.frame_bytes)
                case m.ReadFile():
                    peer.begins_read()
                    # It may wait for long; the end of the connection ends it.
                    peer.nursery.start_soon(self._read_file, peer, message)
                case m.WaitJob():
                    peer.waits_for(message)
                    await self.committer.submit(session, message)
                case m.Log():
                    # The job's id names a folder: only that of a process it holds.
                    if self.committer.machine.holds(session, message):
                        self.files.log_nowait(message.job, message.data)
                case m.Read():
                    if self.committer.machine.holds(session, message):
                        await self._read_for_process(session, message)
                case _:
                    peer.has_asked(message)
                    await self.committer.submit(session, message)
            await peer.wait_room()

    async def _submit(self, peer: "_Peer", message: m.Submit, size: int) -> None:
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
        peer.submitting_bytes += size
        self.submitting_bytes += size
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
            submissions=tuple(one for part in parts for one in part.submissions),
        )
        parts.clear()
        self.submitting_bytes -= peer.submitting_bytes
        peer.submitting_bytes = 0
        await self.committer.submit(peer.session, whole)

    async def _read_file(self, peer: "_Peer", call: m.ReadFile) -> None:
        """Answer with bytes; with ``wait``, when there are some or the job ended."""
        try:
            await self._answer_read(peer.session, call)
        finally:
            peer.reads -= 1

    async def _read_for_process(self, session: int, call: m.Read) -> None:
        """Answer an export process; one asks for one piece at a time."""
        if not 0 <= call.offset <= OFFSET_MAX:
            raise RemoteProtocolError("bad_offset", f"no offset: {call.offset}")
        limit = max(1, min(call.limit, CHUNK_BYTES_MAX))
        data = await self.files.read(call.job, call.file, call.offset, limit)
        answer = m.ReadSeen(
            job=call.job,
            process=call.process,
            file=call.file,
            offset=call.offset,
            data=data,
        )
        self.sessions.send(session, answer)

    async def _answer_read(self, session: int, call: m.ReadFile) -> None:
        while True:
            job = self.committer.machine.state.jobs.get(call.job)
            is_sound = 0 <= call.offset <= OFFSET_MAX and call.limit >= 1
            if job is None or not is_sound:
                text = f"no job {call.job}: `dscrapy jobs` lists them"
                refused = m.Refused(call=call.call, code="no_such_job", text=text)
                self.sessions.send(session, refused)
                return
            ended = job.is_final and not (call.file == "log" and job.has_processes)
            # Asked for before reading: what is written in between is not missed.
            changes = self.files.log_changes(call.job) if call.wait else None
            data = await self.files.read(
                call.job, call.file, call.offset, min(call.limit, CHUNK_BYTES_MAX)
            )
            if data or ended or changes is None:
                chunk = m.Chunk(call=call.call, data=data, end=ended and not data)
                self.sessions.send(session, chunk)
                return
            await changes.wait()


@attrs.define(kw_only=True, eq=False)
class _Peer:
    """What one connection has under way, each of it bounded."""

    session: int
    role: str
    nursery: trio.Nursery
    parts: list[m.Submit] = attrs.field(factory=list)
    submitting_bytes: int = 0
    reads: int = 0
    # Numbers of calls that are answered some time, and of those answered at once.
    _waits: set[int] = attrs.field(factory=set)
    _asked: Counter[int] = attrs.field(factory=Counter)
    _has_read: trio.Event = attrs.field(factory=trio.Event)

    def begins_read(self) -> None:
        """Take note of a read, or raise for one too many; its end lowers ``reads``."""
        if self.reads >= READS_MAX:
            raise RemoteProtocolError("too_many", "reads under way")
        self.reads += 1

    def waits_for(self, call: m.WaitJob) -> None:
        """Take note of a call that may wait, or raise for one too many."""
        if len(self._waits) >= WAITS_MAX or call.call in self._waits:
            raise RemoteProtocolError("too_many", "waits under way")
        self._waits.add(call.call)

    def has_asked(self, message: m.ClientCall | m.FromWorker) -> None:
        """Take note of a call that is answered at once; a worker makes none."""
        if isinstance(message, m.ClientCall):
            self._asked[message.call] += 1

    def has_read(self, messages: list[m.Message]) -> None:
        """Take note of what has left."""
        for message in messages:
            call = getattr(message, "call", -1)
            self._waits.discard(call)
            if self._asked[call] > 1:
                self._asked[call] -= 1
            else:
                del self._asked[call]
        self._has_read.set()
        self._has_read = trio.Event()

    async def wait_room(self) -> None:
        """Wait until a client has read most of its answers."""
        while self._asked.total() >= ANSWERS_MAX:
            await self._has_read.wait()


async def _turn_away(connection: Connection[Any], most: int) -> None:
    logger.warning("a connection was turned away: %d are here already", most)
    text = f"the master serves {most} connections already (connections_max): try later"
    refused = m.Refused(call=-1, code="busy", text=text)
    with trio.move_on_after(CLOSE_S):
        try:
            await connection.send(refused)
        except _GONE:
            return


def _weight_of(message: m.Message) -> int:
    """Return the bytes of what makes a message long: a file's, or bodies."""
    match message:
        case m.Chunk() | m.ReadSeen():
            return len(message.data)
        case m.Grant():
            return sum(len(memoryview(body)) for body in message.bodies)
        case m.Offered():
            return len(message.seen)
        case _:
            return 0


def _frame_of(message: m.Message) -> bytes:
    """Return the message's frame; an answer that fits in none becomes a refusal.

    Peers decide how much there is to tell of a job, so its length is not our bug.
    """
    try:
        return encode_frame(encode(message))
    except LocalProtocolError as error:
        logger.error("%s is too long to send: %s", type(message).__name__, error)
        call = getattr(message, "call", -1)
        return encode_frame(
            encode(m.Refused(call=call, code="too_long", text=f"answer: {error}"))
        )
