"""A spider of forty pages, every fourth of which raises, and who may close it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.crawler import Crawler
from scrapy.extensions.closespider import CloseSpider
from scrapy.http import Response
from scrapy.settings import BaseSettings

PATH = "scrapy.extensions.closespider.CloseSpider"


class Patient(CloseSpider):
    """Closes after twice as many items."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self.close_on["itemcount"] *= 2


class ClosersSpider(scrapy.Spider):
    """``who``: Scrapy's extension is ``off``, ``replaced``, or as it is."""

    name = "closers"

    def __init__(self, who: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.who = who

    @classmethod
    def update_settings(cls, settings: BaseSettings) -> None:
        """Ask for a close after three items or two errors."""
        super().update_settings(settings)
        values = {
            "LOG_LEVEL": "INFO",
            "CONCURRENT_REQUESTS": 1,
            "CLOSESPIDER_ITEMCOUNT": 3,
        }
        settings.setdict(values, "spider")

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> Any:
        """Arrange the extensions."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        extensions: Any = {
            "off": {PATH: None},
            "replaced": {CloseSpider: None, Patient: 0},
        }.get(spider.who, {})
        crawler.settings.set("EXTENSIONS", extensions, "spider")
        return spider

    async def start(self) -> AsyncIterator[Any]:
        """Ask for all pages."""
        for number in range(40):
            yield scrapy.Request(f"data:,{number}")

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the page, or fail."""
        if int(response.text) % 4 == 0:
            raise ValueError(response.text)
        yield {"page": response.text}
