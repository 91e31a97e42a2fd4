"""A spider, and values through the bodies of its requests and back."""

from typing import Any

import scrapy
from scrapy import Request
from scrapy.http import Response

from dscrapy.crawl.codec.pickles import Pickles
from dscrapy.crawl.codec.request_bodies import RequestCodec
from dscrapy.crawl.codec.shared_values import EncodedRequest

URL = "http://a.example/x"
KEY = b"k" * 32


class OwnSpider(scrapy.Spider):
    """A spider whose methods are carried."""

    name = "own"

    def found(self, response: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Return what it was given."""
        return response, kwargs


spider = OwnSpider()


def codec_of(key: bytes = KEY) -> RequestCodec:
    """Return a codec as another process of the job has it."""
    return RequestCodec(
        spider, lambda module: module.startswith("tests.unit"), Pickles(key)
    )


def encoded(value: Any, codec: RequestCodec | None = None) -> EncodedRequest:
    """Return a request that carries the value."""
    return (codec or codec_of()).encode(Request(URL, meta={"x": value}))


def through(value: Any, key: bytes = b"") -> Any:
    """Return what arrives of a value in another process."""
    sent = encoded(value, codec_of(key))
    arrived = codec_of(key).decode(sent.body, sent.values).meta["x"]
    assert type(arrived) is type(value)
    return arrived


def same_response(one: Response, other: Response) -> None:
    """Check that two responses are alike in all that is public."""
    assert type(one) is type(other)
    for name in one.attributes:
        if name == "request":
            continue
        assert getattr(one, name) == getattr(other, name), name
        assert type(getattr(one, name)) is type(getattr(other, name)), name
    if one.request is None:
        assert other.request is None
    else:
        assert other.request is not None
        assert one.request.to_dict(spider=spider) == other.request.to_dict(
            spider=spider
        )
