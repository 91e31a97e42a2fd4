"""What plain Scrapy hands around with a request, here through its body and back."""

import os
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import itemloaders
import parsel
import pytest
from itemadapter import ItemAdapter
from lxml import etree  # type: ignore[import-untyped]  # it has no types
from scrapy import Request
from scrapy.http import Headers, JsonResponse, Response, TextResponse, XmlResponse
from scrapy.link import Link
from scrapy.loader import ItemLoader
from scrapy.selector import Selector, SelectorList
from twisted.internet.ssl import Certificate

from dscrapy.crawl.codec.request_bodies import OWN_BYTES_MAX
from dscrapy.crawl.codec.tags import UndecodableError, UnencodableError
from tests.unit import project_classes
from tests.unit.body_round_trip import (
    KEY,
    URL,
    codec_of,
    encoded,
    same_response,
    spider,
    through,
)
from tests.unit.project_classes import (
    Declared,
    NotAnItem,
    OwnLoader,
    Point,
    page,
    top_level,
)

# ---- Scrapy's types ---------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        page(),
        page("é" * 30_000),
        page(callback=spider.found, cb_kwargs={"a": (1, 2)}),
        Response("data:,x"),
        Response(URL, status=404, body=b"\xff\x00", headers={"A": ["1", "2"]}),
        TextResponse(URL, body="é", encoding="latin-1"),
        TextResponse(URL, body="é".encode("utf-16")),
        XmlResponse(URL, body=b"<?xml version='1.0' encoding='cp1251'?><a>\xe0</a>"),
        JsonResponse(URL, body=b'{"a": 1}', headers={"Content-Type": "x/json"}),
    ],
    ids=repr,
)
def test_a_response_comes_back(response: Response) -> None:
    """With its request, so that ``meta`` works, and the same text and selector."""
    arrived = through(response)
    same_response(response, arrived)
    if isinstance(response, TextResponse):
        assert arrived.text == response.text
        assert arrived.selector.getall() == response.selector.getall()
    if response.request is not None:
        assert arrived.meta == response.meta
        assert arrived.cb_kwargs == response.cb_kwargs


def test_a_certificate_comes_back() -> None:
    """The one that Twisted gives to a response."""
    pem = os.path.join(os.path.dirname(__file__), "certificate.pem")
    with open(pem, "rb") as file:
        certificate = Certificate.loadPEM(file.read())
    arrived = through(Response(URL, certificate=certificate))
    assert arrived.certificate.dump() == certificate.dump()


@pytest.mark.parametrize(
    "headers",
    [
        Headers(),
        Headers({"a": "1", "B-c": ["2", b"\xff"], "empty": []}),
        Headers({"a": "é"}, encoding="latin-1"),
    ],
    ids=repr,
)
def test_headers_come_back(headers: Headers) -> None:
    """With their encoding, and no value lost."""
    arrived = through(headers)
    assert dict(arrived.items()) == dict(headers.items())
    assert arrived.encoding == headers.encoding


def test_a_link_comes_back() -> None:
    """Equal, whatever its text is."""
    for link in (Link(URL), Link(URL, "t\ud800", "f", nofollow=True)):
        assert through(link) == link


# ---- selectors --------------------------------------------------------------------

TEXTS = {
    "plain": project_classes.PAGE,
    "no body": "just text &amp; <b>bold",
    "nested": "<p><div>a</div>b<p>c<form><form>d</form>e<td>f</p></form>",
    "xhtml": '<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0'
    ' Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">'
    '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en"><body><p>a</p></body>'
    "</html>",
    "office": "<html><body><o:p>a</o:p><a xmlns:o='u' o:x=1 @click='y' <b>c</a>",
    "script": "<script>if (a < b && c) document.write('<p>')</script><p>x</p>",
    "around": "<!-- before --><html><body><p>a</p></body></html><!-- after -->",
    "comment": "<body><!-- a -- b --><p>c<!----><pre>\n\nx</pre></body>",
    "entities": "<p title='a&quot;b&lt;&#x0b;&nbsp;'>&nbsp;&copy;&unknown;\x01</p>",
    "empty": "",
}
QUERIES = (
    *("//*", "//text()", "//@*", "//comment()", "/*", "..", "../..", "."),
    *("ancestor::*", "following::*", "preceding-sibling::node()", "string(.)"),
    *("count(//*)", "//p/..", "descendant-or-self::node()", "/comment()"),
)


def answers(selector: parsel.Selector) -> list[Any]:
    """Return what queries find from a selector."""
    found: list[Any] = [selector.get(), selector.type, selector.namespaces]
    if isinstance(selector.root, etree._Comment):
        # It can be asked for itself only.
        return [*found, answers(type(selector)(root=selector.root.getparent()))]
    for query in QUERIES:
        found.append((query, selector.xpath(query).getall()))
    return found


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("how", ["response", "text", "node", "parsel"])
def test_a_selector_sees_its_document(name: str, how: str) -> None:
    """Up, down and sideways it finds what it found before, from every node."""
    text = TEXTS[name]
    match how:
        case "response":
            whole: parsel.Selector = page(text).selector
        case "text":
            whole = Selector(text=text)
        case "parsel":
            whole = parsel.Selector(text=text, type="html")
        case _:
            whole = Selector(root=page(text).selector.root, type="html")
    nodes = [whole, *whole.xpath("//*"), *whole.xpath("//body//comment()")]
    for node in nodes:
        assert answers(through(node)) == answers(node)


def test_a_selector_of_the_running_page_is_its_text() -> None:
    """The document of a page's nodes is the page's, once for all requests."""
    text = TEXTS["office"] + "<p>row</p>" * 3000
    response = page(text)
    codec = codec_of()
    rows = response.css("p")
    sent = [
        codec.encode(Request(URL, meta={"row": row}), page=response) for row in rows
    ]
    assert len({digest for one in sent for digest in one.values}) == 1
    assert sum(len(one.body) for one in sent) < 700_000
    (value,) = sent[0].values.values()
    assert b"@click" in value, "as it was sent, not as lxml writes it"
    for place in (0, 1500, 2999):
        arrived = codec_of().decode(sent[place].body, sent[place].values)
        row = arrived.meta["row"]
        assert row.xpath("count(preceding-sibling::p)").get() == f"{place}.0"


def test_a_selector_of_a_changed_document_is_of_the_changed_one() -> None:
    """Also when nodes go between two requests of a page."""
    response, codec = page(), codec_of()
    for left in (2, 1):
        row = response.css("tr")[-1]
        sent = codec.encode(Request(URL, meta={"row": row}), page=response)
        arrived = codec_of().decode(sent.body, sent.values).meta["row"]
        assert arrived.get() == row.get()
        assert len(arrived.xpath("//tr")) == left
        assert arrived.xpath("//text()").getall() == row.xpath("//text()").getall()
        response.css("tr")[0].drop()


def test_selectors_of_xml_keep_their_namespaces() -> None:
    """Those of the document and those that were registered."""
    text = "<?xml version='1.0'?><a xmlns='u' xmlns:v='w'><v:b c='1'/>t<!--x--></a>"
    whole = Selector(text=text, type="xml")
    whole.register_namespace("n", "w")
    arrived = through(whole)
    assert arrived.xpath("//n:b/@c").get() == "1"
    node = whole.xpath("//n:b")[0]
    assert through(node).xpath("../text()").getall() == ["t"]
    assert answers(through(node)) == answers(node)
    response = XmlResponse(URL, body=text.encode())
    assert answers(through(response.xpath("/*")[0])) == answers(response.xpath("/*")[0])


@pytest.mark.parametrize(
    "selector",
    [
        Selector(text='{"a": [1, {"b": null}]}', type="json"),
        Selector(text="plain", type="text"),
        page().xpath("//td/text()")[1],
        page().xpath("count(//td)")[0],
        page().xpath("boolean(//td)")[0],
        JsonResponse(URL, body=b'{"a": {"b": [1, 2]}}').selector.jmespath("a.b"),
        page().css("td"),
        page().css("nothing"),
        parsel.Selector(text=project_classes.PAGE).css("td"),
    ],
    ids=repr,
)
def test_selectors_of_data_and_lists_come_back(selector: Any) -> None:
    """Text, numbers and JSON are their own documents."""
    arrived = through(selector)
    assert arrived.getall() == selector.getall()
    assert repr(arrived) == repr(selector)


def test_a_tree_that_no_text_gives_stays() -> None:
    """It was made by hand: nothing is guessed."""
    whole = Selector(text="<p>a</p>")
    whole.root.find("body").append(whole.root.makeelement("p", {"xmlns:a": "b"}))
    whole.root.find("body").append(whole.root.makeelement("head"))
    with pytest.raises(UnencodableError):
        encoded(whole.css("p")[0])


# ---- loaders ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ItemLoader, itemloaders.ItemLoader])
def test_a_loader_goes_on_where_it_was(cls: Any) -> None:
    """With its item, what it has collected, its context and its selector."""
    loader = cls(item=Declared(a=1), selector=page().selector, note=("x", 1))
    loader.add_css("b", "tr[id=a] td::text")
    arrived = through(loader)
    for one in (loader, arrived):
        assert one.context["item"] is one.item
        assert one.context["selector"] is one.selector
        one.add_css("b", "title::text")
    assert arrived.context["note"] == ("x", 1)
    assert arrived.load_item() == loader.load_item()


def test_a_nested_loader_fills_its_parent() -> None:
    """As it did before: both have one item."""
    loader = ItemLoader(item=Declared(), response=page())
    loader.add_value("a", 7)
    nested: Any = loader.nested_css("tr[id=b]")
    arrived = through(nested)
    for one in (nested, arrived):
        one.add_xpath("b", "./td/text()")
        assert one.item is one.parent.item
        assert one.context["response"].url == page().url
    assert arrived.parent.load_item() == nested.parent.load_item()
    assert arrived.parent.get_collected_values("a") == [7]


def test_a_loader_of_the_projects_own_is_a_pickle() -> None:
    """In which selector and response are kept apart, each once."""
    loader = OwnLoader(response=page())
    loader.add_css("first", "td::text")
    arrived = through(loader, KEY)
    assert arrived.context["selector"] is arrived.selector
    arrived.add_value("first", " x ")
    loader.add_value("first", " x ")
    assert dict(arrived.load_item()) == dict(loader.load_item())


# ---- functions --------------------------------------------------------------------


def test_partials_are_called_alike() -> None:
    """Of methods and of functions of the project, one in another."""
    inner = partial(spider.found, a=1)
    for made in (inner, partial(partial(top_level), b=(2,)), partial(Point, 1)):
        request = Request(URL, callback=made)
        sent = codec_of(b"").encode(request)
        arrived = codec_of(b"").decode(sent.body)
        assert type(arrived.callback) is partial
        assert arrived.callback("y") == made("y")
    assert through(spider.found) == spider.found
    assert through(top_level) is top_level


def test_functions_of_packages_are_pickles() -> None:
    """By name; identity is kept."""
    functions: list[Any] = [print, os.path.join, urlsplit, dict.fromkeys]
    for function in functions:
        sent = codec_of().encode(Request(URL, callback=function))
        assert sent.kind > 0
        assert codec_of().decode(sent.body).callback == function


# ---- sizes ------------------------------------------------------------------------


def test_what_a_page_gave_is_not_the_requests_own() -> None:
    """A request of more than 1 MiB stays; a large page is carried by hundreds."""
    text = "<p>" + "x" * (OWN_BYTES_MAX + 1)
    with pytest.raises(UnencodableError, match=str(OWN_BYTES_MAX)):
        encoded(text)
    with pytest.raises(UnencodableError, match=str(OWN_BYTES_MAX)):
        encoded([os.urandom(50_000) for _ in range(20)])
    response, codec = page(text), codec_of()
    for carried in (response, response.css("p")):
        sent = codec.encode(Request(URL, meta={"x": carried}), page=response)
        assert codec_of().decode(sent.body, sent.values).meta["x"].css("p")
    with pytest.raises(UnencodableError):
        encoded(page(text * 4))


def test_a_page_is_encoded_once() -> None:
    """A hundred requests that carry it cost about what one does."""
    response, codec = page("<p>" + "é" * 200_000), codec_of()
    sent = [
        codec.encode(Request(f"{URL}?{number}", meta={"x": response}))
        for number in range(100)
    ]
    first = next(iter(sent[0].values.values()))
    assert all(next(iter(one.values.values())) is first for one in sent)
    assert all(len(one.body) < 1000 for one in sent)


def test_items_hold_no_pickles() -> None:
    """An item is data: a Response in it has no tag, a pickle is not even tried."""
    from dscrapy.crawl.codec import tags

    assert ItemAdapter.is_item({"x": 1})
    for value in (page(), page().css("p"), NotAnItem()):
        with pytest.raises(UnencodableError):
            tags.tag({"x": value})
    with pytest.raises(UndecodableError):
        tags.untag({"$P": ["a:b", "", "", []]}, tags.no_classes, lenient=True)


def test_lists_of_selectors_hold_selectors() -> None:
    """A tree that nobody wrote is refused."""
    assert type(through(page().css("p"))) is SelectorList
    for tree in (b'["scrapy",[1]]', b'["other",[]]', b"7"):
        body = b'{"url":"http://a","meta":{"x":{"$SL":%s}}}' % tree
        with pytest.raises(UndecodableError):
            codec_of().decode(body)
