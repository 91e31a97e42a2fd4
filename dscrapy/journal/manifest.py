"""Which files make the state: names in, a plan out.

There is no manifest file, the names alone decide. Snapshot n holds the state as of
the start of segment n, so the newest snapshot and all segments from its number on
make the state; without a snapshot all segments from 1 on do. Segment n is durable
before snapshot n is written, and older files go only after that, so at no moment
of a crash does a needed file not exist: a missing one was removed by somebody.
"""

import re
from collections.abc import Iterable

import attrs

FIRST_SEGMENT = 1

# Numbers begin with 1, so a name with 0 is not the journal's.
_SEGMENT = re.compile(r"journal-(?!0{10})([0-9]{10})\.log\Z")
_SNAPSHOT = re.compile(r"snapshot-(?!0{10})([0-9]{10})\.bin\Z")
_TEMPORARY = re.compile(r"(journal|snapshot)-[0-9]{10}\..*\.tmp\Z")


@attrs.frozen(kw_only=True)
class Plan:
    """How to read the state back.

    ``snapshot`` is its number or None, ``segments`` the numbers to replay in order,
    ``dead`` the names of files that add nothing, ``temporary`` of files that a
    crash left half written.
    """

    snapshot: int | None
    segments: tuple[int, ...]
    dead: tuple[str, ...]
    temporary: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Missing:
    """A file without which the state is not whole, and why it is needed."""

    name: str
    reason: str


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"journal-{number:010d}.log"


def snapshot_name(number: int) -> str:
    """Return the file name of a snapshot."""
    return f"snapshot-{number:010d}.bin"


def torn_name(number: int, names: Iterable[str]) -> str:
    """Return a name not in ``names`` for the torn tail of a segment."""
    taken = set(names)
    name = f"{segment_name(number)}.torn"
    if name not in taken:
        return name
    # One of these numbers is free, as ``taken`` has fewer names than there are.
    return next(
        numbered
        for extra in range(1, len(taken) + 2)
        if (numbered := f"{name}.{extra}") not in taken
    )


def plan(names: Iterable[str]) -> Plan | Missing:
    """Decide from a folder's names; names that are not the journal's are ignored."""
    segments: dict[int, str] = {}
    snapshots: dict[int, str] = {}
    temporary: list[str] = []
    for name in sorted(names):
        if match := _SEGMENT.match(name):
            segments[int(match[1])] = name
        elif match := _SNAPSHOT.match(name):
            snapshots[int(match[1])] = name
        elif _TEMPORARY.match(name):
            temporary.append(name)
    snapshot = max(snapshots, default=None)
    first = FIRST_SEGMENT if snapshot is None else snapshot
    live = [number for number in segments if number >= first]
    for expected, found in enumerate(live, first):
        if found != expected:
            return Missing(
                name=segment_name(expected), reason=f"{segments[found]} follows it"
            )
    if snapshot is not None and not live:
        return Missing(
            name=segment_name(first), reason=f"{snapshots[snapshot]} stands on it"
        )
    dead = [name for number, name in segments.items() if number < first]
    dead += [name for number, name in snapshots.items() if number != snapshot]
    return Plan(
        snapshot=snapshot,
        segments=tuple(live),
        dead=tuple(dead),
        temporary=tuple(temporary),
    )
