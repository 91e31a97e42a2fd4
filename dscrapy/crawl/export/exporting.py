"""A job's items in one of the project's export formats, in a file or at a URI.

Called by the command line, outside of any crawl process. With the job's project in
the current folder the items are of the project's own classes and its settings
apply; without it, items have the same fields but no serializers, and formats and
storages are Scrapy's.
"""

import asyncio
import codecs
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import attrs
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.exporters import BaseItemExporter, JsonLinesItemExporter
from scrapy.settings import BaseSettings, Settings
from scrapy.utils.conf import feed_complete_default_values_from_settings
from scrapy.utils.defer import ensure_awaitable
from scrapy.utils.misc import build_from_crawler, load_object

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.items import item_of, line_encoding, lines_are_stock, lossy
from dscrapy.crawl.export.file_writes import written
from dscrapy.crawl.export.whole_items import whole_items
from dscrapy.crawl.outcomes import Failed, describe
from dscrapy.crawl.project_loader import (
    code_folder,
    load_for_export,
    project_modules,
    spider_arguments,
)
from dscrapy.errors import UsageError, UserError
from dscrapy.model import JobSpec
from dscrapy.text import without_password

_logger = logging.getLogger(__name__)

# Characters shown of the error for which the first item is missing.
_REASON_CHARS_MAX = 500


@attrs.frozen(kw_only=True)
class Target:
    """Where items go: a file's path, or a URI of ``FEED_STORAGES``; and how.

    Without a ``format`` the path's ending names it. ``begin`` is as in ``written``.
    """

    place: Path | str
    format: str = ""
    append: bool = False
    begin: int | None = None

    @property
    def format_name(self) -> str:
        """Return the name of the format."""
        if not self.format and isinstance(self.place, Path):
            return self.place.suffix.removeprefix(".")
        return self.format

    @property
    def name(self) -> str:
        """Return the target's name for people, without a password."""
        if isinstance(self.place, Path):
            return str(self.place)
        return without_password(self.place)


@attrs.frozen(kw_only=True)
class _Home:
    """What a job's items are exported with: its project, or Scrapy alone."""

    crawler: Crawler
    find_class: tags.FindClass
    arguments: dict[str, str]

    def spider(self) -> Spider:
        """Return the spider as a crawl makes it; its class may raise anything."""
        crawler = self.crawler
        crawler.spider = crawler.spidercls.from_crawler(crawler, **self.arguments)
        return crawler.spider


def check(targets: Iterable[Target], spec: JobSpec | None) -> None:
    """Raise ``UserError`` for the first target that cannot be written, as far as that
    is known before there are items: its format, its storage.

    ``UsageError`` where the target as it is written is the mistake. With ``spec`` the
    project in the current folder decides; it has to load.
    """
    try:
        crawler = _loaded(spec).crawler
    except Failed as failed:
        raise UserError(str(failed)) from None
    for target in targets:
        _exporter_class(target, crawler.settings)
        if isinstance(target.place, str):
            _storage(target, {}, crawler)


def export(
    lines: Iterable[bytes],
    tagged: Iterable[bytes] | None,
    target: Target,
    *,
    spec: JobSpec | None = None,
) -> int | None:
    """Write items to ``target``; return how many of them it holds, or None where there
    are none and ``FEED_STORE_EMPTY`` asks for no empty file.

    ``lines`` are those of ``items.jsonl``; ``tagged`` as many tagged forms, or
    ``null`` for each item that is its line. With ``spec`` the project in the
    current folder is loaded; where that fails, a warning says so and the items
    are exported without it. Other warnings count items that are not written as they
    were. A file is written whole, or is as it was. Raises ``UserError`` where
    ``target`` cannot be written.
    """
    home = _project(spec)
    settings = home.crawler.settings
    exporter_class = _exporter_class(target, settings)
    is_stock = exporter_class is JsonLinesItemExporter and lines_are_stock(settings)
    options: dict[str, Any] = {"format": target.format_name}
    if not target.append:
        # As Scrapy's -o and -O: storages have defaults of their own.
        options["overwrite"] = True
    feed = feed_complete_default_values_from_settings(options, settings)
    forms = repeat(b"null") if tagged is None else tagged
    # Lengths may differ by an endless repeat only.
    pairs = zip(lines, forms, strict=tagged is not None)
    first_pair = next(pairs, None)
    if first_pair is None and not feed["store_empty"]:
        return None
    all_pairs = chain(() if first_pair is None else (first_pair,), pairs)
    with _opened(target, feed, home) as file:
        if is_stock:
            encoding = _export_encoding(settings)
            return _copy_lines((line for line, _ in all_pairs), file, encoding)
        with _blamed(target):
            exporter = _exporter(home.crawler, exporter_class, feed, file)
            exporter.start_exporting()
        count = _export_items(exporter, all_pairs, home.find_class)
        with _blamed(target):
            exporter.finish_exporting()
        return count


@contextmanager
def _blamed(target: Target) -> Iterator[None]:
    """Turn what the project's exporter raises into a ``UserError`` of one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise _not_sent(target, error) from error


def _project(spec: JobSpec | None) -> _Home:
    try:
        return _loaded(spec)
    except Failed as failed:
        _logger.warning("Exporting without the project: %s", failed)
        return _loaded(None)


def _loaded(spec: JobSpec | None) -> _Home:
    """Load the project of the current folder, if there is one; raises ``Failed``."""
    if spec is None:
        return _Home(
            crawler=Crawler(Spider, Settings()),
            find_class=tags.no_classes,
            arguments={"name": "items"},
        )
    settings, spider_class = load_for_export(spec)
    return _Home(
        # The spider's own custom_settings are applied here.
        crawler=Crawler(spider_class, settings),
        find_class=tags.class_finder(project_modules(code_folder(spec))),
        arguments=spider_arguments(spec),
    )


def _exporter_class(target: Target, settings: BaseSettings) -> type[BaseItemExporter]:
    name = target.format_name
    exporters = settings.getwithbase("FEED_EXPORTERS")
    if exporters.get(name) is None:
        names = ", ".join(sorted(name for name, cls in exporters.items() if cls))
        raise UsageError(
            f"{target.name}: unknown format {name!r}; there are {names}, by the file's "
            "ending or as FILE:FORMAT"
        )
    # The project's own may be missing, or raise anything when it is imported.
    try:
        exporter: type[BaseItemExporter] = load_object(exporters[name])
    except Exception as error:
        raise UserError(
            f"{target.name}: the exporter of format {name!r} cannot be loaded: "
            f"{describe(error)}"
        ) from error
    return exporter


def _exporter(
    crawler: Crawler,
    exporter_class: type[BaseItemExporter],
    feed: dict[str, Any],
    file: IO[bytes],
) -> BaseItemExporter:
    exporter: BaseItemExporter = build_from_crawler(
        whole_items(exporter_class),
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
    find_class: tags.FindClass,
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
                bad.first_reason = (
                    bad.first_reason or f"{type(error).__name__}: {error}"
                )
                continue
            bad.as_lines += 1
        count += 1
    bad.log()
    return count


class _UnreadableError(Exception):
    """Neither the line nor the tagged form can be read."""


@attrs.define
class _Bad:
    """Items of an export that are not in the file as they were: counts."""

    as_lines: int = 0
    untyped: int = 0
    missing: int = 0
    first_reason: str = ""

    def log(self) -> None:
        """Log a message for each count that is not 0."""
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
                self.first_reason[:_REASON_CHARS_MAX],
            )


def _read(line: bytes, form: bytes, find_class: tags.FindClass, bad: _Bad) -> Any:
    try:
        return item_of(line, form, find_class)
    except tags.UndecodableError as error:
        try:
            item = item_of(line, None, find_class)
        except tags.UndecodableError:
            bad.missing += 1
            bad.first_reason = bad.first_reason or str(error)
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
        except (ValueError, RecursionError, tags.UndecodableError) as error:
            bad.missing += 1
            bad.first_reason = bad.first_reason or f"{type(error).__name__}: {error}"
            continue
        file.write(data)
        count += 1
    bad.log()
    return count


def _recoded(line: bytes, encoding: str) -> bytes:
    """Return a line in another encoding; where that lacks a character, escape it."""
    text = line.decode() + "\n"
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        item = item_of(line, None, tags.no_classes)
        return (json.dumps(item) + "\n").encode(encoding)


def _export_encoding(settings: BaseSettings) -> str | None:
    """Return the project's encoding if it is not the encoding of the job's lines."""
    encoding: str | None = settings["FEED_EXPORT_ENCODING"] or None
    if encoding == line_encoding(settings):
        return None
    return codecs.lookup(str(encoding)).name


@contextmanager
def _opened(target: Target, feed: dict[str, Any], home: _Home) -> Iterator[IO[bytes]]:
    if isinstance(target.place, str):
        with _sent(target, feed, home) as file:
            yield file
        return
    try:
        target.place.parent.mkdir(parents=True, exist_ok=True)
        with written(target.place, append=target.append, begin=target.begin) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot write {target.place}: {error.strerror or error}"
        ) from error


@contextmanager
def _sent(target: Target, feed: dict[str, Any], home: _Home) -> Iterator[IO[bytes]]:
    """Give a file that is stored at a URI afterwards, unless there is an error."""
    storage = _storage(target, feed, home.crawler)

    async def store(file: IO[bytes]) -> None:
        await ensure_awaitable(storage.store(file))

    # Storages may be the project's own, and ask its spider for name and settings.
    try:
        file = storage.open(home.spider())
    except Exception as error:
        raise _not_sent(target, error) from error
    try:
        yield file
        try:
            asyncio.run(store(file))
        except Exception as error:
            raise _not_sent(target, error) from error
    finally:
        file.close()


def _not_sent(target: Target, error: Exception) -> UserError:
    return UserError(f"cannot write {target.name}: {describe(error)}")


def _storage(target: Target, feed: dict[str, Any], crawler: Crawler) -> Any:
    """Return the storage of a target's URI; raises ``UserError``."""
    assert isinstance(target.place, str)
    scheme = urlsplit(target.place).scheme
    storages = crawler.settings.getwithbase("FEED_STORAGES")
    if storages.get(scheme) is None:
        names = ", ".join(
            sorted(name for name, cls in storages.items() if name and cls)
        )
        raise UsageError(
            f"{target.name}: no storage is known for {scheme}://; there are {names}, "
            "and what FEED_STORAGES adds"
        )
    # The project's own, or a library that is missing: any error may come.
    try:
        return build_from_crawler(
            load_object(storages[scheme]), crawler, target.place, feed_options=feed
        )
    except Exception as error:
        raise UserError(
            f"{target.name}: the storage cannot be used: {describe(error)}"
        ) from error
