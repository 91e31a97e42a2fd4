"""A leader that dies in the middle of start(), or just behind its last element."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dscrapy.messages import Alive, Probe
from tests.e2e.crawl_harness import CrawlProcess
from tests.e2e.naive_master import NaiveMaster
from tests.e2e.small_site import SmallSite, small_site

FOLDER = Path(__file__).parent / "project"
Start = Callable[..., CrawlProcess]


@pytest.fixture
def site() -> Iterator[SmallSite]:
    with small_site() as site:
        yield site


@pytest.mark.parametrize("committed", [1, 2, 3])
def test_equal_elements_are_there_as_often_as_start_gives_them(
    committed: int, site: SmallSite, start: Start
) -> None:
    """The leader dies when so many of four are committed, of which two and two are the
    same: the next one skips each as often as it is committed, and no more."""
    master = NaiveMaster(start_window=1)
    args = {"how": "equal", "site": site.address}
    first = start("starts.py", FOLDER, master=master, args=args, credit=False)
    while sum(master.digests.values()) < committed:
        # With one element allowed ahead, each answer brings the next.
        assert first.read_until(lambda: bool(first._unanswered))
        first.answer()
    first.kill()
    assert sum(master.digests.values()) == committed
    assert start("starts.py", FOLDER, master=master, args=args).finish() == 0
    assert sum(master.digests.values()) == 4
    assert set(master.digests.values()) == {2}
    assert Counter(master.lines) == {'{"page": "1"}': 2, '{"item": 1}': 2}


def test_start_is_exhausted_when_its_last_element_is_committed(
    tmp_path: Path, start: Start
) -> None:
    """The leader dies while an item of its last element is in a pipeline: it has not
    said that start() is exhausted, so the next one has the item."""
    master = NaiveMaster()
    gate = tmp_path / "gate"
    args = {"how": "held", "until": str(gate)}
    first = start("starts.py", FOLDER, master=master, args=args)
    first.wait_for_log("no more elements")
    first.send(Probe(number=1))
    assert first.read_until(lambda: Alive(number=1) in first.received)
    first.kill()
    assert not master.is_started
    gate.touch()
    assert start("starts.py", FOLDER, master=master, args=args).finish() == 0
    assert [json.loads(line)["item"] for line in master.lines] == [1]
    assert len(master.of_kind("started")) == 1
