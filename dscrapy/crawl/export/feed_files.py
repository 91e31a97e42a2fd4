"""Local files of feeds: they change whole, and a repeat after a kill doubles nothing.

Scrapy's exporters write to a part beside the target. When a feed is complete, the
master is told how long the target is (-1: there is none), and only then the part takes
its place, or is appended. A process that tries again learns that length: bytes behind
it that begin as the part does are of the earlier try. Others' bytes are never removed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.extensions.feedexport import FileFeedStorage

from dscrapy.crawl.export.file_writes import (
    PartFile,
    append_part,
    close_part,
    length_of,
    open_part,
    replace,
    takes_at_once,
    target_of,
)

_logger = logging.getLogger(__name__)

# The length in ``Feeds`` of a file that is not there.
NO_FILE = -1

# Reports lengths to the master and returns those first reported.
Ask = Callable[[dict[str, int]], Awaitable[dict[str, int]]]


class FeedFiles:
    """The files that one export process writes for ``job``.

    ``came_to_end`` is of the crawl: then files that earlier tries wrote under other
    names are removed.
    """

    def __init__(self, job: str, ask: Ask, *, came_to_end: bool) -> None:
        self._job = job
        self._ask = ask
        self._came_to_end = came_to_end
        self._earlier_lengths: dict[str, int] = {}
        self._placed: set[str] = set()
        self._undelivered: list[str] = []
        self._folders: set[Path] = set()
        self._count = 0
        # The master answers one question at a time.
        self._asking = asyncio.Lock()

    async def begin(self) -> None:
        """Learn the lengths that earlier tries have reported."""
        self._earlier_lengths = await self._ask({})

    def open(self, target: Path, *, overwrite: bool) -> tuple[Path, PartFile]:
        """Return a new part for ``target``, its path and file; raises ``OSError``."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self._count += 1
        name = f".dscrapy-{self._job}-{self._count}.part"
        length = (
            0 if overwrite else self._earlier_lengths.get(str(target), _length(target))
        )
        part, file = open_part(target, name, base=max(length, 0))
        self._folders.add(part.parent)
        return part, file

    async def place(self, part: Path, target: Path, *, overwrite: bool) -> None:
        """Put a complete part in its place; raises ``OSError``."""
        name = str(target)
        length = _length(target)
        async with self._asking:
            new = {name: length} if not overwrite or length == NO_FILE else {}
            first_length = (await self._ask(new)).get(name, NO_FILE) if new else length
        self._placed.add(name)
        # An append copies, which may take a while.
        await asyncio.to_thread(
            _place, part, target, None if overwrite else first_length
        )
        self._undelivered.append(name)

    def delivered(self) -> tuple[str, ...]:
        """Return the files placed since the last call, which nobody is to write or
        remove any more."""
        names, self._undelivered = tuple(self._undelivered), []
        for name in names:
            self._earlier_lengths.pop(name, None)
        return names

    def end(self) -> None:
        """Remove files of earlier tries under other names (names may hold the time)."""
        for name, length in self._earlier_lengths.items():
            is_old = length == NO_FILE and name not in self._placed
            if is_old and self._came_to_end:
                _logger.info("%s is of an earlier try: removed", name)
                Path(name).unlink(missing_ok=True)
        self.drop_parts()

    def drop_parts(self) -> None:
        """Remove parts that have not been put in their places."""
        for folder in self._folders:
            for part in folder.glob(f".dscrapy-{self._job}-*.part"):
                part.unlink(missing_ok=True)


class PartStorage(FileFeedStorage):
    """Scrapy's storage of local files, by way of a part."""

    def __init__(
        self,
        uri: str,
        *,
        files: FeedFiles,
        feed_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(uri, feed_options=feed_options)
        self._files = files
        self._part: Path | None = None
        self._target = Path(self.path)

    @classmethod
    def for_files(cls, files: FeedFiles) -> type[FileFeedStorage]:
        """Return a class that Scrapy can build, whose files are among ``files``."""

        class JobStorage(cls):  # type: ignore[misc, valid-type]  # a base of run time
            @classmethod
            def from_crawler(
                cls,
                crawler: Crawler,
                uri: str,
                *,
                feed_options: dict[str, Any] | None = None,
            ) -> Any:
                return cls(uri, files=files, feed_options=feed_options)

        # Scrapy counts what was stored by the name of the class.
        JobStorage.__name__ = FileFeedStorage.__name__
        return JobStorage

    def open(self, spider: Spider) -> IO[bytes]:
        """Open a part; a pipe or a device takes what is written to it at once."""
        if takes_at_once(Path(self.path)):
            return super().open(spider)
        # A link stays a link.
        self._target = target_of(Path(self.path))
        overwrite = self.write_mode == "wb"
        self._part, file = self._files.open(self._target, overwrite=overwrite)
        return file

    def store(self, file: IO[bytes]) -> Any:
        """Close the part; return what puts it in its place."""
        if self._part is None:
            return super().store(file)
        close_part(self._part, file)
        overwrite = self.write_mode == "wb"
        return self._files.place(self._part, self._target, overwrite=overwrite)


def _length(path: Path) -> int:
    length = length_of(path)
    return NO_FILE if length is None else length


def _place(part: Path, target: Path, first_length: int | None) -> None:
    """Append a part to a target that was ``first_length`` bytes long before any try, or
    replace the target."""
    if first_length is None or not target.exists():
        replace(part, target)
        return
    append_part(part, target, max(first_length, 0))
    part.unlink()
