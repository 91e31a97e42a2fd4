"""No request starts once the process is not valid any more, wherever it waits.

Asked of the process itself: its components log what passes them, and an answered probe
says that its event loop has turned since. So no test here measures time.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dscrapy.messages import Alive, Probe, Valid
from tests.e2e.crawl_harness import CrawlProcess, Gate, running_site
from tests.e2e.naive_master import NaiveMaster

Start = Callable[..., CrawlProcess]
NEVER: Callable[[], bool] = bool
TELLING = {
    "DOWNLOAD_HANDLERS": json.dumps({"http": "testsite.telling.Handler"}),
    "DOWNLOADER_MIDDLEWARES": json.dumps({"testsite.telling.Middleware": 1000}),
}


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


def boottime() -> float:
    """Return the instant on the clock that counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def after_a_turn(process: CrawlProcess) -> None:
    """Wait until the process has taken what was sent, and its loop has turned."""
    number = 1 + sum(isinstance(one, Alive) for one in process.received)
    process.send(Probe(number=number))
    assert process.read_until(lambda: Alive(number=number) in process.received)


def assert_nothing_more(process: CrawlProcess, word: str) -> int:
    """Check that from now on nothing is logged with this word; return how often it
    was."""
    before = process.log.count(word)
    # One that would start does so within milliseconds, or with the next delay.
    process.read_until(NEVER, 1)
    assert process.log.count(word) == before
    return before


@pytest.mark.long
def test_a_request_that_waits_for_its_delay_starts_no_later(
    site: str, start: Start
) -> None:
    """The end comes by the clock alone, while requests wait in the downloader."""
    args = {"site": site, "count": "60"}
    settings = {**TELLING, "DOWNLOAD_DELAY": "0.1"}
    process = start("pages", args=args, settings=settings)
    assert process.read_until(lambda: len(process.lines) > 3)
    end = boottime() + 0.3
    process.send(Valid(until=end))
    while boottime() <= end:
        process.read_until(NEVER, 0.1)
    after_a_turn(process)
    assert assert_nothing_more(process, "starts ") < 60
    # Some had left the scheduler already: it is the downloader that held them.
    assert process.log.count("leaves ") > process.log.count("starts ")
    process.send(Valid(until=boottime() + 1000))
    assert process.finish() == 0
    assert len(process.lines) == 60


def test_nothing_leaves_the_scheduler_then(site: str, start: Start) -> None:
    """Leases that come after the end wait there."""
    master = NaiveMaster()
    master.is_granting = False
    args = {"site": site, "count": "5"}
    process = start("pages", master=master, args=args, settings=TELLING)
    assert process.read_until(lambda: master.is_started)
    process.send(Valid(until=boottime() - 1))
    after_a_turn(process)
    master.is_granting = True
    master.advance()
    assert process.peer.leases
    after_a_turn(process)
    assert assert_nothing_more(process, "leaves ") == 0
    process.send(Valid(until=boottime() + 1000))
    assert process.finish() == 0
    assert len(process.lines) == 5


def test_start_is_not_pulled_then(site: str, start: Start) -> None:
    """Not one element, though the process leads."""
    args = {"site": site, "count": "5"}
    process = start("lazy", args=args)
    process.send(Valid(until=boottime() - 1))
    assert process.read_until(lambda: process.master.leader is not None)
    after_a_turn(process)
    assert assert_nothing_more(process, "pulled ") == 0
    process.send(Valid(until=boottime() + 1000))
    assert process.finish() == 0
    assert len(process.lines) == 5


def test_new_validity_acts_at_once(site: str, start: Start, tmp_path: Path) -> None:
    """The engine is woken, not left to its heartbeat; signals change nothing."""
    gate = Gate(tmp_path, free=40)
    args = {"site": site, "count": "300", **gate.arguments}
    extensions = json.dumps({"testsite.telling.Unwoken": 1})
    settings = {**TELLING, "EXTENSIONS": extensions}
    process = start("pages", args=args, settings=settings)
    assert process.read_until(lambda: len(process.lines) == 40), process.log
    process.send(Valid(until=boottime() - 1))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(process.process.pid, number)
    after_a_turn(process)
    gate.open()
    assert assert_nothing_more(process, "starts ") < 300
    process.send(Valid(until=boottime() + 1000))
    assert process.finish() == 0
    assert process.outcome.finish_reason == "finished"
    assert len(process.lines) == 300
