"""What happened in a crawl, as lines of JSON in the file of the setting ``RECORD``."""

import json
import os
from typing import Any
from urllib.parse import urlsplit

from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler
from scrapy.http import Response
from twisted.python.failure import Failure


class Recorder:
    """An extension; several processes write to one file, each line at once."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags, 0o600)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "Recorder":
        """Return the recorder of the crawler's file."""
        recorder = cls(crawler.settings["RECORD"])
        for signal, handler in (
            (signals.request_reached_downloader, recorder.sent),
            (signals.response_received, recorder.received),
            (signals.spider_error, recorder.raised),
            (signals.item_scraped, recorder.scraped),
            (signals.item_dropped, recorder.dropped),
            (signals.item_error, recorder.failed),
        ):
            crawler.signals.connect(handler, signal=signal)
        return recorder

    def _write(self, *words: Any) -> None:
        os.write(self._file, json.dumps([os.getpid(), *words]).encode() + b"\n")

    def sent(self, request: Request) -> None:
        """Record a request on its way out."""
        self._write("sent", request.method, _place(request.url))

    def received(self, response: Response, request: Request) -> None:
        """Record a response."""
        self._write("received", response.status, _place(response.url))

    def raised(self, failure: Failure, spider: Spider) -> None:
        """Record an error of the spider's."""
        self._write("raised", failure.type.__name__ if failure.type else "")

    def scraped(self, item: Any) -> None:
        """Record an item."""
        self._write("scraped", type(item).__name__)

    def dropped(self, item: Any) -> None:
        """Record a dropped item."""
        self._write("dropped", type(item).__name__)

    def failed(self, item: Any) -> None:
        """Record an item on which a pipeline raised."""
        self._write("failed", type(item).__name__)


def _place(url: str) -> str:
    """Return the URL without its host and port, which differ from run to run."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
