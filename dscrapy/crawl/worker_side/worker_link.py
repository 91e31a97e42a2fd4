"""The crawl process's end of its link to the worker: first blocking, then asyncio.

Before there is an event loop ``receive`` and ``send`` block; ``attach`` hands the
socket to the loop. The link's end is the process's end, so it never reconnects.
"""

import asyncio
import socket
from collections.abc import Callable

from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import Message, ToCrawl
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame

# Large enough that a part of a commit is read or written in few system calls.
_RECEIVE_BYTES = 64 * 1024
# With more than this unwritten the worker is slow, and nothing new should be started:
# a few frames of commits.
_UNWRITTEN_BYTES = 4 * 1024 * 1024


class Link:
    """Frames on a stream socket; ``sock`` is closed by ``close``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._decoder: Decoder[ToCrawl] = Decoder(ToCrawl)
        self._transport: asyncio.Transport | None = None
        self._protocol: _Protocol | None = None

    def receive(self) -> ToCrawl | None:
        """Block until a message or, for None, the link's end."""
        assert self._transport is None
        while (frame := self._reader.next_frame()) is None:
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                return None
            self._reader.feed(data)
        return self._decoder.decode(frame)

    def send(self, message: Message) -> None:
        """Send a message: at once, or through the event loop once attached.

        A link that has ended swallows it: the process is about to end too.
        """
        frame = encode_frame(encode(message))
        if self._transport is not None:
            self._transport.write(frame)
            return
        try:
            self._sock.sendall(frame)
        except (BrokenPipeError, ConnectionResetError):
            return

    @property
    def is_paused(self) -> bool:
        """Whether the worker does not keep up with what is sent."""
        return self._protocol is not None and self._protocol.is_paused

    async def attach(
        self,
        on_message: Callable[[ToCrawl], None],
        on_end: Callable[[], None],
        on_resume: Callable[[], None],
    ) -> None:
        """Let the running event loop read and write from now on.

        ``on_end`` is called once the link has ended, for whatever reason but
        ``close``; ``on_resume`` when the worker has caught up.
        """
        loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        protocol = _Protocol(self._reader, self._decoder, on_message, on_end, on_resume)
        self._protocol = protocol
        self._transport, _ = await loop.create_unix_connection(
            lambda: protocol, sock=self._sock
        )
        self._transport.set_write_buffer_limits(high=_UNWRITTEN_BYTES)
        # Messages that came behind the first one are in the reader already.
        protocol.deliver()

    def close(self) -> None:
        """Close the socket; what was sent still goes out."""
        if self._transport is not None and self._protocol is not None:
            self._protocol.is_closing = True
            self._transport.close()
        else:
            self._sock.close()


class _Protocol(asyncio.Protocol):
    def __init__(
        self,
        reader: FrameReader,
        decoder: Decoder[ToCrawl],
        on_message: Callable[[ToCrawl], None],
        on_end: Callable[[], None],
        on_resume: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._decoder = decoder
        self._on_message = on_message
        self._on_end = on_end
        self._on_resume = on_resume
        self.is_closing = False
        self.is_paused = False

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self.deliver()

    def deliver(self) -> None:
        try:
            while (frame := self._reader.next_frame()) is not None:
                self._on_message(self._decoder.decode(frame))
        except RemoteProtocolError:
            # Only a worker of another version could send this; both sides are sure to
            # understand the link's end.
            self._on_end()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closing:
            self._on_end()
