"""Requests that cannot leave their process: any number, in bounded memory."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dscrapy.messages import Commits
from tests.e2e.crawl_harness import CrawlProcess
from tests.e2e.naive_master import NaiveMaster
from tests.e2e.test_crawl_start import rss_bytes

FOLDER = Path(__file__).parent / "project"
Start = Callable[..., CrawlProcess]
# What an endless chain gives before it is looked at again.
CHAIN_BYTES = 40 * 1024 * 1024
SIZE = 20_000


def given(process: CrawlProcess) -> int:
    """Return how many bytes of items have come, in parts that have no effect yet."""
    return sum(
        len(bytes(item))
        for frame in process.received
        if isinstance(frame, Commits)
        for commit in frame.commits
        for item in commit.items
    )


@pytest.mark.long
def test_ten_thousand_of_one_page_are_ten_thousand(start: Start) -> None:
    """No ceiling ends the job: each gives its item, in the commit of the page."""
    process = start("wide.py", FOLDER, args={"count": "10001"})
    assert process.finish() == 0, process.log
    assert process.outcome.finish_reason == "finished"
    numbers = [json.loads(line)["number"] for line in process.lines]
    assert sorted(numbers) == list(range(10_001))
    assert process.stats["sum"]["scheduler/unserializable"] == 10_001
    (page,) = process.master.pages()
    assert len(page.items) == 10_001


@pytest.mark.long
def test_a_chain_without_an_end_takes_no_memory(start: Start) -> None:
    """What it gives leaves while it runs; the process is as large as before."""
    process = start(
        "endless.py",
        FOLDER,
        master=NaiveMaster(),
        args={"size": str(SIZE), "how": "page"},
    )
    assert process.read_until(lambda: given(process) > CHAIN_BYTES // 4), process.log
    early = rss_bytes(process)
    assert process.read_until(lambda: given(process) > CHAIN_BYTES), process.log
    assert rss_bytes(process) - early < CHAIN_BYTES // 4
    assert not process.lines, "it is one commit, which is not finished"


@pytest.mark.long
def test_a_chain_from_start_waits_on_the_disk(start: Start) -> None:
    """A unit is sent when it is finished: until then a file holds what it gave."""
    process = start(
        "endless.py",
        FOLDER,
        master=NaiveMaster(),
        args={"size": str(SIZE), "how": "start"},
    )

    def spilled() -> int:
        """Return the bytes in files of the process that have no name any more."""
        total = 0
        for link in Path(f"/proc/{process.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                is_spill = str(link.readlink()).endswith("(deleted)")
                total += link.stat().st_size if is_spill else 0
        return total

    assert process.read_until(lambda: spilled() > CHAIN_BYTES // 4), process.log
    early = rss_bytes(process)
    assert process.read_until(lambda: spilled() > CHAIN_BYTES), process.log
    assert rss_bytes(process) - early < CHAIN_BYTES // 4
    assert given(process) == 0
