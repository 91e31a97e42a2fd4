"""Pages to be measured, light and heavy."""

from collections.abc import Iterator
from typing import Any

import scrapy
from scrapy.http import Response, TextResponse
from scrapy.linkextractors import LinkExtractor

from .base import SiteSpider


class WeightySpider(SiteSpider):
    """Follows a binary tree of ``count`` pages of one ``kind``, on eight hosts."""

    name = "weighty"

    def __init__(self, kind: str = "light", count: str = "100", **kwargs: Any):
        super().__init__(**kwargs)
        self.path = {"light": "page", "heavy": "heavy"}[kind]
        self.count = int(count)
        self.extractor = LinkExtractor()
        self.start_urls = [self.page(0)]

    def page(self, number: int) -> str:
        """Return a page's address."""
        return self.at(f"{self.path}/{number}", number % 8 + 1)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page and its two children."""
        assert isinstance(response, TextResponse)
        number = int(response.url.rpartition("/")[2])
        item: dict[str, Any] = {
            "title": response.css("title::text").get(),
            "price": response.css(".price::text").get(),
        }
        if self.path == "heavy":
            item["links"] = len(self.extractor.extract_links(response))
        yield item
        for child in (2 * number + 1, 2 * number + 2):
            if child < self.count:
                yield scrapy.Request(self.page(child))
