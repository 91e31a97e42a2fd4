"""The handshake of one connection, sans I/O, as a transition table.

The first frames of a connection never change, whatever the version:

1. dialler  → ``{"nonce": hex, "role": "client" | "worker"}``
2. acceptor → ``{"nonce": hex}``
3. dialler  → ``{"proof": hex}``
4. acceptor → ``{"proof": hex}``, or ``{"error": "unauthorised"}`` and the end
5. dialler  → ``{"versions": [1]}``
6. acceptor → ``{"version": 1}``, or ``{"error": "version", "versions": [1]}``

A proof is HMAC-SHA-256 of the token over the side's label, both nonces and the
role, so neither side accepts its own proof back. The dialler proves first: a dialler
that does not know the token learns nothing but that a port is open.
"""

import hmac
import re
from collections.abc import Callable
from enum import Enum
from typing import Literal

import msgspec

from dscrapy.errors import RemoteProtocolError
from dscrapy.model import PROTOCOL_VERSIONS

Role = Literal["client", "worker"]

# Frames before the end of the handshake; the longest is under 100 bytes.
HANDSHAKE_FRAME_BYTES_MAX = 256
NONCE_BYTES = 16
_NONCE = re.compile(r"[0-9a-f]{32}\Z")


class _Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nonce: str
    role: Role


class _Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nonce: str


class _Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    proof: str


class _Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    proof: str = ""
    error: str = ""


class _Versions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    versions: tuple[int, ...]


class _Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int = 0
    error: str = ""
    versions: tuple[int, ...] = ()


class Phase(Enum):
    """Where a handshake stands; a phase names the frame that is awaited."""

    HELLO = "hello"
    CHALLENGE = "challenge"
    PROOF = "proof"
    VERDICT = "verdict"
    VERSIONS = "versions"
    CHOSEN = "chosen"
    DONE = "done"
    FAILED = "failed"


class Unauthorised(RemoteProtocolError):
    """The other side does not know our token, or we do not know theirs."""

    def __init__(self, detail: str) -> None:
        super().__init__("unauthorised", detail)


def proof_of(token: str, side: str, role: str, dialler: str, acceptor: str) -> str:
    """Return the proof of one side (``dialler`` or ``acceptor``)."""
    text = "\n".join(("dscrapy", side, role, dialler, acceptor))
    return hmac.new(token.encode(), text.encode(), "sha256").hexdigest()


class Handshake:
    """One side of the handshake: ``start`` once, then ``receive`` each frame.

    Both return the frames' payloads to send. ``role`` and ``version`` are known
    when ``phase`` is ``DONE``. A frame that is not awaited raises
    ``RemoteProtocolError`` and ends the handshake; the caller still sends
    ``last_words`` then, if there are any.
    """

    def __init__(
        self,
        *,
        token: str,
        nonce: str,
        role: Role | None = None,
        versions: tuple[int, ...] = PROTOCOL_VERSIONS,
    ) -> None:
        """``role`` given means that this side dials."""
        assert _NONCE.match(nonce)
        self._token = token
        self._nonce = nonce
        self._peer_nonce = ""
        self._versions = versions
        self._dials = role is not None
        self.role: Role | None = role
        self.version = 0
        self.last_words: bytes | None = None
        self.phase = Phase.CHALLENGE if self._dials else Phase.HELLO
        self._table: dict[Phase, Callable[[bytes], tuple[bytes | None, Phase]]] = {
            Phase.HELLO: self._on_hello,
            Phase.CHALLENGE: self._on_challenge,
            Phase.PROOF: self._on_proof,
            Phase.VERDICT: self._on_verdict,
            Phase.VERSIONS: self._on_versions,
            Phase.CHOSEN: self._on_chosen,
        }

    def start(self) -> bytes | None:
        """Return the first frame if this side speaks first."""
        if self.role is None:
            return None
        return msgspec.json.encode(_Hello(nonce=self._nonce, role=self.role))

    def receive(self, frame: bytes) -> bytes | None:
        """Take one frame; return the frame to answer with, if any."""
        step = self._table.get(self.phase)
        if step is None:
            raise RemoteProtocolError("bad_handshake", f"a frame in {self.phase.value}")
        awaited = self.phase.value
        # If anything goes wrong below, this handshake takes no further frame.
        self.phase = Phase.FAILED
        try:
            answer, phase = step(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError("bad_handshake", f"{awaited}: {error}") from None
        self.phase = phase
        return answer

    def _proof(self, side: str) -> str:
        assert self.role is not None
        dialler, acceptor = self._nonce, self._peer_nonce
        if not self._dials:
            dialler, acceptor = acceptor, dialler
        return proof_of(self._token, side, self.role, dialler, acceptor)

    def _take_nonce(self, nonce: str) -> None:
        if not _NONCE.match(nonce) or nonce == self._nonce:
            raise RemoteProtocolError("bad_handshake", "bad nonce")
        self._peer_nonce = nonce

    def _on_hello(self, frame: bytes) -> tuple[bytes | None, Phase]:
        hello = msgspec.json.decode(frame, type=_Hello)
        self._take_nonce(hello.nonce)
        self.role = hello.role
        return msgspec.json.encode(_Challenge(nonce=self._nonce)), Phase.PROOF

    def _on_challenge(self, frame: bytes) -> tuple[bytes | None, Phase]:
        self._take_nonce(msgspec.json.decode(frame, type=_Challenge).nonce)
        proof = _Proof(proof=self._proof("dialler"))
        return msgspec.json.encode(proof), Phase.VERDICT

    def _on_proof(self, frame: bytes) -> tuple[bytes | None, Phase]:
        proof = msgspec.json.decode(frame, type=_Proof).proof
        if not _same(proof, self._proof("dialler")):
            self.last_words = b'{"error":"unauthorised"}'
            raise Unauthorised("the other side's token is not ours")
        answer = msgspec.json.encode({"proof": self._proof("acceptor")})
        return answer, Phase.VERSIONS

    def _on_verdict(self, frame: bytes) -> tuple[bytes | None, Phase]:
        verdict = msgspec.json.decode(frame, type=_Verdict)
        if verdict.error == "unauthorised":
            raise Unauthorised("the token was not accepted")
        if not _same(verdict.proof, self._proof("acceptor")):
            raise Unauthorised("the other side does not know the token")
        return msgspec.json.encode(_Versions(versions=self._versions)), Phase.CHOSEN

    def _on_versions(self, frame: bytes) -> tuple[bytes | None, Phase]:
        offered = msgspec.json.decode(frame, type=_Versions).versions
        common = set(offered) & set(self._versions)
        if not common:
            self.last_words = msgspec.json.encode(
                {"error": "version", "versions": self._versions}
            )
            raise RemoteProtocolError(
                "version",
                f"the other side speaks protocol {_join(offered)}, "
                f"this one {_join(self._versions)}",
            )
        self.version = max(common)
        return msgspec.json.encode({"version": self.version}), Phase.DONE

    def _on_chosen(self, frame: bytes) -> tuple[bytes | None, Phase]:
        chosen = msgspec.json.decode(frame, type=_Chosen)
        if chosen.error or chosen.version not in self._versions:
            raise RemoteProtocolError(
                "version",
                f"the other side speaks protocol {_join(chosen.versions)}, "
                f"this one {_join(self._versions)}: install the same dscrapy",
            )
        self.version = chosen.version
        return None, Phase.DONE


def _same(given: str, expected: str) -> bool:
    # Bytes, since compare_digest refuses strings that are not ASCII.
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _join(versions: tuple[int, ...]) -> str:
    return ", ".join(str(version) for version in versions[:8]) or "none"
