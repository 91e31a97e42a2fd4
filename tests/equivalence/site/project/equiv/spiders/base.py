"""What the spiders share: where pages are, and their arguments."""

import zlib
from typing import Any

import scrapy
from scrapy.http import Response, TextResponse

HOSTS = 8
# Nobody listens there.
DEAD_PORT = 1


class SiteMixin:
    """Arguments: the site's ``port``, ``ms`` for each answer, ``stages`` (a socket)."""

    def __init__(self, port: str, ms: str = "0", stages: str = "", **kwargs: Any):
        self.port = int(port)
        self.ms = int(ms)
        self.stages = stages
        super().__init__(**kwargs)

    def at(self, path: str, host: int = 0) -> str:
        """Return a page's address, on the host that its path gives it or on this."""
        number = host or 1 + zlib.crc32(path.encode()) % HOSTS
        return f"http://127.0.0.{number}:{self.port}/{path}"

    def leaf(self, response: Response, **more: Any) -> dict[str, Any]:
        """Return a page's item."""
        assert isinstance(response, TextResponse)
        title = response.css("title::text").get()
        return {"url": response.url, "title": title, **more}


class SiteSpider(SiteMixin, scrapy.Spider):
    """A plain spider of the site."""


def links(response: Response) -> list[str]:
    """Return the addresses of a page's links."""
    assert isinstance(response, TextResponse)
    return [response.urljoin(link) for link in response.css("a::attr(href)").getall()]


def number_of(url: str) -> int:
    """Return the number at the end of an address."""
    return int(url.rstrip("/").rpartition("/")[2].rpartition("-")[2])
