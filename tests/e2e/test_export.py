"""Items of a crawl process, exported, against ``scrapy crawl -O``."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dscrapy.crawl.export import check_ending, export
from dscrapy.errors import UserError
from dscrapy.model import JobSpec
from tests.e2e.crawl_harness import PROJECT, CrawlProcess, plain_scrapy, running_site


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with running_site() as address:
        yield address


def crawled(spider: str, site: str, folder: Path) -> tuple[JobSpec, Any, Any]:
    """Run one page of a spider; return its job, lines and tagged forms."""
    args = {"site": site, "count": "1"}
    spec = JobSpec(project_dir=str(PROJECT), spider=spider, args=args)
    process = CrawlProcess(spec, PROJECT, folder / "crawl.log")
    try:
        process.finish()
        lines = [line.encode() + b"\n" for line in process.lines]
        return spec, lines, [form + b"\n" for form in process.tagged]
    finally:
        process.close()


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the project the current folder, as the command line does."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.syspath_prepend(str(PROJECT))
    # init_env sets it for good; the test must not hand it on.
    monkeypatch.setenv("SCRAPY_SETTINGS_MODULE", "testsite.settings")


ENDINGS = ("json", "jsonl", "jl", "csv", "xml", "pickle")


@pytest.mark.parametrize("spider", ["shelved", "prices", "kinds"])
@pytest.mark.usefixtures("in_project")
def test_files_are_those_of_scrapy(site: str, tmp_path: Path, spider: str) -> None:
    """With the project at hand each format is byte for byte Scrapy's own."""
    spec, lines, tagged = crawled(spider, site, tmp_path)
    plain = [tmp_path / f"plain.{ending}" for ending in ENDINGS]
    plain_scrapy(spider, spec.args, plain[0], more=tuple(plain[1:]))
    for path in plain:
        ours = tmp_path / f"ours{path.suffix}"
        assert export(lines, tagged, ours, spec=spec) == len(lines)
        if path.suffix == ".pickle":
            # Bytes depend on which values are one object; compare what they hold.
            assert list(map(repr, unpickled(ours))) == list(map(repr, unpickled(path)))
        else:
            assert ours.read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.glob(".ours*")] == []


def unpickled(path: Path) -> list[Any]:
    """Return the objects in a file of pickles."""
    objects = []
    with path.open("rb") as file:
        while file.peek(1):
            objects.append(pickle.load(file))  # noqa: S301 - our own file
    return objects


def test_without_the_project_columns_are_the_same(site: str, tmp_path: Path) -> None:
    """The declared fields travel with the items."""
    spec, lines, tagged = crawled("shelved", site, tmp_path)
    export(lines, tagged, tmp_path / "ours.csv")
    plain_scrapy("shelved", spec.args, tmp_path / "plain.csv")
    plain = (tmp_path / "plain.csv").read_bytes()
    assert (tmp_path / "ours.csv").read_bytes() == plain
    assert plain.startswith(b"number,rating,title\r\n")


def test_every_item_is_written_whatever_the_format_holds(
    site: str, tmp_path: Path
) -> None:
    """Where Scrapy's exporter fails, the item stands as in its line."""
    _, lines, tagged = crawled("unencodable", site, tmp_path)
    for ending in ("json", "csv", "xml"):
        assert export(lines, tagged, tmp_path / f"ours.{ending}") == 3
    assert r"b'\\xff\\x00'" in (tmp_path / "ours.json").read_text()


def test_append_and_replace(tmp_path: Path) -> None:
    """-o adds to a file, -O puts another in its place, a failure leaves it."""
    path = tmp_path / "deep" / "items.jsonl"
    lines = [b'{"a": 1}\n', b'{"a": NaN}\n']
    assert export(lines, None, path) == 2
    assert export(lines, None, path, append=True) == 2
    assert path.read_bytes() == b"".join(lines * 2)
    assert export(lines[:1], None, path) == 1
    with pytest.raises(UserError, match="item 2 cannot be read"):
        export([b"{}", b"{"], None, path.with_suffix(".json"))
    assert path.read_bytes() == lines[0]
    assert os.listdir(path.parent) == ["items.jsonl"]


def test_an_empty_job_writes_what_scrapy_writes(tmp_path: Path) -> None:
    """FEED_STORE_EMPTY is on by default."""
    assert export([], [], tmp_path / "none.json") == 0
    assert (tmp_path / "none.json").read_bytes() == b"[\n\n]"


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    """One line, before anything is written."""
    for name in ("items.exe", "items"):
        with pytest.raises(UserError, match=r"\.csv, \.jl, \.json, \.jsonl"):
            check_ending(tmp_path / name)
        with pytest.raises(UserError):
            export([], [], tmp_path / name)
    check_ending(tmp_path / "items.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """The operating system's reason, no traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        export([], [], tmp_path / "file" / "items.csv")


def test_a_project_that_fails_to_load_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The items come all the same."""
    monkeypatch.chdir(tmp_path)
    spec = JobSpec(project_dir=str(tmp_path), spider="missing.py")
    assert export([b'{"a": 1}'], None, tmp_path / "items.csv", spec=spec) == 1
    assert "without the project" in caplog.text
