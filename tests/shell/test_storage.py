"""The storage's promises, on real files and on the double alike."""

import errno
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from dscrapy.errors import UserError
from dscrapy.master.storage import DiskStorage, Storage, SyncError
from tests.doubles.storage import MemoryStorage


@attrs.frozen
class Disk:
    """A storage, and one that a second master on the same folder would use."""

    storage: Storage
    rival: Storage


@pytest.fixture(params=["disk", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "disk":
        made = Disk(DiskStorage(tmp_path / "state"), DiskStorage(tmp_path / "state"))
    else:
        memory = MemoryStorage()
        made = Disk(memory, memory)
    yield made
    made.storage.close()
    made.rival.close()


@pytest.fixture
def storage(disk: Disk) -> Storage:
    return disk.storage


def whole(storage: Storage, name: str) -> bytes:
    return storage.read(name, 0, storage.size(name))


# ---- the contract ------------------------------------------------------------


def test_appends_follow_each_other(storage: Storage) -> None:
    """What is appended stands at the end, also after the file was opened again."""
    file = storage.open("a.log")
    assert (file.size, storage.size("a.log")) == (0, 0)
    file.append(b"one")
    file.append(b"")
    file.append(b"two")
    assert file.size == 6
    file.close()
    file = storage.open("a.log")
    assert file.size == 6
    file.append(b"three")
    file.sync()
    file.close()
    file.close()
    assert whole(storage, "a.log") == b"onetwothree"


def test_what_is_there_may_be_written_again(storage: Storage) -> None:
    """The file is as before, and goes on at its end."""
    file = storage.open("a")
    file.append(b"0123456789")
    file.rewrite(4, b"456789")
    assert file.size == 10
    file.append(b"ab")
    file.rewrite(12, b"")
    file.sync()
    file.close()
    assert storage.read("a", 0, 100) == b"0123456789ab"


def test_truncate_drops_the_end(storage: Storage) -> None:
    """After a truncate the next append stands where the file was cut."""
    file = storage.open("a.log")
    file.append(b"0123456789")
    file.sync()
    file.truncate(4)
    assert file.size == storage.size("a.log") == 4
    file.append(b"x")
    file.close()
    assert whole(storage, "a.log") == b"0123x"


def test_read_gives_what_is_there(storage: Storage) -> None:
    """A read gives the bytes asked for, fewer only at the end."""
    storage.write_atomic("a", b"0123456789")
    assert storage.read("a", 0, 4) == b"0123"
    assert storage.read("a", 4, 4) == b"4567"
    assert storage.read("a", 8, 4) == b"89"
    assert storage.read("a", 10, 4) == b""
    assert storage.read("a", 99, 4) == b""


def test_large_bytes_go_through(storage: Storage) -> None:
    """Nothing depends on a write or a read being small."""
    data = random.Random(1).randbytes(5_000_000)
    file = storage.open("a")
    file.append(data)
    file.close()
    assert whole(storage, "a") == data


def test_write_atomic_replaces(storage: Storage) -> None:
    """The new bytes replace the old, and no other file is left."""
    storage.write_atomic("a", b"a long first version")
    storage.write_atomic("a", b"second")
    assert whole(storage, "a") == b"second"
    assert storage.names() == ["a"]


def test_an_open_file_keeps_what_was_replaced(storage: Storage) -> None:
    """An appender does not write into the file that replaced its own."""
    file = storage.open("a")
    storage.write_atomic("a", b"new")
    file.append(b"old")
    file.close()
    assert whole(storage, "a") == b"new"


def test_a_removed_file_has_no_name(storage: Storage) -> None:
    """The others keep theirs."""
    storage.write_atomic("a", b"a")
    storage.write_atomic("b", b"b")
    storage.remove("a")
    storage.sync_folder()
    assert storage.names() == ["b"]
    assert whole(storage, "b") == b"b"
    storage.remove("b")
    assert storage.names() == []


def test_folders_hold_files(storage: Storage) -> None:
    """Folders come with those above them, and their names stand in the listing."""
    storage.make_folder("jobs/1f")
    storage.make_folder("jobs/1f")
    storage.make_folder("jobs/2e")
    storage.write_atomic("jobs/1f/c", b"1")
    file = storage.open("jobs/1f/b")
    file.append(b"2")
    file.close()
    assert storage.names() == ["jobs"]
    assert storage.names("jobs") == ["1f", "2e"]
    assert storage.names("jobs/1f") == ["b", "c"]
    assert whole(storage, "jobs/1f/c") == b"1"
    storage.remove("jobs/1f/c")
    assert storage.names("jobs/1f") == ["b"]


def test_a_removed_folder_is_gone_with_all_in_it(storage: Storage) -> None:
    """Its neighbours stay; one that is not there is right; it can be made again."""
    for folder in ("jobs/1f", "jobs/2e"):
        storage.make_folder(folder)
        storage.write_atomic(f"{folder}/a", b"1")
    for _ in range(2):
        storage.remove_folder("jobs/1f")
        storage.sync_folder("jobs")
    assert storage.names("jobs") == ["2e"]
    assert whole(storage, "jobs/2e/a") == b"1"
    with pytest.raises(FileNotFoundError):
        storage.names("jobs/1f")
    with pytest.raises(FileNotFoundError):
        storage.open("jobs/1f/a")
    storage.make_folder("jobs/1f")
    assert storage.names("jobs/1f") == []


def test_a_folder_is_never_made_over_a_file(storage: Storage) -> None:
    """A file that stands in a folder's place is an error and stays."""
    storage.write_atomic("jobs", b"x")
    with pytest.raises(OSError, match="Not a directory"):
        storage.make_folder("jobs")
    assert whole(storage, "jobs") == b"x"


def test_missing_names_are_told(storage: Storage) -> None:
    """A missing file or folder is ``FileNotFoundError``, whatever is asked of it."""
    with pytest.raises(FileNotFoundError):
        storage.size("a")
    with pytest.raises(FileNotFoundError):
        storage.read("a", 0, 1)
    with pytest.raises(FileNotFoundError):
        storage.remove("a")
    with pytest.raises(FileNotFoundError):
        storage.names("jobs")
    with pytest.raises(FileNotFoundError):
        storage.open("jobs/a")
    with pytest.raises(FileNotFoundError):
        storage.write_atomic("jobs/a", b"")
    assert storage.names() == []


def test_second_master_is_kept_out(disk: Disk) -> None:
    """The lock names the folder and the holder; it is free once let go."""
    disk.storage.lock()
    with pytest.raises(UserError) as caught:
        disk.rival.lock()
    text = str(caught.value)
    assert f"another master already uses state folder {disk.storage.path('')}" in text
    assert f"(pid {os.getpid()})" in text
    assert "\n" not in text
    disk.storage.close()
    disk.storage.close()
    disk.rival.lock()


def test_free_bytes_is_a_size(storage: Storage) -> None:
    """There is room on the test machine, and it is told."""
    assert storage.free_bytes() > 0


# ---- real files --------------------------------------------------------------


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def test_nobody_else_may_read(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask allows."""
    with umask(0):
        storage = DiskStorage(tmp_path / "deep" / "state")
        storage.lock()
        storage.make_folder("jobs/1f")
        storage.open("jobs/1f/items.jsonl").close()
        storage.write_atomic("token", b"secret")
    storage.close()
    root = tmp_path / "deep" / "state"
    for folder in (root.parent, root, root / "jobs", root / "jobs" / "1f"):
        assert mode(folder) == 0o700, folder
    for file in ("lock", "token", "jobs/1f/items.jsonl"):
        assert mode(root / file) == 0o600, file


def test_folder_of_others_keeps_its_mode(tmp_path: Path) -> None:
    """A folder that was there is used as it is."""
    tmp_path.chmod(0o755)
    DiskStorage(tmp_path)
    assert mode(tmp_path) == 0o755


def test_lock_of_a_dead_master_is_free(tmp_path: Path) -> None:
    """A lock dies with its process; a live one is named by its number."""
    script = (
        "import sys; from pathlib import Path;"
        "from dscrapy.master.storage import DiskStorage;"
        "s = DiskStorage(Path(sys.argv[1])); s.lock();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    storage = DiskStorage(tmp_path)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"\(pid {child.pid}\)"):
            storage.lock()
        child.kill()
    storage.lock()
    storage.close()


def test_state_folder_that_cannot_be_is_a_users_error(tmp_path: Path) -> None:
    """A file where the folder should be is one clear line."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(UserError) as caught:
            DiskStorage(path)
        assert str(caught.value) == f"cannot use state folder {path}: Not a directory"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the right to write everywhere, if this process has it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folder_that_cannot_be_written_is_a_users_error() -> None:
    """No right to write is one clear line, for a new folder and an old one."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o555)
        try:
            with as_nobody():
                with pytest.raises(UserError) as caught:
                    DiskStorage(root / "state")
                assert str(caught.value) == (
                    f"cannot use state folder {root / 'state'}: Permission denied"
                )
                storage = DiskStorage(root)
                with pytest.raises(UserError) as caught:
                    storage.lock()
                assert str(caught.value) == (
                    f"cannot write in state folder {root}: Permission denied"
                )
        finally:
            root.chmod(0o755)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse files over ``size``: a real short write, then EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_short_write_is_an_error_and_counted(tmp_path: Path) -> None:
    """A write that fits only in part raises, and the size tells the part."""
    storage = DiskStorage(tmp_path)
    file = storage.open("a")
    file.append(b"0123")
    with largest_file(10), pytest.raises(OSError, match="too large") as caught:
        file.append(b"x" * 100)
    assert caught.value.errno == errno.EFBIG
    assert not isinstance(caught.value, SyncError)
    assert file.size == storage.size("a") == 10
    file.truncate(4)
    file.append(b"4")
    file.close()
    assert whole(storage, "a") == b"01234"


def test_write_atomic_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Without room the old file stays and nothing is left beside it."""
    storage = DiskStorage(tmp_path)
    storage.write_atomic("a", b"old")
    with largest_file(10), pytest.raises(OSError, match="too large") as caught:
        storage.write_atomic("a", b"x" * 100)
    assert not isinstance(caught.value, SyncError)
    assert whole(storage, "a") == b"old"
    assert storage.names() == ["a"]


def test_failed_sync_is_told_apart(tmp_path: Path) -> None:
    """A failed sync is ``SyncError``; of a file that was then dropped, it is not.

    The kernel has no sync for a device, so a link to one gives a real failure.
    """
    storage = DiskStorage(tmp_path)
    (tmp_path / "device").symlink_to("/dev/null")
    file = storage.open("device")
    file.append(b"x")
    with pytest.raises(SyncError):
        file.sync()
    file.close()
    (tmp_path / "a.tmp").symlink_to("/dev/null")
    with pytest.raises(OSError, match="Invalid argument") as caught:
        storage.write_atomic("a", b"x")
    assert not isinstance(caught.value, SyncError)
    assert storage.names() == ["device"]
    with pytest.raises(SyncError):
        storage.sync_folder("missing")


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    """A name that would leave the folder is our own bug and stops there."""
    storage = DiskStorage(tmp_path)
    for name in ("../a", "jobs/../../a", "/etc/passwd"):
        with pytest.raises(AssertionError):
            storage.path(name)


# ---- the double's faults -------------------------------------------------------


def crashes(storage: MemoryStorage, count: int = 200) -> Iterator[MemoryStorage]:
    for seed in range(count):
        yield storage.crash(random.Random(seed))


def test_crash_keeps_what_was_synced_and_any_part_of_the_rest() -> None:
    """Synced bytes stay; what is not synced comes back in many ways."""
    storage = MemoryStorage()
    file = storage.open("a")
    file.append(b"s" * 40)
    file.sync()
    file.append(b"u" * 40)
    found = [whole(crashed, "a") for crashed in crashes(storage)]
    assert all(data.startswith(b"s" * 40) for data in found)
    assert {len(data) for data in found} > {40, 80}
    # Later bytes without earlier ones: order is not kept.
    assert any(b"\0u" in data for data in found)


def test_crash_may_undo_a_truncate_that_was_not_synced() -> None:
    """Before a sync the disk may have the old bytes, the new, or some of each."""
    storage = MemoryStorage()
    file = storage.open("a")
    file.append(b"o" * 64)
    file.sync()
    file.truncate(10)
    file.append(b"n" * 54)
    found = {whole(crashed, "a") for crashed in crashes(storage)}
    assert b"o" * 64 in found
    assert b"o" * 10 + b"n" * 54 in found
    assert any(b"o" in data[10:] and b"n" in data for data in found)
    file.sync()
    assert {whole(crashed, "a") for crashed in crashes(storage)} == {
        b"o" * 10 + b"n" * 54
    }


def test_crash_may_drop_names_that_were_not_synced() -> None:
    """A removal may come back undone until the folder is synced."""
    storage = MemoryStorage()
    for name in ("a", "b", "c"):
        storage.put(name, b"x")
    storage.remove("a")
    storage.remove("b")
    found = {tuple(crashed.names()) for crashed in crashes(storage)}
    assert found == {("a", "b", "c"), ("a", "c"), ("b", "c"), ("c",)}
    storage.sync_folder()
    assert {tuple(crashed.names()) for crashed in crashes(storage)} == {("c",)}


def test_failed_sync_is_final_in_the_double() -> None:
    """Who syncs again after a failure is told success, and loses the bytes."""
    storage = MemoryStorage()
    file = storage.open("a")
    file.append(b"lost")
    storage.syncs_left = 0
    with pytest.raises(SyncError):
        file.sync()
    storage.syncs_left = None
    file.sync()
    assert b"" in {whole(crashed, "a") for crashed in crashes(storage)}


def test_full_double_writes_what_fits() -> None:
    """Without room a part is written; what is removed makes room again."""
    storage = MemoryStorage(room=10)
    storage.write_atomic("old", b"12345")
    file = storage.open("a")
    with pytest.raises(OSError, match="No space left") as caught:
        file.append(b"abcdefgh")
    assert caught.value.errno == errno.ENOSPC
    assert whole(storage, "a") == b"abcde"
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomic("old", b"6")
    assert whole(storage, "old") == b"12345"
    storage.remove("old")
    file.append(b"fgh")
    assert storage.free_bytes() == 2


def test_failing_double_fails() -> None:
    """Appends fail with EIO from the one on that was asked for."""
    storage = MemoryStorage(appends_left=1)
    file = storage.open("a")
    file.append(b"1")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            file.append(b"2")
    assert whole(storage, "a") == b"1"
