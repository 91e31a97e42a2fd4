"""Scrapy's own kinds of spiders."""

from collections.abc import Iterable, Iterator
from typing import Any

import scrapy
from scrapy.http import Response
from scrapy.linkextractors import LinkExtractor
from scrapy.spiders import (
    CrawlSpider,
    CSVFeedSpider,
    Rule,
    SitemapSpider,
    XMLFeedSpider,
)

from .base import SiteMixin


class RulesSpider(SiteMixin, CrawlSpider):
    """Rules that follow a tree of 15 pages."""

    name = "crawl_rules"
    rules = (
        Rule(
            LinkExtractor(allow=r"/tree/"),
            callback="parse_page",
            follow=True,
            process_links="rotate",
            process_request="mark",
        ),
    )

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("tree/3/2/")]

    def rotate(self, found: list[Any]) -> list[Any]:
        """Return the links in another order."""
        return found[::-1]

    def mark(self, request: scrapy.Request, response: Response) -> scrapy.Request:
        """Return the request with where it came from."""
        request.meta["from"] = response.url
        return request

    def parse_page(self, response: Response) -> Iterator[Any]:
        """Give the page."""
        text = response.meta["link_text"]
        yield self.leaf(response, before=response.meta["from"], text=text)


class MapSpider(SiteMixin, SitemapSpider):
    """An index of three site maps, two rules."""

    name = "sitemap"
    sitemap_rules = [("/leaf/", "parse_leaf"), ("/status/", "parse_status")]  # noqa: RUF012 - its form

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.sitemap_urls = [self.at("sitemaps.xml")]

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give the page."""
        yield self.leaf(response)

    def parse_status(self, response: Response) -> Iterator[Any]:
        """Never called: these pages are missing."""
        yield {"unexpected": response.url}


class XmlSpider(SiteMixin, XMLFeedSpider):
    """A feed of 25 entries on two hosts; three link on to pages they share."""

    name = "xmlfeed"
    itertag = "entry"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("feed.xml", host) for host in (1, 2)]

    def parse_node(self, response: Response, selector: Any) -> Iterable[Any]:
        """Give the entry."""
        number = int(selector.xpath("@id").get())
        yield {"url": response.url, "name": selector.xpath("name/text()").get()}
        if number < 3:
            url = self.at(f"leaf/entry-{number}")
            yield scrapy.Request(url, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give the page."""
        yield self.leaf(response)


class CsvSpider(SiteMixin, CSVFeedSpider):
    """A feed of 25 rows on two hosts."""

    name = "csvfeed"
    delimiter = ";"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("feed.csv", host) for host in (1, 2)]

    def parse_row(self, response: Response, row: dict[str, str]) -> dict[str, Any]:
        """Give the row."""
        return {"url": response.url, **row}
