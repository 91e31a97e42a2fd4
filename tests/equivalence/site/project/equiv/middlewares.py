"""What the site needs to know, and a spider middleware of a project's own."""

import os
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import scrapy
from scrapy.crawler import Crawler
from scrapy.http import Response


class Marks:
    """Tells the site which try this is, how slow to be, and who asks."""

    def __init__(self, crawler: Crawler) -> None:
        self._ms = str(getattr(crawler.spider, "ms", "0"))
        self._pid = str(os.getpid())

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Make it."""
        return cls(crawler)

    def process_request(self, request: scrapy.Request) -> None:
        """Set headers that only this site understands."""
        request.headers["X-Retry"] = str(request.meta.get("retry_times", 0))
        request.headers["X-Ms"] = self._ms
        request.headers["X-Together"] = str(request.meta.get("together", 0))
        request.headers["X-Pid"] = self._pid


class Editor:
    """Adds, drops and rescues."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Make it."""
        return cls(crawler)

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Add a request of its own after those of the spider."""
        async for one in start:
            yield one
        spider: Any = self._crawler.spider
        yield scrapy.Request(spider.at("leaf/added"), callback=spider.parse_leaf)

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Drop requests for what is to be dropped; add an item a response."""
        async for one in result:
            if not (isinstance(one, scrapy.Request) and one.meta.get("drop")):
                yield one
        yield {"via": response.url}

    def process_spider_exception(
        self, response: Response, exception: Exception
    ) -> Iterable[Any]:
        """Make an item of an error."""
        return [{"rescued": response.url, "error": str(exception)}]


class Forgetful:
    """A fingerprinter of four bytes that does not look at the query."""

    def fingerprint(self, request: scrapy.Request) -> bytes:
        """Return the checksum of the address without its query."""
        # A project's own idea of sameness, of a length of its own.
        return zlib.crc32(request.url.partition("?")[0].encode()).to_bytes(4, "big")
