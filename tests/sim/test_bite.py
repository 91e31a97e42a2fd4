"""The simulation bites: bugs planted in the product's own modules break its rules."""

import importlib.util
from pathlib import Path

import pytest

from tests.sim.bite import hunt
from tests.sim.bugs import BUGS, SIX, Bug, bug_of
from tests.sim.parallel_seeds import report
from tests.sim.planting import Edit
from tests.sim.world import simulate

# Bug -> the first seed that finds it, as ``make sim-bite`` prints it.
SEEDS = {
    "answer before fsync": 0,
    "second commit applied": 13,
    "requeue forgotten": 0,
    "leased before durable": 0,
    "decided against a stale state": 0,
    "void part published": 12,
}


@pytest.mark.parametrize("name", SIX)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    """Its seed breaks a rule with the bug, and none without it."""
    seed = SEEDS[name]
    found = hunt(bug_of(name), seed, 1)
    assert found.seed == seed, found.rule
    result = simulate(seed, tmp_path)
    assert result.violation is None, report(result, trace=False)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_can_be_planted(bug: Bug) -> None:
    """What each edit replaces stands exactly once in its module."""
    for edit in bug.edits:
        spec = importlib.util.find_spec(edit.module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert edit.apply(source) != source


def test_an_edit_that_does_not_fit_fails_loudly() -> None:
    """Neither a text that is not there nor one that is there twice is replaced."""
    for source in ("y = 1\n", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match="times there"):
            Edit("m", "x = 1\n", "").apply(source)
