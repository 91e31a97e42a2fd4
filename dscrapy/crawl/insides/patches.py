"""Workarounds for errors of Scrapy that would show in many crawls.

With asyncio the downloader takes all of a slot's queue when one transfer ends, since
a transfer counts only once its task has begun: a host then sees far more connections
than ``CONCURRENT_REQUESTS_PER_DOMAIN``. Of the requests that wait for a host's
robots.txt only the first obeys it; the others are let through. And a spider that closes
while an item that came from no page is in the pipelines closes them under the item, or
never closes. A probe tells whether the installed Scrapy has the error.
"""

import asyncio
from typing import Any

from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.settings import BaseSettings
from scrapy.utils.httpobj import urlparse_cached
from scrapy.utils.misc import load_object

from dscrapy.crawl.insides import probes, slot_probes

# Where Scrapy has its robots.txt middleware; ours stands just before it.
_ROBOTS_ORDER = 100


def mended_downloader(base: type[Any]) -> type[Any]:
    """Return the project's downloader, or a subclass of it whose slots keep within
    shares, and that counts transfers at once."""
    sharing = slot_probes.sharing(base)
    if not slot_probes.counts_transfers_late(base):
        return sharing
    return slot_probes.counting_at_once(sharing)


def mend_close(crawler: Crawler) -> None:
    """Let a closing spider wait for items that came from no page before it closes."""
    if probes.forgets_items_at_close():
        probes.wait_for_items(crawler.engine)


def mend_limits(crawler: Crawler, settings: BaseSettings) -> None:
    """Set the limits that older versions of Scrapy read from the spider."""
    if not probes.reads_limits_of_spider():
        return
    for attribute, name in (
        ("download_delay", "DOWNLOAD_DELAY"),
        ("max_concurrent_requests", "CONCURRENT_REQUESTS_PER_DOMAIN"),
    ):
        limit = getattr(crawler.spider, attribute, None)
        if limit is not None:
            settings.set(name, limit, "cmdline")


def mend_robots(settings: BaseSettings) -> None:
    """Put ``RobotsGate`` before Scrapy's robots.txt middleware, if that is on."""
    if not probes.forgets_robots_waiters() or not settings.getbool("ROBOTSTXT_OBEY"):
        return
    order = _ROBOTS_ORDER
    placed = settings.get_component_priority_dict_with_base("DOWNLOADER_MIDDLEWARES")
    for component, place in placed.items():
        if place is not None and load_object(component) is RobotsTxtMiddleware:
            order = place
    settings.setdefault_in_component_priority_dict(
        "DOWNLOADER_MIDDLEWARES", RobotsGate, order - 1
    )


class RobotsGate:
    """Lets one request for each site fetch robots.txt while the others wait here."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._robots: RobotsTxtMiddleware | None = None
        self._fetching: dict[str, asyncio.Event] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "RobotsGate":
        """Return the middleware."""
        return cls(crawler)

    async def process_request(self, request: Request) -> None:
        """Return when Scrapy's middleware has the site's robots.txt."""
        if request.meta.get("dont_obey_robotstxt") or request.url.startswith(
            ("data:", "file:")
        ):
            return
        if self._robots is None:
            self._robots = self._crawler.get_downloader_middleware(RobotsTxtMiddleware)
        if self._robots is None:
            return
        site = urlparse_cached(request).netloc
        fetched = self._fetching.get(site)
        if fetched is not None:
            await fetched.wait()
            return
        fetched = self._fetching[site] = asyncio.Event()
        try:
            await self._robots.robot_parser(request)
        finally:
            fetched.set()
