"""A spider that asks for more when it is idle, and when it is opened."""

from collections.abc import Iterator
from typing import Any

import scrapy
from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider, DontCloseSpider
from scrapy.http import Response


class IdlesSpider(scrapy.Spider):
    """``rounds`` new pages at each idle; ``how`` says what else it does then."""

    name = "idles"
    custom_settings = {"LOG_LEVEL": "INFO"}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, site: str, rounds: str = "0", how: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.site = site
        self.start_urls = [f"{site}/p/first"]
        self.rounds = int(rounds)
        self.how = how
        self.idles = 0

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> "IdlesSpider":
        """Connect the handlers."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.on_idle, signals.spider_idle)
        crawler.signals.connect(spider.on_opened, signals.spider_opened)
        return spider

    def ask(self, name: str) -> None:
        """Ask for a page beside all callbacks."""
        self.crawler.engine.crawl(scrapy.Request(f"{self.site}/p/{name}"))

    def ask_here(self, name: str) -> None:
        """Ask with a closure, which no other process could call."""

        def inside(response: Response) -> Any:
            return {"page": name}

        self.crawler.engine.crawl(
            scrapy.Request(f"{self.site}/p/{name}", callback=inside)
        )

    def on_opened(self) -> None:
        """Ask for two pages."""
        if self.how == "opened":
            self.ask("opened")
            self.ask_here("openedlocal")

    def on_idle(self) -> None:
        """Ask for what ``how`` and ``rounds`` say."""
        self.idles += 1
        self.logger.info("idle %d", self.idles)
        if self.idles <= self.rounds:
            self.ask(f"idle{self.idles}a")
            self.ask(f"idle{self.idles}b")
            if self.how == "dontclose":
                raise DontCloseSpider
            return
        match self.how:
            case "again":
                # The same at each idle, for ever.
                self.ask("first")
            case "lambda" if self.idles == 1:
                self.ask_here("lambda")
            case "dontclose" if self.idles == self.rounds + 1:
                raise DontCloseSpider
            case "close":
                raise CloseSpider("idled")

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Yield the page's name."""
        yield {"page": response.url.rpartition("/")[2]}
        if self.how == "closecallback":
            raise CloseSpider("seen")
