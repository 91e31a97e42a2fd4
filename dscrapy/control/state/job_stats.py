"""A job's stats: counts of its processes, each merged by the operation that wrote it.

Each commit brings a delta, so the sums are those of what is committed, whatever was
killed. Numbers are decoded once; everything else is kept as it came.
"""

import sys
from datetime import UTC, datetime, timedelta, timezone

import attrs
import msgspec

from dscrapy.model import Stats

# Scrapy's own stats are 40 numbers; projects count by host or by page. Beyond these
# (and the bytes below) memory, and the message that shows the stats, would have no
# bound: further keys are dropped, and counted.
STATS_KEYS_MAX = 100_000
STATS_BYTES_MAX = 6 * 1024 * 1024
DROPPED_KEY = "dscrapy/stats_dropped"
# A number written longer than this is kept as it is: a float needs 24 characters, and
# integers without a bound would make sums ever more costly.
NUMBER_BYTES_MAX = 32

# Scrapy writes these by set_value; of a job's many processes the earliest, the latest
# and the largest value count.
_START, _FINISH, _LARGEST = "start_time", "finish_time", "memusage/"
_OPERATIONS = ("sum", "max", "min", "last")

# Logged errors: Scrapy's counts, and a crawl process's own where Scrapy does not count
# (``crawl.error_counts``). Beside them the count of exceptions, for when the log is
# silent, and requests that ended their process before it could log.
_LOGGED = ("log_count/ERROR", "log_count/CRITICAL", "dscrapy/errors_logged")
_RAISED = "spider_exceptions/count"
POISONED_KEY = "dscrapy/poisoned_requests"
UNREADABLE_KEY = "dscrapy/unreadable_requests"


class _Moment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tagged datetime: ISO text, fold, offset from UTC in microseconds."""

    value: tuple[str, int, int | None] = msgspec.field(name="$dt")


_number = msgspec.json.Decoder(int | float)
_moment = msgspec.json.Decoder(_Moment)


@attrs.define(eq=False)
class Totals:
    """Stats of a job so far: a key has a number, or another JSON value."""

    _numbers: dict[str, int | float] = attrs.field(init=False, factory=dict)
    _others: dict[str, bytes] = attrs.field(init=False, factory=dict)
    # The operation that wrote a key last.
    _operations: dict[str, str] = attrs.field(init=False, factory=dict)
    # Bytes of all keys and values; a number counts as ``NUMBER_BYTES_MAX``.
    _bytes: int = attrs.field(init=False, default=0)

    def merge(self, delta: Stats) -> None:
        """Add what a process counted since its last delta."""
        for operation, values in delta.items():
            if operation == "sum":
                for key, raw in values.items():
                    value = _number_of(raw)
                    if value is None:
                        self._replace(key, raw)
                    else:
                        self._sum(key, value)
            elif operation == "drop":
                for key in values:
                    self._drop(key)
            else:
                for key, raw in values.items():
                    self._write(operation, key, raw)

    def inc(self, key: str, count: int = 1) -> None:
        """Add to a sum of the master's own."""
        self._sum(key, count)

    def count(self, key: str) -> int:
        """Return a number as a whole one, 0 if there is none."""
        return int(self._numbers.get(key, 0))

    @property
    def errors(self) -> int:
        """How many errors there were.

        What a callback raises and a request that failed is also logged as an error,
        so these are counted once, by the larger of both numbers.
        """
        logged = sum(self.count(key) for key in _LOGGED)
        alone = self.count(POISONED_KEY) + self.count(UNREADABLE_KEY)
        return max(logged, self.count(_RAISED), 0) + alone

    @property
    def start_at(self) -> float | None:
        """When the job's first process began, None where its stats do not say so."""
        start = _datetime_of(self._others.get(_START, b""))
        return None if start is None else start.timestamp()

    def final(self, finish_reason: str) -> Stats:
        """Return the stats as Scrapy has them when the job is done.

        Rates are per minute since the first process opened, None below a second.
        """
        start, finish = (
            _datetime_of(self._others.get(key, b"")) for key in (_START, _FINISH)
        )
        written: dict[str, object] = {"finish_reason": finish_reason}
        minutes = 0.0
        if start is not None and finish is not None:
            elapsed_s = (finish - start).total_seconds()
            written["elapsed_time_seconds"] = elapsed_s
            # In whole seconds as Scrapy counts them (which forgets the days).
            minutes = int(elapsed_s) / 60
        for key, counted in (
            ("responses_per_minute", "response_received_count"),
            ("items_per_minute", "item_scraped_count"),
        ):
            number = self._numbers.get(counted, 0)
            written[key] = number / minutes if minutes > 0 else None
        stats = self.encode()
        for values in stats.values():
            for key in written.keys() & values.keys():
                del values[key]
        last = stats.setdefault("last", {})
        for key, value in written.items():
            last[key] = msgspec.Raw(msgspec.json.encode(value))
        return {operation: values for operation, values in stats.items() if values}

    def encode(self) -> Stats:
        """Return the stats by operation; merged into empty totals they are the same."""
        stats: Stats = {}
        for key, operation in self._operations.items():
            other = self._others.get(key)
            if other is None:
                other = msgspec.json.encode(self._numbers[key])
            stats.setdefault(operation, {})[key] = msgspec.Raw(other)
        return stats

    @classmethod
    def decode(cls, stats: Stats) -> "Totals":
        """Return the totals of a snapshot."""
        totals = cls()
        totals.merge(stats)
        return totals

    def _write(self, operation: str, key: str, raw: msgspec.Raw) -> None:
        """Take a value that was written by another operation than "sum"."""
        if key in (_START, _FINISH):
            self._write_moment(key, raw)
            return
        value = _number_of(raw)
        if value is None:
            self._replace(key, raw)
            return
        old = self._numbers.get(key)
        if operation == "max" or key.startswith(_LARGEST):
            value = value if old is None else max(old, value)
        elif operation == "min":
            value = value if old is None else min(old, value)
        self._set(operation, key, value)

    def _write_moment(self, key: str, raw: msgspec.Raw) -> None:
        old = _datetime_of(self._others.get(key, b""))
        new = _datetime_of(raw)
        if old is None or new is None or (new < old if key == _START else new > old):
            self._replace(key, raw)

    def _sum(self, key: str, value: int | float) -> None:
        old = self._numbers.get(key)
        if old is None:
            self._set("sum", key, value)
            return
        total = old + value
        # JSON has no infinity: a sum that no float holds stays as it was.
        if -sys.float_info.max <= total <= sys.float_info.max:
            self._numbers[key] = total
            self._operations[key] = "sum"

    def _drop(self, key: str) -> None:
        """Forget a key: a process has removed it."""
        if self._operations.pop(key, None) is None:
            return
        other = self._others.pop(key, None)
        self._numbers.pop(key, None)
        if key != DROPPED_KEY:
            size = NUMBER_BYTES_MAX if other is None else len(other)
            self._bytes -= size + len(key.encode())

    def _set(self, operation: str, key: str, value: int | float) -> None:
        if key in self._numbers or self._takes(key, NUMBER_BYTES_MAX):
            self._others.pop(key, None)
            self._numbers[key] = value
            self._operations[key] = operation if operation in _OPERATIONS else "last"

    def _replace(self, key: str, raw: msgspec.Raw) -> None:
        """Keep a value that is no number, whichever operation wrote it."""
        # A copy: a view would keep the whole message alive.
        data = bytes(raw)
        if self._takes(key, len(data)):
            self._numbers.pop(key, None)
            self._others[key] = data
            self._operations[key] = "last"

    def _takes(self, key: str, size: int) -> bool:
        """Make room for a value of ``size`` bytes, or count it as dropped."""
        if key == DROPPED_KEY:
            return True
        if key in self._operations:
            other = self._others.get(key)
            growth = size - (NUMBER_BYTES_MAX if other is None else len(other))
            fits = True
        else:
            growth = size + len(key.encode())
            count = len(self._operations) - (DROPPED_KEY in self._operations)
            fits = count < STATS_KEYS_MAX
        if fits and self._bytes + growth <= STATS_BYTES_MAX:
            self._bytes += growth
            return True
        self._sum(DROPPED_KEY, 1)
        return False


def _number_of(raw: msgspec.Raw) -> int | float | None:
    """Return a JSON number of a sensible length, None for anything else."""
    try:
        value = _number.decode(raw)
    except msgspec.DecodeError:
        return None
    return value if len(bytes(raw)) <= NUMBER_BYTES_MAX else None


def _datetime_of(raw: msgspec.Raw | bytes) -> datetime | None:
    """Return a tagged datetime, in UTC where it names no zone, or None."""
    try:
        text, fold, zone = _moment.decode(raw).value
        offset = timezone(timedelta(microseconds=zone)) if zone is not None else UTC
        return datetime.fromisoformat(text).replace(fold=fold, tzinfo=offset)
    except (msgspec.DecodeError, ValueError, OverflowError):
        return None
