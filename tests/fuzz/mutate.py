"""Mutations of a corpus where no coverage guides: what ``child`` does without atheris,
and what the suite does for moments."""

from collections.abc import Iterator
from random import Random

# What breaks decoders: lengths, ends of numbers, quotes, controls, tags.
TOKENS = (
    *(b"\0", b"\xff" * 4, b"\0\0\0\0", b'"', b"{", b"[" * 50, b"}", b"\\ud800", b"\n"),
    *(b"-1", b"1e999", b"9" * 400, b"null", b"true", b'{"$i":', b"..", b"/", b"\x80"),
    *(b'"type":', b'"process":1', b'"request":1', b"\xfeREC", b"=", b"[[", b"'''"),
)


def inputs(seeds: list[bytes], random: Random, bytes_max: int) -> Iterator[bytes]:
    """Yield the seeds, then mutations of them without end."""
    yield from seeds
    while True:
        data = bytearray(random.choice(seeds))
        for _ in range(random.randint(1, 6)):
            _mutate(data, random, seeds)
        yield bytes(data[:bytes_max])


def _mutate(data: bytearray, random: Random, seeds: list[bytes]) -> None:
    at = random.randint(0, len(data))
    size = 1 << random.randint(0, 6)
    match random.randint(0, 6):
        case 0 if data:
            data[at % len(data)] ^= 1 << random.randint(0, 7)
        case 1 if data:
            data[at % len(data)] = random.randint(0, 255)
        case 2:
            data[at:at] = random.randbytes(size)
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[max(0, at - size) : at]
        case 5:
            data[at:at] = random.choice(TOKENS)
        case _:
            other = random.choice(seeds)
            start = random.randint(0, len(other))
            data[at : at + size] = other[start : start + size]
