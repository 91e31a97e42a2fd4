"""Three errors of Scrapy 2.19 that would show in many crawls, mended from outside.

With asyncio the downloader takes all of a slot's queue when one transfer ends, since
a transfer counts only once its task has begun: a host then sees far more connections
than ``CONCURRENT_REQUESTS_PER_DOMAIN``. And of the requests that wait for a host's
robots.txt only the first is told what it says; the others are let through. A spider
that closes while an item that came from no page is in the pipelines never closes.
"""

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

import scrapy
from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.settings import BaseSettings
from scrapy.utils.httpobj import urlparse_cached
from scrapy.utils.misc import load_object

# The versions with these errors.
_MENDED_VERSION = (2, 19)
# Where Scrapy has its robots.txt middleware; ours stands just before it.
_ROBOTS_ORDER = 100


def needs_mending() -> bool:
    """Whether this Scrapy has the errors."""
    return scrapy.version_info[:2] == _MENDED_VERSION


def mended_downloader(base: type[Any]) -> type[Any]:
    """Return a subclass of the project's downloader that counts transfers at once."""
    transfer = getattr(base, "_wait_for_download", None)
    if not needs_mending() or not inspect.iscoroutinefunction(transfer):
        return base

    class MendedDownloader(base):  # type: ignore[misc]  # a base of run time
        # No coroutine function: its first line runs when the downloader calls it,
        # before it looks for the next free place.
        def _wait_for_download(
            self, slot: Any, request: Request, *args: Any
        ) -> Coroutine[Any, Any, None]:
            slot.transferring.add(request)
            waiting: Coroutine[Any, Any, None] = super()._wait_for_download(
                slot, request, *args
            )
            return waiting

    return MendedDownloader


def mend_close(crawler: Crawler) -> None:
    """Let the scraper close when the last item that came from no page is through."""
    scraper: Any = crawler.engine.scraper
    process_item = scraper.start_itemproc_async
    if not needs_mending():
        return

    async def start_itemproc_async(item: Any, *, response: Any) -> None:
        try:
            await process_item(item, response=response)
        finally:
            slot = scraper.slot
            closing = getattr(slot, "closing", None)
            if closing is not None and not closing.called and slot.is_idle():
                closing.callback(crawler.spider)

    scraper.start_itemproc_async = start_itemproc_async


def mend_robots(settings: BaseSettings) -> None:
    """Put ``RobotsGate`` before Scrapy's robots.txt middleware, if that is on."""
    if not needs_mending() or not settings.getbool("ROBOTSTXT_OBEY"):
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
        """Return when Scrapy's middleware knows what robots.txt says."""
        if request.meta.get("dont_obey_robotstxt") or request.url.startswith(
            ("data:", "file:")
        ):
            return
        if self._robots is None:
            self._robots = self._crawler.get_downloader_middleware(RobotsTxtMiddleware)
        if self._robots is None:
            return
        site = urlparse_cached(request).netloc
        known = self._fetching.get(site)
        if known is not None:
            await known.wait()
            return
        known = self._fetching[site] = asyncio.Event()
        try:
            await self._robots.robot_parser(request)
        finally:
            known.set()
