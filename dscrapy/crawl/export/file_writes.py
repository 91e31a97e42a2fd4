"""Writes to a local file all that was meant for it, or nothing.

Bytes go to a part beside the file first. A complete part takes the place of the file,
or is appended to it. To the user this is the file that was there: a link goes on
pointing to it, its mode, owner and other names stay. Where a rename cannot give that
(several names, a foreign owner, a folder that takes no new files), the part is copied
over the file's content. A pipe, a device or an open file is written to at once.

This module writes the feeds of ``FEEDS`` and the files of ``-o`` and ``-O``.
"""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import IO

COPY_BYTES = 1024 * 1024
# Names of files that this process or another has open: after a rename the process would
# go on with a file that has no name.
_OPEN_FILES = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
# Errors of a folder that takes no new file, and of a file that is a mount point.
_NO_PART = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_RENAME = frozenset({*_NO_PART, errno.EBUSY, errno.EXDEV})
_NO_ALLOCATION = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


class PartFile(BufferedWriter):
    """A part that goes behind ``base`` bytes, which its position counts too."""

    def __init__(self, path: Path, base: int) -> None:
        super().__init__(FileIO(path, "wb"))
        self._base = base

    def tell(self) -> int:
        """Return the position in the file that the part will be in."""
        return super().tell() + self._base


def takes_at_once(path: Path) -> bool:
    """Whether ``path`` is written to at once, without a part: a pipe, a device, or a
    file that somebody has open (``/dev/stdout``)."""
    if str(path).startswith(_OPEN_FILES):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def target_of(path: Path) -> Path:
    """Return the file behind all links; raises ``OSError`` for links in a circle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def length_of(path: Path) -> int | None:
    """Return how long a file is, None where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def open_part(target: Path, name: str, *, base: int = 0) -> tuple[Path, PartFile]:
    """Return a new part for ``target``, its path and file; raises ``OSError``.

    The part is in the target's folder or, where that takes no new file and the target
    exists, in the folder for temporary files.
    """
    # A rename would replace a file that its mode protects from being written.
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    part = target.with_name(name)
    try:
        return part, PartFile(part, base)
    except OSError as error:
        if error.errno not in _NO_PART or not target.exists():
            raise
    part = Path(tempfile.gettempdir(), name)
    return part, PartFile(part, base)


def close_part(part: Path, file: IO[bytes]) -> None:
    """Have a complete part on disk; an exporter may have closed it."""
    if not file.closed:
        file.close()
    with part.open("rb") as complete:
        os.fsync(complete.fileno())


@contextmanager
def written(
    path: Path, *, append: bool, begin: int | None = None
) -> Iterator[IO[bytes]]:
    """Give a file to write to, whose bytes are at ``path`` afterwards.

    With ``append`` and ``begin`` the bytes are put behind the first ``begin`` bytes of
    the file; what an earlier run wrote there is replaced. With an error ``path`` is as
    it was, to the byte. Raises ``OSError``.
    """
    if takes_at_once(path):
        with path.open("ab" if append else "wb", buffering=COPY_BYTES) as direct:
            yield direct
        return
    target = target_of(path)
    size = base = length_of(target) if append else None
    if begin is not None and base is not None:
        base = min(begin, base)
    name = f".dscrapy-{os.getpid()}-{secrets.token_hex(4)}.part"
    part, file = open_part(target, name, base=base or 0)
    try:
        with file:
            yield file
        close_part(part, file)
        if base is None:
            replace(part, target)
        elif base == size:
            append_part(part, target, base)
        else:
            _replace_end(part, target, base, size or 0)
    finally:
        part.unlink(missing_ok=True)


def replace(part: Path, target: Path) -> None:
    """Let a part be the target's content; it is gone then. Raises ``OSError``."""
    if not target.exists() or _is_likened(part, target):
        try:
            part.replace(target)
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
        else:
            _sync_folder(target.parent)
            return
    _write_over(part, target)
    part.unlink()


def _is_likened(part: Path, target: Path) -> bool:
    """Give a part the target's owner, attributes and mode; False where that fails."""
    target_stat = target.stat()
    if target_stat.st_nlink > 1:
        return False
    try:
        part_stat = part.stat()
        if (part_stat.st_uid, part_stat.st_gid) != (
            target_stat.st_uid,
            target_stat.st_gid,
        ):
            os.chown(part, target_stat.st_uid, target_stat.st_gid)
        # Access lists among them.
        extra = _attributes(target)
        if extra != _attributes(part):
            for name, value in extra.items():
                os.setxattr(part, name, value)
        # The mode last: a change of the owner takes bits away.
        part.chmod(stat.S_IMODE(target_stat.st_mode))
    except OSError:
        return False
    return True


def _attributes(path: Path) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def _write_over(part: Path, target: Path) -> None:
    """Copy a part over the content of a target, which stays the same file."""
    handle = os.open(target, os.O_WRONLY)
    try:
        size = part.stat().st_size
        _make_room(handle, size)
        with part.open("rb") as source:
            _copy(source, handle)
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_room(handle: int, size: int) -> None:
    """Allocate so many bytes for a file, so that a full disk is found out before
    anything is lost. With an error the file is as long as it was."""
    before = os.fstat(handle).st_size
    try:
        if size > before:
            os.posix_fallocate(handle, before, size - before)
    except OSError as error:
        os.ftruncate(handle, before)
        if error.errno not in _NO_ALLOCATION:
            raise


def append_part(part: Path, target: Path, base: int) -> None:
    """Append a part to a target that was ``base`` bytes long, but for bytes that an
    earlier try has appended. With an error the target is as long as it was."""
    with part.open("rb") as source, target.open("r+b") as file:
        source.seek(_count_appended(source, file, base))
        before = file.seek(0, os.SEEK_END)
        handle = file.fileno()
        os.lseek(handle, before, os.SEEK_SET)
        try:
            _copy(source, handle)
            os.fsync(handle)
        except BaseException:
            # Bytes that others have appended meanwhile are not removed.
            if os.fstat(handle).st_size == os.lseek(handle, 0, os.SEEK_CUR):
                os.ftruncate(handle, before)
            raise


def _replace_end(part: Path, target: Path, base: int, size: int) -> None:
    """Replace all behind the first ``base`` bytes of a target by a part.

    ``size`` is the target's own. With an error the target is as it was.
    """
    with (
        part.open("rb") as source,
        target.open("r+b") as file,
        tempfile.TemporaryFile() as old,
    ):
        # Most items are the same as before, and are not written again.
        common = _count_common(source, file, base)
        at = base + common
        file.seek(at)
        shutil.copyfileobj(file, old, COPY_BYTES)
        old.seek(0)
        handle = file.fileno()
        if os.fstat(handle).st_size != size:
            raise OSError(errno.EAGAIN, "the file has been written to meanwhile")
        new_size = base + part.stat().st_size
        try:
            _make_room(handle, new_size)
            source.seek(common)
            os.lseek(handle, at, os.SEEK_SET)
            _copy(source, handle)
            os.ftruncate(handle, new_size)
            os.fsync(handle)
        except BaseException:
            os.lseek(handle, at, os.SEEK_SET)
            _copy(old, handle)
            os.ftruncate(handle, size)
            raise


def _count_common(source: IO[bytes], file: IO[bytes], base: int) -> int:
    """Return how many first bytes of ``source`` stand in ``file`` from ``base`` on."""
    count = 0
    file.seek(base)
    while data := source.read(COPY_BYTES):
        present = file.read(len(data))
        if data != present:
            pairs = zip(data, present, strict=False)
            return count + sum(1 for _ in takewhile(lambda pair: eq(*pair), pairs))
        count += len(data)
    return count


def _count_appended(source: IO[bytes], file: IO[bytes], base: int) -> int:
    """Return how many bytes of ``source`` stand in ``file`` from ``base`` on: all, or
    as many as there are before the end, or none if others wrote there."""
    count = 0
    file.seek(base)
    while data := source.read(COPY_BYTES):
        present = file.read(len(data))
        if not data.startswith(present):
            return 0
        count += len(present)
        if len(present) < len(data):
            break
    return count


def _copy(source: IO[bytes], handle: int) -> None:
    while data := source.read(COPY_BYTES):
        unwritten = memoryview(data)
        while unwritten:
            unwritten = unwritten[os.write(handle, unwritten) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
