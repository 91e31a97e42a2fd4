"""The caller's stdin in a crawl process: untouched until it is read, then kept."""

import io
import logging
import os
import sys
import threading
from pathlib import Path

import pytest

from dscrapy.crawl.worker_side.stdin import KeptStdin, give_empty_stdin
from tests.hang import HANG_S


def test_what_is_not_read_is_left(tmp_path: Path) -> None:
    """Nothing is taken from the pipe, and nothing is written."""
    read, write = os.pipe()
    os.write(write, b"a\nb\n")
    KeptStdin(read, os.fsencode(tmp_path / "stdin")).close()
    assert list(tmp_path.iterdir()) == []
    assert os.read(read, 100) == b"a\nb\n"
    os.close(read)
    os.close(write)


def test_a_pipe_is_read_as_it_comes_and_kept(tmp_path: Path) -> None:
    """The first line is there while the pipe is open; the file is whole at its end."""
    read, write = os.pipe()
    kept = tmp_path / "stdin"
    lines = io.BufferedReader(KeptStdin(read, os.fsencode(kept)))
    os.write(write, b"a\n")
    assert lines.readline() == b"a\n"
    os.write(write, b"b\nc")
    os.close(write)
    assert lines.read() == b"b\nc"
    assert kept.read_bytes() == b"a\nb\nc"
    os.close(read)


def test_the_next_process_begins_at_the_beginning(tmp_path: Path) -> None:
    """With what the one before has kept; what was still in the pipe follows."""
    read, write = os.pipe()
    kept = tmp_path / "stdin"
    (tmp_path / "stdin.part").write_bytes(b"a\nb")
    os.write(write, b"\nc\n")
    os.close(write)
    lines = io.BufferedReader(KeptStdin(read, os.fsencode(kept)))
    assert lines.read() == b"a\nb\nc\n"
    os.close(read)


def test_an_endless_pipe_fills_no_disk(tmp_path: Path) -> None:
    """The copy waits for its reader: the rest stays in the pipe."""
    read, write = os.pipe()
    os.write(write, b"x" * 30_000)
    kept = KeptStdin(read, os.fsencode(tmp_path / "stdin"), ahead_bytes_max=10)
    assert kept.read(1) == b"x"
    os.write(write, b"y" * 1000)
    assert (tmp_path / "stdin.part").stat().st_size == 30_000
    os.close(write)
    rest = io.BufferedReader(kept).read()
    assert rest == b"x" * 29_999 + b"y" * 1000
    os.close(read)


def test_a_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    """Also by the next process, and who reads on after it finds the end."""
    path = tmp_path / "list"
    path.write_bytes(b"head\na\nb\n")
    kept = tmp_path / "stdin"
    (tmp_path / "stdin.part").write_bytes(b"a\n")
    with path.open("rb") as file:
        fd = file.fileno()
        os.lseek(fd, 5, os.SEEK_SET)
        lines = io.BufferedReader(KeptStdin(fd, os.fsencode(kept), 5))
        assert lines.read() == b"a\nb\n"
        assert os.read(fd, 10) == b""


def test_the_loops_thread_says_that_it_waits(tmp_path: Path) -> None:
    """While it has nothing to read, and no longer; other threads hold nobody up."""
    read, write = os.pipe()
    said: list[bool] = []
    waits = threading.Event()

    def take(*, on: bool) -> None:
        said.append(on)
        waits.set()

    def feed() -> None:
        # Only then does the input come.
        waits.wait(HANG_S)
        os.write(write, b"b")

    feeder = threading.Thread(target=feed)
    feeder.start()
    kept = KeptStdin(read, os.fsencode(tmp_path / "stdin"), on_wait=take)
    assert kept.read(1) == b"b"
    feeder.join()
    assert said == [True, False]
    got: list[bytes | None] = []
    other = threading.Thread(target=lambda: got.append(kept.read(1)))
    other.start()
    os.write(write, b"c")
    other.join()
    assert (got, said) == ([b"c"], [True, False])
    os.close(write)
    os.close(read)


def test_who_reads_an_empty_stdin_is_told_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not who never reads it."""
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    give_empty_stdin("only crawl has one")
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        assert list(sys.stdin) == list(sys.stdin) == []
    assert caplog.messages == [
        "The spider reads stdin, which is empty: only crawl has one"
    ]


def test_what_cannot_be_read_is_an_error_and_no_end(tmp_path: Path) -> None:
    """What came is never taken for all that there is."""
    fd = os.open(tmp_path, os.O_RDONLY)
    kept = KeptStdin(fd, os.fsencode(tmp_path / "stdin"))
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            kept.read(1)
    assert not (tmp_path / "stdin").exists()
    os.close(fd)
