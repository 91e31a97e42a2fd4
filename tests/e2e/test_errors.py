"""A job's errors are counted where people look, whatever the log leaves out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import running_cluster
from tests.e2e.commands import run
from tests.e2e.crawl_harness import running_site

# Nothing but errors: two callbacks that raise, one request that finds nobody (the port
# is reserved), a pipeline and an extension that raise when the spider closes.
SPIDER = """
import scrapy

class Worst:
    @classmethod
    def from_crawler(cls, crawler):
        # The last receiver: Scrapy has ended its count by then.
        crawler.signals.connect(cls.opened, signal=scrapy.signals.spider_opened)
        worst = cls()
        cls.crawler = crawler
        return worst

    @classmethod
    def opened(cls):
        cls.crawler.signals.connect(cls.closed, signal=scrapy.signals.spider_closed)

    @classmethod
    def closed(cls):
        raise RuntimeError("an extension's end")

class Pipeline:
    def process_item(self, item):
        return item

    def close_spider(self):
        raise RuntimeError("a pipeline's end")

class Bad(scrapy.Spider):
    name = "bad"
    custom_settings = {
        "RETRY_ENABLED": False,
        "EXTENSIONS": {Worst: 999},
        "ITEM_PIPELINES": {Pipeline: 1},
    }

    async def start(self):
        yield scrapy.Request(f"{self.site}/page/1")
        yield scrapy.Request(f"{self.site}/page/2")
        yield scrapy.Request("http://127.0.0.1:1/", self.parse)

    def parse(self, response):
        raise ValueError("a callback's")
"""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """The folder of the spider ``bad.py``."""
    (tmp_path / "bad.py").write_text(SPIDER)
    return tmp_path


@pytest.mark.parametrize(
    "setting", ["LOG_LEVEL=DEBUG", "LOG_LEVEL=CRITICAL", "LOG_ENABLED=False"]
)
def test_crawl_tells_errors(bad: Path, site: str, setting: str) -> None:
    """The last line counts each error once, also those that are not logged."""
    words = ("bad.py", "-a", f"site={site}", "-s", setting, "-p", "1")
    done = run("crawl", *words, cwd=bad)
    assert done.returncode == 0, done.stderr
    told = "dscrapy: bad.py succeeded (finished): 2 pages, 0 items, 5 errors in "
    assert done.stderr.splitlines()[-1].startswith(told), done.stderr


def test_every_view_of_a_job_tells_errors(bad: Path, site: str) -> None:
    """submit --wait, wait, jobs, status and show, for people and scripts."""
    with running_cluster(bad) as cluster:
        cluster.start_master()
        cluster.start_worker("w1")
        words = ("bad.py", "-a", f"site={site}")
        submitted = cluster.run("submit", *words, "--wait")
        assert submitted.returncode == 0, submitted.stderr
        job = submitted.stdout.strip()
        line = f"{job} succeeded finished: 2 pages, 0 items, 5 errors\n"
        assert submitted.stderr == line
        assert cluster.ok("wait", job) == line
        assert "\nerrors        5\n" in cluster.ok("show", job)
        header, row = cluster.ok("jobs").splitlines()
        end = header.index("ERRORS") + len("ERRORS")
        assert row[:end].split() == [job, "succeeded", "2", "0", "5"]
        told = [
            json.loads(cluster.ok("show", job, "--json")),
            *json.loads(cluster.ok("jobs", "--json")),
            *cluster.status()["jobs"],
        ]
        assert [one["errors"] for one in told] == [5, 5, 5]
