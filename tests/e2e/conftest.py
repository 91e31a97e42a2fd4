"""What tests of the crawl process share: a way to start some that end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dscrapy.model import JobSpec
from tests.e2e.crawl_harness import PROJECT, CrawlProcess
from tests.e2e.naive_master import NaiveMaster

Start = Callable[..., CrawlProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start crawl processes that end with the test; ``master`` may be shared."""
    started: list[CrawlProcess] = []

    def start_one(
        spider: str,
        folder: Path = PROJECT,
        *,
        credit: bool = True,
        master: NaiveMaster | None = None,
        **spec: Any,
    ) -> CrawlProcess:
        number = len(started) + 1
        process = CrawlProcess(
            JobSpec(project_dir=str(folder), spider=spider, **spec),
            folder,
            tmp_path / f"crawl{number}.log",
            credit=credit,
            master=master,
            number=number,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.close()
