"""Files of ``-o`` and ``-O``: what becomes of them when a job did not do its work."""

import os
from argparse import Namespace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from dscrapy.cli.output_files import (
    Feed,
    Fetched,
    check_outputs,
    copy_items,
    fetch,
    parse_feeds,
    write_results,
)
from dscrapy.errors import UsageError
from dscrapy.messages import Chunk, ReadFile
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


def test_a_reader_that_has_seen_enough_keeps_no_file_from_its_items(
    tmp_path: Path, out: Path
) -> None:
    """A pipe whose other end is closed, as that of ``| head``: nothing is said of it,
    and what comes after it is written."""
    pipe, path = out / "pipe", out / "out.jsonl"
    os.mkfifo(pipe)
    items = fetched(tmp_path, *(f'{{"a": "{"x" * 2000}"}}' for _ in range(2000)))

    def read() -> None:
        reading = os.open(pipe, os.O_RDONLY)
        os.read(reading, 1)
        os.close(reading)

    head = Thread(target=read)
    head.start()
    said = write_results((feed(pipe), feed(path)), items, tmp_path, SPEC, None)
    head.join()
    assert said == [f"wrote 2000 items to {path}"]
    assert path.read_bytes() == items.lines.read_bytes()


def test_a_job_that_came_to_its_end_writes_as_asked(tmp_path: Path, out: Path) -> None:
    """Replaced or appended to, and named."""
    path, other = out / "out.jsonl", out / "other.jsonl"
    path.write_text(OLD)
    other.write_text(OLD)
    feeds = (feed(path), feed(other, overwrite=False))
    items = fetched(tmp_path, '{"a": 1}')
    said = write_results(feeds, items, tmp_path, SPEC, None)
    assert said == [f"wrote 1 item to {path}", f"wrote 1 item to {other}"]
    assert path.read_text() == '{"a": 1}\n'
    assert other.read_text() == f'{OLD}{{"a": 1}}\n'


# ---- what is asked for ----------------------------------------------------------


def parsed(text: str, *, overwrite: bool = True) -> Feed:
    """Return the output that a flag names."""
    named = [text]
    options = Namespace(
        append_to=[] if overwrite else named, overwrite=named if overwrite else []
    )
    (one,) = parse_feeds(options, "s")
    return one


@pytest.mark.parametrize("overwrite", [True, False])
def test_stdout_takes_lines_unless_it_is_told(overwrite: bool) -> None:
    """A - alone, with -o and with -O."""
    assert parsed("-", overwrite=overwrite).is_lines
    assert parsed("-", overwrite=overwrite).is_stdout
    assert parsed("-:csv", overwrite=overwrite).format == "csv"


@pytest.mark.parametrize(
    ("text", "name", "format"),
    [
        ("/d/x.csv", "/d/x.csv", "csv"),
        ("/d/x.csv:JSON", "/d/x.csv", "json"),
        ("/d/x:geojson", "/d/x", "geojson"),
        ("/d/10:30.csv", "/d/10:30.csv", "csv"),
        ("/d/x.Geo", "/d/x.Geo", "Geo"),
        ("file:///d/a%20b.csv", "/d/a b.csv", "csv"),
        ("/d/100%.csv", "/d/100%.csv", "csv"),
        ("/d/%(name)s.csv", "/d/s.csv", "csv"),
        ("s3://b/a%20b/%(name)s.csv", "s3://b/a%20b/s.csv", "csv"),
        ("ftp://u:pw@host/x.csv:xml", "ftp://u:***@host/x.csv", "xml"),
        ("ftp://u:pw@host:21/x.csv", "ftp://u:***@host:21/x.csv", "csv"),
    ],
)
def test_places_and_formats(text: str, name: str, format: str) -> None:
    """As Scrapy reads them; the name is what people are shown."""
    one = parsed(text)
    assert (one.name, one.format) == (name, format)
    assert bool(one.uri) == ("://" in name)


def test_a_format_of_a_project_elsewhere_is_one_line() -> None:
    """Nobody here can write it."""
    with pytest.raises(UsageError, match=r"unknown format 'geo'.*not on this machine"):
        check_outputs((parsed("/d/x.geo"),), SPEC, None)


# ---- items of a job that runs ---------------------------------------------------


class Growing:
    """A master's answers about a job which gives an item with each question; a read
    ends anywhere. ``fresh_at``: the question at which it begins anew."""

    def __init__(self, *, fresh_at: int = 0, state: str = "running") -> None:
        self.asked = 0
        self.state = state
        self.fresh_at = fresh_at

    async def show(self, job: str) -> Any:
        """Return how the job stands."""
        count = 0 if self.state == "running" else 10
        view = SimpleNamespace(state=self.state, items=count + 3)
        return SimpleNamespace(job=view, own_lines=False)

    async def read_file(self, call: ReadFile) -> Chunk:
        """Return a few bytes."""
        self.asked += 1
        count = self.asked + 10
        if self.asked == self.fresh_at:
            self.fresh_at, count, self.asked = 0, 0, -10
        row = b'{"a": "1234567"}\n' if call.file == "items" else b"null\n"
        data = (row * count)[call.offset : call.offset + 25]
        if self.state != "running":
            data = (row * 13)[call.offset : call.offset + 25]
        return Chunk(call=0, data=data, end=False)


@pytest.mark.parametrize("fresh_at", [0, 4, 5])
def test_items_of_a_running_job_are_those_of_one_moment(
    tmp_path: Path, fresh_at: int
) -> None:
    """As many forms as lines, all of them whole; also if it begins anew meanwhile."""
    client: Any = Growing(fresh_at=fresh_at)
    feeds = (feed(tmp_path / "x.csv", "csv"),)
    got = trio.run(fetch, client, "j", tmp_path, feeds)
    lines = got.lines.read_bytes()
    assert got.tagged is not None
    assert got.tagged.read_bytes() == b"null\n" * lines.count(b"\n")
    assert lines
    assert set(lines.splitlines(keepends=True)) == {b'{"a": "1234567"}\n'}


def test_items_of_a_job_that_has_ended_are_all(tmp_path: Path) -> None:
    """Whatever its views count."""
    client: Any = Growing(state="succeeded")
    taken: list[bytes] = []
    assert trio.run(copy_items, client, "j", taken.append) == 13
    assert b"".join(taken) == b'{"a": "1234567"}\n' * 13
