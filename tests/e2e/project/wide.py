"""A page that asks for many others with closures, which cannot leave the process."""

from collections.abc import Callable, Iterator
from typing import Any

import scrapy


class WideSpider(scrapy.Spider):
    """One page asks for ``count`` others with closures."""

    name = "wide"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, count: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.count = int(count)

    async def start(self) -> Any:
        """Ask for the page."""
        yield scrapy.Request("data:,hub")

    def parse(self, response: Any, **kwargs: Any) -> Iterator[Any]:
        """Ask for the others."""
        for number in range(self.count):
            yield scrapy.Request(f"data:,{number}", callback=self.then(number))

    def then(self, number: int) -> Callable[..., Any]:
        """Return a callback without a name."""
        return lambda response: [{"page": response.text, "number": number}]
