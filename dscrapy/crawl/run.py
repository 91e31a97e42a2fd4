"""One crawl process from its first message to the answer to its last commit.

Everything here happens in the event loop's thread. A process ends in one of three
ways: the master says ``Done`` to its ``closed`` unit (exit 0), the link to the worker
ends (exit 1, at once; 0 if that unit is on its way), or it dies.
"""

import asyncio
import contextlib
import logging
import os
import pprint
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, assert_never

from scrapy import Spider, signals
from scrapy.crawler import Crawler
from scrapy.settings import BaseSettings
from twisted.python.failure import Failure

from dscrapy.crawl.codec.items import (
    ITEM_BYTES_MAX,
    ITEM_BYTES_SETTING,
    ItemEncoder,
    item_bytes_max,
)
from dscrapy.crawl.codec.pickles import Pickles
from dscrapy.crawl.codec.request_bodies import clean_text
from dscrapy.crawl.error_counts import count_errors
from dscrapy.crawl.gate import Gate
from dscrapy.crawl.outgoing.commit_parts import Sender, Work
from dscrapy.crawl.project_checks.components import running, told
from dscrapy.crawl.project_checks.once_per_job import listed
from dscrapy.crawl.project_loader import (
    TEXT_CHARS_MAX,
    Failed,
    Loaded,
    check_reactor,
    code_folder,
    describe,
    load,
    outcome_of,
    project_modules,
)
from dscrapy.crawl.scrapy_side.addon import install_addon, lay_over
from dscrapy.crawl.scrapy_side.crawl_settings import Demands
from dscrapy.crawl.scrapy_side.job import Leading, Scheduler
from dscrapy.crawl.scrapy_side.leaving import (
    begin_at,
    has_once,
    leave_out_once,
    take_over,
)
from dscrapy.crawl.scrapy_side.stats_collector import merged, note_changed
from dscrapy.crawl.scrapy_side.tracking import Tracker, UnsupportedError, wake
from dscrapy.crawl.traces import failure_log
from dscrapy.crawl.worker_side.in_flight_table import Marks
from dscrapy.crawl.worker_side.lifeline import ignore_signals
from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import (
    Alive,
    Closing,
    CommitsSeen,
    Conclude,
    Done,
    FeedsSeen,
    Finish,
    Grant,
    ItemsEnd,
    Lead,
    Offered,
    Probe,
    ReadSeen,
    Retire,
    Run,
    Skip,
    StartMay,
    Stop,
    ToCrawl,
    Valid,
)
from dscrapy.model import PROCESS_REASONS, WORKER_DRAINS, Outcome

_logger = logging.getLogger(__name__)

# Commits of pages that end within a few ms share a frame, a record and an fsync;
# a page takes longer than that, so nobody waits noticeably.
COMMIT_DELAY_S = 0.003
# Pages whose requests cannot leave this process are finished when the master stops
# it, if that takes no longer; else they are done again elsewhere.
STOP_LOCAL_S = 30.0
# What Scrapy calls it when its process is told to end. The spider, its log and its
# stats have that name; ours says that the job goes on.
_IN_SCRAPY = {WORKER_DRAINS: "shutdown"}


def run_job(link: Link, run: Run, marks: Marks) -> int:
    """Run the job to its end and return the process's exit code."""
    try:
        loaded = load(run.spec, run.local)
        job = CrawlRun(link, run, marks)
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
    sys.stderr.write(failure_log(outcome))
    sys.stderr.flush()
    sender = Sender(run, link.send, lambda: None, lambda work: None)
    sender.settled(Work("closed", end=outcome))
    sender.flush()
    while True:
        match link.receive():
            case None | Done():
                return 0
            case Probe(number=number):
                link.send(Alive(number=number))
            case _:
                # Answers, stops and spans of a crawl that never was.
                continue


def _crawler(loaded: Loaded, job: "CrawlRun") -> "JobCrawler":
    crawler = JobCrawler(loaded.spider_class, loaded.process.settings)
    crawler.job = job
    check_reactor(crawler.settings)
    install_addon(crawler, job)
    return crawler


class JobCrawler(Crawler):
    """A crawler whose crawl is done when its last commit is answered."""

    job: "CrawlRun"

    async def crawl_async(self, *args: Any, **kwargs: Any) -> None:
        """Crawl, then commit; errors of the project end in the commit."""
        await self.job.conduct(self, super().crawl_async(*args, **kwargs))


class CrawlRun:
    """Joins one crawler to the link: leases in, commits out."""

    def __init__(self, link: Link, run: Run, marks: Marks) -> None:
        self.link = link
        self.run = run
        self.marks = marks
        self.gate = Gate(boottime)
        self.leading = Leading()
        self.tracker = Tracker(self._on_settled, self._on_closing)
        self.sender = Sender(run, link.send, self._flush_soon, self._ride)
        self.tracker.sender = self.sender
        self.is_project = project_modules(code_folder(run.spec))
        self.demands: Demands
        # A crawl whose settings are refused has none to print.
        self._dumps_stats = False
        self.pickles: Pickles
        self._is_once: Callable[[type], bool] = lambda cls: False
        self.scheduler: Scheduler
        self._crawler: Crawler | None = None
        self._encoder: ItemEncoder | None = None
        # ``open_spider`` of the pipelines may run; it has gone through.
        self._is_opening = False
        self._item_bytes_max = ITEM_BYTES_MAX
        self._is_open = False
        self._is_started = False
        self._is_closing = False
        self._is_committing = False
        self._is_stopped = False
        self._has_told_closing = False
        self._stop_reason: str | None = None
        self._finish_reason = ""
        self._start_failure: Failure | None = None
        self._order: Retire | Conclude | None = None
        self._done: Done | None = None
        self._has_warned = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_finished(self) -> bool:
        """Whether the last commit has been answered."""
        return self._done is not None

    @property
    def may_start(self) -> bool:
        """Whether a request may be given to Scrapy now."""
        return self.gate.is_valid and not self.link.is_paused

    @property
    def may_pull_start(self) -> bool:
        """Whether ``start()`` may be asked for its next element."""
        return self.may_start and not self._is_closing and self._stop_reason is None

    @property
    def encoder(self) -> ItemEncoder:
        """What encodes the items of this crawl."""
        if self._encoder is None:
            assert self._crawler is not None
            self._encoder = ItemEncoder(self._crawler)
        return self._encoder

    async def conduct(self, crawler: Crawler, crawl: Awaitable[None]) -> None:
        """Await the crawl between the link's attachment and the last answer."""
        self._crawler = crawler
        # Again: Scrapy puts its own handlers in place when the reactor starts.
        ignore_signals()
        count_errors(self.tracker.delta_now)
        await self.link.attach(self._on_message, self._on_link_end, self._look_again)
        end: Outcome | None = None
        try:
            await crawl
        except Exception as error:  # noqa: BLE001 - the project's components are user code
            end = self._outcome(error)
            told = f"{end.text}\n{end.traceback}".rstrip()
            _logger.error("The crawl failed: %s", told)
        self.tracker.end_gathering()
        self._is_committing = True
        # Where the spider cannot be made there are no stats yet.
        with contextlib.suppress(RuntimeError):
            note_changed(crawler.stats)
        self.sender.settled(Work("closed", end=end or self._outcome(None)))
        self.sender.flush()
        await self.gate.wait_until(lambda: self._done is not None)
        assert self._done is not None
        if self._done.stats is not None:
            self._dump(merged(self._done.stats))
        elif self._finish_reason in _IN_SCRAPY:
            self._dump(crawler.stats.get_stats())
        self.link.close()

    # ---- laid over the crawler ------------------------------------------------

    def configure(self, crawler: Crawler, settings: BaseSettings) -> None:
        """Lay ours over the settings, offer the job's URLs, connect signals."""
        check_reactor(settings)
        self._is_once = listed(settings)
        try:
            self._item_bytes_max = item_bytes_max(settings)
        except ValueError as error:
            raise UnsupportedError(str(error)) from None
        self.demands = lay_over(settings, self.tracker.delta_now)
        self._dumps_stats = self.demands.dumps_stats
        self.pickles = Pickles(self.run.key if self.demands.pickles else b"")
        spider: Any = crawler.spider
        if self.run.spec.urls and not getattr(spider, "start_urls", None):
            spider.start_urls = list(self.run.spec.urls)
        connect = crawler.signals.connect
        connect(self._item_scraped, signal=signals.item_scraped)
        connect(self._spider_error, signal=signals.spider_error)
        connect(self._engine_started, signal=signals.engine_started)
        connect(self._spider_closed, signal=signals.spider_closed)

    def opens(self) -> None:
        """Note that the scheduler is open; the pipelines come next."""
        assert self._crawler is not None
        self._is_opening = True
        # After the extensions' own handlers.
        connect = self._crawler.signals.connect
        connect(self._spider_opened, signal=signals.spider_opened)

    def _spider_opened(self) -> None:
        """Tell the master that leases can be taken, unless that is over."""
        crawler = self._crawler
        assert crawler is not None
        self._is_open = True
        if self.run.opened_at is not None:
            begin_at(crawler, self.run.opened_at)
        if self._stop_reason is None:
            once = has_once(crawler, self._is_once)
            opened = self.demands.opened(self.run, crawler.settings, has_once=once)
            self.link.send(opened)

    def engine_runs(self) -> None:
        """Note that what is asked for from now on was not asked for by openers."""
        self.tracker.has_begun = True
        self._settle_opened()

    def _settle_opened(self) -> None:
        lead = self.leading.lead
        if lead is None or not self.tracker.has_begun:
            return
        work, self.tracker.opened = self.tracker.opened, None
        if work is None and lead.opened:
            work = self.tracker.begin(Work("opened"))
        if work is None:
            return
        if not lead.opened:
            self.tracker.abandon(work)
        self.scheduler.locals.begin_opened(is_wanted=lead.opened)
        self.tracker.release(work)

    def _tell_kept(self) -> None:
        """Warn of components that give other results in several processes.

        In a job that has one they are as in Scrapy, unless it dies, which is what
        the log says of all pipelines.
        """
        if self.run.spec.parallelism == 1:
            return
        assert self._crawler is not None
        for line in told(running(self._crawler), self._is_once):
            _logger.warning("%s", line[0].upper() + line[1:])

    def _engine_started(self) -> None:
        self._is_started = True
        self._stop_if_asked()

    def _spider_closed(self, reason: Any) -> None:
        self._finish_reason = self._reason_of(reason)

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
        try:
            encoded = self.encoder.encode(item)
        except TypeError:
            self._crawler.stats.inc_value("dscrapy/unencodable_items")
            raise
        if encoded.is_lossy:
            self._crawler.stats.inc_value("dscrapy/unencodable_items")
            self._warn_of_repr(item)
        if encoded.size > self._item_bytes_max:
            self._drop_too_large(item, encoded.size)
            return None
        work = self.tracker.work_now()
        work.add_item(encoded.line, encoded.tagged)
        # What was sent is to be let go, not held by this frame while it waits.
        del encoded
        self.tracker.grown(work)
        if work.is_full:
            return self.gate.wait_until(lambda: not work.is_full)
        return None

    def _drop_too_large(self, item: Any, size: int) -> None:
        assert self._crawler is not None
        self._crawler.stats.inc_value("dscrapy/items_too_large")
        _logger.error(
            "An item of type %s is not kept: it is %d bytes as JSON, and %s is %d",
            type(item).__qualname__,
            size,
            ITEM_BYTES_SETTING,
            self._item_bytes_max,
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

    # ---- commits --------------------------------------------------------------

    def _flush_soon(self) -> None:
        loop = asyncio.get_running_loop()
        # With nothing else to do here nothing else comes to be gathered.
        leading = self.leading
        is_taking = leading.is_pulling and not leading.stands
        is_busy = self.tracker.in_flight > 0 or is_taking
        delay = COMMIT_DELAY_S if is_busy else 0.0
        loop.call_later(delay, self.sender.flush, context=self.tracker.context)

    def _ride(self, work: Work) -> None:
        work.delta.take(self.tracker.delta)

    def _on_settled(self, work: Work) -> None:
        if work.request:
            self.marks.remove(work.request)
        self.gate.changed()

    # ---- orders ---------------------------------------------------------------

    def _on_message(self, message: ToCrawl) -> None:
        match message:
            case Grant():
                self._granted(message)
            case CommitsSeen():
                self.sender.seen(message)
            case Offered():
                self.scheduler.locals.offered(message)
            case Valid(until=until):
                self.gate.valid_until = until
            case Skip():
                self.leading.on_skip(message)
            case Lead():
                if self.leading.on_lead(message):
                    self._settle_opened()
                    self._tell_kept()
            case StartMay():
                self.leading.on_start_may(message)
            case Finish(number=number):
                self.tracker.finish = number
            case Stop(reason=reason):
                self._stop(reason)
            case Retire() | Conclude():
                # One that is told again after the master was away.
                self._order = self._order or message
            case Done():
                self._done = message
            case Probe(number=number):
                self.link.send(Alive(number=number))
                return
            case Run() | FeedsSeen() | ReadSeen() | ItemsEnd():
                _logger.error("The worker sent what a crawl does not expect")
                self._exit(1)
            case _:
                assert_never(message)
        self._look_again()

    def _granted(self, grant: Grant) -> None:
        # Before Opened there is nothing to grant, so the scheduler is there.
        self.scheduler.granted(grant)

    def _look_again(self) -> None:
        self.gate.changed()
        if self._is_open and self._crawler is not None and self.scheduler.wants_turn:
            wake(self._crawler)

    def _on_link_end(self) -> None:
        self._exit(0 if self._is_committing else 1)

    def _exit(self, code: int) -> None:
        logging.shutdown()
        # Nobody waits for what is left: no clean-up of the project's may hold it.
        os._exit(code)

    # ---- the end --------------------------------------------------------------

    def _stop(self, reason: str) -> None:
        if self._stop_reason is not None or self._is_closing:
            return
        self._stop_reason = reason
        self._is_stopped = True
        self._tell_closing(reason)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Close the spider; before the engine runs this is asked again later."""
        if self._stop_reason is None or not self._is_started:
            return
        task = asyncio.ensure_future(self._close_engine(self._stop_reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_engine(self, reason: str) -> None:
        assert self._crawler is not None
        if self._is_stopped:
            # What has begun is finished, also where it is not in Scrapy's hands.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self.gate.wait_until(lambda: not self._has_locals), STOP_LOCAL_S
                )
        engine = self._crawler.engine
        if engine.spider is not None:
            in_scrapy = _IN_SCRAPY.get(reason, reason)
            await engine.close_spider_async(reason=in_scrapy)

    def _reason_of(self, reason: Any) -> str:
        """Return the reason by the name that the master knows."""
        text, stop = _reason(reason), self._stop_reason
        return stop if stop and _IN_SCRAPY.get(stop) == text else text

    @property
    def _has_locals(self) -> bool:
        # What openers asked for begins with leading only.
        begun = self.tracker.works - {self.tracker.opened}
        return any(work.local_count for work in begun)

    def _on_closing(self, reason: Any) -> None:
        """Take the beginning of the spider's end, whoever asked for it."""
        self._is_closing = True
        self._tell_closing(_reason(reason))
        self.scheduler.locals.close(abandon=self._is_stopped)

    def _tell_closing(self, reason: str) -> None:
        # Of one that does not come up the last commit tells all: what it says of the
        # job has to be weighed with what others say.
        if self._has_told_closing or not (self._is_open or self._is_stopped):
            return
        self._has_told_closing = True
        run = self.run
        self.link.send(Closing(job=run.job, process=run.process, reason=reason))
        if self._is_open:
            self.scheduler.give_back()

    async def end(self, reason: Any) -> None:
        """Commit all that the crawl gave, and learn whether the job ends with it.

        Between the pipelines' end and ``spider_closed``. A process that stops while its
        job goes on, or that did not come up, just leaves.
        """
        crawler = self._crawler
        assert crawler is not None
        self._finish_reason = self._reason_of(reason)
        if self._is_open and self._finish_reason not in PROCESS_REASONS:
            self.tracker.end_gathering()
            self.sender.flush()
            await self._wait_unless_done(lambda: self.sender.is_quiet)
            note_changed(crawler.stats)
            self.sender.settled(Work("ending", end=self._outcome(None)))
            self.sender.flush()
            await self._wait_unless_done(lambda: self._order is not None)
        order = self._order
        if isinstance(order, Conclude):
            take_over(crawler, order.stats, again=order.again)
        else:
            leave_out_once(crawler, self._is_once)

    async def _wait_unless_done(self, condition: Callable[[], bool]) -> None:
        # A job that is over has no orders any more.
        await self.gate.wait_until(lambda: condition() or self._done is not None)

    def _dump(self, stats: dict[str, Any]) -> None:
        assert self._crawler is not None
        if not self._dumps_stats:
            return
        logging.getLogger("scrapy.statscollectors").info(
            "Dumping Scrapy stats:\n%s",
            pprint.pformat(stats),
            extra={"spider": self._crawler.spider},
        )

    def _outcome(self, error: BaseException | None) -> Outcome:
        reason = self._finish_reason
        if error is not None:
            assert self._crawler is not None
            is_opening = self._is_opening and not self._is_open
            code = _failure_code(error, self._crawler.spider, is_opening=is_opening)
            if isinstance(error, Failed | UnsupportedError):
                # Their text says it all.
                return outcome_of(code, str(error), error.__cause__, reason)
            return outcome_of(code, describe(error), error, reason)
        if reason == "start_error":
            cause = self._start_failure.value if self._start_failure else None
            text = "start() raised an error"
            if cause is not None:
                text = f"start() raised {describe(cause)}"
            return outcome_of("start_error", text, cause, reason)
        return Outcome(finish_reason=reason)


def _reason(reason: Any) -> str:
    """Return a reason to close, which the project may give as anything, as text."""
    return clean_text(str(reason))[:TEXT_CHARS_MAX]


def _failure_code(
    error: BaseException, spider: Spider | None, *, is_opening: bool
) -> str:
    """Return the code for an error with which Scrapy itself gave up."""
    match error:
        case Failed():
            return error.outcome.failure
        case UnsupportedError():
            return "unsupported"
        case _ if is_opening:
            return "open_error"
        case ImportError() | SyntaxError():
            return "import_error"
    # There is no spider: its __init__ or from_crawler raised.
    return "bad_arguments" if spider is None else "spider_error"
