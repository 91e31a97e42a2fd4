"""The requests that a crawl process has under way, in a file shared with its worker.

The process maps the file into memory and writes a mark before it starts a request; the
kernel keeps what was written however the process dies. Its worker reads the file after
the death. A mark has a slot of its own:

    request number, 8 bytes, 0: the slot is free; length of the URL, 2 bytes; URL

Little endian. The number is written last and wiped first, so that a mark cut short by
the death is none. Behind the slots one byte is 1 while the process's event loop stands
still until its caller gives input, which no message could tell.
"""

import struct

from dscrapy.messages import UnderWay

# At most so many requests under way are marked; Scrapy's own default is to have 16. A
# death is not blamed on requests beyond these.
SLOTS_MAX = 4096
SLOT_BYTES = 512
AWAITS_AT = SLOTS_MAX * SLOT_BYTES
FILE_BYTES = AWAITS_AT + 1
NUMBER = struct.Struct("<Q")
_LENGTH = struct.Struct("<H")
_TEXT_AT = NUMBER.size + _LENGTH.size
URL_BYTES_MAX = SLOT_BYTES - _TEXT_AT


def encode_url(url: str) -> bytes:
    """Return what follows a mark's number; a long URL is cut."""
    text = url.encode(errors="replace")[:URL_BYTES_MAX]
    return _LENGTH.pack(len(text)) + text


def decode_marks(data: bytes) -> tuple[UnderWay, ...]:
    """Return the marks of a file, which may hold anything."""
    found = []
    for at in range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
        (request,) = NUMBER.unpack_from(data, at)
        if not 0 < request < 1 << 63:
            continue
        (length,) = _LENGTH.unpack_from(data, at + NUMBER.size)
        start = at + _TEXT_AT
        text = data[start : start + min(length, URL_BYTES_MAX)]
        found.append(UnderWay(request=request, url=text.decode(errors="replace")))
    return tuple(found)
