"""Round trips of the tagged form, and trees that nobody wrote."""

import json
import math
from collections.abc import Callable
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from itemadapter import ItemAdapter

from dscrapy.crawl.codec.tags import (
    UndecodableError,
    UnencodableError,
    class_finder,
    no_classes,
    tag,
    untag,
)
from tests.unit.project_classes import Attr, Color, Data, Declared, Point, Slotted

find = class_finder(lambda module: module == "tests.unit.project_classes")

zones = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=-3, minutes=7)), ZoneInfo("Europe/Paris")]
)
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None)),  # lone surrogates too
    st.binary(),
    st.datetimes(timezones=zones),
    st.times(timezones=st.sampled_from([None, UTC])),
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.complex_numbers(allow_nan=False),
    st.sampled_from(Color),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 9)),
    st.just(Path("a/é")),
    st.builds(Point, st.integers(), st.text()),
)
keys = st.one_of(st.text(), st.sampled_from(["$b", "$", "$i", "a"]), hashables)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return values one level deeper."""
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
        st.binary().map(bytearray),
        st.builds(lambda a, b: Declared(b=b, a=a), inner, inner),
        st.builds(Data, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Attr, inner),
    )


values = st.recursive(hashables, containers, max_leaves=12)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal with equal types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items(), strict=True)
        return len(left) == len(right) and all(same(a, b) for a, b in pairs)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, set | frozenset):
        return sorted(map(_shape, left)) == sorted(map(_shape, right))
    if isinstance(left, Data | Slotted | Attr):
        names = ItemAdapter(left).field_names()
        return all(same(getattr(left, n), getattr(right, n)) for n in names)
    if isinstance(left, Declared):
        # Set in any order: an item's fields have the order of declaration.
        return left.keys() == right.keys() and all(
            same(left[name], right[name]) for name in left
        )
    if hasattr(left, "fold"):
        zone = left.tzinfo, right.tzinfo
        return bool(left == right and left.fold == right.fold and zone[0] == zone[1])
    return bool(left == right)


def _shape(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


@given(values)
def test_a_value_comes_back_with_its_types(value: Any) -> None:
    """Through JSON text and back, every value is equal in value and type."""
    text = json.dumps(tag(value), allow_nan=False, ensure_ascii=False)
    # What travels is UTF-8: a lone surrogate would not.
    text.encode()
    assert same(untag(json.loads(text), find), value)


@given(values)
def test_without_classes_nothing_of_ours_is_built(value: Any) -> None:
    """A lenient reader that knows no class builds none, and never fails."""
    read = untag(json.loads(json.dumps(tag(value))), no_classes, lenient=True)

    def check(part: Any) -> None:
        assert type(part) not in (Data, Slotted, Attr, Color, Point)
        if isinstance(part, dict):
            for key, child in part.items():
                check(key)
                check(child)
        elif isinstance(part, list | tuple | set | frozenset):
            for child in part:
                check(child)

    check(read)


TAGS = (
    *("$b", "$ba", "$t", "$s", "$fs", "$d", "$f", "$u", "$p", "$n"),
    *("$da", "$ti", "$dt", "$td", "$D", "$U", "$c", "$r", "$e", "$i"),
)
json_trees: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(
            lambda name, payload: {name: payload},
            st.sampled_from(TAGS),
            inner,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=500)
@given(json_trees)
def test_any_tree_is_read_or_refused(tree: Any) -> None:
    """Whatever JSON arrives, the reader returns or raises its own error."""
    for lenient in (False, True):
        try:
            untag(tree, find, lenient=lenient)
        except UndecodableError:
            continue


@pytest.mark.parametrize("nest", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}])
def test_depth_has_an_end(nest: Callable[[Any], Any]) -> None:
    """Deep values and cycles raise our error, not the interpreter's."""
    value: Any = 1
    for _ in range(5000):
        value = nest(value)
    with pytest.raises(UnencodableError):
        tag(value)
