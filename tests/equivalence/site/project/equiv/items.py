"""Items of every kind that Scrapy knows."""

from dataclasses import dataclass, field
from datetime import date

import attrs
import pydantic
import scrapy


class Page(scrapy.Item):
    """Declares a field that no spider fills."""

    url = scrapy.Field()
    number = scrapy.Field()
    price = scrapy.Field(serializer=lambda value: f"{value} EUR")
    never = scrapy.Field()


@dataclass
class Book:
    """A dataclass item."""

    url: str
    number: int
    tags: list[str] = field(default_factory=list)


@attrs.define
class Card:
    """An attrs item."""

    url: str
    number: int
    on: date = date(2024, 2, 29)


class Label(pydantic.BaseModel):
    """A pydantic item."""

    url: str
    number: int
    parts: tuple[str, ...] = ()
