"""The log of errors of our own, which may come again at every command."""

import logging
from collections import Counter

logger = logging.getLogger(__name__)

# Errors in one step that are logged, with their tracebacks; enough to find a bug.
LOGGED_MAX = 100
# Of those beyond, every so many, so that it is seen that they go on.
LOGGED_EVERY = 1000


class BugLogger:
    """Counts the errors in each step and logs the first ones whole."""

    def __init__(self) -> None:
        # By step: there are as many as there are kinds of commands.
        self._times: Counter[str] = Counter()

    def exception(self, step: str, at: object = "") -> None:
        """Log the error that is being handled; ``at`` is what the step was about."""
        self._times[step] += 1
        times = self._times[step]
        if times <= LOGGED_MAX or times % LOGGED_EVERY == 0:
            logger.exception("internal error in %s %s (%d so far)", step, at, times)
