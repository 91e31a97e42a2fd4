"""Every message and record survives its encoding; any bytes are one or our error."""

import json
import string
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.item_lines import lines_of
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import LENGTH_BYTES, FrameReader, encode_frame
from dscrapy.proto.handshake import Handshake, Phase, Role

UNIONS = {
    "ClientCall": m.ClientCall,
    "Answer": m.Answer,
    "FromWorker": m.FromWorker,
    "ToWorker": m.ToWorker,
    "ToCrawl": m.ToCrawl,
    "FromCrawl": m.FromCrawl,
}
MEMBERS = [
    pytest.param(name, member, id=f"{name}-{member.__name__}")
    for name, union in UNIONS.items()
    for member in get_args(union)
]
TRIES = 1000
# Examples of each of a hundred kinds, which share their codec and most of their fields.
each_kind = settings(max_examples=settings().max_examples // 4)

# ---- values from type hints --------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def _as_json(value: Any, is_ascii: bool, indent: int | None) -> bytes:
    return json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()


# One JSON value as any program may have written it.
RAW_BYTES = st.builds(_as_json, JSON, st.booleans(), st.sampled_from([None, 0, 2]))
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(-(2**70), 2**70),
    # JSON has no other floats.
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
    bytes: st.binary(max_size=64),
    msgspec.Raw: st.builds(msgspec.Raw, RAW_BYTES),
}


@cache
def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return all values of a type that messages and records are made of."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, inner))
    if origin is tuple:
        one, dots = inner
        assert dots is ...
        return st.lists(values_of(one), max_size=3).map(tuple)
    if origin is dict:
        key, value = inner
        return st.dictionaries(values_of(key), values_of(value), max_size=3)
    fields = msgspec.structs.fields(hint)
    return st.builds(hint, **{field.name: values_of(field.type) for field in fields})


# ---- round trips -------------------------------------------------------------------


def test_every_message_may_be_sent_by_somebody() -> None:
    """A message in no union would never be decoded, and never be tested below."""
    parts = {m.HeldProcess}
    classes = set(m.Message.__subclasses__()) - parts
    assert classes == {one for union in UNIONS.values() for one in get_args(union)}


@pytest.mark.parametrize(("union", "kind"), MEMBERS)
@each_kind
@given(data=st.data())
def test_a_message_comes_back_as_it_was(union: str, kind: Any, data: Any) -> None:
    """Encoded and decoded where it may arrive: the same class, every field equal."""
    message = data.draw(values_of(kind))
    decoded = Decoder[Any](UNIONS[union]).decode(encode(message))
    assert type(decoded) is kind
    assert decoded == message


@pytest.mark.parametrize("kind", get_args(r.Record), ids=lambda kind: kind.__name__)
@each_kind
@given(data=st.data())
def test_a_group_of_records_comes_back_as_it_was(kind: Any, data: Any) -> None:
    """Beside any other record, in the order in which they were written."""
    group = [data.draw(values_of(kind)), data.draw(values_of(r.Record))]
    assert r.decode_group(r.encode_group(group)) == tuple(group)


@given(items=st.lists(RAW_BYTES, max_size=4))
def test_items_and_requests_are_kept_byte_for_byte(items: list[bytes]) -> None:
    """From a commit's frame through the journal to the lines, and to who leases them:
    nothing rewrites them."""
    raws = tuple(map(msgspec.Raw, items))
    commit = m.Commit(request=1, items=raws, children=m.Children(bodies=raws))
    said = m.Commits(job="j", process=1, commits=(commit,))
    (arrived,) = Decoder[m.Commits](m.FromWorker).decode(encode(said)).commits
    (replayed,) = r.decode_group(r.encode_group([stored(arrived)]))
    assert isinstance(replayed, r.PartStored)
    assert [bytes(item) for item in replayed.items] == items
    assert [bytes(body) for body in replayed.children.bodies] == items
    grant = m.Grant(
        job="j",
        process=1,
        requests=(),
        hosts=(),
        host_of=(),
        bodies=replayed.children.bodies,
    )
    leased = Decoder[m.Grant](m.ToCrawl).decode(encode(grant))
    assert [bytes(body) for body in leased.bodies] == items
    lines = [
        json.loads(item).encode() if item.startswith(b'"') else item for item in items
    ]
    assert lines_of(replayed.items) == b"".join(line + b"\n" for line in lines)


def stored(commit: m.Commit) -> r.PartStored:
    """Return the record of a part."""
    return r.PartStored(
        job="j",
        process=1,
        request=commit.request,
        unit=commit.unit,
        part=commit.part,
        items=commit.items,
        tagged=commit.tagged,
        children=commit.children,
        filtered=0,
    )


@given(data=st.data())
def test_what_is_left_out_is_what_a_default_says(data: Any) -> None:
    """Commits leave out most of their fields: each that is missing means its default,
    and one that is there is never lost."""
    commit = data.draw(values_of(m.Commit))
    said = json.loads(encode(m.Commits(job="j", process=1, commits=(commit,))))
    (fields,) = said["commits"]
    default = m.Commit()
    for name in m.Commit.__struct_fields__:
        value = getattr(commit, name)
        # A list or table that is empty may be there all the same.
        assert (name in fields) >= (value != getattr(default, name))


# Messages and records as the protocol and the journal before this one had them.
OLD_MESSAGES = [
    b'{"type":"commit","job":"j","process":1,"request":1,"part":0,"last":false}',
    b'{"type":"commit_seen","job":"j","process":1,"request":1,"part":0,'
    b'"result":"stored"}',
    b'{"type":"progress","job":"j","process":1,"pages":0,"items":0,"errors":0,'
    b'"in_flight":0}',
    b'{"type":"hold","job":"j","process":1,"on":true}',
    b'{"type":"start","job":"j","process":1,"request":1,"spec":{"spider":"s"},'
    b'"digest":"","hash_seed":1}',
    b'{"type":"commits","job":"j","process":1,"commits":[{"job":"j","request":1}]}',
]
OLD_RECORDS = [
    b'[{"type":"part_stored","job":"j","process":1,"part":0,"items":[],"tagged":[]}]',
    b'[{"type":"published","job":"j","process":1,"outcome":{}}]',
    b'[{"type":"job_again","id":"j","fresh":true,"automatic":false,"reason":"",'
    b'"at":1.0}]',
]


@pytest.mark.parametrize("union", UNIONS)
@pytest.mark.parametrize("frame", OLD_MESSAGES)
def test_messages_of_the_protocol_before_are_refused(frame: bytes, union: str) -> None:
    """By whoever gets them: versions are agreed on before, so they are an error."""
    with pytest.raises(RemoteProtocolError, match="bad_message"):
        Decoder[Any](UNIONS[union]).decode(frame)


@pytest.mark.parametrize("payload", OLD_RECORDS)
def test_records_of_the_journal_before_are_refused(payload: bytes) -> None:
    """None of them is taken for one of now: a folder of that version is not read."""
    with pytest.raises(msgspec.DecodeError):
        r.decode_group(payload)


# ---- any bytes ---------------------------------------------------------------------

# What is nearly JSON: where decoders go wrong.
NEARLY_JSON = st.lists(
    st.sampled_from(
        [
            *(bytes([code]) for code in b'[]{},:"\\ \n0-1.eE'),
            b'\\"',
            b"\\ud800",
            b"\\udc00",
            b"\\u0000",
            b"\xff",
            b"\xed\xa0\x80",
            b"\xc3\xa9",
            b"\x00",
            b"null",
            b"true",
            b"NaN",
            b"1e999",
            b'"type"',
            b'"commits"',
            b'"items"',
            b'"children"',
            b'"bodies"',
            b'"fingerprints"',
            b'"host_of"',
        ]
    )
).map(b"".join)
BYTES = NEARLY_JSON | st.binary() | RAW_BYTES


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a good message of which some bytes were cut out or replaced."""
    message = encode(draw(values_of(draw(st.sampled_from(list(UNIONS.values()))))))
    start = draw(st.integers(0, len(message)))
    end = draw(st.integers(start, min(start + 4, len(message))))
    return message[:start] + draw(BYTES) + message[end:]


@pytest.mark.parametrize("union", UNIONS)
@given(frame=mutated() | BYTES)
def test_any_frame_is_a_message_or_our_error(union: str, frame: bytes) -> None:
    """Nothing else is raised, and what is taken can be said again."""
    decoder: Decoder[Any] = Decoder(UNIONS[union])
    code = ""
    try:
        message = decoder.decode(frame)
    except RemoteProtocolError as error:
        code = error.code
    else:
        assert decoder.decode(encode(message)) == message
        # What is stored as it stands must be UTF-8, in every corner.
        assert frame.decode().encode() == frame
    assert code in ("", "bad_message")


@given(item=BYTES)
def test_an_item_that_is_taken_can_be_kept(item: bytes) -> None:
    """Whatever a worker puts there is refused at the wire, or is readable for ever.

    An item that only the replay or the line of ``items.jsonl`` would choke on could
    stop the master, and every start of it after that.
    """
    frame = encode(m.Heartbeat(number=1)).replace(
        b'"heartbeat","number":1',
        b'"commits","job":"j","process":1,"commits":[{"request":1,"items":['
        + item
        + b'],"children":{"bodies":['
        + item
        + b"]}}]",
    )
    try:
        (commit,) = Decoder[m.Commits](m.FromWorker).decode(frame).commits
    except RemoteProtocolError:
        return
    assert all(bytes(one).decode() for one in commit.items)
    fact = stored(commit)
    assert r.decode_group(r.encode_group([fact])) == (fact,)
    assert lines_of(fact.items).endswith(b"\n" if fact.items else b"")


def heard(pieces: list[bytes], limit: int) -> list[Any]:
    """Return what a side hears: messages, then perhaps an error's code."""
    frames = FrameReader(limit)
    decoder: Decoder[Any] = Decoder(m.FromWorker)
    said: list[Any] = []
    try:
        for piece in pieces:
            frames.feed(piece)
            while (frame := frames.next_frame()) is not None:
                said.append(decoder.decode(frame))
    except RemoteProtocolError as error:
        return [*said, error.code]
    return [*said, "between" if frames.is_between_frames else "inside"]


@given(
    parts=st.lists(
        values_of(m.FromWorker).map(encode).map(encode_frame)
        | mutated().map(encode_frame)
        | st.binary(max_size=12),
        max_size=4,
    ),
    cuts=st.lists(st.integers(0, TRIES)),
    limit=st.sampled_from([64, 1 << 23]),
)
def test_splitting_a_stream_changes_nothing(
    parts: list[bytes], cuts: list[int], limit: int
) -> None:
    """The same messages and the same end, however the transport cut the bytes."""
    stream = b"".join(parts)
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(places)]
    whole = heard([stream], limit)
    assert heard(pieces, limit) == whole
    assert heard([bytes([one]) for one in stream], limit) == whole


@given(
    messages=st.lists(values_of(m.FromWorker), min_size=1, max_size=3), data=st.data()
)
def test_a_cut_stream_gives_a_prefix(messages: list[Any], data: Any) -> None:
    """Cut anywhere: whole messages only, and the cut is noticed inside a frame."""
    frames = [encode_frame(encode(message)) for message in messages]
    stream = b"".join(frames)
    cut = data.draw(st.integers(0, len(stream)))
    whole = [i for i in range(len(frames)) if len(b"".join(frames[: i + 1])) <= cut]
    is_clean = cut == len(b"".join(frames[: len(whole)]))
    end = "between" if is_clean else "inside"
    assert heard([stream[:cut]], 1 << 23) == [*messages[: len(whole)], end]


@given(length=st.integers(2, 2**32 - 1), above=st.integers(-2, 2))
def test_a_length_is_refused_exactly_over_the_limit(length: int, above: int) -> None:
    """By the length alone, before any byte of the frame is there."""
    limit = length + above
    frames = FrameReader(limit)
    frames.feed(length.to_bytes(LENGTH_BYTES, "big"))
    if length > limit:
        with pytest.raises(RemoteProtocolError):
            frames.next_frame()
    else:
        assert frames.next_frame() is None


# ---- the handshake -----------------------------------------------------------------

TOKEN = "the token that the attacker does not know"
HEX = st.text(string.hexdigits[:16], min_size=32, max_size=32)


def victim(number: int, role: Role | None) -> Handshake:
    """Return a side with a nonce of its own, never used before."""
    return Handshake(token=TOKEN, nonce=f"{number:032x}", role=role)


def recorded() -> list[bytes]:
    """Return what was said on connections that came to a good end."""
    said: list[bytes] = []
    for number, role in enumerate(("client", "worker")):
        ours = victim(100 + 2 * number, role)  # type: ignore[arg-type]  # both are roles
        theirs = victim(101 + 2 * number, None)
        sides = (theirs, ours)
        frame, turn = ours.start(), 0
        while frame is not None:
            said.append(frame)
            frame, turn = sides[turn].receive(frame), 1 - turn
        assert ours.phase is theirs.phase is Phase.DONE
    return said


class Attacker:
    """Knows all that was ever said, and not the token."""

    def __init__(self, data: Any) -> None:
        self._draw = data.draw
        self._frames = recorded()
        # One of the recorded connections, said again word for word.
        replayed = data.draw(st.sampled_from([self._frames[:6], self._frames[6:]]))
        self._replay = dict(
            zip(
                (Phase.HELLO, Phase.CHALLENGE, Phase.PROOF, Phase.VERDICT),
                replayed,
                strict=False,
            )
        )

    def listen(self, frame: bytes | None) -> None:
        """Learn from a frame of any victim."""
        if frame is not None:
            self._frames.append(frame)

    def _words(self, field: str) -> st.SearchStrategy[Any]:
        seen = [json.loads(frame) for frame in self._frames]
        values = [one[field] for one in seen if field in one]
        # The latest is the likeliest to be of use.
        return st.sampled_from(values[::-1])

    def frame_for(self, phase: Phase) -> bytes:
        """Return what may bring a victim in this phase on: replayed, mixed, made up."""
        proofs = self._words("proof") | HEX.map(lambda half: half * 2) | st.just("")
        roles = st.sampled_from(["client", "worker"])
        nonces = HEX | self._words("nonce")
        fields: dict[Phase, dict[str, st.SearchStrategy[Any]]] = {
            Phase.HELLO: {"nonce": nonces, "role": roles},
            Phase.CHALLENGE: {"nonce": nonces},
            Phase.PROOF: {"proof": proofs},
            Phase.VERDICT: {"proof": proofs},
        }
        formed = st.fixed_dictionaries(fields.get(phase, {})).map(json.dumps)
        replay = st.just(self._replay.get(phase, b""))
        other = st.sampled_from(self._frames) | BYTES
        frame = self._draw(replay | formed.map(str.encode) | other)
        assert isinstance(frame, bytes)
        return frame


@pytest.mark.parametrize("role", [None, "client", "worker"])
@given(data=st.data())
def test_without_the_token_no_handshake_is_ever_done(
    role: Role | None, data: Any
) -> None:
    """Replaying, reflecting and mixing what any side ever said proves nothing.

    Several connections to sides of one kind at once: what one of them says may be
    said to another. (Between sides of both kinds somebody could pass everything on,
    which a proof of the token cannot tell from the network.)
    """
    attacker = Attacker(data)
    victims = [victim(number, role) for number in range(2)]
    for one in victims:
        attacker.listen(one.start())
    for _ in range(data.draw(st.integers(1, 12))):
        one = data.draw(st.sampled_from(victims))
        failed = one.phase is Phase.FAILED
        try:
            attacker.listen(one.receive(attacker.frame_for(one.phase)))
            assert not failed
        except RemoteProtocolError:
            assert one.phase is Phase.FAILED
        assert one.phase in (
            Phase.HELLO,
            Phase.CHALLENGE,
            Phase.PROOF,
            Phase.VERDICT,
            Phase.FAILED,
        )
        assert one.version == 0


@given(frames=st.lists(BYTES, max_size=3), steps=st.integers(0, 4), dials=st.booleans())
def test_any_frame_in_any_phase_is_taken_or_our_error(
    frames: list[bytes], steps: int, dials: bool
) -> None:
    """With a good start of any length before it; a side that failed stays so."""
    ours, theirs = victim(1, "worker"), victim(2, None)
    sides = (theirs, ours)
    frame, turn = ours.start(), 0
    for _ in range(steps):
        assert frame is not None
        frame, turn = sides[turn].receive(frame), 1 - turn
    one = ours if dials else theirs
    for garbage in frames:
        try:
            one.receive(garbage)
        except RemoteProtocolError:
            assert one.phase is Phase.FAILED
            assert one.version == 0
