"""Logs bugs of dscrapy itself, which may occur again at every command."""

import logging
from collections import Counter

from dscrapy.control.decision import Bug

logger = logging.getLogger(__name__)

# Errors in one step that are logged, with their tracebacks; enough to find a bug.
LOGGED_MAX = 100
# Beyond these every thousandth is logged, so that the log shows that they go on.
LOGGED_EVERY = 1000


class BugLogger:
    """Counts the errors in each step and logs the first ones whole."""

    def __init__(self) -> None:
        # Errors by step; there are as many steps as kinds of commands.
        self._times: Counter[str] = Counter()

    def log(self, bug: Bug) -> None:
        """Log a bug that was met, with its traceback."""
        self._times[bug.step] += 1
        times = self._times[bug.step]
        if times <= LOGGED_MAX or times % LOGGED_EVERY == 0:
            logger.error(
                "internal error in %s %s (%d so far)",
                bug.step,
                bug.at,
                times,
                exc_info=bug.error,
            )
