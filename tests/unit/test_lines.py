"""Lines cut from a stream: whatever its pieces, and in time that grows with them."""

import random
from typing import Any

from dscrapy.lines import LineCutter


def test_lines_are_those_of_the_whole() -> None:
    """However it was split, empty lines and a last one without its end included."""
    rng = random.Random(1)
    for _ in range(200):
        data = bytes(rng.choices(b"ab\n", k=rng.randrange(30)))
        cutter, lines, at = LineCutter(), [], 0
        while at < len(data):
            count = rng.randrange(1, 6)
            lines += cutter.feed(data[at : at + count])
            at += count
        assert lines == data.split(b"\n")[:-1]


class Counted(bytes):
    """Bytes that count how many of them are looked at or joined to others."""

    touched = 0

    def split(self, *arguments: Any) -> list[bytes]:
        Counted.touched += len(self)
        return [Counted(piece) for piece in super().split(*arguments)]

    def __add__(self, other: Any) -> bytes:
        Counted.touched += len(self) + len(other)
        return Counted(super().__add__(other))

    def __radd__(self, other: bytes) -> bytes:
        Counted.touched += len(self) + len(other)
        return Counted(other + bytes(self))


def test_a_long_line_costs_its_length() -> None:
    """No piece is looked at again when the next one comes."""
    Counted.touched = 0
    cutter = LineCutter()
    pieces = [b"x" * 100] * 1000
    for piece in pieces:
        assert cutter.feed(Counted(piece)) == []
    assert cutter.feed(Counted(b"\n")) == [b"".join(pieces)]
    assert Counted.touched <= 2 * 1000 * 100
