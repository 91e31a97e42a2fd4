"""The floor under what tests/unit reaches tells which file is below it."""

from tests.floor import FLOOR, LOWER, ROOT, below


def test_files_below_their_floor_are_told() -> None:
    """One that nothing reaches, too; one at its floor is not."""
    at_floor = {"dscrapy/good.py": float(FLOOR)} | LOWER
    assert list(below(at_floor)) == []
    assert list(below(at_floor | {"dscrapy/bad.py": 0.0})) == [
        f"dscrapy/bad.py: tests/unit reaches 0.0 %, its floor is {FLOOR} %"
    ]


def test_each_lower_floor_has_a_file() -> None:
    """A file that has moved takes its number along."""
    assert [path for path in LOWER if not (ROOT / path).exists()] == []
    assert len(list(below({}))) == len(LOWER)
