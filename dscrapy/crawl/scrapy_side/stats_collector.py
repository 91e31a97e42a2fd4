"""Scrapy's stats with the operation that wrote each, lease by lease.

The collector holds this process's numbers, as its readers in the process see them.
Every write also goes into the ``Delta`` of the lease whose work is running, which
travels with the lease's commit, so a job's stats are those of its commits. The same
holds for writes into the dict that ``get_stats()`` returns: a number that was read
before it is written (``stats["x"] += 1``) adds, any other value replaces, and a removed
key is dropped.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import msgspec
from scrapy.statscollectors import StatsCollector

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.items import is_wire_json, lossy
from dscrapy.crawl.insides.probes import COLLECTED
from dscrapy.model import Stats

_logger = logging.getLogger(__name__)

# Stats travel in one message with the end of a page. Scrapy's own are 40 numbers; the
# limits leave room for a hundred thousand of a project that counts by page or host.
VALUE_BYTES_MAX = 64 * 1024
STATS_BYTES_MAX = 6 * 1024 * 1024
# Keys that were read in the dict of stats and not written since. Code that only reads
# may read all keys; beyond this number all are forgotten and count as not read.
READ_KEYS_MAX = 10_000
_UNKNOWN = object()
# Operations that replace an earlier write of any kind.
_REPLACE = frozenset({"last", "drop"})
# Values that nobody changes in place.
_FIXED = (str, bytes, int, float, bool, type(None), datetime, date, tuple, frozenset)


class Delta:
    """What was written to stats since it was empty: key -> operation and value."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def write(
        self, operation: str, key: str, value: Any, becomes: Any = _UNKNOWN
    ) -> None:
        """Take a write: "sum", "max", "min", "last", or "drop", which has no value.

        After a "last" any write stays "last", of the value that results. Two other
        operations of different kinds become "last" of ``becomes``, the value that the
        process has then.
        """
        written = self._values.get(key)
        if written is None or operation in _REPLACE:
            self._values[key] = (operation, value)
        elif written[0] in (operation, "last"):
            self._values[key] = (written[0], _joined(operation, written[1], value))
        else:
            result = value if becomes is _UNKNOWN else becomes
            self._values[key] = ("last", result)

    def take(self, delta: "Delta") -> None:
        """Take all that another delta holds, and empty it."""
        for key, (operation, value) in delta._values.items():
            self.write(operation, key, value)
        delta.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()

    def encoded(self) -> Stats:
        """Return the delta as it travels.

        "sum", "max" and "min" hold numbers only. Stats that are too large to send are
        left out; a warning names them.
        """
        stats: Stats = {}
        left_out: list[str] = []
        total = 0
        for key, (operation, value) in self._values.items():
            if operation == "drop":
                data = b"null"
            elif type(value) is int or (type(value) is float and math.isfinite(value)):
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


class RecordedStats(dict[Any, Any]):
    """A collector's numbers; writes that its methods do not make are noted."""

    __slots__ = ("_delta_now", "_read", "writing_key")

    def __init__(self, values: Any, delta_now: Callable[[], Delta]) -> None:
        super().__init__(values)
        self._delta_now = delta_now
        self._read: set[Any] = set()
        # The key that a method of the collector is writing; the method notes the write.
        self.writing_key: Any = None

    # ---- reads ----------------------------------------------------------------

    def _note_read(self, key: Any) -> None:
        if key == self.writing_key and self.writing_key is not None:
            return
        if len(self._read) >= READ_KEYS_MAX:
            self._read.clear()
        self._read.add(key)

    def __getitem__(self, key: Any) -> Any:
        self._note_read(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note_read(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._note_read(key)
        return super().get(key, default)

    # ---- writes ---------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        if key != self.writing_key or self.writing_key is None:
            self._note_write(key, value)
        super().__setitem__(key, value)

    def _note_write(self, key: Any, value: Any) -> None:
        delta = self._delta_now()
        if key in self._read:
            self._read.discard(key)
            old = dict.get(self, key, 0)
            if _is_number(value) and _is_number(old):
                delta.write("sum", key, value - old, value)
                return
        delta.write("last", key, value)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        self._delta_now().write("drop", key, None)

    def pop(self, key: Any, *default: Any) -> Any:
        if not dict.__contains__(self, key):
            return super().pop(key, *default)
        value = super().pop(key)
        self._delta_now().write("drop", key, None)
        return value

    def popitem(self) -> tuple[Any, Any]:
        key, value = super().popitem()
        self._delta_now().write("drop", key, None)
        return key, value

    def clear(self) -> None:
        for key in list(self):
            del self[key]

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self._note_read(key)
        if not dict.__contains__(self, key):
            # A first number is added; it does not replace other processes' numbers.
            self[key] = default
            self._note_read(key)
        return dict.__getitem__(self, key)

    def update(self, *args: Any, **values: Any) -> None:
        for key, value in dict(*args, **values).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]  # "or" is dict's
        self.update(other)
        return self

    def __reduce__(self) -> Any:
        # A copy is a plain dict: writes to it are not noted.
        return dict, (dict(self),)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def take_over(self, values: dict[str, Any]) -> None:
        """Hold these values from now on, without noting a write."""
        dict.clear(self)
        dict.update(self, values)
        self._read.clear()

    def note_changed(self) -> None:
        """Note again the values that may have been changed in place."""
        for key, value in self.items():
            if not isinstance(value, _FIXED):
                self._delta_now().write("last", key, value)


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _recorded(collector: Any) -> RecordedStats | None:
    # Scrapy's own __getattribute__ is slow, and this is asked at each write.
    try:
        stats = object.__getattribute__(collector, COLLECTED)
    except AttributeError:
        return None
    return stats if type(stats) is RecordedStats else None


@contextlib.contextmanager
def _writing(stats: RecordedStats | None, key: str) -> Iterator[None]:
    """Note no write to the key in the block: the caller has noted it."""
    if stats is None:
        yield
        return
    before, stats.writing_key = stats.writing_key, key
    try:
        yield
    finally:
        stats.writing_key = before


def note_changed(collector: Any) -> None:
    """Note the values of a collector that may have been changed in place."""
    stats = _recorded(collector)
    if stats is not None:
        stats.note_changed()


def _is_stock(base: type[Any], name: str) -> bool:
    """Whether a method is Scrapy's own, which writes one key of the dict: that costs
    less when it is done here."""
    return getattr(base, name, None) is getattr(StatsCollector, name)


def _newest(old: Any, new: Any) -> Any:
    return new


def _choosing(
    base: type[Any],
    name: str,
    operation: str,
    choose: Callable[[Any, Any], Any],
    delta_now: Callable[[], Delta],
) -> Callable[..., None]:
    """Return the method ``name``, which writes one of the old and the new value."""
    is_stock = _is_stock(base, name)
    method: Any = getattr(base, name)

    def write(self: Any, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        stats = _recorded(self)
        if stats is not None and is_stock:
            chosen = choose(dict.get(stats, key, value), value)
            delta_now().write(operation, key, value, chosen)
            dict.__setitem__(stats, key, chosen)
            return
        delta_now().write(operation, key, value)
        with _writing(stats, key):
            method(self, key, value, *args, **kwargs)

    return write


def _taking_over(base: type[Any]) -> Callable[[Any, dict[str, Any]], None]:
    """Return the method that lets a collector hold given stats."""

    def take_over(self: Any, stats: dict[str, Any]) -> None:
        recorded = _recorded(self)
        if recorded is not None:
            recorded.take_over(stats)
        if base.get_stats(self) == stats:
            return
        # A class of the project's own that keeps its stats elsewhere.
        base.clear_stats(self)
        for key, value in stats.items():
            base.set_value(self, key, value)

    return take_over


def recording(base: type[Any], delta_now: Callable[[], Delta]) -> type[Any]:
    """Return a subclass of the project's stats collector that also writes deltas.

    ``delta_now`` gives the delta of the work that is running.
    """

    inc_is_stock = _is_stock(base, "inc_value")

    class RecordingStatsCollector(base):  # type: ignore[misc]  # a base of run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._has_warned_of_get_stats = False
            self._record()

        def _record(self) -> None:
            values = getattr(self, COLLECTED, None)
            if type(values) is dict:
                setattr(self, COLLECTED, RecordedStats(values, delta_now))

        def get_stats(self, *args: Any, **kwargs: Any) -> Any:
            stats = super().get_stats(*args, **kwargs)
            if (
                not isinstance(stats, RecordedStats)
                and not self._has_warned_of_get_stats
            ):
                self._has_warned_of_get_stats = True
                _logger.warning(
                    "STATS_CLASS is %s.%s, which keeps its numbers in a place of its "
                    "own: what is written to the result of its get_stats() does not "
                    "count in the job's stats (what its methods write does)",
                    base.__module__,
                    base.__qualname__,
                )
            return stats

        def inc_value(
            self, key: str, count: Any = 1, start: Any = 0, *args: Any, **kwargs: Any
        ) -> None:
            stats = _recorded(self)
            if stats is not None and inc_is_stock:
                begins = start and dict.get(stats, key) is None
                added = start + count if begins else count
                value = dict.get(stats, key, start) + count
                delta_now().write("sum", key, added, value)
                dict.__setitem__(stats, key, value)
                return
            begins = start and self.get_value(key) is None
            delta_now().write("sum", key, start + count if begins else count)
            with _writing(stats, key):
                super().inc_value(key, count, start, *args, **kwargs)

        max_value = _choosing(base, "max_value", "max", max, delta_now)
        min_value = _choosing(base, "min_value", "min", min, delta_now)
        set_value = _choosing(base, "set_value", "last", _newest, delta_now)

        def set_stats(self, stats: Any, *args: Any, **kwargs: Any) -> None:
            for key in _recorded(self) or ():
                if key not in stats:
                    delta_now().write("drop", key, None)
            for key, value in stats.items():
                delta_now().write("last", key, value)
            super().set_stats(stats, *args, **kwargs)
            self._record()

        take_over = _taking_over(base)

    return RecordingStatsCollector


def merged(stats: Stats) -> dict[str, Any]:
    """Return stats that came over the wire as Scrapy's collector holds them."""
    return {
        key: tags.untag(json.loads(bytes(raw)), tags.no_classes, lenient=True)
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
        tree = tags.tag(value, lossy)
        data = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    except (tags.UnencodableError, ValueError):
        data = b""
    if data and is_wire_json(data):
        return data
    return json.dumps(repr(value)).encode()
