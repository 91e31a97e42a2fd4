"""Rows of ``make compat``: what counts as a failure, and which pairs there are."""

from pathlib import Path

import pytest

from dscrapy.crawl.insides.versions import check_version
from tests.compat import Row, exit_code, find_python, make, render, supported

PASSED = Row("3.11", "2.19.0", "passed", "9 passed")
FAILED = Row("3.11", "2.18.0", "FAILED", "1 failed")
ABSENT = Row("3.13", "2.18", "not run", "no Python 3.13 here")


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([PASSED], 0),
        ([PASSED, ABSENT], 0),
        ([PASSED, FAILED, PASSED], 1),
        ([ABSENT], 1),
        ([], 1),
    ],
)
def test_nothing_that_was_not_run_counts_as_passed(rows: list[Row], code: int) -> None:
    """Rows that could not run are no failure, unless all of them are such."""
    assert exit_code(rows) == code


def test_a_row_is_one_line() -> None:
    """Python, Scrapy, result, and why."""
    assert render(ABSENT).split(maxsplit=4) == [
        *("3.13", "2.18", "not", "run"),
        "no Python 3.13 here",
    ]


def test_the_pairs_are_those_that_are_supported() -> None:
    """From the oldest on, without a gap; the one that is installed among them."""
    assert supported() == ("2.16", "2.17", "2.18", "2.19")
    check_version()


def test_a_python_that_is_not_there_is_not_found() -> None:
    """No version that nobody has released."""
    assert find_python("3.1000") is None


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """In the words of what failed, or its exit code; no sign that it is ready."""
    assert make(Path("/bin/false"), "2.19", tmp_path / "none") == "exit code 1"
    assert not (tmp_path / "none").exists()
