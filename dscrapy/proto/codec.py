"""Messages to JSON bytes and back, strictly; one function decodes."""

from typing import Any, Generic, TypeVar

import msgspec

from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import Message

T = TypeVar("T")

_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """Return the message as one JSON object."""
    return _encoder.encode(message)


class Decoder(Generic[T]):
    """Decodes frames of one direction; ``union`` is what may arrive there."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(union)

    def decode(self, frame: bytes) -> T:
        """Return the message.

        Raises ``RemoteProtocolError`` for anything else: no JSON, no UTF-8 (which
        msgspec does not check inside a Raw), another message, nested too deep.
        """
        try:
            if not frame.isascii():
                frame.decode()
            message: T = self._decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RemoteProtocolError("bad_message", str(error)) from None
        except RecursionError:
            raise RemoteProtocolError("bad_message", "nested too deep") from None
        return message
