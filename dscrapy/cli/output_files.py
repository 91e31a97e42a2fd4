"""Files of items: what ``-o`` and ``-O`` name, and how a job's items get there."""

import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager, nullcontext, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal
from urllib.parse import unquote

import attrs
import msgspec

from dscrapy.cli.terminal.render import plural
from dscrapy.cli.terminal.screen import Bytes, discard_stdout
from dscrapy.client import CHUNK_BYTES, Client
from dscrapy.crawl.export.file_writes import takes_at_once, target_of, written
from dscrapy.crawl.export.preflight import Answer, Output, Question
from dscrapy.errors import UsageError, UserError
from dscrapy.lines import LINES_FORMATS
from dscrapy.messages import ReadFile
from dscrapy.model import FINAL_STATES, JobSpec, JobView
from dscrapy.text import without_password

# Scrapy's export formats (FEED_EXPORTERS_BASE).
FORMATS = LINES_FORMATS | {"json", "csv", "xml", "marshal", "pickle"}
STDOUT = frozenset({"-", "stdout:"})
# The ending of the file for items of a job that did not do its work.
FAILED_SUFFIX = ".failed"
# What asks a project for its formats and storages.
_CHECK = (sys.executable, "-P", "-m", "dscrapy.crawl.export.preflight")
_FILLED = re.compile(r"%\(([^)]*)\)[-+ #0]*[\d.*]*[a-zA-Z]")
# How often items are fetched again when their job begins anew meanwhile.
_FETCHES_MAX = 5


@attrs.frozen(kw_only=True)
class Feed:
    """One output: a file's ``path``, a ``uri`` for Scrapy's storages, or stdout.

    Of a file to append to, the bytes from ``begin`` on are to be replaced.
    """

    path: Path | None = None
    uri: str = ""
    format: str
    overwrite: bool
    begin: int | None = None

    @property
    def is_stdout(self) -> bool:
        return self.path is None and not self.uri

    @property
    def is_lines(self) -> bool:
        """Whether it takes a job's lines, unless the project has its own."""
        return self.format in LINES_FORMATS and not self.uri

    @property
    def name(self) -> str:
        """Return what people call it."""
        if self.uri:
            return without_password(self.uri)
        return "stdout" if self.path is None else str(self.path)

    def beside(self) -> "Feed":
        """Return the feed for items of a job that did not do its work."""
        if self.path is None:
            return attrs.evolve(self, uri=self.uri + FAILED_SUFFIX, overwrite=True)
        path = self.path.with_name(f"{self.path.name}{FAILED_SUFFIX}")
        return attrs.evolve(self, path=path, overwrite=True)


@attrs.frozen(kw_only=True)
class Fetched:
    """A job's items in files: lines, and tagged forms if a format needs them.

    ``own_lines``: the project writes JSON lines in a form of its own, not these lines.
    ``stdin`` is what the project reads when it is imported once more for the export.
    """

    lines: Path
    tagged: Path | None
    own_lines: bool = False
    stdin: Path = Path(os.devnull)


# ---- what is asked for ----------------------------------------------------------


def parse_feeds(options: Namespace, spider: str) -> tuple[Feed, ...]:
    """Return what ``-o`` and ``-O`` ask for; raises ``UsageError``.

    As in Scrapy: ``FILE``, ``FILE:FORMAT``, ``-`` or ``-:FORMAT`` for stdout, URIs
    of storages, and ``%(name)s`` and ``%(time)s`` in the name. Of a format or storage
    that is not Scrapy's own only the project knows: see ``check_outputs``.
    """
    overwrite = bool(options.overwrite)
    return tuple(
        _parse_feed(text, spider, overwrite=overwrite)
        for text in (*options.append_to, *options.overwrite)
    )


def _parse_feed(text: str, spider: str, *, overwrite: bool) -> Feed:
    name, format = _parted(text)
    if name in STDOUT:
        return Feed(format=format or "jsonlines", overwrite=False)
    if not format:
        raise _unknown_format(text, format)
    name = _filled(name, spider)
    if "://" in name and not name.startswith("file://"):
        return Feed(uri=name, format=format, overwrite=overwrite)
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    path = Path(os.path.expanduser(name))
    if path.name in ("", ".", ".."):
        raise UsageError(f"{text}: no file is named")
    return Feed(path=Path(os.path.abspath(path)), format=format, overwrite=overwrite)


def _parted(text: str) -> tuple[str, str]:
    """Return name and format, which is what stands behind the last colon, or the
    ending where that is none."""
    if text in STDOUT:
        return text, ""
    name, colon, format = text.rpartition(":")
    ending = Path(text).suffix.removeprefix(".")
    is_in_name = "/" in format or ("." in format and ending.lower() in FORMATS)
    if not colon or is_in_name:
        name, format = text, ending
    # The project's own formats stand as they are written.
    return name, format.lower() if format.lower() in FORMATS else format


def _unknown_format(text: str, format: str, addition: str = "") -> UsageError:
    return UsageError(
        f"{text}: unknown format {format!r}; there are {', '.join(sorted(FORMATS))}, "
        f"by the file's ending or as FILE:FORMAT{addition}"
    )


def _filled(name: str, spider: str) -> str:
    """Fill in what Scrapy does; every other % stands for itself, as in %20."""
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    values = {"name": spider, "time": now.isoformat().replace(":", "-")}

    def fill(found: re.Match[str]) -> str:
        try:
            return found[0] % values
        except (KeyError, ValueError, TypeError):
            raise UsageError(
                f"{name}: only %(name)s and %(time)s can be filled in"
            ) from None

    return _FILLED.sub(fill, name)


def check_outputs(feeds: tuple[Feed, ...], spec: JobSpec, project: Path | None) -> None:
    """Raise ``UserError`` for formats and storages that the job's project, in its
    folder ``project`` if it is on this machine, does not have or cannot load.

    A crawl that takes hours must not end with items that cannot be written.
    """
    to_check = [feed for feed in feeds if feed.format not in FORMATS or feed.uri]
    if not to_check:
        return
    for feed in to_check:
        if project is None and feed.format not in FORMATS:
            addition = (
                ", and what FEED_EXPORTERS of the project adds where it is: it is "
            )
            addition += "not on this machine"
            raise _unknown_format(feed.name, feed.format, addition)
    outputs = tuple(
        Output(
            place=feed.uri or feed.name,
            is_uri=bool(feed.uri),
            format=feed.format,
            append=not feed.overwrite,
        )
        for feed in to_check
    )
    question = Question(outputs=outputs, spec=None if project is None else spec)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DSCRAPY_")
    }
    check = subprocess.run(
        _CHECK,
        input=msgspec.json.encode(question),
        stdout=subprocess.PIPE,
        cwd=project,
        env=environ,
        check=False,
    )
    if check.returncode or not check.stdout:
        raise UserError(
            "the project could not be asked for its formats and storages: see above"
        )
    answer = msgspec.json.decode(check.stdout, type=Answer)
    if answer.fault:
        raise (UsageError if answer.is_usage else UserError)(answer.fault)


def check_places(feeds: tuple[Feed, ...]) -> None:
    """Make the folders of the files; raise ``UserError`` where none can be written."""
    for feed in feeds:
        if feed.path is None:
            continue
        try:
            target = feed.path if takes_at_once(feed.path) else target_of(feed.path)
        except OSError as error:
            raise UserError(f"cannot write {feed.path}: {error.strerror}") from None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {target.parent}: {error.strerror}") from None
        if target.is_dir():
            raise UserError(f"cannot write {feed.path}: it is a folder")
        writable = target if target.exists() else target.parent
        if not os.access(writable, os.W_OK):
            raise UserError(f"cannot write {feed.path}: no permission")


# ---- a job's items --------------------------------------------------------------


async def copy_file(
    client: Client,
    job: str,
    file: Literal["items", "tagged", "log"],
    write: Callable[[bytes], object],
    *,
    offset: int = 0,
    follow: bool = False,
    has_enough: Callable[[], bool] = lambda: False,
) -> int:
    """Hand the bytes of a job's file from ``offset`` on to ``write``.

    With ``follow`` until the job has ended. Returns the offset that was reached.
    """
    while not has_enough():
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
            break
    return offset


class _WholeLines:
    """Hands on whole lines, up to ``count_max`` of them, and keeps a part of a line."""

    def __init__(
        self, write: Callable[[bytes], object], count_max: int | None = None
    ) -> None:
        self.count = 0
        self._write = write
        self._count_max = count_max
        self._pieces: list[bytes] = []

    def is_full(self) -> bool:
        """Whether as many lines have come as are wanted."""
        return self.count == self._count_max

    def __call__(self, data: bytes) -> None:
        """Take the next bytes."""
        whole, end, piece = data.rpartition(b"\n")
        if not end:
            self._pieces.append(data)
            return
        whole = b"".join((*self._pieces, whole, end))
        self._pieces = [piece]
        count = whole.count(b"\n")
        if self._count_max is not None and self.count + count > self._count_max:
            count = self._count_max - self.count
            whole = b"".join(line + b"\n" for line in whole.split(b"\n")[:count])
        self.count += count
        self._write(whole)


async def copy_items(client: Client, job: str, write: Callable[[bytes], object]) -> int:
    """Hand the lines of the items that there are now to ``write``; return how many.

    While a job runs, items that come meanwhile may be among them or not.
    """
    view = (await client.show(job)).job
    assert view is not None
    lines = _WholeLines(write)

    def has_enough() -> bool:
        # Items may come faster than they are read.
        return not _is_over(view) and lines.count >= view.items

    await copy_file(client, job, "items", lines, has_enough=has_enough)
    return lines.count


def _is_over(view: JobView) -> bool:
    return view.state in FINAL_STATES


async def fetch(
    client: Client, job: str, folder: Path, feeds: tuple[Feed, ...]
) -> Fetched:
    """Copy the job's items into ``folder``, all as they are at one time.

    Raises ``UserError`` for a job that begins anew again and again meanwhile.
    """
    lines, tagged = folder / "items.jsonl", folder / "tagged.jsonl"
    own_lines = (await client.show(job)).own_lines
    needs_forms = own_lines or not all(feed.is_lines for feed in feeds)
    for _ in range(_FETCHES_MAX):
        with lines.open("wb") as file:
            count = await copy_items(client, job, file.write)
        if not feeds or not needs_forms:
            return Fetched(lines=lines, tagged=None)
        with tagged.open("wb") as file:
            # A form is there no later than its line, and more may have come since.
            forms = _WholeLines(file.write, count)
            await copy_file(client, job, "tagged", forms, has_enough=forms.is_full)
        if forms.is_full():
            return Fetched(lines=lines, tagged=tagged, own_lines=own_lines)
    raise UserError(f"{job} began anew while its items were read: try again")


def write_results(
    feeds: tuple[Feed, ...],
    fetched: Fetched,
    folder: Path,
    spec: JobSpec,
    project: Path | None,
    *,
    undone: str = "",
) -> list[str]:
    """Write each output, as ``write_feed``; return a line for people about each file.

    ``undone`` is the state of a job that ended without having done its work: then
    files of this name stay as they are, whatever is in them, and what there is goes
    beside them.
    """
    with fetched.lines.open("rb") as lines:
        is_empty = not lines.read(1)
    parts = []
    for feed in feeds:
        remark = ""
        if undone and not _has_no_past(feed):
            exists = feed.path is None or feed.path.exists()
            untouched = f"{feed.name} {'is as it was' if exists else 'was not written'}"
            ending = f"the job {undone if undone == 'failed' else f'was {undone}'}"
            if is_empty:
                parts.append(f"{ending} without items: {untouched}")
                continue
            feed, remark = feed.beside(), f": {ending}, {untouched}"
        count = write_feed(feed, fetched, folder, spec, project)
        if count is not None and not feed.is_stdout:
            parts.append(f"wrote {plural(count, 'item')} to {feed.name}{remark}")
    return parts


def _has_no_past(feed: Feed) -> bool:
    """Whether a feed replaces nothing: stdout, a pipe, a device."""
    return feed.is_stdout or (feed.path is not None and takes_at_once(feed.path))


def write_feed(
    feed: Feed, fetched: Fetched, folder: Path, spec: JobSpec, project: Path | None
) -> int | None:
    """Write an output from what was fetched; ``folder`` is for temporary files.

    ``project`` is the folder of the job's project if it is on this machine: its
    item classes and settings decide on fields, and on formats and storages of its
    own. Returns how many items are there, None where nothing was written or whoever
    reads them (``| head``) has seen enough. Raises ``UserError`` for what cannot be
    written.
    """
    is_lines = feed.is_lines and (not fetched.own_lines or project is None)
    try:
        if feed.is_stdout and not is_lines:
            return _export_stdout(feed, fetched, folder, spec, project)
        if feed.is_stdout:
            with fetched.lines.open("rb") as lines:
                return _copy(lines, Bytes(sys.stdout).write)
        if feed.path is not None and is_lines:
            with (
                fetched.lines.open("rb") as lines,
                written(feed.path, append=not feed.overwrite, begin=feed.begin) as file,
            ):
                return _copy(lines, file.write)
        return _export(feed, fetched, spec, project)
    except BrokenPipeError:
        # The other outputs are to be written all the same.
        if feed.is_stdout:
            discard_stdout()
        return None
    except OSError as error:
        raise UserError(f"cannot write {feed.name}: {error.strerror}") from None


def _copy(lines: IO[bytes], write: Callable[[bytes], object]) -> int:
    """Hand lines to ``write`` in large pieces; return how many."""
    count = 0
    while data := lines.read(CHUNK_BYTES):
        count += data.count(b"\n")
        write(data)
    return count


def _export(
    feed: Feed, fetched: Fetched, spec: JobSpec, project: Path | None
) -> int | None:
    """Write a file or a URI through Scrapy's exporters; return as ``write_feed``."""
    # Scrapy takes its time to import; only these need it.
    from dscrapy.crawl.export.exporting import Target, export

    assert fetched.tagged is not None
    with (
        fetched.lines.open("rb") as lines,
        fetched.tagged.open("rb") as tagged,
        chdir(project) if project is not None else nullcontext(),
        # What the project prints must not get among the items.
        redirect_stdout(sys.stderr),
        _redirect_stdin(fetched.stdin),
    ):
        return export(
            _stripped(lines),
            _stripped(tagged),
            Target(
                place=feed.path or feed.uri,
                format=feed.format,
                append=not feed.overwrite,
                begin=feed.begin,
            ),
            spec=spec if project is not None else None,
        )


@contextmanager
def _redirect_stdin(path: Path) -> Iterator[None]:
    before = sys.stdin
    encoding, errors = "utf-8", None
    if before is not None:
        encoding, errors = before.encoding, before.errors
    with path.open(encoding=encoding, errors=errors) as file:
        sys.stdin = file
        try:
            yield
        finally:
            sys.stdin = before


def _stripped(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line.removesuffix(b"\n") for line in lines)


def _export_stdout(
    feed: Feed, fetched: Fetched, folder: Path, spec: JobSpec, project: Path | None
) -> int | None:
    aside = folder / "stdout"
    target = attrs.evolve(feed, path=aside, overwrite=True)
    count = _export(target, fetched, spec, project)
    if aside.exists():
        with aside.open("rb") as file:
            _copy(file, Bytes(sys.stdout).write)
    return count
