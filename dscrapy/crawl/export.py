"""A job's items in one of Scrapy's export formats, chosen by the file's ending.

Called by the command line, outside of any crawl process. With the job's project in
the current folder the items are of the project's own classes and its settings
apply; without it, items have the same fields but no serializers.
"""

import codecs
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

import attrs
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.exporters import BaseItemExporter, JsonLinesItemExporter
from scrapy.settings import BaseSettings, Settings
from scrapy.utils.conf import feed_complete_default_values_from_settings
from scrapy.utils.misc import build_from_crawler, load_object

from dscrapy.crawl import codec
from dscrapy.crawl.items import item_of, line_encoding, lossy
from dscrapy.crawl.load import (
    Failed,
    code_folder,
    load_for_export,
    project_modules,
)
from dscrapy.crawl.whole import whole_items
from dscrapy.errors import UserError
from dscrapy.model import JobSpec

_logger = logging.getLogger(__name__)

# What is shown of why the first item is missing.
_REASON_CHARS_MAX = 500


def check_ending(path: Path) -> None:
    """Raise ``UserError`` unless Scrapy itself exports to files of this ending.

    For a check before a crawl, without its project; ``export`` also knows the
    project's own formats.
    """
    _format_of(path, Settings())


def export(
    lines: Iterable[bytes],
    tagged: Iterable[bytes] | None,
    path: Path,
    *,
    append: bool = False,
    spec: JobSpec | None = None,
) -> int:
    """Write items to ``path``; return how many it holds of them.

    ``lines`` are those of ``items.jsonl``; ``tagged`` as many tagged forms, or
    ``null`` for each item that is its line. With ``spec`` the project in the
    current folder is loaded; where that fails, a warning says so and the items
    are exported without it, as warnings say what of an item is not as it was. Unless
    ``append``, the file appears whole or not at all. Raises ``UserError`` for an
    unknown ending.
    """
    crawler, find_class = _project(spec)
    name = _format_of(path, crawler.settings)
    feed = feed_complete_default_values_from_settings(
        {"format": name}, crawler.settings
    )
    forms = repeat(b"null") if tagged is None else tagged
    # Lengths may differ by an endless repeat only.
    pairs = zip(lines, forms, strict=tagged is not None)
    is_lines = issubclass(_exporters(crawler.settings)[name], JsonLinesItemExporter)
    first = next(pairs, None)
    if first is None and not feed["store_empty"]:
        return 0
    pairs_again = chain(() if first is None else (first,), pairs)
    with _opened(path, append) as file:
        if is_lines:
            encoding = _other_encoding(crawler.settings)
            return _copy_lines((line for line, _ in pairs_again), file, encoding)
        exporter = _exporter(crawler, name, feed, file)
        exporter.start_exporting()
        count = _export_items(exporter, pairs_again, find_class)
        exporter.finish_exporting()
        return count


def _project(spec: JobSpec | None) -> tuple[Crawler, codec.FindClass]:
    if spec is None:
        return Crawler(Spider, Settings()), codec.no_classes
    try:
        settings, spider_class = load_for_export(spec)
        # The spider's own custom_settings are applied here.
        crawler = Crawler(spider_class, settings)
    except Failed as failed:
        _logger.warning("Exporting without the project: %s", failed)
        return Crawler(Spider, Settings()), codec.no_classes
    return crawler, codec.class_finder(project_modules(code_folder(spec)))


def _exporters(settings: BaseSettings) -> dict[str, type[BaseItemExporter]]:
    setting = settings.getwithbase("FEED_EXPORTERS")
    return {name: load_object(cls) for name, cls in setting.items() if cls is not None}


def _format_of(path: Path, settings: BaseSettings) -> str:
    name = path.suffix.removeprefix(".")
    known = _exporters(settings)
    if name not in known:
        endings = ", ".join(f".{ending}" for ending in sorted(known))
        raise UserError(f"{path}: the ending must be one of {endings}")
    return name


def _exporter(
    crawler: Crawler, name: str, feed: dict[str, Any], file: IO[bytes]
) -> BaseItemExporter:
    exporter: BaseItemExporter = build_from_crawler(
        whole_items(_exporters(crawler.settings)[name]),
        crawler,
        file,
        fields_to_export=feed["fields"],
        encoding=feed["encoding"],
        indent=feed["indent"],
    )
    return exporter


def _export_items(
    exporter: BaseItemExporter,
    pairs: Iterable[tuple[bytes, bytes]],
    find_class: codec.FindClass,
) -> int:
    count = 0
    bad = _Bad()
    for line, form in pairs:
        # The project's serializers, or a value that the format cannot hold.
        try:
            exporter.export_item(_read(line, form, find_class, bad))
        except _UnreadableError:
            continue
        except Exception:  # noqa: BLE001 - user code
            try:
                exporter.export_item(lossy(item_of(line, None, find_class)))
            except Exception as error:  # noqa: BLE001 - user code
                bad.missing += 1
                bad.first = bad.first or f"{type(error).__name__}: {error}"
                continue
            bad.as_lines += 1
        count += 1
    bad.tell()
    return count


class _UnreadableError(Exception):
    """Neither the line nor the tagged form is what it should be."""


@attrs.define
class _Bad:
    """Items of an export that are not in the file as they were: counts."""

    as_lines: int = 0
    untyped: int = 0
    missing: int = 0
    first: str = ""

    def tell(self) -> None:
        """Log a warning for each kind that there is."""
        if self.as_lines:
            _logger.warning(
                "%d items hold what this format cannot; they stand as in the job's "
                "lines",
                self.as_lines,
            )
        if self.untyped:
            _logger.warning(
                "the types in %d items cannot be read; they stand as in the job's "
                "lines",
                self.untyped,
            )
        if self.missing:
            _logger.error(
                "%d items are missing, since they cannot be read or written: %s",
                self.missing,
                self.first[:_REASON_CHARS_MAX],
            )


def _read(line: bytes, form: bytes, find_class: codec.FindClass, bad: _Bad) -> Any:
    try:
        return item_of(line, form, find_class)
    except codec.UndecodableError as error:
        try:
            item = item_of(line, None, find_class)
        except codec.UndecodableError:
            bad.missing += 1
            bad.first = bad.first or str(error)
            raise _UnreadableError from error
        bad.untyped += 1
        return item


def _copy_lines(lines: Iterable[bytes], file: IO[bytes], encoding: str | None) -> int:
    count = 0
    bad = _Bad()
    for line in lines:
        text = line.removesuffix(b"\n")
        if encoding is None:
            file.write(text + b"\n")
            count += 1
            continue
        try:
            data = _recoded(text, encoding)
        except (ValueError, RecursionError, codec.UndecodableError) as error:
            bad.missing += 1
            bad.first = bad.first or f"{type(error).__name__}: {error}"
            continue
        file.write(data)
        count += 1
    bad.tell()
    return count


def _recoded(line: bytes, encoding: str) -> bytes:
    """Return a line in another encoding; what that cannot hold is escaped."""
    text = line.decode() + "\n"
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        item = item_of(line, None, codec.no_classes)
        return (json.dumps(item) + "\n").encode(encoding)


def _other_encoding(settings: BaseSettings) -> str | None:
    """Return the encoding of the project's lines if it is not that of the job's."""
    encoding: str | None = settings["FEED_EXPORT_ENCODING"] or None
    if encoding == line_encoding(settings):
        return None
    return codecs.lookup(str(encoding)).name


@contextmanager
def _opened(path: Path, append: bool) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if append:
            with path.open("ab") as file:
                yield file
            return
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                yield file
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
