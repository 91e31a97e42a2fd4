"""A worker's messages to the master, kept until they are known to have arrived.

Messages that the master answers (commits, questions, ends of processes) are retained
until all of their answers have come, and sent again, in order, on every new session.
Messages of one session, before the others or in turn, and logs as far as they fit, are
sent once. Nothing here waits, and only log lines are dropped: whoever reads crawl
processes asks ``is_full`` first.
"""

from collections import deque
from collections.abc import Iterable

import attrs

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame

# Log bytes that wait for the master, for each process; beyond it lines are dropped.
LOG_WAITING_BYTES_MAX = 1024 * 1024
# Log bytes in one message, so that a flood never holds up what matters for long.
LOG_MESSAGE_BYTES_MAX = 64 * 1024

# Bytes that are kept in all, counted with their objects; beyond it crawl processes are
# not read until the master has answered. A busy worker commits as much in some minutes,
# so a master's restart holds up nobody.
KEPT_BYTES_MAX = 256 * 1024 * 1024
# What a retained frame costs beside its bytes, and each of its keys: rounded up from
# what they take in CPython 3.11 to 3.13.
ENTRY_BYTES = 600
KEY_BYTES = 400

# What an answer names: a kind, a process, and what tells it from others of these two.
Key = tuple[str | int, ...]
# What a process asks; when the process has ended nobody needs the answer.
Question = m.Offer | m.Feeds | m.Read
Retained = m.Commits | Question | m.Ended
Answering = m.CommitsSeen | m.Offered | m.FeedsSeen | m.ReadSeen | m.EndedSeen


def _keys(message: Retained | Answering) -> Iterable[Key]:
    """Return the keys that a message is to be answered by, or that an answer has."""
    process = message.process
    match message:
        case m.Commits():
            return [
                ("part", process, c.request, c.unit, c.part) for c in message.commits
            ]
        case m.CommitsSeen():
            return [("part", process, s.request, s.unit, s.part) for s in message.seen]
        case m.Offer() | m.Offered():
            return [("offer", process, message.number)]
        case m.Feeds() | m.FeedsSeen():
            return [("feeds", process)]
        case m.Read() | m.ReadSeen():
            return [("read", process, message.file, message.offset)]
        case m.Ended() | m.EndedSeen():
            return [("end", process)]


@attrs.define
class _Log:
    """The log of one process. It is sent in whole lines, since lines of the job's other
    processes come in between."""

    job: str
    data: bytearray = attrs.field(factory=bytearray)
    dropped_lines: int = 0
    is_ended: bool = False

    def add(self, data: bytes) -> None:
        """Take bytes as far as there is room; count the lines that are dropped."""
        if len(self.data) + len(data) > LOG_WAITING_BYTES_MAX:
            # A piece of a line is a loss too.
            self.dropped_lines += max(data.count(b"\n"), 1)
            return
        self._note_loss()
        self.data += data

    def ready_bytes(self) -> int:
        """How much goes into one message now: whole lines, if there are any."""
        if self.dropped_lines and len(self.data) <= LOG_MESSAGE_BYTES_MAX:
            # Perhaps nothing more is logged, so the note is added now.
            self._note_loss()
        if self.is_ended and len(self.data) <= LOG_MESSAGE_BYTES_MAX:
            return len(self.data)
        lines = self.data.rfind(b"\n", 0, LOG_MESSAGE_BYTES_MAX) + 1
        if lines or len(self.data) < LOG_MESSAGE_BYTES_MAX:
            return lines
        # A line without an end has to leave too.
        return LOG_MESSAGE_BYTES_MAX

    def take(self) -> bytes:
        """Return what goes into one message."""
        size = self.ready_bytes()
        data = bytes(self.data[:size])
        del self.data[:size]
        return data

    def _note_loss(self) -> None:
        if self.dropped_lines:
            if self.data and not self.data.endswith(b"\n"):
                self.data += b"\n"
            self.data += b"(%d lines of log dropped here)\n" % self.dropped_lines
            self.dropped_lines = 0


@attrs.define
class _Entry:
    """A retained frame, and the keys of it that are not answered yet."""

    frame: bytes
    open: set[Key]
    weight: int


class Outbox:
    """The messages of one worker. ``take`` gives the frames to send on this session.

    ``kept_bytes`` is the memory of all messages but logs, with their objects.
    """

    def __init__(self, *, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self.kept_bytes = 0
        self._kept_bytes_max = kept_bytes_max
        # Retained messages by number, in the order in which they are sent.
        self._retained: dict[int, _Entry] = {}
        self._number_of: dict[Key, int] = {}
        self._next = 0
        # What is to be sent, in turn: retained messages, and frames of this session.
        self._unsent: deque[int | bytes] = deque()
        self._soon: deque[bytes] = deque()
        self._logs: dict[int, _Log] = {}

    @property
    def is_settled(self) -> bool:
        """Whether the master has answered all that is retained."""
        return not self._retained

    @property
    def is_full(self) -> bool:
        """Whether crawl processes should tell nothing more for now."""
        return self.kept_bytes >= self._kept_bytes_max

    @property
    def has_more(self) -> bool:
        """Whether ``take`` would give something."""
        return bool(self._unsent or self._soon) or any(
            log.ready_bytes() for log in self._logs.values()
        )

    def requests_of(self, process: int) -> set[int]:
        """Return the requests of a process with a commit that is not answered."""
        return {
            int(key[2])
            for key in self._number_of
            if key[:2] == ("part", process) and key[2]
        }

    def begin_session(self) -> None:
        """Send everything that is retained again, on a new session.

        Call it before the registration is made: messages that come meanwhile are not in
        the registration, and belong to the new session.
        """
        for frame in (*self._soon, *self._unsent):
            if isinstance(frame, bytes):
                self.kept_bytes -= len(frame) + ENTRY_BYTES
        self._soon.clear()
        self._unsent = deque(self._retained)

    # ---- what is to be told -----------------------------------------------------

    def retain(self, message: Retained, frame: bytes) -> None:
        """Keep a message until all of it is answered; ``frame`` is its encoded frame.

        Raises ``RemoteProtocolError`` for a message that waits for its answer already.
        """
        keys = set(_keys(message))
        if keys & self._number_of.keys():
            raise RemoteProtocolError(
                "said_twice", "a message that is not answered yet"
            )
        number = self._next
        self._next += 1
        self._number_of.update(dict.fromkeys(keys, number))
        weight = len(frame) + ENTRY_BYTES + KEY_BYTES * len(keys)
        self._retained[number] = _Entry(frame, keys, weight)
        self.kept_bytes += weight
        self._unsent.append(number)

    def add_end(self, end: m.Ended) -> None:
        """Retain the end of a process, and forget its questions."""
        questions = ("offer", "feeds", "read")
        for key in list(self._number_of):
            if key[0] in questions and key[1] == end.process:
                self._answered(key)
        self.retain(end, encode_frame(encode(end)))

    def add_soon(self, message: m.Message, frame: bytes | None = None) -> None:
        """Send a message of this session only, before anything else."""
        frame = frame or encode_frame(encode(message))
        self._soon.append(frame)
        self.kept_bytes += len(frame) + ENTRY_BYTES

    def add_in_turn(self, frame: bytes) -> None:
        """Send a frame of this session only, after all that is retained by now."""
        self._unsent.append(frame)
        self.kept_bytes += len(frame) + ENTRY_BYTES

    def add_log(self, job: str, process: int, data: bytes) -> None:
        """Take log bytes, as far as there is room."""
        self._logs.setdefault(process, _Log(job)).add(data)

    def end_log(self, process: int) -> None:
        """Take note that this process logs nothing more: its last bytes may leave."""
        log = self._logs.get(process)
        if log is not None:
            log.is_ended = True

    def has_log(self, process: int) -> bool:
        """Whether log bytes of the process still wait."""
        return process in self._logs

    # ---- what was heard ---------------------------------------------------------

    def hear(self, answer: Answering) -> None:
        """Forget the keys that are answered, and a frame once all its keys are."""
        for key in _keys(answer):
            self._answered(key)

    def _answered(self, key: Key) -> None:
        number = self._number_of.pop(key, None)
        if number is None:
            # An answer may come twice.
            return
        entry = self._retained[number]
        entry.open.discard(key)
        if not entry.open:
            del self._retained[number]
            self.kept_bytes -= entry.weight

    # ---- sending ----------------------------------------------------------------

    def take(self, bytes_max: int) -> bytes:
        """Return frames to send now, in order, about ``bytes_max`` bytes."""
        frames = []
        size = 0
        while self._soon:
            frames.append(self._soon.popleft())
            self.kept_bytes -= len(frames[-1]) + ENTRY_BYTES
        while self._unsent and size < bytes_max:
            frame = self._frame_of(self._unsent.popleft())
            frames.append(frame)
            size += len(frame)
        for process, log in list(self._logs.items()):
            data = log.take()
            if not log.data:
                del self._logs[process]
            if data:
                message = m.Log(job=log.job, process=process, data=data)
                frames.append(encode_frame(encode(message)))
        return b"".join(frames)

    def _frame_of(self, unsent: int | bytes) -> bytes:
        """Return a frame that is to be sent; an empty one where it was answered."""
        if isinstance(unsent, bytes):
            self.kept_bytes -= len(unsent) + ENTRY_BYTES
            return unsent
        entry = self._retained.get(unsent)
        return b"" if entry is None else entry.frame
