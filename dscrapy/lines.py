"""Lines: Scrapy's formats of lines, lines of a stream that comes in pieces, and
headings in a job's log."""

import re

# Export formats of one JSON object a line.
LINES_FORMATS = frozenset({"jsonl", "jl", "jsonlines"})

# A heading in a job's log names the process, and a process's first one its worker.
HEADING = re.compile(rb"--- process ([0-9]{1,18})( on [^\n]*)? ---\r?\Z")


def heading(process: int, worker: str = "") -> bytes:
    """Return the line, with its end, that stands before lines of a process."""
    where = f" on {worker}" if worker else ""
    return f"--- process {process}{where} ---\n".encode()


class LineCutter:
    """Cuts a stream of bytes into lines, however long they are, however it was split.

    A byte is copied when it comes and when its line is whole: the time that a line
    takes grows with its length only.
    """

    def __init__(self) -> None:
        self._cut: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the lines that they complete, without their ends."""
        first, *lines = data.split(b"\n")
        self._cut.append(first)
        if not lines:
            return []
        whole, self._cut = b"".join(self._cut), [lines.pop()]
        return [whole, *lines]
