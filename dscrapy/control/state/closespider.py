"""When the project's ``CLOSESPIDER_*`` settings close a job, all processes counted.

The meaning is that of Scrapy's extension, but it sees single responses, items and
errors where the master sees whole commits: one commit may bring a count beyond its
limit.
"""

import math

import attrs

from dscrapy.model import CloseLimits


@attrs.define(kw_only=True)
class Counters:
    """What a job's commits brought so far.

    ``pages_no_item`` counts the pages since the last item, ``pages_no_item_max`` the
    most pages that ever were between two items.
    """

    items: int = 0
    pages: int = 0
    errors: int = 0
    pages_no_item: int = 0
    pages_no_item_max: int = 0

    def count(self, *, items: int, pages: int, errors: int) -> None:
        """Count a commit: its pages came before its items."""
        self.items += items
        self.pages += pages
        self.errors += errors
        self.pages_no_item += pages
        self.pages_no_item_max = max(self.pages_no_item_max, self.pages_no_item)
        if items:
            self.pages_no_item = 0


@attrs.frozen(kw_only=True)
class Watch:
    """How long a job has run, and since when an item has to come.

    Instants are seconds that the job has run: of the master's run clock, while one of
    the job's processes was open. It had run ``ran_s`` when this was noted; the period
    began at ``period_at``, when the job had ``period_items``.
    """

    ran_s: float = 0.0
    period_at: float = 0.0
    period_items: int = 0

    def next_deadline(self, limits: CloseLimits) -> float:
        """Return the instant at which a span may be over, infinity if there is none."""
        timeout = limits.timeout_s or math.inf
        span_s = limits.timeout_no_item_s
        return min(timeout, self.period_at + span_s if span_s else math.inf)

    def expired(self, limits: CloseLimits, items: int, ran_s: float) -> str:
        """Return the finish reason if a span is over."""
        if limits.timeout_s and ran_s >= limits.timeout_s:
            return "closespider_timeout"
        if self._is_over(limits, ran_s) and items == self.period_items:
            return "closespider_timeout_no_item"
        return ""

    def at(self, limits: CloseLimits, items: int, ran_s: float) -> "Watch":
        """Return the watch at this instant, in the next period if one is over.

        Periods keep their pace, also when this is called late.
        """
        if not self._is_over(limits, ran_s):
            return attrs.evolve(self, ran_s=ran_s)
        span_s = limits.timeout_no_item_s
        begins = self.period_at + (ran_s - self.period_at) // span_s * span_s
        return Watch(ran_s=ran_s, period_at=begins, period_items=items)

    def _is_over(self, limits: CloseLimits, ran_s: float) -> bool:
        span_s = limits.timeout_no_item_s
        return span_s > 0 and ran_s >= self.period_at + span_s


def reached(limits: CloseLimits, counters: Counters, received: int) -> str:
    """Return the finish reason if a count is reached, else an empty one.

    ``received`` pages have got a response and are not committed yet. Of several counts
    that of pages goes first, then that of items, then of errors.
    """
    for limit, count, reason in (
        (limits.pages, counters.pages + received, "closespider_pagecount"),
        (
            limits.pages_no_item,
            counters.pages_no_item_max,
            "closespider_pagecount_no_item",
        ),
        (limits.items, counters.items, "closespider_itemcount"),
        (limits.errors, counters.errors, "closespider_errorcount"),
    ):
        if limit and count >= limit:
            return reason
    return ""
