"""What requests and items carry with them, and what pipelines make of it."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import scrapy
from itemadapter import ItemAdapter
from scrapy.http import Response

from ..items import Book, Card, Label, Page
from .base import SiteSpider, links, number_of


class CarriedSpider(SiteSpider):
    """Values of many types in ``cb_kwargs`` and ``meta``, requests among them."""

    name = "carried"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/6")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow with luggage."""
        for link in links(response):
            number = number_of(link)
            values = {
                "raw": bytes([number, 255, 0]),
                "pair": (number, ("nested", b"\x80")),
                "unique": {number, "text", (1, 2)},
                "frozen": frozenset({1, 2}),
                "when": datetime(2024, 2, 29, 12, number, tzinfo=UTC),
                "naive": datetime(2024, 2, 29, 12, number),  # noqa: DTZ001 - carried
                "day": date(2024, 2, 29),
                "span": timedelta(days=1, microseconds=number),
                "exact": Decimal("0.10"),
                "keys": {1: "one", (2, 3): "pair", "$b": "dollar"},
                "nothing": None,
            }
            items = {
                "page": Page(url=link, number=number),
                "book": Book(link, number, ["a", "b"]),
                "card": Card(link, number),
                "label": Label(url=link, number=number, parts=("x", "y")),
            }
            then = scrapy.Request(
                self.at(f"leaf/then-{number}"),
                self.parse_then,
                cb_kwargs={"path": ("a", b"b"), "item": items["book"]},
            )
            yield scrapy.Request(
                link,
                self.parse_leaf,
                meta={"items": items, "then": then},
                cb_kwargs={"values": values},
            )

    def parse_leaf(self, response: Response, values: Any) -> Iterator[Any]:
        """Give what arrived, with its types, and the request that came along."""
        items = response.meta["items"]
        told = {key: [type(one).__name__, shown(one)] for key, one in values.items()}
        kinds = [type(one).__name__ for one in items.values()]
        fields = [dict(ItemAdapter(one)) for one in items.values()]
        yield {"url": response.url, "told": told, "kinds": kinds, "fields": str(fields)}
        yield response.meta["then"]

    def parse_then(self, response: Response, path: Any, item: Any) -> Iterator[Any]:
        """Give what a carried request carried."""
        yield {"url": response.url, "path": shown(path), "item": repr(item)}


def shown(value: Any) -> str:
    """Return a text that does not depend on the order of a set."""
    if isinstance(value, set | frozenset):
        return str(sorted(map(repr, value)))
    return repr(value)


class LambdasSpider(SiteSpider):
    """Callbacks that no other process could call."""

    name = "lambdas"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/8")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow with closures, one of them an errback."""
        for place, link in enumerate(links(response)):
            yield scrapy.Request(link, callback=self.closing(place))
        failed: Callable[[Any], Any] = lambda failure: [{"failed": str(failure.value)}]  # noqa: E731 - what the spider is about
        yield scrapy.Request(self.at("status/404/lambda"), errback=failed)

    def closing(self, place: int) -> Callable[[Response], Any]:
        """Return a callback that gives the page and follows with another."""

        def then(answer: Response) -> list[Any]:
            return [self.leaf(answer, after=place)]

        second = scrapy.Request(self.at(f"leaf/second-{place}"), callback=then)
        return lambda response: [self.leaf(response, place=place), second]


class ItemTypesSpider(SiteSpider):
    """Items of every type, and one within another."""

    name = "item_types"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/10")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Any:
        """Give an item of the type that the page's number says."""
        url, number = response.url, number_of(response.url)
        match number % 5:
            case 0:
                return {"url": url, "number": number, "day": date(2024, 2, 29)}
            case 1:
                return Page(url=url, number=number, price=number)
            case 2:
                return Book(url, number, ["ä", "b"])
            case 3:
                return [Card(url, number)]
            case _:
                return [Label(url=url, number=number, parts=("x",))]


class PipesSpider(SiteSpider):
    """Pipelines that wait, replace, drop and raise."""

    name = "pipes"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ITEM_PIPELINES": {
            "equiv.stages.PipelineStage": 1,
            "equiv.pipelines.Waiting": 100,
            "equiv.pipelines.Checks": 200,
        }
    }

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/20")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give the page's item."""
        yield {"url": response.url, "number": number_of(response.url)}


class FilesSpider(SiteSpider):
    """Files, half of them shared between items; FILES_STORE comes with the run."""

    name = "files"
    custom_settings = {  # noqa: RUF012 - Scrapy's own form
        "ITEM_PIPELINES": {
            "equiv.stages.PipelineStage": 1,
            "equiv.pipelines.Files": 100,
            "equiv.pipelines.Tidy": 200,
        },
        # A process that dies may leave half a file; it is fetched again, not trusted.
        "FILES_EXPIRES": 0,
    }

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.at("hub/6")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            yield response.follow(link, self.parse_leaf)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give an item with two files."""
        number = number_of(response.url)
        files = [self.at(f"media/shared-{number % 2}"), self.at(f"media/own-{number}")]
        yield {"url": response.url, "file_urls": files}
