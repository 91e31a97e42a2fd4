"""An export process: the job's items through Scrapy's own feed exporter.

It loads the project as a crawl does, but opens no engine: of the project's extensions
only the feed exporter is driven, item by item, from what is committed. So formats,
filters, batches, postprocessing and storages are Scrapy's and the project's; local
files are those of ``feedfiles``. A feed that fails is logged and counted, as in Scrapy.
What a crawl has that did not come to its end goes to NAME.failed, beside older files.
"""

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.extensions.feedexport import FeedExporter, FileFeedStorage
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object
from w3lib.url import file_uri_to_path

from dscrapy.crawl import codec
from dscrapy.crawl.addon import install_addon
from dscrapy.crawl.errors import count_errors
from dscrapy.crawl.feedfiles import FeedFiles, PartStorage
from dscrapy.crawl.items import item_of
from dscrapy.crawl.link import Link
from dscrapy.crawl.load import (
    Failed,
    check_reactor,
    describe,
    load,
    outcome_of,
    project_modules,
)
from dscrapy.crawl.process import ignore_signals
from dscrapy.crawl.stats import Delta, recording
from dscrapy.crawl.whole import whole_items
from dscrapy.lines import LineCutter
from dscrapy.messages import (
    Alive,
    Commit,
    Commits,
    Done,
    Feeds,
    FeedsSeen,
    Probe,
    Read,
    ReadSeen,
    Run,
    ToCrawl,
)
from dscrapy.model import Outcome

_logger = logging.getLogger(__name__)

A = TypeVar("A")

# Bytes of items asked for at a time: large enough that the round trip does not show;
# in between the loop has time for other things.
READ_BYTES = 1024 * 1024
FINISH_REASON = "feeds written"
# As Scrapy's defaults name it, so that the project's settings can too.
_EXPORTER = "scrapy.extensions.feedexport.FeedExporter"


def run_export(link: Link, run: Run) -> int:
    """Write the project's feeds and return the process's exit code."""
    try:
        loaded = load(run.spec)
        export = Export(link, run)
        crawler = ExportCrawler(loaded.spider_class, loaded.process.settings)
        crawler.export = export
        check_reactor(crawler.settings)
        install_addon(crawler, export)
        loaded.process.crawl(crawler, **loaded.arguments)
    except Failed as failed:
        return _report(link, run, failed.outcome)
    except Exception as error:  # noqa: BLE001 - the project's classes are user code
        return _report(link, run, outcome_of("spider_error", describe(error), error))
    loaded.process.start()
    # Somebody stopped the reactor under us: that is a death, not an end.
    return 0 if export.is_done else 1


def _report(link: Link, run: Run, outcome: Outcome) -> int:
    """Commit a failure before there is an event loop, and wait for the answer."""
    sys.stderr.write(outcome.traceback or f"{outcome.text}\n")
    sys.stderr.flush()
    link.send(_closed(run, outcome, Delta()))
    while True:
        match link.receive():
            case None | Done():
                return 0
            case Probe(number=number):
                link.send(Alive(number=number))
            case _:
                continue


def _closed(run: Run, end: Outcome, stats: Delta) -> Commits:
    commit = Commit(unit=1, kind="closed", end=end, stats=stats.encoded())
    return Commits(job=run.job, process=run.process, commits=(commit,))


class ExportCrawler(Crawler):
    """A crawler that has spider, settings and extensions, but never an engine."""

    export: "Export"

    async def crawl_async(self, *args: Any, **kwargs: Any) -> None:
        """Export; errors of the project end in the commit."""
        await self.export.conduct(self, args, kwargs)

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Make the spider and what settings ask for, as Scrapy does for a crawl."""
        self.crawling = self._started = True
        self.spider = self._create_spider(*args, **kwargs)
        self._apply_settings()
        self._update_root_log_handler()


class Export:
    """Joins the project's feed exporter to the link: items in, feeds out."""

    def __init__(self, link: Link, run: Run) -> None:
        self.is_done = False
        self._link = link
        self._run = run
        self._stats = Delta()
        self._files = FeedFiles(run.job, self._ask, is_whole=run.came_to_end)
        self._answers: dict[type[Any], asyncio.Future[Any]] = {}
        self._done = asyncio.Event()
        self._is_committing = False

    async def conduct(self, crawler: ExportCrawler, args: Any, kwargs: Any) -> None:
        """Export everything, commit and wait for the answer."""
        # Again: Scrapy puts its own handlers in place when the reactor starts.
        ignore_signals()
        count_errors(lambda: self._stats)
        await self._link.attach(self._on_message, self._on_link_end, lambda: None)
        outcome = Outcome(finish_reason=FINISH_REASON)
        try:
            await self._files.begin()
            crawler.build(*args, **kwargs)
            await self._export(crawler)
            self._files.end()
        except Failed as failed:
            outcome = failed.outcome
        except Exception as error:
            # The project's components may raise anything.
            _logger.error("The feeds could not be written", exc_info=True)
            outcome = outcome_of("spider_error", describe(error), error)
        self._is_committing = True
        self._link.send(_closed(self._run, outcome, self._stats))
        await self._done.wait()
        self.is_done = True
        self._link.close()

    def configure(self, crawler: Crawler, settings: BaseSettings) -> None:
        """Leave of Scrapy's extensions the feed exporter alone; count what it does."""
        check_reactor(settings)
        force = "cmdline"
        spider: Any = crawler.spider
        if self._run.spec.urls and not getattr(spider, "start_urls", None):
            spider.start_urls = list(self._run.spec.urls)
        settings.set("EXTENSIONS_BASE", {_EXPORTER: 0}, force)
        # The project may ask for these by name.
        settings.set("TELNETCONSOLE_ENABLED", False, force)
        settings.set("REMOTE_CONTROL_ENABLED", False, force)
        stats_class = load_object(settings["STATS_CLASS"])
        settings.set("STATS_CLASS", recording(stats_class, lambda: self._stats), force)
        storages = settings.getwithbase("FEED_STORAGES")
        ours = PartStorage.for_files(self._files)
        local = {
            scheme: ours
            for scheme, storage in storages.items()
            if storage is not None and load_object(storage) is FileFeedStorage
        }
        if not self._run.came_to_end:
            _set_beside(settings)
        given = settings.getdict("FEED_STORAGES")
        settings.set("FEED_STORAGES", {**given, **local}, force)
        exporters = {
            name: whole_items(load_object(exporter))
            for name, exporter in settings.getwithbase("FEED_EXPORTERS").items()
            if exporter is not None
        }
        settings.set("FEED_EXPORTERS", exporters, force)

    # ---- items to feeds -----------------------------------------------------------

    async def _export(self, crawler: ExportCrawler) -> None:
        exporter = crawler.get_extension(FeedExporter)
        spider = crawler.spider
        assert spider is not None
        if exporter is None:
            _logger.error("The project's FEEDS are not written: see above")
            return
        try:
            exporter.open_spider(spider)
        except Exception:
            # A name that cannot be filled in, a function of the project's own.
            _logger.error("The project's FEEDS are not written", exc_info=True)
            return
        find_class = codec.class_finder(project_modules(Path.cwd()))
        lines, forms = _Lines(self, "items"), _Lines(self, "tagged")
        while (line := await lines.next()) is not None:
            form = await forms.next()
            try:
                item = item_of(line, form, find_class)
            except Exception:  # noqa: BLE001 - the project's classes are built
                self._lost(line, "the feeds")
            else:
                await self._hand_on(item, line, exporter, spider)
        await exporter.close_spider(spider)

    async def _hand_on(
        self, item: Any, line: bytes, exporter: FeedExporter, spider: Spider
    ) -> None:
        """Let each feed take an item: where one cannot it is missing, nowhere else."""
        # One of the project's own may be asynchronous.
        handle: Callable[..., Any] = exporter.item_scraped
        if type(exporter).item_scraped is not FeedExporter.item_scraped:
            await self._hand_to(handle, item, line, "the feeds", spider)
            return
        # Scrapy's gives it to one feed after the other; an error in one of them (the
        # project's filters and serializers) would keep it from those behind.
        slots, taken = exporter.slots, []
        for slot in slots:
            exporter.slots = [slot]
            await self._hand_to(handle, item, line, slot.uri, spider)
            # A full batch is followed by the slot of the next one.
            taken += exporter.slots
        exporter.slots = taken

    async def _hand_to(
        self,
        handle: Callable[..., Any],
        item: Any,
        line: bytes,
        feed: str,
        spider: Spider,
    ) -> None:
        try:
            taken = handle(item, spider)
            if taken is not None:
                await taken
        except Exception:  # noqa: BLE001 - user code
            self._lost(line, feed)

    def _lost(self, line: bytes, feed: str) -> None:
        _logger.error("An item is not in %s: %r", feed, line[:500], exc_info=True)
        self._stats.write("sum", "feedexport/item_error_count", 1)

    # ---- questions and answers ----------------------------------------------------

    async def read(self, file: Literal["items", "tagged"], offset: int) -> bytes:
        """Return bytes of the job's file, none at its end."""
        message = Read(
            job=self._run.job,
            process=self._run.process,
            file=file,
            offset=offset,
            limit=READ_BYTES,
        )
        answer = await self._asked(message, ReadSeen)
        return answer.data

    async def _ask(self, lengths: dict[str, int]) -> dict[str, int]:
        run = self._run
        message = Feeds(job=run.job, process=run.process, lengths=lengths)
        answer = await self._asked(message, FeedsSeen)
        return answer.lengths

    async def _asked(self, question: Read | Feeds, kind: type[A]) -> A:
        """Ask, and wait for the answer; there is one question of a kind at a time."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        assert kind not in self._answers
        self._answers[kind] = future
        self._link.send(question)
        return await future

    def _on_message(self, message: ToCrawl) -> None:
        match message:
            case Probe(number=number):
                self._link.send(Alive(number=number))
            case FeedsSeen() | ReadSeen():
                future = self._answers.pop(type(message), None)
                if future is not None:
                    future.set_result(message)
            case Done():
                self._done.set()
            case _:
                # Spans and stops too: an export is short and finishes what it began.
                return

    def _on_link_end(self) -> None:
        logging.shutdown()
        # Nobody waits for what is left: no clean-up of the project's may hold it.
        os._exit(0 if self._is_committing else 1)


def _set_beside(settings: BaseSettings) -> None:
    """Let all feeds go to NAME.failed, which no other run's items are in."""
    feeds: dict[str, dict[str, Any]] = {}
    if settings["FEED_URI"]:
        feeds[_beside(settings["FEED_URI"])] = {"format": settings["FEED_FORMAT"]}
    for uri, options in settings.getdict("FEEDS").items():
        feeds[_beside(uri)] = dict(options)
    for name, options in feeds.items():
        options["overwrite"] = True
        _logger.warning("The crawl did not come to its end: its items go to %s", name)
    settings.set("FEEDS", feeds, "cmdline")
    settings.set("FEED_URI", None, "cmdline")


def _beside(uri: str | Path) -> str:
    """Return NAME.failed; what is no file (a pipe, stdout) has nothing to keep."""
    name = str(uri.absolute()) if isinstance(uri, Path) else str(uri)
    scheme = urlsplit(name).scheme
    if scheme == "stdout":
        return name
    path = Path(file_uri_to_path(name) if scheme == "file" else name)
    if scheme in ("", "file") and path.exists() and not path.is_file():
        return name
    return name + ".failed"


class _Lines:
    """The lines of a job's file, read piece by piece."""

    def __init__(self, export: Export, file: Literal["items", "tagged"]) -> None:
        self._export = export
        self._file: Literal["items", "tagged"] = file
        self._offset = 0
        self._cutter = LineCutter()
        self._lines: deque[bytes] = deque()

    async def next(self) -> bytes | None:
        """Return the next line without its end, None behind the last one."""
        while not self._lines:
            data = await self._export.read(self._file, self._offset)
            if not data:
                return None
            self._offset += len(data)
            self._lines.extend(self._cutter.feed(data))
        return self._lines.popleft()
