"""One item to its line of ``items.jsonl`` and, where that differs, its tagged form.

The line is what Scrapy's JSON lines exporter writes under the project's settings,
except that it is always UTF-8. What the exporter cannot write becomes its ``repr``
in the line; the tagged form may still hold it.
"""

import codecs
import contextlib
import json
from collections.abc import Iterable
from io import BytesIO
from typing import Any, NamedTuple

import msgspec
from itemadapter import ItemAdapter
from scrapy.crawler import Crawler
from scrapy.exporters import JsonLinesItemExporter
from scrapy.settings import BaseSettings
from scrapy.utils.conf import feed_complete_default_values_from_settings
from scrapy.utils.misc import build_from_crawler, load_object
from scrapy.utils.serialize import ScrapyJSONEncoder

from dscrapy.crawl import codec

# A line is checked inside as many more arrays as a message or a reader may put
# around it, since their decoders recurse.
_MARGIN = 64
# repr of one value in a line; a repr can be as large as what it describes.
REPR_CHARS_MAX = 10_000


class Encoded(NamedTuple):
    """``line`` and ``tagged`` as they travel; ``is_lossy`` when a repr stands in."""

    line: bytes
    tagged: bytes | None
    is_lossy: bool


class ItemEncoder:
    """Encodes the items of one crawl; not for use by two threads."""

    def __init__(self, crawler: Crawler) -> None:
        self._file = BytesIO()
        self._exporter = _jsonlines_exporter(crawler, self._file)

    def encode(self, item: Any) -> Encoded:
        """Return the item's forms; ``TypeError`` for what is no item at all."""
        if not ItemAdapter.is_item(item):
            raise TypeError(f"{type(item).__name__} is no item: {item!r:.200}")
        is_lossy = False
        # The exporter calls the project's own serializers: any error may come.
        try:
            text = self._plain_line(item)
        except Exception:  # noqa: BLE001 - user code
            is_lossy = True
            text = json.dumps(self._lossy_fields(item))
        return Encoded(wire_line(text), self._tagged(item, text), is_lossy)

    def _plain_line(self, item: Any) -> str:
        self._file.seek(0)
        self._file.truncate()
        self._exporter.export_item(item)
        text = self._file.getvalue().decode().removesuffix("\n")
        if "\n" in text:
            raise ValueError("the exporter wrote more than one line")
        return text

    def _tagged(self, item: Any, line: str) -> bytes | None:
        # The project's own repr, items and properties may be called: any error.
        try:
            tree = codec.tag(item, self._as_in_line)
            if self._exporter.encoder.encode(tree) == line:
                return None
            if isinstance(tree, dict) and "$i" in tree:
                path, fields, values = tree["$i"]
                if self._exporter.encoder.encode(values) == line:
                    # The line holds the values; only the class is to be told.
                    tree = {"$i": [path, fields]}
            text = json.dumps(
                tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
            data = text.encode()
        except Exception:  # noqa: BLE001 - user code
            return None
        return data if is_wire_json(data) else None

    def _as_in_line(self, value: Any) -> Any:
        # What has no tag is told as the line tells it: a str subclass as a str.
        try:
            return json.loads(self._exporter.encoder.encode(value))
        except Exception:  # noqa: BLE001 - user code
            return lossy(value)

    def _lossy_fields(self, item: Any) -> dict[str, Any]:
        adapter = ItemAdapter(item)
        # The values as they are, if a serializer failed or a key is no field's name.
        fields: Iterable[tuple[Any, Any]] = adapter.items()
        if all(isinstance(name, str) for name in adapter):
            with contextlib.suppress(Exception):
                fields = list(self._exporter.get_serialized_fields(item))
        return {_lossy_key(name): lossy(value) for name, value in fields}


def join(line: bytes, tagged: bytes | None) -> Any:
    """Return the tagged tree of an item from its two forms, ready for ``untag``.

    Raises ``ValueError`` if the line is no JSON.
    """
    if tagged is None or tagged == b"null":
        return _escape(json.loads(line))
    tree = json.loads(tagged)
    if isinstance(tree, dict) and len(tree.get("$i", ())) == 2:
        values = {name: _escape(value) for name, value in json.loads(line).items()}
        return {"$i": [*tree["$i"], values]}
    return tree


def wire_line(text: str) -> bytes:
    """Return the line as a JSON value: itself, or a string that holds it."""
    data = text.encode()
    if data.startswith(b"{") and is_wire_json(data):
        return data
    return json.dumps(text).encode()


def is_wire_json(data: bytes) -> bool:
    """Whether a message can carry these bytes as a JSON value wherever it nests."""
    try:
        msgspec.json.decode(b"[" * _MARGIN + data + b"]" * _MARGIN, type=_Probe)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


# Decoding to a Raw checks the syntax and builds nothing.
_Probe = list[msgspec.Raw]


def lossy(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return plain JSON data, with ``repr`` for whatever JSON cannot hold.

    ``around`` holds the ids of the containers that ``value`` is in.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if id(value) in around or len(around) > codec.DEPTH_MAX:
        return _safe_repr(value)
    around = (*around, id(value))
    if isinstance(value, dict):
        return {_lossy_key(k): lossy(child, around) for k, child in value.items()}
    if isinstance(value, list | tuple):
        return [lossy(child, around) for child in value]
    try:
        return lossy(ScrapyJSONEncoder().default(value), around)
    except Exception:  # noqa: BLE001 - user code
        return _safe_repr(value)


def _lossy_key(key: Any) -> Any:
    if key is None or isinstance(key, str | bool | int | float):
        return key
    return _safe_repr(key)


def _safe_repr(value: Any) -> str:
    # Anything can go wrong in the project's own __repr__.
    try:
        return repr(value)[:REPR_CHARS_MAX]
    except Exception:  # noqa: BLE001 - user code
        return object.__repr__(value)


def _escape(value: Any) -> Any:
    """Return the tagged tree of data that came from plain JSON."""
    return codec.tag(value)


def _jsonlines_exporter(crawler: Crawler, file: BytesIO) -> JsonLinesItemExporter:
    settings = crawler.settings
    cls = load_object(settings.getwithbase("FEED_EXPORTERS")["jsonl"])
    if not issubclass(cls, JsonLinesItemExporter):
        cls = JsonLinesItemExporter
    options = feed_complete_default_values_from_settings({"format": "jsonl"}, settings)
    exporter: JsonLinesItemExporter = build_from_crawler(
        cls,
        crawler,
        file,
        fields_to_export=options["fields"],
        encoding=line_encoding(settings),
        indent=options["indent"],
    )
    return exporter


def line_encoding(settings: BaseSettings) -> str | None:
    """Return the encoding of lines: the project's if its bytes are UTF-8, or UTF-8.

    A job's lines travel as JSON and rest in one file, and both are UTF-8; another
    ``FEED_EXPORT_ENCODING`` is applied when the lines are exported.
    """
    encoding: str | None = settings["FEED_EXPORT_ENCODING"]
    if not encoding or codecs.lookup(encoding).name in ("utf-8", "ascii"):
        return encoding or None
    return "utf-8"
