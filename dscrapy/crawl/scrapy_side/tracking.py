"""Which lease or unit the running code belongs to, and when that is finished.

A context variable names the ``Hop`` whose work is running. The scheduler sets it
before it gives a request to Scrapy, and every task and callback that Scrapy starts
for this request inherits it, so each request, item and stat is known to be of this
work, whatever code gives it. A hop has left when the engine removes its request from
its slot: after callback or errback, all items and all their handlers. A ``Work`` is
settled when nothing holds it open any more. Code that runs after that (tasks that
outlive their callback) belongs to no lease, nor do handlers of ``spider_opened`` and
``spider_idle``: their requests and items make a unit for each turn of the loop.

Scrapy has no public hooks for this: ``attach`` uses those of ``insides.probes``.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any, Literal
from weakref import ref

from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.http import Response

from dscrapy.crawl.insides import probes
from dscrapy.crawl.insides.marked_steps import Mark
from dscrapy.crawl.outgoing.commit_parts import Sender, Work
from dscrapy.crawl.scrapy_side.stats_collector import Delta
from dscrapy.crawl.worker_side.in_flight_table import InFlightTable


class Hop:
    """A request in Scrapy's hands, or an element of ``start()``, and its work.

    ``lease`` is the number of the request if it is leased: neither an element of
    ``start()`` nor local. ``automatic_slot`` is the download slot that Scrapy gives the
    request by itself, None where the project has set one. ``holds_item``: the work
    waits until the item ``element``, which ``start()`` yielded, has gone through.
    """

    __slots__ = (
        "_page",
        "automatic_slot",
        "element",
        "holds_item",
        "host",
        "is_handed",
        "lease",
        "stage",
        "work",
    )

    def __init__(self, work: Work, host: str = "", lease: int = 0) -> None:
        self.work = work
        self.host = host
        self.lease = lease
        self.is_handed = False
        self.automatic_slot: str | None = None
        self.element: Any = None
        self.holds_item = False
        # In the stage "scrape" (response or failure are with the scraper) a request
        # that ends is this one, downloaded once more by its callback.
        self.stage: Literal["download", "scrape", "scraped"] = "download"
        self._page: ref[Response] | None = None

    @property
    def page(self) -> Response | None:
        """The response whose callback runs, while anybody refers to it."""
        return None if self._page is None else self._page()

    @page.setter
    def page(self, response: Response) -> None:
        # Contexts of tasks that outlive their callback keep the hop alive.
        self._page = ref(response)


CURRENT: ContextVar[Hop | None] = ContextVar("dscrapy_hop", default=None)


class Tracker:
    """Accounts for works and hops of one crawl.

    ``settled`` is called with each settled work that went to the sender, ``closing``
    with the reason when the spider is asked to close, ``progressed`` when a download
    is over. ``marks`` says how far each request has come, and whose code runs.
    """

    def __init__(
        self,
        sender: Sender,
        settled: Callable[[Work], None],
        closing: Callable[[str], None],
        progressed: Callable[[], None],
        marks: InFlightTable,
    ) -> None:
        self._sender = sender
        self._settled = settled
        self._closing = closing
        self._progressed = progressed
        self._marks = marks
        # The context of no lease, for callbacks of our own: in a lease's context they
        # would keep the lease alive.
        self.context: Context = copy_context()
        self._hops: dict[int, Hop] = {}
        self._gathering: Work | None = None
        self.works: set[Work] = set()
        # Stats that belong to no lease; they are sent with the next unit.
        self.delta = Delta()
        self.opened: Work | None = None
        self.has_begun = False
        self.open_starts = 0
        # Number of the last ``Finish``, 0 if it is revoked.
        self.finish = 0
        # Before there is a scheduler no request is handed to a slot.
        self._arrived: Callable[[str], None] = lambda host: None

    # ---- who is running ---------------------------------------------------------

    @staticmethod
    def current() -> Hop | None:
        """Return the hop whose work is running and not settled."""
        hop = CURRENT.get()
        return None if hop is None or hop.work.is_settled else hop

    def leave(self) -> None:
        """Let the code that runs next in this context belong to no work."""
        CURRENT.set(None)
        self._marks.run(0)

    def delta_now(self) -> Delta:
        """Return the delta for stats of the running code."""
        hop = self.current()
        return self.delta if hop is None else hop.work.delta

    def work_now(self) -> Work:
        """Return the work that requests and items of the running code belong to."""
        hop = self.current()
        if hop is not None:
            return hop.work
        if not self.has_begun:
            if self.opened is None:
                self.opened = self.begin(Work("opened"))
            return self.opened
        if self._gathering is None:
            kind = "idle" if self.finish else "late"
            work = self._gathering = self.begin(Work(kind, finish=self.finish))
            self.finish = 0
            loop = asyncio.get_running_loop()
            loop.call_soon(self._end_gathering, work, context=self.context)
        return self._gathering

    @property
    def in_flight(self) -> int:
        """How many requests are in Scrapy's hands."""
        return len(self._hops)

    @property
    def is_finishing(self) -> bool:
        """Whether nothing is left to do, as the master and this process know it."""
        return self.finish > 0 and not self.works and self._sender.is_quiet

    # ---- works ------------------------------------------------------------------

    def begin(self, work: Work) -> Work:
        """Take up a work, held open once."""
        self.works.add(work)
        self.hold(work)
        return work

    def hold(self, work: Work) -> None:
        """Keep the work from being settled until ``release``."""
        assert not work.is_settled
        work.open += 1

    def release(self, work: Work) -> None:
        """End a hold; with the last one the work is settled."""
        assert work.open > 0
        work.open -= 1
        if work.open == 0 and work in self.works:
            self.works.discard(work)
            if work.kind == "start":
                self.open_starts -= 1
            self._sender.settled(work)
            self._settled(work)

    def abandon(self, work: Work) -> None:
        """Never commit this work, nor what its code still gives."""
        self.works.discard(work)
        self._sender.forget(work)

    def grown(self, work: Work) -> None:
        """Let a work that has grown send its full parts."""
        if work in self.works:
            self._sender.grown(work)

    def end_gathering(self) -> None:
        """Settle the work of no lease that gathers in this turn of the loop."""
        if self._gathering is not None:
            self._end_gathering(self._gathering)

    def _end_gathering(self, work: Work) -> None:
        if self._gathering is work:
            self._gathering = None
            self.release(work)

    # ---- hops -------------------------------------------------------------------

    def enter(self, request: Request, hop: Hop) -> None:
        """Give a request to Scrapy: the running code is this hop's from now on.

        The caller holds the work; the hold ends when the request has left the engine.
        """
        self._hops[id(request)] = hop
        CURRENT.set(hop)

    def reached_downloader(self, request: Request) -> None:
        """Note that a request stands in its download slot."""
        hop = self._hops.get(id(request))
        if hop is not None:
            self._unhand(hop)

    def left_downloader(self, request: Request) -> None:
        """Note that the download of a request is over."""
        hop = self._hops.get(id(request))
        if hop is not None and hop.stage == "download":
            self._end_download(hop)

    def _end_download(self, hop: Hop) -> None:
        if hop.lease:
            self._sender.progress.end_download(hop.lease)
            self._progressed()

    def response_received(self) -> None:
        """Note that the running request has got a response."""
        hop = CURRENT.get()
        # Downloads of callbacks come later.
        if hop is not None and hop.lease and hop.stage == "download":
            self._sender.progress.receive(hop.lease)

    def _unhand(self, hop: Hop) -> None:
        if hop.is_handed:
            hop.is_handed = False
            self._arrived(hop.host)

    def _scrapes(self, result: Any, request: Request) -> Hop | None:
        hop = self._hops.get(id(request))
        if hop is not None:
            self._unhand(hop)
            if hop.stage == "download":
                # Perhaps without a downloader, from a cache.
                self._end_download(hop)
            hop.stage = "scrape"
            if hop.lease:
                hop.work.clear_derived()
            if isinstance(result, Response):
                hop.page = result
        return hop

    def _removed(self, request: Request) -> None:
        hop = self._hops.get(id(request))
        # A callback may download its own request once more: that is not its end.
        if hop is None or hop.stage == "scrape":
            return
        del self._hops[id(request)]
        self._unhand(hop)
        self.release(hop.work)

    # ---- Scrapy -----------------------------------------------------------------

    def attach(self, crawler: Crawler, arrived: Callable[[str], None]) -> None:
        """Hook into the engine; raises ``UnsupportedError`` where that is impossible.

        ``arrived`` is called with the host of each request that was handed to Scrapy,
        when the request has come to its download slot, or never will.
        """
        engine = crawler.engine
        probes.check_engine(engine)
        self._arrived = arrived
        probes.watch_removals(engine, self._removed)
        probes.watch_scraping(engine, self._begins_scraping)
        probes.watch_callbacks(engine, self._begins_callback)
        probes.watch_pipelines(engine, self._runs)
        probes.watch_items(engine, self._begins_item)
        probes.watch_closing(engine, self._closing)

    def _begins_scraping(self, result: Any, request: Request) -> probes.Ended:
        hop = self._scrapes(result, request)
        if hop is None:
            return None

        def scraped() -> None:
            hop.stage = "scraped"

        return scraped

    def _runs(self) -> Mark:
        """Return what marks that the running work's code runs."""
        hop = CURRENT.get()
        run, request = self._marks.run, 0 if hop is None else hop.work.request
        return lambda: run(request)

    def _begins_callback(self) -> Mark:
        hop = CURRENT.get()
        if hop is not None and hop.lease:
            self._marks.reach(hop.lease, "waits")
        return self._runs()

    def begins_download(self, request: Request) -> probes.Ended:
        """Note that a download begins, of a lease, or of a page that is past its own:
        a local request, or one that a callback awaits."""
        hop = self._hops.get(id(request))
        if hop is not None and hop.lease and hop.stage == "download":
            self._marks.reach(hop.lease, "download")
            return None
        hop = hop or CURRENT.get()
        page = 0 if hop is None else hop.work.request
        self._marks.reach(page, "download")
        return lambda: self._marks.reach(page, "waits")

    def _begins_item(self, item: Any) -> probes.Ended:
        hop = CURRENT.get()
        if hop is None:
            return None

        def ended() -> None:
            if hop.holds_item and hop.element is item:
                hop.holds_item = False
                self.release(hop.work)

        return ended
