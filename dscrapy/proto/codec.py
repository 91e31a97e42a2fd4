"""Messages to JSON bytes and back, strictly; one function decodes."""

from types import GenericAlias
from typing import Any, Generic, TypeVar

import msgspec

from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import Message

T = TypeVar("T")

# Levels of nesting that are kept free beyond a frame's own: the journal and later
# messages put more around the frame's values, and decode them from deeper in the stack.
# Without these levels a value could be stored and never be read again.
NESTING_SPARE = 32
_OPEN, _CLOSE = b"[" * NESTING_SPARE, b"]" * NESTING_SPARE

_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """Return the message as one JSON object."""
    return _encoder.encode(message)


class Decoder(Generic[T]):
    """Decodes frames of one direction; ``union`` is what may arrive there."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(union)
        # A frame is decoded inside of ``NESTING_SPARE`` arrays of one element. Arrays
        # of any other length are refused, so no frame can close them early.
        inside = union
        for _ in range(NESTING_SPARE):
            inside = GenericAlias(tuple, (inside,))
        self._inside: msgspec.json.Decoder[Any] = msgspec.json.Decoder(inside)

    def decode(self, frame: bytes) -> T:
        """Return the message.

        Raises ``RemoteProtocolError`` for anything else: no JSON, no UTF-8 (which
        msgspec does not check inside a Raw), another message, nested too deep.
        """
        try:
            if not frame.isascii():
                frame.decode()
            nested = self._inside.decode(b"".join((_OPEN, frame, _CLOSE)))
        except RecursionError:
            raise RemoteProtocolError("bad_message", "nested too deep") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RemoteProtocolError("bad_message", self._problem(frame)) from None
        for _ in range(NESTING_SPARE):
            (nested,) = nested
        message: T = nested
        return message

    def _problem(self, frame: bytes) -> str:
        """Return what is wrong with the frame, at its place in the frame itself."""
        problem = "no message"
        try:
            frame.decode()
            self._decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problem = str(error)
        return problem
