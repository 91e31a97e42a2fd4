"""A spider whose requests no other process could read."""

from collections.abc import Iterator
from typing import Any

import scrapy
from scrapy.http import Response


class ClosuresSpider(scrapy.Spider):
    """``count`` of them from its first page."""

    name = "closures"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, site: str, count: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.site = site
        self.start_urls = [f"{site}/p/first"]
        self.count = int(count)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the requests."""

        def inside(page: Response) -> Any:
            return {"url": page.url}

        for number in range(self.count):
            yield scrapy.Request(
                f"{self.site}/p/{number}", callback=inside, dont_filter=True
            )
