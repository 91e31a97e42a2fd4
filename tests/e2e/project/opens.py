"""A spider whose pipeline opens, or does not, as ``how`` says."""

import asyncio
import os
from typing import Any

import scrapy
from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider


class Pipeline:
    """Opens, closes the spider or raises."""

    def __init__(self, crawler: Crawler) -> None:
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "Pipeline":
        """Return the pipeline."""
        return cls(crawler)

    async def open_spider(self) -> None:
        """Do what ``how`` says, when the file ``until`` is there."""
        spider: Any = self.crawler.spider
        spider.logger.info("the pipeline opens")
        while spider.until and not os.access(spider.until, os.F_OK):  # noqa: ASYNC110 - the test tells by a file
            await asyncio.sleep(0.02)
        if spider.how == "refuses":
            raise CloseSpider("refused")
        if spider.how == "raises":
            raise ConnectionError("the database is down")
        if spider.how == "closes":
            await self.crawler.engine.close_spider_async(reason="no database")
        if spider.how == "begins to close":
            spider.begin_to_close()
            await asyncio.sleep(0)

    def process_item(self, item: Any) -> Any:
        """Return the item."""
        return item


class OpensSpider(scrapy.Spider):
    """One page without a site."""

    name = "opens"
    start_urls = ["data:,page"]  # noqa: RUF012 - Scrapy's own form
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ITEM_PIPELINES": {Pipeline: 100},
        "LOG_LEVEL": "INFO",
    }

    def __init__(self, how: str = "", until: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.how = how
        self.until = until
        self.tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> "OpensSpider":
        """Return the spider, which is told when it is open."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.opened, signal=signals.spider_opened)
        return spider

    def opened(self) -> None:
        """Close at once, if that is what it is about."""
        if self.how == "closes when open":
            self.begin_to_close()

    def begin_to_close(self) -> None:
        """Have the engine close the spider beside what runs now."""
        close = self.crawler.engine.close_spider_async(reason="no database")
        self.tasks.add(asyncio.ensure_future(close))

    def parse(self, response: Any) -> Any:
        """Yield the page."""
        yield {"page": response.text}
