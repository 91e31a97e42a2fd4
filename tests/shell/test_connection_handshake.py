"""How a connection begins: both ends, cut anywhere, and dialling real sockets."""

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
    Connection,
    accept,
    dial,
    greet,
)
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.proto.handshake import Handshake, Phase, Role, Unauthorised
from tests.hang import HANG_S

TOKEN = "token"
MESSAGES = (m.Heartbeat(number=1), m.Draining(), m.Heartbeat(number=2))
FRAMES = tuple(encode_frame(encode(message)) for message in MESSAGES)


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


async def dial_to(handler: Handler, timeout_s: float = HANG_S) -> Connection[Any]:
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

    with trio.fail_after(HANG_S):
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
                timeout_s=HANG_S,
            )
