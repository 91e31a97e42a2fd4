"""Which requests are made at all, and in what order."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.http import Response

from .base import links, number_of
from .fetching import ItemSpider


class RobotsSpider(ItemSpider):
    """Two hosts whose robots.txt is known before it forbids anything."""

    name = "robots"
    custom_settings = {"ROBOTSTXT_OBEY": True}  # noqa: RUF012 - Scrapy's own form

    async def start(self) -> AsyncIterator[Any]:
        """Ask for an allowed page of each."""
        for host in (1, 2):
            yield scrapy.Request(self.at("leaf/first", host), self.parse_first)

    def parse_first(self, response: Response) -> Iterator[Any]:
        """Ask for allowed and forbidden pages of the same host."""
        yield self.leaf(response)
        for number in range(3):
            url = response.urljoin(f"/private/{number}")
            yield scrapy.Request(url, errback=self.failed)
        for number in range(4):
            yield response.follow(f"/leaf/{number}")


class RobotsBurstSpider(ItemSpider):
    """Twelve forbidden pages at once."""

    name = "robots_burst"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ROBOTSTXT_OBEY": True,
        "CONCURRENT_REQUESTS": 16,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
    }

    async def start(self) -> AsyncIterator[Any]:
        """Ask for them."""
        for number in range(12):
            yield scrapy.Request(self.at(f"private/{number}", 1), errback=self.failed)


class BurstSpider(ItemSpider):
    """Thirty pages of one host, which allows two at a time."""

    name = "burst"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "CONCURRENT_REQUESTS": 16,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 2,
    }

    async def start(self) -> AsyncIterator[Any]:
        """Ask for them."""
        for number in range(30):
            yield scrapy.Request(self.at(f"slow/60/{number}", 1))


class OffsiteSpider(ItemSpider):
    """Links to eight hosts, of which two are the spider's."""

    name = "offsite"
    allowed_domains = ["127.0.0.1", "127.0.0.2"]  # noqa: RUF012 - Scrapy's own form

    async def start(self) -> AsyncIterator[Any]:
        """Begin at home."""
        yield scrapy.Request(self.at("leaf/home", 1), self.parse_home)

    def parse_home(self, response: Response) -> Iterator[Any]:
        """Ask for a page of each host, and once with leave."""
        yield self.leaf(response)
        for host in range(1, 9):
            yield scrapy.Request(self.at("leaf/away", host))
        meta = {"allow_offsite": True}
        yield scrapy.Request(self.at("leaf/allowed", 8), meta=meta)


class DepthSpider(ItemSpider):
    """Endless chains on four hosts, cut at a depth."""

    name = "depth"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "DEPTH_LIMIT": 3,
        "DEPTH_PRIORITY": 1,
        "DEPTH_STATS_VERBOSE": True,
    }

    async def start(self) -> AsyncIterator[Any]:
        """Begin each."""
        for host in range(1, 5):
            yield scrapy.Request(self.at("deep/0", host))

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page and the next."""
        yield self.leaf(response, depth=response.meta["depth"])
        for link in links(response):
            yield response.follow(link)


class DontFilterSpider(ItemSpider):
    """Equal requests, filtered and not."""

    name = "dont_filter"

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("leaf/root"), self.parse_root)

    def parse_root(self, response: Response) -> Iterator[Any]:
        """Ask for one page six times and for itself once."""
        yield self.leaf(response)
        url = self.at("leaf/twin")
        for _ in range(3):
            yield scrapy.Request(url, dont_filter=True)
            yield scrapy.Request(url)
        yield scrapy.Request(response.url)


class SelfishSpider(ItemSpider):
    """A start URL is not remembered, so a link to it is followed once."""

    name = "selfish"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("leaf/self")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page and itself again."""
        yield self.leaf(response)
        yield scrapy.Request(response.url)


class PrioritiesSpider(ItemSpider):
    """One request at a time: the site sees the order."""

    name = "priorities"
    custom_settings = {"CONCURRENT_REQUESTS": 1}  # noqa: RUF012 - Scrapy's own form

    async def start(self) -> AsyncIterator[Any]:
        """Begin; which of two start requests is first would depend on time."""
        yield scrapy.Request(self.at("hub/12", 1), self.parse_hub)

    def parse_hub(self, response: Response) -> Iterator[Any]:
        """Ask for pages of five priorities, and for one that comes last."""
        yield self.leaf(response)
        yield scrapy.Request(self.at("leaf/last-0", 1), priority=-99)
        for place in range(12):
            url = self.at(f"leaf/p-{place}", 1)
            yield scrapy.Request(url, priority=place % 5 * 10 - 20)


class FingerprintSpider(ItemSpider):
    """A project's own idea of sameness."""

    name = "fingerprint"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "REQUEST_FINGERPRINTER_CLASS": "equiv.middlewares.Forgetful"
    }

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("hub/1"), self.parse_hub)

    def parse_hub(self, response: Response) -> Iterator[Any]:
        """Ask for four pages, each with three queries."""
        yield self.leaf(response)
        for place in range(4):
            for query in range(3):
                yield scrapy.Request(self.at(f"leaf/f-{place}") + f"?q={query}")


class EditedSpider(ItemSpider):
    """A spider middleware of its own adds, drops and rescues."""

    name = "edited"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "SPIDER_MIDDLEWARES": {
            "equiv.stages.CallbackStage": 9000,
            "equiv.middlewares.Editor": 543,
        }
    }

    async def start(self) -> AsyncIterator[Any]:
        """Begin."""
        yield scrapy.Request(self.at("hub/6"), self.parse_hub)

    def parse_hub(self, response: Response) -> Iterator[Any]:
        """Follow; two of six links are dropped on their way."""
        for link in links(response):
            number = number_of(link)
            meta = {"drop": number % 3 == 0}
            yield scrapy.Request(link, self.parse_leaf, meta=meta)

    def parse_leaf(self, response: Response) -> list[Any]:
        """Give the page; one fails."""
        if response.url.endswith("leaf/5"):
            raise ValueError("rescue me")
        return [self.leaf(response)]
