"""Files of ``-o`` of a crawl that is stopped and goes on: what is its own there."""

from pathlib import Path

import pytest

from dscrapy.cli.local.appends import note, prepare
from dscrapy.cli.local.crawl_state import Record
from dscrapy.cli.output_files import Feed
from dscrapy.errors import UserError


def record() -> Record:
    """Return that of a crawl which has written nothing."""
    return Record(job="j", digest="d", project="/p", spider="s", began_at=0.0)


def append(path: Path) -> Feed:
    """Return an output of ``-o``."""
    return Feed(path=path, format="jsonl", overwrite=False)


def begin(record: Record, path: Path) -> int | None:
    """Let a run begin to write; return from where on something is to be replaced."""
    (feed,) = prepare(record, (append(path),))
    return feed.begin


def test_a_crawl_takes_the_place_of_what_it_appended(tmp_path: Path) -> None:
    """Run after run, behind what was there before the first."""
    path, crawl = tmp_path / "a", record()
    path.write_text("old")
    assert begin(crawl, path) is None
    for text in ("old" + "1", "old" + "12", "old" + "12"):
        path.write_text(text)
        note(crawl, (append(path),))
        assert begin(crawl, path) == 3


def test_what_was_cut_short_by_a_kill_is_the_crawls(tmp_path: Path) -> None:
    """The record knows where it began, and not how far it came."""
    path, crawl = tmp_path / "a", record()
    path.write_text("old")
    begin(crawl, path)
    path.write_text("old" + "12")
    assert begin(crawl, path) == 3


def test_what_others_append_behind_it_is_refused(tmp_path: Path) -> None:
    """Again and again, until the file is moved away; then it begins anew."""
    path, crawl = tmp_path / "a", record()
    path.write_text("old")
    begin(crawl, path)
    path.write_text("old" + "12")
    note(crawl, (append(path),))
    path.write_text("old" + "12" + "theirs")
    for _ in range(2):
        with pytest.raises(UserError, match="has changed since"):
            begin(crawl, path)
    path.unlink()
    assert begin(crawl, path) is None


def test_what_others_append_to_a_file_that_has_nothing_of_it_stays(
    tmp_path: Path,
) -> None:
    """An append that failed left the file as it was: there is nothing to replace."""
    path, crawl = tmp_path / "a", record()
    path.write_text("old")
    begin(crawl, path)
    note(crawl, (append(path),))
    path.write_text("old" + "theirs")
    assert begin(crawl, path) is None
    path.write_text("old" + "theirs" + "12")
    assert begin(crawl, path) == 9


def test_files_that_are_replaced_are_not_noted(tmp_path: Path) -> None:
    """Nor is what no file is."""
    crawl = record()
    feeds = (
        Feed(path=tmp_path / "a", format="csv", overwrite=True),
        Feed(path=Path("/dev/null"), format="csv", overwrite=False),
        Feed(uri="s3://b/a", format="csv", overwrite=False),
    )
    assert prepare(crawl, feeds) == feeds
    note(crawl, feeds)
    assert crawl == record()
