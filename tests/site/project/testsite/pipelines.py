"""Pipelines that change and drop items."""

from typing import Any

from itemadapter import ItemAdapter
from scrapy.exceptions import DropItem


class Rounding:
    """Changes prices, drops what asks for it, fails where it is told to."""

    def process_item(self, item: Any) -> Any:
        """Return the changed item."""
        adapter = ItemAdapter(item)
        if adapter.get("drop"):
            raise DropItem("it asked for it")
        if adapter.get("fail"):
            raise ValueError("it asked for it")
        if isinstance(item, dict) and "price" in item:
            item["price"] = round(float(item["price"]), 1)
        return item
