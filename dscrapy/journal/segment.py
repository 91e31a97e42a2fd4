"""Scans one segment, fed in pieces, into records and a verdict on how it ends.

Nothing is written after a group before the fsync of that group returned. So in the
last segment one record may be bad or cut short, the last one, and no other may have
been begun after it: that is a **torn tail**, the mark of a crash. Any other bytes
that are not as they were written are **corruption**.

A crash while the last record was written and later damage to the last record cannot be
told apart. Both count as a torn tail.
"""

import attrs

from dscrapy.journal.record import (
    HEAD_BYTES,
    READABLE_VERSIONS,
    RECORD_HEAD_BYTES,
    decode_record_head,
    decode_segment_head,
    record_begun_after,
    record_matches,
)

# How far beyond the expected sequence number a later record may claim to be.
# Payload text read as a number is far beyond it, a real later record never.
_SEQUENCES_AHEAD_MAX = 1 << 32


@attrs.frozen(kw_only=True)
class Record:
    """A sound record; ``offset`` is that of its head in the segment."""

    sequence: int
    offset: int
    payload: bytes


@attrs.frozen(kw_only=True)
class CleanEnd:
    """The segment ends after a whole record, or after its head."""

    offset: int


@attrs.frozen(kw_only=True)
class TornTail:
    """The torn tail begins at ``offset``; 0 means not even the head is whole."""

    offset: int


@attrs.frozen(kw_only=True)
class Corruption:
    """The bytes from ``offset`` on are not those that were written there."""

    offset: int
    reason: str


@attrs.frozen(kw_only=True)
class OtherVersion:
    """The segment is sound but written in a format that this code cannot read."""

    version: int


End = CleanEnd | TornTail | Corruption | OtherVersion


class Scanner:
    """Reads one segment; feed it, take records until None, at last ask ``end``.

    ``sequence`` is that of the first record the segment should hold. ``version`` is
    the segment's, 0 until its head is taken.
    """

    def __init__(self, number: int, sequence: int, *, is_last: bool) -> None:
        self.next_sequence = sequence
        self.version = 0
        self._number = number
        self._is_last = is_last
        self._buffer = bytearray()
        # Offset in the segment of the buffer's first byte.
        self._offset = 0
        self._head_taken = False
        # Why the bytes at the buffer's start are bad, empty if they are not.
        self._damage = ""
        # Set when no further bytes can change the verdict.
        self._verdict: Corruption | OtherVersion | None = None

    def feed(self, data: bytes) -> None:
        """Take the segment's next bytes."""
        # Behind damage the rest is needed in the last segment alone, to search it.
        if self._verdict is None and (self._is_last or not self._damage):
            self._buffer += data

    def next_record(self) -> Record | None:
        """Return the next sound record; None until more is fed, or at the end."""
        if self._verdict is not None or self._damage:
            return None
        if not self._head_taken:
            self._take_head()
        if not self._head_taken or len(self._buffer) < RECORD_HEAD_BYTES:
            return None
        head = decode_record_head(self._buffer)
        if head is None:
            self._damage = "there should be a record"
            return None
        end = RECORD_HEAD_BYTES + head.length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            payload = bytes(view[RECORD_HEAD_BYTES:end])
        if not record_matches(head, payload):
            self._damage = "the record does not match its checksum"
            return None
        if head.sequence != self.next_sequence:
            # Whole and sound, so no crash made this.
            self._refuse(
                f"record {head.sequence} stands where "
                f"record {self.next_sequence} should be"
            )
            return None
        record = Record(sequence=head.sequence, offset=self._offset, payload=payload)
        self._drop(end)
        self.next_sequence += 1
        return record

    def end(self) -> End:
        """Judge the segment's end, once all of it was fed and every record taken."""
        if self._verdict is not None:
            return self._verdict
        if self._head_taken and not self._buffer:
            return CleanEnd(offset=self._offset)
        damage = self._damage or (
            "the record is cut short" if self._head_taken else "its head is cut short"
        )
        if not self._is_last:
            return Corruption(
                offset=self._offset, reason=f"{damage}, and another segment follows"
            )
        # From 1, since the bad record's own magic may be sound.
        later = record_begun_after(
            self._buffer,
            1,
            range(self.next_sequence, self.next_sequence + _SEQUENCES_AHEAD_MAX),
        )
        if later is None:
            return TornTail(offset=self._offset)
        return Corruption(
            offset=self._offset,
            reason=f"{damage}, and another begins at byte {self._offset + later}",
        )

    def _take_head(self) -> None:
        if len(self._buffer) < HEAD_BYTES:
            return
        head = decode_segment_head(self._buffer)
        if head is None:
            self._damage = "its head is damaged"
        elif head.version not in READABLE_VERSIONS:
            self._verdict = OtherVersion(version=head.version)
        elif head.number != self._number:
            self._refuse(f"it is segment {head.number} under another's name")
        elif head.sequence != self.next_sequence:
            self._refuse(
                f"it begins with record {head.sequence} where "
                f"record {self.next_sequence} is next"
            )
        else:
            self._head_taken = True
            self.version = head.version
            self._drop(HEAD_BYTES)

    def _refuse(self, reason: str) -> None:
        self._verdict = Corruption(offset=self._offset, reason=reason)
        self._buffer.clear()

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._offset += count
