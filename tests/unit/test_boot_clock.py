"""Which clock master, worker and crawl process read: one that counts suspend."""

import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from scrapy import Spider
from scrapy.crawler import Crawler

from dscrapy.crawl.run import CrawlRun, boottime
from dscrapy.crawl.worker_side.worker_link import Link as CrawlLink
from dscrapy.messages import Run
from dscrapy.model import JobSpec
from dscrapy.net.host import boot_instant
from dscrapy.worker.agent import Worker
from dscrapy.worker.master_link import Link

# As after a night in which the machine was suspended.
AWAKE_S, BOOT_S, WALL_S = 100.0, 30_000.0, 1.7e9


@pytest.fixture
def suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clocks tell different instants."""
    instants = {
        time.CLOCK_BOOTTIME: BOOT_S,
        time.CLOCK_MONOTONIC: AWAKE_S,
        time.CLOCK_REALTIME: WALL_S,
    }
    monkeypatch.setattr(time, "clock_gettime", instants.__getitem__)
    monkeypatch.setattr(time, "monotonic", lambda: AWAKE_S)
    monkeypatch.setattr(time, "time", lambda: WALL_S)


pytestmark = pytest.mark.skipif(
    not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock"
)


@pytest.mark.usefixtures("suspended")
@pytest.mark.parametrize("clock", [boottime, boot_instant])
def test_a_suspended_machine_has_aged(clock: Callable[[], float]) -> None:
    """What a worker allows until an instant is not allowed when it wakes up later: the
    process that looks at its own clock and the worker that set it read the same one."""
    assert clock() == BOOT_S


@pytest.mark.usefixtures("suspended")
@pytest.mark.parametrize("reader", [Worker, Link])
def test_a_worker_reads_it(reader: Any) -> None:
    """For the instant until which its processes may start requests."""
    clock: Any = attrs.fields_dict(reader)["instant"].default
    assert clock() == BOOT_S


@pytest.mark.usefixtures("suspended")
def test_a_crawl_process_reads_it() -> None:
    """Its gate is closed by an instant that has passed in suspend."""

    class Unused(CrawlLink):
        def __init__(self) -> None:
            pass

    run = Run(job="1" * 16, process=1, role="crawl", spec=JobSpec(spider="s"))
    marks: Any = None
    gate = CrawlRun(Crawler(Spider), Unused(), run, marks).gate
    gate.valid_until = BOOT_S - 1
    assert not gate.is_valid
    gate.valid_until = BOOT_S
    assert gate.is_valid
