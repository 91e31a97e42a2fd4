"""A job's items from a place on, read from the master."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal

from dscrapy.crawl.export.batches import Place
from dscrapy.lines import LineCutter

# Returns bytes of a file from an offset on, none at its end.
Fetch = Callable[[Literal["items", "tagged"], int], Awaitable[bytes]]


class FeedItems:
    """Lines and tagged forms in turn; ``place`` is behind what was taken last."""

    def __init__(self, fetch: Fetch, place: Place) -> None:
        self.place = place
        self._lines = _Lines(fetch, "items", place.items_at)
        self._forms = _Lines(fetch, "tagged", place.tagged_at)

    async def next(self) -> tuple[bytes, bytes] | None:
        """Return the next line and its form, without their ends; None at the end."""
        line = await self._lines.next()
        if line is None:
            return None
        form = await self._forms.next()
        if form is None:
            raise RuntimeError("an item without its tagged form")
        at = self.place
        self.place = Place(
            at.item + 1, at.items_at + len(line) + 1, at.tagged_at + len(form) + 1
        )
        return line, form


class _Lines:
    """The lines of one file, fetched piece by piece."""

    def __init__(
        self, fetch: Fetch, file: Literal["items", "tagged"], offset: int
    ) -> None:
        self._fetch = fetch
        self._file: Literal["items", "tagged"] = file
        self._offset = offset
        self._lines: deque[bytes] = deque()
        self._cutter = LineCutter()

    async def next(self) -> bytes | None:
        """Return the next line without its end, None behind the last one."""
        while not self._lines:
            data = await self._fetch(self._file, self._offset)
            if not data:
                return None
            self._offset += len(data)
            self._lines.extend(self._cutter.feed(data))
        return self._lines.popleft()
