"""One item to its line of ``items.jsonl`` and, where that differs, its tagged form.

The line is what Scrapy's JSON lines exporter writes under the project's settings,
except that it is always UTF-8. What the exporter cannot write becomes its ``repr``
in the line; the tagged form may still hold it.

An item that nests too deep for a message travels as a string of JSON. One that nests
too deep for the interpreter's own limit is written and read by ``deeply``, after the
plain way, which does for nearly all items, has failed.
"""

import codecs
import contextlib
import json
import sys
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

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.deep_recursion import deeply
from dscrapy.crawl.insides.probes import serialized_fields

# Items nest no deeper: the deepest that any of Scrapy's formats writes (marshal). The
# limit ends cycles, too. Values of requests nest less deep (``tags.DEPTH_MAX``).
DEPTH_MAX = 2_000
# Bytes of an item's line, or of its tagged form, unless the project sets another limit:
# some copies of the item are in memory at a time, here and wherever it is exported.
# 64 MiB for a single value, and 64 KiB for the rest of an item that holds one.
ITEM_BYTES_MAX = 64 * 1024 * 1024 + 64 * 1024
ITEM_BYTES_SETTING = "DSCRAPY_ITEM_BYTES_MAX"
# Python's default. A project may raise its limit, but the processes that read a message
# have the default.
_RECURSION_LIMIT = 1000
# The format whose exporter writes the job's lines, if it writes lines of JSON at all.
_LINE_FORMAT = "jsonl"
# A line is checked inside as many more arrays as a message or a reader may put
# around it, since their decoders recurse.
_MARGIN = 64
# repr of one value in a line; a repr can be as large as what it describes.
REPR_CHARS_MAX = 10_000


class Encoded(NamedTuple):
    """``line`` and ``tagged`` as they stand in the job's files, where a tagged form
    that is None stands as ``null``; ``is_lossy`` when a repr stands in."""

    line: bytes
    tagged: bytes | None
    is_lossy: bool

    @property
    def size(self) -> int:
        """Bytes of the longer form: what ``DSCRAPY_ITEM_BYTES_MAX`` limits."""
        return max(len(self.line), len(self.tagged or b""))


class ItemEncoder:
    """Encodes the items of one crawl; not for use by two threads."""

    def __init__(self, crawler: Crawler) -> None:
        self._file = BytesIO()
        self._exporter = _jsonlines_exporter(crawler, self._file)

    def encode(self, item: Any) -> Encoded:
        """Return the item's forms; ``TypeError`` for what is no item at all."""
        if not ItemAdapter.is_item(item):
            raise TypeError(f"{type(item).__name__} is no item: {item!r:.200}")
        try:
            return self._encode(item, tags.DEPTH_MAX)
        except (RecursionError, tags.TooDeepError):
            return deeply(lambda: self._encode(item, DEPTH_MAX))

    def _encode(self, item: Any, depth_max: int) -> Encoded:
        """Return the item's forms; only with ``DEPTH_MAX`` however deep it is."""
        may_raise = depth_max < DEPTH_MAX
        is_lossy = False
        # The exporter calls the project's own serializers: any error may come.
        try:
            line = self._plain_line(item)
        except Exception as error:
            if may_raise and isinstance(error, RecursionError):
                raise
            is_lossy = True
            line = json.dumps(self._lossy_fields(item)).encode()
        # The project's own repr, items and properties may be called: any error.
        try:
            tagged = self._tagged(item, line, depth_max)
        except Exception as error:
            if may_raise and isinstance(error, RecursionError | tags.TooDeepError):
                raise
            tagged = None
        return Encoded(line, tagged, is_lossy)

    def _plain_line(self, item: Any) -> bytes:
        try:
            self._exporter.export_item(item)
            line = self._file.getvalue().removesuffix(b"\n")
        finally:
            # The memory of a large item is not kept until the next item comes.
            self._file.seek(0)
            self._file.truncate()
        if b"\n" in line:
            raise ValueError("the exporter wrote more than one line")
        return line

    def _tagged(self, item: Any, line: bytes, depth_max: int) -> bytes | None:
        tree = tags.tag(item, self._as_in_line, depth_max=depth_max)
        if self._is_line(tree, line):
            return None
        if isinstance(tree, dict) and "$i" in tree:
            path, fields, values = tree["$i"]
            if self._is_line(values, line):
                # The line holds the values; the tagged form needs only the class.
                tree = {"$i": [path, fields]}
        return json.dumps(
            tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()

    def _is_line(self, tree: Any, line: bytes) -> bool:
        return self._exporter.encoder.encode(tree).encode() == line

    def _as_in_line(self, value: Any) -> Any:
        # A value without a tag is written as in the line: a str subclass as a str.
        try:
            return json.loads(self._exporter.encoder.encode(value))
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - user code
            return lossy(value)

    def _lossy_fields(self, item: Any) -> dict[str, Any]:
        adapter = ItemAdapter(item)
        # The values as they are, if a serializer failed or a key is no field's name.
        fields: Iterable[tuple[Any, Any]] = adapter.items()
        if all(isinstance(name, str) for name in adapter):
            with contextlib.suppress(Exception):
                fields = serialized_fields(self._exporter, item)
        return {_lossy_key(name): lossy(value) for name, value in fields}


def item_of(line: bytes, tagged: bytes | None, find_class: tags.FindClass) -> Any:
    """Return the item of its two forms, read leniently as in ``tags.untag``.

    Raises ``UndecodableError`` for forms that are no item's, whatever they hold.
    """
    try:
        return _item_of(line, tagged, find_class)
    except (ValueError, RecursionError, tags.UndecodableError):
        # Perhaps the item is too deep; a bad one fails again.
        return deeply(lambda: _read_deep(line, tagged, find_class))


def _read_deep(line: bytes, tagged: bytes | None, find_class: tags.FindClass) -> Any:
    try:
        return _item_of(line, tagged, find_class)
    except (ValueError, RecursionError, tags.UnencodableError) as error:
        text = f"{type(error).__name__}: {error}"
        raise tags.UndecodableError(text[:REPR_CHARS_MAX]) from None


def _item_of(line: bytes, tagged: bytes | None, find_class: tags.FindClass) -> Any:
    if tagged is None or tagged == b"null":
        return json.loads(line)
    return tags.untag(join(line, tagged), find_class, lenient=True)


def join(line: bytes, tagged: bytes) -> Any:
    """Return the tagged tree of an item from its two forms, ready for ``untag``.

    Raises ``ValueError`` if one of them is no JSON.
    """
    tree = json.loads(tagged)
    if isinstance(tree, str):
        tree = json.loads(tree)
    if isinstance(tree, dict) and len(tree.get("$i", ())) == 2:
        values = {
            name: tags.tag(value, depth_max=DEPTH_MAX)
            for name, value in json.loads(line).items()
        }
        return {"$i": [*tree["$i"], values]}
    return tree


def wire_line(line: bytes) -> bytes:
    """Return the line as a JSON value: itself, or a string that holds it."""
    if line.startswith(b"{") and is_wire_json(line):
        return line
    return json.dumps(line.decode()).encode()


def wire_form(tagged: bytes | None) -> bytes | None:
    """Return a tagged form as it can stand in a message: itself, or in a string."""
    if tagged is None or is_wire_json(tagged):
        return tagged
    return json.dumps(tagged.decode()).encode()


def is_wire_json(data: bytes) -> bool:
    """Whether a message can carry these bytes as a JSON value wherever it nests."""
    margin = _MARGIN + max(0, sys.getrecursionlimit() - _RECURSION_LIMIT)
    try:
        msgspec.json.decode(b"[" * margin + data + b"]" * margin, type=_Probe)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def item_bytes_max(settings: BaseSettings) -> int:
    """Return the project's limit of an item's bytes; raises ``ValueError``."""
    value = settings.get(ITEM_BYTES_SETTING, ITEM_BYTES_MAX)
    try:
        limit = int(value)
    except (TypeError, ValueError):
        limit = 0
    if limit < 1:
        raise ValueError(
            f"{ITEM_BYTES_SETTING} must be a number of bytes over 0, not {value!r:.80}"
        )
    return limit


# Decoding to a Raw checks the syntax and builds nothing.
_Probe = list[msgspec.Raw]


def lossy(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return plain JSON data, with ``repr`` for whatever JSON cannot hold.

    ``around`` holds the ids of the containers that ``value`` is in.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if id(value) in around or len(around) > tags.DEPTH_MAX:
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


def is_lines(settings: BaseSettings, format: str) -> bool:
    """Whether a file of this format is, byte for byte, the job's lines: Scrapy's own
    exporter would have written the file, and has written them."""
    is_stock = _exporter_of(settings, format) is JsonLinesItemExporter
    encoding = settings["FEED_EXPORT_ENCODING"] or None
    has_encoding = encoding == line_encoding(settings)
    return is_stock and has_encoding and lines_are_stock(settings)


def lines_are_stock(settings: BaseSettings) -> bool:
    """Whether the job's lines are of Scrapy's exporter, not of one like it."""
    return _line_exporter(settings) is JsonLinesItemExporter


def _line_exporter(settings: BaseSettings) -> type[JsonLinesItemExporter]:
    exporter = _exporter_of(settings, _LINE_FORMAT)
    writes_lines = isinstance(exporter, type) and issubclass(
        exporter, JsonLinesItemExporter
    )
    return exporter if writes_lines else JsonLinesItemExporter


def _exporter_of(settings: BaseSettings, format: str) -> Any:
    """Return a format's exporter; None if there is none, or it cannot be loaded."""
    path = settings.getwithbase("FEED_EXPORTERS").get(format)
    # The project's own code may raise anything, and need not be asked for.
    try:
        return None if path is None else load_object(path)
    except Exception:  # noqa: BLE001 - user code
        return None


def _jsonlines_exporter(crawler: Crawler, file: BytesIO) -> JsonLinesItemExporter:
    settings = crawler.settings
    options = feed_complete_default_values_from_settings({"format": "jsonl"}, settings)
    exporter: JsonLinesItemExporter = build_from_crawler(
        _line_exporter(settings),
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
