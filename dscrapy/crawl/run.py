"""One run from its first message to the answer to its last part.

Everything here happens in the event loop's thread. A run ends in one of four ways:
its last part is answered (exit 0), the master drops a part because the run was
superseded (exit 0, at once), the link to the worker ends (exit 1, at once; 0 if the
last part is on its way), or the process dies.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Awaitable
from typing import Any, assert_never

from scrapy import Spider, signals
from scrapy.crawler import Crawler
from scrapy.settings import BaseSettings
from twisted.python.failure import Failure

from dscrapy.crawl.addon import install_addon, lay_over
from dscrapy.crawl.gate import Gate, UnsupportedError
from dscrapy.crawl.items import ItemEncoder
from dscrapy.crawl.link import Link
from dscrapy.crawl.load import (
    Failed,
    Loaded,
    check_reactor,
    describe,
    load,
    outcome_of,
)
from dscrapy.crawl.parts import ItemTooLargeError, Parts
from dscrapy.crawl.process import ignore_signals
from dscrapy.crawl.stats import by_operation
from dscrapy.messages import (
    Alive,
    CommitSeen,
    Hold,
    Probe,
    Progress,
    Run,
    Stop,
    ToCrawl,
    Valid,
)
from dscrapy.model import Outcome

_logger = logging.getLogger(__name__)

# How often progress is told and a part that is not full is sent: what people who
# watch a crawl can follow.
TICK_S = 1.0


def run_job(link: Link, run: Run) -> int:
    """Run the job to its end and return the process's exit code."""
    try:
        loaded = load(run.spec)
        job = CrawlRun(link, run)
        crawler = _crawler(loaded, job)
        loaded.process.crawl(crawler, **loaded.arguments)
    except Failed as failed:
        return _report(link, run, failed.outcome)
    except Exception as error:  # noqa: BLE001 - the project's classes are user code
        return _report(link, run, outcome_of("spider_error", describe(error), error))
    loaded.process.start()
    # Somebody stopped the reactor under the crawl: that is a death, not an end.
    return 0 if job.is_finished else 1


def boottime() -> float:
    """Return seconds on the clock of ``Valid``, which runs through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _report(link: Link, run: Run, outcome: Outcome) -> int:
    """Commit a failure before there is a crawl, and wait for the answer."""
    sys.stderr.write(outcome.traceback or f"{outcome.text}\n")
    sys.stderr.flush()
    parts = Parts(run, link.send)
    parts.finish(outcome, {})
    while not parts.is_done:
        match link.receive():
            case None:
                break
            case CommitSeen() as answer:
                parts.seen(answer)
            case Probe(number=number):
                link.send(Alive(number=number))
            case _:
                # Stops, holds and spans of a crawl that never was.
                continue
    return 0


def _crawler(loaded: Loaded, job: "CrawlRun") -> "JobCrawler":
    crawler = JobCrawler(loaded.spider_class, loaded.process.settings)
    crawler.job = job
    check_reactor(crawler.settings)
    install_addon(crawler, job)
    return crawler


class JobCrawler(Crawler):
    """A crawler whose crawl is done when its run is committed."""

    job: "CrawlRun"

    async def crawl_async(self, *args: Any, **kwargs: Any) -> None:
        """Crawl, then commit; errors of the project end in the commit."""
        await self.job.conduct(self, super().crawl_async(*args, **kwargs))


class CrawlRun:
    """Joins one crawler to the link: items out, orders in."""

    def __init__(self, link: Link, run: Run) -> None:
        self._link = link
        self._run = run
        self._parts = Parts(run, link.send)
        self._gate = Gate(boottime, lambda: self._parts.has_credit)
        self._crawler: Crawler | None = None
        self._encoder: ItemEncoder | None = None
        self._is_started = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop_reason: str | None = None
        self._finish_reason = ""
        self._failure: Outcome | None = None
        self._start_failure: Failure | None = None
        self._progress: Progress | None = None
        self._has_warned = False
        self._is_committing = False

    @property
    def is_finished(self) -> bool:
        """Whether the last part has been answered."""
        return self._parts.is_done

    async def conduct(self, crawler: Crawler, crawl: Awaitable[None]) -> None:
        """Await the crawl between the link's attachment and the last answer."""
        self._crawler = crawler
        # Again: Scrapy puts its own handlers in place when the reactor starts.
        ignore_signals()
        await self._link.attach(self._on_message, self._on_link_end)
        ticking = asyncio.create_task(self._tick())
        error: BaseException | None = None
        try:
            await crawl
        except Exception as raised:
            # The project's components may raise anything.
            error = raised
            _logger.error("The crawl failed", exc_info=True)
        finally:
            ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        self._tell_progress()
        stats = by_operation(crawler.stats) if crawler._stats is not None else {}
        self._is_committing = True
        self._parts.finish(self._outcome(error), stats)
        await self._gate.wait_until(lambda: self._parts.is_done)
        self._link.close()

    # ---- laid over the crawler ------------------------------------------------

    def configure(self, crawler: Crawler, settings: BaseSettings) -> None:
        """Lay ours over the settings, offer the job's URLs, connect signals."""
        check_reactor(settings)
        lay_over(crawler, settings, self._gate, self._run.job)
        spider: Any = crawler.spider
        if self._run.spec.urls and not getattr(spider, "start_urls", None):
            spider.start_urls = list(self._run.spec.urls)
        connect = crawler.signals.connect
        connect(self._item_scraped, signal=signals.item_scraped)
        connect(self._spider_error, signal=signals.spider_error)
        connect(self._spider_opened, signal=signals.spider_opened)
        connect(self._engine_started, signal=signals.engine_started)
        connect(self._spider_closed, signal=signals.spider_closed)

    def _spider_opened(self) -> None:
        assert self._crawler is not None
        self._encoder = ItemEncoder(self._crawler)

    def _engine_started(self) -> None:
        self._is_started = True
        self._stop_if_asked()

    def _spider_closed(self, reason: str) -> None:
        self._finish_reason = reason

    def _spider_error(self, failure: Failure, response: Any) -> None:
        # Without a response it is start() that raised.
        if response is None:
            self._start_failure = failure

    def _item_scraped(self, item: Any) -> Awaitable[None] | None:
        """Encode the item at once; Scrapy awaits what is returned."""
        assert self._crawler is not None
        if self._is_committing:
            _logger.error("An item came after the end of the crawl; it is not kept")
            return None
        if self._encoder is None:
            self._encoder = ItemEncoder(self._crawler)
        try:
            encoded = self._encoder.encode(item)
        except TypeError:
            self._crawler.stats.inc_value("dscrapy/unencodable_items")
            raise
        if encoded.is_lossy:
            self._crawler.stats.inc_value("dscrapy/unencodable_items")
            self._warn_of_repr(item)
        try:
            self._parts.add(encoded.line, encoded.tagged)
        except ItemTooLargeError as error:
            self._fail(outcome_of("unsupported", str(error)))
            return None
        if self._parts.is_full:
            return self._gate.wait_until(lambda: not self._parts.is_full)
        return None

    def _warn_of_repr(self, item: Any) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _logger.warning(
            "An item of type %s holds what JSON cannot; its line has the repr of "
            "that instead (no further warning, dscrapy/unencodable_items counts)",
            type(item).__qualname__,
        )

    # ---- orders ---------------------------------------------------------------

    def _on_message(self, message: ToCrawl) -> None:
        match message:
            case CommitSeen():
                self._on_commit_seen(message)
            case Valid(until=until):
                self._gate.valid_until = until
                self._gate.changed()
            case Hold(on=on):
                self._gate.is_held = on
                self._gate.changed()
            case Stop(reason=reason):
                self._stop_reason = reason
                self._stop_if_asked()
            case Probe(number=number):
                self._link.send(Alive(number=number))
            case Run():
                _logger.error("The worker asked for a second run in one process")
                self._exit(1)
            case _:
                assert_never(message)

    def _on_commit_seen(self, answer: CommitSeen) -> None:
        if answer.result == "settled":
            _logger.info("This run was superseded; its items are not used")
            self._exit(0)
        self._parts.seen(answer)
        self._gate.changed()

    def _on_link_end(self) -> None:
        self._exit(0 if self._is_committing else 1)

    def _exit(self, code: int) -> None:
        logging.shutdown()
        # Nobody waits for what is left: no clean-up of the project's may hold it.
        os._exit(code)

    def _fail(self, outcome: Outcome) -> None:
        if self._failure is None:
            self._failure = outcome
            _logger.error("%s", outcome.text)
            self._stop_reason = self._stop_reason or outcome.failure
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Close the spider; before the engine runs this is asked again later."""
        if self._stop_reason is None or not self._is_started:
            return
        assert self._crawler is not None
        self._gate.is_stopping = True
        self._gate.changed()
        engine = self._crawler.engine
        if engine.spider is not None:
            task = asyncio.ensure_future(
                engine.close_spider_async(reason=self._stop_reason)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # ---- what is told -----------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._parts.flush()
            self._tell_progress()

    def _tell_progress(self) -> None:
        crawler = self._crawler
        if crawler is None or crawler._stats is None:
            return
        stats = crawler.stats
        engine = crawler._engine
        progress = Progress(
            job=self._run.job,
            process=self._run.process,
            pages=stats.get_value("response_received_count", 0),
            items=stats.get_value("item_scraped_count", 0),
            errors=stats.get_value("log_count/ERROR", 0),
            in_flight=0 if engine is None else len(engine.downloader.active),
        )
        if progress != self._progress:
            self._progress = progress
            self._link.send(progress)

    def _outcome(self, error: BaseException | None) -> Outcome:
        reason = self._finish_reason
        if self._failure is not None:
            return Outcome(
                finish_reason=reason,
                failure=self._failure.failure,
                text=self._failure.text,
            )
        if error is not None:
            assert self._crawler is not None
            code = _failure_code(error, self._crawler.spider)
            text = describe(error)
            if isinstance(error, Failed | UnsupportedError):
                text = str(error)
            return outcome_of(code, text, error, reason)
        if reason == "start_error":
            cause = self._start_failure.value if self._start_failure else None
            text = "start() raised an error"
            if cause is not None:
                text = f"start() raised {describe(cause)}"
            return outcome_of("start_error", text, cause, reason)
        return Outcome(finish_reason=reason)


def _failure_code(error: BaseException, spider: Spider | None) -> str:
    """Return the code for an error with which Scrapy itself gave up."""
    match error:
        case Failed():
            return error.outcome.failure
        case UnsupportedError():
            return "unsupported"
        case ImportError() | SyntaxError():
            return "import_error"
    # There is no spider: its __init__ or from_crawler raised.
    return "bad_arguments" if spider is None else "spider_error"
