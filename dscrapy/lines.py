"""Lines: Scrapy's formats of them, and those of a stream that comes in pieces."""

# Export formats of one JSON object a line.
LINES_FORMATS = frozenset({"jsonl", "jl", "jsonlines"})


class LineCutter:
    """Cuts a stream of bytes into lines, however long they are and it was split.

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
