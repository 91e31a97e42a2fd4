"""The lines of a record's items, as they stand in a job's files."""

import msgspec

from dscrapy.control.events import AnyPart


def line_of(item: msgspec.Raw) -> bytes:
    """Return the item's line of ``items.jsonl``, without its end.

    An item is a JSON object as it stands, or a JSON string that holds the line.
    """
    raw = bytes(item)
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str).encode()
    return raw


def lines_of(items: tuple[msgspec.Raw, ...]) -> bytes:
    """Return the items as lines, each with its end."""
    return b"".join(line_of(item) + b"\n" for item in items)


def tagged_lines_of(
    items: tuple[msgspec.Raw, ...], tagged: tuple[msgspec.Raw, ...]
) -> bytes:
    """Return a line with the tagged form of each item; ``null`` where the tagged form
    is the item's own line."""
    if tagged:
        return b"".join(bytes(form) + b"\n" for form in tagged)
    return b"null\n" * len(items)


def texts_of(record: AnyPart) -> tuple[bytes, bytes]:
    """Return the bytes that a record adds to the item lines and to the tagged lines."""
    piece = record.piece
    if piece is None:
        lines = lines_of(record.items)
        return lines, tagged_lines_of(record.items, record.tagged)
    end = b"\n" if piece.end else b""
    return piece.line + end, piece.tagged + end


def items_in(record: AnyPart) -> int:
    """Return how many items a record completes."""
    return len(record.items) + (record.piece is not None and record.piece.end)
