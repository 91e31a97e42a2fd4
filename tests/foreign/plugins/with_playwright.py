"""Pages that scrapy-playwright changes in a browser before they are parsed."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy_playwright.page import PageMethod

LAUNCH = {"executable_path": os.environ.get("CHROMIUM"), "args": ["--no-sandbox"]}


class PlaywrightSpider(scrapy.Spider):
    """Asks for ``count`` pages, in ``hosts`` download slots, with what to do there."""

    name = "with_playwright"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "DOWNLOAD_HANDLERS": {
            "http": "scrapy_playwright.handler.ScrapyPlaywrightDownloadHandler"
        },
        "PLAYWRIGHT_LAUNCH_OPTIONS": LAUNCH,
        "CONCURRENT_REQUESTS": 2,
    }

    def __init__(self, site: str, count: str, hosts: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.site, self.count, self.hosts = site, int(count), int(hosts)

    async def start(self) -> AsyncIterator[Any]:
        """Ask for the first page, without a browser."""
        yield scrapy.Request("data:,first")

    def parse(self, response: Any, **kwargs: Any) -> Iterator[Any]:
        """Ask for the others."""
        for number in range(self.count):
            title = f"document.title = 'number {number}'"
            methods = [
                PageMethod("evaluate", title),
                PageMethod("wait_for_selector", "head", state="attached"),
            ]
            yield scrapy.Request(
                f"{self.site}/p/{number}",
                self.changed,
                meta={
                    "playwright": True,
                    "playwright_page_methods": methods,
                    "download_slot": f"slot-{number % self.hosts}",
                },
            )

    def changed(self, response: Any) -> Iterator[Any]:
        """Give what the page says now."""
        yield {"title": response.css("title::text").get()}
