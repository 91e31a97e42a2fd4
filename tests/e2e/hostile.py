"""A peer that says whatever a test wants: after a real handshake, or without one."""

import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dscrapy.messages import Message
from dscrapy.model import PROTOCOL_VERSIONS
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.proto.handshake import Handshake, Phase, Role
from tests.hang import HANG_S

ANSWER_S = HANG_S
_READ_BYTES = 65536


class Peer:
    """One connection; ``say`` sends frames as they are."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        self.socket.settimeout(ANSWER_S)
        self._frames = FrameReader()

    def write(self, data: bytes) -> None:
        """Send bytes that are no frame of ours."""
        # Whoever hangs up in the middle of it has heard enough.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def say(self, payload: bytes | Message) -> None:
        """Send one frame."""
        data = payload if isinstance(payload, bytes) else encode(payload)
        self.write(encode_frame(data, len(data)))

    def hear(self) -> bytes | None:
        """Return the next frame, None when the other side has hung up."""
        while (frame := self._frames.next_frame()) is None:
            try:
                data = self.socket.recv(_READ_BYTES)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames.feed(data)
        return frame

    def ask(self, call: bytes | Message) -> dict[str, Any]:
        """Send a call and return its answer as plain JSON."""
        self.say(call)
        frame = self.hear()
        assert frame is not None, "it hung up"
        answer: dict[str, Any] = json.loads(frame)
        return answer

    def greet(
        self,
        state: Path,
        role: Role = "client",
        versions: tuple[int, ...] = PROTOCOL_VERSIONS,
    ) -> "Peer":
        """Shake hands with the token of this state folder."""
        handshake = Handshake(
            token=(state / "token").read_text().strip(),
            nonce=secrets.token_hex(16),
            role=role,
            versions=versions,
        )
        answer = handshake.start()
        while handshake.phase is not Phase.DONE:
            if answer is not None:
                self.say(answer)
            frame = self.hear()
            assert frame is not None, "it hung up during the handshake"
            answer = handshake.receive(frame)
        return self


@contextlib.contextmanager
def peer(port: int) -> Iterator[Peer]:
    """A connection that is closed at the end."""
    connected = Peer(port)
    with connected.socket:
        yield connected
