"""How a process that leaves a job ends, and how the last one ends the job.

Both run the project's code for a closing spider. A process that leaves does not call
the components that are called once in a job; the last process calls them, with the
job's stats.
"""

import logging
from collections.abc import Callable
from typing import Any

from pydispatch import dispatcher  # type: ignore[import-untyped]  # Scrapy's own
from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.extensions.corestats import CoreStats

from dscrapy.crawl.insides.probes import set_start
from dscrapy.crawl.scrapy_side.stats_collector import merged
from dscrapy.model import Stats

_logger = logging.getLogger(__name__)

# The signals at which components report how the crawl went.
_LAST_SIGNALS = (signals.spider_closed, signals.engine_stopped)


def has_once(crawler: Crawler, is_once: Callable[[type], bool]) -> bool:
    """Return whether a component of this crawl is called once in a job, at its end."""
    return bool(_receivers(crawler, is_once))


def leave_out_once(crawler: Crawler, is_once: Callable[[type], bool]) -> None:
    """Disconnect the components that are called once in a job."""
    for signal, receiver in _receivers(crawler, is_once):
        crawler.signals.disconnect(receiver, signal)


def begin_at(crawler: Crawler, opened_at: float) -> None:
    """Let ``start_time`` be the job's, in seconds since the epoch.

    To be called after Scrapy's own handler of ``spider_opened``.
    """
    core = crawler.get_extension(CoreStats)
    if core is not None:
        crawler.stats.set_value("start_time", set_start(core, opened_at))


def take_over(crawler: Crawler, stats: Stats, *, again: bool) -> None:
    """Let the collector hold the whole job's stats; ``again`` if another process died
    that was to end the job."""
    collector: Any = crawler.stats
    collector.take_over(merged(stats))
    if again:
        _logger.warning(
            "The process that was to end the job died: what is called once in a job "
            "is called again"
        )


def _receivers(
    crawler: Crawler, is_once: Callable[[type], bool]
) -> list[tuple[Any, Any]]:
    """Return signals and receivers of components that are called once in a job."""
    pairs = []
    for signal in _LAST_SIGNALS:
        connected = dispatcher.getReceivers(crawler.signals.sender, signal)
        for receiver in dispatcher.liveReceivers(connected):
            owner = getattr(receiver, "__self__", None)
            cls = owner if isinstance(owner, type) else type(owner)
            if is_once(cls):
                pairs.append((signal, receiver))
    return pairs
