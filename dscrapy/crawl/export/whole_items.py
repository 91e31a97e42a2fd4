"""Exporters that write an item whole or not at all.

Some of Scrapy's exporters write an item value by value. At a value that they cannot
write they leave half an item in the file, which then cannot be read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from scrapy.exporters import BaseItemExporter, PickleItemExporter, XmlItemExporter

# The other exporters encode a whole item before they write the first byte of it.
_WRITE_AS_THEY_GO = (PickleItemExporter, XmlItemExporter)


class _BufferedFile:
    """A file that keeps back what is written to it within ``item``."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._pending: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        if self._pending is None:
            return self._file.write(data)
        self._pending.append(bytes(data))
        return len(self._pending[-1])

    @contextmanager
    def item(self) -> Iterator[None]:
        """Write all that the block writes at its end, or nothing if it raises."""
        pending: list[bytes] = []
        self._pending = pending
        try:
            yield
        finally:
            self._pending = None
        for data in pending:
            self._file.write(data)


def whole_items(base: type[BaseItemExporter]) -> type[BaseItemExporter]:
    """Return an exporter like ``base``, the project's or Scrapy's, that writes an item
    whole or not at all."""
    if not issubclass(base, _WRITE_AS_THEY_GO):
        return base

    class WholeItems(base):  # type: ignore[misc, valid-type]  # a base of run time
        def __init__(self, file: IO[bytes], *args: Any, **kwargs: Any) -> None:
            self._buffered_file = _BufferedFile(file)
            super().__init__(self._buffered_file, *args, **kwargs)

        def export_item(self, item: Any) -> Any:
            with self._buffered_file.item():
                return super().export_item(item)

    WholeItems.__name__ = base.__name__
    WholeItems.__qualname__ = base.__qualname__
    return WholeItems
