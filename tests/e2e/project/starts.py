"""A spider whose start() does what ``how`` says."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.exceptions import CloseSpider, DropItem
from scrapy.http import Response


def name_of(response: Response) -> str:
    """Return NAME of ``/p/NAME``."""
    return response.url.rpartition("/")[2].partition("?")[0]


class Enough:
    """A reason that is no text, and whose text is no UTF-8."""

    def __str__(self) -> str:
        return "enough \ud800"


class Pipeline:
    """Slow or dropping, as the item asks; tells how many went through together."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    async def process_item(self, item: Any) -> Any:
        """Return the item."""
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(item.get("slow", 0))
        while "until" in item and not os.access(item["until"], os.F_OK):  # noqa: ASYNC110 - the test tells by a file
            await asyncio.sleep(0.02)
        self.now -= 1
        if "together" in item:
            item["together"] = self.most
        if item.get("drop"):
            raise DropItem("asked for")
        return item


class StartsSpider(scrapy.Spider):
    """Elements numbered below ``count``, as requests of ``site`` and as items."""

    name = "starts"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ITEM_PIPELINES": {Pipeline: 100},
        "LOG_LEVEL": "INFO",
    }

    def __init__(
        self,
        how: str,
        site: str = "",
        count: str = "0",
        ms: str = "0",
        until: str = "",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.until = until
        self.ms = ms
        self.how = how
        self.site = site
        self.count = int(count)

    async def start(self) -> AsyncIterator[Any]:
        """Yield what ``how`` says."""
        async for element in getattr(self, self.how)():
            yield element

    def page(self, number: int) -> scrapy.Request:
        """Return a request that is never filtered."""
        url = f"{self.site}/p/{number}?ms={self.ms}"
        return scrapy.Request(url, dont_filter=True)

    async def many(self) -> AsyncIterator[Any]:
        """Yield requests only."""
        for number in range(self.count):
            yield self.page(number)

    async def shuffled(self) -> AsyncIterator[Any]:
        """Yield items and requests, each number twice, in another order each time."""
        numbers = [*range(self.count), *range(self.count)]
        random.SystemRandom().shuffle(numbers)
        for number in numbers:
            await asyncio.sleep(0.002)
            if number % 2:
                yield {"item": number, "slow": 0.05 * (number % 3 == 0)}
            else:
                yield self.page(number)

    async def items(self) -> AsyncIterator[Any]:
        """Yield items alone: one slow, one dropped, one plain."""
        yield {"item": 1, "slow": 0.3}
        yield {"item": 2, "drop": True}
        yield {"item": 3}

    async def slow_items(self) -> AsyncIterator[Any]:
        """Yield items that all take a second."""
        for number in range(self.count):
            yield {"item": number, "slow": 1.0, "together": 0}

    async def items_first(self) -> AsyncIterator[Any]:
        """Yield as many items as requests, and these behind them."""
        for number in range(self.count):
            yield {"item": number}
        async for request in self.many():
            yield request

    async def mixed(self) -> AsyncIterator[Any]:
        """Yield an off-site request, one with a lambda, and ask the engine itself."""

        def inside(response: Response) -> Any:
            return {"page": "lambda"}

        self.crawler.engine.crawl(self.page(1))
        yield scrapy.Request(f"{self.site}/p/2", callback=inside)
        response = await self.crawler.engine.download_async(self.page(3))
        yield {"inline": name_of(response)}

    async def equal(self) -> AsyncIterator[Any]:
        """Yield the same request twice, and the same item twice, in turn."""
        for _ in range(2):
            yield self.page(1)
            yield {"item": 1}

    async def held(self) -> AsyncIterator[Any]:
        """Yield an item that waits for the file ``until``, as the last element."""
        yield {"item": 1, "until": self.until}
        self.logger.info("no more elements")

    async def odd(self) -> AsyncIterator[Any]:
        """Yield a request with a slot and priorities that no message can hold."""
        for priority in (True, 2**70, -(2**70)):
            yield self.page(1).replace(
                priority=priority, meta={"download_slot": "\ud800"}
            )

    async def gathers(self) -> AsyncIterator[Any]:
        """Download all pages at a time, beside the scheduler."""
        engine = self.crawler.engine
        pages = await asyncio.gather(
            *(engine.download_async(self.page(number)) for number in range(self.count))
        )
        yield {"pages": len(pages)}

    async def closes(self) -> AsyncIterator[Any]:
        """Close the spider after one item."""
        yield {"item": 1}
        # Scrapy takes any value for a reason.
        raise CloseSpider(Enough())  # type: ignore[arg-type]  # on purpose

    async def fails(self) -> AsyncIterator[Any]:
        """Fail after an item that takes its time."""
        yield {"item": 1, "slow": 0.3}
        raise LookupError("no more")

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the page's name."""
        yield {"page": name_of(response)}
