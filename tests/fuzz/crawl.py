"""Targets: what a crawl process decodes: values, requests, stats.

Decoding builds instances of the project's own classes and of a few of Python's own,
and imports nothing that is not the project's.
"""

import contextlib
import json
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC
from fractions import Fraction
from functools import partial
from http import HTTPStatus
from importlib import import_module
from ipaddress import ip_address
from types import MappingProxyType, SimpleNamespace
from typing import Any

import msgspec
import scrapy
from itemadapter import ItemAdapter
from scrapy.http.request import NO_CALLBACK

from dscrapy.control.state.job_stats import Totals
from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.pickles import Pickles
from dscrapy.crawl.codec.request_bodies import RequestCodec
from dscrapy.crawl.codec.stdlib_types import BUILTINS
from dscrapy.crawl.codec.tags import UndecodableError, UnencodableError
from dscrapy.crawl.scrapy_side.stats_collector import merged
from dscrapy.model import Stats
from tests.fuzz.catalogue import Tally, Target
from tests.fuzz.draw import CLASSES, Draw, json_of, tree_of
from tests.unit import project_classes

# Two tags stand for values of these packages, which may be imported for them.
for _name in ("dateutil.tz", "scrapy_poet"):
    with contextlib.suppress(ImportError):
        import_module(_name)

PROJECT = "tests.unit.project_classes"
OWN = frozenset({PROJECT})
# Modules of what tags without a class stand for.
PLAIN = frozenset(
    {"builtins", "datetime", "decimal", "uuid", "pathlib", "zoneinfo", "complex"}
    | {"collections", "fractions", "http", "ipaddress", "re", "types"}
)


class Spider(scrapy.Spider):
    """A spider with one method that callbacks may name."""

    name = "fuzzed"

    def parse(self, response: Any, **kwargs: Any) -> None:
        """Take a response."""


def _is_project(module: str) -> bool:
    return module == PROJECT


FIND = tags.class_finder(_is_project)


def _assert_built(value: Any, depth: int = 0) -> None:
    """Check that only classes that may be built were."""
    kind = type(value)
    is_plain = kind.__module__ in PLAIN or isinstance(value, scrapy.Request)
    # A stand-in of a lenient reader is an item of no module.
    assert is_plain or kind.__module__ in OWN or kind.__mro__[1] is scrapy.Item, kind
    if kind.__module__ in OWN and tags.is_item_class(kind):
        for child in ItemAdapter(value).values():
            _assert_built(child, depth + 1)
    elif isinstance(value, dict):
        for key, child in value.items():
            _assert_built(key, depth + 1)
            _assert_built(child, depth + 1)
    elif isinstance(value, MappingProxyType):
        _assert_built(value.copy(), depth + 1)
    elif isinstance(value, SimpleNamespace):
        _assert_built(vars(value), depth + 1)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for child in value:
            _assert_built(child, depth + 1)


def _values(data: bytes, tally: Tally) -> None:
    """A tree is a value of classes that may be, or undecodable; lenient or not."""
    draw = Draw(data)
    is_lenient = bool(draw.below(2))
    try:
        tree = json.loads(json_of(draw))
    except (ValueError, RecursionError):
        return
    tally.frames += 1
    modules = frozenset(sys.modules)
    try:
        value = tags.untag(tree, FIND, lenient=is_lenient)
    except UndecodableError:
        return
    finally:
        _assert_nothing_imported(modules)
    _assert_built(value)
    if not is_lenient:
        try:
            again = tags.tag(value)
        except UnencodableError:
            # Deeper than what is written; a zone whose key is not its name.
            return
        tags.untag(again, FIND)


def _assert_nothing_imported(before: frozenset[str]) -> None:
    new = {
        name for name in sys.modules.keys() - before if not name.startswith("tzdata")
    }
    assert not new, new


def _value_seeds() -> list[bytes]:
    values = (
        project_classes.Data({"a": (1, b"x")}, {1, 2}),
        project_classes.Declared(a=1, b=[1.5, None]),
        project_classes.Color.BLUE,
        project_classes.Point(1, "x"),
        project_classes.Attr("é"),
        OrderedDict(a=Counter(b=1)),
        defaultdict(deque, {1: deque([2], 3)}),
        MappingProxyType({"a": SimpleNamespace(b=Fraction(1, 2))}),
        [HTTPStatus.OK, ip_address("::1"), re.compile("a|(b)", re.I), UTC],
    )
    plain = [b"\0\0" + json.dumps(tags.tag(value)).encode() for value in values]
    trees = (
        tree
        for path in CLASSES
        for tree in ({"$i": [path, ["a"], {"a": 1}]}, {"$i": [path, [], {}]})
    )
    names = [b"\0\0" + json.dumps(tree).encode() for tree in trees]
    return [
        *plain,
        *names,
        *(bytes((at * step) % 256 for at in range(60)) for step in (3, 5, 7)),
    ]


VALUES = Target(run=_values, seeds=_value_seeds, bytes_max=2048)


# ---- requests ----------------------------------------------------------------------

SPIDER = Spider()
REQUESTS_CODEC = RequestCodec(SPIDER, _is_project, Pickles(b"key of no job"))
ATTRIBUTES = (
    *("url", "callback", "errback", "class", "headers", "body", "method", "meta"),
    *("cookies", "cb_kwargs", "flags", "priority", "dont_filter", "encoding", "extra"),
)


def _requests(data: bytes, tally: Tally) -> None:
    """A body is a request of a class that may be, with methods of the spider as its
    callbacks, or undecodable."""
    draw = Draw(data)
    if draw.below(4):
        tree: dict[str, Any] = {"url": "http://a.example/"}
        while not draw.is_empty:
            tree[draw.pick(ATTRIBUTES)] = tree_of(draw, 3)
        body = json.dumps(tree).encode()
    else:
        body = draw.rest()
    tally.frames += 1
    modules = frozenset(sys.modules)
    try:
        request = REQUESTS_CODEC.decode(body)
    except UndecodableError:
        return
    finally:
        new = sys.modules.keys() - modules
        # Python's own, for the names of encodings and zones.
        named = {"scrapy.http", "encodings", "stringprep", "tzdata"}
        assert all(name.startswith(tuple(named)) for name in new), new
    assert isinstance(request, scrapy.Request)
    assert type(request).__module__.startswith(("scrapy.http", PROJECT))
    for callback in (request.callback, request.errback):
        is_none = callback is None or callback is NO_CALLBACK
        function: Any = callback
        while isinstance(function, partial):
            function = function.func
        is_own = getattr(function, "__self__", None) is SPIDER
        is_named = getattr(function, "__module__", None) in OWN
        # What has none of these is a finding.
        assert is_none or is_own or is_named or function in BUILTINS.values()


def _request_seeds() -> list[bytes]:
    spider = SPIDER
    requests = (
        scrapy.Request("http://a.example/x?q=1", callback=spider.parse, meta={"a": 1}),
        scrapy.FormRequest(
            "http://a.example/", formdata={"a": "b"}, cb_kwargs={"x": b"\xff"}
        ),
        project_classes.OwnRequest("http://a.example/", extra=project_classes.Data(1)),
        scrapy.Request(
            "http://b.example/", headers={"A": ["1", b"\xff"]}, cookies={"c": "d"}
        ),
        scrapy.Request(
            "http://c.example/",
            callback=partial(spider.parse, a=project_classes.Point),
            meta={"luggage": project_classes.luggage()},
            cb_kwargs={"pickled": project_classes.NotAnItem()},
        ),
    )
    return [
        *(b"\0" + REQUESTS_CODEC.encode(request).body for request in requests),
        *(
            b"\1" + bytes((at * step) % 256 for at in range(40))
            for step in (3, 5, 7, 9)
        ),
    ]


REQUESTS = Target(run=_requests, seeds=_request_seeds, bytes_max=2048)


# ---- stats -------------------------------------------------------------------------

KEYS = (
    *("a", "start_time", "finish_time", "item_scraped_count", "finish_reason", ""),
    *("response_received_count", "memusage/max", "request_depth_max", "x" * 300),
)


def _stats(data: bytes, tally: Tally) -> None:
    """Deltas of any values sum up to stats that encode, and that a process can show."""
    draw, totals = Draw(data), Totals()
    while not draw.is_empty:
        tally.frames += 1
        operation = draw.pick(("sum", "max", "min", "last", "other"))
        raw = msgspec.Raw(json_of(Draw(draw.take(draw.below(40)))))
        if draw.below(2):
            raw = draw.struct(_OneRaw).value
        try:
            raw = msgspec.json.decode(bytes(raw), type=msgspec.Raw)
        except msgspec.DecodeError:
            # The decoder of messages lets no such value through.
            continue
        totals.merge({operation: {draw.pick(KEYS): raw}})
    final = totals.final("finished")
    msgspec.json.decode(msgspec.json.encode(final), type=Stats)
    assert Totals.decode(totals.encode()).encode() == totals.encode()
    try:
        merged(final)
    except UndecodableError:
        return


class _OneRaw(msgspec.Struct):
    value: msgspec.Raw


def _stat_seeds() -> list[bytes]:
    return [bytes((at * step) % 256 for at in range(80)) for step in (3, 5, 7, 9, 11)]


STATS = Target(run=_stats, seeds=_stat_seeds, bytes_max=1024)
