"""Byte layouts: the head of a file, and a record around a payload.

Integers are big endian. Each checksum is xxh3 (64 bits) over everything that
follows it: in a record to the record's end, in a snapshot to the file's end, in a
segment to the end of its head.

A record begins with a magic whose first byte occurs in no UTF-8 text, and no
payload may hold the magic. So a reader that meets a bad record can tell whether another
record was begun further on, whatever became of that one.
"""

import struct

import attrs
import xxhash

from dscrapy.errors import LocalProtocolError

# The version that this code writes, and the versions that it reads; docs/journal.md
# says how to change them.
FORMAT_VERSION = 5
READABLE_VERSIONS = (2, 3, 4, 5)

SEGMENT_MAGIC = b"\xffdscrlog"
SNAPSHOT_MAGIC = b"\xffdscrsnp"
RECORD_MAGIC = b"\xfeREC"

# A submission of many jobs is one group, all or nothing; this is about two
# million jobs. The length field could hold four times as much.
PAYLOAD_BYTES_MAX = 1024 * 1024 * 1024

# magic, checksum, version, number, sequence
_HEAD = struct.Struct(">8sQIQQ")
HEAD_BYTES = _HEAD.size
# magic, checksum, payload length, sequence
_RECORD_HEAD = struct.Struct(">4sQIQ")
RECORD_HEAD_BYTES = _RECORD_HEAD.size
_SEQUENCE = struct.Struct(">Q")
_SEQUENCE_AT = RECORD_HEAD_BYTES - _SEQUENCE.size


@attrs.frozen(kw_only=True)
class Head:
    """The head of a segment or snapshot file.

    ``sequence`` is that of the first record in the segment, or of the first record
    that the snapshot does not hold.
    """

    version: int
    number: int
    sequence: int


@attrs.frozen(kw_only=True)
class RecordHead:
    """A record's head before its checksum is known to be right."""

    checksum: int
    length: int
    sequence: int


def encode_segment_head(number: int, sequence: int) -> bytes:
    """Return the first ``HEAD_BYTES`` of a segment."""
    return _encode_head(SEGMENT_MAGIC, number, sequence, b"")


def decode_segment_head(data: bytes | bytearray) -> Head | None:
    """Return the head at the start of ``data``, None when it is no sound head."""
    return _decode_head(SEGMENT_MAGIC, data[:HEAD_BYTES])


def encode_snapshot(number: int, sequence: int, payload: bytes) -> bytes:
    """Return a whole snapshot file."""
    return _encode_head(SNAPSHOT_MAGIC, number, sequence, payload)


def decode_snapshot(data: bytes) -> tuple[Head, bytes] | None:
    """Return head and payload of a whole snapshot file, None when it is damaged.

    The caller judges the head's version before it trusts the payload's meaning.
    """
    head = _decode_head(SNAPSHOT_MAGIC, data)
    return None if head is None else (head, data[HEAD_BYTES:])


def encode_record(sequence: int, payload: bytes) -> bytes:
    """Return ``payload`` behind its record head.

    Raises ``LocalProtocolError`` for a payload that is too long or holds the magic.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise LocalProtocolError(
            f"group of {len(payload)} bytes is over the limit of {PAYLOAD_BYTES_MAX}"
        )
    # A search for one byte is forty times faster than for four, and hardly ever hits.
    if RECORD_MAGIC[0] in payload and RECORD_MAGIC in payload:
        raise LocalProtocolError("a group must not hold the magic of records")
    checksum = _record_checksum(len(payload), sequence, payload)
    head = _RECORD_HEAD.pack(RECORD_MAGIC, checksum, len(payload), sequence)
    return head + payload


def decode_record_head(data: bytes | bytearray) -> RecordHead | None:
    """Return the record head at the start of ``data``, None when it is not one.

    ``data`` holds at least ``RECORD_HEAD_BYTES``.
    """
    magic, checksum, length, sequence = _RECORD_HEAD.unpack_from(data)
    if magic != RECORD_MAGIC or length > PAYLOAD_BYTES_MAX:
        return None
    return RecordHead(checksum=checksum, length=length, sequence=sequence)


def record_matches(head: RecordHead, payload: bytes) -> bool:
    """Whether the checksum in ``head`` is that of head and payload."""
    return head.checksum == _record_checksum(head.length, head.sequence, payload)


def record_begun_after(
    data: bytes | bytearray, start: int, sequences: range
) -> int | None:
    """Return where, from ``start`` on, a record numbered in ``sequences`` begins.

    It need not be whole: no payload holds the magic, so its head alone proves that
    it was begun. A magic too near the end to have a number counts as one.
    """
    while (start := data.find(RECORD_MAGIC, start)) >= 0:
        if start + RECORD_HEAD_BYTES > len(data):
            return start
        (sequence,) = _SEQUENCE.unpack_from(data, start + _SEQUENCE_AT)
        if sequence in sequences:
            return start
        start += 1
    return None


def _record_checksum(length: int, sequence: int, payload: bytes) -> int:
    digest = xxhash.xxh3_64(struct.pack(">IQ", length, sequence))
    digest.update(payload)
    return digest.intdigest()


def _encode_head(magic: bytes, number: int, sequence: int, payload: bytes) -> bytes:
    covered = struct.pack(">IQQ", FORMAT_VERSION, number, sequence)
    digest = xxhash.xxh3_64(covered)
    digest.update(payload)
    checksum = digest.intdigest()
    return _HEAD.pack(magic, checksum, FORMAT_VERSION, number, sequence) + payload


def _decode_head(magic: bytes, data: bytes | bytearray) -> Head | None:
    if len(data) < HEAD_BYTES:
        return None
    found, checksum, version, number, sequence = _HEAD.unpack_from(data)
    with memoryview(data) as view:
        if found != magic or xxhash.xxh3_64_intdigest(view[16:]) != checksum:
            return None
    return Head(version=version, number=number, sequence=sequence)
