"""Whether requests may start, and the places in Scrapy that ask.

Three places ask: the scheduler gives nothing out, the downloader's handlers wait
(requests that wait there for a delay or an inline download start no earlier), and
``start()`` is not pulled. Scrapy has no public way to wake its engine, so waking it
touches ``engine._slot.nextcall``; ``check_engine`` says so when that is gone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import scrapy
from scrapy import Request, Spider
from scrapy.crawler import Crawler


class UnsupportedError(Exception):
    """This project or this Scrapy cannot be run here; the text says why."""


class Gate:
    """Open unless held, out of validity or out of credit.

    ``clock`` is CLOCK_BOOTTIME, the clock of ``Valid.until``.
    """

    def __init__(
        self, clock: Callable[[], float], has_credit: Callable[[], bool]
    ) -> None:
        self._clock = clock
        self._has_credit = has_credit
        self._crawler: Crawler | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self.is_held = False
        self.is_stopping = False
        self.valid_until: float | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the master may still count on this process."""
        return self.valid_until is None or self._clock() <= self.valid_until

    @property
    def is_open(self) -> bool:
        """Whether a new request may be taken from the scheduler."""
        return not self.is_held and self._has_credit() and self.is_valid

    @property
    def may_download(self) -> bool:
        """Whether a request that Scrapy has already taken up may go out.

        A stop waits for those, so it lets them pass a hold; nothing passes the
        end of validity.
        """
        return (not self.is_held or self.is_stopping) and self.is_valid

    def attach(self, crawler: Crawler) -> None:
        """Wake this crawler's engine from now on."""
        self._crawler = crawler

    def changed(self) -> None:
        """Look again: called after every change of what the gate depends on."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.is_open and self._crawler is not None:
            wake(self._crawler)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is looked at when the gate changes."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)


def wake(crawler: Crawler) -> None:
    """Let the engine ask its scheduler now, not at its next heartbeat (5 s)."""
    engine = getattr(crawler, "_engine", None)
    slot = getattr(engine, "_slot", None)
    # No slot: the spider is not open yet, or closed; the engine asks by itself.
    if slot is not None and slot.closing is None:
        slot.nextcall.schedule()


def check_engine(crawler: Crawler) -> None:
    """Raise ``UnsupportedError`` unless the engine has what ``wake`` uses."""
    slot = getattr(crawler.engine, "_slot", None)
    schedule = getattr(getattr(slot, "nextcall", None), "schedule", None)
    if getattr(crawler, "_engine", None) is None or not callable(schedule):
        raise UnsupportedError(
            f"Scrapy {scrapy.__version__} is not supported: its engine cannot be "
            "woken; install the Scrapy that dscrapy asks for"
        )


def gated_scheduler(base: type[Any], gate: Gate, crawler: Crawler) -> type[Any]:
    """Return a subclass of the project's scheduler that a closed gate silences.

    ``has_pending_requests`` stays as it is, so a closed gate never looks like the
    end of the crawl.
    """

    class GatedScheduler(base):  # type: ignore[misc]  # a base of run time
        def open(self, spider: Spider) -> Any:
            check_engine(crawler)
            _gate_downloader(crawler, gate)
            gate.attach(crawler)
            return super().open(spider) if hasattr(base, "open") else None

        def next_request(self) -> Request | None:
            if not gate.is_open:
                return None
            request: Request | None = super().next_request()
            return request

    return GatedScheduler


def _gate_downloader(crawler: Crawler, gate: Gate) -> None:
    # A downloader of the project's own may keep its handlers elsewhere; then the
    # scheduler alone is gated.
    handlers = getattr(crawler.engine.downloader, "handlers", None)
    download = getattr(handlers, "download_request_async", None)
    if handlers is None or download is None:
        return

    async def gated_download(request: Request) -> Any:
        await gate.wait_until(lambda: gate.may_download)
        return await download(request)

    handlers.download_request_async = gated_download


def gated_start(gate: Gate) -> type[Any]:
    """Return a spider middleware that leaves ``start()`` alone while closed."""

    class GatedStart:
        async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
            await gate.wait_until(lambda: gate.is_open)
            async for element in start:
                yield element
                await gate.wait_until(lambda: gate.is_open)

    return GatedStart
