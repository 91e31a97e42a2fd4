"""Values of other packages that a pickle cannot hold, or that it would change.

===========  ===============================================================
``$cf``      what ``scrapy_poet.callback_for`` returned, a function without a
             name: its page or item class
``$du``      a zone of ``dateutil.tz.gettz``: its name. Reading gives the object
             that gettz gives everybody, so that times compare as before
===========  ===============================================================

A process without the package raises ``UnreadableError``.
"""

import sys
from importlib import import_module
from types import FunctionType
from typing import Any

from dscrapy.crawl.codec.stdlib_types import NO_TAG, Down
from dscrapy.crawl.codec.tags import UnreadableError

_POET = "scrapy_poet"
# How scrapy-poet marks what it made, and the parameters whose annotation it reads.
_POET_MARK = "__scrapy_poet_callback"
_POET_PARAMETERS = ("page", "item")
_DATEUTIL = "dateutil.tz"


def tree_of(value: Any, down: Down) -> Any:
    """Return the tree of a value of these packages, ``NO_TAG`` for anything else."""
    module = getattr(type(value), "__module__", None) or ""
    if isinstance(value, FunctionType):
        return _poet_tree(value, down)
    if module.startswith(f"{_DATEUTIL}."):
        return _zone_tree(value)
    return NO_TAG


def _poet_tree(function: FunctionType, down: Down) -> Any:
    is_poets = (function.__module__ or "").startswith(f"{_POET}.")
    if not is_poets or not getattr(function, _POET_MARK, False):
        return NO_TAG
    for name in _POET_PARAMETERS:
        cls = function.__annotations__.get(name)
        if isinstance(cls, type):
            return {"$cf": down(cls)}
    return NO_TAG


def _zone_tree(zone: Any) -> Any:
    path = getattr(zone, "_filename", None)
    if not isinstance(path, str):
        return NO_TAG
    gettz = sys.modules[_DATEUTIL].gettz
    parts = path.split("/")
    # The name is the end of the file's path: Asia/Tokyo, America/Indiana/Knox, UTC.
    for count in (2, 3, 1, len(parts)):
        name = "/".join(parts[-count:])
        if gettz(name) is zone:
            return {"$du": name}
    return NO_TAG


def _read_poet(payload: Any, down: Down) -> Any:
    return _package(_POET).callback_for(down(payload))


def _read_zone(payload: Any, down: Down) -> Any:
    zone = _package(_DATEUTIL).gettz(payload) if isinstance(payload, str) else None
    if zone is None:
        raise UnreadableError(f"there is no zone {payload!r:.100} here")
    return zone


READERS = {"$cf": _read_poet, "$du": _read_zone}


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UnreadableError(f"{name}: {error}") from error
