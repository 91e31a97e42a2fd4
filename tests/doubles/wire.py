"""A connection in memory that delays, splits, loses, holds and cuts its bytes.

Each of its two ways is a queue of bytes with the instant at which they arrive, so
what is under way is known: bytes that have arrived can be read even when the
connection breaks behind them, as with TCP. Time is trio's, and so may be virtual.
"""

import operator
import random
from collections import deque
from typing import Literal

import attrs
import trio

# Bytes that one way takes before its sender waits; as small as a real socket's.
WAY_BYTES_MAX = 256 * 1024
# How a connection is cut: both sides learn it as an error, or as an ordinary end.
CutKind = Literal["reset", "end"]


@attrs.define(eq=False)
class Way:
    """The bytes for one end.

    ``is_held``: nothing arrives until it is released (a partition). ``is_lost``: what
    is sent vanishes, and the sender is none the wiser. ``cut_after``: so many bytes
    more, then the connection is cut.
    """

    waiting: deque[tuple[float, bytes]] = attrs.field(factory=deque)
    size: int = 0
    last_at: float = 0.0
    read_at: float = 0.0
    is_held: bool = False
    is_lost: bool = False
    is_ended: bool = False
    is_broken: bool = False
    cut_after: int | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)

    def wake(self) -> None:
        """Let whoever waits for this way look again."""
        self.changed.set()
        self.changed = trio.Event()

    def put(self, data: bytes, at: float) -> None:
        """Take bytes that arrive then, or when those before them have."""
        at = self.last_at = max(at, self.last_at)
        self.waiting.append((at, data))
        self.size += len(data)
        self.wake()

    def take(self, count: int | None, now: float) -> bytes:
        """Return what has arrived, up to ``count`` bytes."""
        if self.is_held:
            return b""
        taken: list[bytes] = []
        size = 0
        while self.waiting and self.waiting[0][0] <= now:
            at, data = self.waiting[0]
            left = len(data) if count is None else count - size
            if left <= 0:
                break
            self.read_at = at
            if left < len(data):
                self.waiting[0] = (at, data[left:])
                data = data[:left]
            else:
                self.waiting.popleft()
            taken.append(data)
            size += len(data)
        if size:
            self.size -= size
            self.wake()
        return b"".join(taken)

    def arrived_at(self, now: float) -> float:
        """Return when the latest byte arrived, read or not; 0.0 if none has."""
        if self.is_held:
            return self.read_at
        past = [at for at, _ in self.waiting if at <= now]
        return max([self.read_at, *past])

    def release(self, now: float) -> None:
        """Let arrive what was held, from now on."""
        self.is_held = False
        self.waiting = deque((max(at, now), data) for at, data in self.waiting)
        self.last_at = max(self.last_at, now)
        self.wake()

    def lose(self) -> None:
        """Forget what has not arrived, and whatever is sent from now on."""
        self.is_lost = True
        self.waiting.clear()
        self.size = 0
        self.wake()


@attrs.define(eq=False)
class End(trio.abc.Stream):
    """One side of a ``Wire``: it reads from ``incoming``, writes to ``outgoing``.

    ``is_gone``: this side alone has learned that the connection is no more.
    """

    wire: "Wire"
    incoming: Way
    outgoing: Way
    is_closed: bool = False
    is_gone: bool = False
    _is_sending: bool = False
    _is_receiving: bool = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task sends")
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint()
            await self._send(data)
        finally:
            self._is_sending = False

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        way = self.outgoing
        while True:
            if self.is_closed:
                raise trio.ClosedResourceError
            if way.is_broken or self.is_gone:
                raise trio.BrokenResourceError("the connection is gone")
            if way.size < WAY_BYTES_MAX:
                break
            await way.changed.wait()
        if data and not way.is_lost:
            self.wire.carry(way, bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self.send_all(b"")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            await trio.lowlevel.checkpoint()
            raise ValueError("at least one byte is asked for")
        if self._is_receiving:
            raise trio.BusyResourceError("another task receives")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint()
            return await self._receive(max_bytes)
        finally:
            self._is_receiving = False

    async def _receive(self, max_bytes: int | None) -> bytes:
        way = self.incoming
        while True:
            if self.is_closed:
                raise trio.ClosedResourceError
            now = trio.current_time()
            data = way.take(self.wire.read_bytes(max_bytes), now)
            if data:
                return data
            has_more = bool(way.waiting) and not way.is_held
            if self.is_gone or (not has_more and way.is_broken):
                raise trio.BrokenResourceError("the connection is gone")
            if not has_more and way.is_ended and not way.is_held:
                return b""
            if has_more:
                with trio.move_on_at(way.waiting[0][0]):
                    await way.changed.wait()
            else:
                await way.changed.wait()

    async def aclose(self) -> None:
        self.shut()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """Close this side; the other one reads to the end, and cannot send."""
        if self.is_closed:
            return
        self.is_closed = True
        if not self.outgoing.is_lost:
            self.outgoing.is_ended = True
        if not self.incoming.is_lost:
            self.incoming.is_broken = True
        self.outgoing.wake()
        self.incoming.wake()


@attrs.define(eq=False, init=False)
class Wire:
    """A connection: ``ends`` are the side that dialled and the side that serves.

    ``lag_s`` bounds what bytes take; with ``splits`` reads end anywhere. ``rng`` draws
    both.
    """

    ends: tuple[End, End]
    lag_s: float
    splits: float
    rng: random.Random

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        lag_s: float = 0.0,
        splits: float = 0.0,
    ) -> None:
        there, back = Way(), Way()
        self.ends = (
            End(wire=self, incoming=back, outgoing=there),
            End(wire=self, incoming=there, outgoing=back),
        )
        self.rng = rng or random.Random(0)
        self.lag_s = lag_s
        self.splits = splits

    @property
    def ways(self) -> tuple[Way, Way]:
        """The way there, from the side that dialled, and the way back."""
        return self.ends[1].incoming, self.ends[0].incoming

    @property
    def is_over(self) -> bool:
        """Whether neither side can tell the other anything any more."""
        return all(way.is_broken or way.is_ended or way.is_lost for way in self.ways)

    def carry(self, way: Way, data: bytes) -> None:
        """Take bytes for one way; the cut that was planned may come with them."""
        lag_s = self.lag_s * self.rng.random() if self.lag_s else 0.0
        at = trio.current_time() + lag_s
        if way.cut_after is None or len(data) <= way.cut_after:
            if way.cut_after is not None:
                way.cut_after -= len(data)
            way.put(data, at)
            return
        if way.cut_after:
            way.put(data[: way.cut_after], at)
        self.cut("reset")

    def read_bytes(self, max_bytes: int | None) -> int | None:
        """Return how many bytes one read gives at most."""
        if self.splits and self.rng.random() < self.splits:
            few = self.rng.randint(1, 64)
            return few if max_bytes is None else min(few, max_bytes)
        return max_bytes

    def cut(self, kind: CutKind = "reset") -> None:
        """Cut both ways; what is under way still arrives."""
        for way in self.ways:
            if kind == "reset":
                way.is_broken = True
            else:
                way.is_ended = True
            way.wake()

    def abandon(self, side: int) -> None:
        """Let one side lose the connection; the other never learns of it."""
        end, other = self.ends[side], self.ends[1 - side]
        for way in self.ways:
            way.lose()
        end.is_gone = True
        other.outgoing.wake()
        end.incoming.wake()
