"""Where each of a project's feeds is in the job's items: batches begin and are full.

Scrapy's feed exporter does the work. It has a slot for each feed: the file that is
being written. A slot whose batch is full is closed and another takes its place. This
module keeps, for each slot, the first item that it has not been given. So a batch can
begin anywhere in the job's items, under the number and URI of an earlier process.
"""

import logging
from typing import Any

import scrapy
from scrapy import Spider
from scrapy.extensions.feedexport import FeedExporter, FeedSlot

from dscrapy.crawl.export.export_tally import Written
from dscrapy.crawl.insides.probes import batches_closed, has_batches, start_batch
from dscrapy.messages import Batch
from dscrapy.model import FeedFiles

_logger = logging.getLogger(__name__)

# Ends the name of a feed whose crawl did not come to its end: NAME.failed.
FAILED_SUFFIX = ".failed"


class Place:
    """A place between two items: ``item`` items stand before it, and so many bytes of
    ``items.jsonl`` and ``tagged.jsonl``."""

    __slots__ = ("item", "items_at", "tagged_at")

    def __init__(self, item: int = 0, items_at: int = 0, tagged_at: int = 0) -> None:
        self.item = item
        self.items_at = items_at
        self.tagged_at = tagged_at


class Feed:
    """One feed: its slot, and the number of the first item not given to the slot.

    ``size`` is its ``batch_item_count``, 0 for one file; ``begin`` is where the batch,
    or the file, begins. ``full_at`` and ``before`` are known of a batch: see
    ``messages.Batch``.
    """

    def __init__(self, slot: FeedSlot, size: int) -> None:
        self.slot = slot
        self.size = size
        self.begin = Place()
        self.next_item = 0
        self.full_at = size
        self.before: FeedFiles | None = None

    def begin_batch(self, slot: FeedSlot, place: Place) -> None:
        """Go on with the next batch, from this place on."""
        self.slot = slot
        self.begin = place
        self.next_item = place.item
        self.full_at = place.item + self.size

    def batch(self) -> Batch:
        """Return the message of the batch, which the master keeps."""
        return Batch(
            feed=self.slot.uri_template,
            number=self.slot.batch_id,
            uri=self.slot.uri,
            full_at=self.full_at,
            item=self.begin.item,
            items_at=self.begin.items_at,
            tagged_at=self.begin.tagged_at,
            before=self.before,
        )


class Feeds:
    """The feeds of an exporter that has opened them.

    ``earlier_batches`` are those that earlier processes have begun; ``written`` counts
    the files before them. Without ``came_to_end`` all items go to NAME.failed. Building
    storages may raise anything.
    """

    def __init__(
        self,
        exporter: FeedExporter,
        spider: Spider,
        earlier_batches: tuple[Batch, ...],
        written: Written,
        *,
        came_to_end: bool,
    ) -> None:
        self._exporter: Any = exporter
        self._spider = spider
        self._written = written
        self._is_stock = type(exporter).item_scraped is FeedExporter.item_scraped
        self.can_begin_anywhere = _can_begin_anywhere(exporter)
        self.all_feeds = [Feed(slot, self._size(slot)) for slot in exporter.slots]
        written.begin(slot.uri_template for slot in exporter.slots)
        batches = {batch.feed: batch for batch in earlier_batches}
        for feed in self.batched:
            template = feed.slot.uri_template
            batch = batches.get(template)
            if batch is None and not came_to_end:
                batch = batches.get(template.removesuffix(FAILED_SUFFIX))
            if batch is not None:
                self._take_up(feed, batch, came_to_end=came_to_end)

    @property
    def batched(self) -> list[Feed]:
        """The feeds that are written in batches."""
        return [feed for feed in self.all_feeds if feed.size]

    @property
    def single_files(self) -> list[Feed]:
        """The feeds that are one file, written when the crawl is over."""
        return [feed for feed in self.all_feeds if not feed.size]

    def _size(self, slot: FeedSlot) -> int:
        if not self.can_begin_anywhere:
            return 0
        return int(self._exporter.feeds[slot.uri_template]["batch_item_count"] or 0)

    def _take_up(self, feed: Feed, batch: Batch, *, came_to_end: bool) -> None:
        template = feed.slot.uri_template
        uri = batch.uri if came_to_end else batch.uri + FAILED_SUFFIX
        slot = start_batch(self._exporter, self._spider, template, batch.number, uri)
        place = Place(batch.item, batch.items_at, batch.tagged_at)
        feed.begin_batch(slot, place)
        feed.full_at = max(feed.full_at, batch.full_at)
        if came_to_end and batch.before is not None:
            self._written.take_up(batch.before)
            feed.before = batch.before

    # ---- items ----------------------------------------------------------------------

    def first_place(self, feeds: list[Feed]) -> Place:
        """Return where the first of these feeds begins."""
        return min((feed.begin for feed in feeds), key=lambda place: place.item)

    def groups(self, feeds: list[Feed], item: int) -> list[list[Feed]]:
        """Return the feeds that are to be given this item, in groups; the exporter is
        given the item once for each group."""
        due = [feed for feed in feeds if feed.next_item <= item]
        if self._is_stock:
            # An error in one feed (the project's filters and serializers) would keep
            # the item from those behind it.
            return [[feed] for feed in due]
        return [due] if due else []

    def select(self, group: list[Feed]) -> None:
        """Let the exporter write to these feeds alone."""
        self._exporter.slots = [feed.slot for feed in group]

    def name_of(self, group: list[Feed]) -> str:
        """Return what people know these feeds by."""
        return group[0].slot.uri if self._is_stock else "the feeds"

    async def hand(self, item: Any) -> None:
        """Give an item to the selected feeds; the exporter may raise anything."""
        # A project's own exporter may be asynchronous.
        result = self._exporter.item_scraped(item, self._spider)
        if result is not None:
            await result

    def settle(self, group: list[Feed], behind: Place) -> bool:
        """Note that the exporter has taken the item that ends at ``behind``; return
        whether a batch is full."""
        is_full = False
        for feed, slot in zip(group, self._exporter.slots, strict=True):
            feed.next_item = behind.item
            if slot is not feed.slot:
                is_full = True
                feed.begin_batch(slot, behind)
        return is_full

    async def delivered(self) -> None:
        """Wait until all batches that are full are where they go."""
        await batches_closed(self._exporter)
        for feed in self.batched:
            feed.before = self._written.of(feed.slot.uri_template)

    def note_waiting(self, behind: Place) -> None:
        """Note for each batch how many items the job has before it can be full."""
        for feed in self.batched:
            if feed.next_item == behind.item:
                missing = feed.size - feed.slot.itemcount
                feed.full_at = behind.item + max(missing, 1)

    async def close(self) -> None:
        """Let the exporter write all that is not full, and wait for it."""
        self.select(self.all_feeds)
        await self._exporter.close_spider(self._spider)


def _can_begin_anywhere(exporter: FeedExporter) -> bool:
    """Whether batches can be begun anywhere; no version of Scrapy promises it. Where
    they cannot, each process begins them anew."""
    if has_batches(exporter):
        return True
    _logger.warning(
        "Batches of feeds are written when the crawl is over: the feed exporter of "
        "Scrapy %s is not known here",
        scrapy.__version__,
    )
    return False
