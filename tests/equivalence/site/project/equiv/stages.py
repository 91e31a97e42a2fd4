"""Tells a campaign of kills where this process stands, and waits for its answer.

The spider argument ``stages`` is the path of a UNIX socket; without it nothing here
is in force. The line is ``STAGE PID RUN``. The answer is one byte; the process stands
still until then, so whoever listens can kill at exactly this stage.
"""

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, Self

from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured
from scrapy.http import Response


class Stage:
    """Common to all: a connection of its own, or not configured."""

    def __init__(self, crawler: Crawler) -> None:
        path = str(getattr(crawler.spider, "stages", ""))
        if not path:
            raise NotConfigured
        self._run = crawler.settings["USER_AGENT"]
        self._sock: socket.socket | None = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            self._sock.connect(path)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Make it; raises ``NotConfigured`` when nobody listens."""
        return cls(crawler)

    def tell(self, stage: str) -> None:
        """Say it and stand still until the answer; nothing once nobody listens."""
        if self._sock is None:
            return
        try:
            self._sock.sendall(f"{stage} {os.getpid()} {self._run}\n".encode())
            if self._sock.recv(1):
                return
        except OSError:
            pass
        self._sock.close()
        self._sock = None


class CallbackStage(Stage):
    """Within ``start()``, and within a callback that has given something."""

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Tell before each element of ``start()``."""
        async for one in start:
            self.tell("start")
            yield one

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Tell at the first thing that a callback gives; others wait in it."""
        told = False
        async for one in result:
            if not told:
                told = True
                self.tell("callback")
            yield one


class PipelineStage(Stage):
    """Within the pipelines: an item has come, and the spider has closed."""

    def process_item(self, item: Any) -> Any:
        """Tell; many items of one page tell once in a hundred."""
        self._items = getattr(self, "_items", -1) + 1
        if self._items % 100 in range(5):
            self.tell("pipeline")
        return item

    def close_spider(self) -> None:
        """Tell that the process is at its end."""
        self.tell("finish")


class IdleStage(Stage):
    """Within ``spider_idle``, after the spider's own handlers."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        crawler.signals.connect(self._idle, signal=signals.spider_idle)

    def _idle(self) -> None:
        self.tell("idle")
