"""A job's log for people: each line with its process, from a level on, the last ones.

The log names a process before its first line and wherever another one's lines follow:
``--- process 3 on w1 ---``. Those headings become labels, ``[3]``; the first of each
process stays, since it says where the process runs. A line without a level (a
traceback, what a spider prints) belongs to the line before it of its process.
"""

import re
from collections import deque
from collections.abc import Callable

from dscrapy.lines import HEADING

# As Scrapy's LOG_FORMAT has it; of another format no level is known.
_LEVEL = re.compile(
    rb"[0-9]{4}-[0-9]{2}-[0-9]{2} \S+ \[[^\]\n]*\] "
    rb"(DEBUG|INFO|WARNING|ERROR|CRITICAL):"
)
# What every heading begins with.
_MARK = b"--- process "
_RANKS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class LogLines:
    """Takes a log's bytes as they come and writes its lines.

    ``level`` is the least that is written. With ``tail`` lines are kept back, the last
    so many of them, until ``release``.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        level: str | None = None,
        tail: int | None = None,
    ) -> None:
        self._write = write
        self._least = _RANKS[level] if level else 0
        self._kept: deque[bytes] | None = None if tail is None else deque(maxlen=tail)
        self._cut = b""
        self._process = b""
        # By process: whether its latest line that has a level is written.
        self._shows: dict[bytes, bool] = {}

    def take(self, data: bytes) -> None:
        """Take bytes; a line is written when its end is there."""
        lines = (self._cut + data).split(b"\n")
        self._cut = lines.pop()
        shown = [out for line in lines for out in self._line(line)]
        self._put(shown)

    def release(self) -> None:
        """Write what was kept back; from now on lines are written as they come."""
        kept, self._kept = self._kept, None
        self._put(list(kept or ()))

    def end(self) -> None:
        """Write what is left, if need be without its end."""
        if self._cut:
            last, self._cut = self._cut, b""
            self._put(self._line(last))
        self.release()

    def _put(self, lines: list[bytes]) -> None:
        if self._kept is not None:
            self._kept.extend(lines)
        elif lines:
            self._write(b"".join(lines))

    def _line(self, line: bytes) -> list[bytes]:
        """Return the line as it is written, or nothing."""
        heading = HEADING.match(line)
        if heading:
            self._process = heading[1]
            return [line + b"\n"] if heading[2] else []
        level = _LEVEL.match(line)
        if level:
            is_enough = _RANKS[level[1].decode()] >= self._least
            self._shows[self._process] = is_enough
        if not self._shows.get(self._process, True):
            return []
        label = b"[%s] " % self._process if self._process else b""
        return [label + line + b"\n"]


class HeadingsInUse:
    """Takes a log's bytes as they come and leaves out headings with no line under them.

    Such are all headings where the processes write their logs elsewhere.
    """

    def __init__(self) -> None:
        # The latest heading, until a line follows.
        self._heading = b""
        # The beginning of a line that may be a heading.
        self._undecided = b""
        # Whether the line that comes is shown so far, without its end.
        self._is_begun = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return those to show: all but headings at once."""
        *lines, beginning = (self._undecided + data).split(b"\n")
        self._undecided = b""
        shown = []
        for line in lines:
            if not self._is_begun and HEADING.match(line):
                self._heading = line + b"\n"
            else:
                shown.append(self._under_heading(line + b"\n"))
            self._is_begun = False
        if not self._is_begun and (
            beginning.startswith(_MARK) or _MARK.startswith(beginning)
        ):
            self._undecided = beginning
        else:
            shown.append(self._under_heading(beginning))
            self._is_begun = True
        return b"".join(shown)

    def end(self) -> bytes:
        """Return what is left: the beginning of a line that had no end."""
        beginning, self._undecided = self._undecided, b""
        return self._under_heading(beginning) if beginning else b""

    def _under_heading(self, line: bytes) -> bytes:
        heading, self._heading = self._heading, b""
        return heading + line
