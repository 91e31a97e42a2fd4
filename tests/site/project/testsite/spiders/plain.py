"""Spiders with the same items in every run, in whatever order."""

import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import scrapy
from scrapy.http import Response, TextResponse


def number_of(url: str) -> int:
    """Return N of ``/page/N``."""
    found = re.search(r"/page/(\d+)", url)
    assert found is not None
    return int(found[1])


class SiteSpider(scrapy.Spider):
    """Follows the site's links up to page ``count``.

    ``ms`` slows each page down; all but the first ``free`` wait for the file ``gate``.
    """

    def __init__(
        self,
        site: str,
        count: str = "50",
        ms: str = "0",
        gate: str = "",
        free: str = "0",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.count = int(count)
        query = {"ms": ms} if int(ms) else {}
        if gate:
            query |= {"gate": gate, "free": free}
        self.start_urls = [f"{site}/page/0{'?' if query else ''}{urlencode(query)}"]

    def follow(self, response: TextResponse) -> Iterator[scrapy.Request]:
        """Yield requests for the page's links."""
        for link in response.css("a::attr(href)").getall():
            if number_of(link) < self.count:
                yield response.follow(link)


class PagesSpider(SiteSpider):
    """One dict a page."""

    name = "pages"

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the page's item and its links."""
        assert isinstance(response, TextResponse)
        yield {
            "number": number_of(response.url),
            "title": response.css("title::text").get(),
            "price": response.css(".price::text").get(),
        }
        yield from self.follow(response)


class ItemsSpider(SiteSpider):
    """An item for each link of a page."""

    name = "items"

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the links as items and as requests."""
        assert isinstance(response, TextResponse)
        for place, link in enumerate(response.css("a")):
            yield {
                "page": number_of(response.url),
                "place": place,
                "text": link.css("::text").get(),
            }
        yield from self.follow(response)


class OneSpider(scrapy.Spider):
    """An item for each of ``urls``, which may also be given as ``start_urls``."""

    name = "one"

    def __init__(self, urls: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.urls = urls

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield one item."""
        assert isinstance(response, TextResponse)
        yield {"url": response.url, "title": response.css("title::text").get()}


class HangSpider(scrapy.Spider):
    """Blocks the event loop for ever in its first callback."""

    name = "hang"

    def __init__(self, site: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [f"{site}/page/0"]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Say so in the log, then never return."""
        self.logger.warning("hanging now")
        yield {"url": response.url}
        while True:
            time.sleep(3600)


class LazySpider(scrapy.Spider):
    """Asks for pages one by one from start()."""

    name = "lazy"

    def __init__(self, site: str, count: str = "50", **kwargs: Any):
        super().__init__(**kwargs)
        self.site = site
        self.count = int(count)

    async def start(self) -> AsyncIterator[Any]:
        """Yield a request for each page."""
        for number in range(self.count):
            self.logger.info("pulled %d", number)
            yield scrapy.Request(f"{self.site}/page/{number}")

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield one item."""
        yield {"number": number_of(response.url)}
