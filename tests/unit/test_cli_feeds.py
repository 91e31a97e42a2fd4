"""Files of ``-o`` and ``-O``: what becomes of them when a job did not do its work."""

from pathlib import Path

import pytest

from dscrapy.cli.feeds import Feed, Fetched, write_results
from dscrapy.model import JobSpec

SPEC = JobSpec(project="p", spider="s")
OLD = "the file of the day before\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for files, beside what was fetched."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def fetched(folder: Path, *lines: str) -> Fetched:
    """Return items as they were copied from a master."""
    (folder / "items.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "tagged.jsonl").write_text("null\n" * len(lines))
    return Fetched(lines=folder / "items.jsonl", tagged=folder / "tagged.jsonl")


def feed(path: Path | None, format: str = "jsonl", *, overwrite: bool = True) -> Feed:
    """Return one file to write."""
    return Feed(path=path, format=format, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_job_that_did_not_do_its_work_leaves_older_files(
    tmp_path: Path, out: Path, overwrite: bool
) -> None:
    """Replaced or appended to, in any format: what there is goes beside them, in the
    feed's format, over what a job before has left there; and is told."""
    path, table = out / "out.jsonl", out / "out.csv"
    for one in (path, table, out / "out.jsonl.failed"):
        one.write_text(OLD)
    feeds = (feed(path, overwrite=overwrite), feed(table, "csv", overwrite=overwrite))
    items = fetched(tmp_path, '{"a": 1}', '{"a": 2}')
    said = write_results(feeds, items, tmp_path, SPEC, None, undone="failed")
    assert path.read_text() == table.read_text() == OLD
    assert (out / "out.jsonl.failed").read_text() == '{"a": 1}\n{"a": 2}\n'
    assert (out / "out.csv.failed").read_text().split() == ["a", "1", "2"]
    assert said == [
        f"wrote 2 items to {one}.failed: the job failed, {one} is as it was"
        for one in (path, table)
    ]
    assert sorted(one.name for one in out.iterdir()) == [
        *("out.csv", "out.csv.failed", "out.jsonl", "out.jsonl.failed"),
    ]


def test_a_file_that_was_not_there_is_not_made(tmp_path: Path, out: Path) -> None:
    """Nobody takes it for the result."""
    path = out / "new.xml"
    items = fetched(tmp_path, '{"a": 1}')
    said = write_results(
        (feed(path, "xml"),), items, tmp_path, SPEC, None, undone="cancelled"
    )
    assert said == [
        f"wrote 1 item to {path}.failed: the job was cancelled, {path} was not written"
    ]
    assert [one.name for one in out.iterdir()] == ["new.xml.failed"]


def test_without_items_nothing_is_written(tmp_path: Path, out: Path) -> None:
    """The older file stands, none is made beside it, and a line says so."""
    path = out / "out.csv"
    path.write_text(OLD)
    items = fetched(tmp_path)
    said = write_results(
        (feed(path, "csv"),), items, tmp_path, SPEC, None, undone="failed"
    )
    assert said == [f"the job failed without items: {path} is as it was"]
    assert [(one.name, one.read_text()) for one in out.iterdir()] == [("out.csv", OLD)]


def test_stdout_gets_what_there_is(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It holds nothing that could be lost."""
    items = fetched(tmp_path, '{"a": 1}')
    said = write_results((feed(None),), items, tmp_path, SPEC, None, undone="failed")
    assert said == []
    assert capfdbinary.readouterr().out == b'{"a": 1}\n'


def test_a_job_that_came_to_its_end_writes_as_asked(tmp_path: Path, out: Path) -> None:
    """Replaced or appended to, and named."""
    path, other = out / "out.jsonl", out / "other.jsonl"
    path.write_text(OLD)
    other.write_text(OLD)
    feeds = (feed(path), feed(other, overwrite=False))
    items = fetched(tmp_path, '{"a": 1}')
    said = write_results(feeds, items, tmp_path, SPEC, None)
    assert said == [f"wrote {path}", f"wrote {other}"]
    assert path.read_text() == '{"a": 1}\n'
    assert other.read_text() == f'{OLD}{{"a": 1}}\n'
