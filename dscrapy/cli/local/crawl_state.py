"""Where ``crawl`` keeps what it knows between runs, and which run goes on.

A crawl is known by its project folder, spider, arguments and settings, and by the
folder and variables of its caller. Its folder has the state of its own master and
``crawl.json``; a lock file beside it keeps out a second run of the same crawl.
Unfinished crawls that were set aside have the same name with a number.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs
import msgspec

from dscrapy.errors import UserError
from dscrapy.projects import code_digest

RECORD_NAME = "crawl.json"
# Where all of them are, in the user's state folder.
FOLDER = "crawls"
# How the folder of a run begins that is to keep nothing.
ONCE = "once-"
# What a finished job's folder keeps beside the record.
_KEPT_OF_JOB = frozenset({"items.jsonl", "log.txt"})
# Names are cut here: 64 bits keep the crawls of one person apart.
_KEY_CHARS = 16


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``crawl.json`` holds.

    ``digest`` is that of the project's code when it was last accepted. ``done``:
    the job has ended and its files are written. ``appended`` has the length of
    each file of ``-o`` before this crawl appended to it, ``written`` the length
    after it was written before the end. ``command`` is what goes on with it in
    ``folder``. Files without a ``version`` are of version 1. Once it is done: when the
    job ended, how, and what it gave.
    """

    version: int = 1
    job: str
    digest: str
    project: str
    spider: str
    began_at: float
    done: bool = False
    appended: dict[str, int] = {}
    written: dict[str, int] = {}
    args: dict[str, str] = {}
    settings: dict[str, str] = {}
    around: dict[str, str] = {}
    folder: str = ""
    command: str = ""
    ended_at: float = 0.0
    state: str = ""
    pages: int = 0
    items: int = 0


class _Versioned(msgspec.Struct):
    version: int = 1


How = Literal["new", "go on", "go on with changed code"]


@attrs.frozen(kw_only=True)
class Crawl:
    """The identity of a crawl: what it runs and where it keeps its state.

    ``args`` and ``settings`` are those of the command line, ``around`` what else of the
    caller makes it another crawl. It was called in ``called_in``, as ``command``.
    """

    folder: Path
    project: Path
    spider: str
    args: dict[str, str] = attrs.field(factory=dict)
    settings: dict[str, str] = attrs.field(factory=dict)
    around: dict[str, str] = attrs.field(factory=dict)
    called_in: str = ""
    command: str = ""

    @classmethod
    def of(
        cls,
        base: Path,
        project: Path,
        spider: str,
        args: dict[str, str],
        settings: dict[str, str],
        around: dict[str, str] | None = None,
        *,
        called_in: str = "",
        command: str = "",
    ) -> "Crawl":
        """Return the crawl; ``base`` is the state folder of the user."""
        identity = [
            os.fsdecode(project),
            spider,
            sorted(args.items()),
            sorted(settings.items()),
        ]
        if around:
            # Usually nothing: then a crawl has the name that it always had.
            identity.append(sorted(around.items()))
        text = json.dumps(identity)
        key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_CHARS]
        return cls(
            folder=base / FOLDER / key,
            project=project,
            spider=spider,
            args=args,
            settings=settings,
            around=around or {},
            called_in=called_in,
            command=command,
        )

    def once(self, name: str) -> "Crawl":
        """Return the same crawl as a run of its own, which keeps nothing: ``discard``
        it in the end."""
        return attrs.evolve(self, folder=self.folder.with_name(f"{ONCE}{name}"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run of this crawl out; raises ``UserError``."""
        with hold_lock(lock_of(self.folder)) as is_locked:
            if not is_locked:
                raise UserError(
                    f"this crawl of {self.spider} already runs: wait for it or stop "
                    "it; other arguments (-a) or settings (-s) make another crawl"
                )
            yield

    def save(self, record: Record) -> None:
        """Write ``crawl.json``, whole or not at all."""
        path = self.folder / RECORD_NAME
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb", opener=_private) as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self) -> Record | None:
        """Return what is known of the last run; raises ``UserError``."""
        return load_record(self.folder)

    def start_over(self, job: str, digest: str) -> Record:
        """Remove what the folder holds and begin a new record."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        _make_folder(self.folder)
        record = Record(
            job=job,
            digest=digest,
            project=str(self.project),
            spider=self.spider,
            began_at=time.time(),
            args=self.args,
            settings=self.settings,
            around=self.around,
            folder=self.called_in,
            command=self.command,
        )
        self.save(record)
        return record

    def finish(self, record: Record) -> None:
        """Keep the record, items and log of a crawl that is done, and nothing else.

        Call it when the record is saved: the state of its master is of no more use.
        """
        keep = self.folder / RECORD_NAME, self.folder / "jobs"
        job = keep[1] / record.job
        for path in self.folder.iterdir():
            if path not in keep:
                _remove(path)
        if job.is_dir():
            for path in job.iterdir():
                if path.name not in _KEPT_OF_JOB:
                    _remove(path)

    def discard(self) -> None:
        """Remove all that is kept of it, the lock file too. Call it with the crawl
        locked."""
        shutil.rmtree(self.folder, ignore_errors=True)
        lock_of(self.folder).unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Rename the folder with the next number and return its new place."""
        taken = [number for number, _ in self._aside()]
        place = self.folder.with_name(f"{self.folder.name}.{max(taken, default=0) + 1}")
        self.folder.rename(place)
        return place

    def take_up(self) -> Record | None:
        """Make the latest crawl that was set aside the current one."""
        for _, place in sorted(self._aside(), reverse=True):
            record = load_record(place)
            if record is not None and not record.done:
                if self.folder.exists():
                    shutil.rmtree(self.folder)
                place.rename(self.folder)
                return record
        return None

    def others_unfinished(self) -> list[Record]:
        """Return the records of other unfinished crawls of this spider that nobody
        runs now, the latest first."""
        found = []
        for path in self.folder.parent.glob(f"*/{RECORD_NAME}"):
            # What was set aside has a number behind its name, and its own way back.
            name = path.parent.name
            if "." in name or name.startswith(ONCE) or path.parent == self.folder:
                continue
            try:
                record = load_record(path.parent)
            except UserError:
                # It is not the crawl that was asked for.
                continue
            if record is None or record.done or record.spider != self.spider:
                continue
            if record.project == str(self.project) and not is_held(
                lock_of(path.parent)
            ):
                found.append(record)
        return sorted(found, key=lambda record: record.began_at, reverse=True)

    def _aside(self) -> list[tuple[int, Path]]:
        found = []
        for place in self.folder.parent.glob(f"{self.folder.name}.*"):
            number = place.name.rpartition(".")[2]
            if number.isdecimal() and place.is_dir():
                found.append((int(number), place))
        return found


def choose(
    crawl: Crawl, new_job: str, *, fresh: bool, resume: bool
) -> tuple[Record, How, str]:
    """Return the record to run with, how, and a line for people (may be empty).

    Call it with the crawl locked. ``new_job`` is the id to use for a new job.
    Raises ``UserError`` when there is nothing to go on with.
    """
    digest = _digest_of(crawl)
    if fresh:
        return crawl.start_over(new_job, digest), "new", ""
    record = crawl.load()
    if record is None or record.done:
        if resume:
            record = crawl.take_up()
            if record is None:
                raise UserError(
                    f"there is no unfinished crawl of {crawl.spider} to resume: "
                    "leave --resume out"
                )
        else:
            return crawl.start_over(new_job, digest), "new", ""
    if record.digest == digest:
        return record, "go on", ""
    if resume:
        record.digest = digest
        record_how: How = "go on with changed code"
        return record, record_how, "the project's files have changed since"
    place = crawl.set_aside()
    text = (
        "the project's files have changed since the unfinished crawl: starting "
        f"fresh; the old one is kept in {place}, and once this crawl has ended "
        "--resume goes on with it"
    )
    return crawl.start_over(new_job, digest), "new", text


def _lock(handle: int) -> bool:
    """Lock this file for ourselves; False if another run has it."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            # A shared lock is ``is_held`` of another command, over in a moment.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(handle, fcntl.LOCK_UN)
        except BlockingIOError:
            return False


def lock_of(folder: Path) -> Path:
    """Return the lock file of a crawl's folder, which those set aside share."""
    return folder.with_name(f"{folder.name.partition('.')[0]}.lock")


@contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Lock the file for the block, and tell whether that could be done.

    A removal of the crawl removes the locked file too, so a file that was removed after
    it was opened locks nobody out and is opened anew. Raises ``UserError``.
    """
    while True:
        try:
            _make_folder(path.parent)
            handle = _private(str(path), os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; name another folder "
                "with --state"
            ) from None
        try:
            if not _lock(handle):
                yield False
                return
            if _is_same_file(handle, path):
                yield True
                return
        finally:
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a run has the lock; looking creates nothing."""
    try:
        handle = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, whatever the umask allows."""
    return os.open(path, flags, 0o600)


def _make_folder(folder: Path) -> None:
    """Create what is missing of a folder, each level for its owner alone."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)


def _digest_of(crawl: Crawl) -> str:
    try:
        return code_digest(crawl.project)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None


def load_record(folder: Path) -> Record | None:
    """Return the record in a crawl's folder, None if the crawl has not begun.

    Raises ``UserError``.
    """
    path = folder / RECORD_NAME
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != 1:
            raise UserError(
                f"{path} is of version {version}, this dscrapy reads version 1: use "
                "the dscrapy that wrote it, or --fresh to start over"
            )
        return msgspec.json.decode(data, type=Record)
    except FileNotFoundError:
        # A run that was stopped before it had begun.
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): --fresh starts over"
        ) from None
