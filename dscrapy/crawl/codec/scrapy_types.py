"""Tags of Scrapy's own types that requests carry; ``selectors`` has those of selectors.

===========  ===============================================================
``$H``       Headers: encoding, names with their values
``$L``       Link: url, text, fragment, nofollow
``$R``       a response of Scrapy's classes: name of the class, attributes
``$IL``      ItemLoader of Scrapy's or ``itemloaders``: attributes
===========  ===============================================================

Subclasses have attributes and behaviour of their own, so their instances are pickles;
values in them that have a tag here stand beside the pickle.
"""

from collections.abc import Mapping
from typing import Any

import itemloaders
import scrapy.loader
from scrapy import Request
from scrapy.http import (
    Headers,
    HtmlResponse,
    JsonResponse,
    Response,
    TextResponse,
    XmlResponse,
)
from scrapy.link import Link
from twisted.internet.ssl import Certificate

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.stdlib_types import Down
from dscrapy.crawl.codec.tags import UndecodableError
from dscrapy.crawl.insides.probes import declared_encoding

RESPONSES: Mapping[str, type[Response]] = {
    cls.__name__: cls
    for cls in (Response, TextResponse, HtmlResponse, XmlResponse, JsonResponse)
}
_RESPONSE_CLASSES = frozenset(RESPONSES.values())
_LOADERS: Mapping[str, type[itemloaders.ItemLoader]] = {
    "scrapy": scrapy.loader.ItemLoader,
    "itemloaders": itemloaders.ItemLoader,
}
_LOADER_CLASSES = frozenset(_LOADERS.values())
_NO_VALUE = object()


def text_of(data: bytes) -> Any:
    """Return bytes as text where they are UTF-8, else tagged."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return tags.tag(data)


def bytes_of(tree: Any, down: Down) -> bytes:
    """Return the bytes of a tree that ``text_of`` wrote."""
    value = down(tree)
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise UndecodableError("headers and bodies are bytes")
    return value


def header_pairs(headers: Headers) -> list[Any]:
    """Return names with their values."""
    return [
        [text_of(name), [text_of(value) for value in values]]
        for name, values in headers.items()
    ]


def read_header_pairs(pairs: Any, down: Down) -> dict[bytes, list[bytes]]:
    """Return what ``header_pairs`` wrote."""
    return {
        bytes_of(name, down): [bytes_of(value, down) for value in values]
        for name, values in pairs
    }


def has_tag(cls: type) -> bool:
    """Whether instances of exactly this class have a tag here."""
    return (
        cls is Headers
        or cls is Link
        or cls in _RESPONSE_CLASSES
        or cls in _LOADER_CLASSES
    )


def tree_of(value: Any, down: Down) -> Any:
    """Return the tree of a value for whose class ``is_known`` holds."""
    match value:
        case Headers():
            return {"$H": [value.encoding, header_pairs(value)]}
        case Link():
            fields = (value.url, value.text, value.fragment, value.nofollow)
            return {"$L": [down(field) for field in fields]}
        case Response():
            return {"$R": [type(value).__name__, _response_fields(value, down)]}
    assert isinstance(value, itemloaders.ItemLoader)
    return {"$IL": _loader_fields(value, down)}


# ---- responses --------------------------------------------------------------------


def _response_fields(value: Response, down: Down) -> dict[str, Any]:
    fields: dict[str, Any] = {"url": down(value.url), "status": value.status}
    if value.headers:
        fields["headers"] = down(value.headers)
    if value.body:
        fields["body"] = down(value.body)
    # The declared encoding alone: one guessed from the body is guessed again.
    encoding = declared_encoding(value)
    for name, field in (
        ("flags", value.flags or None),
        ("request", value.request),
        ("ip_address", value.ip_address),
        ("protocol", value.protocol),
        ("encoding", encoding),
    ):
        if field is not None:
            fields[name] = down(field)
    certificate = value.certificate
    if type(certificate) is Certificate:
        fields["certificate"] = {"$b": _der(certificate)}
    elif certificate is not None:
        fields["other_certificate"] = down(certificate)
    return fields


def _der(certificate: Certificate) -> Any:
    return tags.tag(certificate.dump())["$b"]


def _read_response(payload: Any, down: Down) -> Response:
    name, fields = payload
    cls = RESPONSES[name]
    values = {key: down(tree) for key, tree in fields.items()}
    if "certificate" in values:
        values["certificate"] = _certificate(values["certificate"])
    elif "other_certificate" in values:
        values["certificate"] = values.pop("other_certificate")
    request = values.get("request")
    if request is not None and not isinstance(request, Request):
        raise UndecodableError("a response belongs to a request")
    headers = values.pop("headers", None)
    if headers is not None and not isinstance(headers, Headers):
        raise UndecodableError("headers of a response are headers")
    response = cls(**values)
    if headers is not None:
        response.headers = headers
    return response


def _certificate(data: Any) -> Certificate:
    # pyOpenSSL has errors of its own.
    try:
        return Certificate.load(data)
    except Exception as error:
        raise UndecodableError(f"no certificate: {error}") from error


# ---- loaders ----------------------------------------------------------------------


def _loader_fields(value: itemloaders.ItemLoader, down: Down) -> dict[str, Any]:
    """Return a loader's attributes.

    A loader's item and selector are in its context too, a nested loader's item in its
    parent. Each is written once, so that reading gives one object again.
    """
    attributes = dict(vars(value))
    context = dict(attributes.pop("context"))
    item, parent = attributes.pop("_local_item"), attributes.pop("parent")
    fields: dict[str, Any] = {}
    if type(value) is itemloaders.ItemLoader:
        fields["class"] = "itemloaders"
    if parent is not None:
        fields["parent"] = down(parent)
    if parent is None or item is not parent._local_item:
        fields["item"] = down(item)
    shared = []
    for name, attribute in (("item", item), ("selector", value.selector)):
        if name in context and context[name] is attribute:
            del context[name]
            shared.append(name)
    fields["shared"] = shared
    fields["context"] = down(context)
    fields["attributes"] = down(attributes)
    return fields


def _read_loader(payload: Any, down: Down) -> itemloaders.ItemLoader:
    cls = _LOADERS[payload.get("class", "scrapy")]
    attributes, context = down(payload["attributes"]), down(payload["context"])
    parent = down(payload["parent"]) if "parent" in payload else None
    if parent is not None and not isinstance(parent, itemloaders.ItemLoader):
        raise UndecodableError("a loader is nested in a loader")
    if "item" in payload:
        item = down(payload["item"])
    elif parent is not None:
        item = parent._local_item
    else:
        raise UndecodableError("a loader has an item")
    loader = cls.__new__(cls)
    vars(loader).update(attributes)
    own_values = {"item": item, "selector": loader.selector}
    context.update({name: own_values[name] for name in payload["shared"]})
    vars(loader).update(context=context, _local_item=item, parent=parent)
    return loader


READERS = {
    "$H": lambda payload, down: _read_headers(payload, down),
    "$L": lambda payload, down: Link(*[down(child) for child in payload]),
    "$R": _read_response,
    "$IL": _read_loader,
}


def _read_headers(payload: Any, down: Down) -> Headers:
    encoding, pairs = payload
    return Headers(read_header_pairs(pairs, down), encoding=encoding)
