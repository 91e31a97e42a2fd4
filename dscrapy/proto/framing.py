"""Frames: a length (4 bytes, big endian) and that many bytes of JSON.

The reader is fed whatever the transport gives and never holds more than one
frame beyond what was asked for; a length over the limit is refused before any
byte of the frame is stored.
"""

import struct

from dscrapy.errors import LocalProtocolError, RemoteProtocolError

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size

# An authenticated side may send frames up to this; larger values travel in parts.
# Precedent: nsq's --max-msg-size (1 MiB) with room for one very large item.
FRAME_BYTES_MAX = 8 * 1024 * 1024


def encode_frame(payload: bytes, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """Return ``payload`` behind its length."""
    if len(payload) > frame_bytes_max:
        raise LocalProtocolError(
            f"frame of {len(payload)} bytes is over the limit of {frame_bytes_max}"
        )
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames, however the stream was split."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes as they came from the transport."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """Return the next whole frame, or None until more bytes are fed.

        Raises ``RemoteProtocolError`` as soon as a length is over the limit.
        """
        if len(self._buffer) < LENGTH_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self.frame_bytes_max:
            raise RemoteProtocolError(
                "frame_too_long",
                f"{length} bytes, the limit is {self.frame_bytes_max}",
            )
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        frame = bytes(memoryview(self._buffer)[LENGTH_BYTES:end])
        del self._buffer[:end]
        return frame

    @property
    def announced(self) -> int:
        """The length of the frame that has begun, 0 if none has."""
        if len(self._buffer) < LENGTH_BYTES:
            return 0
        (length,) = _LENGTH.unpack_from(self._buffer)
        return int(length)

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream may end here without a frame being cut short."""
        return not self._buffer
