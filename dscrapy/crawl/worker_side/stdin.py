"""``sys.stdin`` of a crawl process: the caller's own, kept as it is read.

Descriptor 0 is the caller's stdin itself, so a spider that never reads it leaves all of
it to others, and never waits for its end. The first read through ``sys.stdin`` starts a
thread that copies the input into a file of the crawl's state, somewhat ahead of the
reader, who reads that file. A process that takes over reads the file from its
beginning. Once the file holds all of the input it has its final name, and is the stdin
of each later process. Input that a program reads from descriptor 0 itself is not kept.

A kill between reading and writing would lose input. So a pipe is spliced into the file,
where the system can, and a regular file is read by offset.

A read in the event loop's thread blocks the loop until there is input. ``on_wait`` is
called then, so that the worker does not take the process for silent.
"""

import io
import logging
import os
import select
import stat
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

# Bytes of one step of the copy: as many as a pipe holds.
STEP_BYTES = 64 * 1024
# The copy is at most this far ahead of the reader: an endless input fills no disk.
AHEAD_BYTES_MAX = 64 * 1024 * 1024
# Ends the file's name until the file holds all of the input.
PART_SUFFIX = b".part"

_logger = logging.getLogger(__name__)


class OnWait(Protocol):
    """Called with whether the thread of the event loop waits for input."""

    def __call__(self, *, on: bool) -> None: ...


def take_stdin(keep_at: bytes, begins_at: int, on_wait: OnWait) -> None:
    """Let ``sys.stdin`` read descriptor 0 and keep what it reads in the file
    ``keep_at``; a regular file is read from its offset ``begins_at`` on."""
    _replace(KeptStdin(0, keep_at, begins_at, on_wait=on_wait))


def give_empty_stdin(why: str) -> None:
    """Let ``sys.stdin`` be empty, and say why when it is read."""
    _replace(_Empty(why))


def _replace(raw: io.RawIOBase) -> None:
    encoding, errors = "utf-8", "strict"
    if sys.stdin is not None:
        encoding, errors = sys.stdin.encoding, sys.stdin.errors or errors
    buffer = io.BufferedReader(raw)
    sys.stdin = io.TextIOWrapper(buffer, encoding=encoding, errors=errors)


class _Raw(io.RawIOBase):
    """A raw file on descriptor 0, which ``select`` and the like ask for."""

    name = "<stdin>"
    mode = "rb"

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0


def _ignore_wait(*, on: bool) -> None:
    return


class _Empty(_Raw):
    def __init__(self, why: str) -> None:
        self._why = why

    def readinto(self, buffer: Any) -> int:
        if self._why:
            _logger.warning("The spider reads stdin, which is empty: %s", self._why)
            self._why = ""
        return 0


class KeptStdin(_Raw):
    """Reads ``fd`` by way of a file; see the module."""

    def __init__(
        self,
        fd: int,
        keep_at: bytes,
        begins_at: int = 0,
        *,
        ahead_bytes_max: int = AHEAD_BYTES_MAX,
        on_wait: OnWait = _ignore_wait,
    ) -> None:
        self._fd = fd
        self._path = keep_at
        self._begins_at = begins_at
        self._ahead_bytes_max = ahead_bytes_max
        self._on_wait = on_wait
        self._file = -1
        self._position = 0
        # Bytes in the file. A change of size, end or error notifies ``_changed``.
        self._size = 0
        self._is_complete = False
        self._error: OSError | None = None
        self._changed = threading.Condition()

    def readinto(self, buffer: Any) -> int:
        """Wait for input and read it; returns 0 at the end."""
        if self._file < 0:
            self._begin()
        with self._changed:
            self._wait()
            if self._size == self._position and self._error is not None:
                raise self._error
            count = os.preadv(self._file, [buffer], self._position)
            self._position += count
            self._changed.notify_all()
        return count

    def _wait(self) -> None:
        is_loop = threading.current_thread() is threading.main_thread()
        if self._is_ready() or not is_loop:
            self._changed.wait_for(self._is_ready)
            return
        self._on_wait(on=True)
        try:
            self._changed.wait_for(self._is_ready)
        finally:
            self._on_wait(on=False)

    def _is_ready(self) -> bool:
        has_ended = self._is_complete or self._error is not None
        return self._size > self._position or has_ended

    def _begin(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self._path + PART_SUFFIX, flags, 0o600)
        # Input that an earlier process has kept comes first.
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        # The thread may wait for ever, and must not hold up the process's end.
        threading.Thread(target=self._copy, name="stdin", daemon=True).start()

    def _copy(self) -> None:
        try:
            step = self._choose_step()
            while count := step():
                with self._changed:
                    self._size += count
                    self._changed.notify_all()
                    self._changed.wait_for(
                        lambda: self._size - self._position < self._ahead_bytes_max
                    )
            os.fsync(self._file)
            os.rename(self._path + PART_SUFFIX, self._path)
        except OSError as error:
            self._error = error
        with self._changed:
            self._is_complete = self._error is None
            self._changed.notify_all()

    def _choose_step(self) -> Callable[[], int]:
        """Return a function that copies the next bytes and returns how many, 0 at the
        end."""
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISREG(mode):
            return self._copy_place
        if not stat.S_ISFIFO(mode) or not hasattr(os, "splice"):
            return lambda: self._do_when_readable(self._copy_read)
        return lambda: self._do_when_readable(self._splice)

    def _do_when_readable(self, step: Callable[[], int]) -> int:
        """Do a step; where the descriptor does not wait by itself, wait for it."""
        while True:
            try:
                return step()
            except BlockingIOError:
                select.select([self._fd], [], [])

    def _splice(self) -> int:
        try:
            return os.splice(self._fd, self._file, STEP_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            # The file system cannot splice; an error of the disk comes again.
            return self._copy_read()

    def _copy_read(self) -> int:
        return self._write(os.read(self._fd, STEP_BYTES))

    def _copy_place(self) -> int:
        place = self._begins_at + self._size
        count = self._write(os.pread(self._fd, STEP_BYTES, place))
        if not count:
            # Leave the offset at the end for programs that read on in this file.
            os.lseek(self._fd, place, os.SEEK_SET)
        return count

    def _write(self, data: bytes) -> int:
        unwritten = memoryview(data)
        while unwritten:
            unwritten = unwritten[os.write(self._file, unwritten) :]
        return len(data)
