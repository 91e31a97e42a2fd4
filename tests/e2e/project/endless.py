"""A chain of closures without an end."""

from collections.abc import Iterator
from typing import Any

import scrapy


class EndlessSpider(scrapy.Spider):
    """Each page gives ``size`` bytes and asks for the next with a closure.

    ``how``: from a page, or from ``start()`` itself.
    """

    name = "endless"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, size: str, how: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = int(size)
        self.how = how

    async def start(self) -> Any:
        """Ask for the first page."""
        if self.how == "start":
            yield self.asked(0)
        else:
            yield scrapy.Request("data:,first")

    def parse(self, response: Any, **kwargs: Any) -> Iterator[Any]:
        """Begin the chain."""
        yield self.asked(0)

    def asked(self, number: int) -> scrapy.Request:
        """Return the request of a page."""

        def then(response: Any) -> Iterator[Any]:
            yield {"page": str(number), "more": "x" * self.size}
            yield self.asked(number + 1)

        return scrapy.Request(f"data:,{number}", callback=then)
