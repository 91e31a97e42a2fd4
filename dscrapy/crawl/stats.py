"""Scrapy's stats with the operation that wrote each, lease by lease.

The collector holds this process's numbers, as its readers in the process see them.
Beside them every write goes into the ``Delta`` of the lease whose work is running,
which travels with its commit, so that a job's stats are those of what is committed.
"""

import json
import logging
import math
from collections.abc import Callable
from typing import Any

import msgspec

from dscrapy.crawl import codec
from dscrapy.crawl.items import is_wire_json, lossy
from dscrapy.model import Stats

_logger = logging.getLogger(__name__)

# Stats travel in one message with the outcome. Scrapy's own are 40 numbers; these
# leave room for a hundred thousand of a project that counts by page or host.
VALUE_BYTES_MAX = 64 * 1024
STATS_BYTES_MAX = 6 * 1024 * 1024


class Delta:
    """What was written to stats since it was empty: key -> operation and value."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def write(self, operation: str, key: str, value: Any) -> None:
        """Take a write: "sum", "max", "min" or "last".

        Over a write of another kind, "last" stays "last" and takes the effect;
        anything else becomes "last".
        """
        held = self._values.get(key)
        if held is None or operation == "last":
            self._values[key] = (operation, value)
        elif held[0] in (operation, "last"):
            self._values[key] = (held[0], _joined(operation, held[1], value))
        else:
            self._values[key] = ("last", value)

    def take(self, other: "Delta") -> None:
        """Take all that another delta holds, and empty it."""
        for key, (operation, value) in other._values.items():
            self.write(operation, key, value)
        other.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()

    def encoded(self) -> Stats:
        """Return the delta as it travels.

        "sum", "max" and "min" hold numbers only; what is too large to send is left
        out, with a warning that names it.
        """
        stats: Stats = {}
        left_out: list[str] = []
        total = 0
        for key, (operation, value) in self._values.items():
            if type(value) is int or (type(value) is float and math.isfinite(value)):
                data = json.dumps(value).encode()
            else:
                operation, data = "last", _encode(value)
            # A key that is no text, or no valid one, would not survive as JSON.
            name = str(key).encode(errors="backslashreplace").decode()
            size = len(name) + len(data)
            if len(data) > VALUE_BYTES_MAX or total + size > STATS_BYTES_MAX:
                left_out.append(name)
                continue
            total += size
            stats.setdefault(operation, {})[name] = msgspec.Raw(data)
        if left_out:
            _logger.warning(
                "%d stats are too large to be kept, the first of them: %s",
                len(left_out),
                ", ".join(left_out[:5]),
            )
        return stats


def recording(base: type[Any], delta_now: Callable[[], Delta]) -> type[Any]:
    """Return a subclass of the project's stats collector that also writes deltas.

    ``delta_now`` gives the delta of the work that is running.
    """

    class RecordingStatsCollector(base):  # type: ignore[misc]  # a base of run time
        def inc_value(
            self, key: str, count: Any = 1, start: Any = 0, *args: Any, **kwargs: Any
        ) -> None:
            begins = start and self.get_value(key) is None
            delta_now().write("sum", key, start + count if begins else count)
            super().inc_value(key, count, start, *args, **kwargs)

        def max_value(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
            delta_now().write("max", key, value)
            super().max_value(key, value, *args, **kwargs)

        def min_value(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
            delta_now().write("min", key, value)
            super().min_value(key, value, *args, **kwargs)

        def set_value(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
            delta_now().write("last", key, value)
            super().set_value(key, value, *args, **kwargs)

        def set_stats(self, stats: Any, *args: Any, **kwargs: Any) -> None:
            for key, value in stats.items():
                delta_now().write("last", key, value)
            super().set_stats(stats, *args, **kwargs)

    return RecordingStatsCollector


def merged(stats: Stats) -> dict[str, Any]:
    """Return stats that came over the wire as Scrapy's collector holds them."""
    return {
        key: codec.untag(json.loads(bytes(raw)), codec.no_classes, lenient=True)
        for group in stats.values()
        for key, raw in group.items()
    }


def _joined(operation: str, old: Any, new: Any) -> Any:
    # The project's values may be anything that its own calls can add or compare.
    try:
        match operation:
            case "sum":
                return old + new
            case "max":
                return max(old, new)
            case _:
                return min(old, new)
    except TypeError:
        return new


def _encode(value: Any) -> bytes:
    try:
        tree = codec.tag(value, lossy)
        data = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    except (codec.UnencodableError, ValueError):
        data = b""
    if data and is_wire_json(data):
        return data
    return json.dumps(repr(value)).encode()
