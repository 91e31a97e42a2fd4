"""Local requests: no other process could read them, so they never leave this one.

A local request belongs to the lease or unit of the code that asked for it. The commit
of that work waits for the request and holds what it gave, so all of a work's local
requests are done again when the process dies. There may be any number. Their items and
requests are sent in parts as those of any page are (``commit_parts``). In memory stay
the requests that wait here, as in Scrapy's own queue, and the fingerprints of all that
a work has asked for, as in Scrapy's own filter.

A local request is compared with the requests of works that are open or unanswered here
and, by asking the master, with those committed. Two processes that do the same request
at the same time do not know of each other.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from scrapy import Request, signals
from scrapy.crawler import Crawler

from dscrapy.crawl.codec.tags import UnencodableError
from dscrapy.crawl.outgoing.commit_parts import Work
from dscrapy.crawl.scrapy_side.download_slots import Waiting
from dscrapy.crawl.scrapy_side.tracking import CURRENT, Hop, Tracker
from dscrapy.messages import Message, Offer, Offered, Run

_logger = logging.getLogger(__name__)


class Local(NamedTuple):
    """A local request; without a fingerprint it is not compared with others."""

    request: Request
    hop: Hop
    fingerprint: bytes | None


class Locals:
    """Holds local requests until they may start."""

    def __init__(
        self,
        crawler: Crawler,
        tracker: Tracker,
        run: Run,
        send: Callable[[Message], None],
        *,
        lifo: bool,
    ) -> None:
        self._crawler = crawler
        self._tracker = tracker
        self._run = run
        self._send = send
        self._step = -1 if lifo else 1
        self._sequence = 0
        self._waiting: Waiting[Local] = Waiting()
        # Fingerprints that each work has asked for, until the work is answered.
        self._fingerprints: dict[Work, set[bytes]] = {}
        self._of_openers: list[Local] = []
        self._unoffered: list[Local] = []
        self._offers: dict[int, list[Local]] = {}
        self._last_offer = 0
        self._has_warned = False
        self._settle_unstarted: Callable[[Work], None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no request waits here."""
        return not (
            self._waiting or self._of_openers or self._unoffered or self._offers
        )

    def keep(
        self, request: Request, host: str, fingerprint: bytes | None, why: Exception
    ) -> bool:
        """Take a request for the running work; False if it is a duplicate.

        ``why`` is the error for which no other process can read it.
        """
        stats = self._crawler.stats
        stats.inc_value("scheduler/unserializable")
        self._warn(request, why)
        if fingerprint is not None and self._is_open(fingerprint):
            stats.inc_value("dupefilter/filtered")
            return False
        work = self._tracker.work_now()
        if fingerprint is not None:
            self._fingerprints.setdefault(work, set()).add(fingerprint)
        work.local_count += 1
        if self._settle_unstarted is not None:
            self._settle_unstarted(work)
            return True
        self._tracker.hold(work)
        local = Local(request, Hop(work, host), fingerprint)
        if work is self._tracker.opened:
            self._of_openers.append(local)
        else:
            self._ask(local)
        return True

    def begin_opened(self, *, is_wanted: bool) -> None:
        """Start or forget what handlers of ``spider_opened`` asked for."""
        locals_, self._of_openers = self._of_openers, []
        for local in locals_:
            if is_wanted:
                self._ask(local)
            else:
                self._tracker.release(local.hop.work)

    def offered(self, answer: Offered) -> None:
        """Take the master's answer to an offer."""
        locals_ = self._offers.pop(answer.number, [])
        for local, is_seen in zip(locals_, answer.seen, strict=True):
            if is_seen:
                self._drop_duplicate(local)
            else:
                self._accept(local)

    def take(self, has_room: Callable[[str], bool]) -> Local | None:
        """Return the next request that may start, entered into the tracker."""
        local = self._waiting.take(has_room) if self._waiting else None
        if local is not None:
            if "download_slot" not in local.request.meta:
                local.hop.automatic_slot = local.hop.host
            self._tracker.enter(local.request, local.hop)
            self._crawler.stats.inc_value("scheduler/dequeued")
            self._crawler.stats.inc_value("scheduler/dequeued/memory")
        return local

    def close(self, *, abandon: bool) -> None:
        """Start no more local requests: their works are committed without them or,
        with ``abandon``, never."""
        if self._settle_unstarted is not None:
            return
        self._settle_unstarted = self._tracker.abandon if abandon else _do_without
        unstarted = [*self._waiting.take_all(), *self._of_openers, *self._unoffered]
        for offer in self._offers.values():
            unstarted += offer
        self._of_openers, self._unoffered, self._offers = [], [], {}
        for local in unstarted:
            self._settle_unstarted(local.hop.work)
            self._tracker.release(local.hop.work)

    def answered(self, work: Work) -> None:
        """Forget the fingerprints of a committed work: the master has them."""
        self._fingerprints.pop(work, None)

    def _is_open(self, fingerprint: bytes) -> bool:
        return any(
            fingerprint in asked_for for asked_for in self._fingerprints.values()
        ) or any(fingerprint in work.child_fingerprints for work in self._tracker.works)

    def _ask(self, local: Local) -> None:
        if local.fingerprint is None:
            self._accept(local)
            return
        if not self._unoffered:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._send_offer, context=self._tracker.context)
        self._unoffered.append(local)

    def _send_offer(self) -> None:
        if not self._unoffered:
            return
        self._last_offer += 1
        self._offers[self._last_offer] = self._unoffered
        fingerprints = b"".join(local.fingerprint or b"" for local in self._unoffered)
        self._unoffered = []
        self._send(
            Offer(
                job=self._run.job,
                process=self._run.process,
                number=self._last_offer,
                fingerprints=fingerprints,
            )
        )

    def _accept(self, local: Local) -> None:
        if local.fingerprint is not None:
            local.hop.work.add_seen(local.fingerprint)
            self._tracker.grown(local.hop.work)
        self._count(local, "scheduler/enqueued", "scheduler/enqueued/memory")
        self._sequence += self._step
        order = (-local.request.priority, self._sequence)
        self._waiting.add(local.hop.host, order, local)

    def _drop_duplicate(self, local: Local) -> None:
        self._count(local, "dupefilter/filtered")
        self._crawler.signals.send_catch_log(
            signals.request_dropped, request=local.request, spider=self._crawler.spider
        )
        self._tracker.release(local.hop.work)

    def _count(self, local: Local, *keys: str) -> None:
        token = CURRENT.set(local.hop)
        try:
            for key in keys:
                self._crawler.stats.inc_value(key)
        finally:
            CURRENT.reset(token)

    def _warn(self, request: Request, why: Any) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        kind = "" if isinstance(why, UnencodableError) else f"{type(why).__name__}: "
        _logger.warning(
            "%s cannot leave this process (%s%s): it is done as part of the page that "
            "asked for it (no further warning, scheduler/unserializable counts)",
            request,
            kind,
            why,
        )


def _do_without(work: Work) -> None:
    """Let a work be committed without the requests that were not started."""
