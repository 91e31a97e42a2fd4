"""Pages that wait for one another."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy.http import Response

from .base import SiteSpider, links
from .deadly import die

# The last pages of a crawl may be fewer than a crowd; they go on after so long.
IDLE_S = 2.0


class CrowdSpider(SiteSpider):
    """A hub's pages wait in their callbacks until there are ``crowd``, or until none
    came for a while. Where ``flag`` names a file, memory runs out as soon as a crowd is
    there, once: the file says that it did.
    """

    name = "crowd"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "CONCURRENT_REQUESTS": 16,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
    }

    def __init__(
        self, count: str = "100", crowd: str = "10", flag: str = "", **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.crowd, self.flag = int(crowd), flag
        self.waiting: list[asyncio.Event] = []
        self.timer: asyncio.TimerHandle | None = None
        self.start_urls = [self.at(f"hub/{count}")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield scrapy.Request(link, self.parse_leaf)

    async def parse_leaf(self, response: Response) -> AsyncIterator[Any]:
        """Wait with the others, then give the page's item."""
        may_go = asyncio.Event()
        self.waiting.append(may_go)
        if len(self.waiting) >= self.crowd:
            self.run_out_of_memory()
            self.let_all_go()
        else:
            self.wait_for_more()
        await may_go.wait()
        yield self.leaf(response)

    def wait_for_more(self) -> None:
        """Let all go when no page comes for a while."""
        if self.timer is not None:
            self.timer.cancel()
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(IDLE_S, self.let_all_go)

    def let_all_go(self) -> None:
        """End the wait of all pages."""
        waiting, self.waiting = self.waiting, []
        for may_go in waiting:
            may_go.set()

    def run_out_of_memory(self) -> None:
        """Do so, if this is the time."""
        if self.flag and not Path(self.flag).exists():
            Path(self.flag).touch()
            self.logger.warning("memory runs out, %d pages wait", len(self.waiting))
            die("memory")
