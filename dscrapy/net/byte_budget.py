"""Bytes that several tasks may hold together; a task that wants more waits its turn."""

import trio

# What a value of a message takes in memory at most, with what holds it: measured for
# each of the messages, in CPython 3.11 to 3.13 (an entry of stats is the largest).
VALUE_BYTES = 160


def weight_of(frame: bytes) -> int:
    """Return how many bytes the frame's message takes at most once it is decoded.

    Each value of a message stands behind one of three signs. Values inside of bodies
    count too, although bodies are not decoded.
    """
    values = frame.count(b",") + frame.count(b"[") + frame.count(b"{")
    return len(frame) + VALUE_BYTES * values


class Room:
    """``bytes_max`` for all tasks; who wants more than that gets it alone."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        # Fair: whoever wants much is not overtaken for ever by those who want little.
        self._turn = trio.Lock()
        self._given_back = trio.Event()

    async def take(self, count: int) -> None:
        """Take so many bytes as soon as they are free."""
        async with self._turn:
            while not self._has(count):
                await self._given_back.wait()
            self.used += count

    def give(self, count: int) -> None:
        """Give back what was taken."""
        self.used -= count
        assert self.used >= 0, self.used
        self._given_back.set()
        self._given_back = trio.Event()

    def _has(self, count: int) -> bool:
        return not self.used or self.used + count <= self.bytes_max
