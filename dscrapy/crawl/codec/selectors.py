"""Selectors that requests carry: a document, and the path of a node in it.

A tree of lxml does not keep the text that it was parsed from. Its document is the first
of these texts that is parsed into the same tree here: the selector's own text, the text
of the page whose callback runs, or the text that lxml writes of the tree. So ``..`` and
paths from the root lead where they led before. A tree that none of the texts gives (it
was changed by hand into a tree that no parser makes) has no tag.
"""

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import parsel
from lxml import etree, html  # type: ignore[import-untyped]  # it has no types
from parsel.selector import SafeXMLParser, create_root_node
from scrapy.http import TextResponse
from scrapy.selector import Selector, SelectorList

from dscrapy.crawl.codec.stdlib_types import Down
from dscrapy.crawl.codec.tags import UndecodableError, UnencodableError

# Documents whose text is remembered: of pages under way, whose requests carry nodes.
DOCUMENTS_REMEMBERED_MAX = 8
# Levels between a document's root and a node: lxml itself allows 256 unless told to.
PATH_MAX = 10_000

_SELECTORS: dict[str, type[parsel.Selector]] = {
    "scrapy": Selector,
    "parsel": parsel.Selector,
}
_LISTS: dict[str, type[Any]] = {"scrapy": SelectorList, "parsel": parsel.SelectorList}


class _XmlOfHtml(SafeXMLParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_element_class_lookup(html.HtmlElementClassLookup())


# How a text becomes a tree. Where a tree's HTML is parsed into another tree, the
# document is XML with the elements of HTML.
_PARSERS: dict[str, type[Any]] = {
    "html": html.HTMLParser,
    "xml": SafeXMLParser,
    "xhtml": _XmlOfHtml,
}


class Document(NamedTuple):
    """The text of a tree, and how it is parsed."""

    parser: str
    text: str
    base_url: str | None
    huge: bool


class Selectors:
    """Writes selectors; ``page`` is the response whose callback runs."""

    def __init__(self) -> None:
        self._documents: OrderedDict[int, tuple[Any, bytes, Document]] = OrderedDict()

    def tree(
        self, value: parsel.Selector, down: Down, page: TextResponse | None
    ) -> Any:
        """Return the tree of a ``Selector`` of Scrapy's or parsel's."""
        tree: dict[str, Any] = {"type": value.type}
        if type(value) is not Selector:
            tree["class"] = "parsel"
        root = value.root
        if isinstance(root, etree._Element):
            document = self._document(value, root, page)
            tree["document"] = [
                document.parser,
                down(document.text),
                document.base_url,
                document.huge,
            ]
            tree["path"] = _path(root)
        else:
            tree["root"] = down(root)
        if value.namespaces != value._default_namespaces:
            tree["namespaces"] = down(value.namespaces)
        for name, default in (("_expr", None), ("_huge_tree", True), ("_text", None)):
            setting = getattr(value, name)
            if setting != default:
                tree[name] = down(setting)
        response = getattr(value, "response", None)
        if response is not None:
            tree["response"] = down(response)
        return {"$S": tree}

    def _document(
        self, value: parsel.Selector, node: Any, page: TextResponse | None
    ) -> Document:
        root = node.getroottree().getroot()
        # A tree may have been changed since: its nodes are compared each time.
        state = blake2b(etree.tostring(root.getroottree())).digest()
        remembered = self._documents.get(id(root))
        if remembered is not None and remembered[1] == state:
            self._documents.move_to_end(id(root))
            return remembered[2]
        for document in _candidates(value, root, page):
            # lxml may raise any of its errors for a text that is no document.
            try:
                parsed = _parse(document)
            except (etree.LxmlError, ValueError):
                continue
            if _have_same_nodes(root, parsed):
                break
        else:
            raise UnencodableError("a selector of a tree that no text is parsed into")
        self._documents[id(root)] = (root, state, document)
        self._documents.move_to_end(id(root))
        if len(self._documents) > DOCUMENTS_REMEMBERED_MAX:
            self._documents.popitem(last=False)
        return document


def list_tree(value: Any, down: Down) -> Any:
    """Return the tree of a ``SelectorList``."""
    name = "scrapy" if type(value) is SelectorList else "parsel"
    return {"$SL": [name, [down(selector) for selector in value]]}


def read_list(payload: Any, down: Down) -> Any:
    """Read ``$SL``."""
    name, values = payload
    selectors = [down(child) for child in values]
    if not all(isinstance(child, parsel.Selector) for child in selectors):
        raise UndecodableError("a list of selectors holds selectors")
    return _LISTS[name](selectors)


def read_selector(payload: Any, down: Down) -> Any:
    """Read ``$S``."""
    cls = _SELECTORS[payload.get("class", "scrapy")]
    if "document" in payload:
        parser, text, base_url, huge = payload["document"]
        document = Document(parser, down(text), base_url, huge is True)
        # lxml's errors have a tree of their own.
        try:
            root = _follow(_parse(document), payload["path"])
        except etree.LxmlError as error:
            raise UndecodableError(f"no document: {error}") from error
    else:
        root = down(payload["root"])
        if isinstance(root, etree._Element):
            raise UndecodableError("a root is data")
    namespaces = down(payload["namespaces"]) if "namespaces" in payload else None
    selector = cls(root=root, type=payload["type"])
    if namespaces is not None:
        # The namespaces as they were, perhaps without a default one.
        selector.namespaces = dict(namespaces)
    for name in ("_expr", "_huge_tree", "_text"):
        if name in payload:
            setattr(selector, name, down(payload[name]))
    if isinstance(selector, Selector):
        response = down(payload["response"]) if "response" in payload else None
        if response is not None and not isinstance(response, TextResponse):
            raise UndecodableError("a selector's response is text")
        selector.response = response
    return selector


def _candidates(
    value: parsel.Selector, root: Any, page: TextResponse | None
) -> Iterator[Document]:
    base_url, huge = root.getroottree().docinfo.URL, value._huge_tree
    kind = "xml" if value.type == "xml" else "html"
    if value._text is not None:
        yield Document(kind, value._text, base_url, huge)
    if page is not None:
        yield Document(kind, page.text, base_url, huge)
    written = etree.tostring(root.getroottree(), encoding="unicode", method=kind)
    yield Document(kind, written, base_url, True)
    if kind == "html":
        written = etree.tostring(root.getroottree(), encoding="unicode", method="xml")
        yield Document("xhtml", written, base_url, True)


def _parse(document: Document) -> Any:
    if not isinstance(document.text, str):
        raise UndecodableError("a document is text")
    return create_root_node(
        document.text,
        _PARSERS[document.parser],
        base_url=document.base_url,
        huge_tree=document.huge,
    )


def _path(node: Any) -> list[int]:
    path = []
    root = node.getroottree().getroot()
    while node is not root:
        parent = node.getparent()
        if parent is None:
            raise UnencodableError("a selector of a node outside of its document")
        path.append(parent.index(node))
        node = parent
    return path[::-1]


def _follow(root: Any, path: Any) -> Any:
    if not isinstance(path, list) or len(path) > PATH_MAX:
        raise UndecodableError("a path is a list of places")
    node = root
    for place in path:
        if type(place) is not int or place < 0:
            raise UndecodableError("a place is a number from 0")
        node = node[place]
    return node


def _have_same_nodes(root: Any, other: Any) -> bool:
    """Whether two documents have the same nodes, those beside their roots included."""
    tree, other_tree = root.getroottree(), other.getroottree()
    if tree.docinfo.doctype != other_tree.docinfo.doctype:
        return False
    if type(root) is not type(other):
        return False
    nodes, other_nodes = _nodes(root), _nodes(other)
    for node in nodes:
        if node != next(other_nodes, None):
            return False
    return next(other_nodes, None) is None


def _nodes(root: Any) -> Iterator[tuple[Any, ...]]:
    for side in (
        root.itersiblings(preceding=True),
        root.iter(),
        root.itersiblings(),
    ):
        for node in side:
            tail = None if node is root else node.tail
            attributes, names = tuple(node.attrib.items()), tuple(node.nsmap.items())
            yield node.tag, node.text, tail, attributes, names, len(node)
