"""Programs at terminals of 80 columns, and waits for what they show."""

import contextlib
import errno
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.docs.shown_output import screen
from tests.hang import HANG_S

COLUMNS = 80
ROWS = 24
_READ_BYTES = 65536
# Between two looks at what no event tells: whether a program has ended.
_LOOK_S = 0.05
_END = b"\0all of it\0"


class Terminal:
    """A program, and all that it has written so far."""

    def __init__(
        self, words: list[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.reader, self._writer = pty.openpty()
        termios.tcsetwinsize(self._writer, (ROWS, COLUMNS))
        self._data = b""
        self.process = subprocess.Popen(
            words,
            stdin=self._writer,
            stdout=self._writer,
            stderr=self._writer,
            env=dict(environment),
            cwd=folder,
            # A shell and what it waits for are ended together.
            process_group=0,
        )

    @property
    def text(self) -> str:
        """What was to be seen, see ``screen``."""
        return screen(self._data.replace(_END, b""))

    @property
    def has_ended(self) -> bool:
        """Whether the program is there no more; what it wrote may not be read yet."""
        return self.process.poll() is not None

    @property
    def is_complete(self) -> bool:
        """Whether all is read that was written before ``mark_end``."""
        return _END in self._data

    def mark_end(self) -> None:
        """Write a mark behind what the program, which has ended, has written."""
        os.write(self._writer, _END)

    def read(self) -> None:
        """Take what is there; it is asked only when there is something."""
        try:
            self._data += os.read(self.reader, _READ_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    def close(self) -> None:
        """End the program and what it waits for."""
        # Only of a process that has not been waited for the number is its own.
        if not self.has_ended:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(HANG_S)
        os.close(self.reader)
        os.close(self._writer)


class Terminals:
    """All terminals of a walk: none of them stands still while one is waited for."""

    def __init__(self) -> None:
        self._open: list[Terminal] = []

    def open(
        self, words: list[str], environment: Mapping[str, str], folder: Path
    ) -> Terminal:
        """Start a program at a terminal of its own."""
        self._open.append(Terminal(words, environment, folder))
        return self._open[-1]

    def until(self, holds: Callable[[], bool], what: Callable[[], str]) -> None:
        """Read all terminals until ``holds``; ``what`` says what did not come."""
        end = time.monotonic() + HANG_S
        while not holds():
            assert time.monotonic() < end, what()
            readers = {one.reader: one for one in self._open}
            ready, _, _ = select.select(list(readers), [], [], _LOOK_S)
            for reader in ready:
                readers[reader].read()

    def finish(self, terminal: Terminal) -> int:
        """Read until the program has ended; return its exit code."""
        self.until(lambda: terminal.has_ended, lambda: terminal.text)
        terminal.mark_end()
        self.until(lambda: terminal.is_complete, lambda: terminal.text)
        return int(terminal.process.returncode)

    def close(self) -> None:
        """End all programs."""
        for one in reversed(self._open):
            one.close()


@contextlib.contextmanager
def terminals() -> Iterator[Terminals]:
    """Terminals whose programs do not outlive the block."""
    opened = Terminals()
    try:
        yield opened
    finally:
        opened.close()
