"""Crawls any site, page by page, within its own host."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy.http import Response, TextResponse
from scrapy.linkextractors import LinkExtractor


class LinksSpider(scrapy.Spider):
    """Arguments: ``site``, where to begin; ``limit``, pages at most.

    It obeys robots.txt and stays on the site's host.
    """

    name = "links"
    custom_settings = {"ROBOTSTXT_OBEY": True}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, site: str = "", limit: str = "150", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if "://" not in site or not limit.isdecimal():
            raise ValueError("usage: -a site=URL [-a limit=PAGES]")
        self.start_urls = [site]
        self.left = int(limit) - 1

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page's title and number of links; follow them."""
        if not isinstance(response, TextResponse):
            return
        host = urlsplit(response.url).netloc
        links = LinkExtractor(allow_domains=[host]).extract_links(response)
        title = response.xpath("normalize-space(//title)").get("")
        yield {"url": response.url, "title": title, "links": len(links)}
        for link in links:
            if self.left > 0:
                self.left -= 1
                yield response.follow(link)
