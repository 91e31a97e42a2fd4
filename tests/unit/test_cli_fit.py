"""Tables and lines at any width: nothing but free text is ever cut."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dscrapy.cli.terminal.screen import decorated
from dscrapy.cli.terminal.tables import Table, cut, fitted, progress, width_of

WIDTHS = (50, 80, 120, 200)
JOBS = Table(
    ("ID", "STATE", "PROCS", "PAGES", "SPIDER", "NAME", "REASON"),
    (
        ("0123456789abcdef", "running", "", "7", "books", "", ""),
        ("00000000000000aa", "failed", "", "1234567", "s" * 20, "n" * 20, "why " * 20),
    ),
    frozenset({"PROCS", "PAGES"}),
    free=frozenset({"REASON"}),
)

# What jobs are called, wide characters too.
words = st.text("ab1-_ 漢字é", max_size=30).map(str.strip)


def lines_of(table: Table, width: int) -> list[str]:
    """Return the table's lines."""
    return [line for _, line in fitted(table, width)]


@pytest.mark.parametrize("width", WIDTHS)
def test_only_free_text_is_cut(width: int) -> None:
    """Every id, state, number and name is whole, and the free text fills the rest."""
    text = "\n".join(lines_of(JOBS, width))
    for row in JOBS.rows:
        for cell in row[:-1]:
            assert cell in text
    assert all(width_of(line) <= width for line in text.splitlines())
    assert "why why why" in text
    assert ("…" in text) == (width < 200)
    # What nobody has takes no room.
    assert "PROCS" not in text


def test_a_wide_terminal_has_a_line_for_each_row_and_a_narrow_one_goes_on_below() -> (
    None
):
    """Both under headers that say which is which."""
    assert len(lines_of(JOBS, 200)) == 3
    ids, names, reasons = lines_of(JOBS, 50)[:3]
    assert ids.split() == ["ID", "STATE", "PAGES"]
    assert names.split() == ["SPIDER", "NAME"]
    assert reasons.split() == ["REASON"]
    assert names.startswith("    ")
    # The first job has no reason, so it has no line for one.
    assert [line.split()[0] for line in lines_of(JOBS, 50)[3:]] == [
        *("0123456789abcdef", "books"),
        *("00000000000000aa", "s" * 20, "why"),
    ]


@given(
    rows=st.lists(st.tuples(words, words, words, words), max_size=4),
    width=st.integers(20, 120),
)
def test_any_table_at_any_width(
    rows: list[tuple[str, str, str, str]], width: int
) -> None:
    """Cells are whole but for free text; no line is longer than the terminal is wide,
    unless a single cell is."""
    table = Table(
        ("A", "B", "N", "FREE"),
        tuple(rows),
        frozenset({"N"}),
        free=frozenset({"FREE"}),
    )
    lines = lines_of(table, width)
    text = "\n".join(lines)
    for row in rows:
        assert all(cell in text for cell in row[:-1])
    longest = max(width_of(cell) for row in [*rows, ("",) * 4] for cell in row)
    assert all(width_of(line) <= max(width, longest + 4) for line in lines)


def test_a_terminal_shows_all_of_a_name_longer_than_its_width() -> None:
    """It goes on in the next line."""
    table = Table(("NAME",), (("0123456789" * 10,),))
    file = io.StringIO()
    console = Console(file=file, width=50, markup=False, highlight=False)
    console.print(decorated([table]))
    assert "".join(file.getvalue().split()) == "NAME" + "0123456789" * 10


@given(text=words, width=st.integers(1, 40))
def test_cut_text_fits_and_says_that_it_is_cut(text: str, width: int) -> None:
    """Also where a character takes two columns."""
    short = cut(text, width)
    assert width_of(short) <= width
    assert short == text or short.endswith("…")


def test_progress_has_numbers_first_and_leaves_out_what_does_not_fit() -> None:
    """Numbers and the name are whole or not there; the text is cut."""
    numbers = ("12 pages", "3 items", "4 errors")
    whole = "12 pages, 3 items, 4 errors: books (no worker is connected)"
    shown = [
        progress(numbers, "books", "(no worker is connected)", width)
        for width in (80, len(whole) - 1, 33, 32, 26, 20, 3)
    ]
    assert shown == [
        whole,
        f"{whole[:-2]}…",
        "12 pages, 3 items, 4 errors: books"[:27],
        "12 pages, 3 items, 4 errors",
        "12 pages, 3 items",
        "12 pages, 3 items",
        "12 pages",
    ]
