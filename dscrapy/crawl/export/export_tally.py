"""How many files of each feed an export process has written, and items in them.

Scrapy's exporter sends a signal when it is done with a file. That the storage failed is
only in the log and the stats, so the storages' classes are wrapped.
"""

import os
from collections.abc import Iterable
from typing import Any

from msgspec import structs
from scrapy.extensions.feedexport import FeedSlot, FileFeedStorage
from scrapy.utils.defer import ensure_awaitable

from dscrapy.model import FeedFiles
from dscrapy.text import without_password


class Written:
    """Counts by feed; ``note`` is a handler of ``feed_slot_closed``."""

    def __init__(self) -> None:
        self._feeds: dict[str, FeedFiles | None] = {}

    def begin(self, templates: Iterable[str]) -> None:
        """Learn the names of the feeds in the settings, in their order."""
        self._feeds = {without_password(template): None for template in templates}

    def take_up(self, before: FeedFiles) -> None:
        """Go on behind what earlier processes have written of a feed."""
        self._feeds[before.feed] = before

    def note(self, slot: FeedSlot) -> None:
        """Count a file that the exporter is done with."""
        feed, place = without_password(slot.uri_template), _place_of(slot)
        files = self._feeds.get(feed) or FeedFiles(feed=feed, first=place, last=place)
        if getattr(slot.storage, "has_failed", False):
            files = structs.replace(files, failed=files.failed + 1)
        else:
            items = files.items + slot.itemcount
            files = structs.replace(files, files=files.files + 1, items=items)
        self._feeds[feed] = structs.replace(files, last=place)

    def of(self, template: str) -> FeedFiles | None:
        """Return what is written of the feed of this name in the settings."""
        return self._feeds.get(without_password(template))

    def all(self) -> tuple[FeedFiles, ...]:
        """Return what is written of each feed that has something."""
        return tuple(files for files in self._feeds.values() if files is not None)


def watched(storage: Any) -> Any:
    """Return a class like this storage, the project's or Scrapy's, whose instances say
    whether they ``has_failed`` to store a file."""
    if not isinstance(storage, type):
        return storage
    base: type[Any] = storage

    class Watched(base):  # type: ignore[misc]  # a base of run time
        has_failed = False

        async def store(self, file: Any) -> None:
            # An error of any kind leaves this set.
            self.has_failed = True
            await ensure_awaitable(super().store(file))
            self.has_failed = False

    # Scrapy counts what was stored by the name of the class.
    Watched.__name__ = base.__name__
    Watched.__qualname__ = base.__qualname__
    return Watched


def _place_of(slot: FeedSlot) -> str:
    storage = slot.storage
    if isinstance(storage, FileFeedStorage):
        return os.path.abspath(storage.path)
    return without_password(slot.uri)
