"""What waits for room in download slots, and what settings ask of the frontier."""

from types import SimpleNamespace
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.core.downloader import Downloader, Slot
from scrapy.crawler import Crawler
from scrapy.extensions.closespider import CloseSpider as STOCK
from scrapy.settings import Settings
from scrapy.utils.misc import load_object
from twisted.internet.defer import Deferred

from dscrapy.crawl.insides.patches import mended_downloader
from dscrapy.crawl.insides.probes import check_engine
from dscrapy.crawl.scrapy_side.crawl_settings import (
    WINDOW_UNLIMITED,
    CrawlSettings,
    window,
)
from dscrapy.crawl.scrapy_side.download_slots import SlotCapacity, Waiting
from dscrapy.errors import UnsupportedError
from dscrapy.model import CloseLimits

PATH = "scrapy.extensions.closespider.CloseSpider"

FIFO = "scrapy.squeues.FifoMemoryQueue"
LIFO = "scrapy.squeues.LifoMemoryQueue"
DISK_FIFO = "scrapy.squeues.PickleFifoDiskQueue"


class Clock:
    """An instant that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def rooms_of(slots: dict[str, Slot], clock: Clock, **settings: Any) -> SlotCapacity:
    crawler = Crawler(Spider, settings)
    crawler.engine = SimpleNamespace(downloader=SimpleNamespace(slots=slots))  # type: ignore[assignment]  # all that is asked of it
    return SlotCapacity(crawler, clock)


def test_what_waits_is_taken_in_order_where_there_is_room() -> None:
    """Over all hosts the smallest order first; a full host holds nobody else up."""
    waiting: Waiting[str] = Waiting()
    for number, name in enumerate(["a1", "b1", "a2", "c1", "b2"]):
        waiting.add(name[0], (0, number), name)
    waiting.add("c", (-5, 9), "c0")
    assert len(waiting) == 6
    assert waiting.take(lambda host: True) == "c0"
    assert waiting.take(lambda host: host == "b") == "b1"
    assert waiting.take(lambda host: host == "d") is None
    assert [waiting.take(lambda host: True) for _ in range(2)] == ["a1", "a2"]
    assert sorted(waiting.take_all()) == ["b2", "c1"]
    assert not waiting
    assert waiting.take(lambda host: True) is None


def test_room_counts_what_is_under_way_to_the_slot() -> None:
    """Transfers, the slot's own queue, and what middlewares still hold."""
    slot = Slot(concurrency=3, delay=0, jitter=0)
    rooms = rooms_of({"a": slot}, Clock())
    request = Request("http://a")
    slot.transferring.add(request)
    assert rooms.has_room("a")
    rooms.hand("a")
    assert rooms.has_room("a")
    slot.queue.append((request, Deferred()))
    assert not rooms.has_room("a")
    rooms.arrived("a")
    assert rooms.has_room("a")
    # As AutoThrottle and projects do while the crawl runs.
    slot.concurrency = 2
    assert not rooms.has_room("a")


def test_a_host_without_a_slot_has_what_its_settings_say() -> None:
    """Before its first request, and again when Scrapy has forgotten the slot."""
    rooms = rooms_of(
        {},
        Clock(),
        CONCURRENT_REQUESTS_PER_DOMAIN=2,
        DOWNLOAD_SLOTS={"b": {"concurrency": 1}},
    )
    for host, count in (("a", 2), ("b", 1)):
        for _ in range(count):
            assert rooms.has_room(host)
            rooms.hand(host)
        assert not rooms.has_room(host)


def test_a_new_host_waits() -> None:
    """For as long as it was told, and other hosts do not."""
    clock = Clock()
    rooms = rooms_of({}, clock)
    rooms.wait("a", 2.0)
    assert not rooms.has_room("a")
    assert rooms.has_room("b")
    clock.now += 1.9
    assert not rooms.has_room("a")
    clock.now += 0.2
    assert rooms.has_room("a")


@pytest.mark.parametrize(
    ("concurrency", "leases"), [(0, WINDOW_UNLIMITED), (1, 1), (2, 3), (16, 24)]
)
def test_the_window_follows_the_concurrency(concurrency: int, leases: int) -> None:
    """One at a time prefetches nothing; no limit has one all the same."""
    assert window(concurrency) == leases


@pytest.mark.parametrize(
    ("settings", "lifo", "start_is_apart", "start_lifo"),
    [
        ({}, True, True, False),
        (
            {"SCHEDULER_MEMORY_QUEUE": FIFO},
            False,
            True,
            False,
        ),
        (
            {"SCHEDULER_START_MEMORY_QUEUE": LIFO},
            True,
            True,
            True,
        ),
        ({"SCHEDULER_START_MEMORY_QUEUE": None}, True, False, False),
        # Only with a job folder Scrapy uses the others.
        (
            {"SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue"},
            True,
            True,
            False,
        ),
        (
            {
                "SCHEDULER_DISK_QUEUE": "scrapy.squeues.MarshalFifoDiskQueue",
                "SCHEDULER_START_DISK_QUEUE": "scrapy.squeues.PickleLifoDiskQueue",
                "JOBDIR": "x",
            },
            False,
            True,
            True,
        ),
        ({"SCHEDULER_MEMORY_QUEUE": "queue.Queue"}, True, True, False),
    ],
)
def test_the_ends_of_queues(
    settings: dict[str, Any], lifo: bool, start_is_apart: bool, start_lifo: bool
) -> None:
    """Scrapy's queue classes say it; one that is not Scrapy's counts as LIFO."""
    crawl_settings = CrawlSettings(Settings(settings))
    assert crawl_settings.lifo is lifo
    assert crawl_settings.start_is_apart is start_is_apart
    assert crawl_settings.start_lifo is start_lifo


def test_limits_are_read_and_switched_off() -> None:
    """They count for the whole job; no process acts on its own share of it."""
    names = (
        "TIMEOUT",
        "TIMEOUT_NO_ITEM",
        "ITEMCOUNT",
        "PAGECOUNT",
        "PAGECOUNT_NO_ITEM",
        "ERRORCOUNT",
    )
    settings = Settings({f"CLOSESPIDER_{one}": n + 1 for n, one in enumerate(names)})
    crawl_settings = CrawlSettings(settings)
    assert crawl_settings.limits == CloseLimits(
        timeout_s=1.0,
        timeout_no_item_s=2.0,
        items=3,
        pages=4,
        pages_no_item=5,
        errors=6,
    )
    crawl_settings.override(settings)
    enabled = settings.get_component_priority_dict_with_base("EXTENSIONS")
    assert STOCK not in map(load_object, enabled)
    # Other components may read them.
    assert [settings[f"CLOSESPIDER_{name}"] for name in names] == [1, 2, 3, 4, 5, 6]


class OwnCloser(STOCK):
    """An extension of a project's own."""


@pytest.mark.parametrize(
    ("settings", "counts", "own"),
    [
        ({}, True, False),
        ({"EXTENSIONS": {PATH: 7}}, True, False),
        ({"EXTENSIONS": {STOCK: None}}, False, False),
        ({"EXTENSIONS": {PATH: None}}, False, False),
        ({"EXTENSIONS_BASE": {}}, False, False),
        ({"EXTENSIONS_BASE": {PATH: None}}, False, False),
        ({"EXTENSIONS_BASE": {}, "EXTENSIONS": {PATH: 0}}, True, False),
        ({"EXTENSIONS": {PATH: None, OwnCloser: 0}}, False, True),
        ({"EXTENSIONS": {OwnCloser: 0}}, True, True),
    ],
)
def test_limits_count_where_scrapys_extension_is_enabled(
    settings: dict[str, Any], counts: bool, own: bool
) -> None:
    """By any of Scrapy's ways; a project's own extension stays in force beside."""
    made = Settings({**settings, "CLOSESPIDER_ITEMCOUNT": 3})
    crawl_settings = CrawlSettings(made)
    assert crawl_settings.limits == CloseLimits(items=3 if counts else 0)
    crawl_settings.override(made)
    enabled = made.get_component_priority_dict_with_base("EXTENSIONS")
    classes = list(map(load_object, enabled))
    assert (STOCK in classes, OwnCloser in classes) == (False, own)
    assert made.getint("CLOSESPIDER_ITEMCOUNT") == 3


@pytest.mark.parametrize("name", ["SCHEDULER", "DUPEFILTER_CLASS"])
def test_a_scheduler_or_filter_of_the_project_s_own_is_refused(name: str) -> None:
    """Also a subclass of Scrapy's: what it changes would not be done."""

    base: Any = Settings()[name]
    own = type("Own", (load(base),), {})
    with pytest.raises(UnsupportedError, match=f"^{name} is .*Own: .*only Scrapy's"):
        CrawlSettings(Settings({name: own}))


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def test_an_engine_without_our_places_is_named() -> None:
    """One line with what is missing and the version of Scrapy."""
    with pytest.raises(UnsupportedError, match=r"Scrapy 2\.\d+.* no _slot\.remove_r"):
        check_engine(SimpleNamespace(_slot=None, scraper=None))


def test_a_downloader_of_another_kind_is_left_alone() -> None:
    """Only one with the method that begins a transfer can be mended."""

    class Other:
        """No downloader of Scrapy's."""

    assert mended_downloader(Other) is Other
    assert issubclass(mended_downloader(Downloader), Downloader)
    assert mended_downloader(Downloader) is not Downloader
