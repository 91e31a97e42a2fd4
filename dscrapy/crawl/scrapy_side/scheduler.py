"""Scrapy's scheduler in a crawl process: leases in, requests for the master out.

Scrapy calls the scheduler synchronously and has no public way to be told of new
requests. So the engine is woken wherever something may have changed, never left to its
heartbeat.
"""

import asyncio
import logging
from typing import Any

from scrapy import Request, Spider, signals
from scrapy.core.scheduler import BaseScheduler
from scrapy.crawler import Crawler
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.httpobj import urlparse_cached
from twisted.internet.defer import Deferred

from dscrapy.crawl.codec.pickles import Pickles
from dscrapy.crawl.codec.request_bodies import (
    RequestCodec,
    clean_text,
    wire_fingerprint,
)
from dscrapy.crawl.codec.shared_values import value_digest
from dscrapy.crawl.codec.tags import UndecodableError, UnencodableError, UnreadableError
from dscrapy.crawl.gate import gate_downloads
from dscrapy.crawl.insides.patches import mend_close
from dscrapy.crawl.insides.probes import wake
from dscrapy.crawl.outcomes import TEXT_CHARS_MAX
from dscrapy.crawl.outgoing.child_requests import Child
from dscrapy.crawl.outgoing.commit_parts import Work
from dscrapy.crawl.scrapy_side.crawl_settings import window
from dscrapy.crawl.scrapy_side.download_slots import Lease, SlotCapacity, Waiting
from dscrapy.crawl.scrapy_side.job import Job
from dscrapy.crawl.scrapy_side.local_requests import Locals
from dscrapy.crawl.scrapy_side.tracking import CURRENT, Hop
from dscrapy.messages import (
    DERIVED,
    DONT_FILTER,
    FINGERPRINT_BYTES,
    START_REQUEST,
    Grant,
    Recall,
    Release,
    Yielded,
)

_logger = logging.getLogger(__name__)

_NO_FINGERPRINT = bytes(FINGERPRINT_BYTES)
# The engine counts as holding back when it does so for as many turns of the event loop
# on end. Leases come many at a time, and Scrapy's engine is fed one by one: it would
# not hold back for requests that are done within fewer turns (``data:``).
HELD_BACK_TURNS = 5
# Priorities beyond this count as equal; messages hold numbers of 64 bits.
PRIORITY_MAX = 2**53
# Fingerprints of spider_idle handlers' requests that are remembered: a handler that
# asks for the same request at each idle would keep a job alive for ever. Far more than
# handlers ask for; beyond it all are forgotten.
IDLE_KNOWN_MAX = 100_000


class JobScheduler(BaseScheduler):
    """Gives out leases, and takes what the running work asks for."""

    def __init__(self, crawler: Crawler, job: Job) -> None:
        self._crawler = crawler
        self._job = job
        self._tracker = job.tracker
        self._inbox: Waiting[Lease] = Waiting()
        self._sequence = 0
        # Shares that are to be lowered, once no more requests are under way, and the
        # numbers of the recalls.
        self._owed: dict[str, tuple[int, int]] = {}
        # The last recall of each host, unless it was given a share since.
        self._recalls: dict[str, int] = {}
        self._idle_known: set[bytes] = set()
        self._is_closed = False
        self._window = window(crawler.settings.getint("CONCURRENT_REQUESTS"))
        # Whether the engine was seen to hold back and has not been short of requests
        # since; and whether a check of that is under way.
        self._is_busy = False
        self._is_checking = False
        pickles = Pickles(job.run.key if job.crawl_settings.pickles else b"")
        assert crawler.spider is not None
        self.codec = RequestCodec(crawler.spider, job.is_project, pickles)
        self._capacity = SlotCapacity(crawler, asyncio.get_running_loop().time)
        self.locals = Locals(
            crawler, job.tracker, job.run, job.link.send, lifo=job.crawl_settings.lifo
        )
        job.sender.when_answered(self.locals.answered)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "JobScheduler":
        """Return the scheduler of the crawler's job."""
        job: Job = crawler.job  # type: ignore[attr-defined]  # see JobCrawler
        return cls(crawler, job)

    @property
    def wants_turn(self) -> bool:
        """Whether the engine should ask: there is something, or nothing any more."""
        return bool(
            self._inbox or not self.locals.is_empty or self._tracker.is_finishing
        )

    # ---- Scrapy ---------------------------------------------------------------

    def open(self, spider: Spider) -> None:
        """Hook into the engine; the pipelines open next."""
        self._tracker.attach(self._crawler, self._capacity.arrived)
        # From here on the process hears of a close, for which it needs the scheduler.
        self._job.opens(self)
        mend_close(self._crawler)
        gate_downloads(self._crawler, self._job.gate, self._tracker.begins_download)
        connect = self._crawler.signals.connect
        tracker = self._tracker
        connect(tracker.reached_downloader, signals.request_reached_downloader)
        connect(tracker.left_downloader, signals.request_left_downloader)
        connect(self._yield_owed, signals.request_left_downloader)
        connect(tracker.response_received, signals.response_received)

    def close(self, reason: str) -> Deferred[None]:
        """Return when all is committed that the spider gave; then Scrapy closes on."""
        return deferred_from_coro(self._job.end(reason))

    def has_pending_requests(self) -> bool:
        """Return False once the master says that nothing is left."""
        self._tracker.leave()
        return not self._tracker.is_finishing

    def next_request(self) -> Request | None:
        """Return a request whose slot can send it now; its work is the running one."""
        request = None
        if self._job.may_start:
            request = self._next()
            if self._job.leading.is_pulling:
                self._note_answer(has_request=request is not None)
            if request is None and not self._inbox:
                self._job.sender.ask()
        if request is None:
            # Code that runs next in this context (spider_idle) belongs to no lease.
            self._tracker.leave()
        return request

    def enqueue_request(self, request: Request) -> bool:
        """Take a request for the running work.

        False for a duplicate that this process knows; the master filters the others.
        """
        hop = CURRENT.get()
        automatic = None if hop is None else hop.automatic_slot
        is_compared = self._job.crawl_settings.filters and not request.dont_filter
        fingerprint = self._fingerprint(request) if is_compared else None
        host = self._host_of(request, automatic)
        if fingerprint is not None and self._is_idle_duplicate(fingerprint):
            self._crawler.stats.inc_value("dupefilter/filtered")
            return False
        page = None if hop is None else hop.page
        try:
            encoded = self.codec.encode(request, automatic, page)
        except UnencodableError as error:
            return self.locals.keep(request, host, fingerprint, error)
        work = self._tracker.work_now()
        flags = 0 if is_compared else DONT_FILTER
        if hop is not None and hop.lease and hop.stage == "download":
            flags |= DERIVED
        if self._job.crawl_settings.start_is_apart and request.meta.get(
            "is_start_request"
        ):
            flags |= START_REQUEST
        if fingerprint is not None:
            work.child_fingerprints.add(fingerprint)
            if work.kind == "idle":
                self._remember_idle(fingerprint)
        # A bool is an int for Scrapy, not for a message; the body keeps the bool.
        priority = max(-PRIORITY_MAX, min(int(request.priority), PRIORITY_MAX))
        child = Child(
            fingerprint=fingerprint or _NO_FINGERPRINT,
            host=host,
            priority=priority,
            flags=flags,
            body=encoded.body,
            kind=encoded.kind,
            values=tuple(encoded.values),
        )
        work.add_child(child, encoded.values)
        self._tracker.grown(work)
        return True

    # ---- start() --------------------------------------------------------------

    @property
    def holds_back(self) -> bool:
        """Whether the engine has all the requests that it can start for now."""
        if not self._is_busy:
            self._check_soon()
        return self._is_busy

    def _note_answer(self, *, has_request: bool) -> None:
        """Note whether the engine got a request when it asked, while start() is
        consumed."""
        if not has_request:
            # Requests that wait here for room in their slots would in Scrapy wait in
            # the downloader, where its engine counts them.
            self._set_busy(bool(self._inbox))
        elif self._job.leading.is_waiting and not self._is_busy:
            self._check_soon()

    def _check_soon(self) -> None:
        if not self._is_checking:
            self._is_checking = True
            self._check_next_turn(HELD_BACK_TURNS)

    def _check_next_turn(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._check_engine, turns, context=self._tracker.context)

    def _check_engine(self, turns: int) -> None:
        engine = self._crawler.engine
        assert engine is not None
        holds_back = engine.needs_backout()
        if holds_back and turns:
            self._check_next_turn(turns - 1)
            return
        self._is_checking = False
        if holds_back:
            self._set_busy(True)

    def _set_busy(self, is_busy: bool) -> None:
        becomes_busy = is_busy and not self._is_busy
        self._is_busy = is_busy
        if becomes_busy:
            self._job.gate.changed()

    # ---- the link -------------------------------------------------------------

    def granted(self, grant: Grant) -> None:
        """Take leases; those that come while the spider closes are given back."""
        self._tracker.finish = 0
        if self._is_closed:
            self._release(list(grant.requests))
            return
        loop = asyncio.get_running_loop()
        for host, share in grant.shares.items():
            if share.recall >= self._recalls.get(host, 0):
                self._recalls.pop(host, None)
                self._owed.pop(host, None)
                self._capacity.set_share(host, share.count)
            if share.wait_s > 0:
                self._capacity.wait(host, share.wait_s)
                loop.call_later(
                    share.wait_s, wake, self._crawler, context=self._tracker.context
                )
        values = {value_digest(data): data for data in map(bytes, grant.values)}
        again = frozenset(grant.again)
        for number, place, body in zip(
            grant.requests, grant.host_of, grant.bodies, strict=True
        ):
            self._sequence += 1
            host = grant.hosts[place]
            lease = Lease(number, host, bytes(body), values, number in again)
            self._inbox.add(host, (0, self._sequence), lease)
        self._job.sender.answer()

    @property
    def is_low(self) -> bool:
        """Whether the master should know how far this process has come: fewer than half
        of the leases that it keeps ready are left."""
        return 2 * len(self._inbox) < max(self._window // 3, 1)

    def give_back(self) -> None:
        """Release leases that were not started, and take no more."""
        self._is_closed = True
        self._release([lease.request for lease in self._inbox.take_all()])

    def recalled(self, recall: Recall) -> None:
        """Lower shares of hosts that another process waits for; where nothing is to be
        left, release leases that were not started."""
        released: list[Lease] = []
        kept: dict[str, int] = {}
        for host, share in recall.hosts.items():
            self._recalls[host] = recall.number
            if not share:
                released += self._inbox.take_host(host)
            elif self._capacity.can_share(host):
                self._capacity.set_share(host, share)
                self._owed[host] = recall.number, share
            else:
                kept[host] = 0
        self._release([lease.request for lease in released])
        self._yield(recall.number, kept)
        self._yield_owed()

    def _yield_owed(self) -> None:
        """Say which shares are lowered: those of hosts where no more is under way."""
        for host, (recall, share) in list(self._owed.items()):
            if self._capacity.keeps_share(host):
                del self._owed[host]
                self._yield(recall, {host: share})

    def _yield(self, recall: int, hosts: dict[str, int]) -> None:
        if hosts:
            run = self._job.run
            self._job.link.send(
                Yielded(job=run.job, process=run.process, number=recall, hosts=hosts)
            )

    def _release(self, requests: list[int], unreadable: str = "") -> None:
        if not requests:
            return
        run = self._job.run
        release = Release(
            job=run.job,
            process=run.process,
            requests=tuple(requests),
            unreadable=unreadable,
        )
        self._job.link.send(release)

    # ---- requests -------------------------------------------------------------

    def _next(self) -> Request | None:
        local = self.locals.take(self._capacity.has_room)
        if local is not None:
            self._hand(local.hop)
            return local.request
        while self._inbox:
            lease = self._inbox.take(self._capacity.has_room)
            if lease is None:
                break
            request = self._begin(lease)
            if request is not None:
                return request
        return None

    def _begin(self, lease: Lease) -> Request | None:
        # Building the request may crash the process, and so may the middlewares that
        # have it first.
        self._job.marks.add(lease.request, "")
        self._job.marks.run(lease.request)
        try:
            request = self.codec.decode(lease.body, lease.values)
        except UnreadableError as error:
            why = clean_text(str(error))[:TEXT_CHARS_MAX]
            _logger.warning("Request %d cannot be read here: %s", lease.request, why)
            self._crawler.stats.inc_value("dscrapy/requests_passed_on")
            self._job.marks.remove(lease.request)
            self._release([lease.request], why)
            return None
        except UndecodableError as error:
            work = self._tracker.begin(Work("page", request=lease.request))
            hop = Hop(work, lease.host)
            # The project changed under a running job, or no process of the job has
            # written this body.
            CURRENT.set(hop)
            _logger.error("Request %d cannot be read: %s", lease.request, error)
            self._crawler.stats.inc_value("dscrapy/undecodable_requests")
            CURRENT.set(None)
            self._tracker.release(work)
            return None
        work = self._tracker.begin(Work("page", request=lease.request))
        work.again = lease.again
        hop = Hop(work, lease.host, lease.request)
        self._job.marks.add(lease.request, request.url)
        self._job.sender.progress.start(lease.request)
        self._job.progressed()
        if "download_slot" not in request.meta:
            hop.automatic_slot = lease.host
        self._hand(hop)
        self._tracker.enter(request, hop)
        return request

    def _hand(self, hop: Hop) -> None:
        hop.is_handed = True
        self._capacity.hand(hop.host)

    def _fingerprint(self, request: Request) -> bytes:
        return wire_fingerprint(
            self._crawler.request_fingerprinter.fingerprint(request)
        )

    def _host_of(self, request: Request, automatic: str | None) -> str:
        slot: Any = request.meta.get("download_slot")
        if slot is not None and slot != automatic:
            return clean_text(str(slot))
        return urlparse_cached(request).hostname or ""

    def _is_idle_duplicate(self, fingerprint: bytes) -> bool:
        return (
            fingerprint in self._idle_known
            and self._tracker.finish > 0
            and self._tracker.current() is None
        )

    def _remember_idle(self, fingerprint: bytes) -> None:
        if len(self._idle_known) >= IDLE_KNOWN_MAX:
            self._idle_known.clear()
        self._idle_known.add(fingerprint)
