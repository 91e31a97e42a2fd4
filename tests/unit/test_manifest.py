"""Which files make the state, for every listing a crash or a person may leave."""

import pytest

from dscrapy.journal.manifest import (
    Missing,
    Plan,
    plan,
    segment_name,
    snapshot_name,
    torn_name,
)


def listing(segments: str, snapshots: str = "") -> list[str]:
    """Names from digits: "12", "2" is segments 1 and 2 and snapshot 2."""
    return [
        *(segment_name(int(digit)) for digit in segments),
        *(snapshot_name(int(digit)) for digit in snapshots),
    ]


@pytest.mark.parametrize(
    ("segments", "snapshots", "snapshot", "live", "dead"),
    [
        ("", "", None, (), ("", "")),
        ("1", "", None, (1,), ("", "")),
        ("321", "", None, (1, 2, 3), ("", "")),
        ("1", "1", 1, (1,), ("", "")),
        ("123", "2", 2, (2, 3), ("1", "")),
        ("234", "24", 4, (4,), ("23", "2")),
        ("34", "24", 4, (4,), ("3", "2")),
        # Only some of the dead were removed before a crash.
        ("145", "4", 4, (4, 5), ("1", "")),
    ],
)
def test_newest_snapshot_and_what_follows(
    segments: str,
    snapshots: str,
    snapshot: int | None,
    live: tuple[int, ...],
    dead: tuple[str, str],
) -> None:
    """The newest snapshot and the segments from its number on, the rest is dead."""
    assert plan(listing(segments, snapshots)) == Plan(
        snapshot=snapshot,
        segments=live,
        dead=tuple(listing(*dead)),
        temporary=(),
    )


@pytest.mark.parametrize(
    ("segments", "snapshots", "missing"),
    [
        ("2", "", 1),
        ("13", "", 2),
        ("134", "2", 2),
        ("245", "2", 3),
        ("", "2", 2),
        ("1", "2", 2),
        ("12", "23", 3),
    ],
)
def test_gap_is_missing(segments: str, snapshots: str, missing: int) -> None:
    """A segment that the state needs is named when it is not there."""
    found = plan(listing(segments, snapshots))
    assert isinstance(found, Missing)
    assert found.name == segment_name(missing)


def test_names_of_others_are_left_alone() -> None:
    """Only the journal's own names count; half-written ones are told apart."""
    mine = [
        snapshot_name(2) + ".tmp",
        segment_name(1) + ".torn.tmp",
        segment_name(1) + ".torn.1.tmp",
    ]
    others = [
        "jobs",
        "lock",
        "token.tmp",
        "journal-1.log",
        segment_name(0),
        snapshot_name(0),
        segment_name(7) + "\n",
        segment_name(7) + ".torn",
        "x" + segment_name(7),
        snapshot_name(7) + ".old",
    ]
    found = plan([*mine, *others, segment_name(1)])
    assert found == Plan(
        snapshot=None, segments=(1,), dead=(), temporary=tuple(sorted(mine))
    )


def test_torn_name_is_always_a_new_one() -> None:
    """What was put aside before is never overwritten."""
    names: list[str] = [segment_name(3)]
    for _ in range(4):
        name = torn_name(3, names)
        assert name not in names
        assert name.startswith(segment_name(3) + ".torn")
        names.append(name)
