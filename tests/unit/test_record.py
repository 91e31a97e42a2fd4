"""Byte layouts: what is written is read, and nothing else is."""

import pytest

from dscrapy.errors import LocalProtocolError
from dscrapy.journal import record
from dscrapy.journal.record import (
    HEAD_BYTES,
    READABLE_VERSIONS,
    RECORD_HEAD_BYTES,
    RECORD_MAGIC,
    Head,
    RecordHead,
    decode_record_head,
    decode_segment_head,
    decode_snapshot,
    encode_record,
    encode_segment_head,
    encode_snapshot,
    record_begun_after,
    record_matches,
)


def read(data: bytes) -> tuple[int, bytes] | None:
    """Read one record the way the scanner does."""
    head = decode_record_head(data)
    payload = data[RECORD_HEAD_BYTES:]
    if head is None or head.length != len(payload) or not record_matches(head, payload):
        return None
    return head.sequence, payload


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xfe", b"\xfeRE", bytes(1000)])
def test_record_comes_back(payload: bytes) -> None:
    """A record gives back its number and payload, the empty one too."""
    assert read(encode_record(7, payload)) == (7, payload)


def test_any_changed_bit_of_a_record_is_seen() -> None:
    """No single bit of head or payload may change unnoticed."""
    data = encode_record(7, b'{"a":1}')
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            assert read(bytes(changed)) is None, (at, bit)


def test_any_changed_bit_of_a_head_is_seen() -> None:
    """No single bit of a segment's or snapshot's head may change unnoticed."""
    for at in range(HEAD_BYTES):
        for bit in range(8):
            segment = bytearray(encode_segment_head(3, 9))
            segment[at] ^= 1 << bit
            assert decode_segment_head(segment) is None, (at, bit)
            snapshot = bytearray(encode_snapshot(3, 9, b"state"))
            snapshot[at] ^= 1 << bit
            assert decode_snapshot(bytes(snapshot)) is None, (at, bit)


def test_snapshot_comes_back_whole_or_not_at_all() -> None:
    """A snapshot cut anywhere, or with bytes behind it, is no snapshot."""
    data = encode_snapshot(3, 9, b"state")
    assert decode_snapshot(data) == (Head(version=5, number=3, sequence=9), b"state")
    for size in range(len(data)):
        assert decode_snapshot(data[:size]) is None
    assert decode_snapshot(data + b"\0") is None


def test_a_segment_is_no_snapshot() -> None:
    """The magics tell the kinds of file apart though their heads are alike."""
    assert decode_snapshot(encode_segment_head(3, 9)) is None
    assert decode_segment_head(encode_snapshot(3, 9, b"")) is None


# Bytes of version 1, as files in the world have them.
SEGMENT_1 = bytes.fromhex(
    "ff647363726c6f67 b419572c23af20fa 00000001 0000000000000001 0000000000000001"
)
SNAPSHOT_1 = bytes.fromhex(
    "ff64736372736e70 b9a550f837958ef7 00000001 0000000000000002 00000000000000057b7d"
)


def test_version_1_is_told_by_its_bytes() -> None:
    """Its files are whole, and of another version: they are not read any more."""
    head = decode_segment_head(SEGMENT_1)
    assert head == Head(version=1, number=1, sequence=1)
    found = decode_snapshot(SNAPSHOT_1)
    assert found == (Head(version=1, number=2, sequence=5), b"{}")


@pytest.mark.parametrize(
    ("version", "segment", "snapshot"),
    [
        (
            2,
            "ff647363726c6f67 0b8c93d1f0693025 00000002 0000000000000001 "
            "0000000000000001",
            "ff64736372736e70 284a48617e27c4a0 00000002 0000000000000002 "
            "00000000000000057b7d",
        ),
        (
            3,
            "ff647363726c6f67 235dbdeb953a18a9 00000003 0000000000000001 "
            "0000000000000001",
            "ff64736372736e70 04bfcdcc87647e97 00000003 0000000000000002 "
            "00000000000000057b7d",
        ),
        (
            4,
            "ff647363726c6f67 d28bb7b999079076 00000004 0000000000000001 "
            "0000000000000001",
            "ff64736372736e70 054992444cdb49d9 00000004 0000000000000002 "
            "00000000000000057b7d",
        ),
    ],
)
def test_earlier_versions_are_read(version: int, segment: str, snapshot: str) -> None:
    """Their layout is that of version 5; these are bytes as files in the world have
    them."""
    head = decode_segment_head(bytes.fromhex(segment))
    assert head == Head(version=version, number=1, sequence=1)
    found = decode_snapshot(bytes.fromhex(snapshot))
    assert found == (Head(version=version, number=2, sequence=5), b"{}")
    assert version in READABLE_VERSIONS


def test_layout_of_version_5_stands() -> None:
    """Bytes of version 5, as files in the world have them, never change."""
    assert encode_segment_head(1, 1) == bytes.fromhex(
        "ff647363726c6f67 2b41d37d87c0c228 00000005 0000000000000001 0000000000000001"
    )
    assert encode_snapshot(2, 5, b"{}") == bytes.fromhex(
        "ff64736372736e70 47e8b50d636a552a 00000005 0000000000000002 0000000000000005"
        "7b7d"
    )
    assert encode_record(5, b"{}") == bytes.fromhex(
        "fe524543 091a1f3996b55c1b 00000002 0000000000000005 7b7d"
    )


def test_payload_with_the_magic_is_refused() -> None:
    """Nothing that could be taken for a record gets into a payload."""
    with pytest.raises(LocalProtocolError, match="magic"):
        encode_record(1, b"a" + RECORD_MAGIC)


def test_payload_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for writing, and a length over it is no record."""
    data = encode_record(1, b"12345")
    monkeypatch.setattr(record, "PAYLOAD_BYTES_MAX", 4)
    assert read(encode_record(1, b"1234")) == (1, b"1234")
    with pytest.raises(LocalProtocolError, match="5 bytes is over the limit of 4"):
        encode_record(1, b"12345")
    assert decode_record_head(data) is None


def test_magic_begins_with_a_byte_that_no_text_has() -> None:
    """JSON text in UTF-8 can never hold the magic."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode()
    assert RECORD_MAGIC[0] not in every


def test_record_head_decodes_every_field() -> None:
    """The head's fields stand where the layout says."""
    data = RECORD_MAGIC + bytes.fromhex("0000000000000001 00000002 0000000000000003")
    assert decode_record_head(data) == RecordHead(checksum=1, length=2, sequence=3)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", None),
        (bytes(100), None),
        (b"xx" + encode_record(5, b"{}"), 2),
        # Damaged beyond its head, but begun.
        (b"xx" + encode_record(5, b"{}")[:-1], 2),
        (b"xx" + encode_record(4, b"{}"), None),
        (b"xx" + encode_record(10, b"{}"), None),
        (b"xx" + encode_record(4, b"{}") + encode_record(9, b"{}"), 28),
        # Too near the end to have a number.
        (b"xx" + encode_record(5, b"")[:-1], 2),
        (b"xx" + RECORD_MAGIC, 2),
        (b"xx" + RECORD_MAGIC[:-1], None),
    ],
)
def test_a_begun_record_is_found(data: bytes, found: int | None) -> None:
    """Records numbered 5 to 9 are found wherever they begin; others are not."""
    assert record_begun_after(data, 1, range(5, 10)) == found
