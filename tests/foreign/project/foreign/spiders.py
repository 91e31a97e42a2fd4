"""Scrapy's test spiders under their class names, on a mock server given by arguments.

Every spider class of Scrapy's ``tests.spiders`` is here, without a change: a base class
in front of it makes what the tests pass as objects from what a command line can pass.
"""

import inspect
from importlib import import_module
from typing import Any

import attrs
from scrapy import Spider

from foreign.spread import host_of

# Not those of this project: Scrapy's are first on the path there.
foreign: Any = import_module("tests.spiders")


@attrs.frozen
class Server:
    """Stands for Scrapy's ``MockServer`` in a spider: where the running one is."""

    http: str
    https: str

    def url(self, path: str, is_secure: bool = False) -> str:
        """Return the URL of a path, on the host that is this path's."""
        port = self.https if is_secure else self.http
        return f"{'https' if is_secure else 'http'}://{host_of(path)}:{port}{path}"


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class Given:
    """Arguments of a command line as the tests of Scrapy pass them."""

    def __init__(self, *args: Any, http: str = "", https: str = "", **given: str):
        server = Server(http, https)
        values = {name: _value(text) for name, text in given.items()}
        for name in ("url", "seed"):
            if str(values.get(name, "")).startswith("/"):
                values[name] = server.url(values[name])
        super().__init__(*args, mockserver=server, **values)  # type: ignore[call-arg]  # Spider's


def _spiders() -> dict[str, type]:
    """Return a spider class for each of Scrapy's, by name."""
    found = {}
    for name, cls in inspect.getmembers(foreign, inspect.isclass):
        if issubclass(cls, Spider) and cls.__module__ == foreign.__name__:
            bases = (
                (Given, cls) if issubclass(cls, foreign.MockServerSpider) else (cls,)
            )
            found[name] = type(name, bases, {"name": name, "__module__": __name__})
    return found


globals().update(_spiders())
