"""A stream after its handshake, as a reader and a writer of messages.

One task reads, any task may send. A send that was cancelled or took too long may
have left half a frame behind, so it closes the stream; on a broken one, what had
already arrived can still be read. The stream is anything trio calls a stream: TCP now,
TLS later, memory in the tests.
"""

import math
import secrets
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import trio

from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import Message
from dscrapy.net.byte_budget import Room
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    FrameReader,
    encode_frame,
)
from dscrapy.proto.handshake import (
    HANDSHAKE_FRAME_BYTES_MAX,
    NONCE_BYTES,
    Handshake,
    Phase,
    Role,
)

T = TypeVar("T")

# One read; a larger buffer saves system calls on large commits.
_READ_BYTES = 65536
# One read before the proof: a peer that has not proved the token makes this side hold
# no more than two frames of the handshake.
_HANDSHAKE_READ_BYTES = LENGTH_BYTES + HANDSHAKE_FRAME_BYTES_MAX
# A frame that takes room which others wait for has to arrive within this time.
FRAME_TIMEOUT_S = 60.0
# A peer that takes nothing for this long is as good as gone.
SEND_TIMEOUT_S = 60.0


class Connection(Generic[T]):
    """Messages over one stream; ``T`` is what may arrive.

    Use as an async context manager: leaving it closes the stream. Where peers are many,
    ``room`` bounds what all their unfinished frames take (those longer than one read),
    and ``admit`` waits, given a frame, until its message may be made of it.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        decoder: Decoder[T],
        *,
        role: Role,
        frames: FrameReader | None = None,
    ) -> None:
        """``frames`` holds what the handshake read beyond its own frames."""
        self.role = role
        self._stream = stream
        self._decoder = decoder
        self._frames = frames or FrameReader()
        self._frames.frame_bytes_max = FRAME_BYTES_MAX
        self._sending = trio.Lock()
        self.room: Room | None = None
        self.admit: Callable[[bytes], Awaitable[None]] | None = None

    async def receive(self) -> T | None:
        """Return the next message, or None when the other side has ended.

        Raises ``RemoteProtocolError`` for a frame that is malformed or was cut short,
        ``trio.BrokenResourceError`` or ``trio.ClosedResourceError`` when the
        stream is gone.
        """
        frame = await self._receive_frame()
        if frame is None:
            return None
        if self.admit is not None:
            await self.admit(frame)
        return self._decoder.decode(frame)

    async def _receive_frame(self) -> bytes | None:
        # As in ``_next_frame``.
        await trio.lowlevel.checkpoint()
        taken, deadline = 0, math.inf
        try:
            while (frame := self._frames.next_frame()) is None:
                size = self._frames.announced
                if self.room is not None and not taken and size > _READ_BYTES:
                    await self.room.take(size)
                    taken, deadline = size, trio.current_time() + FRAME_TIMEOUT_S
                with trio.CancelScope(deadline=deadline) as scope:
                    if not await _read(self._stream, self._frames, _READ_BYTES):
                        return None
                if scope.cancelled_caught:
                    text = f"{size} bytes took more than {FRAME_TIMEOUT_S:g} s"
                    raise RemoteProtocolError("too_slow", text)
            return frame
        finally:
            if self.room is not None and taken:
                self.room.give(taken)

    async def send(self, message: Message) -> None:
        """Send one message whole, or close the stream and raise.

        Raises ``trio.BrokenResourceError`` or ``trio.ClosedResourceError``.
        """
        await self.send_frame(encode_frame(encode(message)))

    async def send_frame(self, frame: bytes) -> None:
        """Send what ``encode_frame`` gave, one frame or several in a row."""
        async with self._sending:
            try:
                with trio.fail_after(SEND_TIMEOUT_S):
                    await self._stream.send_all(frame)
            except trio.TooSlowError:
                await trio.aclose_forcefully(self._stream)
                raise trio.BrokenResourceError("the peer takes nothing") from None
            except trio.Cancelled:
                await trio.aclose_forcefully(self._stream)
                raise

    async def aclose(self) -> None:
        """Close the stream; whoever reads it gets ``trio.ClosedResourceError``."""
        await self._stream.aclose()

    async def __aenter__(self) -> "Connection[T]":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await trio.aclose_forcefully(self._stream)


async def accept(
    stream: trio.abc.Stream, *, token: str, incoming: dict[Role, Any]
) -> Connection[Any]:
    """Shake hands with a side that dialled; ``incoming`` gives a union by role.

    The caller sets the deadline and closes the stream when this raises
    (``RemoteProtocolError``, trio's stream errors).
    """
    handshake = Handshake(token=token, nonce=_nonce())
    frames = await _shake(stream, handshake)
    assert handshake.role is not None
    if handshake.role not in incoming:
        raise RemoteProtocolError("bad_role", f"nobody here serves {handshake.role}s")
    decoder: Decoder[Any] = Decoder(incoming[handshake.role])
    return Connection(stream, decoder, role=handshake.role, frames=frames)


async def greet(
    stream: trio.abc.Stream, *, token: str, role: Role, incoming: Any
) -> Connection[Any]:
    """Shake hands on a stream that this side dialled; errors as ``accept``."""
    handshake = Handshake(token=token, nonce=_nonce(), role=role)
    frames = await _shake(stream, handshake)
    decoder: Decoder[Any] = Decoder(incoming)
    return Connection(stream, decoder, role=role, frames=frames)


async def dial(
    host: str, port: int, *, token: str, role: Role, incoming: Any, timeout_s: float
) -> Connection[Any]:
    """Connect and shake hands within ``timeout_s`` seconds.

    Raises ``OSError`` when nobody answers there in time,
    ``proto.handshake.Unauthorised`` for a wrong token and ``RemoteProtocolError``
    when what answers is no dscrapy of our version.
    """
    with trio.move_on_after(timeout_s):
        stream = await trio.open_tcp_stream(host, port)
        try:
            return await greet(stream, token=token, role=role, incoming=incoming)
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error, trio.BrokenResourceError):
                raise RemoteProtocolError(
                    "no_handshake", "the other side hung up during the handshake"
                ) from error
            raise
    raise OSError(f"no answer from {host}:{port} within {timeout_s:g} s")


async def _shake(stream: trio.abc.Stream, handshake: Handshake) -> FrameReader:
    frames = FrameReader(HANDSHAKE_FRAME_BYTES_MAX)
    first = handshake.start()
    if first is not None:
        await stream.send_all(encode_frame(first))
    while handshake.phase is not Phase.DONE:
        frame = await _next_frame(stream, frames, _HANDSHAKE_READ_BYTES)
        if frame is None:
            raise RemoteProtocolError(
                "no_handshake", "the other side hung up during the handshake"
            )
        try:
            answer = handshake.receive(frame)
        except RemoteProtocolError:
            if handshake.last_words is not None:
                await stream.send_all(encode_frame(handshake.last_words))
            raise
        if answer is not None:
            await stream.send_all(encode_frame(answer))
    return frames


async def _next_frame(
    stream: trio.abc.Stream, frames: FrameReader, read_bytes: int = _READ_BYTES
) -> bytes | None:
    # A flood of buffered frames must not starve the other tasks. The checkpoint comes
    # before a frame is taken, so that a cancelled call loses none.
    await trio.lowlevel.checkpoint()
    while True:
        frame = frames.next_frame()
        if frame is not None:
            return frame
        if not await _read(stream, frames, read_bytes):
            return None


async def _read(stream: trio.abc.Stream, frames: FrameReader, read_bytes: int) -> bool:
    """Read once; False at the end of the stream."""
    data = await stream.receive_some(read_bytes)
    if data:
        frames.feed(data)
    elif not frames.is_between_frames:
        raise RemoteProtocolError("cut_short", "the stream ended inside a frame")
    return bool(data)


def _nonce() -> str:
    return secrets.token_hex(NONCE_BYTES)
