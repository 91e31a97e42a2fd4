"""Callbacks of every kind."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.http import Response
from twisted.python.failure import Failure

from .base import DEAD_PORT, SiteSpider, links, number_of


class SyncGenSpider(SiteSpider):
    """A generator; 13 pages of a tree."""

    name = "sync_gen"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("tree/2/3/")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page and follow."""
        yield self.leaf(response)
        for link in links(response):
            yield response.follow(link)


class AsyncGenSpider(SiteSpider):
    """An asynchronous generator; 13 pages."""

    name = "async_gen"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("tree/2/3/")]

    async def parse(self, response: Response, **kwargs: Any) -> AsyncIterator[Any]:
        """Give the page and follow, with waits between."""
        for link in links(response):
            await asyncio.sleep(0.001)
            yield response.follow(link)
        await asyncio.sleep(0)
        yield self.leaf(response)


class CoroutineSpider(SiteSpider):
    """A coroutine that returns a list; 13 pages."""

    name = "coroutine"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("tree/2/3/")]

    async def parse(self, response: Response, **kwargs: Any) -> list[Any]:
        """Return the page and what to follow."""
        await asyncio.sleep(0.001)
        found = [response.follow(link) for link in links(response)]
        return [self.leaf(response), *found]


class PlainListSpider(SiteSpider):
    """A list, one item, and nothing at all."""

    name = "plain_list"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/10")]

    def parse(self, response: Response, **kwargs: Any) -> list[Any]:
        """Return a list."""
        kinds = (self.parse_list, self.parse_none)
        found = [
            response.follow(link, kinds[place % 2])
            for place, link in enumerate(links(response))
        ]
        return [self.leaf(response), *found]

    def parse_list(self, response: Response) -> list[Any]:
        """Return a list of one."""
        return [self.leaf(response)]

    def parse_none(self, response: Response) -> None:
        """Give nothing."""
        self.logger.debug("nothing of %s", response.url)


class ErrbacksSpider(SiteSpider):
    """Errbacks of every kind; one is never called, one raises."""

    name = "errbacks"
    custom_settings = {"RETRY_ENABLED": False}  # noqa: RUF012 - Scrapy's own form

    async def start(self) -> AsyncIterator[Any]:
        """Ask for what fails."""
        at = self.at
        yield scrapy.Request(at("status/404/a"), errback=self.failed_gen)
        yield scrapy.Request(at("status/410/b"), errback=self.failed_coroutine)
        yield scrapy.Request(
            f"http://127.0.0.2:{DEAD_PORT}/", errback=self.failed_async_gen
        )
        yield scrapy.Request(at("leaf/good"), errback=self.failed_gen)
        yield scrapy.Request(at("status/404/c"), errback=self.failed_raising)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page."""
        yield self.leaf(response)

    def failed_gen(self, failure: Failure) -> Iterator[Any]:
        """Give an item and a request."""
        yield self._item(failure, "gen")
        yield scrapy.Request(self.at("leaf/after"))

    async def failed_coroutine(self, failure: Failure) -> list[Any]:
        """Return an item."""
        await asyncio.sleep(0.001)
        return [self._item(failure, "coroutine")]

    async def failed_async_gen(self, failure: Failure) -> AsyncIterator[Any]:
        """Give an item after a wait."""
        await asyncio.sleep(0.001)
        yield self._item(failure, "async_gen")

    def failed_raising(self, failure: Failure) -> None:
        """Fail in its turn."""
        raise LookupError("an errback may fail")

    def _item(self, failure: Any, how: str) -> dict[str, Any]:
        request = failure.request
        return {"failed": request.url, "type": failure.type.__name__, "how": how}


class RaisingSpider(SiteSpider):
    """Callbacks that raise: at once, midway, and after a wait."""

    name = "raising"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/9")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow, each link with another callback."""
        kinds = (self.parse_midway, self.parse_at_once, self.parse_async)
        for place, link in enumerate(links(response)):
            yield response.follow(link, kinds[place % 3])

    def parse_midway(self, response: Response) -> Iterator[Any]:
        """Give an item and fail."""
        yield self.leaf(response)
        raise ValueError("midway")

    def parse_at_once(self, response: Response) -> None:
        """Fail."""
        raise ValueError("at once")

    async def parse_async(self, response: Response) -> AsyncIterator[Any]:
        """Give two items and fail."""
        yield self.leaf(response, place=1)
        await asyncio.sleep(0.001)
        yield self.leaf(response, place=2)
        raise ValueError("after a wait")


class ManySpider(SiteSpider):
    """Twenty thousand items from one callback, and six more pages."""

    name = "many"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/6")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give them all, and the links between them."""
        for place in range(10_000):
            yield {"place": place, "text": "näme " * 5}
        for link in links(response):
            yield response.follow(link, self.parse_leaf)
        for place in range(10_000):
            yield {"place": place, "url": response.url}

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give the page."""
        yield self.leaf(response)


class InlineSpider(SiteSpider):
    """Downloads within the callback, beside the scheduler."""

    name = "inline"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/8")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    async def parse_leaf(self, response: Response) -> AsyncIterator[Any]:
        """Give the page with what three other downloads gave."""
        number = number_of(response.url)
        paths = ("redirect/2/inline", "leaf/inline", "status/404/inline")
        requests = [scrapy.Request(self.at(f"{path}-{number}")) for path in paths]
        engine = self.crawler.engine
        assert engine is not None
        answers = await asyncio.gather(*map(engine.download_async, requests))
        codes = [answer.status for answer in answers]
        yield self.leaf(response, codes=codes, first=answers[0].url)


class EngineCrawlSpider(SiteSpider):
    """Callbacks that push requests into the engine instead of giving them."""

    name = "engine_crawl"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/8")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Push another page, and give this one."""
        engine = self.crawler.engine
        assert engine is not None
        url = self.at(f"leaf/pushed-{number_of(response.url)}")
        engine.crawl(scrapy.Request(url, callback=self.parse_pushed))
        yield self.leaf(response)

    def parse_pushed(self, response: Response) -> list[Any]:
        """Give the page."""
        return [self.leaf(response, pushed=True)]
