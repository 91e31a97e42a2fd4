"""What the wire's decoder refuses, and that what it takes can be read again."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import NESTING_SPARE, Decoder, encode

BEAT = encode(m.Heartbeat(number=1))


def commit_of(item: bytes) -> bytes:
    """Return a frame that commits one item."""
    commit = m.Commit(request=1, items=(msgspec.Raw(b"{}"),))
    frame = encode(m.Commits(job="j", process=1, commits=(commit,)))
    return frame.replace(b'"items":[{}]', b'"items":[' + item + b"]")


def decode(frame: bytes) -> Any:
    """Decode what a worker sent."""
    return Decoder[Any](m.FromWorker).decode(frame)


def test_a_message_is_one_json_object_with_its_type() -> None:
    """Other programs can read it; space around it is no difference."""
    assert BEAT == b'{"type":"heartbeat","number":1}'
    assert decode(b' {"number": 1,\n"type": "heartbeat"}\t') == m.Heartbeat(number=1)


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (b"", "truncated"),
        (b"null", "got `null`"),
        (b"[" + BEAT + b"]", "got `array`"),
        (BEAT + BEAT, "byte 32"),
        (BEAT + b"," + BEAT, "byte 32"),
        (BEAT + b"]", "byte 32"),
        (BEAT + b"],[" + BEAT, "byte 32"),
        (
            BEAT + b"]" * NESTING_SPARE + b"," + b"[" * NESTING_SPARE + BEAT,
            "byte 32",
        ),
        (b'{"type":"heartbeat","number":"1"}', r"at `\$.number`"),
        (b'{"type":"heartbeat","number":1,"x":1}', "unknown field `x`"),
        (b'{"type":"heartbeat"}', "field `number`"),
        (b'{"number":1}', "field `type`"),
        (b'{"type":"ping","call":1}', "ping"),
        (b'{"type":"heartbeat","number":1e999}', "out of range"),
        (b'{"type":"\xff"}', "position 9"),
        (commit_of(b'"\xff"'), "utf-8"),
        (commit_of(b'{"\xed\xa0\x80":1}'), "utf-8"),
        (commit_of(b'"\\ud800\\u0041"'), "malformed"),
    ],
)
def test_what_is_no_message_is_told_at_its_place(frame: bytes, problem: str) -> None:
    """The place counts from the frame's own start, whatever is decoded around it."""
    with pytest.raises(RemoteProtocolError, match=problem) as caught:
        decode(frame)
    assert caught.value.code == "bad_message"
    assert "[0]" not in caught.value.detail


def from_deeper(levels: int, call: Callable[[], Any]) -> Any:
    """Return what ``call`` returns so many calls deeper in the stack."""
    return from_deeper(levels - 1, call) if levels else call()


def test_an_item_nested_too_deep_is_refused_before_it_is_stored() -> None:
    """The deepest item that the wire takes can be read from the journal.

    A record holds it in fewer arrays than a message, but a master's start may be
    deeper in the stack than its session was: an item that only the replay refused
    would keep every later master from starting.
    """

    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * depth + b"]" * depth + b"}"

    def is_taken(depth: int) -> bool:
        try:
            decode(commit_of(nested(depth)))
        except RemoteProtocolError as error:
            return "nested too deep" not in str(error)
        return True

    low, high = 100, 1_000_000
    assert is_taken(low), "nobody nests data like this by hand, but programs may"
    assert not is_taken(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_taken(middle) else (low, middle)
    item = msgspec.Raw(nested(low))
    fact = r.Published(job="j", process=1, request=1, items=(item,), tagged=(item,))
    payload = r.encode_group([fact])
    replayed = from_deeper(NESTING_SPARE // 2, lambda: r.decode_group(payload))
    assert replayed == (fact,)
