"""Items of a crawl process, exported, against ``scrapy crawl -O``."""

import csv
import json
import marshal
import os
import pickle
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.settings import Settings
from scrapy.utils.misc import load_object

from dscrapy.crawl.codec.items import ItemEncoder, wire_form
from dscrapy.crawl.export import exporting as exporting
from dscrapy.crawl.export.exporting import Target, check
from dscrapy.errors import UserError
from dscrapy.model import JobSpec
from tests.e2e.crawl_harness import PROJECT, CrawlProcess, plain_scrapy, running_site


def export(
    lines: Iterable[bytes],
    tagged: Iterable[bytes] | None,
    path: Path,
    *,
    append: bool = False,
    spec: JobSpec | None = None,
) -> int:
    """Write items to a file of this ending."""
    target = Target(place=path, append=append)
    count = exporting.export(lines, tagged, target, spec=spec)
    assert count is not None
    return count


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
    (path.parent / "taken.json").mkdir()
    with pytest.raises(UserError, match="directory"):
        export([b"{}"], None, path.parent / "taken.json")
    assert path.read_bytes() == lines[0]
    assert sorted(os.listdir(path.parent)) == ["items.jsonl", "taken.json"]


def test_an_empty_job_writes_what_scrapy_writes(tmp_path: Path) -> None:
    """FEED_STORE_EMPTY is on by default."""
    assert export([], [], tmp_path / "none.json") == 0
    assert (tmp_path / "none.json").read_bytes() == b"[\n\n]"


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    """One line, before anything is written."""
    for name in ("items.exe", "items"):
        with pytest.raises(UserError, match="csv, jl, json, jsonl"):
            check([Target(place=tmp_path / name)], None)
        with pytest.raises(UserError):
            export([], [], tmp_path / name)
    check([Target(place=tmp_path / "items.csv")], None)
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


OUTPUTS = """
from scrapy.exporters import JsonItemExporter, JsonLinesItemExporter


class Numbers(JsonItemExporter):
    def start_exporting(self):
        self.file.write(b"numbers\\n")

    def export_item(self, item):
        self.file.write(b"%d\\n" % item["i"])

    def finish_exporting(self):
        self.file.close()


class Box:
    def __init__(self, folder, uri, feed_options):
        self.folder, self.name = folder, uri.removeprefix("box://")
        self.is_new = feed_options.get("overwrite", False)

    @classmethod
    def from_crawler(cls, crawler, uri, *, feed_options=None):
        return cls(crawler.settings["BOX"], uri, feed_options)

    def open(self, spider):
        self.spider = spider
        return open(f"{self.folder}/{self.name}.open", "w+b")

    async def store(self, file):
        import asyncio

        await asyncio.sleep(0)
        if self.name.endswith("full"):
            raise ValueError("the box is full")
        file.seek(0)
        with open(f"{self.folder}/{self.name}", "wb" if self.is_new else "ab") as box:
            box.write(self.spider.name.encode() + b" " + file.read())
        file.close()
"""


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobSpec]:
    """Return a job of the project, with formats and storages of its own."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("SCRAPY_SETTINGS_MODULE", "testsite.settings")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_outputs.py").write_text(OUTPUTS)
    exporters = {"numbers": "own_outputs.Numbers", "gone": "own_outputs.Gone"}
    settings = {
        "FEED_EXPORTERS": json.dumps({**exporters, "xml": None}),
        "FEED_STORAGES": json.dumps({"box": "own_outputs.Box"}),
        "BOX": str(tmp_path),
    }
    yield JobSpec(
        project_dir=str(PROJECT), spider="pages", args={"site": ""}, settings=settings
    )
    sys.modules.pop("own_outputs", None)


def test_formats_and_storages_of_the_project(outputs: JobSpec, tmp_path: Path) -> None:
    """Whatever FEED_EXPORTERS and FEED_STORAGES name, in a file or elsewhere; the
    storage has the spider, and learns of -O as from Scrapy."""
    lines = [b'{"i": 1}', b'{"i": 2}']
    path = tmp_path / "ours.numbers"
    target = Target(place="box://b", format="numbers")
    check([Target(place=path), target], outputs)
    assert export(lines, None, path, spec=outputs) == 2
    assert path.read_bytes() == b"numbers\n1\n2\n"
    (tmp_path / "b").write_text("old")
    plain = Target(place="box://b", format="jl", append=True)
    assert exporting.export(lines, None, plain, spec=outputs) == 2
    assert (tmp_path / "b").read_bytes() == b'oldpages {"i": 1}\n{"i": 2}\n'
    assert (
        exporting.export(
            lines[:1], None, Target(place="box://b", format="jl"), spec=outputs
        )
        == 1
    )
    assert (tmp_path / "b").read_bytes() == b'pages {"i": 1}\n'


def test_what_the_project_cannot_write_is_one_line(
    outputs: JobSpec, tmp_path: Path
) -> None:
    """A format that it lacks, has lost or cannot import, a storage that nobody knows;
    a storage that fails is told, and its URI without its password."""
    for name, told in (
        ("x.exe", "unknown format 'exe'; there are .*gone, .*numbers"),
        ("x.xml", "unknown format 'xml'"),
        ("x.gone", "exporter of format 'gone' cannot be loaded: .*Gone"),
    ):
        with pytest.raises(UserError, match=told):
            check([Target(place=tmp_path / name)], outputs)
    with pytest.raises(UserError, match=r"no storage is known for sky://; .*box"):
        check([Target(place="sky://x", format="jl")], outputs)
    target = Target(place="box://me:word@full", format="jl")
    told = r"box://me:\*\*\*@full: ValueError: the box is full"
    with pytest.raises(UserError, match=told):
        exporting.export([b"{}"], None, target, spec=outputs)
    wrong = msgspec.structs.replace(outputs, spider="nobody")
    with pytest.raises(UserError, match="nobody"):
        check([target], wrong)


# ---- one bad item ------------------------------------------------------------


def nested(depth: int, kind: str) -> Any:
    """Return an item so deep, of dicts or of lists and dicts in turn."""
    value: Any = {"i": 0}
    for _ in range(depth):
        value = {"i": 0, "d": value if kind == "dicts" else [value]}
    return value


FORMATS = ("json", "jsonl", "csv", "xml", "pickle", "marshal")


def plainly(name: str, items: list[Any]) -> tuple[bytes, int]:
    """Write items by Scrapy's exporter as its feeds do; return also how many."""
    file = BytesIO()
    count = 0
    exporters = Settings().getwithbase("FEED_EXPORTERS")
    exporter = load_object(exporters[name])(file, indent=0)
    exporter.start_exporting()
    for item in items:
        with suppress(RecursionError, ValueError):
            exporter.export_item(item)
            count += 1
    exporter.finish_exporting()
    return file.getvalue(), count


def forms_of(items: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """Return the items as a job keeps them: lines and tagged forms."""
    encoder = ItemEncoder(Crawler(Spider, Settings()))
    encoded = [encoder.encode(item) for item in items]
    forms = [wire_form(one.tagged) or b"null" for one in encoded]
    return [one.line for one in encoded], forms


@pytest.mark.parametrize("kind", ["dicts", "lists"])
@pytest.mark.parametrize("depth", [90, 105, 150, 450, 500, 900])
def test_deep_items_are_in_each_format_in_which_plain_writes_them(
    depth: int, kind: str, tmp_path: Path
) -> None:
    """Byte for byte; where a format cannot hold one, the others are there all the
    same."""
    items = [{"i": 1}, nested(depth, kind), {"i": 2}]
    lines, forms = forms_of(items)
    for name in FORMATS:
        plain, count = plainly(name, items)
        path = tmp_path / f"ours.{name}"
        assert export(lines, forms, path) >= count
        if count < len(items):
            assert_holds(path, [items[0], items[2]])
        elif name in ("pickle", "marshal"):
            # Their bytes depend on which values are one object.
            found = [marshal.dumps(one, 0) for one in objects_in(path)]
            assert found == [marshal.dumps(one, 0) for one in items]
        else:
            assert path.read_bytes() == plain, name


@pytest.mark.parametrize("depth", [90, 300])
def test_deep_items_keep_their_types(depth: int, tmp_path: Path) -> None:
    """What JSON cannot hold is read back, however deep it is."""
    value: Any = b"\xff"
    for _ in range(depth):
        value = {"v": (value,)}
    lines, forms = forms_of([value])
    assert export(lines, forms, tmp_path / "ours.marshal") == 1
    assert marshal.loads((tmp_path / "ours.marshal").read_bytes()) == value  # noqa: S302 - our own file


def test_an_item_that_no_format_holds_is_an_item_less(tmp_path: Path) -> None:
    """5,000 and 100,000 deep: no crash of the process, and the others are there."""
    for depth in (5_000, 100_000):
        items = [{"i": 1}, nested(depth, "lists"), {"i": 2}]
        lines, forms = forms_of(items)
        for name in FORMATS:
            path = tmp_path / f"ours.{name}"
            assert export(lines, forms, path) >= 2, (depth, name)
            assert_holds(path, [items[0], items[2]])


def objects_in(path: Path) -> list[Any]:
    """Return what is in a file of pickles or marshalled objects."""
    if path.suffix == ".pickle":
        return unpickled(path)
    objects = []
    with path.open("rb") as file:
        while file.peek(1):
            objects.append(marshal.load(file))  # noqa: S302 - our own file
    return objects


def assert_holds(path: Path, items: list[Any]) -> None:
    """A file is well formed and holds these items, beside others perhaps."""
    data = path.read_bytes()
    match path.suffix:
        case ".json":
            found = json.loads(data)
        case ".jsonl":
            found = [json.loads(line) for line in data.splitlines() if len(line) < 99]
        case ".csv":
            rows = csv.reader(StringIO(data.decode()))
            found = [{"i": int(row[0])} for row in list(rows)[1:] if row[0].isdigit()]
        case ".xml":
            root = ElementTree.fromstring(data)  # noqa: S314 - our own file
            found = [{"i": int(item.findtext("i") or 0)} for item in root]
        case _:
            found = objects_in(path)
    assert [one for one in found if one in items] == items


@pytest.mark.parametrize("name", FORMATS)
def test_a_line_that_cannot_be_read_ends_no_export(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is missing, a warning counts; a form that cannot be read gives way to the
    line."""
    lines = [b'{"i": 1}', b"{", b"\xff", b'{"i": 3}', b'{"i": 2}']
    forms = [b"null", b"null", b"null", b'{"$nonsense": 1}', b"null"]
    path = tmp_path / f"ours.{name}"
    if name == "jsonl":
        assert export(lines, forms, path) == 5
        assert path.read_bytes() == b"\n".join(lines) + b"\n"
        return
    assert export(lines, forms, path) == 3
    assert_holds(path, [{"i": 1}, {"i": 3}, {"i": 2}])
    assert "2 items are missing" in caplog.text
    assert "types in 1 items" in caplog.text


def test_what_neither_item_nor_line_can_give_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a character, which JSON can escape and UTF-8 cannot hold."""
    lines = [b'{"i": 1}', b'{"i": "\\ud800"}', b'{"i": 2}']
    path = tmp_path / "ours.csv"
    assert export(lines, None, path) == 2
    assert path.read_bytes() == b"i\r\n1\r\n2\r\n"
    assert "1 items are missing" in caplog.text
    assert "UnicodeEncodeError" in caplog.text


def test_a_character_beyond_the_encoding_is_escaped(
    site: str, tmp_path: Path, in_project: None
) -> None:
    """Plain Scrapy loses such an item of JSON lines; here it is there, escaped."""
    settings = {"FEED_EXPORT_ENCODING": "latin-1"}
    spec = JobSpec(
        project_dir=str(PROJECT), spider="pages", args={"site": site}, settings=settings
    )
    path = tmp_path / "ours.jsonl"
    assert export(['{"a": "é€"}'.encode(), b'{"a": "x"}'], None, path, spec=spec) == 2
    assert path.read_bytes() == b'{"a": "\\u00e9\\u20ac"}\n{"a": "x"}\n'
