"""Large values of requests, named by digest, so that a page's requests share them.

A body says ``{"$v": digest}`` where a value is more than ``LEAF_BYTES_MAX`` of JSON:
a response that a hundred requests of its page carry is written, sent and kept once.
A value may refer to others in the same way; a body travels with all of them.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.stdlib_types import Down
from dscrapy.crawl.codec.tags import UndecodableError

VALUE_DIGEST_BYTES = 16
# Bytes of encoded text and bytes that are remembered: a few documents of the usual
# size, which pages under way hand to their requests. Beyond it the oldest is forgotten.
REMEMBERED_BYTES_MAX = 8 * 1024 * 1024
# Bytes of one body when all its references are followed: more than any process writes,
# and an end for references that multiply.
EXPANDED_BYTES_MAX = 64 * 1024 * 1024


class EncodedRequest(NamedTuple):
    """A request on its way.

    ``values``: digest -> JSON of each value that ``body`` or another of them refers
    to. ``kind`` is 0 for a body without a pickle, else the same positive number (31
    bits) for all whose pickles name the same classes.
    """

    body: bytes
    values: dict[bytes, bytes]
    kind: int


class Remembered:
    """Encoded forms of text and bytes, which never change, by the object itself."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, tuple[Any, bytes, bytes]] = OrderedDict()
        self._bytes = 0

    def encode(self, value: str | bytes) -> tuple[bytes, bytes]:
        """Return the digest and the JSON of ``value``."""
        # An object that is kept here keeps its id.
        entry = self._entries.get(id(value))
        if entry is not None:
            self._entries.move_to_end(id(value))
            return entry[1], entry[2]
        data = dumps(tags.tag(value))
        digest = value_digest(data)
        self._entries[id(value)] = (value, digest, data)
        self._bytes += len(data)
        while self._bytes > REMEMBERED_BYTES_MAX:
            _, (_, _, old) = self._entries.popitem(last=False)
            self._bytes -= len(old)
        return digest, data


class Following:
    """Reads references of one body; ``values`` as in ``EncodedRequest``."""

    def __init__(self, values: Mapping[bytes, bytes]) -> None:
        self._values = values
        self._expanded = 0

    def read(self, payload: Any, down: Down) -> Any:
        """Return the value of a reference."""
        if not isinstance(payload, str):
            raise UndecodableError("a value is named by its digest")
        data = self._values.get(bytes.fromhex(payload))
        if data is None:
            raise UndecodableError(f"the value {payload[:40]} did not come along")
        self._expanded += len(data)
        if self._expanded > EXPANDED_BYTES_MAX:
            raise UndecodableError(
                f"the values of a body are more than {EXPANDED_BYTES_MAX} bytes"
            )
        return down(json.loads(data))


def value_digest(data: bytes) -> bytes:
    """Return the digest that names the value of this JSON."""
    return blake2b(data, digest_size=VALUE_DIGEST_BYTES).digest()


def reference(digest: bytes) -> Any:
    """Return the tree that refers to a value."""
    return {"$v": digest.hex()}


def dumps(tree: Any) -> bytes:
    """Return a tree as it travels; ``ValueError`` for numbers that are none."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()
