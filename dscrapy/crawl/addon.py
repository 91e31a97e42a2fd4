"""What is laid over the project's settings, as a Scrapy add-on.

An add-on runs after the spider's ``custom_settings``, so nothing of the project is
replaced before it has been read; ours is the last of them.
"""

import logging
from typing import Any, Protocol

from scrapy.crawler import Crawler
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from dscrapy.crawl.gate import Gate, gated_scheduler, gated_start
from dscrapy.crawl.stats import recording

_logger = logging.getLogger(__name__)

# Outermost of all spider middlewares, so that nobody's start() runs while closed.
_START_ORDER = -10_000


class Overlay(Protocol):
    """Who is asked to lay something over a crawler's settings."""

    def configure(self, crawler: Crawler, settings: BaseSettings) -> None:
        """Change the settings and connect signals; the spider exists already."""


def install_addon(crawler: Crawler, overlay: Overlay) -> None:
    """Have ``overlay.configure`` called once the crawler's settings are known."""

    class CrawlProcessAddon:
        def update_settings(self, settings: BaseSettings) -> None:
            overlay.configure(crawler, settings)

    addons = dict(crawler.settings.getdict("ADDONS"))
    orders = [order for order in addons.values() if order is not None]
    addons[CrawlProcessAddon] = max(orders, default=0) + 1
    crawler.settings.set("ADDONS", addons, priority="cmdline")


def lay_over(crawler: Crawler, settings: BaseSettings, gate: Gate, job: str) -> None:
    """Put our components in, and switch off what cannot work in a crawl process."""
    force = "cmdline"
    scheduler = load_object(settings["SCHEDULER"])
    settings.set("SCHEDULER", gated_scheduler(scheduler, gate, crawler), force)
    stats_class = load_object(settings["STATS_CLASS"])
    settings.set("STATS_CLASS", recording(stats_class), force)
    settings.setdefault_in_component_priority_dict(
        "SPIDER_MIDDLEWARES", gated_start(gate), _START_ORDER
    )
    # Both open ports into the process; RemoteControl runs code that comes in.
    settings.set("TELNETCONSOLE_ENABLED", False, force)
    settings.set("REMOTE_CONTROL_ENABLED", False, force)
    _switch_off_feeds(settings, job)
    if settings["JOBDIR"]:
        _logger.info("JOBDIR is not used: the master keeps the state of a job")
        settings.set("JOBDIR", None, force)


def _switch_off_feeds(settings: BaseSettings, job: str) -> None:
    feeds: list[Any] = list(settings.getdict("FEEDS"))
    if settings["FEED_URI"]:
        feeds.append(settings["FEED_URI"])
    if feeds:
        _logger.info(
            "Feeds are not written here: %s; 'dscrapy items %s -o FILE' writes the "
            "job's items",
            ", ".join(map(str, feeds)),
            job,
        )
    settings.set("FEEDS", {}, "cmdline")
    settings.set("FEED_URI", None, "cmdline")
