"""Whether requests may start, and a way to wait for changes.

While they may not, the scheduler gives no request to the engine, the downloader's
handlers wait (so requests that are in a download slot already and downloads of
callbacks wait too), and ``start()`` is not pulled.
"""

import asyncio
from collections.abc import Callable

from scrapy import Request
from scrapy.crawler import Crawler

from dscrapy.crawl.insides.probes import Ended, hold_downloads


class Gate:
    """Closed after ``valid_until``, an instant of ``clock`` (CLOCK_BOOTTIME)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiters: set[asyncio.Future[None]] = set()
        self.valid_until: float | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the master may still count on this process."""
        return self.valid_until is None or self._clock() <= self.valid_until

    def changed(self) -> None:
        """Let waiting callers check their conditions again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; ``changed`` has it checked again."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)


def gate_downloads(
    crawler: Crawler, gate: Gate, begins: Callable[[Request], Ended]
) -> None:
    """Let the downloader's handlers wait while the gate is closed; ``begins`` hears of
    each download."""
    hold_downloads(crawler, lambda: gate.wait_until(lambda: gate.is_valid), begins)
