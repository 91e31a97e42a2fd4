"""Pages that end the process they are parsed in."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy.http import Response

from .base import SiteSpider, links, number_of

# What is taken at a time when the memory is to run out; less than any limit.
PIECE_BYTES = 8 * 1024 * 1024


class DeadlySpider(SiteSpider):
    """A hub's links, each an item of two parts; ``deaths`` end the process between.

    ``deaths`` is "HOW:NUMBER,...": what happens at which page. With ``flags``, a
    folder, each happens once; without it each time. "flood" is a response that takes
    all memory before there is anything to parse, each time.
    """

    name = "deadly"

    def __init__(
        self, count: str = "100", deaths: str = "", flags: str = "", **kwargs: Any
    ):
        super().__init__(**kwargs)
        pairs = [one.split(":") for one in deaths.split(",") if one]
        self.deaths = {int(number): how for how, number in pairs}
        self.flags = flags
        self.start_urls = [self.at(f"hub/{count}")]

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Follow."""
        for link in links(response):
            meta = {}
            if self.deaths.get(number_of(link)) == "flood":
                link = self.at(f"flood/{number_of(link)}")
                meta = {"download_maxsize": 0}
            yield scrapy.Request(link, self.parse_leaf, meta=meta)

    def parse_leaf(self, response: Response) -> Iterator[Any]:
        """Give the page's two items; what dies has given one of them."""
        number = number_of(response.url)
        yield self.leaf(response, part=1)
        if number in self.deaths and self.is_due(number):
            self.logger.warning("%s at page %d", self.deaths[number], number)
            die(self.deaths[number])
        yield self.leaf(response, part=2)

    def is_due(self, number: int) -> bool:
        """Whether this page ends its process now."""
        if not self.flags:
            return True
        try:
            (Path(self.flags) / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def die(how: str) -> None:
    """End this process."""
    match how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "memory":
            held = []
            while True:
                # Written to, or the kernel would only promise it.
                held.append(b"x" * PIECE_BYTES)
    raise ValueError(how)
