"""File heads as other versions would write them."""

import struct

import xxhash

from dscrapy.journal.record import SEGMENT_MAGIC, SNAPSHOT_MAGIC


def segment_head_of_version(version: int, *, number: int, sequence: int) -> bytes:
    return _head(SEGMENT_MAGIC, struct.pack(">IQQ", version, number, sequence))


def snapshot_of_version(
    version: int, *, number: int, sequence: int, payload: bytes
) -> bytes:
    told = struct.pack(">IQQ", version, number, sequence)
    return _head(SNAPSHOT_MAGIC, told + payload)


def _head(magic: bytes, rest: bytes) -> bytes:
    return magic + xxhash.xxh3_64_digest(rest) + rest
