"""How a crawl begins, idles and ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import scrapy
from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider, DontCloseSpider
from scrapy.http import Response

from .base import SiteSpider, links, number_of
from .fetching import ItemSpider


class StartItemsSpider(ItemSpider):
    """Items and requests from ``start()``, with waits between."""

    name = "start_items"

    async def start(self) -> AsyncIterator[Any]:
        """Give both by turns."""
        for number in range(10):
            yield {"started": number}
            await asyncio.sleep(0.001)
            yield scrapy.Request(self.at(f"leaf/{number}"))


class StartManySpider(ItemSpider):
    """Three hundred requests from ``start()``; a third is asked for twice."""

    name = "start_many"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "CONCURRENT_REQUESTS": 16,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 8,
    }

    async def start(self) -> AsyncIterator[Any]:
        """Give them in any order."""
        for number in {n * 37 % 300 for n in range(300)}:
            yield scrapy.Request(self.at(f"leaf/many-{number}"))
        for number in range(0, 300, 3):
            yield scrapy.Request(self.at(f"leaf/many-{number}"), dont_filter=True)


class WideSpider(ItemSpider):
    """Eighty pages on eight hosts, answered when ``together`` processes have asked."""

    name = "wide"

    def __init__(self, together: str = "0", **kwargs: Any):
        super().__init__(**kwargs)
        self.together = int(together)

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("hub/80"), self.parse_hub)

    def parse_hub(self, response: Response) -> Iterator[Any]:
        """Follow."""
        yield self.leaf(response)
        for link in links(response):
            yield response.follow(link, meta={"together": self.together})


class OneSidedSpider(WideSpider):
    """Every other page carries an object of a class that only one process has: the one
    that has run ``start()``."""

    name = "one_sided"

    async def start(self) -> AsyncIterator[Any]:
        """Make the class where it can be found, and begin."""
        globals()["Made"] = type("Made", (), {"__module__": __name__})
        async for request in super().start():
            yield request

    def parse_hub(self, response: Response) -> Iterator[Any]:
        """Follow, with and without."""
        for number, request in enumerate(super().parse_hub(response)):
            if number % 2 and isinstance(request, scrapy.Request):
                request.meta["made"] = globals()["Made"]()
            yield request

    def parse(self, response: Response, **kwargs: Any) -> Any:
        """Give the page, and what came along."""
        carried = type(response.meta.get("made")).__name__
        yield self.leaf(response, carried=carried)


class IdleSpider(ItemSpider):
    """Asks for more each time that it is idle, three times."""

    name = "idle"
    rounds = 0

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> Self:
        """Connect."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.idle, signal=signals.spider_idle)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("leaf/begin"))

    def idle(self) -> None:
        """Push four requests; do not close."""
        engine = self.crawler.engine
        assert engine is not None
        if self.rounds < 3:
            self.rounds += 1
            for number in range(4):
                path = f"leaf/idle-{self.rounds}-{number}"
                engine.crawl(scrapy.Request(self.at(path)))
            raise DontCloseSpider


class OpenedSpider(ItemSpider):
    """A handler of ``spider_opened`` pushes requests."""

    name = "opened"

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> Self:
        """Connect."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.opened, signal=signals.spider_opened)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("hub/8"), self.parse_hub)

    def opened(self) -> None:
        """Push three."""
        engine = self.crawler.engine
        assert engine is not None
        for number in range(3):
            url = self.at(f"leaf/opened-{number}")
            engine.crawl(scrapy.Request(url, dont_filter=True))

    def parse_hub(self, response: Response) -> Iterator[Any]:
        """Follow."""
        yield self.leaf(response)
        for link in links(response):
            yield response.follow(link)


class EnoughSpider(SiteSpider):
    """Closes the spider at a certain page."""

    name = "enough"

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("hub/40"))

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give the page; the twentieth is enough."""
        yield self.leaf(response)
        if number_of(response.url) == 20:
            raise CloseSpider("enough")


class LimitsSpider(SiteSpider):
    """Closed by a limit of the settings; ``kind`` says what its pages give."""

    name = "limits"

    def __init__(self, kind: str = "items", **kwargs: Any):
        super().__init__(**kwargs)
        self.kind = kind

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("hub/60"))

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give an item, nothing, or an error."""
        if self.kind == "errors":
            raise ValueError("one more")
        if self.kind == "items":
            yield self.leaf(response)
