"""A disk in memory that forgets, fills up, fails and loses power, from one seed.

It keeps apart what was synced and what was not, for bytes and for names. ``crash``
gives the disk as it may be found after a power cut: what was synced is there; of
what was not, any part may be, in any order, as POSIX allows. A killed process is
the same storage used again: what was written is there, synced or not.

After a failed sync later ones report success and make nothing more durable, as the
Linux page cache does: whoever tries a failed sync again loses data in ``crash``.
Only a file cut back to what was durable before can be written on.
"""

import errno
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import attrs

from dscrapy.errors import UserError
from dscrapy.master.storage import TEMPORARY_SUFFIX, SyncError

# Unsynced bytes reach the disk in pieces of this size; small, so that small files
# have several.
BLOCK_BYTES = 16


class PowerCut(Exception):
    """The power is gone: every call raises this from now on."""


@attrs.define
class _Node:
    """A file's bytes, and what of them the disk surely has.

    The disk surely has ``data[:low]``; what it had behind that is ``old_tail``.
    """

    data: bytearray = attrs.field(factory=bytearray)
    low: int = 0
    old_tail: bytes = b""
    sync_failed: bool = False

    def cut(self, size: int) -> None:
        if size <= self.low:
            self.sync_failed = False
        if size < self.low:
            self.old_tail = bytes(self.data[size : self.low]) + self.old_tail
            self.low = size
        del self.data[size:]

    def sync(self) -> None:
        if not self.sync_failed:
            self.low, self.old_tail = len(self.data), b""

    def rewrite(self, start: int) -> None:
        if start <= self.low:
            # All that waits for a sync is written by the next one.
            self.sync_failed = False

    def fail_sync(self) -> None:
        # What was synced before stays so: only what waited for this sync is lost.
        self.sync_failed |= len(self.data) > self.low or bool(self.old_tail)

    def crash(self, rng: random.Random) -> "_Node":
        old = bytes(self.data[: self.low]) + self.old_tail
        new = bytes(self.data)
        match rng.choice(("old", "new", "prefix", "blocks")):
            case "old":
                found = old
            case "new":
                found = new
            case "prefix":
                found = new[: rng.randint(self.low, len(new))]
            case _:
                size = rng.randint(self.low, max(len(old), len(new)))
                padded = [side.ljust(size, b"\0")[:size] for side in (old, new)]
                found = b"".join(
                    rng.choice(padded)[at : at + BLOCK_BYTES]
                    for at in range(0, size, BLOCK_BYTES)
                )
        return _Node(data=bytearray(found), low=len(found))


@attrs.frozen
class _Change:
    """One change of a folder's names that was not synced yet.

    ``node`` None removes ``name``; ``old`` is the name that a rename took away.
    """

    name: str
    node: _Node | None
    old: str | None = None


@attrs.define
class _Folder:
    """Names as programs see them, as the disk has them, and what is between."""

    names: dict[str, _Node] = attrs.field(factory=dict)
    synced: dict[str, _Node] = attrs.field(factory=dict)
    changes: list[_Change] = attrs.field(factory=list)
    sync_failed: bool = False
    is_removed: bool = False

    def change(self, change: _Change) -> None:
        _apply(self.names, change)
        self.changes.append(change)

    def sync(self) -> None:
        if not self.sync_failed:
            self.synced = dict(self.names)
            self.changes.clear()

    def fail_sync(self) -> None:
        self.sync_failed |= bool(self.changes)

    def crash(self, rng: random.Random, fresh: Callable[[_Node], _Node]) -> "_Folder":
        found = dict(self.synced)
        for change in _survivors(self.changes, rng):
            _apply(found, change)
        names = {name: fresh(node) for name, node in found.items()}
        return _Folder(names=names, synced=dict(names))


def _apply(names: dict[str, _Node], change: _Change) -> None:
    if change.old is not None:
        names.pop(change.old, None)
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


def _survivors(changes: list[_Change], rng: random.Random) -> Iterable[_Change]:
    match rng.choice(("none", "all", "prefix", "some")):
        case "none":
            return []
        case "all":
            return changes
        case "prefix":
            return changes[: rng.randint(0, len(changes))]
        case _:
            return [change for change in changes if rng.random() < 0.5]


Call = Literal["append", "sync", "rename", "other"]


@attrs.define
class MemoryStorage:
    """``Storage`` in memory; set the faults as attributes, None is none.

    ``room`` is how many bytes all files may have together; a write beyond writes
    what fits. ``syncs_left`` and ``appends_left`` count calls that still succeed,
    then all fail with EIO, ``renames_left`` the same for renames. ``calls_left`` counts
    changing calls until the power goes; the call it goes in has partly happened.
    ``calls`` counts them.
    """

    room: int | None = None
    syncs_left: int | None = None
    appends_left: int | None = None
    renames_left: int | None = None
    calls_left: int | None = None
    rng: random.Random = attrs.field(factory=lambda: random.Random(0))
    calls: int = 0
    _folders: dict[str, _Folder] = attrs.field(factory=lambda: {"": _Folder()})
    _locked: bool = False

    def crash(self, rng: random.Random) -> "MemoryStorage":
        """Return the disk as it may be found once the power is back, faultless."""
        # A node may have two names (before and after a rename): one fate for both.
        fates: dict[int, _Node] = {}

        def fresh(node: _Node) -> _Node:
            if id(node) not in fates:
                fates[id(node)] = node.crash(rng)
            return fates[id(node)]

        return MemoryStorage(
            rng=rng,
            folders={
                path: folder.crash(rng, fresh)
                for path, folder in self._folders.items()
                if not folder.is_removed or rng.random() < 0.5
            },
        )

    def copy(self) -> "MemoryStorage":
        """Return a faultless copy in which everything is as programs see it."""
        copied = MemoryStorage()
        for path, folder in self._folders.items():
            copied._folders[path] = _Folder()
            for name, node in folder.names.items():
                copied.put(f"{path}/{name}".lstrip("/"), bytes(node.data))
        return copied

    def reopened(self) -> "MemoryStorage":
        """Return the same disk for the next master; whoever has this one is dead.

        What was written is there, synced or not. Of the faults only ``room`` stays. A
        folder whose sync failed can be synced again: a file system that failed to write
        its own journal has to be mounted anew before it is written at all.
        """
        self.calls_left = -1
        for folder in self._folders.values():
            folder.sync_failed = False
        return MemoryStorage(room=self.room, rng=self.rng, folders=self._folders)

    def put(self, name: str, data: bytes) -> None:
        """Make a file hold ``data``, synced: to prepare a test or damage a file."""
        folder, last = self._split(name)
        folder.names[last] = _Node(data=bytearray(data), low=len(data))
        folder.sync()

    def used_bytes(self) -> int:
        """Return how many bytes all files have together."""
        return sum(
            len(node.data)
            for folder in self._folders.values()
            for node in folder.names.values()
        )

    # ---- Storage -------------------------------------------------------------

    def path(self, name: str) -> Path:
        return Path("/memory") / name

    def names(self, folder: str = "") -> list[str]:
        if folder not in self._folders or self._folders[folder].is_removed:
            raise _error(errno.ENOENT)
        there = [path for path, one in self._folders.items() if not one.is_removed]
        below = [path.rpartition("/") for path in there if path]
        folders = [last for above, _, last in below if above == folder]
        return sorted([*self._folders[folder].names, *folders])

    def size(self, name: str) -> int:
        return len(self._node(name).data)

    def read(self, name: str, offset: int, count: int) -> bytes:
        return bytes(self._node(name).data[offset : offset + count])

    def open(self, name: str) -> "MemoryFile":
        folder, last = self._split(name)
        if last not in folder.names:
            self._call("other")
            folder.change(_Change(last, _Node()))
            self._sync(folder)
        return MemoryFile(self, folder.names[last])

    def write_atomic(self, name: str, data: bytes) -> None:
        folder, last = self._split(name)
        temporary = last + TEMPORARY_SUFFIX
        node = _Node()
        self._call("other")
        folder.change(_Change(temporary, node))
        try:
            self._append(node, data)
            self._sync(node)
            self._call("rename")
        except OSError as error:
            folder.change(_Change(temporary, None))
            raise OSError(*error.args) from error
        folder.change(_Change(last, node, old=temporary))
        self._sync(folder)

    def remove(self, name: str) -> None:
        folder, last = self._split(name)
        self._node(name)
        self._call("other")
        folder.change(_Change(last, None))

    def remove_folder(self, folder: str) -> None:
        if folder not in self._folders or self._folders[folder].is_removed:
            return
        for name in list(self._folders[folder].names):
            self.remove(f"{folder}/{name}")
        self._call("other")
        # A crash may bring names back; then the folder is there, too.
        self._folders[folder].is_removed = True

    def make_folder(self, folder: str) -> None:
        self._call("other")
        parts = folder.split("/")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            above, last = self._split(path)
            if last in above.names:
                raise _error(errno.ENOTDIR)
            self._folders.setdefault(path, _Folder()).is_removed = False

    def sync_folder(self, folder: str = "") -> None:
        self._sync(self._folders[folder])
        for path, one in list(self._folders.items()):
            if one.is_removed and path.rpartition("/")[0] == folder:
                del self._folders[path]

    def free_bytes(self) -> int:
        return 1 << 40 if self.room is None else max(0, self.room - self.used_bytes())

    def lock(self) -> None:
        if self._locked:
            raise UserError(
                "another master already uses state folder /memory "
                f"(pid {os.getpid()}): stop it, or choose another folder"
            )
        self._locked = True

    def close(self) -> None:
        self._locked = False

    # ---- one call, with its faults -------------------------------------------

    def _split(self, name: str) -> tuple[_Folder, str]:
        folder, _, last = name.rpartition("/")
        if folder not in self._folders or self._folders[folder].is_removed:
            raise _error(errno.ENOENT)
        return self._folders[folder], last

    def _node(self, name: str) -> _Node:
        folder, last = self._split(name)
        if last not in folder.names:
            raise _error(errno.ENOENT)
        return folder.names[last]

    def _call(self, call: Call) -> None:
        if self.calls_left is not None:
            if self.calls_left <= 0:
                # Below zero nothing more happens, not even in part.
                self.calls_left = -1
                raise PowerCut
            self.calls_left -= 1
        self.calls += 1
        if call == "append" and self.appends_left is not None:
            if self.appends_left <= 0:
                raise _error(errno.EIO)
            self.appends_left -= 1
        if call == "rename" and self.renames_left is not None:
            if self.renames_left <= 0:
                raise _error(errno.EIO)
            self.renames_left -= 1

    def _append(self, node: _Node, data: bytes) -> None:
        if self.calls_left == 0:
            node.data += data[: self.rng.randint(0, len(data))]
        self._call("append")
        fits = min(self.free_bytes(), len(data))
        node.data += data[:fits]
        if fits < len(data):
            raise _error(errno.ENOSPC)

    def _sync(self, target: _Node | _Folder) -> None:
        if self.calls_left == 0 and self.rng.random() < 0.5:
            target.sync()
        self._call("sync")
        if self.syncs_left is not None:
            if self.syncs_left <= 0:
                target.fail_sync()
                raise SyncError(errno.EIO, os.strerror(errno.EIO))
            self.syncs_left -= 1
        target.sync()


class MemoryFile:
    """``File`` on a node of a ``MemoryStorage``."""

    def __init__(self, storage: MemoryStorage, node: _Node) -> None:
        self._storage = storage
        self._node: _Node | None = node

    @property
    def size(self) -> int:
        return len(self._open_node().data)

    def append(self, data: bytes) -> None:
        self._storage._append(self._open_node(), data)

    def rewrite(self, start: int, data: bytes) -> None:
        node = self._open_node()
        assert bytes(node.data[start:]) == data
        self._storage._call("append")
        node.rewrite(start)

    def sync(self) -> None:
        self._storage._sync(self._open_node())

    def truncate(self, size: int) -> None:
        assert size <= self.size, (size, self.size)
        self._storage._call("other")
        self._open_node().cut(size)

    def extend(self, size: int) -> None:
        self._storage._call("other")
        self._open_node().data += bytes(size - self.size)

    def close(self) -> None:
        self._node = None

    def _open_node(self) -> _Node:
        assert self._node is not None, "file is closed"
        return self._node


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
