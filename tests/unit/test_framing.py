"""Frames however the stream was split, their limit, and what is kept of a bad one."""

import pytest

from dscrapy.errors import LocalProtocolError, RemoteProtocolError
from dscrapy.proto.framing import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    FrameReader,
    encode_frame,
)

PAYLOADS = (b"", b"{}", b'{"a":"' + bytes([0xFF]) * 300 + b'"}', b"x", b"")
STREAM = b"".join(map(encode_frame, PAYLOADS))


def take(frames: FrameReader) -> list[bytes]:
    """Return all frames that are whole."""
    taken = []
    while (frame := frames.next_frame()) is not None:
        taken.append(frame)
    return taken


def test_frames_come_out_whole_when_fed_whole() -> None:
    """One feed gives every frame, empty ones too, and nothing is left."""
    frames = FrameReader()
    frames.feed(STREAM)
    assert take(frames) == list(PAYLOADS)
    assert frames.is_between_frames


def test_frames_come_out_whole_when_fed_byte_by_byte() -> None:
    """A frame is given with its last byte, never earlier."""
    frames = FrameReader()
    taken: list[bytes] = []
    ends = {sum(LENGTH_BYTES + len(p) for p in PAYLOADS[:n]) for n in range(6)}
    for at in range(len(STREAM)):
        before = len(taken)
        frames.feed(STREAM[at : at + 1])
        taken += take(frames)
        assert (len(taken) > before) == (at + 1 in ends)
        assert frames.is_between_frames == (at + 1 in ends)
    assert taken == list(PAYLOADS)


@pytest.mark.parametrize("tail", [b"\x00", STREAM[:LENGTH_BYTES], STREAM[:-1]])
def test_a_tail_stays_for_later(tail: bytes) -> None:
    """What follows the last whole frame is kept until the rest of it comes."""
    frames = FrameReader()
    frames.feed(encode_frame(b"first") + encode_frame(b"second") + tail[:3])
    assert take(frames) == [b"first", b"second"]
    assert not frames.is_between_frames
    assert frames.next_frame() is None


def test_the_length_is_four_bytes_big_endian() -> None:
    """The wire's form is fixed: other programs and older versions read it."""
    assert encode_frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert encode_frame(bytes(258))[:LENGTH_BYTES] == b"\x00\x00\x01\x02"


@pytest.mark.parametrize("limit", [0, 256, FRAME_BYTES_MAX])
def test_a_frame_of_the_limit_passes_and_one_byte_more_does_not(limit: int) -> None:
    """Both sides count alike; ours refuses to write what theirs would refuse."""
    frames = FrameReader(limit)
    frames.feed(encode_frame(bytes(limit), limit))
    assert frames.next_frame() == bytes(limit)
    with pytest.raises(LocalProtocolError, match=f"limit of {limit}"):
        encode_frame(bytes(limit + 1), limit)
    frames.feed((limit + 1).to_bytes(LENGTH_BYTES, "big"))
    with pytest.raises(RemoteProtocolError, match=f"the limit is {limit}") as caught:
        frames.next_frame()
    assert caught.value.code == "frame_too_long"


def test_a_long_frame_is_refused_at_its_length() -> None:
    """The last byte of the length is enough; nobody waits for, or stores, the rest.

    The refusal is final: the frame is not skipped, since the stream is lost.
    """
    frames = FrameReader(256)
    frames.feed(b"\xff\xff\xff")
    assert frames.next_frame() is None
    frames.feed(b"\xff")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="4294967295 bytes"):
            frames.next_frame()


def test_frames_before_a_long_one_are_still_given() -> None:
    """What was said before the mistake counts."""
    frames = FrameReader(8)
    frames.feed(encode_frame(b"good") + b"\x00\x00\x00\x09")
    assert frames.next_frame() == b"good"
    with pytest.raises(RemoteProtocolError):
        frames.next_frame()


def test_a_frame_does_not_change_with_what_is_fed_later() -> None:
    """A frame is a copy of its own, though the buffer is used again."""
    frames = FrameReader()
    data = bytearray(encode_frame(b"one"))
    frames.feed(data)
    frame = frames.next_frame()
    data[:] = bytes(len(data))
    frames.feed(encode_frame(b"two"))
    assert frame == b"one"
    assert frames.next_frame() == b"two"
