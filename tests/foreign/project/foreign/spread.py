"""Several hosts out of one server, so that several processes share a site."""

import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from scrapy import Request
from scrapy.http import Response

HOSTS = 3


def host_of(path: str) -> str:
    """Return the host that is this path's, always the same."""
    return f"127.0.0.{1 + zlib.crc32(path.encode()) % HOSTS}"


class Spread:
    """A spider middleware: links of a page lead to all hosts, not to its own alone."""

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Yield the same, with requests to the server on their paths' hosts."""
        async for one in result:
            yield _spread(one) if isinstance(one, Request) else one


def _spread(request: Request) -> Request:
    parts = urlsplit(request.url)
    if not (parts.hostname or "").startswith("127.0.0."):
        return request
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    place = f"{host_of(path)}:{parts.port}"
    return request.replace(url=parts._replace(netloc=place).geturl())
