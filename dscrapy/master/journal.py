"""The journal on a disk: append groups, read them back, snapshot, let go.

What it promises: a group whose ``append`` returned is read back by every later
``groups``, in order, once, whatever stops the program or the machine in between.
Nothing is written after a group before its sync returned, which is what the reader
in ``journal/segment.py`` relies on.

While a call touches the disk the journal counts as broken, and only the paths that
end in a known state make it ready again. So whatever escapes leaves a journal that
refuses every later call: a failed sync is never tried again.

Not thread-safe: one call at a time, from any thread.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import NoReturn

from dscrapy.errors import JournalError, JournalFullError, LocalProtocolError
from dscrapy.journal.manifest import (
    FIRST_SEGMENT,
    Missing,
    Plan,
    plan,
    segment_name,
    snapshot_name,
    torn_name,
)
from dscrapy.journal.record import (
    FORMAT_VERSION,
    HEAD_BYTES,
    READABLE_VERSIONS,
    decode_snapshot,
    encode_record,
    encode_segment_head,
    encode_snapshot,
)
from dscrapy.journal.segment import Corruption, OtherVersion, Scanner, TornTail
from dscrapy.master.storage import NO_ROOM_ERRORS, File, Storage, SyncError

# Bounds what a damaged segment costs to look through (it is then held in memory)
# and how long a dead byte stays; thousands of groups still share one.
SEGMENT_BYTES_MAX = 256 * 1024 * 1024

# Large enough that calls cost nothing beside the reading.
_READ_BYTES = 1024 * 1024

_RESTORE = (
    "Nothing was deleted. Restore the state folder from a copy, "
    'or see "Damage" in docs/journal.md'
)


class _Life(Enum):
    OPENED = "its groups were not read yet"
    READING = "its groups were not read to their end"
    READY = "ready"
    BROKEN = "an earlier call failed"
    CLOSED = "it is closed"


class Journal:
    """The journal in a storage's top folder; ``open`` it, read ``groups``, append.

    The caller holds the storage's lock.
    """

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        snapshot: bytes | None,
        sequence: int,
        segment_bytes_max: int,
    ) -> None:
        """Take what ``open`` found; callers use ``open``."""
        self._storage = storage
        self._plan = plan
        self._snapshot = snapshot
        self._next_sequence = sequence
        self._segment_bytes_max = segment_bytes_max
        self._torn: str | None = None
        self._life = _Life.OPENED
        # Segments since the snapshot: number -> sequence of its first record, bytes.
        self._starts: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        # Format versions of the segments that were read.
        self._versions: dict[int, int] = {}
        self._number = 0
        # Where the payload that was handed out last stands.
        number = plan.snapshot
        self._read_at = "" if number is None else snapshot_name(number), HEAD_BYTES
        self._file: File | None = None

    @classmethod
    def open(
        cls, storage: Storage, *, segment_bytes_max: int = SEGMENT_BYTES_MAX
    ) -> "Journal":
        """Find the journal, or begin one, and read its snapshot.

        Raises ``JournalError`` when a file is missing or damaged.
        """
        with _naming_file(storage, "", 0):
            found = plan(storage.names())
        if isinstance(found, Missing):
            raise JournalError(
                storage.path(found.name),
                0,
                f"is missing, but {found.reason}. {_RESTORE}",
            )
        sequence, payload = 1, None
        if found.snapshot is not None:
            sequence, payload = _read_snapshot(storage, found.snapshot)
        for name in found.temporary:
            with _naming_file(storage, name, 0):
                storage.remove(name)
        return cls(storage, found, payload, sequence, segment_bytes_max)

    @property
    def snapshot(self) -> bytes | None:
        """The snapshot's payload, None if there is none or ``groups`` has ended."""
        return self._snapshot

    @property
    def torn(self) -> str | None:
        """What a crash cut off, one line for the log; known once ``groups`` ended."""
        return self._torn

    @property
    def tail_bytes(self) -> int:
        """Bytes in segments since the snapshot; what the next start would read.

        Known once ``groups`` ended.
        """
        return sum(self._sizes.values())

    @property
    def next_sequence(self) -> int:
        """Number of the next record; the first ever is 1."""
        return self._next_sequence

    def groups(self) -> Iterator[bytes]:
        """Yield every payload since the snapshot, in order; once, and to its end.

        Only after the end may the journal be written. Raises ``JournalError`` at
        damage, after the groups before it; then nothing on the disk was changed.
        Raises ``JournalFullError`` when there is no room to put a torn tail aside,
        to write the last record again or to begin the first segment.
        """
        self._require(_Life.OPENED)
        self._life = _Life.READING
        for number in self._plan.segments:
            yield from self._replay(number)
        self._settle()
        self._life = _Life.READY

    def unreadable(self, error: Exception) -> JournalError:
        """Return the error for the payload that was handed out last: its checksum is
        right, but this dscrapy cannot read it."""
        name, offset = self._read_at
        reason = f"holds what this dscrapy cannot read ({error})"
        return JournalError(self._storage.path(name), offset, f"{reason}. {_RESTORE}")

    def append(self, payload: bytes) -> None:
        """Append one group; it is durable on return.

        Raises ``JournalFullError`` when there is no room: nothing was appended and
        the call may be made again. ``JournalError`` is final.
        """
        self._require(_Life.READY)
        record = encode_record(self._next_sequence, payload)
        if self._sizes[self._number] >= self._segment_bytes_max:
            self.rotate()
        name, end = segment_name(self._number), self._sizes[self._number]
        file = self._open_file()
        self._life = _Life.BROKEN
        try:
            file.append(record)
        except OSError as error:
            if error.errno not in NO_ROOM_ERRORS:
                self._fail(name, end, error)
            with _naming_file(self._storage, name, end):
                file.truncate(end)
                file.sync()
            self._refuse_full(name, error)
        try:
            file.sync()
        except OSError as error:
            # The kernel may go on showing bytes that it failed to write. A master that
            # is started again must not take them for durable.
            with suppress(OSError):
                file.truncate(end)
            self._fail(name, end, error)
        self._sizes[self._number] = end + len(record)
        self._next_sequence += 1
        self._life = _Life.READY

    def rotate(self) -> int:
        """Begin a new segment, unless this one is empty, and return its number.

        A snapshot of the state as of now belongs to that number. Raises
        ``JournalFullError``: the journal goes on in the old segment.
        """
        self._require(_Life.READY)
        if self._starts[self._number] == self._next_sequence:
            return self._number
        old = self._open_file()
        self._life = _Life.BROKEN
        self._begin_segment(self._number + 1)
        with _naming_file(self._storage, segment_name(self._number - 1), 0):
            old.close()
        self._life = _Life.READY
        return self._number

    def write_snapshot(self, number: int, payload: bytes) -> None:
        """Store the state as of the start of segment ``number``; drop what is older.

        ``number`` comes from ``rotate``. Raises ``JournalFullError`` when there is
        no room: nothing changed.
        """
        self._require(_Life.READY)
        if number not in self._starts:
            raise LocalProtocolError(f"no segment {number} for a snapshot to stand on")
        name = snapshot_name(number)
        data = encode_snapshot(number, self._starts[number], payload)
        self._life = _Life.BROKEN
        try:
            self._storage.write_atomic(name, data)
        except OSError as error:
            if isinstance(error, SyncError) or error.errno not in NO_ROOM_ERRORS:
                self._fail(name, 0, error)
            self._refuse_full(name, error)
        self._remove_dead()
        for older in [segment for segment in self._starts if segment < number]:
            del self._starts[older], self._sizes[older]
        self._life = _Life.READY

    def close(self) -> None:
        """Let the file go; what was appended is durable already."""
        self._life = _Life.CLOSED
        if self._file is not None:
            self._file.close()

    def _require(self, life: _Life) -> None:
        if self._life is not life:
            raise LocalProtocolError(f"the journal cannot do this: {self._life.value}")

    def _open_file(self) -> File:
        assert self._file is not None, "a ready journal has its segment open"
        return self._file

    # ---- reading -------------------------------------------------------------

    def _replay(self, number: int) -> Iterator[bytes]:
        """Yield a segment's payloads; put aside its torn tail."""
        name = segment_name(number)
        scanner = Scanner(
            number,
            self._next_sequence,
            is_last=number == self._plan.segments[-1],
        )
        self._starts[number] = self._next_sequence
        read_bytes = 0
        while data := self._read(name, read_bytes):
            scanner.feed(data)
            read_bytes += len(data)
            while (record := scanner.next_record()) is not None:
                self._next_sequence = scanner.next_sequence
                self._read_at = name, record.offset
                yield record.payload
        self._number = number
        self._versions[number] = scanner.version
        self._sizes[number] = read_bytes
        match scanner.end():
            case TornTail(offset=offset):
                self._put_aside(number, offset)
            case Corruption(offset=offset, reason=reason):
                raise JournalError(
                    self._storage.path(name), offset, f"{reason}. {_RESTORE}"
                )
            case OtherVersion(version=version):
                raise _other_version(self._storage, name, version)

    def _read(self, name: str, offset: int) -> bytes:
        with _naming_file(self._storage, name, offset):
            return self._storage.read(name, offset, _READ_BYTES)

    def _put_aside(self, number: int, offset: int) -> None:
        """Move a torn tail to a file of its own and cut the segment there.

        A segment without a whole head moves as a whole: it was never begun.
        """
        name = segment_name(number)
        torn_bytes = self._sizes[number] - offset
        if offset == 0 and number == self._plan.snapshot:
            raise JournalError(
                self._storage.path(name),
                0,
                f"its head is damaged, but {snapshot_name(number)} stands on it. "
                f"{_RESTORE}",
            )
        with _naming_file(self._storage, name, offset):
            torn = torn_name(number, self._storage.names())
            if torn_bytes:
                data = self._storage.read(name, offset, torn_bytes)
                self._write_torn(torn, data)
                self._torn = (
                    f"{self._storage.path(name)}: a crash cut the last group short at "
                    f"byte {offset}; its {torn_bytes} bytes are now in {torn}"
                )
            if offset == 0:
                self._storage.remove(name)
                del self._starts[number], self._sizes[number]
                self._number = number - 1
                return
            # Synced with everything else in ``_settle``.
            file = self._storage.open(name)
            try:
                file.truncate(offset)
            finally:
                file.close()
        self._sizes[number] = offset

    def _write_torn(self, torn: str, data: bytes) -> None:
        try:
            self._storage.write_atomic(torn, data)
        except OSError as error:
            if isinstance(error, SyncError) or error.errno not in NO_ROOM_ERRORS:
                raise
            raise JournalFullError(
                f"{self._storage.path(torn)}: {error.strerror}: no room to put "
                f"{len(data)} bytes of a group that a crash cut short aside"
            ) from error

    def _settle(self) -> None:
        """Make what was read durable, open the last segment, remove dead files.

        A killed master may have left whole records and names that were never
        synced. From now on they are the state, so they must not vanish later. Of the
        records only the last can be unsynced, or the head where there is no record; its
        sync may have failed before, so it is written once more.
        """
        self._snapshot = None
        name = segment_name(self._number)
        with _naming_file(self._storage, name, 0):
            self._storage.sync_folder()
            if self._number in self._starts:
                self._file = self._storage.open(name)
                size = self._file.size
                assert size == self._sizes[self._number]
                start = self._read_at[1] if self._read_at[0] == name else 0
                data = self._storage.read(name, start, size - start)
                self._rewrite(self._file, start, data)
                self._file.sync()
        version = self._versions.get(self._number, FORMAT_VERSION)
        if self._file is None or version != FORMAT_VERSION:
            # Records of this format must not follow those of an older format.
            older = self._file
            self._begin_segment(max(self._number + 1, FIRST_SEGMENT))
            if older is not None:
                older.close()
        self._remove_dead()

    def _rewrite(self, file: File, start: int, data: bytes) -> None:
        try:
            file.rewrite(start, data)
        except OSError as error:
            if error.errno not in NO_ROOM_ERRORS:
                raise
            path = self._storage.path(segment_name(self._number))
            raise JournalFullError(f"{path}: {error.strerror}") from error

    def _remove_dead(self) -> None:
        with _naming_file(self._storage, "", 0):
            found = plan(self._storage.names())
            assert isinstance(found, Plan), found
            # Not synced: a dead file that a power cut brings back is removed again.
            for name in found.dead:
                self._storage.remove(name)

    # ---- writing -------------------------------------------------------------

    def _begin_segment(self, number: int) -> None:
        """Create a segment with its head, durably, and make it the current one.

        After ``JournalFullError`` the new segment is gone, and the journal is ready if
        it has an older segment to go on in.
        """
        name = segment_name(number)
        head = encode_segment_head(number, self._next_sequence)
        file: File | None = None
        try:
            file = self._storage.open(name)
            file.append(head)
        except OSError as error:
            if isinstance(error, SyncError) or error.errno not in NO_ROOM_ERRORS:
                self._fail(name, 0, error)
            with _naming_file(self._storage, name, 0):
                if file is not None:
                    file.close()
                    self._storage.remove(name)
                    # A file that a power cut brought back would be the last segment,
                    # and a torn tail before it would look like corruption.
                    self._storage.sync_folder()
            self._refuse_full(name, error)
        with _naming_file(self._storage, name, 0):
            file.sync()
        self._file = file
        self._number = number
        self._starts[number] = self._next_sequence
        self._sizes[number] = HEAD_BYTES

    def _refuse_full(self, name: str, error: OSError) -> NoReturn:
        """Report that there is no room; whatever was begun is undone."""
        if self._file is not None:
            self._life = _Life.READY
        raise JournalFullError(
            f"{self._storage.path(name)}: {error.strerror}"
        ) from error

    def _fail(self, name: str, offset: int, error: OSError) -> NoReturn:
        with _naming_file(self._storage, name, offset):
            raise error


@contextmanager
def _naming_file(storage: Storage, name: str, offset: int) -> Iterator[None]:
    """Turn an ``OSError`` of the disk into a ``JournalError`` that says where."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "I/O error")
        prefix = "sync failed: " if isinstance(error, SyncError) else ""
        raise JournalError(storage.path(name), offset, f"{prefix}{reason}") from error


def _read_snapshot(storage: Storage, number: int) -> tuple[int, bytes]:
    """Return the sequence number that follows the snapshot, and its payload."""
    name = snapshot_name(number)
    with _naming_file(storage, name, 0):
        data = storage.read(name, 0, storage.size(name))
        names = storage.names()
    decoded = decode_snapshot(data)
    if decoded is None:
        raise JournalError(
            storage.path(name),
            0,
            f"does not match its checksum. {_advice(name, names)}",
        )
    head, payload = decoded
    if head.version not in READABLE_VERSIONS:
        raise _other_version(storage, name, head.version)
    if head.number != number:
        raise JournalError(
            storage.path(name),
            0,
            f"is snapshot {head.number} under another's name. {_RESTORE}",
        )
    return head.sequence, payload


def _advice(name: str, names: list[str]) -> str:
    """Say what a person can do about a damaged snapshot."""
    remaining = plan(existing for existing in names if existing != name)
    if isinstance(remaining, Missing) or not remaining.segments:
        return _RESTORE
    return (
        "The files before it are still there and give the whole state: "
        "move this one away and start again"
    )


def _other_version(storage: Storage, name: str, version: int) -> JournalError:
    return JournalError(
        storage.path(name),
        0,
        f"is written in format {version}, this dscrapy reads formats "
        f"{', '.join(map(str, READABLE_VERSIONS))}: use the dscrapy that wrote it",
    )
