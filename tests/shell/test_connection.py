"""A connection over streams in memory: cut, slow, cancelled, and too long."""

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.net.connection import (
    SEND_TIMEOUT_S,
    Connection,
)
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FRAME_BYTES_MAX, encode_frame

MESSAGES = (m.Heartbeat(number=1), m.Draining(), m.Heartbeat(number=2))
FRAMES = tuple(encode_frame(encode(message)) for message in MESSAGES)
STREAM = b"".join(FRAMES)
Stream = trio.StapledStream[
    trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
]


def connection_on(stream: trio.abc.Stream) -> Connection[Any]:
    """Return a master's side of a worker's connection, after the handshake."""
    return Connection(stream, Decoder(m.FromWorker), role="worker")


def connected() -> tuple[Connection[Any], Stream]:
    """Return such a side and the stream of the other."""
    ours, theirs = trio.testing.memory_stream_pair()
    return connection_on(ours), theirs


async def hear(connection: Connection[Any]) -> list[Any]:
    """Return all messages until the end, or until an error, whose code is last."""
    said: list[Any] = []
    try:
        while (message := await connection.receive()) is not None:
            said.append(message)
    except RemoteProtocolError as error:
        said.append(error.code)
    return said


class Narrow(trio.abc.HalfCloseableStream):
    """Takes ``room`` bytes, then nothing; counts what is read from it."""

    def __init__(self, stream: Stream, room: int = 0) -> None:
        self.stream = stream
        self.room = room
        self.is_closed = False
        self.is_broken = False
        self.read_bytes = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send what there is room for, then wait for ever."""
        if self.is_closed:
            raise trio.ClosedResourceError
        if self.is_broken:
            raise trio.BrokenResourceError
        part = bytes(data)[: self.room]
        self.room -= len(part)
        await self.stream.send_all(part)
        if len(part) < len(data):
            await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        """Never known."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Say that no more is sent."""
        await self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read, and count."""
        data = await self.stream.receive_some(max_bytes)
        self.read_bytes += len(data)
        return data

    async def aclose(self) -> None:
        """Close both directions at once."""
        self.is_closed = True
        self.stream.send_stream.close()
        self.stream.receive_stream.close()


# ---- reading -----------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
async def test_a_stream_cut_anywhere_is_a_clean_end_or_cut_short(
    cut: int, autojump_clock: MockClock
) -> None:
    """Whole messages arrive; an end inside a frame is an error, between frames none."""
    connection, theirs = connected()
    await theirs.send_all(STREAM[:cut])
    await theirs.send_eof()
    whole = [n for n in range(4) if len(b"".join(FRAMES[:n])) <= cut][-1]
    is_clean = cut == len(b"".join(FRAMES[:whole]))
    end = [] if is_clean else ["cut_short"]
    assert await hear(connection) == [*MESSAGES[:whole], *end]


async def test_messages_arrive_whatever_the_reads_give(
    autojump_clock: MockClock,
) -> None:
    """One byte for each read is as good as all at once."""
    ours, theirs = trio.testing.lockstep_stream_pair()

    async def trickle() -> None:
        for at in range(len(STREAM)):
            await theirs.send_all(STREAM[at : at + 1])
        await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert await hear(connection_on(ours)) == list(MESSAGES)


async def test_a_long_frame_is_refused_before_its_bytes_are_stored(
    autojump_clock: MockClock,
) -> None:
    """After the length nothing more is read, however much the other side sends."""
    ours, theirs = trio.testing.memory_stream_pair()
    narrow = Narrow(ours)
    connection = connection_on(narrow)
    await theirs.send_all((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(RemoteProtocolError, match="frame_too_long"):
        await connection.receive()
    assert narrow.read_bytes == 4
    await theirs.send_all(bytes(1_000_000))
    with pytest.raises(RemoteProtocolError, match="frame_too_long"):
        await connection.receive()
    assert narrow.read_bytes == 4


async def test_a_flood_in_the_buffer_lets_others_run(
    autojump_clock: MockClock,
) -> None:
    """Each message gives way, though the next one needs no read."""
    connection, theirs = connected()
    await theirs.send_all(FRAMES[0] * 50)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(50):
            await connection.receive()
        nursery.cancel_scope.cancel()
    assert turns >= 49


@pytest.mark.parametrize("arrived", range(len(STREAM) + 1))
async def test_a_cancelled_receive_loses_no_message(
    arrived: int, autojump_clock: MockClock
) -> None:
    """Cancelled before, while and after anything came: the next call has it all."""
    connection, theirs = connected()
    said: list[Any] = []

    async def try_to_hear() -> None:
        with trio.move_on_after(1):
            while True:
                said.append(await connection.receive())

    await try_to_hear()
    await theirs.send_all(STREAM[:arrived])
    with trio.CancelScope() as scope:
        scope.cancel()
        said.append(await connection.receive())
    await try_to_hear()
    await theirs.send_all(STREAM[arrived:])
    await try_to_hear()
    assert said == list(MESSAGES)


@pytest.mark.parametrize("steps", range(12))
async def test_a_receive_cancelled_at_any_step_loses_no_message(
    steps: int, autojump_clock: MockClock
) -> None:
    """Also between two of its own checkpoints, with whole frames in the buffer."""
    connection, theirs = connected()
    await theirs.send_all(STREAM)
    await theirs.send_eof()
    said: list[Any] = []
    scope = trio.CancelScope()

    async def cancel() -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with scope:
            while (message := await connection.receive()) is not None:
                said.append(message)
    assert said + await hear(connection) == list(MESSAGES)


BAD_FRAMES = {
    "invalid UTF-8": b'{"type":"draining\xff"}',
    "invalid UTF-8 inside an item": (
        b'{"type":"commit","job":"j","process":1,"request":1,"part":0,"last":false,'
        b'"items":[{"a":"\xff"}]}'
    ),
    "a surrogate in UTF-8 inside an item": (
        b'{"type":"commit","job":"j","process":1,"request":1,"part":0,"last":false,'
        b'"items":["\xed\xa0\x80"]}'
    ),
    "deep": b"[" * 1_000_000,
    "deep inside an item": (
        b'{"type":"commit","job":"j","process":1,"request":1,"part":0,"last":false,'
        b'"items":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}"
    ),
    "another union's message": encode(m.Ping(call=1)),
}


@pytest.mark.parametrize("bad", BAD_FRAMES.values(), ids=BAD_FRAMES)
async def test_a_frame_that_is_no_message_is_our_error(
    bad: bytes, autojump_clock: MockClock
) -> None:
    """What came before it counts; the error has its code and one short line."""
    connection, theirs = connected()
    await theirs.send_all(FRAMES[0] + encode_frame(bad))
    assert await connection.receive() == MESSAGES[0]
    with pytest.raises(RemoteProtocolError) as caught:
        await connection.receive()
    assert caught.value.code == "bad_message"
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 200


# ---- sending -----------------------------------------------------------------------


async def test_senders_do_not_mix_their_frames(autojump_clock: MockClock) -> None:
    """Any task may send: frames arrive whole, one after the other."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    sender, receiver = connection_on(ours), connection_on(theirs)

    async def listen() -> None:
        said: list[Any] = [await receiver.receive() for _ in range(20)]
        assert {one.number for one in said} == set(range(20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for number in range(20):
            nursery.start_soon(sender.send, m.Heartbeat(number=number))


@pytest.mark.parametrize("room", [0, 1, 4, len(FRAMES[0]) - 1])
async def test_a_cancelled_send_closes_the_stream(
    room: int, autojump_clock: MockClock
) -> None:
    """Half a frame may be out: nothing may follow it, and the other side sees it."""
    ours, theirs = trio.testing.memory_stream_pair()
    narrow = Narrow(ours, room)
    connection = connection_on(narrow)
    with trio.move_on_after(1) as scope:
        await connection.send(MESSAGES[0])
    assert scope.cancelled_caught
    assert narrow.is_closed
    with pytest.raises(trio.ClosedResourceError):
        await connection.send(MESSAGES[1])
    assert await hear(connection_on(theirs)) == (["cut_short"] if room else [])


async def test_who_waits_to_send_may_be_cancelled(autojump_clock: MockClock) -> None:
    """Nothing of its frame is out, so the one that is under way goes on."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    sender, receiver = connection_on(ours), connection_on(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, MESSAGES[0])
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await sender.send(MESSAGES[1])
        assert scope.cancelled_caught
        assert await receiver.receive() == MESSAGES[0]
        nursery.start_soon(sender.send, MESSAGES[2])
        assert await receiver.receive() == MESSAGES[2]


async def test_a_peer_that_takes_nothing_is_gone_in_time(
    autojump_clock: MockClock,
) -> None:
    """A send ends after its timeout, as a broken stream, and closes it."""
    ours, _ = trio.testing.memory_stream_pair()
    narrow = Narrow(ours, 3)
    began = trio.current_time()
    with pytest.raises(trio.BrokenResourceError, match="takes nothing"):
        await connection_on(narrow).send(MESSAGES[0])
    assert trio.current_time() - began == pytest.approx(SEND_TIMEOUT_S)
    assert narrow.is_closed


async def test_what_has_arrived_is_read_though_sending_fails(
    autojump_clock: MockClock,
) -> None:
    """A peer that said its last words and went: they count."""
    ours, theirs = trio.testing.memory_stream_pair()
    narrow = Narrow(ours)
    connection = connection_on(narrow)
    await theirs.send_all(STREAM)
    await theirs.aclose()
    narrow.is_broken = True
    with pytest.raises(trio.BrokenResourceError):
        await connection.send(MESSAGES[0])
    assert await hear(connection) == list(MESSAGES)


@pytest.mark.parametrize("leave", ["aclose", "block", "error"])
async def test_a_connection_that_is_left_is_closed(
    leave: str, autojump_clock: MockClock
) -> None:
    """The other side sees the end; whoever reads on this side is told."""
    connection, theirs = connected()
    if leave == "aclose":
        await connection.aclose()
    elif leave == "block":
        async with connection as same:
            assert same is connection
    else:
        with pytest.raises(ZeroDivisionError):
            async with connection:
                raise ZeroDivisionError
    assert await theirs.receive_some(1) == b""
    with pytest.raises(trio.ClosedResourceError):
        await connection.receive()
