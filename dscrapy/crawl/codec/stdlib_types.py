"""Tags of the standard library's types that neither JSON nor ``tags`` has.

===========  ==========================  ===========  ==========================
``$od``      OrderedDict: pairs          ``$F``       Fraction: two integers
``$dd``      defaultdict: factory,       ``$ip``      address, network, interface
             pairs                       ``$re``      pattern, flags
``$ct``      Counter: pairs              ``$hs``      HTTPStatus
``$dq``      deque: maxlen, values       ``$z``       zone: as in ``$dt``
``$mp``      MappingProxyType            ``$ns``      SimpleNamespace
===========  ==========================  ===========  ==========================

A class is matched exactly: an instance of a subclass has other behaviour and gets no
tag here. ``down`` writes and reads the children of a value.
"""

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from types import MappingProxyType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

NO_TAG = object()
# Writes or reads the children of a value.
Down = Callable[[Any], Any]

_MICROSECOND = timedelta(microseconds=1)
_IP_TYPES: Mapping[str, Callable[[str], Any]] = {
    cls.__name__: cls
    for cls in (
        IPv4Address,
        IPv4Interface,
        IPv4Network,
        IPv6Address,
        IPv6Interface,
        IPv6Network,
    )
}
# Classes that stand for themselves where a value names one: factories of defaultdicts.
BUILTINS: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (
        bool,
        bytes,
        complex,
        dict,
        float,
        frozenset,
        int,
        list,
        set,
        str,
        tuple,
        Counter,
        Decimal,
        OrderedDict,
        deque,
    )
}
_NAMES: Mapping[type, str] = {cls: name for name, cls in BUILTINS.items()}


def builtin_name(value: Any) -> str | None:
    """Return the name that ``value`` has in ``BUILTINS``, None if it is not there."""
    return _NAMES.get(value) if isinstance(value, type) else None


def zone_tag(zone: tzinfo | None) -> Any:
    """Return null, an offset in microseconds (with a name: both), or a zone's key."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None) // _MICROSECOND
        name = zone.tzname(None)
        return offset if name == str(_plain_zone(offset)) else [offset, name]
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    return NO_TAG


def read_zone(zone: Any) -> tzinfo | None:
    """Return the zone of a tree that ``zone_tag`` wrote."""
    match zone:
        case None:
            return None
        case str():
            return ZoneInfo(zone)
        case [offset, str() as name]:
            return timezone(_MICROSECOND * offset, name)
    return _plain_zone(zone)


def _plain_zone(offset: Any) -> timezone:
    return timezone(_MICROSECOND * offset)


# ---- writing ----------------------------------------------------------------


def _pairs(value: Mapping[Any, Any], down: Down) -> list[Any]:
    return [[down(key), down(child)] for key, child in value.items()]


def _tag_defaultdict(value: defaultdict[Any, Any], down: Down) -> Any:
    name = builtin_name(value.default_factory)
    if name is None and value.default_factory is not None:
        return NO_TAG
    return {"$dd": [name, _pairs(value, down)]}


def _tag_zone(value: tzinfo, down: Down) -> Any:
    zone = zone_tag(value)
    return NO_TAG if zone is NO_TAG else {"$z": zone}


def _tag_ip(value: Any, down: Down) -> Any:
    return {"$ip": [type(value).__name__, str(value)]}


WRITERS: Mapping[type, Callable[[Any, Down], Any]] = {
    OrderedDict: lambda value, down: {"$od": _pairs(value, down)},
    defaultdict: _tag_defaultdict,
    Counter: lambda value, down: {"$ct": _pairs(value, down)},
    deque: lambda value, down: {
        "$dq": [value.maxlen, [down(child) for child in value]]
    },
    # A proxy does not show the class of its mapping; its copy has that class.
    MappingProxyType: lambda value, down: {"$mp": down(value.copy())},
    SimpleNamespace: lambda value, down: {"$ns": down(vars(value))},
    Fraction: lambda value, down: {"$F": [value.numerator, value.denominator]},
    HTTPStatus: lambda value, down: {"$hs": int(value)},
    re.Pattern: lambda value, down: {"$re": [down(value.pattern), value.flags]},
    timezone: _tag_zone,
    ZoneInfo: _tag_zone,
    IPv4Address: _tag_ip,
    IPv4Interface: _tag_ip,
    IPv4Network: _tag_ip,
    IPv6Address: _tag_ip,
    IPv6Interface: _tag_ip,
    IPv6Network: _tag_ip,
}


# ---- reading ----------------------------------------------------------------


def _read_pairs(payload: Any, down: Down) -> list[tuple[Any, Any]]:
    return [(down(key), down(child)) for key, child in payload]


def _read_defaultdict(payload: Any, down: Down) -> Any:
    name, pairs = payload
    factory = None if name is None else BUILTINS[name]
    return defaultdict(factory, _read_pairs(pairs, down))


def _read_counter(payload: Any, down: Down) -> Any:
    # Counter's own init and update would count; dict's takes values as they are.
    counter: Counter[Any] = Counter()
    dict.update(counter, _read_pairs(payload, down))
    return counter


def _read_deque(payload: Any, down: Down) -> Any:
    maxlen, values = payload
    if not isinstance(values, list):
        raise TypeError("the values of a deque are a list")
    return deque(map(down, values), maxlen)


def _read_proxy(payload: Any, down: Down) -> Any:
    mapping = down(payload)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"a proxy of {type(mapping).__name__}")
    return MappingProxyType(mapping)


def _read_namespace(payload: Any, down: Down) -> Any:
    values = down(payload)
    if not isinstance(values, dict):
        raise TypeError(f"a namespace of {type(values).__name__}")
    return SimpleNamespace(**values)


def _read_pattern(payload: Any, down: Down) -> Any:
    text, flags = down(payload[0]), payload[1]
    if not isinstance(text, str | bytes) or type(flags) is not int:
        raise TypeError("a pattern is text and flags")
    try:
        return re.compile(text, flags)
    except (re.error, Warning) as error:
        # Warnings that are errors come from patterns of doubtful meaning.
        raise ValueError(f"no pattern: {error}") from error


def _read_zone_value(payload: Any, down: Down) -> Any:
    zone = read_zone(payload)
    if zone is None:
        raise TypeError("no zone")
    return zone


READERS: Mapping[str, Callable[[Any, Down], Any]] = {
    "$od": lambda payload, down: OrderedDict(_read_pairs(payload, down)),
    "$dd": _read_defaultdict,
    "$ct": _read_counter,
    "$dq": _read_deque,
    "$mp": _read_proxy,
    "$ns": _read_namespace,
    "$F": lambda payload, down: Fraction(*payload),
    "$hs": lambda payload, down: HTTPStatus(payload),
    "$re": _read_pattern,
    "$z": _read_zone_value,
    "$ip": lambda payload, down: _IP_TYPES[payload[0]](payload[1]),
}
