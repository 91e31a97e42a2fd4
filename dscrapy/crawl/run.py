"""One crawl process from its first message to the answer to its last commit.

Everything here happens in the event loop's thread. A process ends in one of three
ways: the master says ``Done`` to its ``closed`` unit (exit 0), the link to the worker
ends (exit 1, at once; 0 if that unit is on its way), or it dies.
"""

import asyncio
import contextlib
import logging
import pprint
import time
from collections.abc import Awaitable, Callable
from typing import Any, assert_never

from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.settings import BaseSettings
from twisted.python.failure import Failure

from dscrapy.crawl.crawl_end import CrawlEnd, reason_text
from dscrapy.crawl.error_counts import count_errors
from dscrapy.crawl.gate import Gate
from dscrapy.crawl.insides.probes import wake
from dscrapy.crawl.outgoing.commit_parts import Sender, Timers, Work
from dscrapy.crawl.outgoing.scraped_items import ScrapedItems
from dscrapy.crawl.phases import Do, Event, Life
from dscrapy.crawl.project_checks.components import running, warnings_of
from dscrapy.crawl.project_loader import Loaded, code_folder, project_modules
from dscrapy.crawl.project_runner import leave, run_project
from dscrapy.crawl.scrapy_side.addon import Overlay, lay_over, lay_over_each
from dscrapy.crawl.scrapy_side.crawl_settings import CrawlSettings
from dscrapy.crawl.scrapy_side.job import Leading, Scheduler
from dscrapy.crawl.scrapy_side.leaving import (
    begin_at,
    has_once,
    leave_out_once,
    take_over,
)
from dscrapy.crawl.scrapy_side.stats_collector import merged, note_changed
from dscrapy.crawl.scrapy_side.tracking import Tracker
from dscrapy.crawl.worker_side.in_flight_table import InFlightTable
from dscrapy.crawl.worker_side.lifeline import ignore_signals
from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import (
    Alive,
    AllWait,
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
    Recall,
    Retire,
    Run,
    Skip,
    StartMay,
    Stop,
    ToCrawl,
    Valid,
    WorkShort,
)
from dscrapy.model import Outcome, waiting_text

_logger = logging.getLogger(__name__)

# Commits of pages that end within a few ms share a frame, a record and an fsync;
# a page takes longer than that, so nobody waits noticeably.
COMMIT_DELAY_S = 0.003
# What a page asks for leaves after so long, or at most twice as long, finished or not;
# most pages take less.
EARLY_S = 0.125
# After so many turns of the event loop a page that waits for nothing is finished, also
# where the loop is busy and a turn takes long.
EARLY_TURNS = 25
# Pages whose requests cannot leave this process are finished when the master stops
# it, if that takes no longer; else they are done again elsewhere.
STOP_LOCAL_S = 30.0


def run_job(link: Link, run: Run, marks: InFlightTable) -> int:
    """Run the job to its end and return the process's exit code."""

    def make(loaded: Loaded) -> tuple[Crawler, Overlay]:
        crawler = JobCrawler(loaded, link, run, marks)
        return crawler, crawler.job

    return run_project(link, run, make)


def boottime() -> float:
    """Return seconds on the clock of ``Valid``, which runs through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class JobCrawler(Crawler):
    """A crawler whose crawl is done when its last commit is answered."""

    def __init__(
        self, loaded: Loaded, link: Link, run: Run, marks: InFlightTable
    ) -> None:
        super().__init__(loaded.spider_class, loaded.process.settings)
        self.job = CrawlRun(self, link, run, marks)

    async def crawl_async(self, *args: Any, **kwargs: Any) -> None:
        """Crawl, then commit; errors of the project end in the commit."""
        await self.job.conduct(super().crawl_async(*args, **kwargs))


class CrawlRun:
    """Joins one crawler to the link: leases in, commits out.

    Its phase is in its ``Life``; every event goes through ``_on``.
    """

    def __init__(
        self, crawler: Crawler, link: Link, run: Run, marks: InFlightTable
    ) -> None:
        self.link = link
        self.run = run
        self.marks = marks
        self.gate = Gate(boottime)
        self.leading = Leading()
        self.sender = Sender(
            run,
            link.send,
            Timers(self._flush_soon, self._age_later, self._send_due_later),
            self._add_loose_stats,
        )
        self.tracker = Tracker(
            self.sender, self._on_settled, self._on_closing, self.progressed, marks
        )
        self.items = ScrapedItems(crawler, self.tracker, self.gate)
        self.is_project = project_modules(code_folder(run.spec))
        self._crawler = crawler
        self._life = Life()
        self._end = CrawlEnd()
        # Scrapy makes its components by and by: the settings are set first, if they are
        # not refused; the scheduler is set when it opens.
        self._crawl_settings: CrawlSettings | None = None
        self._scheduler: Scheduler | None = None
        # The master's order for the end, and its answer that the process is done.
        self._end_order: Retire | Conclude | None = None
        self._done: Done | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._will_flush = False
        self._will_age = False

    @property
    def is_finished(self) -> bool:
        """Whether the last commit has been answered."""
        return self._done is not None

    @property
    def crawl_settings(self) -> CrawlSettings:
        """The settings of the crawl; set when components are made."""
        assert self._crawl_settings is not None
        return self._crawl_settings

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler; set from its ``opens`` on."""
        assert self._scheduler is not None
        return self._scheduler

    @property
    def may_start(self) -> bool:
        """Whether a request may be given to Scrapy now."""
        return self.gate.is_valid and not self.link.is_paused

    @property
    def may_pull_start(self) -> bool:
        """Whether ``start()`` may be asked for its next element."""
        return self.may_start and self._life.may_pull_start

    async def conduct(self, crawl: Awaitable[None]) -> None:
        """Await the crawl between the link's attachment and the last answer."""
        # Again: Scrapy puts its own handlers in place when the reactor starts.
        ignore_signals()
        count_errors(self.tracker.delta_now)
        await self.link.attach(self._on_message, self._on_link_end, self._recheck)
        failure: Outcome | None = None
        try:
            await crawl
        except Exception as error:  # noqa: BLE001 - the project's components are user code
            spider, is_opening = self._crawler.spider, self._life.is_opening
            failure = self._end.failure(error, spider, is_opening=is_opening)
            text = f"{failure.text}\n{failure.traceback}".rstrip()
            _logger.error("The crawl failed: %s", text)
        self.tracker.end_gathering()
        self._on(Event.CRAWL_ENDED)
        # Where the spider cannot be made there are no stats yet.
        with contextlib.suppress(RuntimeError):
            note_changed(self._crawler.stats)
        self.sender.settled(Work("closed", end=failure or self._end.outcome()))
        self.sender.flush()
        await self.gate.wait_until(lambda: self._done is not None)
        assert self._done is not None
        if self._done.stats is not None:
            self._dump(merged(self._done.stats))
        elif self._end.is_shutdown:
            self._dump(self._crawler.stats.get_stats())
        self.link.close()

    # ---- life -----------------------------------------------------------------

    def _on(self, event: Event, reason: str = "") -> None:
        """Take an event; ``reason`` is why, if it is a stop or a close."""
        for action in self._life.on(event):
            self._do(action, reason)

    def _do(self, action: Do, reason: str) -> None:
        match action:
            case Do.KEEP_STOP:
                self._end.stop_reason = reason
            case Do.TELL_OPENED:
                self._tell_opened()
            case Do.TELL_CLOSING:
                run = self.run
                closing = Closing(job=run.job, process=run.process, reason=reason)
                self.link.send(closing)
            case Do.GIVE_BACK:
                self.scheduler.give_back()
            case Do.CLOSE_ENGINE:
                task = asyncio.ensure_future(self._close_engine())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Do.LEAVE_LOCALS:
                self.scheduler.locals.close(abandon=False)
            case Do.ABANDON_LOCALS:
                self.scheduler.locals.close(abandon=True)
            case _:
                assert_never(action)

    def _tell_opened(self) -> None:
        """Tell the master that this process can take leases."""
        crawler, crawl_settings = self._crawler, self.crawl_settings
        has_listed = has_once(crawler, crawl_settings.is_once)
        opened = crawl_settings.opened(self.run, crawler.settings, has_once=has_listed)
        if opened.window == 1:
            self.sender.keep_order()
        self.link.send(opened)

    async def _close_engine(self) -> None:
        # Requests that have begun are finished, also local ones that still wait.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                self.gate.wait_until(lambda: not self._has_locals), STOP_LOCAL_S
            )
        engine = self._crawler.engine
        if engine.spider is not None:
            await engine.close_spider_async(reason=self._end.stop_in_scrapy)

    @property
    def _has_locals(self) -> bool:
        # Requests of ``spider_opened`` handlers begin when the process leads.
        begun = self.tracker.works - {self.tracker.opened}
        return any(work.local_count for work in begun)

    # ---- Scrapy ---------------------------------------------------------------

    def configure(self, settings: BaseSettings) -> None:
        """Lay our settings over the project's, offer the job's URLs, take signals."""
        self._crawl_settings = lay_over(settings)
        urls = self.run.spec.urls
        lay_over_each(self._crawler, settings, urls, self.tracker.delta_now)
        connect = self._crawler.signals.connect
        connect(self._item_scraped, signal=signals.item_scraped)
        connect(self._spider_error, signal=signals.spider_error)
        connect(self._engine_started, signal=signals.engine_started)
        connect(self._spider_closed, signal=signals.spider_closed)

    def opens(self, scheduler: Scheduler) -> None:
        """Note that the scheduler is open; the pipelines come next."""
        # From now on the life's actions need the scheduler.
        self._scheduler = scheduler
        self._on(Event.SCHEDULER_OPENS)
        # After the extensions' own handlers.
        connect = self._crawler.signals.connect
        connect(self._spider_opened, signal=signals.spider_opened)

    def _spider_opened(self) -> None:
        if self.run.opened_at is not None:
            begin_at(self._crawler, self.run.opened_at)
        self._on(Event.SPIDER_OPENED)

    def _engine_started(self) -> None:
        self._on(Event.ENGINE_STARTED)

    def _on_closing(self, reason: Any) -> None:
        """Take the beginning of the spider's end, whoever asked for it."""
        self._on(Event.CLOSE, reason_text(reason))

    def _spider_closed(self, reason: Any) -> None:
        self._end.close_for(reason)

    def _spider_error(self, failure: Failure, response: Any) -> None:
        # Without a response it is start() that raised.
        if response is None:
            self._end.start_error = failure.value

    def _item_scraped(self, item: Any) -> Awaitable[None] | None:
        if self._life.is_over:
            _logger.error("An item came after the end of the crawl; it is not kept")
            return None
        return self.items.take(item)

    # ---- leading --------------------------------------------------------------

    def engine_runs(self) -> None:
        """Note that requests from now on are not of ``spider_opened`` handlers."""
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

    def _warn_of_state(self) -> None:
        """Warn of components that give other results in several processes.

        In a job with one process the results are as in Scrapy, unless the process dies;
        of that the log warns where there are pipelines.
        """
        if self.run.spec.parallelism == 1:
            return
        for line in warnings_of(running(self._crawler), self.crawl_settings.is_once):
            _logger.warning("%s", line[0].upper() + line[1:])

    # ---- commits --------------------------------------------------------------

    def progressed(self) -> None:
        """Tell the master soon how far this process has come, if that matters."""
        sender = self.sender
        # In order, the engine's next question says it.
        if sender.progress.is_news and self.scheduler.is_low and not sender.is_in_order:
            self._flush_soon()

    def _age_later(self) -> None:
        if not self._will_age:
            self._will_age = True
            loop = asyncio.get_running_loop()
            loop.call_later(EARLY_S, self._age, context=self.tracker.context)

    def _age(self) -> None:
        self._will_age = False
        if self.sender.age():
            self._age_later()

    def _send_due_later(self, turns: int = EARLY_TURNS) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._send_due, turns, context=self.tracker.context)

    def _send_due(self, turns: int) -> None:
        if turns:
            self._send_due_later(turns - 1)
        else:
            self.sender.send_due()

    def _flush(self) -> None:
        self._will_flush = False
        self.sender.flush()

    def _flush_soon(self) -> None:
        if self._will_flush:
            return
        self._will_flush = True
        loop = asyncio.get_running_loop()
        # A process with nothing else to do has no further commits to gather.
        leading = self.leading
        is_taking = leading.is_pulling and not leading.is_waiting
        is_busy = self.tracker.in_flight > 0 or is_taking
        delay = COMMIT_DELAY_S if is_busy else 0.0
        loop.call_later(delay, self._flush, context=self.tracker.context)

    def _add_loose_stats(self, work: Work) -> None:
        work.delta.take(self.tracker.delta)

    def _on_settled(self, work: Work) -> None:
        if work.request:
            self.marks.remove(work.request)
        self.gate.changed()

    # ---- orders ---------------------------------------------------------------

    def _on_message(self, message: ToCrawl) -> None:
        match message:
            case Grant():
                # The master grants nothing before Opened, so there is a scheduler.
                self.scheduler.granted(message)
            case Recall():
                self.scheduler.recalled(message)
            case CommitsSeen():
                self.sender.acknowledged(message)
            case Offered():
                self.scheduler.locals.offered(message)
            case Valid(until=until):
                self.gate.valid_until = until
            case Skip():
                self.leading.on_skip(message)
            case Lead():
                if self.leading.on_lead(message):
                    self._settle_opened()
                    self._warn_of_state()
            case StartMay():
                self.leading.on_start_may(message)
            case AllWait(pages=pages):
                _logger.warning("%s", waiting_text(pages))
            case WorkShort(on=on):
                self.sender.set_short(is_short=on)
            case Finish(number=number):
                self.tracker.finish = number
            case Stop(reason=reason):
                self._on(Event.STOP, reason)
            case Retire() | Conclude():
                # The order may come again, after the master was away.
                self._end_order = self._end_order or message
            case Done():
                self._done = message
            case Probe(number=number):
                self.link.send(Alive(number=number))
                return
            case Run() | FeedsSeen() | ReadSeen() | ItemsEnd():
                _logger.error("The worker sent what a crawl does not expect")
                leave(is_over=False)
            case _:
                assert_never(message)
        self._recheck()

    def _recheck(self) -> None:
        self.gate.changed()
        if self._life.is_open and self.scheduler.wants_turn:
            wake(self._crawler)

    def _on_link_end(self) -> None:
        leave(is_over=self._life.is_over)

    # ---- the end --------------------------------------------------------------

    async def end(self, reason: Any) -> None:
        """Commit all that the crawl gave, and learn whether the job ends with it.

        Runs between the pipelines' end and ``spider_closed``. A process that stops
        while its job goes on, or whose spider did not open, just leaves.
        """
        crawler, end = self._crawler, self._end
        end.close_for(reason)
        if self._life.is_open and not end.is_of_process:
            self.tracker.end_gathering()
            self.sender.flush()
            await self._wait_unless_done(lambda: self.sender.is_quiet)
            note_changed(crawler.stats)
            self.sender.settled(Work("ending", end=end.outcome()))
            self.sender.flush()
            await self._wait_unless_done(lambda: self._end_order is not None)
        order = self._end_order
        if isinstance(order, Conclude):
            take_over(crawler, order.stats, again=order.again)
        else:
            leave_out_once(crawler, self.crawl_settings.is_once)

    async def _wait_unless_done(self, condition: Callable[[], bool]) -> None:
        # When the job is over, no order comes.
        await self.gate.wait_until(lambda: condition() or self._done is not None)

    def _dump(self, stats: dict[str, Any]) -> None:
        # A crawl whose settings were refused has no stats to print.
        if self._crawl_settings is None or not self._crawl_settings.dumps_stats:
            return
        logging.getLogger("scrapy.statscollectors").info(
            "Dumping Scrapy stats:\n%s",
            pprint.pformat(stats),
            extra={"spider": self._crawler.spider},
        )
