"""What real files ask of the kernel, in its order: a name is durable by its folder.

A power cut cannot be had here, and the double that forgets what was not synced stands
in for it elsewhere; so the calls themselves are recorded, below the storage.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dscrapy.master import storage as module
from dscrapy.master.storage import DiskStorage

Call = tuple[str, ...]


class Kernel:
    """Records calls that change or sync; paths are relative to ``root``."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.calls: list[Call] = []
        for name in ("open", "mkdir", "rename", "unlink"):
            patch.setattr(os, name, partial(self._named, name, getattr(os, name)))
        for name in ("write", "pwrite", "ftruncate", "fsync"):
            patch.setattr(os, name, partial(self._opened, name, getattr(os, name)))
        # Taken from ``os`` when the module was imported.
        sync_data = partial(self._opened, "fsync", module._sync_data)
        patch.setattr(module, "_sync_data", sync_data)

    def _named(self, name: str, call: Any, *arguments: Any, **more: Any) -> Any:
        is_creating = name != "open" or arguments[1] & os.O_CREAT
        result = call(*arguments, **more)
        if is_creating:
            paths = [one for one in arguments if isinstance(one, Path)]
            self.calls.append((name, *map(self._short, paths)))
        return result

    def _opened(self, name: str, call: Any, fd: int, *arguments: Any) -> Any:
        result = call(fd, *arguments)
        kind = "write" if name in ("pwrite", "ftruncate") else name
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self.calls.append((kind, self._short(path)))
        return result

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.root))


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="asks /proc for the names of files"
)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DiskStorage]:
    """A storage whose folder is there."""
    storage = DiskStorage(tmp_path)
    yield storage
    storage.close()


@pytest.fixture
def kernel(
    storage: DiskStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Kernel:
    """What the storage asks for from now on."""
    return Kernel(tmp_path, monkeypatch)


def test_a_new_file_is_in_its_folder_before_anything_is_in_it(
    storage: DiskStorage, kernel: Kernel
) -> None:
    """Of a segment whose name is lost every record is lost, synced or not; a file that
    was there is in its folder already."""
    for again in (False, True):
        kernel.calls.clear()
        file = storage.open("a.log")
        file.append(b"x")
        file.sync()
        file.close()
        written = [("write", "a.log"), ("fsync", "a.log")]
        assert kernel.calls == (
            written if again else [("open", "a.log"), ("fsync", "."), *written]
        )


def test_a_file_is_replaced_when_it_is_whole_and_that_is_durable(
    storage: DiskStorage, kernel: Kernel
) -> None:
    """Its bytes are synced before the rename, its folder after it."""
    storage.write_atomic("a", b"new")
    assert kernel.calls == [
        ("open", "a.tmp"),
        ("write", "a.tmp"),
        ("fsync", "a.tmp"),
        ("rename", "a.tmp", "a"),
        ("fsync", "."),
    ]


def test_folders_are_durable_one_after_the_other(
    storage: DiskStorage, kernel: Kernel
) -> None:
    """Each in the one above it, before anything is made in it."""
    storage.make_folder("jobs/1/spool")
    assert kernel.calls == [
        ("mkdir", "jobs"),
        ("fsync", "."),
        ("mkdir", "jobs/1"),
        ("fsync", "jobs"),
        ("mkdir", "jobs/1/spool"),
        ("fsync", "jobs/1"),
    ]
    kernel.calls.clear()
    storage.write_atomic("jobs/1/spool/a", b"")
    assert kernel.calls[-2:] == [
        ("rename", "jobs/1/spool/a.tmp", "jobs/1/spool/a"),
        ("fsync", "jobs/1/spool"),
    ]


def test_the_state_folder_itself_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With those above it that were missing."""
    kernel = Kernel(tmp_path, monkeypatch)
    DiskStorage(tmp_path / "a" / "state").close()
    assert kernel.calls == [
        ("mkdir", "a"),
        ("fsync", "."),
        ("mkdir", "a/state"),
        ("fsync", "a"),
    ]


def test_what_was_removed_is_certain_when_its_folder_is_synced(
    storage: DiskStorage, kernel: Kernel
) -> None:
    """The folder itself is asked for, not a file in it."""
    storage.make_folder("jobs")
    storage.write_atomic("jobs/a", b"")
    kernel.calls.clear()
    storage.remove("jobs/a")
    storage.sync_folder("jobs")
    assert kernel.calls == [
        ("unlink", "jobs/a"),
        ("fsync", "jobs"),
    ]
