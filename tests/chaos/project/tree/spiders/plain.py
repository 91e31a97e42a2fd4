"""Starts at the root."""

from typing import Any

import scrapy

from ..pages import Pages


class TreeSpider(Pages, scrapy.Spider):
    """As anybody writes it."""

    name = "tree"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start_urls = [self.page(0)]
