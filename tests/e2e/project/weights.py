"""A spider with one item of any size and depth among small ones."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.http import Response


class WeightsSpider(scrapy.Spider):
    """``size`` and ``depth`` of an item of the third page, ``first`` the size of one
    that ``start()`` gives."""

    name = "weights"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(
        self,
        site: str,
        count: str = "6",
        size: str = "0",
        depth: str = "0",
        first: str = "0",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.site = site
        self.count = int(count)
        self.size, self.depth, self.first = int(size), int(depth), int(first)

    async def start(self) -> AsyncIterator[Any]:
        """Yield the item, then the pages."""
        if self.first:
            yield self.weight(-1, self.first)
        for number in range(self.count):
            yield scrapy.Request(
                f"{self.site}/page/{number}", cb_kwargs={"number": number}
            )

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield small items, on the third page the large one between two."""
        number = kwargs["number"]
        yield {"i": number}
        if number == 2:
            yield self.weight(number, self.size)
            yield {"i": number, "behind": True}

    def weight(self, number: int, size: int) -> dict[str, Any]:
        """Return an item whose line has as many bytes, when it is not deep."""
        item: dict[str, Any] = {"i": number, "v": ""}
        item["v"] = "y" * (size - len(str(item)))
        for _ in range(self.depth):
            item = {"i": number, "d": item}
        return item
