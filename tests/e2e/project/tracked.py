"""A spider whose pages end in every way that Scrapy knows, one kind of page each."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy import signals
from scrapy.exceptions import DropItem
from scrapy.http import Response

# Far more than Scrapy takes between an item's signal and the end of its page.
TURNS = 500


class Pipeline:
    """Slow, dropping or failing, as the item asks."""

    async def process_item(self, item: Any) -> Any:
        """Return the item."""
        if item.get("slow"):
            await asyncio.sleep(item["slow"])
        if item.get("drop"):
            raise DropItem("asked for")
        if item.get("fail"):
            raise ValueError("asked for")
        return item


class TrackedSpider(scrapy.Spider):
    """Asks for ``kinds`` (all by default), each from its own URL."""

    name = "tracked"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ITEM_PIPELINES": {Pipeline: 100},
        "RETRY_TIMES": 1,
        "LOG_LEVEL": "INFO",
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
    }
    allowed_domains = ["127.0.0.1"]  # noqa: RUF012 - Scrapy's own form

    def __init__(self, site: str, kinds: str = "", copies: str = "1", **kwargs: Any):
        super().__init__(**kwargs)
        self.site = site
        self.kinds = kinds.split(",") if kinds else list(ADDRESSES)
        self.copies = int(copies)
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> AsyncIterator[Any]:
        """Yield a request for each kind."""
        for copy in range(self.copies):
            for kind in self.kinds:
                url = ADDRESSES[kind].format(kind=kind, site=self.site, copy=copy)
                yield scrapy.Request(
                    f"{url}{'&' if '?' in url else '?'}copy={copy}",
                    callback=getattr(self, kind, self.page),
                    errback=getattr(self, f"{kind}_error", None),
                    cb_kwargs={"kind": kind},
                )

    def child(self, kind: str, response: Any, number: int = 0) -> scrapy.Request:
        """Return a request that names the page it comes from."""
        mark = response.url.rpartition("copy=")[2]
        return scrapy.Request(
            f"{self.site}/p/child?of={kind}{number}&copy={mark}", callback=self.leaf
        )

    def leaf(self, response: Response) -> None:
        """Give nothing."""

    def page(self, response: Response, kind: str) -> Iterator[Any]:
        """Yield one item."""
        yield {"kind": kind, "status": response.status}

    def generator(self, response: Response, kind: str) -> Iterator[Any]:
        """Yield two items and two requests, one of them twice."""
        yield {"kind": kind, "n": 1}
        yield self.child(kind, response)
        yield self.child(kind, response, 1)
        yield self.child(kind, response)
        yield {"kind": kind, "n": 2}

    async def asyncgen(self, response: Response, kind: str) -> AsyncIterator[Any]:
        """Yield between waits."""
        yield {"kind": kind, "n": 1}
        await asyncio.sleep(0.05)
        yield self.child(kind, response)
        await asyncio.sleep(0.05)
        yield {"kind": kind, "n": 2}

    async def coroutine(self, response: Response, kind: str) -> list[Any]:
        """Return a list after a wait."""
        await asyncio.sleep(0.05)
        return [{"kind": kind, "n": 1}, self.child(kind, response)]

    def listed(self, response: Response, kind: str) -> list[Any]:
        """Return a list."""
        return [{"kind": kind, "n": 1}, self.child(kind, response)]

    def nothing(self, response: Response, kind: str) -> None:
        """Return nothing."""

    def midway(self, response: Response, kind: str) -> Iterator[Any]:
        """Fail after an item and a request."""
        yield {"kind": kind, "n": 1}
        yield self.child(kind, response)
        raise RuntimeError("midway")

    def atonce(self, response: Response, kind: str) -> Iterator[Any]:
        """Fail at once."""
        raise RuntimeError("at once")

    async def inline(self, response: Response, kind: str) -> AsyncIterator[Any]:
        """Download two pages inside of the callback, one of them redirected."""
        engine = self.crawler.engine
        pages = await asyncio.gather(
            engine.download_async(scrapy.Request(f"{self.site}/p/inline")),
            engine.download_async(
                scrapy.Request(f"{self.site}/to?url={self.site}/p/inlined")
            ),
        )
        yield {"kind": kind, "urls": [page.url.rpartition("/")[2] for page in pages]}
        yield self.child(kind, response)

    async def again(self, response: Response, kind: str) -> AsyncIterator[Any]:
        """Download the page's own request once more."""
        assert response.request is not None
        page = await self.crawler.engine.download_async(response.request)
        yield {"kind": kind, "status": page.status}
        yield self.child(kind, response)

    def pushes(self, response: Response, kind: str) -> Iterator[Any]:
        """Ask the engine itself."""
        self.crawler.engine.crawl(self.child(kind, response))
        yield {"kind": kind, "n": 1}

    def background(self, response: Response, kind: str) -> Iterator[Any]:
        """Start a task that outlives the callback."""

        scraped = asyncio.Event()

        def on_scraped(response: Response, of: Response = response) -> None:
            if response is of:
                scraped.set()

        self.crawler.signals.connect(on_scraped, signals.item_scraped, weak=False)

        async def later() -> None:
            # Nothing of the page is left some turns of the loop after its item.
            await scraped.wait()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self.crawler.engine.crawl(self.child(kind, response))
            self.crawler.stats.inc_value("later")

        self.tasks.append(asyncio.ensure_future(later()))
        yield {"kind": kind, "n": 1}

    def pipeline(self, response: Response, kind: str) -> Iterator[Any]:
        """Yield a slow item, one that is dropped and one that fails."""
        yield {"kind": kind, "slow": 0.3}
        yield {"kind": kind, "drop": True}
        yield {"kind": kind, "fail": True}

    def local(self, response: Response, kind: str) -> Iterator[Any]:
        """Ask with a closure, twice for the same page; its own request leaves."""

        def inside(page: Response) -> list[Any]:
            name = page.url.rpartition("/")[2].partition("?")[0]
            return [{"kind": kind, "local": name}, self.child(kind, response)]

        yield {"kind": kind, "n": 1}
        mark = response.url.rpartition("?")[2]
        for _ in range(2):
            yield scrapy.Request(f"{self.site}/p/lambda?{mark}", callback=inside)

    def missing_error(self, failure: Any) -> Iterator[Any]:
        """Yield from an errback."""
        response = failure.value.response
        yield {"kind": "missing", "error": failure.type.__name__}
        yield self.child("missing", response)

    def refused_error(self, failure: Any) -> Iterator[Any]:
        """Yield from an errback of a failed download."""
        yield {"kind": "refused", "error": failure.type.__name__}

    def multiple(self, response: Response, kind: str) -> Iterator[Any]:
        """Ask for the same page three times, on purpose."""
        for _ in range(3):
            yield self.child(kind, response).replace(dont_filter=True)


ADDRESSES = {
    "generator": "{site}/p/{kind}",
    "asyncgen": "{site}/p/{kind}",
    "coroutine": "{site}/p/{kind}",
    "listed": "{site}/p/{kind}",
    "nothing": "{site}/p/{kind}",
    "midway": "{site}/p/{kind}",
    "atonce": "{site}/p/{kind}",
    "inline": "{site}/p/{kind}",
    "again": "{site}/p/{kind}",
    "pushes": "{site}/p/{kind}",
    "background": "{site}/p/{kind}",
    "pipeline": "{site}/p/{kind}",
    "local": "{site}/p/{kind}",
    "multiple": "{site}/p/{kind}",
    "missing": "{site}/status/404",
    "failing": "{site}/status/503",
    "refused": "http://127.0.0.1:1/p/refused",
    "redirect": "{site}/to?url={site}/p/redirected{copy}",
    "offsite": "{site}/to?url=http://localhost:1/p/off{copy}",
}
