"""Marks of what is under way: written by a process, read by another when it is dead."""

import os

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dscrapy.crawl.worker_side import in_flight_table
from dscrapy.crawl.worker_side.in_flight_table import InFlightTable
from dscrapy.messages import UnderWay
from dscrapy.proto.in_flight import (
    AWAITS_AT,
    HEADER_BYTES,
    SLOT_BYTES,
    SLOTS_FIRST,
    SLOTS_MAX,
    URL_BYTES_MAX,
    decode_marks,
)
from dscrapy.worker.crawl_process import marks_file


@pytest.fixture
def fd() -> int:
    """A file of marks."""
    return marks_file()


def marks_of(fd: int) -> list[UnderWay]:
    """What a worker reads."""
    return list(decode_marks(os.pread(fd, os.fstat(fd).st_size, 0)))


def found(fd: int) -> dict[int, str]:
    """The URLs of what a worker reads."""
    return {one.request: one.url for one in marks_of(fd)}


def test_what_is_marked_is_read_until_it_is_wiped(fd: int) -> None:
    """A second mark of a request changes its URL; a free slot is used again."""
    marks = InFlightTable(fd)
    assert found(fd) == {}
    marks.add(5, "")
    marks.add(5, "http://a/ü")
    marks.add(9, "http://b/")
    assert found(fd) == {5: "http://a/ü", 9: "http://b/"}
    marks.remove(5)
    marks.remove(5)
    assert found(fd) == {9: "http://b/"}
    marks.add(7, "c")
    assert found(fd) == {7: "c", 9: "http://b/"}
    assert os.pread(fd, 8, HEADER_BYTES) == (7).to_bytes(8, "little")


def test_a_mark_says_how_far_its_request_has_come(fd: int) -> None:
    """And whose code ran last, of requests that are marked."""
    marks = InFlightTable(fd)
    for request in (1, 2, 3):
        marks.add(request, "u")
    marks.reach(2, "download")
    marks.reach(3, "download")
    marks.reach(3, "waits")
    marks.reach(9, "waits")
    assert [one.stage for one in marks_of(fd)] == ["begun", "download", "waits"]
    for ran, expected in ((3, [3]), (1, [1]), (0, []), (9, [])):
        marks.run(ran)
        assert [one.request for one in marks_of(fd) if one.ran_last] == expected
    marks.remove(3)
    marks.add(4, "u")
    assert marks_of(fd)[2] == UnderWay(request=4, url="u", stage="begun")


def test_the_file_grows_with_what_is_under_way(fd: int) -> None:
    """What was marked before stays, and is wiped at its own place."""
    marks = InFlightTable(fd)
    for request in range(1, 3 * SLOTS_FIRST):
        marks.add(request, f"u{request}")
        marks.reach(request, "waits")
    assert len(found(fd)) == 3 * SLOTS_FIRST - 1
    marks.remove(1)
    marks.remove(3 * SLOTS_FIRST - 1)
    assert found(fd) == {n: f"u{n}" for n in range(2, 3 * SLOTS_FIRST - 1)}
    assert {one.stage for one in marks_of(fd)} == {"waits"}


def test_a_long_url_is_cut(fd: int) -> None:
    """It is for people; the slot after it stays free."""
    marks = InFlightTable(fd)
    marks.add(1, "x" * 1000)
    assert found(fd) == {1: "x" * URL_BYTES_MAX}
    marks.add(2, "\ud800")
    assert found(fd)[2] == "?"


def test_more_than_there_are_slots_are_not_marked(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones are; nothing breaks, and a slot that is free again is used."""
    monkeypatch.setattr(in_flight_table, "SLOTS_MAX", SLOTS_FIRST)
    marks = InFlightTable(fd)
    for request in range(1, SLOTS_FIRST + 3):
        marks.add(request, "u")
    assert len(found(fd)) == SLOTS_FIRST
    marks.remove(SLOTS_FIRST + 1)
    marks.remove(1)
    marks.add(SLOTS_FIRST + 9, "v")
    assert found(fd)[SLOTS_FIRST + 9] == "v"
    assert SLOTS_FIRST < SLOTS_MAX


@given(data=st.binary(max_size=3 * SLOT_BYTES))
def test_anything_may_stand_in_the_file(data: bytes) -> None:
    """A process that runs wild can write what it likes."""
    for one in decode_marks(data):
        assert isinstance(one, UnderWay)
        assert one.request > 0


def test_who_waits_for_input_says_so_beside_the_marks(fd: int) -> None:
    """With every slot taken, too."""
    marks = InFlightTable(fd)
    for request in range(1, SLOTS_FIRST + 1):
        marks.add(request, "u")
    assert os.pread(fd, 1, AWAITS_AT) == b"\0"
    marks.await_stdin(on=True)
    assert os.pread(fd, 1, AWAITS_AT) == b"\1"
    assert len(found(fd)) == SLOTS_FIRST
    marks.await_stdin(on=False)
    assert os.pread(fd, 1, AWAITS_AT) == b"\0"
