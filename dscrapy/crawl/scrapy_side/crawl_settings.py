"""What a project's settings ask of the frontier; settings that are not supported."""

import logging
from typing import Any

from scrapy import squeues
from scrapy.core.scheduler import Scheduler
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.extensions.closespider import CloseSpider
from scrapy.pqueues import DownloaderAwarePriorityQueue, ScrapyPriorityQueue
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from dscrapy.crawl.codec.items import is_lines, item_bytes_max
from dscrapy.crawl.project_checks.once_per_job import listed
from dscrapy.errors import UnsupportedError
from dscrapy.lines import LINES_FORMATS
from dscrapy.messages import Opened, Run
from dscrapy.model import CloseLimits, HostLimits

_logger = logging.getLogger(__name__)

# Leases where CONCURRENT_REQUESTS is 0, no limit: as many as keep a fast line busy.
WINDOW_UNLIMITED = 100


class CrawlSettings:
    """Read from a project's settings before ours are laid over them.

    ``is_once`` says which classes are called once in a job. Raises ``Failed`` or
    ``UnsupportedError`` for settings that are not supported, a scheduler for instance.
    """

    def __init__(self, settings: BaseSettings) -> None:
        self.is_once = listed(settings)
        try:
            item_bytes_max(settings)
        except ValueError as error:
            raise UnsupportedError(str(error)) from None
        # A limit that is no number raises now, not in a half-made engine.
        host_limits(settings)
        _check_class(settings, "SCHEDULER", (Scheduler,))
        _check_class(settings, "DUPEFILTER_CLASS", (RFPDupeFilter, BaseDupeFilter))
        _warn_if_replaced(
            settings,
            "SCHEDULER_PRIORITY_QUEUE",
            (DownloaderAwarePriorityQueue, ScrapyPriorityQueue),
        )
        self.filters = load_object(settings["DUPEFILTER_CLASS"]) is not BaseDupeFilter
        self.limits = _close_limits(settings)
        self.has_feeds = bool(settings.getdict("FEEDS") or settings["FEED_URI"])
        self.pickles = settings.getbool("DSCRAPY_PICKLE", True)
        self.batch_items = _batch_items(settings)
        # Without FEED_STORE_EMPTY a job without items has no file.
        self.own_lines = not (
            settings.getbool("FEED_STORE_EMPTY")
            and all(is_lines(settings, name) for name in LINES_FORMATS)
        )
        self.dumps_stats = settings.getbool("STATS_DUMP")
        # With a job folder Scrapy keeps requests in its other queues.
        place = "DISK" if settings["JOBDIR"] else "MEMORY"
        self.lifo = _takes_last(settings, f"SCHEDULER_{place}_QUEUE")
        start = f"SCHEDULER_START_{place}_QUEUE"
        self.start_is_apart = bool(settings[start])
        self.start_lifo = self.start_is_apart and _takes_last(settings, start)

    @staticmethod
    def override(settings: BaseSettings) -> None:
        """Switch off Scrapy's CloseSpider: its limits are for the whole job.

        The settings stay: an extension of the project's own may read them.
        """
        settings.set_in_component_priority_dict("EXTENSIONS", CloseSpider, None)

    def opened(self, run: Run, settings: BaseSettings, *, has_once: bool) -> Opened:
        """Return the message that opens the process; ``settings`` are complete."""
        default, hosts = host_limits(settings)
        return Opened(
            job=run.job,
            process=run.process,
            window=window(settings.getint("CONCURRENT_REQUESTS")),
            lifo=self.lifo,
            start_lifo=self.start_lifo,
            default_host=default,
            hosts=hosts,
            limits=self.limits,
            has_feeds=self.has_feeds,
            batch_items=self.batch_items,
            has_once=has_once,
            own_lines=self.own_lines,
        )


def _batch_items(settings: BaseSettings) -> int:
    """Return the items of the smallest batch of any feed, 0 if none has batches."""
    default = settings.getint("FEED_EXPORT_BATCH_ITEM_COUNT")
    counts = [
        # Anything that is no dict is for Scrapy to refuse.
        options.get("batch_item_count", default) if isinstance(options, dict) else 0
        for options in settings.getdict("FEEDS").values()
    ]
    if settings["FEED_URI"]:
        counts.append(default)
    return min(
        (count for count in counts if isinstance(count, int) and count), default=0
    )


def window(concurrency: int) -> int:
    """Return how many leases keep ``concurrency`` requests under way, a few ready."""
    if concurrency <= 0:
        return WINDOW_UNLIMITED
    # A concurrency of 1 asks for the exact order and gets one lease: which request is
    # next depends on what the last one gave.
    return concurrency + concurrency // 2


def host_limits(settings: BaseSettings) -> tuple[HostLimits, dict[str, HostLimits]]:
    """Return the limits of any host, and those of hosts in ``DOWNLOAD_SLOTS``."""
    default = HostLimits(
        concurrency=settings.getint("CONCURRENT_REQUESTS_PER_IP")
        or settings.getint("CONCURRENT_REQUESTS_PER_DOMAIN"),
        delay_s=settings.getfloat("DOWNLOAD_DELAY"),
    )
    hosts = {
        host: HostLimits(
            concurrency=int(slot.get("concurrency", default.concurrency)),
            delay_s=float(slot.get("delay", default.delay_s)),
        )
        for host, slot in settings.getdict("DOWNLOAD_SLOTS").items()
    }
    return default, hosts


def _close_limits(settings: BaseSettings) -> CloseLimits:
    """Return the limits of Scrapy's extension CloseSpider, where it is enabled.

    A subclass of CloseSpider is the project's own extension, which counts by itself.
    """
    enabled = settings.get_component_priority_dict_with_base("EXTENSIONS")
    if not any(load_object(extension) is CloseSpider for extension in enabled):
        return CloseLimits()
    return CloseLimits(
        timeout_s=settings.getfloat("CLOSESPIDER_TIMEOUT"),
        timeout_no_item_s=settings.getfloat("CLOSESPIDER_TIMEOUT_NO_ITEM"),
        items=settings.getint("CLOSESPIDER_ITEMCOUNT"),
        pages=settings.getint("CLOSESPIDER_PAGECOUNT"),
        pages_no_item=settings.getint("CLOSESPIDER_PAGECOUNT_NO_ITEM"),
        errors=settings.getint("CLOSESPIDER_ERRORCOUNT"),
    )


def _check_class(
    settings: BaseSettings, name: str, supported: tuple[type, ...]
) -> None:
    cls: Any = load_object(settings[name])
    if cls not in supported:
        raise UnsupportedError(
            f"{name} is {cls.__module__}.{cls.__qualname__}: the master schedules and "
            f"filters the requests of a job; only Scrapy's own is supported (remove "
            f"{name} from the settings)"
        )


def _warn_if_replaced(
    settings: BaseSettings, name: str, scrapys: tuple[type, ...]
) -> None:
    if load_object(settings[name]) not in scrapys:
        _logger.warning("%s is not used: the master orders by priority", name)


def _takes_last(settings: BaseSettings, name: str) -> bool:
    queue: Any = load_object(settings[name])
    class_name = next(
        (key for key, value in vars(squeues).items() if value is queue), ""
    )
    if not class_name:
        _logger.warning("%s is no queue of Scrapy's: requests are taken LIFO", name)
    return "Fifo" not in class_name
