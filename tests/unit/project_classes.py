"""Classes as a project would have them, for the tests of the codec."""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import Any, NamedTuple

import attrs
import scrapy
from itemloaders.processors import MapCompose
from scrapy.http import HtmlResponse
from scrapy.link import Link
from scrapy.loader import ItemLoader
from scrapy.selector import Selector


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

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def top_level(response: Any, **kwargs: Any) -> list[Any]:
    """Return what it was given: a callback outside of any class."""
    return [response, kwargs]


class OwnLoader(ItemLoader):
    """A loader of the project's own."""

    default_item_class = dict
    first_in = MapCompose(str.strip)


class OwnHtml(HtmlResponse):
    """A response class of the project's own."""


PAGE = """<!DOCTYPE html>
<html><head><title>é</title></head><body><!-- x -->
<table><tr id=a><td>1<td>one<tr id=b><td>2<td>two</table><p>tail</body></html>"""


def page(text: str = PAGE, **values: Any) -> HtmlResponse:
    """Return a response as Scrapy hands it to a callback."""
    request = scrapy.Request("http://a.example/page", meta={"depth": 1}, **values)
    return HtmlResponse(
        request.url,
        headers={"Content-Type": "text/html; charset=utf-8"},
        body=text.encode(),
        request=request,
        flags=["cached"],
        ip_address=ip_address("10.0.0.1"),
        protocol="HTTP/1.1",
    )


def luggage() -> dict[str, Any]:
    """Return what plain Scrapy hands around: one value of each of its types."""
    response = page()
    loader = ItemLoader(item=Declared(a=1), response=response, note="x")
    loader.add_css("b", "td::text")
    return {
        "headers": response.headers,
        "link": Link("http://a.example/", "text", "fragment", nofollow=True),
        "response": response,
        "row": response.css("tr")[1],
        "rows": response.css("tr"),
        "attribute": response.css("tr::attr(id)"),
        "json": Selector(text='{"a": [1, {"b": 2}]}', type="json").jmespath("a[1]"),
        "xml": Selector(text="<a xmlns='u'><b/>t</a>", type="xml").xpath("//*")[1],
        "loader": loader,
        "nested": loader.nested_css("tr"),
    }


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

    def __init__(self, *args: Any, needed: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needed = needed

    def replace(self, *args: Any, **kwargs: Any) -> Any:
        """Return a copy."""
        return super().replace(*args, needed=self.needed, **kwargs)


class SlottedRequest(scrapy.Request):
    """A request class with slots of its own, private and never set ones."""

    __slots__ = ("__private", "never", "wait")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wait = [1]
        self.__private = (2,)

    def state(self) -> tuple[Any, ...]:
        """Return what it holds, and whether what was never set is so."""
        return self.wait, self.__private, hasattr(self, "never")
