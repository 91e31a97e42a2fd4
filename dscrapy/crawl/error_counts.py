"""Errors that are logged, counted where Scrapy's own count does not see them.

Scrapy's ``log_count/ERROR`` begins when the spider is open, ends before extensions and
collectors have closed, and leaves out what is below LOG_LEVEL; the extension may be
switched off. A job's errors count whether they are printed or not.
"""

import logging
from collections.abc import Callable

from scrapy.utils.log import LogCounterHandler

from dscrapy.crawl.scrapy_side.stats_collector import Delta

# A job's count of errors is this stat and Scrapy's own count.
KEY = "dscrapy/errors_logged"


class ErrorCounter(logging.Handler):
    """Counts errors that none of Scrapy's counters counts; ``delta_now`` returns the
    delta of the running code."""

    def __init__(self, delta_now: Callable[[], Delta]) -> None:
        super().__init__(logging.ERROR)
        self._delta_now = delta_now

    def emit(self, record: logging.LogRecord) -> None:
        """Count the record, unless Scrapy does."""
        is_counted = any(
            isinstance(handler, LogCounterHandler) and record.levelno >= handler.level
            for handler in logging.root.handlers
        )
        if not is_counted:
            self._delta_now().write("sum", KEY, 1)


def count_errors(delta_now: Callable[[], Delta]) -> None:
    """Count errors from now on, to the end of this process."""
    logging.root.addHandler(ErrorCounter(delta_now))
