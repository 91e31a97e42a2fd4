"""Values of a crawl as JSON trees with type tags, and back; no pickle.

A value that JSON can hold stands as it is. Any other is an object with one key that
begins with ``$``:

===========  ==========================  ===========  ==========================
``$b``       bytes, base64               ``$da``      date, ISO
``$ba``      bytearray, base64           ``$ti``      time: ISO, fold, zone
``$t``       tuple                       ``$dt``      datetime: ISO, fold, zone
``$s``       set                         ``$td``      days, seconds, microseconds
``$fs``      frozenset                   ``$D``       Decimal
``$d``       dict of any keys: pairs     ``$U``       UUID
``$f``       nan, inf, -inf              ``$c``       complex: real, imaginary
``$u``       str with lone surrogates    ``$r``       range: start, stop, step
``$p``       Path                        ``$e``       Enum: class, value
``$n``       namedtuple: class, values   ``$i``       item: class, fields, values
===========  ==========================  ===========  ==========================

``stdlib_types`` has the tags of more of Python's own types. ``request_bodies`` has
further tags, which are read in requests only.

A dict with a key that begins with ``$`` is written as ``$d``, so a value is never
taken for a tag. A zone is null, an offset in microseconds (with a name: both) or the
key of a named zone. A class is ``module:qualname``; its instances are rebuilt without
running its ``__init__``, and only when the caller's ``find_class`` knows it.
"""

import base64
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from itemadapter import ItemAdapter
from scrapy import Field, Item
from scrapy.item import ItemMeta

from dscrapy.crawl.codec import stdlib_types
from dscrapy.crawl.codec.stdlib_types import NO_TAG, Down, read_zone, zone_tag
from dscrapy.crawl.insides.probes import exporters_order_fields

# Trees nest no deeper: the wire's decoder and every reader of the lines recurse.
# Nobody nests data like this by hand; a cycle ends here too.
DEPTH_MAX = 100

# Longer text and bytes are offered to ``write`` first, which may write a digest.
LEAF_BYTES_MAX = 16 * 1024
_PATH_TYPE = type(Path())
_IS_ORDERED = exporters_order_fields()

# Name of a class on the wire -> the class, or None where it may not be used.
FindClass = Callable[[str], type | None]
# Writes a value of which this module knows nothing, given the writer of its
# children, or says that it has no tag for it.
Write = Callable[[Any, Down], Any]
# Puts something in the place of the tree of a value.
Seal = Callable[[Any], Any]
# Reads the payload of a tag that ``Write`` made, given the reader of its children.
Read = Callable[[Any, Down], Any]


class UnencodableError(Exception):
    """This value has no tagged form."""


class TooDeepError(UnencodableError):
    """The value nests deeper than may be, or contains itself."""


class UndecodableError(Exception):
    """This tree is not the tagged form of anything, or of nothing we may build."""


class UnreadableError(UndecodableError):
    """Another process of the job could read this; this one lacks what it names."""


def tag(
    value: Any,
    fallback: Callable[[Any], Any] | None = None,
    depth: int = 0,
    write: Write | None = None,
    seal: Seal | None = None,
    depth_max: int = DEPTH_MAX,
) -> Any:
    """Return the JSON tree of ``value``.

    ``write`` is asked for the tree of a value whose type has no tag here, before this
    module tries items and enums, and first of all for text and bytes of more than
    ``LEAF_BYTES_MAX``. ``seal`` is given each tree, inner ones first, and its result
    takes the tree's place. ``fallback`` turns a value without a tag into plain JSON
    data; without it, and for values that nest too deep, ``UnencodableError`` is raised.
    """
    if depth > depth_max:
        raise TooDeepError(f"nested deeper than {depth_max}")
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return value

    def down(child: Any) -> Any:
        return tag(child, fallback, depth + 1, write, seal, depth_max)

    writer = _WRITERS.get(kind)
    tree = NO_TAG
    if writer is not None and not (
        write is not None
        and (kind is str or kind is bytes)
        and len(value) > LEAF_BYTES_MAX
    ):
        tree = writer(value, down)
    if tree is NO_TAG and write is not None:
        tree = write(value, down)
    if tree is NO_TAG:
        tree = tag_instance(value, down) if writer is None else writer(value, down)
    if tree is not NO_TAG:
        return tree if seal is None else seal(tree)
    if fallback is None:
        raise UnencodableError(f"no tag for {kind.__module__}.{kind.__qualname__}")
    return tag(fallback(value), None, depth + 1, depth_max=depth_max)


def untag(
    tree: Any,
    find_class: FindClass,
    *,
    lenient: bool = False,
    readers: Mapping[str, Read] | None = None,
) -> Any:
    """Return the value of a JSON tree made by ``tag``.

    ``readers`` read the tags that ``write`` made. ``lenient`` builds something to
    export in the place of a class that ``find_class`` does not know: an ``Item``
    with the same declared fields, an enum's value, a tuple. Otherwise that raises
    ``UndecodableError``, as does every tree that ``tag`` never makes.
    """
    try:
        return _Reader(find_class, lenient, readers or {}).read(tree)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UndecodableError(f"{type(error).__name__}: {error}") from error
    except ArithmeticError as error:
        # Spans and instants beyond what Python holds, decimals that are none.
        raise UndecodableError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        # The name of a zone may be that of a folder of zones, or none at all.
        raise UndecodableError(f"{type(error).__name__}: {error}") from error
    except RecursionError:
        raise UndecodableError("nested too deep") from None


def class_path(cls: Any) -> str | None:
    """Return ``module:qualname`` if that leads back to ``cls``, else None.

    For a class, or a function.
    """
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or module is None:
        return None
    if walk(module, cls.__qualname__) is not cls:
        return None
    return f"{cls.__module__}:{cls.__qualname__}"


def class_finder(is_allowed: Callable[[str], bool]) -> FindClass:
    """Return a finder that imports modules only when ``is_allowed(module)``."""

    def find(path: str) -> type | None:
        module_name, _, qualname = path.partition(":")
        if not is_allowed(module_name):
            return None
        try:
            cls = walk(import_module(module_name), qualname)
        except ImportError:
            return None
        # The class must be defined in the project: a project that imports subprocess
        # does not let a body build classes of subprocess.
        if not isinstance(cls, type) or not is_allowed(cls.__module__):
            return None
        return cls

    return find


def no_classes(path: str) -> type | None:
    """Know no class at all."""
    return None


def walk(module: Any, qualname: str) -> Any:
    """Return what a dotted name leads to from ``module``, None if to nothing."""
    target = module
    for name in qualname.split("."):
        target = getattr(target, name, None)
    return target


# ---- writing ----------------------------------------------------------------


def _tag_str(value: str, down: Down) -> Any:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"$u": _b64(value.encode("utf-8", "surrogatepass"))}
    return value


def _tag_dict(value: dict[Any, Any], down: Down) -> Any:
    tree = {}
    for key, child in value.items():
        if (
            type(key) is not str
            or key.startswith("$")
            or _tag_str(key, down) is not key
        ):
            break
        tree[key] = down(child)
    else:
        return tree
    return {"$d": [[down(key), down(child)] for key, child in value.items()]}


def _tag_float(value: float, down: Down) -> Any:
    return value if math.isfinite(value) else {"$f": repr(value)}


def _tag_datetime(value: datetime, down: Down) -> Any:
    zone = zone_tag(value.tzinfo)
    if zone is NO_TAG:
        return NO_TAG
    return {"$dt": [value.replace(tzinfo=None).isoformat(), value.fold, zone]}


def _tag_time(value: time, down: Down) -> Any:
    zone = zone_tag(value.tzinfo)
    if zone is NO_TAG:
        return NO_TAG
    return {"$ti": [value.replace(tzinfo=None).isoformat(), value.fold, zone]}


_WRITERS: Mapping[type, Callable[[Any, Down], Any]] = {
    **stdlib_types.WRITERS,
    str: _tag_str,
    float: _tag_float,
    list: lambda value, down: [down(child) for child in value],
    dict: _tag_dict,
    bytes: lambda value, down: {"$b": _b64(value)},
    bytearray: lambda value, down: {"$ba": _b64(value)},
    tuple: lambda value, down: {"$t": [down(child) for child in value]},
    set: lambda value, down: {"$s": [down(child) for child in value]},
    frozenset: lambda value, down: {"$fs": [down(child) for child in value]},
    datetime: _tag_datetime,
    date: lambda value, down: {"$da": value.isoformat()},
    time: _tag_time,
    timedelta: lambda value, down: {
        "$td": [value.days, value.seconds, value.microseconds]
    },
    Decimal: lambda value, down: {"$D": str(value)},
    UUID: lambda value, down: {"$U": value.hex},
    complex: lambda value, down: {"$c": [repr(value.real), repr(value.imag)]},
    range: lambda value, down: {"$r": [value.start, value.stop, value.step]},
    _PATH_TYPE: lambda value, down: {"$p": down(str(value))},
}


def tag_instance(value: Any, down: Down) -> Any:
    """Return the tree of an item, enum or namedtuple of an importable class."""
    kind = type(value)
    if is_item_class(kind):
        return _tag_item(value, down)
    path = class_path(kind)
    if path is None:
        return NO_TAG
    if isinstance(value, Enum):
        return {"$e": [path, down(value.value)]}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {"$n": [path, *(down(child) for child in value)]}
    return NO_TAG


def _tag_item(value: Any, down: Down) -> Any:
    path = class_path(type(value))
    if path is None:
        return NO_TAG
    adapter = ItemAdapter(value)
    # Values stand in the order of exporters.
    values = {}
    for name in adapter.field_names() if _IS_ORDERED else list(adapter):
        try:
            value = adapter[name]
        except (KeyError, AttributeError):
            # A field may be declared and never set, without init and default.
            continue
        values[name] = down(value)
    return {"$i": [path, list(adapter.field_names()), values]}


def is_item_class(cls: type) -> bool:
    """Whether instances are items with declared fields, not plain dicts."""
    return ItemAdapter.is_item_class(cls) and not issubclass(cls, dict)


def _b64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


# ---- reading ----------------------------------------------------------------


class _Reader:
    def __init__(
        self, find_class: FindClass, lenient: bool, readers: Mapping[str, Read]
    ) -> None:
        self._find_class = find_class
        self._lenient = lenient
        self._readers = readers

    def read(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.read(child) for child in tree]
        if not isinstance(tree, dict):
            return tree
        if len(tree) == 1:
            ((name, payload),) = tree.items()
            if name.startswith("$"):
                return self._read_tag(name, payload)
        return {key: self.read(child) for key, child in tree.items()}

    def _read_tag(self, name: str, payload: Any) -> Any:
        match name:
            case "$t":
                return tuple(self._read_list(payload))
            case "$s":
                return set(self._read_list(payload))
            case "$fs":
                return frozenset(self._read_list(payload))
            case "$d":
                return {self.read(key): self.read(child) for key, child in payload}
            case "$p":
                return Path(self.read(payload))
            case "$e":
                return self._read_enum(*payload)
            case "$n":
                return self._read_namedtuple(*payload)
            case "$i":
                return self._read_item(*payload)
        read = self._readers.get(name) or stdlib_types.READERS.get(name)
        if read is not None:
            return read(payload, self.read)
        reader = _READERS.get(name)
        if reader is None:
            raise UndecodableError(f"unknown tag {name[:20]!r}")
        return reader(payload)

    def _read_list(self, payload: Any) -> list[Any]:
        if not isinstance(payload, list):
            raise UndecodableError(f"a list is needed, not {type(payload).__name__}")
        return [self.read(child) for child in payload]

    def _class(self, path: str, base: Callable[[type], bool]) -> type | None:
        cls = self._find_class(path)
        if cls is not None and base(cls):
            return cls
        if self._lenient:
            return None
        raise UndecodableError(f"{path[:200]!r} is no class that may be built here")

    def _read_enum(self, path: str, payload: Any) -> Any:
        value = self.read(payload)
        cls = self._class(path, lambda candidate: issubclass(candidate, Enum))
        return value if cls is None else cls(value)

    def _read_namedtuple(self, path: str, *payload: Any) -> Any:
        values = tuple(self.read(child) for child in payload)
        cls = self._class(
            path,
            lambda candidate: (
                issubclass(candidate, tuple) and hasattr(candidate, "_fields")
            ),
        )
        return values if cls is None else tuple.__new__(cls, values)

    def _read_item(self, path: str, fields: list[str], payload: dict[str, Any]) -> Any:
        values = {name: self.read(child) for name, child in payload.items()}
        cls = self._class(path, is_item_class)
        if cls is None:
            cls = stand_in(path, fields)
        return build_item(cls, values)


def stand_in(path: str, fields: list[str]) -> type[Item]:
    """Return an ``Item`` class with these fields, for a class that is not here."""
    if not all(isinstance(name, str) for name in fields):
        raise UndecodableError("the fields of an item are strings")
    name = path.rpartition(".")[2].rpartition(":")[2]
    attributes: dict[str, Any] = {field: Field() for field in fields}
    return cast("type[Item]", ItemMeta(name, (Item,), attributes))


def build_item(cls: type, values: dict[str, Any]) -> Any:
    """Return an item of this class with these field values, not running its init."""
    if issubclass(cls, Item):
        item = cls.__new__(cls)
        Item.__init__(item)
        for name, value in values.items():
            Item.__setitem__(item, name, value)
        return item
    declared = ItemAdapter.get_field_names_from_class(cls) or []
    unknown = values.keys() - set(declared)
    if unknown:
        raise UndecodableError(f"{cls.__qualname__} has no field {min(unknown)!r}")
    if not dataclasses.is_dataclass(cls) and hasattr(cls, "model_construct"):
        return cls.model_construct(**values)
    instance: Any = cls.__new__(cls)
    for name, value in values.items():
        # Frozen classes refuse the plain way.
        object.__setattr__(instance, name, value)
    return instance


def _read_datetime(payload: Any) -> datetime:
    text, fold, zone = payload
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=read_zone(zone))


def _read_time(payload: Any) -> time:
    text, fold, zone = payload
    return time.fromisoformat(text).replace(fold=fold, tzinfo=read_zone(zone))


def _from_b64(payload: str) -> bytes:
    return base64.b64decode(payload, validate=True)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "$b": _from_b64,
    "$ba": lambda payload: bytearray(_from_b64(payload)),
    "$u": lambda payload: _from_b64(payload).decode("utf-8", "surrogatepass"),
    "$f": float,
    "$dt": _read_datetime,
    "$ti": _read_time,
    "$da": date.fromisoformat,
    "$td": lambda payload: timedelta(*payload),
    "$D": Decimal,
    "$U": UUID,
    "$c": lambda payload: complex(float(payload[0]), float(payload[1])),
    "$r": lambda payload: range(*payload),
}
