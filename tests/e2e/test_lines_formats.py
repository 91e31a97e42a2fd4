"""JSON lines by ``-O``: those of the project, by ``scrapy crawl`` with its settings."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import run
from tests.e2e.crawl_harness import plain_scrapy, running_site
from tests.e2e.feeds_harness import project_with

OWN = """
from scrapy.exporters import BaseItemExporter, JsonLinesItemExporter


class Framed(JsonLinesItemExporter):
    def start_exporting(self):
        self.file.write(b"# begin\\n")

    def export_item(self, item):
        fields = dict(sorted(dict(item).items()))
        super().export_item({"own": type(item).__name__, **fields})

    def finish_exporting(self):
        self.file.write(b"# end\\n")


class Names(BaseItemExporter):
    def __init__(self, file, **kwargs):
        super().__init__(dont_fail=True, **kwargs)
        self.file = file

    def export_item(self, item):
        names = [name for name, _ in self.get_serialized_fields(item)]
        self.file.write(f"{type(item).__name__} {self.indent} {names}\\n".encode())
"""
FORMATS = ("jsonl", "jl", "jsonlines")
# What reaches an exporter from the settings, and exporters of the project's own.
CASES = {
    "stock": {},
    "utf-16": {"FEED_EXPORT_ENCODING": "utf-16", "FEED_EXPORT_INDENT": "2"},
    "latin-1": {"FEED_EXPORT_ENCODING": "latin-1"},
    "utf-8": {"FEED_EXPORT_ENCODING": "utf-8", "FEED_STORE_EMPTY": "0"},
    "list": {"FEED_EXPORT_FIELDS": '["title", "number"]'},
    "renamed": {
        "FEED_EXPORT_FIELDS": '{"title": "Überschrift", "number": "n"}',
        "FEED_EXPORT_ENCODING": "utf-16",
    },
    "own": {
        "FEED_EXPORTERS": json.dumps(
            {"jl": "testsite.own.Framed", "jsonlines": "testsite.own.Names"}
        ),
        "FEED_EXPORT_FIELDS": '["number", "title"]',
        "FEED_EXPORT_INDENT": "3",
    },
    "own lines": {"FEED_EXPORTERS": '{"jsonl": "testsite.own.Framed"}'},
    "no lines": {"FEED_EXPORTERS": '{"jsonl": "testsite.own.Names"}'},
}


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.mark.parametrize("case", CASES)
def test_lines_are_those_of_the_project(site: str, tmp_path: Path, case: str) -> None:
    """Byte for byte, whatever exporter, encoding and fields they are to have; of one
    page, so that the order is one."""
    folder = project_with(tmp_path, "own.py", OWN)
    args = {"site": site, "count": "1"}
    plain = [tmp_path / f"plain.{name}" for name in FORMATS]
    plain_scrapy(
        "shelved", args, plain[0], folder, more=tuple(plain[1:]), settings=CASES[case]
    )
    words = [f"-a{name}={value}" for name, value in args.items()]
    words += [f"-s{name}={value}" for name, value in CASES[case].items()]
    words += [f"-O{tmp_path}/ours.{name}" for name in FORMATS]
    done = run("crawl", "shelved", *words, cwd=folder, home=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in plain:
        assert (tmp_path / f"ours{path.suffix}").read_bytes() == path.read_bytes(), path
    said = done.stderr.splitlines()[-3:]
    assert said == [
        f"dscrapy: wrote 3 items to {tmp_path}/ours.{name}" for name in FORMATS
    ]


def test_an_empty_file_that_is_not_to_be_is_not_written(
    site: str, tmp_path: Path
) -> None:
    """FEED_STORE_EMPTY: what was there stays, as with Scrapy."""
    folder = project_with(tmp_path, "own.py", OWN)
    old = tmp_path / "old.jsonl"
    old.write_text("{}\n")
    settings = {"FEED_STORE_EMPTY": "0", "CLOSESPIDER_PAGECOUNT": "1"}
    words = [f"-s{name}={value}" for name, value in settings.items()]
    words += [f"-asite={site}/nothing", "-O", str(old)]
    done = run("crawl", "pages", *words, cwd=folder, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert old.read_text() == "{}\n"
    assert "wrote" not in done.stderr


def test_an_exporter_that_fails_is_one_line(site: str, tmp_path: Path) -> None:
    """With its error; the file is as it was, and the same command tries again."""
    broken = OWN.replace('self.file.write(b"# end\\n")', "1 / 0")
    folder = project_with(tmp_path, "own.py", broken)
    old = tmp_path / "old.jl"
    old.write_text("{}\n")
    words = ["-s", 'FEED_EXPORTERS={"jl": "testsite.own.Framed"}', "-O", str(old)]
    words += ["-a", f"site={site}", "-a", "count=1"]
    for again in (False, True):
        done = run("crawl", "shelved", *words, cwd=folder, home=tmp_path)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert (
            last == f"dscrapy: cannot write {old}: ZeroDivisionError: division by zero"
        )
        assert "Traceback" not in done.stderr
        assert ("had ended" in done.stderr) == again
        assert old.read_text() == "{}\n"
