"""What the codec refuses, and the two forms of an item."""

import json
import math
import sys
from decimal import Decimal
from typing import Any

import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.settings import Settings

from dscrapy.crawl.codec.items import Encoded, ItemEncoder, item_of, wire_line
from dscrapy.crawl.codec.tags import (
    UndecodableError,
    UnencodableError,
    class_finder,
    class_path,
    no_classes,
    tag,
    untag,
)
from tests.unit.project_classes import (
    Attr,
    Color,
    Data,
    Declared,
    NotAnItem,
    Odd,
    Point,
    Text,
    Trap,
)

find = class_finder(lambda module: module == "tests.unit.project_classes")
HERE = "tests.unit.project_classes"


class Untaggable:
    """Its name leads nowhere else."""


@pytest.mark.parametrize(
    "value", [object(), NotAnItem(), lambda: 1, Odd(a=1), Text("a"), Untaggable, open]
)
def test_what_has_no_tag_is_refused(value: Any) -> None:
    """Without a fallback nothing is guessed."""
    with pytest.raises(UnencodableError):
        tag({"deep": [value]})


def test_a_cycle_is_refused() -> None:
    """A value that contains itself ends in our error."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnencodableError):
        tag(loop)


@pytest.mark.parametrize(
    "path",
    [
        "subprocess:Popen",
        "builtins:eval",
        "os:system",
        f"{HERE}:NotAnItem",
        f"{HERE}:attrs.Attribute",
        f"{HERE}:OrderedDict",
        f"{HERE}:nowhere",
        f"{HERE}:Data.__class__",
        f"{HERE}:Data.__init__.__globals__",
        f"{HERE}:Data.__mro__",
        f"{HERE}:__builtins__.eval",
        f"{HERE}:scrapy.Item",
        f"{HERE}:Enum",
        f"{HERE}:Color.__class__",
        f"{HERE}.Data",
        f"{HERE}:",
        f".{HERE}:Data",
        f"{HERE}\0:Data",
        "nowhere:Declared",
        "antigravity:Declared",
        ".:x",
        ":",
        "",
        "\ud800:x",
        ["os:system"],
        {"os": "system"},
        None,
    ],
)
@pytest.mark.parametrize("name", ["$i", "$e", "$n"])
def test_only_the_projects_own_classes_are_built(path: Any, name: str) -> None:
    """No other class, no function, nothing that a module merely imports."""
    tree = {name: [path, ["a"], {"a": 1}] if name == "$i" else [path, 1]}
    modules = set(sys.modules)
    with pytest.raises(UndecodableError):
        untag(tree, find)
    assert set(sys.modules) == modules


def test_a_forbidden_module_is_not_even_imported() -> None:
    """Asking for a class of a foreign module runs none of its code."""
    asked: list[str] = []

    def refuse(module: str) -> bool:
        asked.append(module)
        return False

    with pytest.raises(UndecodableError):
        untag({"$i": ["this:Zen", [], {}]}, class_finder(refuse))
    assert asked == ["this"]
    assert "this" not in sys.modules


def test_a_field_that_was_never_set_stays_so() -> None:
    """A dataclass may have one without init and default: it travels without that."""
    tree = {"$i": [f"{HERE}:Data", ["first", "second"], {"second": 1}]}
    assert tag(untag(tree, find)) == tree


@pytest.mark.parametrize("error", [IsADirectoryError, OSError])
def test_a_zone_that_is_no_file_is_undecodable(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where zones come from a package, "America" is a folder and says so."""

    def zone(key: str) -> Any:
        raise error(21, "Is a directory")

    monkeypatch.setattr("dscrapy.crawl.codec.stdlib_types.ZoneInfo", zone)
    with pytest.raises(UndecodableError):
        untag({"$dt": ["2026-01-01T00:00:00", 0, "America"]}, find)


def test_items_are_built_without_their_init() -> None:
    """Neither validators nor __attrs_post_init__ run again."""
    tree = {"$i": [f"{HERE}:Attr", ["first"], {"first": "built by init"}]}
    item = untag(tree, find)
    assert type(item) is Attr
    assert item.first == "built by init"


def test_an_item_has_no_fields_but_its_own() -> None:
    """A tree cannot set other attributes."""
    for cls in ("Data", "Attr", "Declared"):
        with pytest.raises(UndecodableError):
            untag({"$i": [f"{HERE}:{cls}", ["first"], {"__class__": 1}]}, find)


def test_a_missing_class_leaves_its_fields() -> None:
    """Without the class the declared fields, their order and the values stay."""
    tree = tag(Declared(b=1, a=Data(2)))
    item = untag(tree, no_classes, lenient=True)
    assert list(item.fields) == ["a", "b", "never"]
    assert item["b"] == 1
    assert item["a"]["first"] == 2
    assert untag(tag(Color.RED), no_classes, lenient=True) == b"red"
    assert untag(tag(Point(1, "a")), no_classes, lenient=True) == (1, "a")


def test_class_paths_lead_back() -> None:
    """A local class has no path, nor has one that another took the name of."""

    class Local:
        pass

    assert class_path(Local) is None
    assert class_path(Data) == f"{HERE}:Data"
    impostor = type("Data", (), {"__module__": HERE})
    assert class_path(impostor) is None


# ---- the two forms of an item -----------------------------------------------


def encoder(**settings: Any) -> ItemEncoder:
    """Return an encoder under these settings."""
    return ItemEncoder(Crawler(Spider, Settings(settings)))


def read(encoded: Encoded) -> Any:
    """Return the item of its two forms."""
    return item_of(encoded.line, encoded.tagged, find)


@pytest.mark.parametrize(
    "item",
    [
        {"a": 1, "b": [1.5, None, True], "c": {"d": "é"}},
        {"a": {"$b": "not bytes"}, "$t": []},
        {"$b": "not bytes"},
        {"a": (1, 2), "b": {3}, "c": Decimal("1.0")},
        {"a": math.inf, 1: "int key"},
        {"lone": "\ud800"},
        {"raw": b"\xff"},
        Declared(b=1, a="x"),
        Declared(b=b"1"),
        Declared(),
        Data({"$b": "not bytes"}, Color.BLUE),
        Attr([Point(1, "a")]),
    ],
)
@pytest.mark.parametrize("encoding", [None, "utf-8", "latin-1", "utf-16"])
def test_an_item_comes_back_from_its_two_forms(item: Any, encoding: str | None) -> None:
    """Line and tagged form together give an equal item of the same class."""
    encoded = encoder(FEED_EXPORT_ENCODING=encoding).encode(item)
    again = read(encoded)
    assert type(again) is type(item)
    assert again == item


def test_the_line_is_enough_for_plain_items() -> None:
    """What JSON holds has no second form; a class is named, its values are not."""
    assert encoder().encode({"a": [1, "é", None]}).tagged is None
    tagged = encoder().encode(Declared(b=1, a=2)).tagged
    assert tagged is not None
    assert json.loads(tagged) == {"$i": [f"{HERE}:Declared", ["a", "b", "never"]]}


def test_export_fields_shape_the_line_and_lose_nothing() -> None:
    """FEED_EXPORT_FIELDS is applied to the line; the tagged form has the rest."""
    encoded = encoder(FEED_EXPORT_FIELDS={"b": "B"}).encode(Declared(b=1, a=2))
    assert encoded.line == b'{"B": 1}'
    assert read(encoded) == Declared(b=1, a=2)


def test_a_lossy_line_calls_nobody_twice() -> None:
    """A repr that raises, a deep value and a subclass end as text, not as errors."""
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    encoded = encoder().encode({"trap": Trap(), "deep": deep, "text": Text("t")})
    assert encoded.is_lossy
    line = json.loads(encoded.line)
    assert line["text"] == "t"
    assert "Trap object" in line["trap"]


def test_what_is_no_item_is_an_error() -> None:
    """A pipeline that returned None gave no item; Scrapy's own feeds fail too."""
    with pytest.raises(TypeError):
        encoder().encode(None)


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": "\\ud800"}', "[1]", '"text"', '{"a": ' + "[" * 2000],
)
def test_a_line_that_messages_cannot_carry_travels_as_a_string(text: str) -> None:
    """The string holds the line exactly."""
    wire = wire_line(text.encode())
    assert wire.startswith(b'"')
    assert json.loads(wire) == text
    assert wire_line(b'{"a": 1}') == b'{"a": 1}'


def test_a_raised_limit_of_recursion_is_nobody_elses() -> None:
    """A project may raise it in its process; worker and master read what it sends."""
    line = b'{"a": ' + b"[" * 1500 + b"]" * 1500 + b"}"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        wire = wire_line(line)
    finally:
        sys.setrecursionlimit(limit)
    assert json.loads(wire) == line.decode()
