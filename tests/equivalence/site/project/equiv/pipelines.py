"""Pipelines that wait, change, replace, drop, raise and fetch files."""

import asyncio
from typing import Any

from itemadapter import ItemAdapter
from scrapy.exceptions import DropItem
from scrapy.pipelines.files import FilesPipeline


class Waiting:
    """Lets other things happen before it changes the item."""

    async def process_item(self, item: Any) -> Any:
        """Return the item with a mark."""
        await asyncio.sleep(0.01)
        ItemAdapter(item)["waited"] = True
        return item


class Checks:
    """Does with the item what its number says."""

    def process_item(self, item: Any) -> Any:
        """Return the item or another one, drop it, or raise."""
        match item["number"] % 5:
            case 1:
                raise DropItem("one too many")
            case 2:
                raise ValueError("this pipeline fails")
            case 3:
                return {"instead": item["number"], "url": item["url"]}
        return item


class Tidy:
    """Leaves of a file what does not depend on who fetched it first."""

    def process_item(self, item: Any) -> Any:
        """Return the item with paths and checksums alone."""
        item["files"] = sorted([one["path"], one["checksum"]] for one in item["files"])
        return item


class Files(FilesPipeline):
    """Scrapy's own; FILES_STORE is given with the run."""
