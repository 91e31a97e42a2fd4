"""A spider that writes into the dict of stats, as projects do."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.http import Response

PAGES = 60


class StatsDictSpider(scrapy.Spider):
    """``host`` says on how many hosts its pages are; they are of no network."""

    name = "stats_dict"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    async def start(self) -> AsyncIterator[Any]:
        """Ask for all pages, each in one of three slots."""
        self.crawler.stats.get_stats()["of_start"] = "was here"
        for number in range(PAGES):
            slot = {"download_slot": f"s{number % 3}"}
            yield scrapy.Request(f"data:,{number}", meta=slot)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Count in the dict, and keep a list there."""
        stats = self.crawler.stats.get_stats()
        number = int(response.text)
        stats["pages/all"] = stats.get("pages/all", 0) + 1
        stats.setdefault("pages/even", 0)
        stats["pages/even"] += number % 2 == 0
        stats.update({"version": "1"})
        self.crawler.stats.inc_value("gone")
        yield {"page": number}

    def closed(self, reason: str) -> None:
        """Say how well it went, as monitors do; hide what is of no interest."""
        stats = self.crawler.stats.get_stats()
        stats.update({"coverage/page": 1.0, "fields": 1})
        stats.pop("gone", None)
        stats.pop("item_scraped_count", None)
