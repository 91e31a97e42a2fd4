"""The handshake cell by cell: every phase, every frame; two ends joined."""

import json
from typing import Any

import pytest

from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.handshake import (
    HANDSHAKE_FRAME_BYTES_MAX,
    Handshake,
    Phase,
    Role,
    Unauthorised,
    proof_of,
)

TOKEN = "t0k3n"
OURS, THEIRS = "0" * 31 + "1", "0" * 31 + "2"
WRONG = "f" * 64


def dialler(**fields: Any) -> Handshake:
    """Return the side that speaks first."""
    return Handshake(**{"token": TOKEN, "nonce": OURS, "role": "worker", **fields})


def acceptor(**fields: Any) -> Handshake:
    """Return the side that was dialled."""
    return Handshake(**{"token": TOKEN, "nonce": THEIRS, **fields})


def frame(**fields: Any) -> bytes:
    """Return a frame of these fields."""
    return json.dumps(fields, separators=(",", ":")).encode()


def proof(side: str, token: str = TOKEN, role: Role = "worker") -> str:
    """Return the right proof of a side."""
    return proof_of(token, side, role, OURS, THEIRS)


# Every kind of frame that a handshake knows, and what is none of them.
FRAMES = {
    "hello": frame(nonce=OURS, role="worker"),
    "challenge": frame(nonce=THEIRS),
    "dialler's proof": frame(proof=proof("dialler")),
    "acceptor's proof": frame(proof=proof("acceptor")),
    "wrong proof": frame(proof=WRONG),
    "unauthorised": frame(error="unauthorised"),
    "versions": frame(versions=[6, 7]),
    "no common version": frame(versions=[1, 9]),
    "chosen": frame(version=6),
    "chosen, not offered": frame(version=3),
    "version refused": frame(error="version", versions=[1]),
    "other error": frame(error="tired"),
    "empty object": frame(),
    "unknown field": frame(nonce=THEIRS, x=1),
    "array": b"[]",
    "no JSON": b"hello",
    "nothing": b"",
    "no UTF-8": b'{"proof":"\xff"}',
    "deep": b'{"nonce":' + b"[" * 240,
    "lone surrogate": b'{"proof":"\\ud800"}',
}

# (phase, frame) -> the next phase. Every other cell is an error; these are all the
# ways on, and the codes of the errors that mean something of their own.
LEGAL = {
    (Phase.HELLO, "hello"): Phase.PROOF,
    (Phase.CHALLENGE, "challenge"): Phase.VERDICT,
    (Phase.PROOF, "dialler's proof"): Phase.VERSIONS,
    (Phase.VERDICT, "acceptor's proof"): Phase.CHOSEN,
    (Phase.VERSIONS, "versions"): Phase.DONE,
    (Phase.CHOSEN, "chosen"): Phase.DONE,
}
CODES = {
    (Phase.PROOF, "acceptor's proof"): "unauthorised",
    (Phase.PROOF, "wrong proof"): "unauthorised",
    (Phase.VERDICT, "dialler's proof"): "unauthorised",
    (Phase.VERDICT, "wrong proof"): "unauthorised",
    (Phase.VERDICT, "unauthorised"): "unauthorised",
    (Phase.VERDICT, "other error"): "unauthorised",
    (Phase.VERDICT, "empty object"): "unauthorised",
    (Phase.VERSIONS, "no common version"): "version",
    (Phase.CHOSEN, "chosen, not offered"): "version",
    (Phase.CHOSEN, "version refused"): "version",
    (Phase.CHOSEN, "versions"): "version",
    (Phase.CHOSEN, "no common version"): "version",
    (Phase.CHOSEN, "unauthorised"): "version",
    (Phase.CHOSEN, "other error"): "version",
    (Phase.CHOSEN, "empty object"): "version",
}
LAST_WORDS = {
    (Phase.PROOF, "acceptor's proof"): frame(error="unauthorised"),
    (Phase.PROOF, "wrong proof"): frame(error="unauthorised"),
    (Phase.VERSIONS, "no common version"): frame(error="version", versions=[6]),
}


def at(phase: Phase) -> Handshake:
    """Return a handshake that stands in this phase."""
    dials = phase in (Phase.CHALLENGE, Phase.VERDICT, Phase.CHOSEN, Phase.DONE)
    handshake = dialler() if dials else acceptor()
    steps = (
        ("challenge", "acceptor's proof", "chosen")
        if dials
        else ("hello", "dialler's proof")
    )
    for step in steps:
        if handshake.phase is phase:
            return handshake
        handshake.receive(FRAMES[step])
    if phase is Phase.FAILED:
        with pytest.raises(RemoteProtocolError):
            handshake.receive(b"")
    assert handshake.phase is phase
    return handshake


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
def test_every_frame_in_every_phase(phase: Phase, kind: str) -> None:
    """One frame leads on from each phase; any other ends the handshake for good."""
    handshake = at(phase)
    cell = (phase, kind)
    if cell in LEGAL:
        handshake.receive(FRAMES[kind])
        assert handshake.phase is LEGAL[cell]
        assert handshake.last_words is None
        return
    before = handshake.last_words
    with pytest.raises(RemoteProtocolError) as caught:
        handshake.receive(FRAMES[kind])
    code = CODES.get(cell, "bad_handshake")
    assert caught.value.code == code
    assert isinstance(caught.value, Unauthorised) == (code == "unauthorised")
    assert handshake.last_words == LAST_WORDS.get(cell, before)
    # A connection that is open stays as it was; it is the shell that ends it.
    assert handshake.phase is (Phase.DONE if phase is Phase.DONE else Phase.FAILED)
    with pytest.raises(RemoteProtocolError):
        handshake.receive(FRAMES["hello"])


@pytest.mark.parametrize("role", ["client", "worker"])
def test_two_ends_that_know_the_token_come_to_an_end(role: Role) -> None:
    """Both know role and version; each frame is under the handshake's own limit."""
    ours, theirs = dialler(role=role), acceptor()
    assert theirs.start() is None
    said = ours.start()
    sides = [theirs, ours]
    sent = []
    while said is not None:
        sent.append(said)
        said = sides[len(sent) % 2 - 1].receive(said)
    assert len(sent) == 6
    assert max(map(len, sent)) < 100 < HANDSHAKE_FRAME_BYTES_MAX
    for side in sides:
        assert (side.phase, side.role, side.version) == (Phase.DONE, role, 6)
        assert side.last_words is None


def test_the_frames_are_those_of_the_protocols_text() -> None:
    """They never change: another version's first frames are read by this one."""
    ours, theirs = dialler(), acceptor()
    assert ours.start() == FRAMES["hello"]
    assert theirs.receive(FRAMES["hello"]) == FRAMES["challenge"]
    assert ours.receive(FRAMES["challenge"]) == FRAMES["dialler's proof"]
    assert theirs.receive(FRAMES["dialler's proof"]) == FRAMES["acceptor's proof"]
    assert ours.receive(FRAMES["acceptor's proof"]) == frame(versions=[6])
    assert theirs.receive(frame(versions=[6])) == FRAMES["chosen"]
    assert ours.receive(FRAMES["chosen"]) is None


def test_the_proof_is_fixed() -> None:
    """HMAC-SHA-256 over five lines, computed apart from this program."""
    assert proof_of("key", "dialler", "client", "a" * 32, "b" * 32) == (
        "1d50a53603dd232c3f4a7d66bf57c93b1e3c83a34302874f5e8844f33bc97e75"
    )


def test_before_the_proof_nothing_is_told() -> None:
    """Not a version, nothing of the token: a nonce, and that the token was wrong."""
    theirs = acceptor()
    said = theirs.receive(FRAMES["hello"])
    assert said == frame(nonce=THEIRS)
    with pytest.raises(Unauthorised):
        theirs.receive(frame(proof=proof("dialler", "another token")))
    assert theirs.last_words == frame(error="unauthorised")


@pytest.mark.parametrize(
    "nonce",
    ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", "é" * 32, OURS],
    ids=["none", "short", "long", "upper", "no hex", "newline", "no ASCII", "ours"],
)
def test_a_nonce_has_one_form_and_is_not_ours(nonce: str) -> None:
    """A reflected nonce would let our own proofs be shown to us."""
    ours = dialler()
    with pytest.raises(RemoteProtocolError, match="bad nonce"):
        ours.receive(frame(nonce=nonce))
    theirs = acceptor(nonce=OURS)
    with pytest.raises(RemoteProtocolError, match="bad nonce"):
        theirs.receive(frame(nonce=nonce, role="client"))


@pytest.mark.parametrize(
    ("side", "role", "first", "second"),
    [
        ("acceptor", "worker", OURS, THEIRS),
        ("dialler", "client", OURS, THEIRS),
        ("dialler", "worker", THEIRS, OURS),
        ("dialler", "worker", OURS, "3" * 32),
    ],
    ids=["other side", "other role", "nonces swapped", "other connection"],
)
def test_a_proof_holds_for_one_side_role_and_connection(
    side: str, role: str, first: str, second: str
) -> None:
    """What was proved elsewhere with the same token proves nothing here."""
    theirs = acceptor()
    theirs.receive(FRAMES["hello"])
    with pytest.raises(Unauthorised):
        theirs.receive(frame(proof=proof_of(TOKEN, side, role, first, second)))
    assert theirs.phase is Phase.FAILED


@pytest.mark.parametrize(
    "given",
    ["", proof("dialler")[:-1], proof("dialler") + "0", proof("dialler").upper(), "é"],
    ids=["empty", "cut", "longer", "upper", "no ASCII"],
)
def test_almost_a_proof_is_none(given: str) -> None:
    """The whole proof or nothing; what is no ASCII is compared, too."""
    theirs = acceptor()
    theirs.receive(FRAMES["hello"])
    with pytest.raises(Unauthorised):
        theirs.receive(json.dumps({"proof": given}, ensure_ascii=False).encode())


def test_a_proof_beside_an_error_is_no_way_round_it() -> None:
    """A verdict that says both is a refusal: the error is read first."""
    ours = dialler()
    ours.receive(FRAMES["challenge"])
    both = frame(proof=proof("acceptor"), error="unauthorised")
    with pytest.raises(Unauthorised):
        ours.receive(both)


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [((1,), (1, 2), 1), ((1, 2, 3), (2, 3, 4), 3), ((9, 2), (2, 1), 2)],
)
def test_the_highest_common_version_is_chosen(
    ours: tuple[int, ...], theirs: tuple[int, ...], version: int
) -> None:
    """Whatever the order in which they are offered."""
    left, right = dialler(versions=ours), acceptor(versions=theirs)
    right.receive(FRAMES["hello"])
    left.receive(FRAMES["challenge"])
    right.receive(FRAMES["dialler's proof"])
    offer = left.receive(FRAMES["acceptor's proof"])
    assert offer is not None
    chosen = right.receive(offer)
    assert chosen is not None
    left.receive(chosen)
    assert (left.version, right.version) == (version, version)


def test_versions_apart_name_both_on_both_sides() -> None:
    """The one who reads it must know which of the two to change."""
    left, right = dialler(versions=(3, 4)), acceptor(versions=(1, 2))
    right.receive(FRAMES["hello"])
    left.receive(FRAMES["challenge"])
    right.receive(FRAMES["dialler's proof"])
    offer = left.receive(FRAMES["acceptor's proof"])
    assert offer is not None
    with pytest.raises(RemoteProtocolError, match="protocol 3, 4, this one 1, 2"):
        right.receive(offer)
    assert right.last_words is not None
    with pytest.raises(RemoteProtocolError, match="protocol 1, 2, this one 3, 4"):
        left.receive(right.last_words)
    assert right.version == left.version == 0


def test_a_long_offer_makes_no_long_text() -> None:
    """What the other side says stands in an error only as far as a person reads."""
    right = at(Phase.VERSIONS)
    with pytest.raises(RemoteProtocolError) as caught:
        right.receive(frame(versions=list(range(100, 150))))
    assert len(str(caught.value)) < 200
    right = at(Phase.VERSIONS)
    with pytest.raises(RemoteProtocolError, match="speaks protocol none"):
        right.receive(frame(versions=[]))
