"""When the project's ``CLOSESPIDER_*`` settings close a job, all processes counted.

The meaning is that of Scrapy's extension, with whole commits where it sees single
responses, items and errors: a limit may be passed by what one commit brings.
"""

import math

import attrs

from dscrapy.model import CloseLimits


@attrs.define(kw_only=True)
class Counters:
    """What a job's commits brought so far.

    ``pages_no_item`` are the pages since the last item, ``pages_no_item_max`` the most
    that there ever were between two.
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


@attrs.define(kw_only=True)
class Watch:
    """Instants of a job whose limits are spans of time.

    It ``opened_at``; the period in which an item has to come began at ``period_at``,
    when there were ``period_items``.
    """

    opened_at: float
    period_at: float
    period_items: int

    @classmethod
    def begin(cls, items: int, now: float) -> "Watch":
        """Return the watch of a job whose first process opens now."""
        return cls(opened_at=now, period_at=now, period_items=items)

    def next_deadline(self, limits: CloseLimits) -> float:
        """Return the instant to look at it again, infinity if there is none."""
        timeout = self.opened_at + limits.timeout_s if limits.timeout_s else math.inf
        span_s = limits.timeout_no_item_s
        return min(timeout, self.period_at + span_s if span_s else math.inf)

    def expired(self, limits: CloseLimits, items: int, now: float) -> str:
        """Return the finish reason if a span is over, or begin the next period."""
        if limits.timeout_s and now >= self.opened_at + limits.timeout_s:
            return "closespider_timeout"
        span_s = limits.timeout_no_item_s
        if not span_s or now < self.period_at + span_s:
            return ""
        if items == self.period_items:
            return "closespider_timeout_no_item"
        # Periods keep their pace, also when this comes late.
        self.period_at += (now - self.period_at) // span_s * span_s
        self.period_items = items
        return ""


def reached(limits: CloseLimits, counters: Counters) -> str:
    """Return the finish reason if a count is reached, else an empty one.

    Of several the one that a page reaches first: by coming, then by what it gives.
    """
    for limit, count, reason in (
        (limits.pages, counters.pages, "closespider_pagecount"),
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
