"""A log's lines: whose they are, from which level on, the last of them."""

import pytest

from dscrapy.cli.terminal.log_lines import HeadingsInUse, LogLines

LOG = b"""--- process 1 on w1 ---
2026-01-02 03:04:05 [scrapy.core.engine] INFO: Spider opened
--- process 2 on w2 ---
2026-01-02 03:04:06 [shop] ERROR: no price
Traceback (most recent call last):
--- process 1 ---
2026-01-02 03:04:07 [shop] DEBUG: of the first
printed by the first
--- process 2 ---
ValueError: of the second
2026-01-02 03:04:08 [shop] INFO: through
"""
LABELLED = """--- process 1 on w1 ---
[1] 2026-01-02 03:04:05 [scrapy.core.engine] INFO: Spider opened
--- process 2 on w2 ---
[2] 2026-01-02 03:04:06 [shop] ERROR: no price
[2] Traceback (most recent call last):
[1] 2026-01-02 03:04:07 [shop] DEBUG: of the first
[1] printed by the first
[2] ValueError: of the second
[2] 2026-01-02 03:04:08 [shop] INFO: through
""".splitlines(keepends=True)


def written(
    *pieces: bytes, level: str | None = None, tail: int | None = None
) -> list[str]:
    """Return the lines that are written of a log that comes in these pieces."""
    out: list[bytes] = []
    lines = LogLines(out.append, level=level, tail=tail)
    for piece in pieces:
        lines.take(piece)
    lines.end()
    return b"".join(out).decode().splitlines(keepends=True)


def test_each_line_has_its_process() -> None:
    """However the bytes come; the heading that says where it runs stays."""
    assert written(LOG) == LABELLED
    assert written(*(LOG[at : at + 1] for at in range(len(LOG)))) == LABELLED


def test_a_level_has_what_belongs_to_its_lines() -> None:
    """A traceback goes with its error, though another's lines stand between."""
    assert written(LOG, level="ERROR") == [
        LABELLED[0],
        *LABELLED[2:5],
        LABELLED[7],
    ]
    assert written(LOG, level="DEBUG") == LABELLED


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_last_lines_are_of_what_is_shown(count: int) -> None:
    """They are counted after the level, and know their process all the same."""
    assert written(LOG, tail=count) == LABELLED[-count:]
    errors = written(LOG, level="ERROR")
    assert written(LOG, level="ERROR", tail=count) == errors[-count:]


def test_after_the_last_lines_all_that_comes_is_written() -> None:
    """As it comes: nothing of it is kept back."""
    out: list[bytes] = []
    lines = LogLines(out.append, tail=1)
    lines.take(LOG)
    assert out == []
    lines.release()
    lines.take(b"one\ntwo\nthr")
    assert b"".join(out).decode() == LABELLED[-1] + "[2] one\n[2] two\n"
    lines.end()
    assert out[-1] == b"[2] thr\n"


def test_a_log_without_headings_is_as_it_is() -> None:
    """And what is no text, too; bytes are not looked into."""
    assert written(b"a\n\xc3\xa9\n") == ["a\n", "\u00e9\n"]


def in_use(*pieces: bytes) -> list[bytes]:
    """Return what is shown of a log after each of these pieces, and at its end."""
    headings = HeadingsInUse()
    return [*(headings.feed(piece) for piece in pieces), headings.end()]


def test_a_heading_without_lines_is_left_out() -> None:
    """However the bytes come; the others stay where they are."""
    bare = b"--- process 3 on w1 ---\n"
    log = bare + LOG + bare
    for size in (1, 7, len(log)):
        pieces = [log[at : at + size] for at in range(0, len(log), size)]
        assert b"".join(in_use(*pieces)) == LOG
    assert b"".join(in_use(bare, bare)) == b""


def test_what_is_no_heading_is_shown_as_it_comes() -> None:
    """A line that is no more than begun, too."""
    pieces = b"40 %\r", b"80 %", b"\n--", b"- proc", b"ess 1\n", b"--- "
    assert in_use(*pieces) == [
        *(b"40 %\r", b"80 %", b"\n", b"", b"--- process 1\n", b""),
        b"--- ",
    ]
    # Not where a line has begun.
    assert in_use(b"a", b"--- process 1 on w1 ---\n")[1] == b"--- process 1 on w1 ---\n"
