"""Values from bytes: each byte is a choice, so a mutated input is a changed value.

Most values are those that lead somewhere (ids that exist, small numbers); the rest
are those that lead astray. When the bytes are used up, all choices are the first.
"""

import json
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from dscrapy import messages as m
from dscrapy.model import CloseLimits
from tests import builders as b

T = TypeVar("T")

JOBS = tuple(b.job_id(number) for number in range(3))
HUGE = 10**400
NUMBERS = (0, 1, 2, 3, -1, 7, 255, 2**31, 2**63, -(2**63) - 1, HUGE)
FLOATS = (0.0, 1.0, 0.5, -1.0, 1e-300, 1e308, -1e308, 25.0)
TEXTS = (
    *("", "a", "w", "finished", "../x", "/etc/passwd", "..", ".", "a/b", "a\n"),
    *("\0", "\x1b[2J", "é", "\u202e", "$b", "x" * 300, "con", "-", "shutdown"),
)
# Bodies: JSON as any program may have written it, and what only begins like it.
RAWS = (
    *(b"{}", b"[1]", b"1", b'"line"', b"null", b'{"a":1}', b'{"$dt":["x",0,null]}'),
    *(b'"\\ud800"', b'"a\\nb"', b"1e999", b"-0", b"[" * 90 + b"]" * 90),
    *(b'{"a":NaN}', b"1" * 400, b'"\\u0000"', b' "x" ', b'{"a":1,"a":2}', b'""'),
    *(b'{"$dt":["2026-01-01T00:00:00",0,0]}', b"1.5", b"-1", b"1e308", b"true"),
)


class Draw:
    """Reads choices from an input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """Return the next byte, 0 when there is none."""
        if self.is_empty:
            return 0
        value = self._data[self._at]
        self._at += 1
        return value

    def take(self, count: int) -> bytes:
        """Return that many bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self._data))

    def below(self, limit: int) -> int:
        """Return a number from 0 up to the limit, itself left out."""
        if limit <= 256:
            return self.byte() % limit
        return (self.byte() << 16 | self.byte() << 8 | self.byte()) % limit

    def pick(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[self.below(len(values))]

    def several(self, one: Callable[[], T], most: int = 3) -> tuple[T, ...]:
        """Return up to so many values."""
        return tuple(one() for _ in range(self.below(most + 1)))

    def value(self, hint: Any, name: str = "") -> Any:
        """Return a value of this type, for a field of this name."""
        if name in BY_NAME and self.below(8):
            return BY_NAME[name](self)
        if hint in BY_TYPE:
            return BY_TYPE[hint](self)
        origin, inner = get_origin(hint), get_args(hint)
        if origin is Literal:
            return self.pick(inner)
        if origin in (Union, UnionType):
            return self.value(self.pick(inner), name)
        if origin is tuple:
            return self.several(lambda: self.value(inner[0]))
        if origin is dict:
            pairs = self.several(
                lambda: (self.value(inner[0]), self.value(inner[1])), 2
            )
            return dict(pairs)
        return self.struct(hint)

    def struct(self, kind: Any) -> Any:
        """Return a message or value with these fields."""
        return kind(
            **{
                field.name: self.value(field.type, field.name)
                for field in msgspec.structs.fields(kind)
            }
        )


def _text(draw: Draw) -> str:
    return draw.pick(TEXTS)


def _integer(draw: Draw) -> int:
    return draw.below(6) if draw.below(4) else draw.pick(NUMBERS)


def _raw(draw: Draw) -> msgspec.Raw:
    return msgspec.Raw(draw.pick(RAWS))


def _children(draw: Draw) -> m.Children:
    """Return requests; mostly their columns agree."""
    count = draw.below(4)
    if not draw.below(8):
        return m.Children(
            fingerprints=draw.take(draw.below(50)),
            hosts=draw.several(lambda: _text(draw)),
            host_of=draw.several(lambda: _integer(draw)),
            priorities=draw.several(lambda: _integer(draw)),
            flags=draw.several(lambda: _integer(draw)),
            bodies=draw.several(lambda: _raw(draw)),
        )
    return m.Children(
        fingerprints=b"".join(_fingerprint(draw) for _ in range(count)),
        hosts=("h", draw.pick(TEXTS)) if count else (),
        host_of=tuple(draw.below(2) for _ in range(count)),
        priorities=tuple(_integer(draw) for _ in range(count)),
        flags=tuple(draw.below(4) for _ in range(count)),
        bodies=tuple(_raw(draw) for _ in range(count)),
    )


def _fingerprint(draw: Draw) -> bytes:
    return bytes([draw.below(8)]) * m.FINGERPRINT_BYTES


def _opened(draw: Draw) -> m.Opened | None:
    if not draw.below(3):
        return None
    return b.opened(
        job=draw.pick(JOBS),
        process=1 + draw.below(4),
        window=1 + draw.below(4),
        lifo=bool(draw.below(2)),
        start_lifo=bool(draw.below(2)),
        concurrency=2,
        delay_s=draw.pick((0.0, 0.0, 1.0)),
        limits=CloseLimits(items=draw.pick((0, 0, 2)), errors=draw.pick((0, 1))),
        has_feeds=bool(draw.below(2)),
    )


# Fields that must fit to what is there; each byte of eight ignores that.
BY_NAME: dict[str, Callable[[Draw], Any]] = {
    "job": lambda draw: draw.pick((JOBS[0], JOBS[0], JOBS[0], JOBS[1], JOBS[2])),
    "id": lambda draw: draw.pick(JOBS),
    "process": lambda draw: 1 + draw.below(4),
    "request": lambda draw: draw.below(8),
    "requests": lambda draw: draw.several(lambda: 1 + draw.below(8)),
    "unit": lambda draw: draw.below(6),
    "part": lambda draw: draw.pick((0, 0, 0, 1, 2)),
    "last": lambda draw: bool(draw.pick((1, 1, 1, 0))),
    "finish": lambda draw: draw.below(4),
    "digest": lambda draw: bytes([draw.below(3)]) * m.DIGEST_BYTES,
    "children": _children,
    "fingerprints": lambda draw: b"".join(draw.several(lambda: _fingerprint(draw))),
    "seen": lambda draw: b"".join(draw.several(lambda: _fingerprint(draw))),
    "tagged": lambda draw: (),
    "name": lambda draw: draw.pick(("w0", "w1", "w0", "w2")),
    "instance": lambda draw: draw.pick(("1", "1", "2")),
    "worker": lambda draw: draw.pick(("w0", "w1")),
    "slots": lambda draw: 1 + draw.below(3),
    "window": lambda draw: 1 + draw.below(4),
    "concurrency": lambda draw: 1 + draw.below(3),
    "delay_s": lambda draw: draw.pick((0.0, 0.0, 0.5)),
    "opened": _opened,
    "project": lambda draw: "p",
    "project_dir": lambda draw: "",
    "spider": lambda draw: "s",
    "urls": lambda draw: (),
    "args": lambda draw: {},
    "settings": lambda draw: {},
    "priority": lambda draw: draw.below(3),
    "retries": lambda draw: draw.below(3),
    "parallelism": lambda draw: draw.below(4),
    "every_s": lambda draw: draw.pick((None, None, None, 5.0)),
    "count": lambda draw: draw.below(4),
    "failure": lambda draw: draw.pick(("", "", "spider_error", "died", "unknown")),
    "call": lambda draw: draw.below(4),
}
BY_TYPE: dict[Any, Callable[[Draw], Any]] = {
    NoneType: lambda draw: None,
    bool: lambda draw: bool(draw.below(2)),
    int: _integer,
    float: lambda draw: draw.pick(FLOATS),
    str: _text,
    bytes: lambda draw: draw.take(draw.below(24)),
    msgspec.Raw: _raw,
}


# ---- JSON trees with tags ----------------------------------------------------------

TAGS = (
    *("$b", "$ba", "$t", "$s", "$fs", "$d", "$f", "$u", "$p", "$n", "$q"),
    *("$da", "$ti", "$dt", "$td", "$D", "$U", "$c", "$r", "$e", "$i", "$x"),
    *("$od", "$dd", "$ct", "$dq", "$hs", "$ns", "$mp", "$F", "$ip", "$re", "$z"),
    *("$v", "$m", "$g", "$pa", "$cf", "$dz", "$df", "$P", "$H", "$L", "$R", "$IL"),
    *("$S", "$SL"),
)
# Modules and names that no spider's peer may reach, and some that it may.
OURS = "tests.unit.project_classes"
HOSTILE_CLASSES = (
    *("os:system", "builtins:eval", "subprocess:Popen", "builtins:object", "os:_wrap"),
    *("collections:OrderedDict", "enum:Enum", "pathlib:Path", "scrapy:Item", ":", ""),
    *(f"{OURS}:Data.__class__", f"{OURS}:scrapy.Item", f"{OURS}:Enum"),
    *(f"{OURS}:Data.__init__.__globals__", f"{OURS}:Color.__class__"),
    *(f"{OURS}:OrderedDict", f"{OURS}:Trap", f"{OURS}:NotAnItem", OURS),
    *("antigravity:x", "this:x", ".:x", "..a:b"),
    *("scrapy.http:FormRequest", "scrapy.http:Response", "scrapy.crawler:Crawler"),
)
CLASSES = (
    *(f"{OURS}:Data", f"{OURS}:Declared", f"{OURS}:Color", f"{OURS}:Point"),
    *(f"{OURS}:Attr", f"{OURS}:Slotted", f"{OURS}:OwnRequest", f"{OURS}:PoorRequest"),
    *HOSTILE_CLASSES,
)
ZONES = (
    *("Europe/Paris", "America", "../../etc/passwd", "posix", "x" * 300, "", "."),
    *("UTC", "/etc/localtime", "a\0b", "zone.tab", "tzdata.zi", "Europe"),
)
# Keys that readers of tags look for; most are missing in most of what is drawn.
FIELDS = (
    *("type", "document", "path", "root", "namespaces", "_expr", "response", "class"),
    *("url", "status", "headers", "body", "request", "certificate", "encoding"),
    *("item", "shared", "context", "attributes", "parent", "state", "flags"),
)
WORDS = (
    *(None, True, 0, 1, -1, 10**30, 1.5, "", "a", "first", "second", "b"),
    *("2026-01-01", "2026-01-01T00:00:00", "12:00", "nan", "1e999999999", "AA=="),
    *("ff" * 16, "\ud800", "\0", "__class__", "__dict__", "parse", "http://a/"),
    *("from_crawler", "start", "close", "_set_crawler", "logger", "update_settings"),
    *("list", "html", "xml", "json", "text", "xhtml", "<p>a<b>c", "HtmlResponse"),
    *(
        "scrapy",
        "parsel",
        "itemloaders",
        "utf-8",
        "selector",
        "tests.unit.project_classes",
    ),
)


def tree_of(draw: Draw, depth: int = 0) -> Any:
    """Return a JSON tree; most objects are tagged ones."""
    if depth > 5 or draw.is_empty:
        return draw.pick(WORDS)
    match draw.below(7):
        case 6:
            fields = draw.several(lambda: draw.pick(FIELDS), 4)
            return {name: tree_of(draw, depth + 1) for name in fields}
        case 0 | 1:
            return {draw.pick(TAGS): tree_of(draw, depth + 1)}
        case 2:
            return list(draw.several(lambda: tree_of(draw, depth + 1), 4))
        case 3:
            path = draw.pick(CLASSES)
            names = [draw.pick(("first", "second", "a", "b", "__class__"))]
            values = {name: tree_of(draw, depth + 1) for name in names}
            item = {"$i": [path, names, values]}
            others = {"$e": [path, tree_of(draw, depth + 1)]}, {"$n": [path, 1, "x"]}
            return draw.pick((item, *others, path))
        case 4:
            return {"$dt": ["2026-01-01T00:00:00", draw.below(3), draw.pick(ZONES)]}
        case _:
            return draw.pick(WORDS)


def json_of(draw: Draw) -> bytes:
    """Return bytes that are mostly a JSON tree with tags."""
    if not draw.below(4):
        return draw.rest()
    return json.dumps(tree_of(draw)).encode()
