"""Local files of outputs: what was there stays what it is, or stays as it was."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dscrapy.crawl.export.file_writes import (
    COPY_BYTES,
    append_part,
    takes_at_once,
    written,
)

OLD = b"old\n"
NEW = b"new\n"


def put(
    path: Path, data: bytes, *, append: bool = False, begin: int | None = None
) -> None:
    """Write a file as outputs are written."""
    with written(path, append=append, begin=begin) as file:
        file.write(data)


def names_in(folder: Path) -> list[str]:
    """Return what is in a folder, hidden parts too."""
    return sorted(os.listdir(folder))


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("append", [False, True])
def test_a_link_points_on_to_its_file(tmp_path: Path, append: bool) -> None:
    """Which keeps its mode, from folder to folder; a link to nothing makes a file."""
    real, link = tmp_path / "real", tmp_path / "links" / "link"
    link.parent.mkdir()
    real.write_bytes(OLD)
    real.chmod(0o640)
    link.symlink_to(Path("..", "real"))
    put(link, NEW, append=append)
    assert link.is_symlink()
    assert real.read_bytes() == (OLD + NEW if append else NEW)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    real.unlink()
    put(link, NEW, append=append)
    assert real.read_bytes() == NEW
    assert names_in(tmp_path) == ["links", "real"]
    assert names_in(link.parent) == ["link"]


@pytest.mark.parametrize("append", [False, True])
def test_all_names_of_a_file_show_what_was_written(
    tmp_path: Path, append: bool
) -> None:
    """It is one file, shorter or longer than before."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(OLD * 3)
    other.hardlink_to(one)
    put(one, NEW, append=append)
    assert other.read_bytes() == (OLD * 3 + NEW if append else NEW)
    put(one, NEW * 9)
    assert other.read_bytes() == NEW * 9
    assert names_in(tmp_path) == ["one", "other"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    """Whoever writes it."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    os.chown(path, 12345, 23456)
    path.chmod(0o6751)
    put(path, NEW)
    there = path.stat()
    assert (there.st_uid, there.st_gid) == (12345, 23456)
    assert stat.S_IMODE(there.st_mode) == 0o6751


@pytest.mark.parametrize("append", [False, True])
def test_a_pipe_and_a_device_take_what_is_written(tmp_path: Path, append: bool) -> None:
    """They stay what they are, behind a link and by a descriptor's name too."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    put(link, NEW, append=append)
    reader.join()
    assert got == [NEW]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    nothing = tmp_path / "nothing"
    nothing.symlink_to("/dev/null")
    put(nothing, NEW, append=append)
    read, write = os.pipe()
    put(Path(f"/dev/fd/{write}"), NEW, append=append)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == NEW
    assert names_in(tmp_path) == ["link", "nothing", "pipe"]
    assert takes_at_once(Path("/dev/stdout"))


def test_an_append_without_room_leaves_the_file(tmp_path: Path) -> None:
    """To the byte: there is room for the part, and for some of it behind the file."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 60)
    with files_end_at(100), pytest.raises(OSError, match="large"):
        put(path, b"y" * 60, append=True)
    assert path.read_bytes() == b"x" * 60
    assert names_in(tmp_path) == ["file"]


def test_a_file_written_over_without_room_is_as_it_was(tmp_path: Path) -> None:
    """Nothing of it is lost before there is room for all."""
    path, part = tmp_path / "file", tmp_path / "part"
    path.write_bytes(b"x" * 60)
    (tmp_path / "other").hardlink_to(path)
    with files_end_at(100), pytest.raises(OSError, match="large"):
        put(path, b"y" * 120)
    assert path.read_bytes() == b"x" * 60
    assert not part.exists()


SHORT = b'[\n{"a": 1}\n]'
LONG = b'[\n{"a": 1},\n' + b'{"a": 2},\n' * 20_000 + b"]"


@pytest.mark.parametrize("there", [SHORT, LONG, b"", b"of somebody's else"])
@pytest.mark.parametrize("data", [SHORT, LONG, b"", LONG[:200_000]])
def test_what_was_appended_before_gives_way(
    tmp_path: Path, there: bytes, data: bytes
) -> None:
    """Whether it is longer or shorter, and however much of it stays."""
    path = tmp_path / "a"
    path.write_bytes(OLD + there)
    number = path.stat().st_ino
    put(path, data, append=True, begin=len(OLD))
    assert path.read_bytes() == OLD + data
    assert path.stat().st_ino == number
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("allocates", [True, False])
def test_what_cannot_take_its_place_leaves_what_was_appended(
    tmp_path: Path, allocates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for more, found out before the first byte or, on a system that cannot
    say so, in the middle: the file is as the last command left it, to the byte."""
    if not allocates:
        monkeypatch.setattr(os, "posix_fallocate", cannot_allocate)
    path = tmp_path / "a"
    path.write_bytes(b"x" * 60 + SHORT)
    with files_end_at(100), pytest.raises(OSError, match="large"):
        put(path, LONG[:60], append=True, begin=60)
    assert path.read_bytes() == b"x" * 60 + SHORT
    assert names_in(tmp_path) == ["a"]


def cannot_allocate(handle: int, offset: int, length: int) -> None:
    """Do as a file system that makes no room ahead."""
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_what_others_append_meanwhile_stays(tmp_path: Path) -> None:
    """While items are written to the part: the append is an error."""
    path = tmp_path / "a"
    path.write_bytes(OLD + SHORT)

    def write() -> None:
        with written(path, append=True, begin=len(OLD)) as file:
            file.write(LONG)
            with path.open("ab") as theirs:
                theirs.write(NEW)

    with pytest.raises(OSError, match="written to meanwhile"):
        write()
    assert path.read_bytes() == OLD + SHORT + NEW


@pytest.mark.parametrize("append", [False, True])
def test_an_error_of_the_exporter_leaves_the_file(tmp_path: Path, append: bool) -> None:
    """However much it has written; and no part stays."""
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def fail() -> None:
        with written(path, append=append) as file:
            file.write(NEW * COPY_BYTES)
            raise ValueError("the exporter's")

    with pytest.raises(ValueError, match="exporter"):
        fail()
    assert path.read_bytes() == OLD
    assert names_in(tmp_path) == ["file"]


def test_an_exporter_sees_where_it_writes_and_may_close(tmp_path: Path) -> None:
    """As if it had opened the file itself."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    for append, position in ((True, len(OLD)), (False, 0)):
        with written(path, append=append) as file:
            assert file.tell() == position
            file.write(NEW)
            file.close()
    assert path.read_bytes() == NEW


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    """And stay."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        put(tmp_path / "a", NEW)
    assert names_in(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("there", [0, 3, 8])
def test_an_append_goes_on_where_it_was_cut(tmp_path: Path, there: int) -> None:
    """What stands behind the first length and begins as the part is ours."""
    part, path = tmp_path / "part", tmp_path / "file"
    part.write_bytes(b"12345678")
    path.write_bytes(OLD + b"12345678"[:there])
    append_part(part, path, len(OLD))
    assert path.read_bytes() == OLD + b"12345678"
