"""Spiders with every kind of item and every kind of error."""

import math
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import scrapy
from scrapy.http import Response

from ..items import Book, Card, PageItem, PricedItem, Shelf, Size
from .plain import PagesSpider, SiteSpider, number_of

_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


class KindsSpider(SiteSpider):
    """Items of every kind that Scrapy's exporter writes, some dropped or failing."""

    name = "kinds"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "FEEDS": {"must-not-exist.json": {"format": "json"}},
        "JOBDIR": "must-not-exist",
        "LOG_FILE": "must-not-exist.log",
    }

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield one item of each kind, the links, and an error on every fifth page."""
        number = number_of(response.url)
        yield {"number": number, "nested": {"$b": "no tag", "when": [_EPOCH]}}
        yield {"number": number, "drop": True}
        yield {"number": number, "fail": True}
        yield PageItem(title=f"Page {number}", number=number)
        yield PricedItem(price=Decimal("1.10"), number=number)
        yield Book(number, "a book", ["é", "b"], Size(1, 2))
        yield Card(number, (Book(1), 2**80))
        yield {"number": number, "nan": math.nan, "inf": [-math.inf]}
        assert hasattr(response, "css")
        yield from self.follow(response)  # type: ignore[arg-type]  # it is text
        if number % 5 == 0:
            raise RuntimeError("every fifth page fails")


class ShelvedSpider(SiteSpider):
    """Items of one class first: a CSV has the columns that it declares."""

    name = "shelved"
    custom_settings = {"FEED_EXPORT_INDENT": 2}  # noqa: RUF012 - Scrapy's form

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield items of one class."""
        number = number_of(response.url)
        yield PageItem(title="a, 'b' é", number=number)
        yield PageItem(number=[1, 2], title=["x", "y"])
        yield PageItem(number={"deep": (1, None)}, rating=0.5)


class PricesSpider(SiteSpider):
    """Items whose field has a serializer."""

    name = "prices"

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield items of one class."""
        yield PricedItem(price=Decimal("1.10"), number=1)
        yield PricedItem(price=None, number=2)


class UnencodableSpider(SiteSpider):
    """Items that JSON cannot hold."""

    name = "unencodable"

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield bytes, a tuple as a key, an enum and an object."""
        yield {"raw": b"\xff\x00", ("a", 1): 2}
        yield {"shelf": Shelf.UPPER, "object": object, "plain": "é"}
        loop: list[Any] = []
        loop.append(loop)
        yield {"loop": loop}


class FloodSpider(SiteSpider):
    """Very many items from one page, each with ``size`` characters."""

    name = "flood"

    def __init__(self, items: str = "1000", size: str = "10000", **kwargs: Any):
        super().__init__(**kwargs)
        self.items = int(items)
        self.size = int(size)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the items; say how far it got."""
        for number in range(self.items):
            yield {"number": number, "text": "x" * self.size}
        self.logger.info("flooded")


class HeavySpider(SiteSpider):
    """One item a page, each of ``size`` characters."""

    name = "heavy"

    def __init__(self, size: str = "100000", **kwargs: Any):
        super().__init__(**kwargs)
        self.size = int(size)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the item and the links."""
        yield {"number": number_of(response.url), "text": "x" * self.size}
        yield from self.follow(response)  # type: ignore[arg-type]  # it is text


class StartErrorSpider(scrapy.Spider):
    """start() raises after one request."""

    name = "starterror"

    def __init__(self, site: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.site = site

    async def start(self) -> AsyncIterator[Any]:
        """Yield one request, then fail."""
        yield scrapy.Request(f"{self.site}/page/3")
        raise LookupError("no more start")

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield one item."""
        yield {"number": number_of(response.url)}


class CountedSpider(SiteSpider):
    """Closes itself by Scrapy's own setting."""

    name = "counted"
    custom_settings = {"CLOSESPIDER_ITEMCOUNT": 5}  # noqa: RUF012 - Scrapy's form

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield one item and the links."""
        yield {"number": number_of(response.url)}
        yield from self.follow(response)  # type: ignore[arg-type]  # it is text


class OtherReactorSpider(scrapy.Spider):
    """Wants a reactor that is not asyncio's."""

    name = "otherreactor"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "TWISTED_REACTOR": "twisted.internet.selectreactor.SelectReactor"
    }


class KillerSpider(PagesSpider):
    """The callback of page ``bad`` ends its process with a signal, or an exit code."""

    name = "killer"

    def __init__(self, bad: str, signal: str = "11", **kwargs: Any):
        super().__init__(**kwargs)
        self.bad = int(bad)
        self.signal = int(signal)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Do as any page, but for one."""
        if number_of(response.url) == self.bad:
            if self.signal:
                os.kill(os.getpid(), self.signal)
            os._exit(3)
        yield from super().parse(response, **kwargs)
