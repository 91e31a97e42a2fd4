"""What waits for room in download slots, and what settings ask of the frontier."""

from types import SimpleNamespace
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.core.downloader import Downloader, Slot
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.cookies import CookiesMiddleware
from scrapy.extensions.closespider import CloseSpider as STOCK
from scrapy.http import Response
from scrapy.settings import Settings
from scrapy.utils.misc import load_object
from twisted.internet.defer import Deferred

from dscrapy.crawl.insides.patches import mended_downloader
from dscrapy.crawl.insides.probes import check_engine
from dscrapy.crawl.insides.slot_probes import sharing
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


def sharing_rooms(**settings: Any) -> tuple[SlotCapacity, dict[str, Any], Any]:
    """Return rooms with a downloader whose slots can be shared, its slots, and the
    middleware that has the cookies."""
    crawler = Crawler(Spider, settings)
    cookies = CookiesMiddleware()
    slots: dict[str, Any] = {}
    crawler.engine = SimpleNamespace(  # type: ignore[assignment]  # all that is asked of it
        downloader=SimpleNamespace(
            slots=slots,
            share_of=None,
            middleware=SimpleNamespace(middlewares=[cookies]),
        )
    )
    return SlotCapacity(crawler, Clock()), slots, cookies


def shared_slot(**fields: Any) -> Any:
    """Return a slot of Scrapy's downloader that can be shared."""
    values = {"concurrency": 8, "delay": 0.0, "jitter": 0.0, **fields}
    downloader_class: Any = sharing(Downloader)
    downloader = downloader_class.__new__(downloader_class)
    downloader.slots = {"a": Slot(**values)}
    downloader.get_slot_key = lambda request: "a"
    return downloader._get_slot(Request("http://a"))[1]


@pytest.mark.parametrize(
    ("fields", "can"),
    [({}, True), ({"delay": 0.1}, False), ({"concurrency": 9}, False)],
)
def test_a_host_is_shared_as_its_settings_say(
    fields: dict[str, Any], can: bool
) -> None:
    """Not one with a delay, or with numbers that somebody has set meanwhile."""
    rooms, slots, _ = sharing_rooms()
    assert rooms.can_share("a")
    slots["a"] = shared_slot(**fields)
    assert rooms.can_share("a") == can


def test_a_host_is_not_shared_whose_pace_or_slots_are_not_scrapys() -> None:
    """AutoThrottle sets delays as it goes; other slots do not keep to a share."""
    rooms, slots, _ = sharing_rooms(AUTOTHROTTLE_ENABLED=True)
    assert not rooms.can_share("a")
    rooms, slots, _ = sharing_rooms()
    slots["a"] = Slot(concurrency=8, delay=0, jitter=0)
    assert not rooms.can_share("a")
    assert not rooms_of({}, Clock()).can_share("a")


def test_a_host_that_has_set_a_cookie_is_not_shared() -> None:
    """Other processes would not have it; cookies of other hosts do not matter."""
    rooms, _, cookies = sharing_rooms()
    for host, domain in (("a.test", ".a.test"), ("b.test", "")):
        header = f"n=1; Domain={domain}" if domain else "n=1"
        request = Request(f"http://{host}/")
        response = Response(request.url, headers={"Set-Cookie": header})
        cookies.jars["x"].extract_cookies(response, request)
    hosts = ("a.test", "www.a.test", "b.test", "aa.test", "c.test")
    assert [rooms.can_share(host) for host in hosts] == [False] * 3 + [True] * 2


def test_a_share_bounds_a_slot_and_what_is_given_out() -> None:
    """Also before there is a slot; 0 is all that the project allows."""
    rooms, slots, _ = sharing_rooms(CONCURRENT_REQUESTS_PER_DOMAIN=3)
    rooms.set_share("a", 1)
    rooms.hand("a")
    assert not rooms.has_room("a")
    rooms.set_share("a", 0)
    assert rooms.has_room("a")
    rooms.arrived("a")
    slot = slots["a"] = shared_slot(concurrency=3)
    slot.share = lambda: 2
    slot.transferring.update({Request("http://a/1"), Request("http://a/2")})
    assert (slot.free_transfer_slots(), rooms.has_room("a")) == (0, False)
    slot.share = lambda: None
    assert (slot.free_transfer_slots(), rooms.has_room("a")) == (1, True)
    assert rooms.keeps_share("a")
    rooms.set_share("a", 1)
    assert not rooms.keeps_share("a")
    slot.transferring.pop()
    assert rooms.keeps_share("a")
    assert rooms.keeps_share("b")


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
