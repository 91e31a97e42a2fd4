"""Bodies of requests on their way from a commit to a lease, from memory or the file."""

from collections.abc import Iterable

import msgspec
import pytest

from dscrapy.control.projections import requests_name
from dscrapy.master.bodies import BODY_BYTES, READ_BYTES, Bodies
from tests.doubles.storage import MemoryStorage

ONE, TWO = msgspec.Raw(b"[1]"), msgspec.Raw(b"[22]")
PLACES = [(0, 3), (4, 4)]


def storage_with(data: bytes, job: str = "j") -> MemoryStorage:
    """Return a disk with a job's file of requests."""
    storage = MemoryStorage()
    storage.make_folder(f"jobs/{job}")
    storage.put(requests_name(job), data)
    return storage


def read(bodies: Bodies, job: str = "j") -> list[bytes]:
    """Return the bodies at both places."""
    return known(bodies.read(job, PLACES))


def known(found: Iterable[msgspec.Raw | None]) -> list[bytes]:
    """Return the bodies, all of which are there."""
    return [bytes(one) for one in found if one is not None]


def test_what_is_not_written_yet_stays_in_memory() -> None:
    """Whatever the limit: nothing else has it; it goes when its write is done."""
    bodies = Bodies(MemoryStorage(), kept_bytes_max=0)
    bodies.keep("j", 0, [ONE, TWO])
    bodies.trim(100)
    assert read(bodies) == [b"[1]", b"[22]"]
    bodies.handed_over(7)
    bodies.trim(6)
    assert bodies.has_all("j", PLACES)
    assert read(bodies) == [b"[1]", b"[22]"]
    bodies.trim(7)
    assert not bodies.has_all("j", PLACES[:1])
    assert not bodies.has_all("j", PLACES[1:])


def test_the_oldest_go_first_and_no_more_than_need_be() -> None:
    """The most recent ones are those that are leased next."""
    bodies = Bodies(storage_with(b"[1]\n[22]\n"), kept_bytes_max=4 + BODY_BYTES)
    bodies.keep("j", 0, [ONE])
    bodies.keep("j", 4, [TWO])
    bodies.handed_over(1)
    bodies.trim(1)
    assert not bodies.has_all("j", PLACES[:1])
    assert bodies.has_all("j", PLACES[1:])
    assert read(bodies) == [b"[1]", b"[22]"]


def test_a_body_of_a_fresh_run_outlives_the_one_in_its_place() -> None:
    """The old one is forgotten by its age, the new one at the same place is not."""
    bodies = Bodies(MemoryStorage(), kept_bytes_max=4 + BODY_BYTES)
    bodies.keep("j", 0, [ONE])
    bodies.handed_over(1)
    new = msgspec.Raw(b"[7]")
    bodies.keep("j", 0, [new])
    bodies.trim(1)
    assert known(bodies.read("j", PLACES[:1])) == [b"[7]"]


def test_jobs_have_places_of_their_own() -> None:
    """The same place of another job is another body."""
    bodies = Bodies(storage_with(b"[8]\n[99]\n", "k"))
    bodies.keep("j", 0, [ONE, TWO])
    assert (read(bodies), read(bodies, "k")) == ([b"[1]", b"[22]"], [b"[8]", b"[99]"])


def test_places_are_read_in_any_order_and_over_any_distance() -> None:
    """Near ones at once, far ones and long ones each by itself."""
    long = b"x" * (READ_BYTES + 5)
    data = b"".join(one + b"\n" for one in (b"a", long, b"bb", b"ccc"))
    bodies = Bodies(storage_with(data))
    start = len(long) + 3
    places = [(start + 3, 3), (2, len(long)), (start, 2), (0, 1)]
    found = known(bodies.read("j", places))
    assert found == [b"ccc", long, b"bb", b"a"]


@pytest.mark.parametrize(
    ("data", "there"),
    [
        (None, [False, False]),
        (b"", [False, False]),
        (b"[1]\n", [True, False]),
        (b"[1]\n[22", [True, False]),
        # Written past what was lost.
        (b"[1]\n\0\0\0\0\0[3]\n", [True, False]),
        (bytes(4) + b"[22]\n", [False, True]),
    ],
)
def test_a_body_that_is_missing_in_the_file_is_told(
    data: bytes | None, there: list[bool]
) -> None:
    """The others are read all the same."""
    storage = MemoryStorage() if data is None else storage_with(data)
    found = Bodies(storage).read("j", PLACES)
    assert [one is not None for one in found] == there
