"""``start()`` in the process that leads, and in no other.

The outermost spider middleware consumes ``start()`` as Scrapy's engine does, element by
element, each a unit of its own: while the engine holds back, as fast as elements come,
up to the master's bound; else no further ahead than could be started now. Elements that
an earlier leader has committed are skipped by digest.
In other processes the middleware waits, so that no line of ``start()`` runs and the
spider is never idle.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider

from dscrapy.crawl.codec.request_bodies import short_digest
from dscrapy.crawl.insides.probes import closes_from_start
from dscrapy.crawl.outcomes import describe, outcome_of
from dscrapy.crawl.outgoing.commit_parts import Work
from dscrapy.crawl.scrapy_side.job import Job
from dscrapy.crawl.scrapy_side.tracking import CURRENT, Hop

# Elements skipped in one turn of the event loop, which has to answer probes: some ms of
# a start() that never awaits.
SKIPS_PER_TURN = 100


class StartMiddleware:
    """The spider middleware; only ``process_start`` is ours."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tracker = job.tracker
        self._count = 0
        # Unanswered units of items: they take no place of a request.
        self._items: set[Work] = set()
        job.sender.when_answered(self._items.discard)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "StartMiddleware":
        """Return the middleware of the crawler's job."""
        return cls(crawler.job)  # type: ignore[attr-defined]  # see JobCrawler

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the new elements of ``start()``, if this process leads."""
        job, leading = self._job, self._job.leading
        job.engine_runs()
        await job.gate.wait_until(lambda: leading.lead is not None)
        assert leading.lead is not None
        if not leading.lead.start:
            return
        leading.is_pulling = True
        skipped = 0
        while True:
            if not self._may_pull():
                await self._wait_to_pull()
            self._tracker.leave()
            try:
                element = await anext(start)
            except StopAsyncIteration:
                break
            except Exception as error:
                # CloseSpider closes the job: start() is not over, another leader that
                # goes on with the job runs it again.
                if not (isinstance(error, CloseSpider) and closes_from_start()):
                    await self._exhausted(error)
                raise
            digest = self._digest(element)
            if not leading.skips(digest):
                self._count += 1
                work = self._begin(element, digest)
                yield element
                CURRENT.set(None)
                # Scrapy has taken the request, or dropped it; an item has its own hold.
                self._tracker.release(work)
                # Let answers come in before the next element is asked for.
                await asyncio.sleep(0)
                continue
            skipped += 1
            if skipped % SKIPS_PER_TURN == 0:
                await asyncio.sleep(0)
        await self._exhausted(None)

    def _may_pull(self) -> bool:
        """Whether ``start()`` may be asked for its next element."""
        job, leading = self._job, self._job.leading
        if not job.may_pull_start or self._count >= leading.upto:
            return False
        is_free = self._count - len(self._items) < leading.upto_free
        return is_free or job.scheduler.holds_back

    async def _wait_to_pull(self) -> None:
        job, leading = self._job, self._job.leading
        leading.is_waiting = True
        if not self._tracker.in_flight:
            # The master allows more when it has the commits that have gathered.
            job.sender.flush()
        try:
            await job.gate.wait_until(self._may_pull)
        finally:
            leading.is_waiting = False

    def _begin(self, element: Any, digest: bytes) -> Work:
        work = self._tracker.begin(Work("start", digest=digest))
        self._tracker.open_starts += 1
        hop = Hop(work)
        hop.stage = "scraped"
        if not isinstance(element, Request):
            self._tracker.hold(work)
            self._items.add(work)
            hop.element = element
            hop.holds_item = True
        # A generator runs in the context of its consumer, the engine's task.
        CURRENT.set(hop)
        return work

    async def _exhausted(self, error: Exception | None) -> None:
        """Commit that ``start()`` is over, after all its units, since a later leader
        does not run it again."""
        self._job.leading.is_pulling = False
        await self._job.gate.wait_until(lambda: self._tracker.open_starts == 0)
        end = None
        if error is not None:
            end = outcome_of("start_error", f"start() raised {describe(error)}", error)
        work = self._tracker.begin(Work("started", end=end))
        self._tracker.release(work)

    def _digest(self, element: Any) -> bytes:
        if isinstance(element, Request):
            return self._job.scheduler.codec.digest(element)
        # For an element that is no item Scrapy logs an error.
        try:
            encoded = self._job.items.encoder.encode(element)
        except TypeError:
            return short_digest(repr(element).encode(errors="replace"))
        return short_digest(encoded.line + (encoded.tagged or b""))
