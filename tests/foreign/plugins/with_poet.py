"""Page objects whose callbacks are made inline by scrapy-poet."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy_poet import callback_for
from web_poet import WebPage


class NumberPage(WebPage):  # type: ignore[misc]  # its base is not known here
    """A page whose item is its number."""

    async def to_item(self) -> Any:
        """Return the item."""
        return {"title": f"number {str(self.url).rpartition('/')[2]}"}


class PoetSpider(scrapy.Spider):
    """Asks for ``count`` pages, in ``hosts`` download slots."""

    name = "with_poet"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ADDONS": {"scrapy_poet.Addon": 300},
        "CONCURRENT_REQUESTS": 2,
    }

    def __init__(self, site: str, count: str, hosts: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.site, self.count, self.hosts = site, int(count), int(hosts)

    async def start(self) -> AsyncIterator[Any]:
        """Ask for the first page."""
        yield scrapy.Request("data:,first")

    def parse(self, response: Any, **kwargs: Any) -> Iterator[Any]:
        """Ask for the others."""
        for number in range(self.count):
            yield scrapy.Request(
                f"{self.site}/p/{number}",
                callback_for(NumberPage),
                meta={"download_slot": f"slot-{number % self.hosts}"},
            )
