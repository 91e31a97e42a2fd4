"""What became of each row, and the table of all.

Pure. A row *ran* when its experiment was carried out and nothing was lost or repeated;
it is *skipped* when it could not be carried out here, which says nothing about whether
the fault is survived; everything else is *FAILED*.
"""

import textwrap
from collections import Counter
from typing import Literal

import attrs

End = Literal["ran", "skipped", "FAILED"]
# The last column is what is read; the others are as wide as they have to be.
TEXT_COLUMNS = 84


class Skipped(Exception):
    """A row cannot be carried out on this machine; the text says why."""


class Wrong(AssertionError):
    """What must never be was seen; the text says what."""


def first_line(error: BaseException) -> str:
    """Return what an error says, of a group what its first one says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def reason_of(error: BaseException) -> str:
    """Return why a row was skipped, "" when it was not; nurseries wrap errors."""
    if isinstance(error, BaseExceptionGroup):
        reasons = [reason_of(one) for one in error.exceptions]
        return reasons[0] if all(reasons) else ""
    return str(error) if isinstance(error, Skipped) else ""


@attrs.frozen
class Outcome:
    """How a row ended, and what was counted or why."""

    row: str
    end: End
    text: str
    seconds: float


def render(outcomes: list[Outcome]) -> str:
    """Return the table; long texts go on in further lines of their column."""
    rows = [("row", "end", "seconds", "what was counted, or why")]
    for one in outcomes:
        first, *more = textwrap.wrap(one.text, TEXT_COLUMNS) or [""]
        rows.append((one.row, one.end, f"{one.seconds:.0f}", first))
        rows += [("", "", "", line) for line in more]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        lines.append("  ".join([*cells, row[2].rjust(widths[2]), row[3]]).rstrip())
    return "\n".join(lines)


def summary(outcomes: list[Outcome]) -> str:
    """Return how many rows ended how."""
    ends = Counter(one.end for one in outcomes)
    parts = (f"{ends['ran']} ran", f"{ends['skipped']} skipped (not survived, not")
    return f"{parts[0]}, {parts[1]} tried), {ends['FAILED']} FAILED"


def exit_code(outcomes: list[Outcome]) -> int:
    """Return 1 when a row failed, or none ran."""
    ends = Counter(one.end for one in outcomes)
    return 0 if ends["ran"] and not ends["FAILED"] else 1


def counted(counts: Counter[str]) -> str:
    """Return counts for people, the largest first."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
