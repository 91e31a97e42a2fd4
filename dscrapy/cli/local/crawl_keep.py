"""Finds, lists and removes the crawls that `crawl` keeps from run to run.

A finished crawl goes when newer ones push it out, an unfinished one only by name. A
removal holds the crawl's lock, so a run that begins meanwhile finds all or nothing.
"""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import attrs

from dscrapy.cli.local.crawl_state import (
    FOLDER,
    ONCE,
    RECORD_NAME,
    hold_lock,
    is_held,
    load_record,
    lock_of,
)
from dscrapy.conf.config import Config
from dscrapy.errors import UserError
from dscrapy.keep import Keep

# Folders of crawls: of their own name, set aside, or of a run that keeps nothing.
_NAME = re.compile(r"[0-9a-f]{16}(\.[0-9]{1,9})?\Z|" + ONCE + r"[0-9a-f]{16}\Z")

# Where nothing is configured: enough to look back at, little enough to forget about.
DEFAULT = Keep(jobs=20, days=30.0, bytes=2**30)


def limits_of(config: Config) -> Keep:
    """Return the limits of the conf file, or the default where it has none."""
    configured = Keep.of(config.master)
    return DEFAULT if configured.is_everything else configured


@attrs.frozen(kw_only=True)
class Kept:
    """A crawl that is kept. ``at`` is when it ended, or else when it began; ``stands``
    how: ``running``, ``unfinished``, ``unreadable``, or its job's state."""

    id: str
    project: str
    spider: str
    arguments: tuple[str, ...]
    stands: str
    done: bool
    at: float
    bytes: int
    pages: int = 0
    items: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return attrs.asdict(self)


def kept(state: Path) -> list[Kept]:
    """Return what is kept in the user's state folder, the oldest first."""
    base = state / FOLDER
    try:
        names = [path.name for path in base.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [_look(base / name) for name in names if _NAME.match(name)]
    return sorted(
        (crawl for crawl in found if crawl is not None), key=lambda crawl: crawl.at
    )


def _look(folder: Path) -> Kept | None:
    # A crawl that was set aside runs under its own name again, or not at all.
    is_running = "." not in folder.name and is_held(lock_of(folder))
    try:
        at, size = folder.stat().st_mtime, _bytes_in(folder)
        record = load_record(folder)
    except FileNotFoundError:
        return None
    except UserError:
        record = None
        stands = "unreadable"
    else:
        stands = "unfinished"
    if record is None:
        return Kept(
            id=folder.name,
            project="?",
            spider="?",
            arguments=(),
            stands="running" if is_running else stands,
            done=False,
            at=at,
            bytes=size,
        )
    if record.done:
        stands = record.state or "finished"
    arguments = [f"-a {name}={value}" for name, value in record.args.items()]
    arguments += [f"-s {name}={value}" for name, value in record.settings.items()]
    return Kept(
        id=folder.name,
        project=record.project,
        spider=record.spider,
        arguments=tuple(arguments),
        stands="running" if is_running else stands,
        done=record.done and not is_running,
        at=record.ended_at or record.began_at,
        bytes=size,
        pages=record.pages,
        items=record.items,
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            # A run begins or goes on just now.
            continue
    return total


def prune(state: Path, limits: Keep, *, dry_run: bool = False) -> list[Kept]:
    """Remove the finished crawls beyond the limits, the oldest first; return them.

    The rests of killed runs with ``--no-keep`` are removed as well.
    """
    now = time.time()
    crawls = kept(state)
    finished = [
        crawl for crawl in crawls if crawl.done and not crawl.id.startswith(ONCE)
    ]
    count, total = len(finished), sum(crawl.bytes for crawl in finished)
    beyond = [
        crawl
        for crawl in crawls
        if crawl.id.startswith(ONCE) and crawl.stands != "running"
    ]
    for crawl in finished:
        if limits.is_beyond(now - crawl.at, count, total):
            beyond.append(crawl)
            count, total = count - 1, total - crawl.bytes
    if dry_run:
        return beyond
    return [
        crawl for crawl in beyond if _remove(state / FOLDER / crawl.id, only_done=True)
    ]


def remove(state: Path, identity: str, *, dry_run: bool = False) -> int:
    """Remove a crawl by its id, finished or not; return its bytes.

    Raises ``UserError`` for one that is not there, or that runs.
    """
    folder = state / FOLDER / identity
    if not _NAME.match(identity) or not folder.is_dir():
        raise UserError(f"no crawl {identity} is kept: `dscrapy crawls` lists them")
    size = _bytes_in(folder)
    is_free = not is_held(lock_of(folder)) if dry_run else _remove(folder)
    if not is_free:
        raise UserError(f"crawl {identity} runs now: stop it first")
    return size


def _remove(folder: Path, *, only_done: bool = False) -> bool:
    """Remove the folder and its lock file, unless a run has it; False if one has."""
    lock = lock_of(folder)
    with hold_lock(lock) as is_locked:
        if not is_locked:
            return False
        if only_done and not folder.name.startswith(ONCE):
            try:
                record = load_record(folder)
            except UserError:
                return False
            if record is None or not record.done:
                # A run took it over since we looked.
                return False
        try:
            # Without a record the crawl counts as not begun, should this be cut short.
            (folder / RECORD_NAME).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"cannot remove {folder}: {error.strerror}") from None
        key = lock.name.removesuffix(".lock")
        is_last = not any(path.is_dir() for path in folder.parent.glob(f"{key}*"))
        if is_last:
            lock.unlink(missing_ok=True)
    return True
