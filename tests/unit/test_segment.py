"""The scanner: every verdict, whatever the pieces the bytes come in."""

import pytest

from dscrapy.journal.record import (
    HEAD_BYTES,
    RECORD_HEAD_BYTES,
    RECORD_MAGIC,
    encode_record,
    encode_segment_head,
)
from dscrapy.journal.segment import (
    CleanEnd,
    Corruption,
    End,
    OtherVersion,
    Record,
    Scanner,
    TornTail,
)
from tests.unit.old_journal_heads import segment_head_of_version

PAYLOADS = [b'{"a":1}', b"", b'{"b":"longer than the others"}']
FIRST = 11


def segment(*payloads: bytes, number: int = 3, first: int = FIRST) -> bytes:
    records = [encode_record(first + at, data) for at, data in enumerate(payloads)]
    return encode_segment_head(number, first) + b"".join(records)


def scan(
    data: bytes, piece: int = 0, *, is_last: bool = True
) -> tuple[list[bytes], End]:
    """Scan ``data`` in pieces of that many bytes, 0 for whole."""
    scanner = Scanner(3, FIRST, is_last=is_last)
    payloads = []
    for at in range(0, len(data), piece or len(data) or 1):
        scanner.feed(data[at : at + (piece or len(data))])
        while (record := scanner.next_record()) is not None:
            payloads.append(record.payload)
    return payloads, scanner.end()


WHOLE = segment(*PAYLOADS)
# Where each record begins, and the end.
STARTS = [HEAD_BYTES]
for _payload in PAYLOADS:
    STARTS.append(STARTS[-1] + RECORD_HEAD_BYTES + len(_payload))


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("piece", [0, 1, 7])
def test_whole_segment_is_clean(piece: int, is_last: bool) -> None:
    """Every payload comes, in order, and the end is clean, however it was cut."""
    assert scan(WHOLE, piece, is_last=is_last) == (
        PAYLOADS,
        CleanEnd(offset=len(WHOLE)),
    )


def test_records_tell_number_and_offset() -> None:
    """A record says where it stands, so that its payload can be found again."""
    scanner = Scanner(3, FIRST, is_last=True)
    scanner.feed(WHOLE)
    records = [scanner.next_record() for _ in range(4)]
    assert records == [
        *(
            Record(sequence=FIRST + at, offset=STARTS[at], payload=payload)
            for at, payload in enumerate(PAYLOADS)
        ),
        None,
    ]
    assert scanner.next_sequence == FIRST + 3


@pytest.mark.parametrize("piece", [0, 1])
def test_last_segment_cut_anywhere_is_a_torn_tail(piece: int) -> None:
    """Any prefix gives its whole records; the rest is torn from their end on."""
    for size in range(len(WHOLE)):
        payloads, end = scan(WHOLE[:size], piece)
        whole = sum(start <= size for start in STARTS[1:])
        assert payloads == PAYLOADS[:whole]
        if size in STARTS:
            assert end == CleanEnd(offset=size)
        else:
            assert end == TornTail(offset=STARTS[whole] if size > HEAD_BYTES else 0)


def test_earlier_segment_cut_anywhere_is_corrupt() -> None:
    """Before another segment nothing can be torn: that one was begun after."""
    for size in range(len(WHOLE)):
        _, end = scan(WHOLE[:size], is_last=False)
        whole = sum(start <= size for start in STARTS[1:])
        if size not in STARTS:
            assert isinstance(end, Corruption)
            assert end.offset == (STARTS[whole] if size > HEAD_BYTES else 0)
            assert "another segment follows" in end.reason


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("is_last", [True, False])
def test_changed_byte_is_corruption_where_it_stands(piece: int, is_last: bool) -> None:
    """A byte changed before the last record is found, at its record's start."""
    for at in range(STARTS[2]):
        changed = bytearray(WHOLE)
        changed[at] ^= 0xFF
        payloads, end = scan(bytes(changed), piece, is_last=is_last)
        whole = sum(start <= at for start in STARTS[1:])
        assert payloads == PAYLOADS[:whole], at
        assert isinstance(end, Corruption), at
        assert end.offset == (STARTS[whole] if at >= HEAD_BYTES else 0)


def test_changed_last_record_looks_torn() -> None:
    """What cannot be told from a crash is taken for one, in the last segment only."""
    for at in range(STARTS[2], len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[at] ^= 0xFF
        assert scan(bytes(changed)) == (PAYLOADS[:2], TornTail(offset=STARTS[2]))
        assert isinstance(scan(bytes(changed), is_last=False)[1], Corruption)


@pytest.mark.parametrize(
    "tail",
    [
        bytes(40),
        b"\xff" * 40,
        b'{"text":' * 9,
        b"\xfe",
        # A magic by chance, with text where a number would be.
        b"x" + RECORD_MAGIC + b'{"text":' * 9,
    ],
)
def test_rubbish_behind_the_records_is_torn(tail: bytes) -> None:
    """Blocks that never got their bytes are no record and no corruption."""
    assert scan(WHOLE + tail) == (PAYLOADS, TornTail(offset=len(WHOLE)))


def test_two_damaged_records_at_the_end_are_corruption() -> None:
    """A second record was begun, so the first was durable: that is no crash."""
    changed = bytearray(WHOLE)
    changed[STARTS[2] - 1] ^= 1
    changed[-1] ^= 1
    payloads, end = scan(bytes(changed))
    assert payloads == PAYLOADS[:1]
    assert end == Corruption(
        offset=STARTS[1],
        reason="the record does not match its checksum, "
        f"and another begins at byte {STARTS[2]}",
    )


def test_old_record_in_the_torn_tail_is_no_later_record() -> None:
    """What an older file left in a block does not make a crash look like damage."""
    torn = encode_record(FIRST + 3, bytes(100))[:50]
    stale = encode_record(FIRST - 5, b"old")
    tail = torn + stale
    assert scan(WHOLE + tail) == (PAYLOADS, TornTail(offset=len(WHOLE)))


def test_sound_record_with_another_number_is_corruption() -> None:
    """A whole record out of order was not left by a crash, even at the end."""
    for number in (FIRST + 2, FIRST + 4):
        payloads, end = scan(WHOLE + encode_record(number, b"{}"))
        assert payloads == PAYLOADS
        assert isinstance(end, Corruption)
        assert end.offset == len(WHOLE)
        assert f"record {number} stands where record {FIRST + 3} should" in end.reason


def test_damaged_head_with_a_begun_record_is_corruption() -> None:
    """The head is durable before the first record, so no crash damaged it."""
    for size in (STARTS[1], STARTS[0] + 5):
        data = b"\0" + WHOLE[1:size]
        _, end = scan(data)
        assert isinstance(end, Corruption)
        assert end.offset == 0


def test_head_of_another_segment_is_corruption() -> None:
    """A segment under another's name, or from another journal, is not read."""
    assert isinstance(scan(segment(b"{}", number=4))[1], Corruption)
    for first in (FIRST - 1, FIRST + 1):
        payloads, end = scan(segment(b"{}", first=first))
        assert payloads == []
        assert isinstance(end, Corruption)
        assert f"begins with record {first}" in end.reason


@pytest.mark.parametrize("version", [1, 6])
def test_other_version_is_told_apart_from_damage(version: int) -> None:
    """A sound head of another version is named, its records are not guessed at."""
    data = segment_head_of_version(version, number=3, sequence=FIRST)
    assert scan(data + b"whatever follows") == ([], OtherVersion(version=version))


def test_length_over_the_file_does_not_hide_later_records() -> None:
    """A damaged length does not make the rest of the segment one torn record."""
    changed = bytearray(WHOLE)
    changed[STARTS[0] + 12] = 0x3F
    assert RECORD_MAGIC in WHOLE[STARTS[1] :]
    for piece in (0, 1):
        _, end = scan(bytes(changed), piece)
        assert isinstance(end, Corruption)
        assert end.offset == STARTS[0]
