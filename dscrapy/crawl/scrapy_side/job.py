"""The interfaces between the crawl process and our components inside Scrapy.

Scrapy makes the components and ``crawl.run`` is the process; neither imports the other.
"""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from dscrapy.crawl.codec.request_bodies import RequestCodec
from dscrapy.crawl.gate import Gate
from dscrapy.crawl.outgoing.commit_parts import Sender
from dscrapy.crawl.outgoing.scraped_items import ScrapedItems
from dscrapy.crawl.scrapy_side.crawl_settings import CrawlSettings
from dscrapy.crawl.scrapy_side.local_requests import Locals
from dscrapy.crawl.scrapy_side.tracking import Tracker
from dscrapy.crawl.worker_side.in_flight_table import InFlightTable
from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import DIGEST_BYTES, Grant, Lead, Recall, Run, Skip, StartMay


class Leading:
    """What the master has said about leading."""

    def __init__(self) -> None:
        self.lead: Lead | None = None
        # Bounds on the number of start units: while the engine holds back, and else.
        self.upto = 0
        self.upto_free = 0
        # Whether start() is being consumed, and whether its next element has to wait.
        self.is_pulling = False
        self.is_waiting = False
        self._skip: Counter[bytes] = Counter()

    def on_skip(self, message: Skip) -> None:
        """Take digests of committed elements."""
        # In the middle of start() this is a repeat: its digests are in use already.
        if self.lead is not None:
            return
        if message.part == 0:
            self._skip.clear()
        data = message.digests
        self._skip.update(
            data[place : place + DIGEST_BYTES]
            for place in range(0, len(data), DIGEST_BYTES)
        )

    def on_lead(self, message: Lead) -> bool:
        """Lead from now on; False if the process leads already."""
        if self.lead is not None:
            return False
        self.lead = message
        return True

    def on_start_may(self, message: StartMay) -> None:
        """Take the bounds on start units."""
        self.upto = max(self.upto, message.upto)
        self.upto_free = max(self.upto_free, message.upto_free)

    def skips(self, digest: bytes) -> bool:
        """Whether this element is committed already; True as often as it is."""
        if not self._skip.get(digest):
            return False
        self._skip[digest] -= 1
        return True


class Scheduler(Protocol):
    """What the process and ``start()`` ask of the scheduler."""

    @property
    def codec(self) -> RequestCodec:
        """The codec of this spider's requests."""

    @property
    def locals(self) -> Locals:
        """Requests that cannot leave this process."""

    @property
    def wants_turn(self) -> bool:
        """Whether the engine should ask: there is something, or nothing any more."""

    @property
    def holds_back(self) -> bool:
        """Whether the engine has all the requests that it can start for now."""

    @property
    def is_low(self) -> bool:
        """Whether the master should know how far this process has come."""

    def granted(self, grant: Grant) -> None:
        """Take leases."""

    def recalled(self, recall: Recall) -> None:
        """Lower shares of hosts that another process waits for."""

    def give_back(self) -> None:
        """Release leases that were not started, and take no more."""


class Job(Protocol):
    """What the scheduler and ``start()`` ask of their process."""

    run: Run
    link: Link
    marks: InFlightTable
    gate: Gate
    tracker: Tracker
    sender: Sender
    leading: Leading
    items: ScrapedItems
    is_project: Callable[[str], bool]

    @property
    def crawl_settings(self) -> CrawlSettings:
        """The settings of the crawl; set when components are made."""

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler; set from its ``opens`` on."""

    @property
    def may_start(self) -> bool:
        """Whether a request may be given to Scrapy now."""

    @property
    def may_pull_start(self) -> bool:
        """Whether ``start()`` may be asked for its next element."""

    def progressed(self) -> None:
        """Tell the master soon how far this process has come, if that matters."""

    def opens(self, scheduler: Scheduler) -> None:
        """Note that the scheduler is open; the pipelines come next."""

    def engine_runs(self) -> None:
        """Note that requests from now on are not of ``spider_opened`` handlers."""

    async def end(self, reason: str) -> None:
        """Return when all that the spider gave is committed."""
