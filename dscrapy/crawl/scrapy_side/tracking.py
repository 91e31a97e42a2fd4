"""Which lease or unit the running code belongs to, and when that is finished.

A context variable names the ``Hop`` whose work is running. The scheduler sets it
before it gives a request to Scrapy, and every task and callback that Scrapy starts
for this request inherits it, so whatever asks for a request, an item or a stat is
known by it, however it asks. A hop has left when the engine removes its request from
its slot: after callback or errback, all items and all their handlers. A ``Work`` is
settled when nothing holds it open any more; what its code does after that (tasks
that outlive their callback) belongs to no lease, as does what handlers of
``spider_opened`` and ``spider_idle`` ask for: that makes a unit for each loop turn.

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
from dscrapy.crawl.outgoing.commit_parts import Sender, Work
from dscrapy.crawl.scrapy_side.stats_collector import Delta


class Hop:
    """A request in Scrapy's hands, or an element of ``start()``, and its work.

    ``automatic_slot`` is the download slot that Scrapy gives the request by itself,
    None where the project has set one. ``holds_item``: the work waits until the item
    ``element``, which ``start()`` yielded, has gone through.
    """

    __slots__ = (
        "_page",
        "automatic_slot",
        "element",
        "holds_item",
        "host",
        "is_handed",
        "stage",
        "work",
    )

    def __init__(self, work: Work, host: str = "") -> None:
        self.work = work
        self.host = host
        self.is_handed = False
        self.automatic_slot: str | None = None
        self.element: Any = None
        self.holds_item = False
        # While its response or failure is with the scraper, a request that ends is
        # one that its callback downloads once more.
        self.stage: Literal["download", "scrape", "scraped"] = "download"
        self._page: ref[Response] | None = None

    @property
    def page(self) -> Response | None:
        """The response whose callback runs, while anybody has it."""
        return None if self._page is None else self._page()

    @page.setter
    def page(self, response: Response) -> None:
        # Contexts of tasks that outlive their callback keep the hop alive.
        self._page = ref(response)


CURRENT: ContextVar[Hop | None] = ContextVar("dscrapy_hop", default=None)


class Tracker:
    """Accounts for works and hops of one crawl.

    ``settled`` is called with each settled work that went to the sender, ``closing``
    with the reason when the spider is asked to close.
    """

    def __init__(
        self,
        sender: Sender,
        settled: Callable[[Work], None],
        closing: Callable[[str], None],
    ) -> None:
        self._sender = sender
        self._settled = settled
        self._closing = closing
        # Of no lease, for callbacks of our own: a lease's would be kept alive by them.
        self.context: Context = copy_context()
        self._hops: dict[int, Hop] = {}
        self._gathering: Work | None = None
        self.works: set[Work] = set()
        # Stats that belong to no lease; they ride on the next unit.
        self.delta = Delta()
        self.opened: Work | None = None
        self.has_begun = False
        self.open_starts = 0
        # Number of the ``Finish`` that is not revoked.
        self.finish = 0
        # Before there is a scheduler nothing is handed on.
        self._arrived: Callable[[str], None] = lambda host: None

    # ---- who is running ---------------------------------------------------------

    @staticmethod
    def current() -> Hop | None:
        """Return the hop whose work is running and not settled."""
        hop = CURRENT.get()
        return None if hop is None or hop.work.is_settled else hop

    def delta_now(self) -> Delta:
        """Return where stats are written now."""
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
        """Never commit this work: what its code still gives is kept by nobody."""
        self.works.discard(work)

    def grown(self, work: Work) -> None:
        """Let a work that has grown send what is full."""
        if work in self.works:
            self._sender.grown(work)

    def end_gathering(self) -> None:
        """Settle what was gathered beside leases in this loop turn."""
        if self._gathering is not None:
            self._end_gathering(self._gathering)

    def _end_gathering(self, work: Work) -> None:
        if self._gathering is work:
            self._gathering = None
            self.release(work)

    # ---- hops -------------------------------------------------------------------

    def enter(self, request: Request, hop: Hop) -> None:
        """Give a request to Scrapy: the running code is this hop's from now on.

        Its work is held already; the hold ends when the request has left.
        """
        self._hops[id(request)] = hop
        CURRENT.set(hop)

    def reached_downloader(self, request: Request) -> None:
        """Note that a request stands in its download slot."""
        hop = self._hops.get(id(request))
        if hop is not None:
            self._unhand(hop)

    def _unhand(self, hop: Hop) -> None:
        if hop.is_handed:
            hop.is_handed = False
            self._arrived(hop.host)

    def _scrapes(self, result: Any, request: Request) -> Hop | None:
        hop = self._hops.get(id(request))
        if hop is not None:
            self._unhand(hop)
            hop.stage = "scrape"
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
        """Hook into the engine; raises ``UnsupportedError`` where that cannot be.

        ``arrived`` is called with the host of each request that was handed to Scrapy,
        when it has come to its download slot, or never will.
        """
        engine = crawler.engine
        probes.check_engine(engine)
        self._arrived = arrived
        probes.watch_removals(engine, self._removed)
        probes.watch_scraping(engine, self._begins_scraping)
        probes.watch_items(engine, self._begins_item)
        probes.watch_closing(engine, self._closing)

    def _begins_scraping(self, result: Any, request: Request) -> probes.Ended:
        hop = self._scrapes(result, request)
        if hop is None:
            return None

        def scraped() -> None:
            hop.stage = "scraped"

        return scraped

    def _begins_item(self, item: Any) -> probes.Ended:
        hop = CURRENT.get()
        if hop is None:
            return None

        def ended() -> None:
            if hop.holds_item and hop.element is item:
                hop.holds_item = False
                self.release(hop.work)

        return ended
