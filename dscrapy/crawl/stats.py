"""Scrapy's stats with the operation that wrote each, so that they can be merged."""

import json
import logging
from typing import Any

import msgspec
from scrapy.statscollectors import StatsCollector

from dscrapy.crawl import codec
from dscrapy.crawl.items import is_wire_json, lossy
from dscrapy.model import Stats

_logger = logging.getLogger(__name__)

# Stats travel in one message with the outcome. Scrapy's own are 40 numbers; these
# leave room for a hundred thousand of a project that counts by page or host.
VALUE_BYTES_MAX = 64 * 1024
STATS_BYTES_MAX = 6 * 1024 * 1024


def recording(base: type[Any]) -> type[Any]:
    """Return a subclass of the project's stats collector that notes operations."""

    class RecordingStatsCollector(base):  # type: ignore[misc]  # a base of run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Before the base: its own start may already write.
            self.operations: dict[str, str] = {}
            super().__init__(*args, **kwargs)

        def inc_value(self, key: str, *args: Any, **kwargs: Any) -> None:
            self.operations[key] = "sum"
            super().inc_value(key, *args, **kwargs)

        def max_value(self, key: str, *args: Any, **kwargs: Any) -> None:
            self.operations[key] = "max"
            super().max_value(key, *args, **kwargs)

        def min_value(self, key: str, *args: Any, **kwargs: Any) -> None:
            self.operations[key] = "min"
            super().min_value(key, *args, **kwargs)

        def set_value(self, key: str, *args: Any, **kwargs: Any) -> None:
            self.operations[key] = "last"
            super().set_value(key, *args, **kwargs)

        def set_stats(self, *args: Any, **kwargs: Any) -> None:
            self.operations.clear()
            super().set_stats(*args, **kwargs)

        def clear_stats(self, *args: Any, **kwargs: Any) -> None:
            self.operations.clear()
            super().clear_stats(*args, **kwargs)

    return RecordingStatsCollector


def by_operation(collector: StatsCollector) -> Stats:
    """Return the collector's stats by operation; "last" where none was noted.

    What is too large to send is left out, with a warning that names it.
    """
    operations: dict[str, str] = getattr(collector, "operations", {})
    stats: Stats = {}
    left_out: list[str] = []
    total = 0
    for key, value in collector.get_stats().items():
        data = _encode(value)
        size = len(str(key).encode(errors="replace")) + len(data)
        if len(data) > VALUE_BYTES_MAX or total + size > STATS_BYTES_MAX:
            left_out.append(str(key))
            continue
        total += size
        operation = operations.get(key, "last")
        # A key that is no text, or no valid one, would not survive as JSON.
        name = str(key).encode(errors="backslashreplace").decode()
        stats.setdefault(operation, {})[name] = msgspec.Raw(data)
    if left_out:
        _logger.warning(
            "%d stats are too large to be kept, the first of them: %s",
            len(left_out),
            ", ".join(left_out[:5]),
        )
    return stats


def _encode(value: Any) -> bytes:
    try:
        tree = codec.tag(value, lossy)
        data = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    except (codec.UnencodableError, ValueError):
        data = b""
    if data and is_wire_json(data):
        return data
    return json.dumps(repr(value)).encode()
