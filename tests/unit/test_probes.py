"""What is touched of Scrapy's insides: where, with what words, and what is found.

These run on every version of Scrapy that is supported: ``make compat`` does that.
"""

import ast
import asyncio
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scrapy
from scrapy import Field, Item, Request, Spider
from scrapy.core.downloader import Downloader
from scrapy.core.scraper import Slot
from scrapy.crawler import Crawler
from scrapy.exporters import JsonLinesItemExporter
from scrapy.extensions.feedexport import FeedExporter
from scrapy.settings import Settings
from scrapy.utils.defer import _schedule_coro

from dscrapy.crawl.codec import tags
from dscrapy.crawl.insides import probes, slot_probes, versions
from dscrapy.crawl.insides.patches import mend_limits
from dscrapy.errors import UnsupportedError

ROOT = Path(__file__).parents[2]
CRAWL = ROOT / "dscrapy" / "crawl"
PROBES = {CRAWL / "insides" / name for name in ("probes.py", "slot_probes.py")}

# What hangs on Scrapy's engine: no private names, and promised by nobody.
INSIDES = frozenset(
    {
        "download_request_async",
        "downloader",
        "enqueue_scrape",
        "free_transfer_slots",
        "itemproc",
        "nextcall",
        "remove_request",
        "scraper",
        "spidermw",
        "start_itemproc_async",
        "transferring",
    }
)
# Private names of others than Scrapy: of the system's, lxml's, parsel's, itemloaders'.
ALLOWED = frozenset(
    {
        "_exit",
        "_Element",
        "_default_namespaces",
        "_huge_tree",
        "_text",
        "_local_item",
        # Of zoneinfo's: dateutil's time zones.
        "_filename",
        # Of named tuples: public, whatever it looks like.
        "_fields",
    }
)
_ASKING = frozenset({"getattr", "setattr", "hasattr", "delattr"})


def private_touches(text: str) -> Iterator[str]:
    """Yield what a file touches that is private to Scrapy: attributes, by name or as
    text, and modules or names that are imported."""
    tree = ast.parse(text)
    own = set(_defined(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name("super")), attr=touched):
                is_own = False
            case ast.Attribute(attr=touched):
                is_own = touched in own
            case ast.Call(
                func=ast.Name(called), args=[_, ast.Constant(str(touched)), *_]
            ) if called in _ASKING:
                is_own = touched in own
            case ast.Call(
                func=ast.Attribute(attr="__getattribute__"),
                args=[_, ast.Constant(str(touched))],
            ):
                is_own = touched in own
            case ast.ImportFrom(module=str(module), names=names):
                for word in (*module.split("."), *(one.name for one in names)):
                    if module.startswith(("scrapy", "twisted")) and _is_private(word):
                        yield f"{node.lineno}: {module}: {word}"
                continue
            case _:
                continue
        is_inside = touched in INSIDES
        is_private = _is_private(touched) and touched not in ALLOWED
        if (is_inside or is_private) and not is_own:
            yield f"{node.lineno}: {touched}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield names that a file gives to its own classes and their instances."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Attribute(
                value=ast.Name("self" | "cls"), attr=name, ctx=ast.Store()
            ):
                yield name
            case ast.ClassDef(body=body):
                for statement in body:
                    match statement:
                        case ast.AnnAssign(target=ast.Name(name)):
                            yield name
                        case ast.Assign(targets=[ast.Name(name)]):
                            yield name


def test_only_the_probes_touch_scrapy_s_insides() -> None:
    """A file of ``crawl/`` that wants something private asks a probe."""
    files = sorted(set(CRAWL.rglob("*.py")) - PROBES)
    assert len(files) > 50
    found = [
        f"{file.relative_to(ROOT)}:{what}"
        for file in files
        for what in private_touches(file.read_text())
    ]
    assert not found, "\n".join(["", *found])
    # What they are for: they would be found anywhere else.
    for file, count in zip(sorted(PROBES), (20, 5), strict=True):
        assert len(list(private_touches(file.read_text()))) > count


@pytest.mark.parametrize(
    "text",
    [
        "engine._slot.closing",
        "getattr(engine, '_slot', None)",
        "setattr(core, '_start_time_mono', 0)",
        "object.__getattribute__(collector, '_stats')",
        "crawler.engine.scraper",
        "slot.transferring.add(request)",
        "class Own(Base):\n    def _get(self):\n        return super()._get()",
        "class Own:\n    def get(self):\n        return self._theirs",
        "from scrapy.utils.asyncio import _parallel_asyncio",
        "from scrapy.core._http2 import agent",
    ],
)
def test_a_planted_touch_is_found(text: str) -> None:
    """The rule sees what it forbids."""
    assert list(private_touches(text))


@pytest.mark.parametrize(
    "text",
    [
        "class Own:\n    def __init__(self):\n        self._mine = 1\n"
        "    def get(self, other):\n        return other._mine + self._mine",
        "class Own(NamedTuple):\n    _mine: int\n\nx._mine",
        "def f(engine):\n    return engine.spider, engine.needs_backout()",
        "getattr(value, '__qualname__', '')",
        "from scrapy.utils.misc import load_object",
    ],
)
def test_what_is_a_file_s_own_is_no_touch(text: str) -> None:
    """The rule is no stricter than it says."""
    assert not list(private_touches(text))


def test_every_probe_says_what_it_is_for() -> None:
    """What it touches, why, where it was found, and what is done else."""
    functions = [
        function
        for module in (probes, slot_probes)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    ]
    assert len(functions) > 15
    for function in functions:
        said = inspect.getdoc(function) or ""
        labels = re.findall(r"^(\w+): \S", said, re.MULTILINE)
        assert labels == ["Touches", "Why", "Found", "Else"], function.__name__


# ---- what is found -------------------------------------------------------------------

IS_BEFORE_2_18 = scrapy.version_info[:2] < (2, 18)


def test_what_is_found_in_this_scrapy() -> None:
    """As the probes' own words say of each version."""
    assert slot_probes.counts_transfers_late(Downloader)
    assert probes.forgets_robots_waiters()
    assert probes.forgets_items_at_close()
    assert probes.closes_from_start() is not IS_BEFORE_2_18
    assert probes.reads_limits_of_spider() is IS_BEFORE_2_18


class Mended(Downloader):
    """A downloader as Scrapy's could become: its own loop counts the transfer."""

    def _process_queue(self, slot: Any) -> None:
        request, waiting = slot.queue.popleft()
        slot.transferring.add(request)
        _schedule_coro(self._wait_for_download(slot, request, waiting))


def test_a_downloader_that_counts_at_once_is_left_alone() -> None:
    """What Scrapy, or a project, has mended is mended here no longer."""
    assert not slot_probes.counts_transfers_late(Mended)
    assert slot_probes.counts_transfers_late(type("Own", (Downloader,), {}))


@pytest.mark.parametrize("attribute", ["download_delay", "max_concurrent_requests"])
def test_limits_of_a_spider_come_into_the_settings(attribute: str) -> None:
    """By us where Scrapy reads them of the spider, else by Scrapy."""
    crawler = Crawler(type("Own", (Spider,), {"name": "own", attribute: 3}))
    crawler.spider = crawler.spidercls()
    settings = Settings()
    mend_limits(crawler, settings)
    names = {
        "download_delay": "DOWNLOAD_DELAY",
        "max_concurrent_requests": "CONCURRENT_REQUESTS_PER_DOMAIN",
    }
    plain = Settings().getint(names[attribute])
    assert settings.getint(names[attribute]) == (3 if IS_BEFORE_2_18 else plain)


class Scraper:
    """What hangs on an engine, as far as a closing spider is concerned."""

    def __init__(self) -> None:
        self.slot = Slot()
        self.crawler = SimpleNamespace(spider=None)
        self.may_end = asyncio.Event()

    async def start_itemproc_async(self, item: Any, *, response: Any) -> None:
        await self.may_end.wait()


def test_a_closing_spider_waits_for_the_last_item() -> None:
    """It closes when the second of two items is through, and once."""

    async def converse() -> None:
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scraper = Scraper()
        probes.wait_for_items(SimpleNamespace(scraper=scraper))
        other = asyncio.Event()
        first = asyncio.ensure_future(scraper.start_itemproc_async(1, response=None))
        # Counted before its task has begun.
        assert not scraper.slot.is_idle()
        held, scraper.may_end = scraper.may_end, other
        await asyncio.sleep(0)
        second = asyncio.ensure_future(scraper.start_itemproc_async(2, response=None))
        scraper.slot.closing = SimpleNamespace(  # type: ignore[assignment]  # all that is asked of it
            called=False, callback=closed.set_result
        )
        other.set()
        held.set()
        await first
        await second
        assert closed.done()
        assert scraper.slot.is_idle()

    asyncio.run(converse())


def test_batches_that_close_are_waited_for() -> None:
    """Tasks that run already, and coroutines that Scrapy begins at the end only."""

    async def converse() -> None:
        done: list[str] = []

        async def close(name: str) -> None:
            await asyncio.sleep(0)
            done.append(name)

        tasks = [asyncio.ensure_future(close("task"))]
        exporter = SimpleNamespace(_pending_close_tasks=tasks)
        await probes.batches_closed(exporter)
        later = SimpleNamespace(_pending_close_coros=[close("coroutine")])
        await probes.batches_closed(later)
        # Nobody else is to await it.
        assert later._pending_close_coros == []
        assert done == ["task", "coroutine"]

    asyncio.run(converse())


def test_this_scrapy_s_exporter_has_batches() -> None:
    """Of the exporter itself, as a project with feeds has it."""
    settings = Settings({"FEEDS": {"x-%(batch_id)d.jl": {"format": "jsonlines"}}})
    crawler = Crawler(Spider, settings)
    assert probes.has_batches(FeedExporter(crawler))
    assert not probes.has_batches(SimpleNamespace(slots=[]))  # type: ignore[arg-type]  # another exporter


def test_there_is_no_engine_before_the_crawl() -> None:
    """Whether Scrapy raises or has None; and waking it does nothing."""
    crawler = Crawler(Spider)
    assert probes.engine_of(crawler) is None
    probes.wake(crawler)


@pytest.mark.parametrize(("closing", "count"), [(None, 1), (object(), 0)])
def test_an_engine_is_woken_until_it_closes(closing: object, count: int) -> None:
    """Wherever this Scrapy's crawler keeps it."""
    woken: list[bool] = []
    nextcall = SimpleNamespace(schedule=lambda: woken.append(True))
    crawler = Crawler(Spider)
    crawler.engine = SimpleNamespace(  # type: ignore[assignment]  # all that is asked of it
        _slot=SimpleNamespace(closing=closing, nextcall=nextcall)
    )
    probes.wake(crawler)
    assert len(woken) == count


class Declared(Item):
    """An item whose fields are set in another order."""

    a = Field()
    b = Field()


def test_an_item_travels_in_the_order_in_which_it_is_written() -> None:
    """Its tagged form and an exporter's line have one order of fields."""
    item = Declared(b=1, a=2)
    file = BytesIO()
    JsonLinesItemExporter(file).export_item(item)
    tree = tags.tag(item)
    assert list(tree["$i"][2]) == list(json.loads(file.getvalue()))


def test_fields_are_known_where_an_exporter_fails() -> None:
    """Under whichever name this Scrapy has them."""
    exporter = JsonLinesItemExporter(BytesIO(), fields_to_export={"a": "A"})
    assert probes.serialized_fields(exporter, {"a": 1, "b": 2}) == [("A", 1)]


def test_an_encoding_is_known_where_it_was_declared() -> None:
    """Not where it would be guessed."""
    text = scrapy.http.TextResponse
    declared = text("data:,x", encoding="latin-1", request=Request("data:,x"))
    assert probes.declared_encoding(declared) == "latin-1"
    assert probes.declared_encoding(text("data:,x", body=b"x")) is None


# ---- versions ------------------------------------------------------------------------


def test_the_range_is_that_of_the_project() -> None:
    """The words of a refusal and what pip installs are one range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [one for one in project["dependencies"] if one.startswith("scrapy")]
    oldest = ".".join(map(str, versions.OLDEST))
    newest = re.fullmatch(
        rf"Scrapy {re.escape(oldest)} to 2\.(\d+)", versions.SUPPORTED
    )
    assert newest is not None
    assert wanted == f"scrapy>={oldest},<2.{int(newest[1]) + 1}"


@pytest.mark.parametrize("version", ["2.15.2", "1.8.4", "2.9", "2.0.0rc1"])
def test_an_older_scrapy_is_refused_with_what_is_needed(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line: which is there, which are needed, how to get one."""
    install(tmp_path, version)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsupportedError) as refused:
        versions.check_version()
    assert str(refused.value) == (
        f"Scrapy {version} is too old: dscrapy needs Scrapy 2.16 to 2.19 "
        "(pip install 'scrapy>=2.16')"
    )


@pytest.mark.parametrize("version", ["2.16.0", "2.19.3", "2.20.0", "3.0.dev1"])
def test_no_scrapy_is_refused_for_being_newer(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a newer one lacks, the probes find."""
    install(tmp_path, version)
    monkeypatch.syspath_prepend(tmp_path)
    versions.check_version()


def install(folder: Path, version: str) -> None:
    """Let Python find this version of Scrapy installed, where it looks first."""
    known = folder / f"scrapy-{version}.dist-info"
    known.mkdir()
    text = f"Metadata-Version: 2.1\nName: Scrapy\nVersion: {version}\n"
    (known / "METADATA").write_text(text)
