"""Starts at what the list ``tree:start_urls`` holds."""

from scrapy_redis.spiders import (  # type: ignore[import-not-found]  # in an environment of its own
    RedisSpider,
)

from ..pages import Pages


class TreeSpider(Pages, RedisSpider):  # type: ignore[misc]  # its base is unknown here
    """As its manual writes it; a process that finds nothing waits for more."""

    name = "tree"
