"""A spider whose start() looks at what its callbacks have seen."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.http import Response

PRIORITIES = (0, 5, 3, 9, 1, 5, 0, 7)
# The page with which a paging start() ends, and what bounds one that does not.
LAST_PAGE = 30
PAGES_MAX = 2000


class BeginsSpider(scrapy.Spider):
    """``how`` names the start(); ``site`` is the small site."""

    name = "begins"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, how: str, site: str = "data:,", **kwargs: Any):
        super().__init__(**kwargs)
        self.how = how
        self.site = site
        # What makes the first page of the small site come after all of start(), also on
        # a busy machine, and the others take longer than a turn of the loop.
        is_near = site == "data:,"
        self.first = "" if is_near else "?ms=3000"
        self.slow = "" if is_near else "?ms=30"
        self.seen: list[str] = []

    async def start(self) -> AsyncIterator[Any]:
        """Yield what ``how`` says."""
        async for element in getattr(self, self.how)():
            yield element

    async def pages(self) -> AsyncIterator[Any]:
        """Ask for the next page until a callback has seen the last one."""
        page = 0
        while str(LAST_PAGE) not in self.seen and page < PAGES_MAX:
            yield scrapy.Request(f"{self.site}{page}")
            page += 1
        yield {"asked": page}

    async def looks(self) -> AsyncIterator[Any]:
        """Fail if no page has come when all are asked for, as a test of Scrapy's."""
        for number in range(100):
            yield scrapy.Request(f"{self.site}{number}{'' if number else self.first}")
        assert self.seen, "all asked for before any came"

    async def raises(self) -> AsyncIterator[Any]:
        """Fail behind the first request."""
        yield scrapy.Request(f"{self.site}0")
        raise ZeroDivisionError

    async def ordered(self) -> AsyncIterator[Any]:
        """Ask in an order that is not that of the priorities."""
        for number, priority in enumerate(PRIORITIES):
            url = f"{self.site}{number}{self.slow if number else self.first}"
            yield scrapy.Request(url, priority=priority)

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the page; the first one in ``ordered`` asks for two in the middle."""
        name = response.url.removeprefix(self.site).partition("?")[0]
        self.seen.append(name)
        yield {"page": name}
        if self.how == "ordered" and name == "0":
            for number, priority in enumerate((4, 0)):
                url = response.urljoin(f"{name}.{number}{self.slow}")
                yield scrapy.Request(url, priority=priority)
