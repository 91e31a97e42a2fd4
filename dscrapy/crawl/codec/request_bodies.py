"""A Scrapy request as a JSON body that any process of its job can read.

A body is an object of the request's public attributes, as ``Request.to_dict`` has
them; what has its default is left out of a plain ``Request``. Callbacks are names of
this spider's methods (``true`` is ``NO_CALLBACK``), or trees as in ``callables``;
values are tagged as in ``tags``, ``stdlib_types``, ``scrapy_types``, ``selectors``,
``third_party`` and here:

===========  ===============================================================
``$q``       a request: its body
``$v``       a large value: its digest (``shared_values``)
``$dz``      datetime or time of a zone that has no tag: ISO, fold, zone
``$df``      defaultdict of any factory: factory, pairs
``$P``       a pickle: class, pickle, MAC, trees beside it (``pickles``)
===========  ===============================================================

A class of requests that is neither Scrapy's nor the project's is a pickle; what its
instances hold beside the attributes of every request stands in ``state``. A request
that cannot be written so stays in its process: ``UnencodableError``.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, time, tzinfo
from enum import Enum
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import msgspec
import parsel
from scrapy import Request, Spider
from scrapy.http import Response, TextResponse
from scrapy.http.request import NO_CALLBACK
from scrapy.selector import Selector, SelectorList

from dscrapy.crawl.codec import scrapy_types, tags, third_party
from dscrapy.crawl.codec.callables import Functions
from dscrapy.crawl.codec.items import is_wire_json
from dscrapy.crawl.codec.pickles import Pickled, Pickles, name_of
from dscrapy.crawl.codec.scrapy_types import bytes_of, text_of
from dscrapy.crawl.codec.selectors import Selectors, list_tree, read_list, read_selector
from dscrapy.crawl.codec.shared_values import (
    EXPANDED_BYTES_MAX,
    EncodedRequest,
    Following,
    Remembered,
    dumps,
    reference,
    value_digest,
)
from dscrapy.crawl.codec.stdlib_types import NO_TAG, Down
from dscrapy.crawl.codec.tags import LEAF_BYTES_MAX, UndecodableError, UnencodableError
from dscrapy.messages import DIGEST_BYTES, FINGERPRINT_BYTES

# Bytes that a request may hold of its own: its values count, what pages gave to it (the
# bodies of responses, the documents of selectors) does not. Hundreds of requests are in
# flight at a time, in messages of a few MiB. Larger ones stay in their process.
OWN_BYTES_MAX = 1024 * 1024
# Bytes of a request in all, pages' too. They travel twice (in a commit and in a grant)
# and rest in the master's file; half a frame leaves room for the rest of the message.
BODY_BYTES_MAX = 4 * 1024 * 1024
_DOWNLOAD_SLOT = "download_slot"
# Keys of ``meta`` that tell how a page was downloaded, and not what it is.
_OF_DOWNLOADS = frozenset(
    {
        _DOWNLOAD_SLOT,
        "_auth_proxy",
        "cached_response",
        "download_latency",
        "is_start_request",
        "proxy",
        "redirect_reasons",
        "redirect_times",
        "redirect_ttl",
        "redirect_urls",
        "retry_times",
    }
)
# The modules of Scrapy's request classes: a body may have no others imported.
_SCRAPY_REQUESTS = "scrapy.http."
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

# Attributes that every request has -> default in a plain Request.
_SIMPLE: Mapping[str, Any] = {
    "method": "GET",
    "encoding": "utf-8",
    "priority": 0,
    "dont_filter": False,
}
# Attributes with any values; empty by default.
_OPEN = ("cookies", "meta", "cb_kwargs", "flags")
_COMMON = frozenset(Request.attributes)
_NOTHING: Mapping[bytes, bytes] = MappingProxyType({})


class RequestCodec:
    """Bodies of one spider's requests.

    ``is_project`` says which modules are the project's. Of the classes that a body
    names outside of a pickle, only the project's and Scrapy's requests are ever built.
    """

    def __init__(
        self,
        spider: Spider,
        is_project: Callable[[str], bool],
        pickles: Pickles | None = None,
    ) -> None:
        self.is_project = is_project
        self.functions = Functions(spider, is_project)
        self.pickles = pickles or Pickles(b"")
        self.remembered = Remembered()
        self.selectors = Selectors()
        self._find_class = tags.class_finder(is_project)
        self._find_request = tags.class_finder(
            lambda module: module.startswith(_SCRAPY_REQUESTS) or is_project(module)
        )
        self._readers: Mapping[str, tags.Read] = {
            **scrapy_types.READERS,
            **third_party.READERS,
            "$q": self._read_nested,
            "$m": self.functions.read_method,
            "$g": self.functions.read_global,
            "$pa": self.functions.read_partial,
            "$S": read_selector,
            "$SL": read_list,
            "$dz": _read_zoned,
            "$df": _read_defaultdict,
            "$P": self._read_pickle,
        }

    def encode(
        self,
        request: Request,
        automatic_slot: str | None = None,
        page: Response | None = None,
    ) -> EncodedRequest:
        """Return the request's body and values; raises ``UnencodableError``.

        ``automatic_slot`` is the download slot that Scrapy, not the project, gave
        to the request that this one comes from: copied into this one's ``meta`` it
        would say nothing about this one's host, and is left out. ``page`` is the
        response whose callback asks for this request.
        """
        writing = _Writing(self, page)
        body = writing.body(request, automatic_slot)
        if len(body) + writing.referred > EXPANDED_BYTES_MAX:
            raise UnencodableError(f"more than {EXPANDED_BYTES_MAX} bytes as JSON")
        if len(body) > LEAF_BYTES_MAX:
            writing = _Writing(self, page, seals=True)
            body = writing.body(request, automatic_slot)
        own_bytes, total_bytes = writing.sizes(body)
        for size, limit in ((own_bytes, OWN_BYTES_MAX), (total_bytes, BODY_BYTES_MAX)):
            if size > limit:
                raise UnencodableError(f"{size} bytes as JSON, the limit is {limit}")
        if not all(map(is_wire_json, (body, *writing.values.values()))):
            raise UnencodableError("nested too deep for a message")
        return EncodedRequest(body, writing.values, _kind(writing.names))

    def decode(self, body: bytes, values: Mapping[bytes, bytes] = _NOTHING) -> Request:
        """Return the request of a body and the values to which it refers.

        Raises ``UndecodableError``; ``UnreadableError`` where the body is sound and
        this process alone cannot load what it names.
        """
        try:
            tree = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"no JSON: {error}") from error
        readers = {**self._readers, "$v": Following(values).read}
        request = tags.untag({"$q": tree}, self._find_class, readers=readers)
        assert isinstance(request, Request)
        return request

    def digest(self, request: Request) -> bytes:
        """Return a digest by which another run of ``start()`` recognizes this element.

        A value that would be a pickle counts by its class alone, since pickles may
        differ from run to run. A request that nests too deep counts by the attributes
        that do not.
        """
        writing = _Writing(self, None, is_digest=True)
        try:
            data = writing.body(request, None)
        except UnencodableError:
            parts: list[str] = []
            for name in request.attributes:
                value = getattr(request, name)
                try:
                    parts.append(json.dumps(writing.down(value)))
                except UnencodableError:
                    parts.append(getattr(value, "__qualname__", type(value).__name__))
            data = "\n".join(parts).encode(errors="backslashreplace")
        return short_digest(data)

    # ---- writing --------------------------------------------------------------

    def tree(self, request: Request, down: Down, automatic: str | None) -> Any:
        """Return the tree of a request, its values written by ``down``."""
        cls = type(request)
        is_plain = cls is Request
        is_scrapys = is_plain or cls.__module__.startswith(_SCRAPY_REQUESTS)
        tree: dict[str, Any] = {"url": down(request.url)}
        if not is_plain:
            tree["class"] = (
                tags.class_path(cls) if is_scrapys else self._class(down, cls)
            )
        for name in ("callback", "errback"):
            function = getattr(request, name)
            if function is not None:
                tree[name] = self._function(function, down)
        for name, default in _SIMPLE.items():
            value = getattr(request, name)
            if value != default or not is_plain:
                tree[name] = down(value)
        if request.headers:
            tree["headers"] = scrapy_types.header_pairs(request.headers)
        if request.body:
            is_large = len(request.body) > LEAF_BYTES_MAX
            tree["body"] = down(request.body) if is_large else text_of(request.body)
        for name in _OPEN:
            value = getattr(request, name)
            if name == "meta" and automatic is not None:
                value = without_slot(value, automatic)
            if value:
                tree[name] = down(value)
        if not is_scrapys:
            tree["state"] = down(_state(request))
        elif not is_plain:
            for name in cls.attributes:
                if name not in _COMMON:
                    tree[name] = down(getattr(request, name))
        return tree

    def _class(self, down: Down, cls: type[Request]) -> Any:
        path = tags.class_path(cls) if self.is_project(cls.__module__) else None
        return down(cls) if path is None else path

    def _function(self, function: Any, down: Down) -> Any:
        if function is NO_CALLBACK:
            return True
        name = self.functions.method_name(function)
        return down(function) if name is None else name

    # ---- reading --------------------------------------------------------------

    def _read_nested(self, tree: Any, down: Down) -> Request:
        if not isinstance(tree, dict):
            raise UndecodableError("a request is an object")
        cls: Any = Request
        values: dict[str, Any] = {}
        for name, value in tree.items():
            match name:
                case "class":
                    cls = self._read_class(value, down)
                case "callback" | "errback":
                    values[name] = self._read_function(value, down)
                case "headers":
                    values[name] = scrapy_types.read_header_pairs(value, down)
                case "body":
                    values[name] = bytes_of(value, down)
                case _:
                    values[name] = down(value)
        state = values.pop("state", None)
        if values.keys() - set(cls.attributes):
            raise UndecodableError(f"{cls.__qualname__} has no such attributes")
        # The project's own class may raise anything.
        try:
            if state is None:
                request = cls(**values)
            else:
                request = cls.__new__(cls)
                Request.__init__(request, **values)
                _set_state(request, state)
        except Exception as error:
            raise UndecodableError(f"{type(error).__name__}: {error}") from error
        assert isinstance(request, Request)
        return request

    def _read_class(self, tree: Any, down: Down) -> type[Request]:
        cls = self._find_request(tree) if isinstance(tree, str) else down(tree)
        if not isinstance(cls, type) or not issubclass(cls, Request):
            raise UndecodableError(f"{tree!r:.200} is no request class")
        return cls

    def _read_function(self, tree: Any, down: Down) -> Any:
        if tree is True:
            return NO_CALLBACK
        return down(tree) if isinstance(tree, dict) else self.functions.method(tree)

    def _read_pickle(self, payload: Any, down: Down) -> Any:
        name, data, mac, trees = payload
        if not isinstance(name, str) or not isinstance(trees, list):
            raise UndecodableError("a pickle has a name and trees beside it")
        data, mac = (down({"$b": text}) for text in (data, mac))
        return self.pickles.load(Pickled(name, data, mac, trees), down)


class _Writing:
    """One request on its way to its body.

    ``values`` are those to which the body refers by digest: large text and bytes, with
    ``seals`` also large lists and dicts. ``names`` are the classes of its pickles. With
    ``is_digest`` there are neither: a pickle is written as the name of its class.
    """

    def __init__(
        self,
        requests: RequestCodec,
        page: Response | None,
        *,
        seals: bool = False,
        is_digest: bool = False,
    ) -> None:
        self._requests = requests
        self._page = page if isinstance(page, TextResponse) else None
        self._seal = self._sealed if seals else None
        self._is_digest = is_digest
        self._of_pages: set[bytes] = set()
        self.values: dict[bytes, bytes] = {}
        self.names: set[str] = set()
        # Bytes of text and bytes among the values, once for each reference to them.
        self.referred = 0

    def body(self, request: Request, automatic: str | None) -> bytes:
        """Return the request's body."""
        return dumps(self._requests.tree(request, self.down, automatic))

    def down(self, value: Any) -> Any:
        """Return the tree of a value of the request."""
        return tags.tag(value, _plain_str, write=self._write, seal=self._seal)

    def sizes(self, body: bytes) -> tuple[int, int]:
        """Return the bytes that are the request's own, and those of all it holds."""
        own_bytes = total_bytes = len(body)
        for digest, data in self.values.items():
            total_bytes += len(data)
            if digest not in self._of_pages:
                own_bytes += len(data)
        return own_bytes, total_bytes

    def _write(self, value: Any, down: Down) -> Any:
        kind = type(value)
        if kind is str or kind is bytes:
            return self._leaf(value)
        if isinstance(value, Request):
            return {"$q": self._requests.tree(value, down, None)}
        tree = self._tagged(value, down)
        if tree is not NO_TAG:
            return tree
        if isinstance(value, str) and not isinstance(value, Enum):
            # lxml's strings hold their tree, markup's are text: see _plain_str.
            return NO_TAG
        # A reader of the body builds the project's classes only.
        if self._requests.is_project(kind.__module__):
            tree = tags.tag_instance(value, down)
        return self._pickle(value, down) if tree is NO_TAG else tree

    def _tagged(self, value: Any, down: Down) -> Any:
        """Return the tree of a value whose tag is not in ``tags``, or ``NO_TAG``."""
        kind = type(value)
        if scrapy_types.has_tag(kind):
            if isinstance(value, Response):
                self._is_of_page(value.body)
            return scrapy_types.tree_of(value, down)
        if kind is Selector or kind is parsel.Selector:
            return self._requests.selectors.tree(value, self._document, self._page)
        if kind is SelectorList or kind is parsel.SelectorList:
            return list_tree(value, down)
        if kind is defaultdict:
            pairs = [[down(key), down(child)] for key, child in value.items()]
            return {"$df": [down(value.default_factory), pairs]}
        if kind is datetime or kind is time:
            zone, plain = value.tzinfo, value.replace(tzinfo=None)
            return {"$dz": [kind.__name__, plain.isoformat(), value.fold, down(zone)]}
        tree = self._requests.functions.tree(value, down)
        if tree is NO_TAG:
            tree = third_party.tree_of(value, down)
            if tree is not NO_TAG:
                self.names.add(name_of(value))
        return tree

    def _pickle(self, value: Any, down: Down) -> Any:
        if self._is_digest:
            return {"$P": name_of(value)}
        pickled = self._requests.pickles.dump(
            value, lambda part: self._apart(part, down)
        )
        self.names.add(pickled.name)
        data, mac = (tags.tag(field)["$b"] for field in (pickled.data, pickled.mac))
        return {"$P": [pickled.name, data, mac, pickled.trees]}

    def _apart(self, part: Any, down: Down) -> Any:
        """Return the tree of a part that stands beside its pickle, None for others."""
        kind = type(part)
        is_apart = (
            isinstance(part, Request)
            or scrapy_types.has_tag(kind)
            or kind in _SELECTORS
            or self._requests.functions.method_name(part) is not None
        )
        return down(part) if is_apart else None

    def _leaf(self, value: str | bytes) -> Any:
        if self._is_digest:
            return NO_TAG
        digest, data = self._requests.remembered.encode(value)
        self.values[digest] = data
        self.referred += len(data)
        return reference(digest)

    def _document(self, value: Any) -> Any:
        """Write what a selector holds; its text is the page's."""
        if isinstance(value, str):
            self._is_of_page(value)
        return self.down(value)

    def _is_of_page(self, value: str | bytes) -> None:
        if len(value) > LEAF_BYTES_MAX and not self._is_digest:
            self._of_pages.add(self._requests.remembered.encode(value)[0])

    def _sealed(self, tree: Any) -> Any:
        if not isinstance(tree, dict | list):
            return tree
        data = dumps(tree)
        if len(data) <= LEAF_BYTES_MAX:
            return tree
        digest = value_digest(data)
        self.values[digest] = data
        return reference(digest)


_SELECTORS = (Selector, SelectorList, parsel.Selector, parsel.SelectorList)


def _state(request: Request) -> dict[str, Any]:
    """Return what the request holds beside the attributes of every request."""
    state = {
        name: getattr(request, name)
        for name in _slots(type(request))
        if hasattr(request, name)
    }
    return {**state, **getattr(request, "__dict__", {})}


def _set_state(request: Request, state: Any) -> None:
    slots = frozenset(_slots(type(request)))
    for name, value in state.items():
        if name in slots:
            setattr(request, name, value)
        else:
            vars(request)[name] = value


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__[: cls.__mro__.index(Request)]:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if is_private else name


def _kind(names: set[str]) -> int:
    if not names:
        return 0
    data = "\n".join(sorted(names)).encode(errors="surrogatepass")
    return 1 + int.from_bytes(blake2b(data, digest_size=8).digest()) % (2**31 - 1)


def _read_defaultdict(payload: Any, down: Down) -> Any:
    factory, pairs = payload
    return defaultdict(
        down(factory), [(down(key), down(child)) for key, child in pairs]
    )


def _read_zoned(payload: Any, down: Down) -> Any:
    name, text, fold, zone = payload
    cls: type[datetime | time] = {"datetime": datetime, "time": time}[name]
    zone = down(zone)
    if not isinstance(zone, tzinfo):
        raise UndecodableError("no zone")
    return cls.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def without_slot(meta: dict[str, Any], automatic: str) -> dict[str, Any]:
    """Return ``meta`` without its download slot if that is ``automatic``."""
    if meta.get(_DOWNLOAD_SLOT) != automatic:
        return meta
    return {name: value for name, value in meta.items() if name != _DOWNLOAD_SLOT}


def body_digest(body: msgspec.Raw) -> bytes:
    """Return a digest by which a request is known again when its page is run again.

    What may differ from run to run does not count: pickles, and what Scrapy's
    downloader and its middlewares write into ``meta``, which pages copy.
    """
    try:
        tree = json.loads(bytes(body))
        meta = tree.get("meta") if isinstance(tree, dict) else None
        if isinstance(meta, dict):
            for name in _OF_DOWNLOADS & meta.keys():
                del meta[name]
        return short_digest(dumps(_without_pickles(tree)))
    except RecursionError:
        return short_digest(bytes(body))


def _without_pickles(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_without_pickles(child) for child in tree]
    if isinstance(tree, dict):
        return {
            key: child[0] if key == "$P" else _without_pickles(child)
            for key, child in tree.items()
        }
    return tree


def short_digest(data: bytes) -> bytes:
    """Return a digest (``DIGEST_BYTES``) of data; addresses in a repr do not count."""
    if b" at 0x" in data:
        data = _ADDRESS.sub("", data.decode(errors="replace")).encode()
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def wire_fingerprint(fingerprint: bytes) -> bytes:
    """Return the fingerprint in the length that travels."""
    if len(fingerprint) == FINGERPRINT_BYTES:
        return fingerprint
    return blake2b(fingerprint, digest_size=FINGERPRINT_BYTES).digest()


def clean_text(text: str) -> str:
    """Return text that UTF-8 can carry."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _plain_str(value: Any) -> Any:
    # lxml and markup libraries give subclasses of str; as text they are the same.
    if isinstance(value, str):
        return str.__str__(value)
    kind = type(value)
    raise UnencodableError(f"no tag for {kind.__module__}.{kind.__qualname__}")
