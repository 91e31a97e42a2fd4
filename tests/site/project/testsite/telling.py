"""Components that log what passes them, for tests that ask what has begun."""

import logging

from scrapy import Request
from scrapy.core.downloader.handlers.http11 import HTTP11DownloadHandler
from scrapy.core.engine import ExecutionEngine
from scrapy.crawler import Crawler
from scrapy.http import Response

logger = logging.getLogger(__name__)


class Handler(HTTP11DownloadHandler):
    """Says that a request starts."""

    async def download_request(self, request: Request) -> Response:
        """Download it."""
        logger.info("starts %s", request.url)
        return await super().download_request(request)


class Middleware:
    """Says that a request has left the scheduler."""

    def process_request(self, request: Request) -> None:
        """Let it through."""
        logger.info("leaves %s", request.url)


class Unwoken:
    """An extension with which the engine never looks for requests by itself."""

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> "Unwoken":
        """Stop the engine's heartbeat, which is not started yet."""
        ExecutionEngine._SLOT_HEARTBEAT_INTERVAL = 1e6
        return cls()
