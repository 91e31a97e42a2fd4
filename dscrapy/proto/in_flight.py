"""The requests that a crawl process has under way, in a file shared with its worker.

The process maps the file into memory and writes a mark when it takes up a request, and
again when the request goes on to its next stage; the kernel keeps what was written
however the process dies. Its worker reads the file after the death. It begins with

    awaits input, 1 byte; 7 bytes; number of the request whose code ran last, 8 bytes

(input: the event loop stands still until the process's caller gives some, which no
message could tell) and has a slot for each mark behind that, as many as were ever
needed at a time:

    request number, 8 bytes, 0: the slot is free; stage, 1 byte; length of the URL, 2
    bytes; URL

Little endian. The number is written last and wiped first, so that a mark cut short by
the death is none.
"""

import struct
from typing import Literal

from dscrapy.messages import UnderWay

Stage = Literal["begun", "download", "waits"]

HEADER_BYTES = 16
AWAITS_AT = 0
RAN_LAST_AT = 8
SLOT_BYTES = 512
# Slots of a new file; it doubles when they are taken.
SLOTS_FIRST = 64
# More than Scrapy has under way by its own bound on the bytes of responses, by default
# 5 MB, of which each counts as 1 kB at least. Requests beyond these are not marked.
SLOTS_MAX = 131_072
NUMBER = struct.Struct("<Q")
STAGES: tuple[Stage, ...] = ("begun", "download", "waits")
STAGE_AT = NUMBER.size
_LENGTH = struct.Struct("<H")
_LENGTH_AT = STAGE_AT + 1
TEXT_AT = _LENGTH_AT + _LENGTH.size
URL_BYTES_MAX = SLOT_BYTES - TEXT_AT


def file_bytes(slots: int) -> int:
    """Return the length of a file of so many slots."""
    return HEADER_BYTES + slots * SLOT_BYTES


def encode_url(url: str) -> bytes:
    """Return what follows a mark's stage; a long URL is cut."""
    text = url.encode(errors="replace")[:URL_BYTES_MAX]
    return _LENGTH.pack(len(text)) + text


def decode_marks(data: bytes) -> tuple[UnderWay, ...]:
    """Return the marks of a file, which may hold anything."""
    if len(data) < HEADER_BYTES:
        return ()
    (ran_last,) = NUMBER.unpack_from(data, RAN_LAST_AT)
    found = []
    for at in range(HEADER_BYTES, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
        (request,) = NUMBER.unpack_from(data, at)
        if not 0 < request < 1 << 63:
            continue
        stage = data[at + STAGE_AT]
        (length,) = _LENGTH.unpack_from(data, at + _LENGTH_AT)
        start = at + TEXT_AT
        text = data[start : start + min(length, URL_BYTES_MAX)]
        found.append(
            UnderWay(
                request=request,
                url=text.decode(errors="replace"),
                stage=STAGES[min(stage, len(STAGES) - 1)],
                ran_last=request == ran_last,
            )
        )
    return tuple(found)
