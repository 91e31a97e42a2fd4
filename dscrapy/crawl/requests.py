"""A Scrapy request as a JSON body that any process of its job can read.

A body is an object of the request's public attributes, as ``Request.to_dict`` has
them; what has its default is left out of a plain ``Request``. Callbacks are names of
this spider's methods (``true`` is ``NO_CALLBACK``), values are tagged as in ``codec``,
and a request among them is ``{"$q": body}``. What cannot be said so stays in its
process: ``UnencodableError``.
"""

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import blake2b
from types import MappingProxyType, MethodType
from typing import Any

from scrapy import Request, Spider
from scrapy.http.request import NO_CALLBACK

from dscrapy.crawl import codec
from dscrapy.crawl.codec import LEAF_BYTES_MAX, UndecodableError, UnencodableError
from dscrapy.crawl.items import is_wire_json
from dscrapy.crawl.standard import NO_TAG, Down
from dscrapy.crawl.values import (
    EXPANDED_BYTES_MAX,
    EncodedRequest,
    Following,
    Remembered,
    dumps,
    reference,
    value_digest,
)
from dscrapy.messages import DIGEST_BYTES, FINGERPRINT_BYTES

# A body with its values travels twice (in a commit and in a grant) and rests in the
# master's file; half a frame leaves room for what stands around it.
BODY_BYTES_MAX = 4 * 1024 * 1024
_DOWNLOAD_SLOT = "download_slot"
# All that a body may have imported of Scrapy: where its requests stand.
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

    ``is_project`` says which modules are the project's: only its classes and
    Scrapy's of requests are ever built.
    """

    def __init__(self, spider: Spider, is_project: Callable[[str], bool]) -> None:
        self._spider = spider
        self._is_project = is_project
        self._find_class = codec.class_finder(is_project)
        self._find_request = codec.class_finder(
            lambda module: module.startswith(_SCRAPY_REQUESTS) or is_project(module)
        )
        self._names: dict[Any, str | None] = {}
        self._classes: dict[type, str | None] = {}
        self._remembered = Remembered()

    @property
    def is_project(self) -> Callable[[str], bool]:
        """Whether a module is the project's."""
        return self._is_project

    def encode(
        self, request: Request, automatic_slot: str | None = None
    ) -> EncodedRequest:
        """Return the request's body and values; raises ``UnencodableError``.

        ``automatic_slot`` is the download slot that Scrapy, not the project, gave
        to the request that this one comes from: copied into this one's ``meta`` it
        would say nothing about this one's host, and is left out.
        """
        writing = _Writing(self, self._remembered)
        body = writing.body(request, automatic_slot)
        if len(body) + writing.referred > EXPANDED_BYTES_MAX:
            raise UnencodableError(f"more than {EXPANDED_BYTES_MAX} bytes as JSON")
        if len(body) > LEAF_BYTES_MAX:
            writing = _Writing(self, self._remembered, seals=True)
            body = writing.body(request, automatic_slot)
        total = len(body) + sum(map(len, writing.values.values()))
        if total > BODY_BYTES_MAX:
            raise UnencodableError(
                f"{total} bytes as JSON, the limit is {BODY_BYTES_MAX}"
            )
        if not all(map(is_wire_json, (body, *writing.values.values()))):
            raise UnencodableError("nested too deep for a message")
        return EncodedRequest(body, writing.values, 0)

    def decode(self, body: bytes, values: Mapping[bytes, bytes] = _NOTHING) -> Request:
        """Return the request of a body and the values to which it refers.

        Raises ``UndecodableError``; ``UnreadableError`` where the body is sound and
        this process alone cannot load what it names.
        """
        try:
            tree = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"no JSON: {error}") from error
        more = {"$q": self._read_nested, "$v": Following(values).read}
        request = codec.untag({"$q": tree}, self._find_class, more=more)
        assert isinstance(request, Request)
        return request

    def digest(self, request: Request) -> bytes:
        """Return what tells this element of ``start()`` in another run of it.

        What has no body is told by the parts that have one.
        """
        writing = _Writing(self, None)
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
        tree: dict[str, Any] = {"url": down(request.url)}
        if not is_plain:
            tree["class"] = self._class_name(request)
        for name in ("callback", "errback"):
            function = getattr(request, name)
            if function is not None:
                tree[name] = self._name_of(function)
        for name, default in _SIMPLE.items():
            value = getattr(request, name)
            if value != default or not is_plain:
                tree[name] = down(value)
        if request.headers:
            tree["headers"] = [
                [_text(name), [_text(value) for value in values]]
                for name, values in request.headers.items()
            ]
        if request.body:
            is_large = len(request.body) > LEAF_BYTES_MAX
            tree["body"] = down(request.body) if is_large else _text(request.body)
        for name in _OPEN:
            value = getattr(request, name)
            if name == "meta" and automatic is not None:
                value = without_slot(value, automatic)
            if value:
                tree[name] = down(value)
        for name in cls.attributes:
            if name not in _COMMON:
                tree[name] = down(getattr(request, name))
        return tree

    def _class_name(self, request: Request) -> str:
        cls = type(request)
        if cls not in self._classes:
            path = codec.class_path(cls)
            if path is None or self._find_request(path) is not cls:
                path = None
            self._classes[cls] = path
            if path is not None and not self._can_be_built(request):
                self._classes[cls] = None
        path = self._classes[cls]
        if path is None:
            raise UnencodableError(
                f"{cls.__module__}.{cls.__qualname__} is neither Scrapy's nor a class "
                "of the project's that its attributes alone can build"
            )
        return path

    def _can_be_built(self, request: Request) -> bool:
        """Try a class once: its ``__init__`` may ask for more than attributes."""
        bare = request.replace(meta={}, cb_kwargs={}, callback=None, errback=None)
        # The project's own class may raise anything.
        try:
            encoded = self.encode(bare)
            built = self.decode(encoded.body, encoded.values)
        except Exception:  # noqa: BLE001 - user code
            return False
        return built.url == request.url and built.body == request.body

    def _name_of(self, function: Any) -> Any:
        if function is NO_CALLBACK:
            return True
        name = None
        if isinstance(function, MethodType) and function.__self__ is self._spider:
            plain = function.__func__
            if plain not in self._names:
                self._names[plain] = self._find_name(plain)
            name = self._names[plain]
        if name is None:
            raise UnencodableError(f"{function!r} is no method of this spider")
        return name

    def _find_name(self, plain: Any) -> str | None:
        """Return the name under which the spider has this function as a method."""
        for cls in type(self._spider).__mro__:
            for name, value in vars(cls).items():
                if value is plain:
                    # A subclass may have put another in its place.
                    found = getattr(self._spider, name, None)
                    if getattr(found, "__func__", None) is plain:
                        return name
        return None

    # ---- reading --------------------------------------------------------------

    def _read_nested(self, tree: Any, down: Down) -> Request:
        if not isinstance(tree, dict):
            raise UndecodableError("a request is an object")
        cls: Any = Request
        values: dict[str, Any] = {}
        for name, value in tree.items():
            match name:
                case "class":
                    cls = self._request_class(value)
                case "callback" | "errback":
                    values[name] = self._method(value)
                case "headers":
                    values[name] = {
                        _bytes(key, down): [_bytes(one, down) for one in group]
                        for key, group in value
                    }
                case "body":
                    values[name] = _bytes(value, down)
                case _:
                    values[name] = down(value)
        if values.keys() - set(cls.attributes):
            raise UndecodableError(f"{cls.__qualname__} has no such attributes")
        # The project's own class may raise anything.
        try:
            request = cls(**values)
        except Exception as error:
            raise UndecodableError(f"{type(error).__name__}: {error}") from error
        assert isinstance(request, Request)
        return request

    def _request_class(self, path: Any) -> type[Request]:
        found = self._find_request(path) if isinstance(path, str) else None
        if found is None or not issubclass(found, Request):
            raise UndecodableError(f"{path!r:.200} is no request class of the project")
        return found

    def _method(self, name: Any) -> Any:
        if name is True:
            return NO_CALLBACK
        method = getattr(self._spider, name, None) if isinstance(name, str) else None
        is_own = isinstance(method, MethodType) and method.__self__ is self._spider
        if not is_own:
            raise UndecodableError(f"{name!r:.200} is no method of this spider")
        return method


class _Writing:
    """One request on its way to its body; ``values`` are those told by digest.

    Without ``remembered`` nothing is. With ``seals`` also lists, dicts and whatever
    else is large, not only text and bytes.
    """

    def __init__(
        self,
        requests: RequestCodec,
        remembered: Remembered | None,
        *,
        seals: bool = False,
    ) -> None:
        self._requests = requests
        self._remembered = remembered
        self._seal = self._sealed if seals else None
        self.values: dict[bytes, bytes] = {}
        # What the text and bytes among them would be in the places of all references.
        self.referred = 0

    def body(self, request: Request, automatic: str | None) -> bytes:
        """Return the request's body."""
        return dumps(self._requests.tree(request, self.down, automatic))

    def down(self, value: Any) -> Any:
        """Return the tree of a value of the request."""
        return codec.tag(value, _plain_str, write=self._write, seal=self._seal)

    def _write(self, value: Any, down: Down) -> Any:
        kind = type(value)
        if kind is str or kind is bytes:
            return self._leaf(value)
        if isinstance(value, Request):
            return {"$q": self._requests.tree(value, down, None)}
        if isinstance(value, str) and not isinstance(value, Enum):
            return NO_TAG
        # Whoever reads it builds the project's classes only.
        if not self._requests.is_project(kind.__module__):
            raise UnencodableError(
                f"{kind.__module__}.{kind.__qualname__} is not the project's"
            )
        return NO_TAG

    def _leaf(self, value: str | bytes) -> Any:
        if self._remembered is None:
            return NO_TAG
        digest, data = self._remembered.encode(value)
        self.values[digest] = data
        self.referred += len(data)
        return reference(digest)

    def _sealed(self, tree: Any) -> Any:
        if not isinstance(tree, dict | list):
            return tree
        data = dumps(tree)
        if len(data) <= LEAF_BYTES_MAX:
            return tree
        digest = value_digest(data)
        self.values[digest] = data
        return reference(digest)


def without_slot(meta: dict[str, Any], automatic: str) -> dict[str, Any]:
    """Return ``meta`` without its download slot if that is ``automatic``."""
    if meta.get(_DOWNLOAD_SLOT) != automatic:
        return meta
    return {name: value for name, value in meta.items() if name != _DOWNLOAD_SLOT}


def short_digest(data: bytes) -> bytes:
    """Return ``DIGEST_BYTES`` that tell this data; addresses in a repr do not count."""
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


def _text(data: bytes) -> Any:
    """Return bytes as text where they are UTF-8, else tagged."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return codec.tag(data)


def _bytes(tree: Any, down: Down) -> bytes:
    value = down(tree)
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise UndecodableError("headers and bodies are bytes")
    return value
