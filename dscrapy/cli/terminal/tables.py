"""Tables and lines that fit a terminal, whatever its width.

Ids, states, names and numbers are never cut: a column that does not fit stands on a
line below. Only free text is cut. Pure.
"""

from collections.abc import Iterator, Sequence

import attrs


@attrs.frozen
class Table:
    """Rows under headers; ``right`` names the columns of numbers, ``free`` those of
    free text, which a terminal may cut: nothing else is of use when it is cut."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    free: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)


# Free text is cut to what is left of a line, if that is enough to tell it by.
_FREE_CHARS_MIN = 12
# What stands on a line below is indented by this.
_INDENT = 4
_ELLIPSIS = "…"


@attrs.frozen
class _Column:
    header: str
    cells: tuple[str, ...]
    is_right: bool
    is_free: bool

    @property
    def width(self) -> int:
        return max(map(width_of, (self.header, *self.cells)))

    @property
    def width_min(self) -> int:
        if not self.is_free:
            return self.width
        return min(self.width, max(width_of(self.header), _FREE_CHARS_MIN))


def fitted(table: Table, width: int) -> Iterator[tuple[bool, str]]:
    """Yield the table's lines for a terminal of this width, and whether each is one of
    the headers. Columns in which nothing stands are left out."""
    columns = _columns(table)
    lines = _broken(columns, width)
    # Two spaces between columns, where there is room for them.
    natural = sum(column.width + 2 for column in columns) - 2
    gap = 2 if len(lines) == 1 and natural <= width else 1
    for row in range(-1, len(table.rows)):
        for number, line in enumerate(lines):
            indent = _INDENT if number else 0
            text = _line(line, row, width - indent, gap)
            if text or not number:
                yield row < 0, " " * indent + text


def _columns(table: Table) -> list[_Column]:
    by_column = list(zip(*table.rows, strict=True)) or [()] * len(table.headers)
    return [
        _Column(header, cells, header in table.right, header in table.free)
        for header, cells in zip(table.headers, by_column, strict=True)
        if any(cells) or not table.rows
    ]


def _broken(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Return the columns of each line of a row."""
    lines: list[list[_Column]] = [[]]
    available = width
    for column in columns:
        if lines[-1] and column.width_min > available:
            lines.append([])
            available = width - _INDENT
        lines[-1].append(column)
        available -= column.width_min + 1
    return lines


def _line(columns: Sequence[_Column], row: int, width: int, gap: int) -> str:
    """Return the columns' part of a row, of the headers for -1."""
    # What the others leave; free text stands last, or is as narrow as it may be.
    spare = width - sum(column.width_min + gap for column in columns) + gap
    parts = []
    for column in columns:
        room = column.width_min
        if column.is_free and spare > 0:
            extra = min(column.width - room, spare)
            room, spare = room + extra, spare - extra
        text = cut(column.header if row < 0 else column.cells[row], room)
        blank = " " * (room - width_of(text))
        parts.append(f"{blank}{text}" if column.is_right else f"{text}{blank}")
    return (" " * gap).join(parts).rstrip()


def progress(numbers: Sequence[str], name: str, text: str, width: int) -> str:
    """Return numbers, then a name, then text on one line: the text is cut to the width.

    What does not fit of the others is left out, the last ones first.
    """
    line = ""
    for number in numbers:
        longer = f"{line}, {number}" if line else number
        if line and width_of(longer) > width:
            return line
        line = longer
    longer = f"{line}: {name}"
    if width_of(longer) > width:
        return line
    room = width - width_of(longer) - 1
    return f"{longer} {cut(text, room)}" if text and room > 1 else longer


def cut(text: str, width: int) -> str:
    """Return the text, cut to so many columns of a terminal."""
    if width_of(text) <= width:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1).rstrip() + _ELLIPSIS


def width_of(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
