"""What the spider does with a page, whoever schedules it."""

from collections.abc import Iterator
from typing import Any

import scrapy
from scrapy.http import Response, TextResponse


class Pages:
    """Follows a binary tree of ``count`` pages on eight hosts; an item each."""

    def __init__(self, port: str, count: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.port = int(port)
        self.count = int(count)

    def page(self, number: int) -> str:
        """Return a page's address."""
        return f"http://127.0.0.{number % 8 + 1}:{self.port}/page/{number}"

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page and its two children."""
        assert isinstance(response, TextResponse)
        number = int(response.url.rpartition("/")[2])
        yield {"number": number, "title": response.css("title::text").get()}
        for child in (2 * number + 1, 2 * number + 2):
            if child < self.count:
                yield scrapy.Request(self.page(child), callback=self.parse)
