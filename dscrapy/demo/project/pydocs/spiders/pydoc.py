"""Crawls sites that ``python -m pydoc`` serves, a part of the modules on each."""

import re
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import scrapy
from parsel import Selector
from scrapy.http import Response

from pydocs.items import ModulePage

# pydoc imports what it documents. These act when imported (a browser opens, a
# program starts), want a display, or are tests and not documentation.
ACTING = frozenset(
    {
        "antigravity",
        "idlelib",
        "lib2to3",
        "msilib",
        "test",
        "tests",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
        "xxlimited",
        "xxlimited_35",
        "xxsubtype",
    }
)
MODULE = re.compile(r"([A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*)\.html\Z")


class PydocSpider(scrapy.Spider):
    """Arguments: ``sites``, addresses with commas between; ``limit``, pages at most.

    Each site is asked for a part of the modules. Which pages are visited depends on the
    sites alone, never on the order of answers: each page is given a share of the limit
    for the pages below it.
    """

    name = "pydoc"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        # A site answers one request at a time, and beside it this machine crawls.
        "DOWNLOAD_DELAY": 0.05,
        # The sites are this machine's own.
        "HTTPPROXY_ENABLED": False,
    }

    def __init__(self, sites: str = "", limit: str = "300", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not sites or not limit.isdecimal():
            raise ValueError("usage: -a sites=URL[,URL...] [-a limit=PAGES]")
        self.sites = [site.rstrip("/") + "/" for site in sites.split(",")]
        self.limit = int(limit)

    async def start(self) -> AsyncIterator[Any]:
        """Begin at each site's index of modules."""
        for part, site in enumerate(self.sites):
            yield scrapy.Request(f"{site}index.html", cb_kwargs={"part": part})

    def parse(self, response: Response, part: int = 0, **kwargs: Any) -> Iterator[Any]:
        """Follow this site's part of the index."""
        parts = len(self.sites)
        links = response.xpath('//td[@class="multicolumn"]/a')
        names = module_names(links)
        found = [name for name in names if part_of(name, parts) == part]
        packages = set(module_names(links.xpath("self::a[strong]")))
        left = self.limit // parts - 1
        # A third of the limit is for what lies below the index.
        chosen = found[: left - left // 3]
        yield from self.follow(response, chosen, packages, left - len(chosen))

    def parse_module(self, response: Response, share: int) -> Iterator[Any]:
        """Give the page's item; follow at most ``share`` pages below it."""
        title = response.xpath("normalize-space(//title)").get("")
        name = response.url.rsplit("/", 1)[1].removesuffix(".html")
        if response.xpath('//td[contains(@class, "error-decor")]'):
            # A module of another system, or one whose own imports are missing.
            self.crawler.stats.inc_value("pydoc/not_importable")
            return
        yield ModulePage(
            url=response.url,
            module=name,
            title=title.removeprefix("Pydoc: "),
            synopsis=synopsis(response),
            classes=len(response.xpath('//a[@name and starts-with(., "class ")]')),
            functions=len(response.xpath('//a[starts-with(@name, "-")]')),
            links=len(set(module_names(response.xpath("//a")))),
        )
        links = response.xpath('//td[@class="multicolumn"]/a')
        below = [
            child for child in module_names(links) if child.rpartition(".")[0] == name
        ]
        packages = set(module_names(links.xpath("self::a[strong]")))
        chosen = below[:share]
        yield from self.follow(response, chosen, packages, share - len(chosen))

    def follow(
        self, response: Response, names: list[str], packages: set[str], left: int
    ) -> Iterator[scrapy.Request]:
        """Request these pages; the packages among them share what is left."""
        sharing = [name for name in names if name in packages]
        for name in names:
            share = 0
            if name in packages:
                each, over = divmod(left, len(sharing))
                share = each + (sharing.index(name) < over)
            yield response.follow(
                f"{name}.html", self.parse_module, cb_kwargs={"share": share}
            )


def module_names(links: Iterable[Selector]) -> Iterator[str]:
    """Yield the modules that these links name, each once, none that acts."""
    seen = set()
    for link in links:
        match = MODULE.match(link.attrib.get("href", ""))
        if match and match[1] not in seen and ACTING.isdisjoint(match[1].split(".")):
            seen.add(match[1])
            if match[1] not in ("index", "topics", "keywords"):
                yield match[1]


def part_of(name: str, parts: int) -> int:
    """Return which part a module belongs to, from 0; the same in every process."""
    return zlib.crc32(name.encode()) % parts


def synopsis(response: Response) -> str:
    """Return the first line of the module's own documentation."""
    body = response.xpath('string(//p/span[@class="code"][1])').get("")
    # Some modules have a comment where others have their documentation.
    lines = (line.replace("\xa0", " ").strip(" #") for line in body.splitlines())
    return next((line for line in lines if line), "")
