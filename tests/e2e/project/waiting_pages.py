"""Pages that are long past their download: their pipelines and callbacks wait."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import scrapy
from scrapy.crawler import Crawler
from scrapy.http import Response
from twisted.internet.defer import Deferred

# Long enough for what the page asked for to take effect, far shorter than SLOW_S.
KILLED_AFTER_S = 0.7


class WaitingPages(scrapy.Spider):
    """Asks for pages of a small site, in one of these shapes; each gives one item.

    ``hub``: one page asks for ``n`` others. ``chain``: each asks for the next.
    ``tree``: each asks for three more, to a depth of 3. ``own``: a callback goes on
    when a page that it has asked for was parsed; ``after``: when one was that start()
    asks for later.

    Where ``killed_at`` names a page, its process is killed from outside a moment after
    the page was parsed, once: the file ``marker`` says that it was. The callback of the
    page ``crashes_at`` crashes the process, each time.
    """

    name = "waiting_pages"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(
        self,
        site: str,
        shape: str,
        n: str = "20",
        killed_at: str = "",
        marker: str = "",
        crashes_at: str = "",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.site, self.shape, self.n = site, shape, int(n)
        self.killed_at, self.marker = killed_at, marker
        self.crashes_at = crashes_at
        self.parsed: dict[str, asyncio.Future[str]] = {}

    def page(self, name: str, callback: Any = None) -> scrapy.Request:
        """Return the request of a page."""
        return scrapy.Request(f"{self.site}/p/{name}", callback=callback)

    async def start(self) -> AsyncIterator[Any]:
        """Ask for the first pages."""
        if self.shape == "own":
            for number in range(self.n):
                yield self.page(f"asks-{number}", self.parse_and_ask)
        elif self.shape == "after":
            for number in range(self.n):
                yield self.page(f"waits-{number}", self.parse_and_wait)
            for number in range(self.n):
                yield self.page(f"after-{number}", self.note)
        else:
            yield self.page("0")

    def parse(self, response: Response) -> Iterator[Any]:
        """Give an item, and ask for more pages."""
        name = name_of(response)
        if name == self.crashes_at:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield {"page": name}
        match self.shape:
            case "hub" if name == "0":
                for number in range(1, self.n + 1):
                    yield self.page(str(number))
            case "chain" if int(name) < self.n:
                yield self.page(str(int(name) + 1))
            case "tree" if len(name) < 4:
                for branch in "123":
                    yield self.page(name + branch)
        if name == self.killed_at and not os.path.exists(self.marker):
            Path(self.marker).touch()
            loop = asyncio.get_running_loop()
            loop.call_later(KILLED_AFTER_S, os.kill, os.getpid(), signal.SIGKILL)

    async def parse_and_ask(self, response: Response) -> AsyncIterator[Any]:
        """Ask for a page, and wait for it."""
        inner = name_of(response).replace("asks", "inner")
        yield self.page(inner, self.note)
        yield {"page": name_of(response), "inner": await self.future(inner)}

    async def parse_and_wait(self, response: Response) -> AsyncIterator[Any]:
        """Wait for another page."""
        after = name_of(response).replace("waits", "after")
        yield {"page": name_of(response), "after": await self.future(after)}

    def note(self, response: Response) -> Iterator[Any]:
        """Let who waits for this page go on."""
        name = name_of(response)
        self.future(name).set_result(name)
        yield {"page": name}

    def future(self, name: str) -> "asyncio.Future[str]":
        """Return the future of a page that is parsed or will be."""
        if name not in self.parsed:
            self.parsed[name] = asyncio.get_running_loop().create_future()
        return self.parsed[name]


def name_of(response: Response) -> str:
    """Return the name of a page."""
    return response.url.rpartition("/")[2]


class Slow:
    """A pipeline that waits for something outside, ``SLOW_S`` seconds an item."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Read the setting."""
        return cls(crawler.settings.getfloat("SLOW_S"))

    async def process_item(self, item: Any) -> Any:
        """Wait."""
        await asyncio.sleep(self.seconds)
        return item


class Gather:
    """A pipeline that holds items until there are ``GATHER``, or none came for
    ``GATHER_IDLE_S`` seconds."""

    def __init__(self, count: int, idle_s: float):
        self.count, self.idle_s = count, idle_s
        self.held: list[tuple[Deferred[Any], Any]] = []
        self.timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Read the settings."""
        settings = crawler.settings
        return cls(settings.getint("GATHER"), settings.getfloat("GATHER_IDLE_S"))

    def process_item(self, item: Any) -> "Deferred[Any]":
        """Hold an item."""
        deferred: Deferred[Any] = Deferred()
        self.held.append((deferred, item))
        if self.timer is not None:
            self.timer.cancel()
        if len(self.held) >= self.count:
            self.flush()
        elif self.idle_s:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(self.idle_s, self.flush)
        return deferred

    def flush(self) -> None:
        """Let all items go on."""
        held, self.held = self.held, []
        for deferred, item in held:
            deferred.callback(item)
