"""A connection over streams in memory: cut, slow, cancelled, and too long."""

import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
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
    accept,
    dial,
    greet,
)
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FRAME_BYTES_MAX, FrameReader, encode_frame
from dscrapy.proto.session import Handshake, Phase, Role, Unauthorised

TOKEN = "token"
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


# ---- the handshake over a stream ---------------------------------------------------

INCOMING: dict[Role, Any] = {"client": m.ClientCall, "worker": m.FromWorker}


async def shake(
    ours: trio.abc.Stream,
    theirs: trio.abc.Stream,
    *,
    token: str = TOKEN,
    incoming: dict[Role, Any] = INCOMING,
) -> list[Any]:
    """Return what both sides came to, a connection or an error: dialler, acceptor."""
    result: list[Any] = [None, None]

    async def side(at: int, call: Callable[..., Any], *args: Any, **kw: Any) -> None:
        try:
            result[at] = await call(*args, **kw)
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            # As the callers do: whoever gets no connection closes the stream.
            await trio.aclose_forcefully(args[0])
            result[at] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: side(
                0, greet, ours, token=token, role="worker", incoming=m.ToWorker
            )
        )
        nursery.start_soon(
            lambda: side(1, accept, theirs, token=TOKEN, incoming=incoming)
        )
    return result


async def test_both_ends_come_to_a_connection(autojump_clock: MockClock) -> None:
    """Each decodes what the other may send, and frames may be long from then on."""
    ours, theirs = await shake(*trio.testing.memory_stream_pair())
    assert ours.role == theirs.role == "worker"
    long = m.Log(job="j", process=1, data=bytes(100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, long)
        assert await theirs.receive() == long
    await theirs.send(m.HeartbeatSeen(number=1))
    assert await ours.receive() == m.HeartbeatSeen(number=1)


async def test_what_comes_with_the_last_frame_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    """A dialling side may send its first message at once, in the same bytes."""
    ours, theirs = trio.testing.memory_stream_pair()
    dialler = Handshake(token=TOKEN, nonce="1" * 32, role="worker")
    frames = FrameReader()
    heard: list[Any] = []

    async def serve() -> None:
        connection = await accept(theirs, token=TOKEN, incoming=INCOMING)
        heard.append(await connection.receive())
        heard.append(await connection.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        said = dialler.start()
        tail = b""
        while said is not None:
            await ours.send_all(encode_frame(said) + tail)
            while (frame := frames.next_frame()) is None:
                frames.feed(await ours.receive_some(65536))
            said = dialler.receive(frame)
            if dialler.phase is Phase.CHOSEN:
                tail = FRAMES[0] + FRAMES[1][:5]
        await ours.send_all(FRAMES[1][5:])
    assert heard == [MESSAGES[0], MESSAGES[1]]


async def test_a_wrong_token_is_told_to_both_sides(autojump_clock: MockClock) -> None:
    """The dialling side hears why before the stream ends."""
    result = await shake(*trio.testing.memory_stream_pair(), token="another")
    assert [type(one) for one in result] == [Unauthorised, Unauthorised]


async def test_a_role_that_nobody_serves_is_refused(autojump_clock: MockClock) -> None:
    """A worker's own port has no use for workers."""
    _, refused = await shake(
        *trio.testing.memory_stream_pair(), incoming={"client": m.ClientCall}
    )
    assert isinstance(refused, RemoteProtocolError)
    assert refused.code == "bad_role"


def handshake_bytes() -> tuple[bytes, bytes]:
    """Return what each side sends in a whole handshake: dialler, acceptor."""
    said = (bytearray(), bytearray())
    sides = (
        Handshake(token=TOKEN, nonce="1" * 32, role="worker"),
        Handshake(token=TOKEN, nonce="2" * 32),
    )
    frame, turn = sides[0].start(), 0
    while frame is not None:
        said[turn].extend(encode_frame(frame))
        turn = 1 - turn
        frame = sides[turn].receive(frame)
    return bytes(said[0]), bytes(said[1])


@pytest.mark.parametrize("dials", [True, False])
async def test_a_handshake_cut_anywhere_is_our_error(
    dials: bool, autojump_clock: MockClock
) -> None:
    """Whichever side hangs up, at whichever byte: never a connection, never a hang."""
    call: Callable[[trio.abc.Stream], Awaitable[Any]] = (
        partial(greet, token=TOKEN, role="worker", incoming=m.ToWorker)
        if dials
        else partial(accept, token=TOKEN, incoming=INCOMING)
    )
    said = handshake_bytes()[1 if dials else 0]
    assert len(said) > 100
    for cut in range(len(said)):
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(said[:cut])
        await theirs.send_eof()
        with pytest.raises(RemoteProtocolError):
            await call(ours)


async def test_a_frame_over_256_bytes_before_the_proof_is_refused(
    autojump_clock: MockClock,
) -> None:
    """Whoever has proved nothing gets no room."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(encode_frame(bytes(257)))
    with pytest.raises(RemoteProtocolError, match="the limit is 256"):
        await accept(ours, token=TOKEN, incoming=INCOMING)


# ---- dialling, over real sockets ---------------------------------------------------


Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def dial_to(handler: Handler, timeout_s: float = 30.0) -> Connection[Any]:
    """Dial a server of this machine whose connections ``handler`` takes."""
    serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        connection = await dial(
            "127.0.0.1",
            port,
            token=TOKEN,
            role="client",
            incoming=m.Answer,
            timeout_s=timeout_s,
        )
        nursery.cancel_scope.cancel()
    return connection


async def test_dial_gives_a_connection() -> None:
    """Connected and proved: the first call can be made."""

    async def serve(stream: trio.SocketStream) -> None:
        await accept(stream, token=TOKEN, incoming=INCOMING)

    connection = await dial_to(serve)
    assert connection.role == "client"
    await connection.aclose()


async def test_dial_tells_a_wrong_token() -> None:
    """Somebody is there, but not for us."""

    async def serve(stream: trio.SocketStream) -> None:
        with pytest.raises(Unauthorised):
            await accept(stream, token="another", incoming=INCOMING)
        await stream.aclose()

    with pytest.RaisesGroup(Unauthorised):
        await dial_to(serve)


@pytest.mark.parametrize("is_rude", [False, True])
async def test_dial_tells_a_hang_up(is_rude: bool) -> None:
    """An end and a reset are the same to the caller: no master answers there."""

    async def hang_up(stream: trio.SocketStream) -> None:
        if is_rude:
            stream.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        else:
            # Read first: bytes left unread would make it a reset, too.
            await stream.receive_some(65536)
        await stream.aclose()

    with pytest.RaisesGroup(pytest.RaisesExc(RemoteProtocolError, match="hung up")):
        await dial_to(hang_up)


async def test_dial_gives_up_in_time_and_leaves_nothing_open() -> None:
    """Whoever accepts and says nothing is no answer; it sees the connection end."""
    ended = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65536):
            pass
        ended.set()

    async def dial_and_look() -> None:
        serve = partial(trio.serve_tcp, listen, 0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(serve)
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(OSError, match=f"127.0.0.1:{port} within 0.05 s"):
                await dial(
                    "127.0.0.1",
                    port,
                    token=TOKEN,
                    role="client",
                    incoming=m.Answer,
                    timeout_s=0.05,
                )
            await ended.wait()
            nursery.cancel_scope.cancel()

    with trio.fail_after(30):
        await dial_and_look()


async def test_dial_tells_that_nobody_listens() -> None:
    """The operating system's own refusal, as it comes."""
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        # Bound but not listening: nobody else can take it meanwhile.
        with pytest.raises(OSError, match=f"{port} failed"):
            await dial(
                "127.0.0.1",
                port,
                token=TOKEN,
                role="client",
                incoming=m.Answer,
                timeout_s=30.0,
            )
