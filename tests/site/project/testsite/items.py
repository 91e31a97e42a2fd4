"""Items of every kind."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import attrs
import scrapy


class Shelf(Enum):
    """Where a page stands."""

    UPPER = "upper"
    LOWER = "lower"


class Size(NamedTuple):
    """Width and height."""

    width: int
    height: int


class PageItem(scrapy.Item):
    """Declares a field that no spider fills, as real projects do."""

    number = scrapy.Field()
    rating = scrapy.Field()
    title = scrapy.Field()


class PricedItem(scrapy.Item):
    """Has a serializer that changes the value."""

    number = scrapy.Field()
    price = scrapy.Field(serializer=lambda value: f"{value} EUR")


@dataclass
class Book:
    """A dataclass item."""

    number: int
    title: str = ""
    tags: list[str] = field(default_factory=list)
    size: Any = None


@attrs.frozen
class Card:
    """A frozen attrs item."""

    number: int
    shelf: Any = None
