"""What plain Scrapy hands from callback to callback: objects, not only data."""

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from functools import partial
from http import HTTPMethod, HTTPStatus
from ipaddress import ip_address, ip_interface
from types import MappingProxyType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import scrapy
from scrapy.http import Headers, Response, TextResponse
from scrapy.link import Link
from scrapy.loader import ItemLoader
from scrapy.selector import Selector

from ..items import Page
from .base import SiteSpider, links, number_of


class Basket:
    """An object of the project's own, which no tag stands for."""

    def __init__(self, **values: Any):
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basket) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # what it holds changes


class CountedRequest(scrapy.Request):
    """A request with something more, which no argument of it has."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.count: Any = None


class PageLoader(ItemLoader):
    """A loader of the project's own."""

    default_item_class = Page


def apart(response: Response, told: Any, basket: Basket) -> Iterator[Any]:
    """Give an item: a callback that belongs to no class."""
    assert isinstance(response.request, CountedRequest)
    yield {"url": response.url, "told": told, "count": str(response.request.count)}
    yield {"url": response.url, "basket": sorted(map(str, basket.values.items()))}


class LuggageSpider(SiteSpider):
    """Objects of Python's, Scrapy's and the project's in ``meta`` and ``cb_kwargs``,
    callbacks that are no methods, a request class; three pages deep. The links' pages
    are answered when ``together`` processes have asked."""

    name = "luggage"
    # So few that one process cannot hold all twelve.
    custom_settings = {"CONCURRENT_REQUESTS": 4}  # noqa: RUF012 - Scrapy's own form

    def __init__(self, together: str = "0", **kwargs: Any):
        super().__init__(**kwargs)
        self.together = int(together)
        self.start_urls = [self.at("hub/12")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow each link with all of it."""
        assert isinstance(response, TextResponse)
        for place, link in enumerate(links(response)):
            loader = PageLoader(response=response)
            loader.add_value("url", link)
            row = response.css("a")[place]
            values = {
                "ordered": OrderedDict(b=place, a=1),
                "default": defaultdict(list, {place: [1]}),
                "counter": Counter("abca"),
                "deque": deque([1, place], maxlen=2),
                "status": HTTPStatus.NOT_FOUND,
                "proxy": MappingProxyType({"a": place}),
                "space": SimpleNamespace(a=(1, place)),
                "third": Fraction(place, 3),
                "address": ip_address("::1"),
                "interface": ip_interface(f"10.0.0.{place}/8"),
                "pattern": re.compile(r"a|(b)", re.IGNORECASE),
                "zone": ZoneInfo("Europe/Paris"),
                "when": datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Asia/Tokyo")),
                "headers": Headers({"a": ["1", b"\xff"]}),
                "link": Link(link, "text", nofollow=True),
                "split": urlsplit(link),
                "verb": HTTPMethod.PUT,
                "type": Page,
                "basket": Basket(place=place),
            }
            yield response.follow(
                link,
                partial(self.parse_leaf, place=place),
                meta={
                    "hub": response,
                    "row": row,
                    "loader": loader,
                    "together": self.together,
                },
                cb_kwargs={"values": values},
                flags=[HTTPMethod.GET],
            )

    def parse_leaf(self, response: Response, place: int, values: Any) -> Iterator[Any]:
        """Give what arrived, and follow with what is made of it."""
        row, hub = response.meta["row"], response.meta["hub"]
        assert isinstance(row, Selector)
        assert row.xpath("..").getall() == hub.css("a")[place].xpath("..").getall()
        told = {name: text_of(value) for name, value in values.items()}
        yield {"url": response.url, "told": told}
        loader = response.meta["loader"]
        loader.add_value("number", number_of(response.url))
        yield loader.load_item()
        yield {
            "url": response.url,
            "hub": hub.url,
            "before": row.xpath("count(preceding::a)").get(),
            "up": len(row.xpath("ancestor::*")),
            "depth": hub.meta.get("depth"),
        }
        request = CountedRequest(
            self.at(f"leaf/then-{place}"),
            partial(apart, told=row.attrib["href"]),
            cb_kwargs={"basket": Basket(hub=hub.url, own=values["basket"] == 1)},
        )
        request.count = Counter({place: 1})
        yield request


def text_of(value: Any) -> str:
    """Return a text that tells type and value, and no address in memory."""
    match value:
        case Basket():
            text = str(value.values)
        case defaultdict():
            text = f"{value.default_factory} {dict(value)}"
        case Headers():
            text = str(sorted(value.items()))
        case _:
            text = repr(value)
    return f"{type(value).__name__} {text}"
