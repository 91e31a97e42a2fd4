"""``start()`` in the process that leads, and in no other.

The outermost spider middleware consumes what ``start()`` gives, element by element,
each a unit of its own, as Scrapy's engine does: while it holds back, as fast as they
come, up to the master's bound; else no further ahead than what could be started now.
What an earlier leader has committed is skipped by digest.
Elsewhere the middleware waits, so that no line of ``start()`` runs and the spider is
never idle.
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

# Skipped elements between two turns of the event loop, which has probes to answer:
# some ms of a start() that never awaits.
SKIPS_PER_TURN = 100


class StartMiddleware:
    """The spider middleware; only ``process_start`` is ours."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tracker = job.tracker
        self._count = 0
        # Items among them whose units are not answered: they take nobody's place.
        self._items: set[Work] = set()
        job.sender.when_answered(self._items.discard)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "StartMiddleware":
        """Return the middleware of the crawler's job."""
        return cls(crawler.job)  # type: ignore[attr-defined]  # see JobCrawler

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield what is new of ``start()``, if this process leads."""
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
            try:
                element = await anext(start)
            except StopAsyncIteration:
                break
            except Exception as error:
                # Where the job closes, whoever goes on with it runs start() again.
                if not (isinstance(error, CloseSpider) and closes_from_start()):
                    await self._exhausted(error)
                raise
            digest = self._digest(element)
            if not leading.skips(digest):
                self._count += 1
                work = self._begin(element, digest)
                yield element
                CURRENT.set(None)
                # Scrapy has taken the request up, or dropped it; an item is held apart.
                self._tracker.release(work)
                # What has been sent may be answered before the next one is asked for.
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
            # More is allowed when what there is has been committed.
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
        # A generator runs in the context of whoever consumes it: the engine's task.
        CURRENT.set(hop)
        return work

    async def _exhausted(self, error: Exception | None) -> None:
        """Say so after all units: a later leader will not look for them."""
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
        # What is no item fails in Scrapy, where that is told.
        try:
            encoded = self._job.items.encoder.encode(element)
        except TypeError:
            return short_digest(repr(element).encode(errors="replace"))
        return short_digest(encoded.line + (encoded.tagged or b""))
