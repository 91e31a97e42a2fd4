"""The items that Scrapy has scraped, on their way into the work that gave them."""

import logging
from collections.abc import Awaitable
from functools import cached_property
from typing import Any

from scrapy.crawler import Crawler

from dscrapy.crawl.codec.items import (
    ITEM_BYTES_SETTING,
    ItemEncoder,
    item_bytes_max,
)
from dscrapy.crawl.gate import Gate
from dscrapy.crawl.scrapy_side.tracking import Tracker

_logger = logging.getLogger(__name__)


class ScrapedItems:
    """Takes the items of one crawl; reads the settings when the first item comes."""

    def __init__(self, crawler: Crawler, tracker: Tracker, gate: Gate) -> None:
        self._crawler = crawler
        self._tracker = tracker
        self._gate = gate
        self._has_warned = False

    @cached_property
    def encoder(self) -> ItemEncoder:
        """The encoder of items."""
        return ItemEncoder(self._crawler)

    @cached_property
    def _bytes_max(self) -> int:
        return item_bytes_max(self._crawler.settings)

    def take(self, item: Any) -> Awaitable[None] | None:
        """Encode the item at once for the running work.

        Scrapy awaits what is returned: until the work may take more items. Raises
        ``TypeError`` if ``item`` is none.
        """
        try:
            encoded = self.encoder.encode(item)
        except TypeError:
            self._crawler.stats.inc_value("dscrapy/unencodable_items")
            raise
        if encoded.is_lossy:
            self._crawler.stats.inc_value("dscrapy/unencodable_items")
            self._warn_of_repr(item)
        if encoded.size > self._bytes_max:
            self._drop_too_large(item, encoded.size)
            return None
        work = self._tracker.work_now()
        work.add_item(encoded.line, encoded.tagged)
        # While the caller waits, this frame must not keep the memory of sent items.
        del encoded
        self._tracker.grown(work)
        if work.is_full:
            return self._gate.wait_until(lambda: not work.is_full)
        return None

    def _drop_too_large(self, item: Any, size: int) -> None:
        self._crawler.stats.inc_value("dscrapy/items_too_large")
        _logger.error(
            "An item of type %s is not kept: it is %d bytes as JSON, and %s is %d",
            type(item).__qualname__,
            size,
            ITEM_BYTES_SETTING,
            self._bytes_max,
        )

    def _warn_of_repr(self, item: Any) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _logger.warning(
            "An item of type %s holds what JSON cannot; its line has the repr of "
            "that instead (no further warning, dscrapy/unencodable_items counts)",
            type(item).__qualname__,
        )
