"""Classes as a project would have them, for the tests of the codec."""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import attrs
import scrapy


class Color(Enum):
    """An enum whose values are not JSON."""

    RED = b"red"
    BLUE = (0, 0, 1)


class Point(NamedTuple):
    """A namedtuple."""

    x: int
    name: str


class Declared(scrapy.Item):
    """An item whose fields are declared in another order than they are set."""

    a = scrapy.Field()
    b = scrapy.Field()
    never = scrapy.Field()


@dataclass(frozen=True)
class Data:
    """A frozen dataclass item."""

    first: Any
    second: Any = None


@dataclass(slots=True)
class Slotted:
    """A dataclass item without a dict."""

    first: Any


@attrs.frozen
class Attr:
    """An attrs item whose init must not run again."""

    first: Any

    def __attrs_post_init__(self) -> None:
        assert self.first != "built by init"


class NotAnItem:
    """A class that no tag stands for."""


class Trap:
    """An object whose construction or representation acts."""

    def __repr__(self) -> str:
        raise RuntimeError("repr was called")


class Odd(OrderedDict[str, int]):
    """A dict of the project's own."""


class Text(str):
    """A str of the project's own, as lxml's strings are."""

    __slots__ = ()


class OwnRequest(scrapy.Request):
    """A request class of the project's own with an attribute more."""

    attributes: tuple[str, ...] = (*scrapy.Request.attributes, "extra")

    def __init__(self, *args: Any, extra: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = extra


class PoorRequest(scrapy.Request):
    """A request class that its public attributes cannot build."""

    def __init__(self, *args: Any, needed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needed = needed

    def replace(self, *args: Any, **kwargs: Any) -> Any:
        """Return a copy."""
        return super().replace(*args, needed=self.needed, **kwargs)
