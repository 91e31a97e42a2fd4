"""A job's files: derived items and spools, and the log.

One task does all writes, in the order in which they became durable in the journal;
``caught_up`` waits for the writes handed over so far. A disk without room delays the
writes, and ``note`` says so; the journal holds their data meanwhile.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import islice

import attrs
import trio

from dscrapy.control.effects import Append, Clear, Discard, Move, Write
from dscrapy.control.projections import (
    JOBS_FOLDER,
    SPOOL_FOLDER,
    items_name,
    log_name,
    process_of_spool,
    tagged_name,
)
from dscrapy.errors import DamagedFileError, JournalError, JournalFullError
from dscrapy.lines import HEADING, heading
from dscrapy.master.storage import NO_ROOM_ERRORS, Storage
from dscrapy.net.threads import InThread

logger = logging.getLogger(__name__)

# Bytes copied at a time from a spool to the job's file.
COPY_BYTES = 1024 * 1024
# Groups of writes that may wait for the disk before commits wait for them.
WAITING_MAX = 64
# Bytes of all waiting writes, with their objects; a single group may be longer. Some
# seconds of a slow disk's work.
WAITING_BYTES_MAX = 256 * 1024 * 1024
# What a write or a piece of log costs beside its data; its name is the longest part.
WRITE_BYTES = 500
# Log pieces that may wait, and their bytes; a flood beyond is dropped and its lines are
# counted. Workers send pieces of 64 KiB, but a frame may hold 8 MiB.
LOGS_WAITING_MAX = 256
LOGS_WAITING_BYTES_MAX = 16 * 1024 * 1024
# Files whose lengths are checked at the start: half a second's work. Other files are
# checked when they are read.
LOOKED_AT_MAX = 5000
# Files lacking bytes that the log of a start names; it counts the others.
SHORT_LOGGED_MAX = 20
# How long to wait before trying again on a full disk.
RETRY_S = 1.0
# How long ``log_sizes`` waits for the writes before it.
WRITTEN_S = 2.0


@attrs.frozen
class Barrier:
    """Call ``action`` in a thread when everything before is written and synced.

    Discarded files are removed only if it returns True: no replay begins earlier.
    """

    action: Callable[[], bool]


@attrs.frozen
class LogPiece:
    """Bytes for a job's log."""

    job: str
    data: bytes


Work = list[Write] | Barrier | LogPiece


class JobFiles:
    """The files of all jobs; the task of ``run`` and readers use ``storage``.

    ``handed`` counts the pieces of work handed over, ``done`` those of them done.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        log_bytes_max: int,
        in_thread: InThread = trio.to_thread.run_sync,
    ) -> None:
        self._storage = storage
        self._in_thread = in_thread
        self._log_bytes_max = log_bytes_max
        self._work: tuple[trio.MemorySendChannel[Work], trio.MemoryReceiveChannel[Work]]
        self._work = trio.open_memory_channel(WAITING_MAX)
        self.handed = 0
        self.done = 0
        self._progressed = trio.Event()
        self._logs_waiting = 0
        self._logs_waiting_bytes = 0
        self._waiting_bytes = 0
        self._logs_dropped: dict[str, int] = {}
        # The process whose lines each job's log ends with, as far as this master knows.
        self._log_of: dict[str, int] = {}
        self._log_changed: dict[str, trio.Event] = {}
        self._items_changed: dict[str, trio.Event] = {}
        self._touched: set[str] = set()
        # A job's folder was removed, and a power cut may bring it back.
        self._has_cleared = False
        self._discarded: set[str] = set()
        # During a replay: files that are too short, unless they begin anew later, with
        # the lengths that they had and should have had.
        self._short: dict[str, tuple[int, int]] | None = None
        self.note = ""
        storage.make_folder(JOBS_FOLDER)
        storage.make_folder(SPOOL_FOLDER)

    # ---- replay, before any task runs -------------------------------------------

    def begin_replay(self, live: set[int]) -> None:
        """Remove spools of processes that the replay's start does not know."""
        self._short = {}
        for name in self._storage.names(SPOOL_FOLDER):
            if process_of_spool(name) not in live:
                self._storage.remove(f"{SPOOL_FOLDER}/{name}")

    def end_replay(self, lengths: Iterable[tuple[str, int]] = ()) -> None:
        """Log which files lack bytes; ``lengths`` are names of files and their right
        lengths, of which the first are checked.

        The job goes on: the bytes that are left stay, new ones are written behind the
        gap, and whoever reads the gap gets an error.
        """
        short, self._short = self._short or {}, None
        for name, length in islice(lengths, LOOKED_AT_MAX):
            size = self._size_of(name)
            if size < length:
                short.setdefault(name, (size, length))
        for name, (size, length) in list(short.items())[:SHORT_LOGGED_MAX]:
            error = DamagedFileError(self._storage.path(name), size, length - size)
            logger.error("job %s: %s", name.split("/")[1], error)
        if len(short) > SHORT_LOGGED_MAX:
            unlogged = len(short) - SHORT_LOGGED_MAX
            logger.error("%d more files of jobs lack bytes", unlogged)

    def _size_of(self, name: str) -> int:
        try:
            return self._storage.size(name)
        except FileNotFoundError:
            return 0

    def write_now(self, writes: list[Write]) -> None:
        """Do the writes, blocking.

        During a replay a disk without room is ``JournalFullError``, any other error of
        the disk ``JournalError``; the next start writes the files again after either.
        """
        for write in writes:
            try:
                self._write(write)
            except OSError as error:
                if self._short is None:
                    raise
                where = self._storage.path(write.name)
                if error.errno in NO_ROOM_ERRORS:
                    text = f"{where}: {error.strerror}: no room to write it again"
                    raise JournalFullError(text) from error
                raise JournalError(where, 0, f"cannot write: {error}") from error

    # ---- writing ----------------------------------------------------------------

    def hand_over_nowait(self, work: list[Write] | Barrier) -> bool:
        """Take work that is durable in the journal; False when too much waits."""
        if self._waiting_bytes > WAITING_BYTES_MAX:
            return False
        try:
            self._work[0].send_nowait(work)
        except trio.WouldBlock:
            return False
        self._waiting_bytes += _bytes_of(work)
        self.handed += 1
        return True

    async def progress(self) -> None:
        """Wait until something that was handed over is written."""
        await self._progressed.wait()

    def log_nowait(self, job: str, data: bytes, process: int = 0) -> None:
        """Take a piece of a job's log, or drop it when too many wait.

        Where another process's lines stand before, a heading names the process; the
        first piece of a process brings its own heading.
        """
        if process and self._log_of.get(job) != process:
            self._log_of[job] = process
            first = HEADING.match(data.partition(b"\n")[0])
            if first is None or int(first[1]) != process:
                data = heading(process) + data
        is_flood = self._logs_waiting >= LOGS_WAITING_MAX
        if is_flood or self._logs_waiting_bytes > LOGS_WAITING_BYTES_MAX:
            dropped = self._logs_dropped.get(job, 0)
            self._logs_dropped[job] = dropped + _lines_in(data)
            return
        dropped = self._logs_dropped.pop(job, 0)
        if dropped:
            data = b"(%d lines of log dropped here)\n" % dropped + data
        try:
            self._work[0].send_nowait(LogPiece(job, data))
        except trio.WouldBlock:
            self._logs_dropped[job] = dropped + _lines_in(data)
        else:
            self.handed += 1
            self._logs_waiting += 1
            self._logs_waiting_bytes += len(data) + WRITE_BYTES

    async def caught_up(self) -> None:
        """Wait until everything handed over so far is written."""
        goal = self.handed
        while self.done < goal:
            await self._progressed.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        async for work in self._work[1]:
            if isinstance(work, LogPiece):
                self._logs_waiting -= 1
                self._logs_waiting_bytes -= len(work.data) + WRITE_BYTES
            await self._do(work)
            if not isinstance(work, LogPiece):
                self._waiting_bytes -= _bytes_of(work)
            self.done += 1
            self._progressed.set()
            self._progressed = trio.Event()
            if isinstance(work, LogPiece):
                changed = self._log_changed.pop(work.job, None)
                if changed is not None:
                    changed.set()
            elif not isinstance(work, Barrier):
                self._forget_removed(work)
                if self._items_changed:
                    self._wake_readers_of({write.name for write in work})

    def _forget_removed(self, writes: list[Write]) -> None:
        """Forget removed jobs, and wake their readers, which find them gone."""
        for write in writes:
            if isinstance(write, Clear):
                job = write.name.rpartition("/")[2]
                self._logs_dropped.pop(job, None)
                self.wake_readers(job)

    async def _do(self, work: Work) -> None:
        while True:
            try:
                await self._in_thread(partial(self._do_blocking, work))
            except OSError as error:
                if error.errno not in NO_ROOM_ERRORS:
                    where = self._storage.path(JOBS_FOLDER)
                    raise JournalError(where, 0, f"cannot write: {error}") from error
                if isinstance(work, LogPiece):
                    return
                if not self.note:
                    logger.error("no room for items, trying again: %s", error)
                self.note = "disk full: items wait in the journal"
                await trio.sleep(RETRY_S)
            else:
                if self.note:
                    logger.warning("there is room again; items are written")
                self.note = ""
                return

    def _do_blocking(self, work: Work) -> None:
        match work:
            case Barrier():
                self._sync()
                if not work.action():
                    return
                for name in sorted(self._discarded):
                    self._remove(name)
                self._discarded.clear()
            case LogPiece():
                self._append_log(work)
            case _:
                self.write_now(work)

    def _sync(self) -> None:
        for name in sorted(self._touched):
            try:
                file = self._storage.open(name)
            except FileNotFoundError:
                continue
            try:
                file.sync()
            finally:
                file.close()
        self._touched.clear()
        if self._has_cleared:
            # No replay removes these folders again, so the removal must be durable.
            self._storage.sync_folder(JOBS_FOLDER)
            self._has_cleared = False

    def _write(self, write: Write) -> None:
        match write:
            case Discard():
                self._discarded.add(write.name)
                return
            case Clear():
                self._clear(write.name)
                return
            case Append():
                pieces: Iterator[bytes] = iter([write.data])
            case Move():
                pieces = self._pieces(write)
        self._discarded.discard(write.name)
        if self._short and write.at == 0:
            # A fresh run writes the file from its beginning.
            self._short.pop(write.name, None)
        folder = write.name.rsplit("/", 1)[0]
        self._storage.make_folder(folder)
        file = self._storage.open(write.name)
        self._touched.add(write.name)
        try:
            if file.size < write.at:
                self._note_short(write.name, file.size, write.at)
                file.extend(write.at)
            file.truncate(write.at)
            for piece in pieces:
                file.append(piece)
        finally:
            file.close()

    def _clear(self, folder: str) -> None:
        """Remove a removed job's files, and forget them."""
        self._has_cleared = True
        try:
            self._storage.remove_folder(folder)
        except OSError as error:
            if error.errno in NO_ROOM_ERRORS:
                raise
            # The folder does no harm; somebody may have put files of theirs there.
            where = self._storage.path(folder)
            logger.error("%s of a removed job stays: %s", where, error)
        within = f"{folder}/"
        for names in (self._touched, self._discarded):
            names -= {name for name in names if name.startswith(within)}
        if self._short:
            for name in [short for short in self._short if short.startswith(within)]:
                del self._short[name]

    def _note_short(self, name: str, size: int, length: int) -> None:
        """Take note of a file that lacks bytes: the gap reads as zeros from now on,
        which no line contains (see ``whole_bytes``)."""
        if self._short is not None:
            # If a fresh run emptied the file, the replay finds that later.
            self._short.setdefault(name, (size, length))
            return
        where = self._storage.path(name)
        logger.error("%s", DamagedFileError(where, size, length - size))

    def _pieces(self, move: Move) -> Iterator[bytes]:
        at = 0
        while at < move.count:
            count = min(COPY_BYTES, move.count - at)
            try:
                piece = self._storage.read(move.spool, at, count)
            except FileNotFoundError:
                piece = b""
            if len(piece) < count:
                # The spool's items are lost; items of others keep their places.
                self._note_short(move.spool, at + len(piece), move.count)
                piece += bytes(count - len(piece))
            yield piece
            at += count

    def _remove(self, name: str) -> None:
        try:
            self._storage.remove(name)
        except FileNotFoundError:
            # A replay discards what was removed before the crash.
            return

    def _append_log(self, piece: LogPiece) -> None:
        name = log_name(piece.job)
        self._storage.make_folder(name.rsplit("/", 1)[0])
        file = self._storage.open(name)
        try:
            room = self._log_bytes_max - file.size
            if room <= 0:
                return
            data = piece.data
            if len(data) >= room:
                data = data[:room] + b"\n(the log is full; the rest is dropped)\n"
            file.append(data)
        finally:
            file.close()

    # ---- reading ----------------------------------------------------------------

    async def read(
        self, job: str, file: str, offset: int, limit: int, length: int = 0
    ) -> bytes:
        """Return up to ``limit`` bytes of a job's file, empty at its end.

        ``length`` is how long the file is at least. Raises ``DamagedFileError`` where
        bytes of it are missing.
        """
        names = {"items": items_name, "tagged": tagged_name, "log": log_name}
        name = names[file](job)
        if file != "log":
            await self.caught_up()
        try:
            read = partial(self._storage.read, name, offset, limit)
            data = await self._in_thread(read)
        except FileNotFoundError:
            data = b""
        if file == "log":
            return data
        wanted = min(limit, max(length - offset, 0))
        whole = whole_bytes(data)
        if not whole and (data or wanted):
            lacking = len(data) or wanted
            raise DamagedFileError(self._storage.path(name), offset, lacking)
        return data[:whole]

    async def log_sizes(self, jobs: Collection[str]) -> dict[str, int]:
        """Return the lengths of these jobs' logs; the jobs are over, so they stay."""
        with trio.move_on_after(WRITTEN_S):
            # On a full disk items wait, perhaps for the very removal that needs this.
            await self.caught_up()

        def look() -> dict[str, int]:
            return {job: self._size_of(log_name(job)) for job in jobs}

        return await self._in_thread(look)

    def log_changes(self, job: str) -> trio.Event:
        """Return what is set when the job's log grows or its process has ended.

        Ask before reading, or what is written meanwhile is missed.
        """
        return self._log_changed.setdefault(job, trio.Event())

    def wake_readers(self, job: str) -> None:
        """Let whoever waits for the job's log or items look again: the job, or one of
        its processes, has ended."""
        self._log_of.pop(job, None)
        for changes in (self._log_changed, self._items_changed):
            changed = changes.pop(job, None)
            if changed is not None:
                changed.set()

    def items_changes(self, job: str) -> trio.Event:
        """Return what is set when the job's items grow or one of its processes ends.

        Ask before reading, or what is written meanwhile is missed.
        """
        return self._items_changed.setdefault(job, trio.Event())

    def _wake_readers_of(self, names: set[str]) -> None:
        for job in list(self._items_changed):
            if items_name(job) in names:
                self._items_changed.pop(job).set()


def whole_bytes(data: bytes) -> int:
    """Return how many bytes come before the first one that is missing.

    A gap of lost bytes reads as zeros, and JSON contains no zero byte.
    """
    at = data.find(b"\0")
    return len(data) if at < 0 else at


def _bytes_of(work: list[Write] | Barrier) -> int:
    """Return what the work holds in memory; a move reads its bytes piece by piece."""
    if isinstance(work, Barrier):
        return 0
    data = sum(len(write.data) for write in work if isinstance(write, Append))
    return data + WRITE_BYTES * len(work)


def _lines_in(data: bytes) -> int:
    """Return how many lines a dropped piece counts for: a part of a line is one."""
    return max(data.count(b"\n"), 1)
