"""Targets: what stands on the master's disk, damaged or made up."""

import contextlib
import json
from functools import cache
from random import Random
from typing import get_args

import msgspec

from dscrapy.control import events as r
from dscrapy.control.state.state import State
from dscrapy.errors import JournalError
from dscrapy.journal.record import (
    RECORD_MAGIC,
    decode_snapshot,
    encode_record,
    encode_segment_head,
    encode_snapshot,
)
from dscrapy.journal.segment import Record, Scanner
from dscrapy.master.journal import Journal
from tests.doubles.storage import MemoryStorage
from tests.fuzz.catalogue import Tally, Target
from tests.fuzz.draw import Draw
from tests.fuzz.machine import Master, _step

PAYLOADS = tuple(b'[{"n":%d,"x":"%s"}]' % (n, b"y" * (n * 7)) for n in range(12))


# ---- one segment, as it comes ------------------------------------------------------


def _segment(data: bytes, tally: Tally) -> None:
    """Whatever the pieces, records and verdict are the same; a record is sound."""
    draw = Draw(data)
    is_last, is_whole, piece = draw.below(2) > 0, draw.below(2), 1 + draw.below(90)
    stream = draw.rest()
    if not is_whole:
        # Behind a sound head it gets further.
        stream = encode_segment_head(1, 1) + stream
    found = _scan(stream, len(stream) or 1, is_last)
    assert found == _scan(stream, piece, is_last)
    for record in found[0]:
        tally.frames += 1
        sound = encode_record(record.sequence, record.payload)
        assert stream[record.offset : record.offset + len(sound)] == sound


def _scan(stream: bytes, piece: int, is_last: bool) -> tuple[list[Record], object]:
    scanner, records = Scanner(1, 1, is_last=is_last), []
    for at in range(0, len(stream), piece):
        scanner.feed(stream[at : at + piece])
        while (record := scanner.next_record()) is not None:
            records.append(record)
    return records, scanner.end()


def _records(count: int) -> bytes:
    return b"".join(
        encode_record(number + 1, payload)
        for number, payload in enumerate(PAYLOADS[:count])
    )


def _segment_seeds() -> list[bytes]:
    return [
        b"\1\0\5" + _records(3),
        b"\0\1\x40" + encode_segment_head(1, 1) + _records(2),
        b"\1\0\5" + _records(2) + RECORD_MAGIC,
        b"\1\1\5" + encode_segment_head(2, 1),
        b"\1\1\5" + encode_snapshot(1, 1, b"{}"),
    ]


SEGMENT = Target(run=_segment, seeds=_segment_seeds)


# ---- a whole journal, damaged ------------------------------------------------------


def state_of(count: int) -> bytes:
    """Return the snapshot of a state that is simply the groups so far."""
    return json.dumps(count).encode()


def _written(draw: Draw) -> tuple[MemoryStorage, int]:
    """Return a journal of some groups, perhaps with a snapshot, and how many."""
    storage = MemoryStorage()
    limit = draw.pick((1, 200, 100_000))
    count = draw.below(len(PAYLOADS) + 1)
    snapshot_after = draw.pick((None, 0, 2, 5, 9))
    journal = Journal.open(storage, segment_bytes_max=limit)
    list(journal.groups())
    for number, payload in enumerate(PAYLOADS[:count]):
        if number == snapshot_after:
            journal.write_snapshot(journal.rotate(), state_of(number))
        journal.append(payload)
    journal.close()
    return storage, count


def _damage(draw: Draw, storage: MemoryStorage, tally: Tally) -> None:
    """Flip bits, cut, swap or overwrite blocks, as often as the input says."""
    while not draw.is_empty:
        name = draw.pick(storage.names())
        data = bytearray(storage.read(name, 0, 1 << 30))
        if not data:
            return
        at = draw.below(1 << 16) % len(data)
        match draw.below(6):
            case 0 | 1:
                data[at] ^= 1 << draw.below(8)
                tally.flips += 1
            case 2:
                del data[at:]
            case 3:
                size = 1 << draw.below(7)
                other = draw.below(1 << 16) % len(data)
                one, two = data[at : at + size], data[other : other + size]
                data[at : at + len(two)] = two
                data[other : other + len(one)] = one
            case 4:
                size = 1 << draw.below(7)
                data[at : at + size] = bytes(len(data[at : at + size]))
            case _:
                data[at:at] = draw.take(1 + draw.below(40))
        storage.put(name, bytes(data))


def _journal(data: bytes, tally: Tally) -> None:
    """A damaged journal gives the first of its groups, as they were, or an error that
    changes nothing; what it gave it gives again."""
    draw = Draw(data)
    storage, count = _written(draw)
    _damage(draw, storage, tally)
    before = {name: storage.read(name, 0, 1 << 30) for name in storage.names()}
    try:
        groups = _replay(storage)
    except JournalError:
        after = {name: storage.read(name, 0, 1 << 30) for name in storage.names()}
        assert after == before
        return
    assert groups == list(PAYLOADS[: len(groups)])
    assert len(groups) <= count
    tally.frames += len(groups)
    assert _replay(storage) == groups


def _replay(storage: MemoryStorage) -> list[bytes]:
    journal = Journal.open(storage)
    number = 0 if journal.snapshot is None else json.loads(journal.snapshot)
    groups = [*PAYLOADS[:number], *journal.groups()]
    journal.close()
    return groups


def _journal_seeds() -> list[bytes]:
    random = Random(2)
    return [
        *(
            bytes([limit, 7, 2, 0, 0, 1, at, 0, 3])
            for limit in range(3)
            for at in (9, 99)
        ),
        *(random.randbytes(40) for _ in range(12)),
    ]


JOURNAL = Target(run=_journal, seeds=_journal_seeds, bytes_max=512)


# ---- payloads ----------------------------------------------------------------------


def _master() -> Master:
    """Return a master that has seen some of everything."""
    draw, master = Draw(Random(3).randbytes(20_000)), Master()
    while not draw.is_empty:
        _step(draw, master)
    return master


@cache
def _snapshot_payload() -> bytes:
    return _master().machine.state.encode_snapshot()


def _snapshot(data: bytes, tally: Tally) -> None:
    """A damaged file is told; a payload is a state or one of the decoder's errors."""
    draw = Draw(data)
    payload = b""
    if draw.below(2):
        file = bytearray(encode_snapshot(3, 9, draw.take(draw.below(200))))
        decoded = decode_snapshot(bytes(file))
        assert decoded is not None
        at, bit = draw.below(1 << 16) % len(file), draw.below(8)
        file[at] ^= 1 << bit
        tally.flips += 1
        assert decode_snapshot(bytes(file)) is None
        decode_snapshot(draw.rest())
        return
    if draw.below(2):
        whole = bytearray(_snapshot_payload())
        while not draw.is_empty:
            at, size = draw.below(1 << 16) % len(whole), draw.below(3)
            whole[at : at + size] = draw.take(draw.below(4))
        payload = bytes(whole)
    else:
        payload = draw.rest()
    tally.frames += 1
    try:
        state = State.decode_snapshot(payload)
    except msgspec.DecodeError:
        return
    State.decode_snapshot(state.encode_snapshot())


def _snapshot_seeds() -> list[bytes]:
    file = encode_snapshot(1, 1, b'{"a":1}')
    states = (_snapshot_payload(), State().encode_snapshot())
    random = Random(5)
    return [
        *(b"\0\0" + state for state in states),
        *(b"\0\1" + random.randbytes(8) for _ in range(12)),
        b"\1\7" + file,
    ]


SNAPSHOT = Target(run=_snapshot, seeds=_snapshot_seeds, bytes_max=1 << 16)


KINDS = get_args(r.Record)


def _group(data: bytes, tally: Tally) -> None:
    """A group is facts that encode to themselves, or one of the decoder's errors."""
    draw = Draw(data)
    payload = b""
    if draw.below(2):
        facts = [draw.struct(draw.pick(KINDS)) for _ in range(1 + draw.below(3))]
        with contextlib.suppress(UnicodeEncodeError):
            payload = r.encode_group(facts)
        at, bit = draw.below(1 << 16), draw.below(8)
        if payload and not draw.is_empty:
            damaged = bytearray(payload)
            damaged[at % len(payload)] ^= 1 << bit
            tally.flips += 1
            payload = bytes(damaged)
    else:
        payload = draw.rest()
    tally.frames += 1
    try:
        decoded = r.decode_group(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert r.decode_group(r.encode_group(list(decoded))) == decoded


def _group_seeds() -> list[bytes]:
    random = Random(4)
    made = [b"\1" + random.randbytes(150) for _ in range(12)]
    return [*made, *(b"\0" + group for group in _master().journal[:40])]


RECORDS = Target(run=_group, seeds=_group_seeds, bytes_max=1 << 16)
