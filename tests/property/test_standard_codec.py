"""Round trips of the standard library's types, and trees that nobody wrote."""

import json
import re
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import datetime, time, timedelta, timezone
from http import HTTPStatus
from types import MappingProxyType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dscrapy.crawl.codec.stdlib_types import BUILTINS, READERS
from dscrapy.crawl.codec.tags import (
    UndecodableError,
    UnencodableError,
    no_classes,
    tag,
    untag,
)

offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = st.one_of(
    st.builds(timezone, offsets),
    st.builds(timezone, offsets, st.text(max_size=5)),
    st.sampled_from([ZoneInfo("Europe/Paris"), ZoneInfo("UTC")]),
)
patterns = st.builds(
    re.compile,
    st.sampled_from(["", "a|b", r"(?P<x>\d+)é", "[a-z]+$"]),
    st.sampled_from([0, re.I, re.I | re.M, re.X | re.S, re.A]),
) | st.builds(re.compile, st.sampled_from([b"", rb"\w+", b"\xff"]))
hashables = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.binary(),
    st.fractions(),
    st.sampled_from(HTTPStatus),
    st.ip_addresses(),
    st.ip_addresses(v=4, network="10.0.0.0/8").map(lambda ip: f"{ip}"),
    zones,
    patterns,
    st.tuples(st.integers(), st.text()),
    st.datetimes(timezones=zones),
)
networks = st.sampled_from(
    ["10.0.0.0/8", "0.0.0.0/0", "192.168.1.7/32", "::/0", "fe80::/10", "2001:db8::/127"]
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return values one level deeper."""
    pairs = st.lists(st.tuples(hashables, inner), max_size=4)
    factories = st.sampled_from([None, *BUILTINS.values()])
    mappings: st.SearchStrategy[Any] = st.one_of(
        st.builds(OrderedDict, pairs),
        st.builds(dict, pairs),
        st.builds(defaultdict, factories, pairs),
        st.builds(Counter, st.dictionaries(hashables, st.integers(), max_size=4)),
    )
    return st.one_of(
        mappings,
        mappings.map(MappingProxyType),
        st.lists(inner, max_size=4).map(deque),
        st.builds(deque, st.lists(inner, max_size=4), st.integers(0, 5)),
        st.dictionaries(st.text(), inner, max_size=3).map(
            lambda values: SimpleNamespace(**values)
        ),
        st.lists(inner, max_size=3),
    )


values = st.recursive(hashables, containers, max_leaves=10)


def assert_same(left: Any, right: Any) -> None:
    """Check that two values are alike in type and value, all the way down."""
    assert type(left) is type(right)
    match left:
        case SimpleNamespace():
            assert_same(vars(left), vars(right))
        case MappingProxyType():
            assert_same(left.copy(), right.copy())
        case dict():
            if isinstance(left, defaultdict):
                assert left.default_factory is right.default_factory
            assert_same(list(left), list(right))
            assert_same(list(left.values()), list(right.values()))
        case list() | tuple() | deque():
            if isinstance(left, deque):
                assert left.maxlen == right.maxlen
            assert len(left) == len(right)
            for one, other in zip(left, right, strict=True):
                assert_same(one, other)
        case datetime() | time():
            assert left == right
            assert_same(left.tzinfo, right.tzinfo)
        case timezone():
            assert left == right
            assert left.tzname(None) == right.tzname(None)
        case re.Pattern():
            assert (left.pattern, left.flags) == (right.pattern, right.flags)
        case _:
            assert left == right


def through(value: Any) -> Any:
    """Return what arrives of a value."""
    text = json.dumps(tag(value), allow_nan=False, ensure_ascii=False)
    text.encode()
    return untag(json.loads(text), no_classes)


@given(values)
def test_a_value_comes_back_with_its_types(value: Any) -> None:
    """Equal in value and type, with no class of the project's."""
    assert_same(through(value), value)


@pytest.mark.parametrize("cls", ["address", "network", "interface"])
@given(data=st.data())
def test_addresses_come_back(cls: str, data: st.DataObject) -> None:
    """Addresses, networks and interfaces of both versions, scopes too."""
    import ipaddress

    make = getattr(ipaddress, f"ip_{cls}")
    text = str(data.draw(st.ip_addresses()))
    if cls != "address":
        text = data.draw(networks)
    elif ":" in text and data.draw(st.booleans()):
        text += "%eth0"
    assert_same(through(make(text)), make(text))


def test_a_subclass_is_none_of_these() -> None:
    """Its behaviour is its own."""

    class Own(OrderedDict[str, int]):
        pass

    with pytest.raises(UnencodableError):
        tag(Own())
    with pytest.raises(UnencodableError):
        tag(defaultdict(lambda: 1))


json_trees: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(
            lambda name, payload: {name: payload}, st.sampled_from([*READERS]), inner
        )
    ),
    max_leaves=10,
)


@settings(max_examples=500)
@given(json_trees)
def test_any_tree_is_read_or_refused(tree: Any) -> None:
    """Whatever JSON arrives, the reader returns or raises its own error."""
    try:
        untag(tree, no_classes)
    except UndecodableError:
        return


@pytest.mark.parametrize(
    "tree",
    [
        {"$re": ["(", 0]},
        {"$re": ["[[a]", 32]},
        {"$re": ["a", 2**31]},
        {"$re": ["(" * 500, 0]},
        {"$F": [1, 0]},
        {"$dq": [-1, []]},
        {"$dq": [2**70, []]},
        {"$dq": [1, "abc"]},
        {"$mp": "text"},
        {"$mp": {"$hs": 200}},
        {"$ns": [1]},
        {"$dd": ["eval", []]},
        {"$dd": [["list"], []]},
        {"$ip": ["IPv4Address"]},
        {"$ip": ["_IPAddressBase", "1"]},
        {"$z": None},
        {"$z": "America"},
        {"$z": [1, 2]},
        {"$hs": 7},
    ],
)
def test_what_nobody_wrote_is_refused(tree: Any) -> None:
    """With our error."""
    with pytest.raises(UndecodableError):
        untag(tree, no_classes)
