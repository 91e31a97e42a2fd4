"""What components keep is found in their source, and nothing that only looks so."""

import sys
from collections import OrderedDict
from collections.abc import Iterator
from importlib import import_module

import pytest
from scrapy.downloadermiddlewares.cookies import CookiesMiddleware
from scrapy.extensions.feedexport import FeedExporter

from dscrapy.crawl.project_checks.class_sources import Sources
from dscrapy.crawl.project_checks.stateful import Kept, scan
from tests.unit.stateful_source import SOURCE

MODULE = "stateful_classes"


@pytest.fixture(scope="module", autouse=True)
def classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The source as a module of a project."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        import_module(MODULE)
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)


def kept(name: str) -> Kept:
    """Return what is found in a class of the module."""
    return scan(getattr(sys.modules[MODULE], name), Sources())


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("DuplicatesPipeline", {"ids_seen"}),
        ("SpiderOpenCloseLogging", {"items_scraped"}),
        ("Inherits", {"by_key", "total"}),
        ("OfTheClass", {"seen", "hosts", "others"}),
        ("OfTheModule", {"count", "SEEN"}),
        ("Dataclass", {"seen", "table"}),
        ("Batches", {"batch"}),
        ("LastPrice", {"last"}),
        ("FirstPage", {"first"}),
        ("Filter", {"seen"}),
        ("TellsLater", {"token"}),
        ("Made", {"urls"}),
        ("WritesAtTheEnd", {"rows"}),
    ],
)
def test_attributes_that_pages_fill(name: str, names: set[str]) -> None:
    """By name, whatever holds them and wherever they are filled from."""
    found = kept(name)
    assert set(found.attributes) == names
    assert found.cls == f"{MODULE}.{name}"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("JsonWriterPipeline", {"file"}),
        ("PerYearXmlExportPipeline", {"year_to_exporter"}),
        ("Opens", {"zipped", "by_path", "shelf", "exporter", "base", "db"}),
        ("WritesAtTheEnd", {"close_spider()"}),
        ("AppendsEachTime", {"process_item()"}),
    ],
)
def test_files_that_are_written(name: str, names: set[str]) -> None:
    """By the attribute that holds them, or the method that writes them."""
    found = kept(name)
    assert set(found.files) == names
    assert not set(found.attributes) & set(found.files)


@pytest.mark.parametrize(
    "name",
    [
        *("MongoPipeline", "ScreenshotPipeline", "Lazy", "Scratch", "Scrapys"),
        *("Named", "WritesStats"),
    ],
)
def test_what_keeps_nothing_is_not_named(name: str) -> None:
    """Clients made at first use, a session's add, values that pass between methods,
    files that are read or named by the page."""
    assert kept(name)[1:] == ((), (), False)


@pytest.mark.parametrize("cls", [CookiesMiddleware, FeedExporter, OrderedDict])
def test_scrapys_own_are_known(cls: type) -> None:
    """What they keep stands in the table of what differs."""
    assert scan(cls, Sources())[1:] == ((), (), False)


def test_readers_of_stats_at_the_end() -> None:
    """Receivers of spider_closed, also by what they call; no other reader."""
    assert kept("Mails").reads_stats
    assert kept("Whole").reads_stats
    assert not kept("WritesStats").reads_stats


def test_a_class_without_source_keeps_nothing_that_one_can_see() -> None:
    """Made at run time, or defined where no file is."""
    for module in (__name__, "nowhere", "builtins"):
        made = type("Made", (), {"__module__": module, "process_item": print})
        assert scan(made, Sources())[1:] == ((), (), False)


def test_a_class_inside_of_a_function_is_read() -> None:
    """Its own source, not that of another class of its name."""

    class DuplicatesPipeline:
        def __init__(self) -> None:
            self.urls: list[str] = []

        def process_item(self, item: dict[str, str]) -> None:
            self.urls.append(item["url"])

    assert scan(DuplicatesPipeline, Sources()).attributes == ("urls",)
