"""An export process: the job's items through Scrapy's own feed exporter.

It loads the project as a crawl does, but opens no engine: of the project's extensions
only the feed exporter is driven, item by item, from what is committed. So formats,
filters, batches, postprocessing and storages are Scrapy's and the project's; local
files are written by ``feed_files``. A feed that fails is logged and counted, as in
Scrapy. The items of a crawl that did not come to its end go to NAME.failed, beside
older files.

While the crawl goes on, the batches of feeds that are full are written. A batch is
delivered before the next one begins. Before the first byte of a batch is written, the
master has its number, its URI and its first item, so a process that writes the batch
again writes the same.
"""

import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.extensions.feedexport import FeedExporter, FileFeedStorage
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object
from w3lib.url import file_uri_to_path

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.items import item_of
from dscrapy.crawl.error_counts import count_errors
from dscrapy.crawl.export.batches import FAILED_SUFFIX, Feed, Feeds, Place
from dscrapy.crawl.export.export_link import ExportLink, Stopped
from dscrapy.crawl.export.export_tally import Written, watched
from dscrapy.crawl.export.feed_files import FeedFiles, PartStorage
from dscrapy.crawl.export.feed_items import FeedItems
from dscrapy.crawl.export.whole_items import whole_items
from dscrapy.crawl.insides.probes import prepare
from dscrapy.crawl.outcomes import Failed, describe, outcome_of
from dscrapy.crawl.project_loader import Loaded, code_folder, project_modules
from dscrapy.crawl.project_runner import leave, run_project
from dscrapy.crawl.scrapy_side.addon import Overlay, lay_over_each
from dscrapy.crawl.scrapy_side.stats_collector import Delta
from dscrapy.crawl.worker_side.lifeline import ignore_signals
from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import Batch, Run
from dscrapy.model import FEEDS_WRITTEN, Outcome
from dscrapy.text import without_password

_logger = logging.getLogger(__name__)

# Finish reason beside a crawl where no batch can be written before its end.
NO_BATCHES = "no batches"
# Named as in Scrapy's defaults, so that the project's EXTENSIONS can name it.
_EXPORTER = "scrapy.extensions.feedexport.FeedExporter"


def run_export(link: Link, run: Run) -> int:
    """Write the project's feeds and return the process's exit code."""

    def make(loaded: Loaded) -> tuple[Crawler, Overlay]:
        crawler = ExportCrawler(loaded, link, run)
        return crawler, crawler.export

    return run_project(link, run, make)


class ExportCrawler(Crawler):
    """A crawler that has spider, settings and extensions, but never an engine."""

    def __init__(self, loaded: Loaded, link: Link, run: Run) -> None:
        super().__init__(loaded.spider_class, loaded.process.settings)
        self.export = Export(self, link, run)

    async def crawl_async(self, *args: Any, **kwargs: Any) -> None:
        """Export; errors of the project end in the commit."""
        await self.export.conduct(*args, **kwargs)

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Make the spider and what settings ask for, as Scrapy does for a crawl."""
        prepare(self, *args, **kwargs)


class Export:
    """Joins the project's feed exporter to the link: items in, feeds out."""

    def __init__(self, crawler: ExportCrawler, link: Link, run: Run) -> None:
        self.is_finished = False
        self._crawler = crawler
        self._run = run
        self._stats = Delta()
        self._link = ExportLink(link, run)
        self._files = FeedFiles(run.job, self._ask, came_to_end=run.came_to_end)
        self._earlier_batches: tuple[Batch, ...] = ()
        self._feeds: Feeds | None = None
        self._written = Written()
        self._find_class = tags.class_finder(project_modules(code_folder(run.spec)))
        self._is_committing = False

    async def conduct(self, *args: Any, **kwargs: Any) -> None:
        """Export everything, commit and wait for the answer."""
        # Again: Scrapy puts its own handlers in place when the reactor starts.
        ignore_signals()
        count_errors(lambda: self._stats)
        await self._link.attach(self._on_link_end)
        outcome = Outcome(finish_reason=FEEDS_WRITTEN)
        try:
            await self._files.begin()
            self._crawler.build(*args, **kwargs)
            await self._export()
            self._files.end()
        except Stopped as stopped:
            self._files.drop_parts()
            outcome = Outcome(finish_reason=stopped.reason)
        except Failed as failed:
            outcome = failed.outcome
        except Exception as error:
            # The project's components may raise anything.
            _logger.error("The feeds could not be written", exc_info=True)
            outcome = outcome_of("spider_error", describe(error), error)
        self._is_committing = True
        # A process that stops has committed its batches, and has written nothing else.
        is_stopped = not outcome.failure and outcome.finish_reason != FEEDS_WRITTEN
        written = () if is_stopped else self._written.all()
        await self._link.close(
            end=outcome,
            stats=self._stats.encoded(),
            batches=self._batches(),
            written=written,
        )
        self.is_finished = True

    def configure(self, settings: BaseSettings) -> None:
        """Switch off Scrapy's extensions but the feed exporter; wrap its storages."""
        force = "cmdline"
        urls = self._run.spec.urls
        lay_over_each(self._crawler, settings, urls, lambda: self._stats)
        settings.set("EXTENSIONS_BASE", {_EXPORTER: 0}, force)
        storages = settings.getwithbase("FEED_STORAGES")
        part_storage = PartStorage.for_files(self._files)
        loaded = {
            scheme: load_object(storage)
            for scheme, storage in storages.items()
            if storage is not None
        }
        used = {
            scheme: watched(part_storage if storage is FileFeedStorage else storage)
            for scheme, storage in loaded.items()
        }
        if not self._run.came_to_end:
            _set_beside(settings)
        configured = settings.getdict("FEED_STORAGES")
        settings.set("FEED_STORAGES", {**configured, **used}, force)
        exporters = {
            name: whole_items(load_object(exporter))
            for name, exporter in settings.getwithbase("FEED_EXPORTERS").items()
            if exporter is not None
        }
        settings.set("FEED_EXPORTERS", exporters, force)

    # ---- items to feeds -----------------------------------------------------------

    async def _export(self) -> None:
        crawler = self._crawler
        exporter = crawler.get_extension(FeedExporter)
        spider = crawler.spider
        assert spider is not None
        if exporter is None:
            _logger.error("The project's FEEDS are not written: see above")
            return
        came_to_end = self._run.came_to_end
        crawler.signals.connect(self._written.note, signals.feed_slot_closed)
        try:
            exporter.open_spider(spider)
            feeds = Feeds(
                exporter,
                spider,
                self._earlier_batches,
                self._written,
                came_to_end=came_to_end,
            )
        except Exception:
            # A name that cannot be filled in, a function of the project's own.
            _logger.error("The project's FEEDS are not written", exc_info=True)
            return
        if came_to_end and feeds.batched:
            self._feeds = feeds
            await self._commit_batches()
        if self._link.items_end is None:
            if not feeds.batched:
                raise Stopped(NO_BATCHES)
            await self._give_all(feeds, feeds.batched)
            await self._give_all(feeds, feeds.single_files)
        else:
            # One pass over the items is enough.
            await self._give_all(feeds, feeds.all_feeds)
        await feeds.close()

    async def _give_all(self, feeds: Feeds, chosen: list[Feed]) -> None:
        """Give these feeds all items that they have not been given, to the last one."""
        if not chosen:
            return
        items = FeedItems(self._link.fetch, feeds.first_place(chosen))
        try:
            while (pair := await items.next()) is not None:
                if await self._give_one(feeds, chosen, pair, items.place):
                    await feeds.delivered()
                    await self._commit_batches()
        finally:
            feeds.note_waiting(items.place)

    async def _give_one(
        self, feeds: Feeds, chosen: list[Feed], pair: tuple[bytes, bytes], behind: Place
    ) -> bool:
        """Give an item to each feed; a feed that cannot take it goes without it.

        The item ends at ``behind``. Return whether it fills a batch.
        """
        line, form = pair
        item = None
        try:
            item = item_of(line, form, self._find_class)
        except Exception:  # noqa: BLE001 - the project's classes are built
            self._log_missing(line, "the feeds")
        is_full = False
        for group in feeds.groups(chosen, behind.item - 1):
            feeds.select(group)
            if item is not None:
                try:
                    await feeds.hand(item)
                except Exception:  # noqa: BLE001 - user code
                    self._log_missing(line, feeds.name_of(group))
            is_full |= feeds.settle(group, behind)
        return is_full

    def _log_missing(self, line: bytes, feed: str) -> None:
        _logger.error("An item is not in %s: %r", feed, line[:500], exc_info=True)
        self._stats.write("sum", "feedexport/item_error_count", 1)

    # ---- batches ------------------------------------------------------------------

    def _batches(self) -> tuple[Batch, ...]:
        feeds = self._feeds
        return () if feeds is None else tuple(feed.batch() for feed in feeds.batched)

    async def _commit_batches(self) -> None:
        """Commit where the feeds' batches are now, and which files are delivered."""
        if self._feeds is None:
            return
        stats = self._stats.encoded()
        self._stats.clear()
        await self._link.commit(
            kind="batch",
            batches=self._batches(),
            delivered=self._files.delivered(),
            stats=stats,
        )

    async def _ask(self, lengths: dict[str, int]) -> dict[str, int]:
        answer = await self._link.ask_feeds(lengths)
        if not lengths:
            self._earlier_batches = answer.batches
        return answer.lengths

    def _on_link_end(self) -> None:
        leave(is_over=self._is_committing)


def _set_beside(settings: BaseSettings) -> None:
    """Let all feeds go to NAME.failed, where no other run has written."""
    feeds: dict[str, dict[str, Any]] = {}
    if settings["FEED_URI"]:
        feeds[_beside(settings["FEED_URI"])] = {"format": settings["FEED_FORMAT"]}
    for uri, options in settings.getdict("FEEDS").items():
        feeds[_beside(uri)] = dict(options)
    for name, options in feeds.items():
        options["overwrite"] = True
        _logger.warning(
            "The crawl did not come to its end: its items go to %s",
            without_password(name),
        )
    settings.set("FEEDS", feeds, "cmdline")
    settings.set("FEED_URI", None, "cmdline")


def _beside(uri: str | Path) -> str:
    """Return NAME.failed; for a pipe or stdout, which keep nothing, its own name."""
    name = str(uri.absolute()) if isinstance(uri, Path) else str(uri)
    scheme = urlsplit(name).scheme
    if scheme == "stdout":
        return name
    path = Path(file_uri_to_path(name) if scheme == "file" else name)
    if scheme in ("", "file") and path.exists() and not path.is_file():
        return name
    return name + FAILED_SUFFIX
