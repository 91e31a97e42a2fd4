"""Probes: one function for each use of what Scrapy does not promise.

No other file of ``crawl/`` uses a private name of Scrapy's, or an attribute of its
engine. Each function says what it touches, why, in which versions that was found, and
what is done where it is not as expected. The installed code decides, never a version
number: a class is asked for its attributes and, where only its code can tell, a method
for the names that it uses. So an error that Scrapy has corrected is not worked around,
and a Scrapy without something that a crawl needs is refused with one line that names
it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import scrapy
from scrapy import Request
from scrapy.core.downloader import Downloader
from scrapy.core.engine import ExecutionEngine
from scrapy.core.scraper import Scraper, Slot
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.exporters import BaseItemExporter
from scrapy.extensions.corestats import CoreStats
from scrapy.extensions.feedexport import FeedExporter, FeedSlot
from scrapy.http import Response
from twisted.internet.defer import Deferred

from dscrapy.crawl.insides.marked_steps import Mark, Marked, marked_output
from dscrapy.crawl.insides.versions import SUPPORTED, names_in
from dscrapy.errors import UnsupportedError

# A function to call when a request or item is through, or None.
Ended = Callable[[], None] | None


# ---- the engine ----------------------------------------------------------------------


def check_engine(engine: Any) -> None:
    """Raise ``UnsupportedError`` unless the engine has all that a crawl needs.

    Touches: ``ExecutionEngine._slot``, ``scraper`` and methods of theirs, as below.
    Why: without one of them a lease would never be settled.
    Found: 2.16 to 2.19.
    Else: the job fails as unsupported; the line names what is missing.
    """
    slot = getattr(engine, "_slot", None)
    scraper = getattr(engine, "scraper", None)
    places: tuple[tuple[str, Any, str], ...] = (
        ("_slot.", slot, "remove_request"),
        ("_slot.nextcall.", getattr(slot, "nextcall", None), "schedule"),
        ("scraper.", scraper, "enqueue_scrape"),
        ("scraper.", scraper, "start_itemproc_async"),
        ("scraper.", scraper, "call_spider_async"),
        ("", engine, "close_spider_async"),
    )
    missing = [
        f"{prefix}{name}"
        for prefix, owner, name in places
        if not callable(getattr(owner, name, None))
    ]
    if not hasattr(slot, "closing"):
        missing.append("_slot.closing")
    if missing:
        raise UnsupportedError(
            f"Scrapy {scrapy.__version__} is not supported: its engine has no "
            f"{', '.join(missing)}; dscrapy needs {SUPPORTED}"
        )


def engine_of(crawler: Crawler) -> Any:
    """Return the crawler's engine, None before there is one.

    Touches: ``Crawler.engine`` before the crawl begins.
    Why: orders of the master may come before it.
    Found: 2.18 and 2.19 raise ``RuntimeError``; 2.16 and 2.17 have None.
    Else: an error of ours, as everything that Scrapy raises here.
    """
    try:
        return crawler.engine
    except RuntimeError:
        return None


def wake(crawler: Crawler) -> None:
    """Let the engine ask its scheduler now, not at its next heartbeat (5 s).

    Touches: ``_slot.nextcall.schedule`` and ``_slot.closing``.
    Why: no public call says that there is something to do.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    slot = getattr(engine_of(crawler), "_slot", None)
    # No slot: the spider is not open yet, or closed; the engine asks by itself.
    if slot is not None and slot.closing is None:
        slot.nextcall.schedule()


def watch_removals(engine: Any, removed: Callable[[Request], None]) -> None:
    """Call ``removed`` with each request that has left the engine.

    Touches: ``_slot.remove_request``, which is replaced.
    Why: no signal says that a request is through, with callback, items and children.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    slot = engine._slot
    remove = slot.remove_request

    def remove_request(request: Request) -> None:
        try:
            remove(request)
        finally:
            removed(request)

    slot.remove_request = remove_request


def watch_scraping(engine: Any, begins: Callable[[Any, Request], Ended]) -> None:
    """Call ``begins`` with each response or failure and its request before the callback
    is called, and the function that it returns when the callback's output is through.

    Touches: ``scraper.enqueue_scrape``, which is replaced.
    Why: so a redirect or retry differs from a request of a callback, also for failures,
    of which spider middlewares see nothing.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    scraper = engine.scraper
    enqueue = scraper.enqueue_scrape

    def enqueue_scrape(result: Any, request: Request) -> Deferred[Any]:
        ended = begins(result, request)
        deferred: Deferred[Any] = enqueue(result, request)
        if ended is None:
            return deferred

        def scraped(value: Any) -> Any:
            ended()
            return value

        return deferred.addBoth(scraped)

    scraper.enqueue_scrape = enqueue_scrape


def watch_callbacks(engine: Any, begins: Callable[[], Mark]) -> None:
    """Call ``begins`` before each callback or errback, in its context, and the function
    that it returns before each step of the callback's code.

    Touches: ``scraper.call_spider_async``, which is replaced.
    Why: so it is known whose code ran last when the process dies.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    scraper = engine.scraper
    call_spider = scraper.call_spider_async

    async def call_spider_async(result: Any, request: Request) -> Any:
        mark = begins()
        return marked_output(await Marked(call_spider(result, request), mark), mark)

    scraper.call_spider_async = call_spider_async


def watch_pipelines(engine: Any, begins: Callable[[], Mark]) -> None:
    """Call ``begins`` before an item goes through the pipelines, in its context, and
    the function that it returns before each step of the pipelines' code.

    Touches: ``scraper.start_itemproc_async``, which is replaced.
    Why: as ``watch_callbacks``.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    scraper = engine.scraper
    process_item = scraper.start_itemproc_async

    async def start_itemproc_async(item: Any, *, response: Any) -> None:
        await Marked(process_item(item, response=response), begins())

    scraper.start_itemproc_async = start_itemproc_async


def watch_items(engine: Any, begins: Callable[[Any], Ended]) -> None:
    """Call ``begins`` with each item before the pipelines have it, in the context of
    the code that gave it, and the function that it returns when the item is through.

    Touches: ``scraper.start_itemproc_async``, which is replaced.
    Why: no signal says that an item is through with the handlers of its signals, too.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    scraper = engine.scraper
    process_item = scraper.start_itemproc_async

    async def process(item: Any, response: Any, ended: Ended) -> None:
        try:
            await process_item(item, response=response)
        finally:
            if ended is not None:
                ended()

    # No coroutine function: an item counts before a task of its own begins.
    def start_itemproc_async(item: Any, *, response: Any) -> Coroutine[Any, Any, None]:
        return process(item, response, begins(item))

    scraper.start_itemproc_async = start_itemproc_async


def watch_closing(engine: Any, begins: Callable[[str], None]) -> None:
    """Call ``begins`` with the reason when anybody closes the spider.

    Touches: ``close_spider_async``, which is replaced.
    Why: the first signal comes when all requests under way are done; the master is to
    know at once, and to grant nothing more.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused it.
    """
    close = engine.close_spider_async

    async def close_spider_async(*, reason: str = "cancelled") -> None:
        begins(reason)
        await close(reason=reason)

    engine.close_spider_async = close_spider_async


def closes_from_start() -> bool:
    """Whether ``CloseSpider`` that ``start()`` raises closes the spider.

    Touches: the code of ``ExecutionEngine._process_start_next``.
    Why: where it is an error like any other, ``start()`` is over and the job goes on.
    Found: 2.18 and 2.19 close; 2.16 and 2.17 log an error.
    Else: it counts as an error that ``start()`` raised.
    """
    return "CloseSpider" in names_in(ExecutionEngine, "_process_start_next")


def component_managers(crawler: Crawler) -> Iterable[Any]:
    """Yield the managers of the components that Scrapy has made for a crawl.

    Touches: ``scraper.itemproc``, ``scraper.spidermw``, ``downloader.middleware``.
    Why: warnings about state name components that run, not those in the settings.
    Found: 2.16 to 2.19.
    Else: no warning about the components of a missing manager.
    """
    engine = engine_of(crawler)
    scraper = getattr(engine, "scraper", None)
    downloader = getattr(engine, "downloader", None)
    yield getattr(scraper, "itemproc", None)
    yield getattr(scraper, "spidermw", None)
    yield getattr(downloader, "middleware", None)
    yield crawler.extensions


# ---- the downloader ------------------------------------------------------------------


def hold_downloads(
    crawler: Crawler,
    wait: Callable[[], Awaitable[None]],
    begins: Callable[[Request], Ended],
) -> None:
    """Await ``wait`` before each download begins; then call ``begins`` with its
    request, and the function that it returns when the download is over.

    Touches: ``downloader.handlers.download_request_async``, which is replaced.
    Why: requests that wait in a slot for a delay, and downloads of callbacks, may not
    begin either once the master gives this process up; and a download may be what
    kills the process.
    Found: 2.16 to 2.19.
    Else: a downloader of the project's own; the scheduler alone is held.
    """
    handlers = getattr(engine_of(crawler).downloader, "handlers", None)
    download = getattr(handlers, "download_request_async", None)
    if handlers is None or download is None:
        return

    async def gated_download(request: Request) -> Any:
        await wait()
        ended = begins(request)
        try:
            return await download(request)
        finally:
            if ended is not None:
                ended()

    handlers.download_request_async = gated_download


def reads_limits_of_spider() -> bool:
    """Whether slots take their limits from attributes of the spider.

    Touches: ``Crawler._apply_deprecated_spider_attr``, ``Downloader._get_slot``.
    Why: ``download_delay`` and ``max_concurrent_requests`` count for the master too,
    which knows settings alone.
    Found: 2.16 and 2.17 read them when a slot is made; 2.18 and 2.19 put them into the
    settings.
    Else: the settings count alone.
    """
    takes = "_get_concurrency_delay" in names_in(Downloader, "_get_slot")
    return takes and not hasattr(Crawler, "_apply_deprecated_spider_attr")


def forgets_robots_waiters() -> bool:
    """Whether requests that wait for one robots.txt are let through, but for the first.

    Touches: the code of ``RobotsTxtMiddleware.robot_parser``.
    Why: an error: they share one ``Deferred``, of which the first takes the result.
    Found: 2.16 to 2.19 have it.
    Else: nothing is mended.
    """
    return "maybe_deferred_to_future" in names_in(RobotsTxtMiddleware, "robot_parser")


# ---- the end -------------------------------------------------------------------------


def forgets_items_at_close() -> bool:
    """Whether a closing spider waits wrongly for an item that came from no page.

    Touches: the code of ``Slot.is_idle`` and ``Scraper.start_itemproc_async``.
    Why: an error: the pipelines are closed under the item, or the spider never closes.
    Found: 2.16 and 2.17 do not wait; 2.18 and 2.19 wait and are not told of its end.
    Else: nothing is mended.
    """
    counts = "itemproc_size" in names_in(Slot, "is_idle")
    tells = "_check_if_closing" in names_in(Scraper, "start_itemproc_async")
    return not (counts and tells)


def wait_for_items(engine: Any) -> None:
    """Let a closing spider wait for every item, and close when the last is through.

    Touches: ``scraper.slot`` with ``active``, ``closing`` and ``is_idle``.
    Why: the mend for ``forgets_items_at_close``, which is to be asked first.
    Found: 2.16 to 2.19.
    Else: ``check_engine`` has refused an engine without a scraper.
    """
    scraper = engine.scraper

    def begins(item: Any) -> Ended:
        slot = scraper.slot
        # Some object among the requests that are worked on: no version is idle then.
        token = object()
        slot.active.add(token)

        def ended() -> None:
            slot.active.discard(token)
            closing = slot.closing
            if closing is not None and not closing.called and slot.is_idle():
                closing.callback(scraper.crawler.spider)

        return ended

    watch_items(engine, begins)


def set_start(core: CoreStats, began_at: float) -> datetime:
    """Let the extension count from this instant, in seconds since the epoch; return it.

    Touches: ``CoreStats.start_time`` and ``_start_time_mono``.
    Why: a job's times begin with its first process.
    Found: 2.16 to 2.19.
    Else: ``elapsed_time_seconds`` is that of the last process.
    """
    start = datetime.fromtimestamp(began_at, UTC)
    core.start_time = start
    # Scrapy counts the time elapsed from here.
    core._start_time_mono = time.monotonic() - max(time.time() - began_at, 0.0)
    return start


# ---- stats ---------------------------------------------------------------------------


# Touches: ``StatsCollector._stats``, the dict of a collector's numbers.
# Why: writes into the dict that ``get_stats()`` gives count in the job's stats, too.
# Found: 2.16 to 2.19.
# Else: as with a project's collector that keeps its numbers elsewhere: a warning, once.
COLLECTED: Final = "_stats"


# ---- an export process ---------------------------------------------------------------


def prepare(crawler: Crawler, *args: Any, **kwargs: Any) -> None:
    """Make a crawler's spider and what its settings ask for, but no engine.

    Touches: ``Crawler._create_spider``, ``_apply_settings``, ``_started`` and
    ``_update_root_log_handler``.
    Why: an export process has all that a project's crawl has, but no engine.
    Found: 2.16 to 2.19.
    Else: the feeds fail; the line names what is missing.
    """
    names = ("_create_spider", "_apply_settings", "_update_root_log_handler")
    missing = [name for name in names if not callable(getattr(crawler, name, None))]
    if missing:
        raise UnsupportedError(
            f"Scrapy {scrapy.__version__} is not supported: its crawler has no "
            f"{', '.join(missing)}; dscrapy needs {SUPPORTED}"
        )
    crawler.crawling = crawler._started = True
    crawler.spider = crawler._create_spider(*args, **kwargs)
    crawler._apply_settings()
    crawler._update_root_log_handler()


def has_batches(exporter: FeedExporter) -> bool:
    """Whether an exporter's batches can begin anywhere in a job's items.

    Touches: ``FeedExporter._start_new_batch``, the list of batches that close, and
    what a ``FeedSlot`` knows of its batch.
    Why: a batch begins where an earlier process stopped.
    Found: 2.16 to 2.19.
    Else: a warning; feeds in batches are written when the crawl is over.
    """
    return (
        callable(getattr(exporter, "_start_new_batch", None))
        and any(isinstance(getattr(exporter, name, None), list) for name in _CLOSING)
        and all(
            hasattr(slot, name)
            for slot in exporter.slots
            for name in ("batch_id", "uri", "uri_template", "itemcount")
        )
    )


def start_batch(
    exporter: Any, spider: scrapy.Spider, template: str, number: int, uri: str
) -> FeedSlot:
    """Return a new slot for the batch of this number of a feed.

    Touches: ``FeedExporter._start_new_batch``.
    Why: as ``has_batches``, which is to be asked first.
    Found: 2.16 to 2.19.
    Else: ``has_batches`` has said no.
    """
    slot: FeedSlot = exporter._start_new_batch(
        batch_id=number,
        uri=uri,
        feed_options=exporter.feeds[template],
        spider=spider,
        uri_template=template,
    )
    return slot


# Batches that close: tasks that run, or coroutines that run when the spider closes.
_CLOSING = ("_pending_close_tasks", "_pending_close_coros")


async def batches_closed(exporter: Any) -> None:
    """Return when all batches that are full are delivered.

    Touches: ``FeedExporter._pending_close_tasks``, ``_pending_close_coros``.
    Why: a batch is delivered before the next one begins.
    Found: 2.18 and 2.19 have tasks; 2.16 and 2.17 coroutines, which would wait for the
    end of the crawl and are begun here.
    Else: ``has_batches`` has said no.
    """
    tasks = list(getattr(exporter, "_pending_close_tasks", ()))
    coroutines = getattr(exporter, "_pending_close_coros", [])
    tasks += [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    coroutines.clear()
    if tasks:
        await asyncio.wait(tasks)


# ---- values --------------------------------------------------------------------------


def exporters_order_fields() -> bool:
    """Whether exporters write an item's fields in the order of their declaration.

    Touches: ``BaseItemExporter._get_populated_field_names``.
    Why: an item that travels keeps the order in which it would be written.
    Found: 2.18 and 2.19 do; 2.16 and 2.17 write them as the item has them.
    Else: as the item has them.
    """
    return hasattr(BaseItemExporter, "_get_populated_field_names")


def serialized_fields(exporter: Any, item: Any) -> list[tuple[Any, Any]]:
    """Return names and values as an exporter would write them; raises what it raises.

    Touches: ``BaseItemExporter._get_serialized_fields``.
    Why: an item that its exporter cannot write has the same fields in its line.
    Found: public in 2.18 and 2.19, private in 2.16 and 2.17.
    Else: ``AttributeError``: the line has the fields as the item has them.
    """
    method = getattr(exporter, "get_serialized_fields", None)
    return list((method or exporter._get_serialized_fields)(item))


def declared_encoding(response: Response) -> str | None:
    """Return the encoding that a response was made with, None where it is guessed.

    Touches: ``TextResponse._encoding``.
    Why: a guess is made again from the body, where the response is read.
    Found: 2.16 to 2.19.
    Else: None: the guess is made from the headers and the body.
    """
    encoding: str | None = getattr(response, "_encoding", None)
    return encoding
