"""What a worker has to tell the master, kept until it is known to have arrived.

Commits and ends of processes are retained until the master acknowledges them, and
offered again, in order, on every new session. Progress is only worth its latest
state, logs only what fits; both may be lost. Nothing here waits: a slow master must
not hold up the reading of crawl processes.
"""

from collections import deque

import attrs

from dscrapy import messages as m
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame

# Log bytes that wait for the master, for each process; beyond it lines are dropped.
LOG_WAITING_BYTES_MAX = 1024 * 1024
# Log bytes in one message, so that a flood never holds up what matters for long.
LOG_MESSAGE_BYTES_MAX = 64 * 1024

# A part of a commit by process, request and number; the end of a process by -1.
Key = tuple[int, int, int]


@attrs.define
class _Log:
    job: str
    data: bytearray = attrs.field(factory=bytearray)
    dropped_lines: int = 0

    def add(self, data: bytes) -> None:
        """Take bytes as far as there is room; count the lines that are dropped."""
        if len(self.data) + len(data) > LOG_WAITING_BYTES_MAX:
            # A piece of a line is a loss too.
            self.dropped_lines += max(data.count(b"\n"), 1)
            return
        self._note_loss()
        self.data += data

    def take(self) -> bytes:
        """Return what goes into one message, cut at the end of a line if there is
        one."""
        if len(self.data) <= LOG_MESSAGE_BYTES_MAX:
            # Nothing may be logged any more that would bring the note.
            self._note_loss()
        cut = LOG_MESSAGE_BYTES_MAX
        if len(self.data) > cut:
            cut = self.data.rfind(b"\n", 0, cut) + 1 or cut
        data = bytes(self.data[:cut])
        del self.data[:cut]
        return data

    def _note_loss(self) -> None:
        if self.dropped_lines:
            if self.data and not self.data.endswith(b"\n"):
                self.data += b"\n"
            self.data += b"(%d lines of log dropped here)\n" % self.dropped_lines
            self.dropped_lines = 0


def _end_key(process: int) -> Key:
    return (process, -1, -1)


class Outbox:
    """See the module. ``take`` gives frames to send, of this session's messages."""

    def __init__(self) -> None:
        self._retained: dict[Key, bytes] = {}
        self._unsent: deque[Key] = deque()
        self._soon: deque[bytes] = deque()
        self._progress: dict[int, m.Progress] = {}
        self._logs: dict[int, _Log] = {}

    @property
    def is_settled(self) -> bool:
        """Whether the master has acknowledged all that is retained."""
        return not self._retained

    @property
    def has_more(self) -> bool:
        """Whether ``take`` would give something."""
        return bool(self._unsent or self._soon or self._progress or self._logs)

    def begin_session(self) -> None:
        """Offer everything that is retained again, on a new session."""
        self._soon.clear()
        self._unsent = deque(self._retained)

    # ---- what is to be told -----------------------------------------------------

    def add_commit(self, commit: m.Commit, frame: bytes) -> None:
        """Retain a part of a commit; ``frame`` is its encoded frame."""
        self._retain((commit.process, commit.request, commit.part), frame)

    def add_end(self, end: m.Ended) -> None:
        """Retain the end of a process."""
        self._retain(_end_key(end.process), encode_frame(encode(end)))
        self._progress.pop(end.process, None)

    def _retain(self, key: Key, frame: bytes) -> None:
        self._retained[key] = frame
        self._unsent.append(key)

    def add_soon(self, message: m.Message) -> None:
        """Send a message of this session only, before anything else."""
        self._soon.append(encode_frame(encode(message)))

    def add_progress(self, progress: m.Progress) -> None:
        """Tell how far a process is; replaces what was not sent yet."""
        self._progress[progress.process] = progress

    def add_log(self, job: str, process: int, data: bytes) -> None:
        """Take log bytes, as far as there is room."""
        self._logs.setdefault(process, _Log(job)).add(data)

    def has_log(self, process: int) -> bool:
        """Whether log bytes of the process still wait."""
        return process in self._logs

    # ---- what was heard ---------------------------------------------------------

    def seen_commit(self, seen: m.CommitSeen) -> None:
        """Forget a part that the master has; all parts of a settled request."""
        self._retained.pop((seen.process, seen.request, seen.part), None)
        if seen.result == "settled":
            self.forget_commits(seen.process)

    def seen_end(self, process: int) -> None:
        """Forget a process whose end the master knows."""
        self._retained.pop(_end_key(process), None)

    def forget_commits(self, process: int) -> None:
        """Drop what a process wanted to commit: the master gave up on it."""
        end = _end_key(process)
        for key in [key for key in self._retained if key[0] == process and key != end]:
            del self._retained[key]

    # ---- sending ----------------------------------------------------------------

    def take(self, bytes_max: int) -> bytes:
        """Return frames to send now, in order, about ``bytes_max`` bytes."""
        frames = []
        size = 0
        while self._soon:
            frames.append(self._soon.popleft())
        while self._unsent and size < bytes_max:
            frame = self._retained.get(self._unsent.popleft())
            if frame is not None:
                frames.append(frame)
                size += len(frame)
        frames += [encode_frame(encode(one)) for one in self._progress.values()]
        self._progress.clear()
        for process, log in list(self._logs.items()):
            message = m.Log(job=log.job, process=process, data=log.take())
            if not log.data:
                del self._logs[process]
            frames.append(encode_frame(encode(message)))
        return b"".join(frames)
