"""Files of items: what ``-o`` and ``-O`` name, and how a job's items get there."""

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import attrs

from dscrapy.cli.render import plural
from dscrapy.cli.screen import Bytes
from dscrapy.client import CHUNK_BYTES, Client
from dscrapy.errors import UsageError, UserError
from dscrapy.messages import ReadFile
from dscrapy.model import JobSpec

# Scrapy's export formats (FEED_EXPORTERS_BASE); those of one line an item are
# written as they come.
LINES_FORMATS = frozenset({"jsonl", "jl", "jsonlines"})
FORMATS = LINES_FORMATS | {"json", "csv", "xml", "marshal", "pickle"}
STDOUT = "-"
# Where the items of a job go that did not do its work, beside the file it was to write.
FAILED_SUFFIX = ".failed"


@attrs.frozen(kw_only=True)
class Feed:
    """One file to write; ``path`` is None for stdout."""

    path: Path | None
    format: str
    overwrite: bool

    @property
    def name(self) -> str:
        """Return what people call it."""
        return "stdout" if self.path is None else str(self.path)


@attrs.frozen(kw_only=True)
class Fetched:
    """A job's items in files: lines, and tagged forms if a format needs them."""

    lines: Path
    tagged: Path | None


def parse_feeds(options: Namespace, spider: str) -> tuple[Feed, ...]:
    """Return what ``-o`` and ``-O`` ask for; raises ``UsageError``.

    As in Scrapy: ``FILE``, ``FILE:FORMAT``, ``-:FORMAT`` for stdout, and
    ``%(name)s`` and ``%(time)s`` in the file's name.
    """
    overwrite = bool(options.overwrite)
    return tuple(
        _parse_feed(text, spider, overwrite=overwrite)
        for text in (*options.append_to, *options.overwrite)
    )


def _parse_feed(text: str, spider: str, *, overwrite: bool) -> Feed:
    name, colon, format = text.rpartition(":")
    if not colon or "/" in format:
        name, format = text, Path(text).suffix.removeprefix(".")
    format = format.lower()
    if name == STDOUT:
        if not colon:
            raise UsageError("stdout needs a format: -o -:jsonl")
        if overwrite:
            raise UsageError("stdout cannot be replaced: use -o -:FORMAT")
    if "://" in name and not name.startswith("file://"):
        raise UsageError(f"{text}: items are written to local files only")
    if format not in FORMATS:
        raise UsageError(
            f"{text}: unknown format {format!r}; there are "
            f"{', '.join(sorted(FORMATS))}, by the file's ending or as FILE:FORMAT"
        )
    if name == STDOUT:
        return Feed(path=None, format=format, overwrite=False)
    path = Path(os.path.expanduser(_filled(name.removeprefix("file://"), spider)))
    if path.name in ("", ".", ".."):
        raise UsageError(f"{text}: no file is named")
    return Feed(path=Path(os.path.abspath(path)), format=format, overwrite=overwrite)


def _filled(name: str, spider: str) -> str:
    if "%" not in name:
        return name
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    values = {"name": spider, "time": now.isoformat().replace(":", "-")}
    try:
        return name % values
    except (KeyError, ValueError, TypeError):
        raise UsageError(
            f"{name}: only %(name)s and %(time)s can be filled in; write %% for a %"
        ) from None


def check_places(feeds: tuple[Feed, ...]) -> None:
    """Make the folders of the files; raise ``UserError`` where none can be written.

    A crawl that takes hours must not end with a file that cannot be written.
    """
    for feed in feeds:
        if feed.path is None:
            continue
        try:
            feed.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {feed.path.parent}: {error.strerror}"
            ) from None
        if feed.path.is_dir():
            raise UserError(f"cannot write {feed.path}: it is a folder")
        target = feed.path if feed.path.exists() else feed.path.parent
        if not os.access(target, os.W_OK):
            raise UserError(f"cannot write {feed.path}: no permission")


async def copy_file(
    client: Client,
    job: str,
    file: Literal["items", "tagged", "log"],
    write: Callable[[bytes], object],
    *,
    offset: int = 0,
    follow: bool = False,
) -> int:
    """Hand the bytes of a job's file from ``offset`` on to ``write``.

    With ``follow`` until the job has ended. Returns the offset that was reached.
    """
    while True:
        chunk = await client.read_file(
            ReadFile(
                call=0,
                job=job,
                file=file,
                offset=offset,
                limit=CHUNK_BYTES,
                wait=follow,
            )
        )
        if chunk.data:
            write(chunk.data)
            offset += len(chunk.data)
        elif chunk.end or not follow:
            return offset


async def fetch(
    client: Client, job: str, folder: Path, feeds: tuple[Feed, ...]
) -> Fetched:
    """Copy the job's items into ``folder``."""
    lines = folder / "items.jsonl"
    with lines.open("wb") as file:
        await copy_file(client, job, "items", file.write)
    if all(feed.format in LINES_FORMATS for feed in feeds):
        return Fetched(lines=lines, tagged=None)
    tagged = folder / "tagged.jsonl"
    with tagged.open("wb") as file:
        await copy_file(client, job, "tagged", file.write)
    return Fetched(lines=lines, tagged=tagged)


def write_results(
    feeds: tuple[Feed, ...],
    fetched: Fetched,
    folder: Path,
    spec: JobSpec,
    project: Path | None,
    *,
    undone: str = "",
) -> list[str]:
    """Write each file, as ``write_feeds``; return a line for people about each.

    ``undone`` is the state of a job that ended without having done its work: then
    files of this name stay as they are, whatever is in them, and what there is goes
    beside them.
    """
    if not undone:
        write_feeds(feeds, fetched, folder, spec, project)
        return [f"wrote {feed.path}" for feed in feeds if feed.path is not None]
    with fetched.lines.open("rb") as lines:
        count = sum(1 for _ in lines)
    said = []
    for feed in feeds:
        if _has_no_past(feed):
            write_feeds((feed,), fetched, folder, spec, project)
            continue
        assert feed.path is not None
        stands = "is as it was" if feed.path.exists() else "was not written"
        how = f"the job {undone if undone == 'failed' else f'was {undone}'}"
        if not count:
            said.append(f"{how} without items: {feed.path} {stands}")
            continue
        beside = feed.path.with_name(f"{feed.path.name}{FAILED_SUFFIX}")
        aside = attrs.evolve(feed, path=beside, overwrite=True)
        write_feeds((aside,), fetched, folder, spec, project)
        wrote = f"wrote {plural(count, 'item')} to {beside}"
        said.append(f"{wrote}: {how}, {feed.path} {stands}")
    return said


def _has_no_past(feed: Feed) -> bool:
    """Whether a feed replaces nothing: stdout, a pipe, a device."""
    return feed.path is None or (feed.path.exists() and not feed.path.is_file())


def write_feeds(
    feeds: tuple[Feed, ...],
    fetched: Fetched,
    folder: Path,
    spec: JobSpec,
    project: Path | None,
) -> None:
    """Write each file from what was fetched; ``folder`` is for temporary files.

    ``project`` is the folder of the job's project if it is on this machine: its
    item classes and settings decide on fields. Raises ``UserError`` for what cannot
    be written.
    """
    for feed in feeds:
        try:
            if feed.path is None:
                _write_stdout(feed, fetched, folder, spec, project)
            elif feed.format in LINES_FORMATS:
                _put(fetched.lines, feed.path, append=not feed.overwrite)
            elif feed.path.suffix == f".{feed.format}":
                append = not feed.overwrite
                _export(fetched, feed.path, spec, project, append=append)
            else:
                _export_under_other_name(
                    feed, feed.path, fetched, folder, spec, project
                )
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(f"cannot write {feed.name}: {error.strerror}") from None


def _export(
    fetched: Fetched, path: Path, spec: JobSpec, project: Path | None, *, append: bool
) -> None:
    """Write ``path``, whose ending is the format, through Scrapy's exporters."""
    # Scrapy takes its time to import; only these formats need it.
    from dscrapy.crawl.export import export

    assert fetched.tagged is not None
    with (
        fetched.lines.open("rb") as lines,
        fetched.tagged.open("rb") as tagged,
        chdir(project) if project is not None else nullcontext(),
    ):
        export(
            _stripped(lines),
            _stripped(tagged),
            path,
            append=append,
            spec=spec if project is not None else None,
        )


def _stripped(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line.removesuffix(b"\n") for line in lines)


def _export_under_other_name(
    feed: Feed,
    path: Path,
    fetched: Fetched,
    folder: Path,
    spec: JobSpec,
    project: Path | None,
) -> None:
    """Write a file whose format is not its ending, by way of one where it is."""
    named = folder / f"feed.{feed.format}"
    if not feed.overwrite and path.exists():
        # Only the exporter knows what to append to what is there.
        shutil.copyfile(path, named)
    _export(fetched, named, spec, project, append=not feed.overwrite)
    if named.exists():
        _put(named, path, append=False)
        named.unlink()


def _put(source: Path, path: Path, *, append: bool) -> None:
    """Copy ``source`` to ``path``, or to its end."""
    if append:
        with source.open("rb") as lines, path.open("ab") as target:
            shutil.copyfileobj(lines, target)
        return
    # Never half a file under the name that was asked for.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_stdout(
    feed: Feed, fetched: Fetched, folder: Path, spec: JobSpec, project: Path | None
) -> None:
    source = fetched.lines
    if feed.format not in LINES_FORMATS:
        source = folder / f"stdout.{feed.format}"
        _export(fetched, source, spec, project, append=False)
    out = Bytes(sys.stdout)
    with source.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            out.write(data)
