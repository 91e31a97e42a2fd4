"""Requests as bodies: what is kept, what is refused, what is told by a digest."""

import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import pytest
import scrapy
from scrapy import FormRequest, Request
from scrapy.http import JsonRequest, XmlRpcRequest
from scrapy.http.request import NO_CALLBACK

from dscrapy.crawl.codec.request_bodies import (
    OWN_BYTES_MAX,
    RequestCodec,
    short_digest,
    wire_fingerprint,
)
from dscrapy.crawl.codec.tags import LEAF_BYTES_MAX, UndecodableError, UnencodableError
from tests.unit.project_classes import (
    Color,
    Data,
    Declared,
    NotAnItem,
    OwnRequest,
    Point,
    PoorRequest,
    SlottedRequest,
    Text,
    top_level,
)

URL = "http://a.example/x?q=1"


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Base(scrapy.Spider):
    """A spider whose subclass has put another method in place of its own."""

    name = "base"

    def replaced(self, response: Any) -> None:
        """Do nothing."""

    def __mangled(self, response: Any) -> None:
        """Do nothing."""

    def mangled(self) -> Any:
        """Return a method whose name in the class is another."""
        return self.__mangled


class OwnSpider(Base):
    """A spider with callbacks of every kind."""

    @property
    def trap(self) -> Any:
        """Fail: nobody who looks for methods may come here."""
        raise AssertionError

    def found(self, response: Any) -> None:
        """Do nothing."""

    def on_error(self, failure: Any) -> None:
        """Do nothing."""

    def replaced(self, response: Any) -> None:
        """Do nothing else."""

    @decorated
    def wrapped(self, response: Any) -> None:
        """Do nothing."""

    @staticmethod
    def static(response: Any) -> None:
        """Do nothing."""

    def of_base(self) -> Any:
        """Return the method that this class replaces."""
        return super().replaced


spider = OwnSpider()
codec = RequestCodec(spider, lambda module: module.startswith("tests.unit"))


def same(left: Request, right: Request) -> None:
    """Check that the requests are equal in class and all that is public."""
    assert type(left) is type(right)
    for name in left.attributes:
        one, other = getattr(left, name), getattr(right, name)
        if name == "meta" and "request" in one:
            same(one["request"], other["request"])
            one, other = {**one, "request": 0}, {**other, "request": 0}
        assert type(one) is type(other), name
        assert one == other, name
    if isinstance(left, PoorRequest):
        assert left.needed == right.needed  # type: ignore[attr-defined]  # same class
    if isinstance(left, SlottedRequest):
        assert left.state() == right.state()  # type: ignore[attr-defined]  # same class


@pytest.mark.parametrize(
    "request_",
    [
        Request(URL),
        Request(
            URL,
            callback=spider.found,
            errback=spider.on_error,
            method="PUT",
            headers={"A": ["1", b"\xff\x00"], "Empty": [], "b-c": "é"},
            body="é",
            cookies={"a": "b"},
            encoding="latin-1",
            priority=-7,
            dont_filter=True,
            flags=["x"],
            cb_kwargs={"a": (1, {2}, b"\x00"), "b": None},
            meta={
                "depth": 3,
                "download_latency": 0.25,
                "when": datetime(2020, 1, 1, tzinfo=UTC),
                "item": Declared(a=Decimal("1.5")),
                "data": Data({1: Point(1, "x")}, Color.RED),
                "request": Request(URL, callback=spider.found, meta={"$b": [1]}),
                "lone": "\ud800",
            },
        ),
        Request(URL, cookies=[{"name": "a", "value": "b", "secure": True}]),
        Request(URL, body=b"\xff\xfe"),
        Request(URL, callback=NO_CALLBACK),
        Request(URL, callback=spider.wrapped, errback=spider.mangled()),
        Request("data:,x"),
        Request("http://a.example/%zz|", meta={"verbatim_url": True}),
        FormRequest(URL, formdata={"a": ["1", "2"]}),
        FormRequest(URL, method="GET", formdata={"a": "1"}),
        JsonRequest(URL, data={"b": 1, "a": [2]}, dumps_kwargs={"sort_keys": False}),
        XmlRpcRequest(URL, params=(1,), methodname="m", dont_filter=False),
        OwnRequest(URL, extra={"tuple": (1, 2)}),
        Request(URL, meta={"x": HTTPStatus.OK, "l": ["x" * 99, b"\xff"] * 300}),
        Request(URL, body="x" * 20_000, meta={"x": ["y" * 20_000, b"\xff" * 20_000]}),
        Request("data:," + "z" * 20_000),
        PoorRequest(URL, needed=(1, b"x"), callback=spider.found, priority=3),
        SlottedRequest(URL, cb_kwargs={"a": 1}),
        Request(URL, callback=spider.static, errback=top_level),
        Request(URL, meta={"classes": [Point, Declared, list, OrderedDict]}),
        Request(URL, meta={"method": spider.found, "d": defaultdict(Base)}),
    ],
    ids=repr,
)
def test_a_request_comes_back(request_: Request) -> None:
    """Equal in class, attributes and their types, callbacks of this spider."""
    body, values, _ = codec.encode(request_)
    body.decode()
    same(codec.decode(body, values), request_)


def test_large_values_stand_beside_the_body() -> None:
    """Once each, under their digest; with them in its place the body says the same."""
    page, rows = "é" * 20_000, [{"row": number} for number in range(2_000)]
    first = Request(URL, meta={"page": page, "rows": rows, "n": 1}, body=page)
    second = Request(URL, meta={"n": 2, "twice": [page, (page, rows)]})
    one, two = codec.encode(first), codec.encode(second)
    assert len(one.body) < 300
    assert len(one.values) == 3, "the text, the rows, the bytes"
    assert set(two.values) < set(one.values)
    assert all(len(data) > LEAF_BYTES_MAX for data in one.values.values())
    for request_, encoded in ((first, one), (second, two)):
        same(codec.decode(encoded.body, encoded.values), request_)
    for left_out in one.values:
        rest = {key: data for key, data in one.values.items() if key != left_out}
        with pytest.raises(UndecodableError):
            codec.decode(one.body, rest)


def test_a_value_within_a_value_comes_along() -> None:
    """Whoever hands on a body hands on all that it stands for."""
    text = "a" * 17_000
    request_ = Request(URL, meta={"x": [[text, number] for number in range(500)]})
    encoded = codec.encode(request_)
    assert len(encoded.values) == 2
    assert len(encoded.body) < 100
    same(codec.decode(encoded.body, encoded.values), request_)


def test_values_that_multiply_have_an_end() -> None:
    """References that nobody wrote cost bounded memory, a loop among them."""
    names = [number.to_bytes(16, "big") for number in range(20)]
    values = {
        name: b'["%s"%s]' % (b"x" * 9_000, b',{"$v":"%s"}' % after.hex().encode() * 9)
        for name, after in zip(names, [*names[1:], names[0]], strict=True)
    }
    body = b'{"url":"http://a","meta":{"x":{"$v":"%s"}}}' % names[0].hex().encode()
    with pytest.raises(UndecodableError):
        codec.decode(body, values)
    del values[names[-1]]
    values[names[-1]] = b'"end"'
    with pytest.raises(UndecodableError, match="bytes"):
        codec.decode(body, values)


def test_what_looks_like_a_reference_is_none() -> None:
    """A dict with such a key is data, beside references and within them."""
    fake = {"$v": "00" * 16}
    text = '{"$v":"' + "00" * 16 + '"}'
    request_ = Request(URL, meta={"x": fake, "y": text, "z": [text, "x" * 20_000]})
    encoded = codec.encode(request_)
    same(codec.decode(encoded.body, encoded.values), request_)


def test_a_body_is_short() -> None:
    """What has its default is left out."""
    assert json.loads(codec.encode(Request(URL)).body) == {"url": URL}
    body = codec.encode(Request(URL, callback=spider.found, meta={"depth": 1})).body
    assert json.loads(body) == {"url": URL, "callback": "found", "meta": {"depth": 1}}


@pytest.mark.parametrize(
    "request_",
    [
        Request(URL, callback=decorated(spider.found)),
        Request(URL, callback=OwnSpider().found),
        Request(URL, callback=spider.of_base()),
        Request(URL, errback=print),
        Request(URL, meta={"x": object()}),
        Request(URL, meta={"x": NotAnItem()}),
        Request(URL, cb_kwargs={"x": [lambda: 1]}),
        # Classes that no other process would build: this codec has no key.
        Request(URL, meta={"x": urlsplit(URL)}),
        Request(URL, meta={"x": Request(URL, callback=print)}),
        Request(URL, body="x" * OWN_BYTES_MAX),
        Request(URL, meta={"x": ["x" * 70_000] * 1_000}),
        type("Nameless", (Request,), {})(URL),
    ],
    ids=repr,
)
def test_what_no_other_process_could_read_is_refused(request_: Request) -> None:
    """It stays where it is."""
    with pytest.raises(UnencodableError):
        codec.encode(request_)


def test_a_cycle_is_refused() -> None:
    """A value that contains itself, and a request that does."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnencodableError):
        codec.encode(Request(URL, meta={"x": loop}))
    request = Request(URL)
    request.meta["x"] = request
    with pytest.raises(UnencodableError):
        codec.encode(request)


def test_a_str_of_another_class_is_text() -> None:
    """lxml's strings hold their tree, which nobody wants to send."""
    request = codec.decode(codec.encode(Request(URL, meta={"x": Text("a")})).body)
    assert type(request.meta["x"]) is str


def test_only_the_automatic_slot_of_the_parent_is_left_out() -> None:
    """Copied from a response's meta it would give the child its parent's host."""
    request = Request(URL, meta={"download_slot": "b.example", "a": 1})
    assert b"download_slot" not in codec.encode(request, "b.example").body
    assert b"download_slot" in codec.encode(request, "c.example").body
    assert b"download_slot" in codec.encode(request).body
    assert request.meta["download_slot"] == "b.example"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"{}",
        b'{"url":"x"}',
        b'{"url":1}',
        b'{"url":"http://a","callback":"nowhere"}',
        b'{"url":"http://a","callback":"name"}',
        b'{"url":"http://a","callback":"static"}',
        b'{"url":"http://a","callback":{"$g":"os:system"}}',
        b'{"url":"http://a","callback":{"$g":"tests.unit.project_classes:attrs"}}',
        b'{"url":"http://a","callback":{"$g":"tests.unit.project_classes:dataclass"}}',
        b'{"url":"http://a","callback":{"$g":"tests.unit.nowhere:x"}}',
        b'{"url":"http://a","callback":{"$g":"eval"}}',
        b'{"url":"http://a","callback":{"$g":7}}',
        b'{"url":"http://a","callback":{"$m":"static"}}',
        b'{"url":"http://a","callback":{"$pa":["found",[],{}]}}',
        b'{"url":"http://a","callback":{"$t":[]}}',
        b'{"url":"http://a","class":{"$g":"tests.unit.project_classes:Data"}}',
        b'{"url":"http://a","class":{"$g":"list"}}',
        b'{"url":"http://a","state":[1]}',
        b'{"url":"http://a","state":{"a":1}}',
        b'{"url":"http://a","callback":1}',
        b'{"url":"http://a","callback":"__class__"}',
        b'{"url":"http://a","callback":"from_crawler"}',
        b'{"url":"http://a","errback":"update_settings"}',
        b'{"url":"http://a","class":"subprocess:Popen"}',
        b'{"url":"http://a","class":"tests.unit.project_classes:Data"}',
        b'{"url":"http://a","class":"scrapy.settings:Settings"}',
        b'{"url":"http://a","class":7}',
        b'{"url":"http://a","headers":[1]}',
        b'{"url":"http://a","headers":[["a",[1]]]}',
        b'{"url":"http://a","body":7}',
        b'{"url":"http://a","other":7}',
        b'{"url":"http://a","meta":{"$q":7}}',
        b'{"url":"http://a","meta":{"x":{"$i":["os:path",[]]}}}',
        b'{"url":"http://a","priority":"high"}',
        b'{"url":{"$v":"00"}}',
        b'{"url":{"$v":7}}',
        b'{"url":{"$v":"%s"}}' % (b"00" * 16),
        b"[" * 5000,
        b'{"url":"http://a","meta":' + b'{"a":' * 5000,
    ],
)
def test_what_nobody_wrote_is_refused(body: bytes) -> None:
    """With our error, and nothing but request classes of project and Scrapy built."""
    with pytest.raises(UndecodableError):
        codec.decode(body)


@pytest.mark.parametrize(
    "path", ["scrapy.commands.shell:Command", "scrapy.http:Request", "scrapy:Request"]
)
def test_of_scrapy_only_its_requests_are_imported(path: str) -> None:
    """By the module that they stand in, as they are written."""
    modules = set(sys.modules)
    with pytest.raises(UndecodableError):
        codec.decode(json.dumps({"url": "http://a", "class": path}).encode())
    assert set(sys.modules) == modules


def test_a_digest_tells_elements_apart_and_the_same_again() -> None:
    """Also for what has no body; addresses do not count."""

    def closure() -> Callable[[Any], None]:
        return lambda response: None

    requests = [
        Request(URL),
        Request(URL, method="POST"),
        Request(URL, callback=spider.found),
        Request(URL, callback=closure()),
        Request(URL, callback=closure(), priority=1),
        Request(URL, meta={"x": object()}),
    ]
    digests = [codec.digest(request) for request in requests]
    assert len(set(digests)) == len(requests)
    assert {len(digest) for digest in digests} == {8}
    assert codec.digest(Request(URL, callback=closure())) == digests[3]
    assert codec.digest(Request(URL, meta={"x": object()})) == digests[5]
    assert short_digest(b"<X at 0x7f12>") == short_digest(b"<X at 0xabc>")
    assert short_digest(b"<X at 0x7f12>") != short_digest(b"<Y at 0x7f12>")


def test_a_fingerprint_of_another_length_is_hashed() -> None:
    """Scrapy's own stays as it is."""
    assert wire_fingerprint(b"x" * 20) == b"x" * 20
    assert len(wire_fingerprint(b"x")) == 20
    assert wire_fingerprint(b"x") != wire_fingerprint(b"y")
