"""Values of requests that travel as pickles, and those that never do."""

from collections.abc import Callable
from datetime import datetime, tzinfo
from functools import partial
from http import HTTPMethod
from typing import Any
from urllib.parse import urlsplit

import dateutil.tz  # type: ignore[import-untyped]  # it has no types
import pytest
from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.settings import Settings

from dscrapy.crawl.codec.pickles import Pickles
from dscrapy.crawl.codec.request_bodies import RequestCodec
from dscrapy.crawl.codec.tags import UndecodableError, UnencodableError, UnreadableError
from tests.unit import project_classes
from tests.unit.body_round_trip import (
    KEY,
    URL,
    OwnSpider,
    codec_of,
    encoded,
    same_response,
    spider,
    through,
)
from tests.unit.project_classes import NotAnItem, OwnHtml, luggage, page


@pytest.mark.parametrize(
    "value",
    [
        NotAnItem(a=1, b=[{2: (3,)}]),
        urlsplit(URL),
        dateutil.tz.gettz("Europe/Paris"),
        dateutil.tz.tzutc(),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=dateutil.tz.gettz("Europe/Paris")),
        datetime(2024, 1, 1, tzinfo=dateutil.tz.tzoffset("x", 3600)).timetz(),
        HTTPMethod.GET,
        project_classes.Odd(a=1),
        OwnHtml(URL, body=b"<p>a"),
        NotAnItem.__dict__,
        Exception("x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_importable_classes_travel(value: Any) -> None:
    """With a key, and only so."""
    arrived = through(value, KEY)
    compare: Any = type(value).__eq__
    if compare is not object.__eq__ and not isinstance(value, datetime):
        assert arrived == value
    if isinstance(value, NotAnItem):
        assert vars(arrived) == vars(value)
    if isinstance(value, datetime):
        assert (arrived, arrived.fold) == (value, value.fold)
        assert arrived.utcoffset() == value.utcoffset()
        assert type(arrived.tzinfo) is type(value.tzinfo)
        if value.fold:
            assert arrived.tzinfo is value.tzinfo, "else such times are never equal"
    if not isinstance(getattr(value, "tzinfo", value), tzinfo):
        with pytest.raises(UnencodableError):
            encoded(value, codec_of(b""))


def test_what_has_a_tag_is_kept_apart() -> None:
    """Once each, methods of the spider as their names."""
    response = page()
    value = NotAnItem(one=response, two=response, method=spider.found, row=None)
    value.row = response.css("tr")[1]  # type: ignore[attr-defined]  # any attribute
    arrived = through(value, KEY)
    assert arrived.one is arrived.two
    same_response(arrived.one, response)
    assert arrived.method == spider.found
    assert arrived.row.xpath("..").get() == response.css("tr")[1].xpath("..").get()


class Changes:
    """Is never equal to what was pickled."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]  # it has none


class Raises:
    """Cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("x",)


class Becomes:
    """Is another when it has been loaded."""

    def __reduce__(self) -> Any:
        return list, ()


def unnamed() -> Callable[[], None]:
    """Return a function that has no name."""
    return lambda: None


@pytest.mark.parametrize(
    "value",
    [
        spider,
        NotAnItem(deep=[{"spider": spider}]),
        NotAnItem(method=OwnSpider().found),
        OwnSpider().found,
        Crawler(OwnSpider),
        NotAnItem(crawler=Crawler(OwnSpider)),
        Settings(),
        spider.logger,
        unnamed(),
        NotAnItem(function=unnamed()),
        iter(one for one in [1]),
        Changes(),
        Raises(),
        Becomes(),
        type("Nameless", (), {})(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_belongs_to_this_process_stays(value: Any) -> None:
    """Whatever reaches the spider or the crawler, and what pickle refuses."""
    for carried in ({"x": value}, {"x": [partial(print, value)]}):
        with pytest.raises(UnencodableError):
            codec_of().encode(Request(URL, meta=carried))


def test_a_request_class_of_a_package_travels() -> None:
    """By a pickle of the class, with all that its instances hold."""
    codec = RequestCodec(spider, lambda module: False, Pickles(KEY))
    request = project_classes.PoorRequest(URL, needed={1}, callback=spider.found)
    sent = codec.encode(request)
    assert sent.kind > 0
    arrived = codec.decode(sent.body)
    assert type(arrived) is project_classes.PoorRequest
    assert arrived.needed == {1}
    assert arrived.callback == spider.found
    with pytest.raises(UnencodableError):
        RequestCodec(spider, lambda module: False).encode(request)


FLAG: list[str] = []


def note(text: str) -> str:
    """Show that something was loaded."""
    FLAG.append(text)
    return text


class Noted:
    """Shows when it is loaded."""

    def __reduce__(self) -> Any:
        return _make_noted, ()


def _make_noted() -> Noted:
    note("loaded")
    return Noted()


def test_only_what_a_process_of_the_job_made_is_loaded() -> None:
    """Another job's key, a changed byte, another name: nothing runs."""
    sent = encoded(Noted())
    FLAG.clear()
    for key in (b"x" * 32, b"kk"):
        with pytest.raises(UndecodableError) as refused:
            codec_of(key).decode(sent.body)
        assert not isinstance(refused.value, UnreadableError)
    for old, new in ((b":Noted", b":Other"), (b'"gAW', b'"gAX'), (b"==", b"=A")):
        for place in range(sent.body.count(old)):
            parts = sent.body.split(old)
            head, tail = old.join(parts[: place + 1]), old.join(parts[place + 1 :])
            with pytest.raises(UndecodableError):
                codec_of().decode(head + new + tail)
    assert FLAG == []
    codec_of().decode(sent.body)
    assert FLAG == ["loaded"]


def test_what_is_not_here_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is sound: another process may read it."""
    sent = encoded(NotAnItem())
    with pytest.raises(UnreadableError):
        codec_of(b"").decode(sent.body)
    monkeypatch.delattr(project_classes, "NotAnItem")
    with pytest.raises(UnreadableError, match="NotAnItem"):
        codec_of().decode(sent.body)


def test_the_kind_tells_the_classes() -> None:
    """0 without pickles; the same for the same classes, in any order and number."""
    for value in luggage().values():
        assert encoded(value).kind == 0
    one, two = NotAnItem(a=1), urlsplit(URL)
    kind = encoded(one).kind
    assert 0 < kind < 2**31
    assert encoded([NotAnItem(b=2), one]).kind == kind
    assert encoded([one, two]).kind == encoded({"a": two, "b": [one]}).kind
    assert len({kind, encoded(two).kind, encoded([one, two]).kind}) == 3
    assert encoded([one, "x" * 20_000]).kind == kind


def test_digests_of_start_hold_no_pickles() -> None:
    """Only the class is told: bytes of a pickle differ from run to run."""
    codec = codec_of()

    def digest(value: Any) -> bytes:
        return codec.digest(Request(URL, meta={"x": value}))

    assert digest(NotAnItem(a=1)) == digest(NotAnItem(a=object()))
    assert digest(NotAnItem()) == codec_of(b"").digest(
        Request(URL, meta={"x": NotAnItem()})
    )
    assert digest(NotAnItem()) != digest(Changes())
    assert digest([NotAnItem(), 1]) != digest([NotAnItem(), 2])
    assert digest(unnamed()) == digest(unnamed())
    assert digest(page("a" * 20_000)) == digest(page("a" * 20_000))
    assert digest(page("a" * 20_000)) != digest(page("b" * 20_000))
    assert digest(luggage()) == digest(luggage())
