"""Lays our components over the project's settings, as a Scrapy add-on.

An add-on runs after the spider's ``custom_settings``, and ours is the last add-on, so
the project's settings are complete before any of them is replaced.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

from scrapy.crawler import Crawler
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from dscrapy.crawl.insides.patches import (
    mend_limits,
    mend_robots,
    mended_downloader,
)
from dscrapy.crawl.project_loader import check_reactor
from dscrapy.crawl.scrapy_side.crawl_settings import CrawlSettings
from dscrapy.crawl.scrapy_side.scheduler import JobScheduler
from dscrapy.crawl.scrapy_side.start import StartMiddleware
from dscrapy.crawl.scrapy_side.stats_collector import Delta, recording

_logger = logging.getLogger(__name__)

# Outermost of all spider middlewares, so that nobody's start() runs but the leader's.
_START_ORDER = -10_000


class Overlay(Protocol):
    """Changes a crawler's settings, to use the crawler for a job."""

    @property
    def is_finished(self) -> bool:
        """Whether the last commit has been answered."""

    def configure(self, settings: BaseSettings) -> None:
        """Change the settings and connect signals; the spider exists already."""


def install_addon(crawler: Crawler, overlay: Overlay) -> None:
    """Have ``overlay.configure`` called once the crawler's settings are known.

    Raises ``Failed``, then or now, where the settings ask for another reactor.
    """
    check_reactor(crawler.settings)

    class CrawlProcessAddon:
        def update_settings(self, settings: BaseSettings) -> None:
            check_reactor(settings)
            mend_limits(crawler, settings)
            overlay.configure(settings)

    addons = dict(crawler.settings.getdict("ADDONS"))
    orders = [order for order in addons.values() if order is not None]
    addons[CrawlProcessAddon] = max(orders, default=0) + 1
    crawler.settings.set("ADDONS", addons, priority="cmdline")


def lay_over_each(
    crawler: Crawler,
    settings: BaseSettings,
    urls: tuple[str, ...],
    delta_now: Callable[[], Delta],
) -> None:
    """Change what crawl and export processes have in common: offer the job's URLs,
    record stats in the delta that ``delta_now`` returns, open no ports."""
    force = "cmdline"
    spider: Any = crawler.spider
    if urls and not getattr(spider, "start_urls", None):
        spider.start_urls = list(urls)
    stats_class = load_object(settings["STATS_CLASS"])
    settings.set("STATS_CLASS", recording(stats_class, delta_now), force)
    # Both open ports into the process; RemoteControl runs code that it receives.
    settings.set("TELNETCONSOLE_ENABLED", False, force)
    settings.set("REMOTE_CONTROL_ENABLED", False, force)


def lay_over(settings: BaseSettings) -> CrawlSettings:
    """Put our components in, and switch off what cannot work in a crawl process.

    Return what the project's settings asked for. Raises ``UnsupportedError``.
    """
    force = "cmdline"
    crawl_settings = CrawlSettings(settings)
    crawl_settings.override(settings)
    settings.set("SCHEDULER", JobScheduler, force)
    downloader = load_object(settings["DOWNLOADER"])
    settings.set("DOWNLOADER", mended_downloader(downloader), force)
    settings.setdefault_in_component_priority_dict(
        "SPIDER_MIDDLEWARES", StartMiddleware, _START_ORDER
    )
    mend_robots(settings)
    # An export process writes feeds from committed items; the last process of the job
    # prints the job's stats.
    settings.set("FEEDS", {}, force)
    settings.set("FEED_URI", None, force)
    settings.set("STATS_DUMP", False, force)
    if settings.get_component_priority_dict_with_base("ITEM_PIPELINES"):
        _logger.info(
            "Item pipelines open once in each process; what they write elsewhere is "
            "written at least once: a page whose process dies is done again"
        )
    if settings["JOBDIR"]:
        _logger.info("JOBDIR is not used: the master keeps the state of a job")
        settings.set("JOBDIR", None, force)
    return crawl_settings
