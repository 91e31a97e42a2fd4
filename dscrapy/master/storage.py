"""One state folder: the narrow interface to the disk, and real files behind it.

All calls block. Names are relative to the folder, with "/" between parts. What the
interface promises, whatever the disk:

- after ``File.sync`` returned, the file's bytes and its name outlive a power cut;
- ``write_atomic`` leaves the old file or the new one, never a mixture;
- ``remove`` and ``rename`` are certain only after ``sync_folder``;
- an ``OSError`` that is no ``SyncError`` left everything synced as it was, so the
  call may be made again; after a ``SyncError`` nobody knows what is on the disk
  (the kernel drops what it could not write and reports it once): it is final.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Protocol

from dscrapy.errors import UserError

LOCK_NAME = "lock"
TEMPORARY_SUFFIX = ".tmp"

# Errors that mean "no room": disk, quota, largest file. The rest is a broken disk.
NO_ROOM_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# macOS has no fdatasync; there fsync does the same and more.
_sync_data = getattr(os, "fdatasync", os.fsync)

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class SyncError(OSError):
    """A sync failed: what was written since the last one may be lost."""


class File(Protocol):
    """A file open for appending; the caller closes it."""

    @property
    def size(self) -> int:
        """Bytes in the file, those of a failed ``append`` included."""

    def append(self, data: bytes) -> None:
        """Write all of ``data`` at the end; ``OSError`` may leave a part of it."""

    def rewrite(self, start: int, data: bytes) -> None:
        """Write the bytes from ``start`` to the end again; ``data`` has the same bytes.

        After a failed sync the kernel may take bytes for written that are not on the
        disk. Written again, they are on the disk after the next sync that returns.
        """

    def sync(self) -> None:
        """Make the bytes durable; raises ``SyncError``."""

    def truncate(self, size: int) -> None:
        """Drop the bytes from ``size`` on; ``size`` is at most the file's."""

    def extend(self, size: int) -> None:
        """Fill the file up to ``size`` with zeros, which take no room."""

    def close(self) -> None:
        """Let the file go, without a sync. May be called twice."""


class Storage(Protocol):
    """One folder. A missing name is ``FileNotFoundError``."""

    def path(self, name: str) -> Path:
        """Return where the file is, for people and for other programs."""

    def names(self, folder: str = "") -> list[str]:
        """Return the names of files and folders in ``folder``, sorted."""

    def size(self, name: str) -> int:
        """Return the file's size in bytes."""

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset``, fewer only at the file's end."""

    def open(self, name: str) -> File:
        """Open for appending; creates the file, and its name durably, if missing."""

    def write_atomic(self, name: str, data: bytes) -> None:
        """Replace the file by ``data``, durable on return.

        A plain ``OSError`` means that nothing changed.
        """

    def remove(self, name: str) -> None:
        """Remove a file."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all in it, if it is there; certain only after
        ``sync_folder`` of the one above."""

    def make_folder(self, folder: str) -> None:
        """Create a folder and those above it, durably; one that exists is right."""

    def sync_folder(self, folder: str = "") -> None:
        """Make names in ``folder`` durable; raises ``SyncError``."""

    def free_bytes(self) -> int:
        """Return how many bytes may still be written."""

    def lock(self) -> None:
        """Keep every other master out until ``close``; ``UserError`` if one is in."""

    def close(self) -> None:
        """Let the lock go. May be called twice."""


class DiskStorage:
    """``Storage`` on real files: folders 0700, files 0600.

    A folder that exists keeps its mode: it may be one that others use as well.
    """

    def __init__(self, root: Path) -> None:
        """Create the folder if it is missing; ``UserError`` when that cannot be."""
        self._root = root.absolute()
        self._lock: int | None = None
        try:
            _make_folders(self._root)
        except OSError as error:
            raise UserError(
                f"cannot use state folder {self._root}: {error.strerror}"
            ) from error

    def path(self, name: str) -> Path:
        parts = PurePosixPath(name)
        assert not parts.is_absolute(), name
        assert ".." not in parts.parts, name
        return self._root / parts

    def names(self, folder: str = "") -> list[str]:
        return sorted(os.listdir(self.path(folder)))

    def size(self, name: str) -> int:
        return os.stat(self.path(name)).st_size

    def read(self, name: str, offset: int, count: int) -> bytes:
        fd = os.open(self.path(name), os.O_RDONLY)
        try:
            data = os.pread(fd, count, offset)
            # The kernel may return less than is there.
            while len(data) < count and (
                chunk := os.pread(fd, count - len(data), offset + len(data))
            ):
                data += chunk
            return data
        finally:
            os.close(fd)

    def open(self, name: str) -> File:
        path = self.path(name)
        flags = os.O_WRONLY | os.O_APPEND
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        except FileExistsError:
            return _DiskFile(os.open(path, flags))
        try:
            _sync_folder(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return _DiskFile(fd)

    def write_atomic(self, name: str, data: bytes) -> None:
        path = self.path(name)
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        try:
            _write_new(temporary, data)
            os.rename(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, SyncError):
                # Only the temporary file was in doubt, and it is gone.
                raise OSError(*error.args) from error
            raise
        _sync_folder(path.parent)

    def remove(self, name: str) -> None:
        os.unlink(self.path(name))

    def remove_folder(self, folder: str) -> None:
        path = self.path(folder)
        if path.is_symlink():
            # Somebody moved the folder to another disk: what is there is theirs.
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)

    def make_folder(self, folder: str) -> None:
        _make_folders(self.path(folder))

    def sync_folder(self, folder: str = "") -> None:
        _sync_folder(self.path(folder))

    def free_bytes(self) -> int:
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def lock(self) -> None:
        assert self._lock is None, "locked twice"
        path = self.path(LOCK_NAME)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, _FILE_MODE)
        except OSError as error:
            raise UserError(
                f"cannot write in state folder {self._root}: {error.strerror}"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise UserError(
                f"another master already uses state folder {self._root} "
                f"(pid {pid or 'unknown'}): stop it, or choose another folder"
            ) from error
        except OSError as error:
            os.close(fd)
            raise UserError(
                f"cannot lock state folder {self._root}: {error.strerror}"
            ) from error
        self._lock = fd
        # The number only helps people, so a full disk must not keep a master out.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        # The file stays: removing it might remove the lock of another master.
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _DiskFile:
    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        unwritten = memoryview(data)
        while unwritten:
            written = os.write(self._open_fd(), unwritten)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += written
            unwritten = unwritten[written:]

    def rewrite(self, start: int, data: bytes) -> None:
        assert start + len(data) == self._size, (start, len(data), self._size)
        fd, unwritten = self._open_fd(), memoryview(data)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        # Where a file is open for appending Linux ignores the offset.
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        try:
            while unwritten:
                written = os.pwrite(fd, unwritten, start)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                start += written
                unwritten = unwritten[written:]
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)

    def sync(self) -> None:
        _sync(self._open_fd(), data_only=True)

    def truncate(self, size: int) -> None:
        assert size <= self._size, (size, self._size)
        os.ftruncate(self._open_fd(), size)
        self._size = size

    def extend(self, size: int) -> None:
        assert size >= self._size, (size, self._size)
        os.ftruncate(self._open_fd(), size)
        self._size = size

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _open_fd(self) -> int:
        assert self._fd is not None, "file is closed"
        return self._fd


def _write_new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
    file = _DiskFile(fd)
    try:
        file.append(data)
        file.sync()
    finally:
        file.close()


def _make_folders(folder: Path) -> None:
    """Create the missing levels of ``folder``, each durable before the next."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    # Another program may create the folder at the same moment; that is as good.
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, _FOLDER_MODE)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SyncError(*error.args) from error
    try:
        _sync(fd, data_only=False)
    finally:
        os.close(fd)


def _sync(fd: int, *, data_only: bool) -> None:
    try:
        if data_only:
            _sync_data(fd)
        else:
            os.fsync(fd)
    except OSError as error:
        raise SyncError(*error.args) from error
