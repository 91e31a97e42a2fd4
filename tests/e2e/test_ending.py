"""How a crawl ends: exit codes, files and what is called once, against plain Scrapy."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.commands import WAIT_S, run
from tests.e2e.crawl_harness import child_environment

# Pages that need no site; three download slots, so that three processes have work.
# A page waits until as many processes have opened as the test is about.
SPIDER = """
import asyncio, os, signal
from pathlib import Path
import scrapy
from scrapy.exceptions import CloseSpider


class Report:
    '''Tells at spider_closed what the stats say, by what it is called in the file.'''

    def __init__(self, crawler):
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler):
        report = cls(crawler)
        connect = crawler.signals.connect
        connect(report.closed, signal=scrapy.signals.spider_closed)
        return report

    def closed(self, spider, reason):
        name = type(self).__name__.lower()
        if name == "once" and Path("kill").exists():
            Path("kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        stats = self.crawler.stats
        line = {
            "reason": reason,
            "items": stats.get_value("item_scraped_count"),
            "pages": stats.get_value("response_received_count"),
            "errors": stats.get_value("spider_exceptions/count", 0),
            "started": str(stats.get_value("start_time")),
            "is_fed": Path("feed.jsonl").exists(),
        }
        stats.inc_value(f"reports/{name}")
        with open(f"{name}.jsonl", "a") as file:
            file.write(__import__("json").dumps(line) + chr(10))


class Once(Report):
    pass


class Each(Report):
    pass


class Openers:
    '''A pipeline that notes each process, and fails as the spider is told.'''

    def open_spider(self, spider):
        if spider.how == "open":
            raise ConnectionError("the database is down")
        if spider.how == "exclusive":
            with open("lock", "x"):
                pass
        Path(f"opened-{os.getpid()}").touch()

    def close_spider(self, spider):
        if spider.how == "close":
            raise ConnectionError("the database has gone")

    def process_item(self, item, spider):
        return item


class Ends(scrapy.Spider):
    name = "ends"
    custom_settings = {
        "CONCURRENT_REQUESTS": 1,
        "EXTENSIONS": {Once: 10, Each: 20},
        "DSCRAPY_ONCE_PER_JOB": [Once],
        "ITEM_PIPELINES": {Openers: 1},
        "FEEDS": {"feed.jsonl": {"format": "jsonlines", "overwrite": True}},
        "TELNETCONSOLE_ENABLED": False,
    }

    def __init__(self, how="", count="12", processes="1", **kwargs):
        super().__init__(**kwargs)
        self.how, self.count, self.processes = how, int(count), int(processes)
        self.pages = 0

    @classmethod
    def from_crawler(cls, crawler, *args, **kwargs):
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.idle, signal=scrapy.signals.spider_idle)
        return spider

    async def start(self):
        yield scrapy.Request("data:,index", self.parse_index)
        if self.how == "start":
            raise LookupError("no more of them")

    def parse_index(self, response):
        for number in range(self.count):
            meta = {"download_slot": f"h{number % 3}"}
            yield scrapy.Request(f"data:,{number}", self.parse, meta=meta)

    async def parse(self, response):
        while len(list(Path().glob("opened-*"))) < self.processes:
            await asyncio.sleep(0.02)
        number = int(response.text)
        self.pages += 1
        while self.how == "waits" and self.pages > 1 and not Path("go").exists():
            await asyncio.sleep(0.02)
        yield {"number": number}
        if self.how == "callback" and number == 5:
            raise KeyError("five")
        if self.how == "enough" and number == 5:
            raise CloseSpider("enough")

    def idle(self):
        if self.how == "dies":
            os._exit(3)

    def closed(self, reason):
        if self.how == "closed":
            raise ConnectionError("cannot say goodbye")
"""
YESTERDAY = '{"number": "of yesterday"}\n'


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of the project: for plain Scrapy and for ours."""
    copies = tmp_path / "plain", tmp_path / "ours"
    for folder in copies:
        folder.mkdir()
        (folder / "ends.py").write_text(SPIDER)
        (folder / "feed.jsonl").write_text(YESTERDAY)
    return copies


def lines_of(path: Path) -> list[Any]:
    """Return the file's lines, decoded, none if it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers_in(path: Path) -> list[int]:
    """Return what the items of a feed hold, in order."""
    return sorted(one["number"] for one in lines_of(path))


def plain(folder: Path, how: str) -> int:
    """Run plain Scrapy; return its exit code."""
    words = ("-m", "scrapy", "runspider", "ends.py", "-a", f"how={how}")
    done = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode


def reports(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what was told, but for when it began."""
    found = lines_of(folder / f"{name}.jsonl")
    for one in found:
        del one["started"]
    return found


@pytest.mark.parametrize("how", ["", "callback", "close", "closed"])
def test_what_plain_scrapy_calls_done_is_done(
    folders: tuple[Path, Path], tmp_path: Path, how: str
) -> None:
    """Errors of callbacks and of closing are logged and counted. Exit code, feed and
    what is told at the end are the same."""
    theirs, ours = folders
    code = plain(theirs, how)
    done = run("crawl", "ends.py", "-a", f"how={how}", cwd=ours, home=tmp_path)
    assert done.returncode == code == 0, done.stderr
    assert numbers_in(ours / "feed.jsonl") == numbers_in(theirs / "feed.jsonl")
    # FEEDS are written before, so that a report may send them.
    told = reports(theirs, "once")
    assert len(told) == 1
    assert reports(ours, "once") == reports(ours, "each") == told
    if how == "close":
        assert "the database has gone" in done.stderr


def test_a_spider_that_closes_has_done_its_work(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """``CloseSpider`` is a reason; how much was under way then is not the same."""
    theirs, ours = folders
    code = plain(theirs, "enough")
    done = run("crawl", "ends.py", "-a", "how=enough", cwd=ours, home=tmp_path)
    assert done.returncode == code == 0, done.stderr
    (told,) = reports(ours, "once")
    assert told["reason"] == reports(theirs, "once")[0]["reason"] == "enough"
    assert len(numbers_in(ours / "feed.jsonl")) == told["items"] >= 6


def test_open_spider_that_raises_fails_the_job(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Exit code 1 as in plain Scrapy; the feed of the day before stays."""
    theirs, ours = folders
    assert plain(theirs, "open") == 1
    done = run("crawl", "ends.py", "-a", "how=open", cwd=ours, home=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "ConnectionError: the database is down" in done.stderr
    assert (ours / "feed.jsonl").read_text() == YESTERDAY


def test_a_crawl_that_dies_leaves_the_feed_of_the_day_before(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """What there is stands beside it."""
    _, ours = folders
    done = run("crawl", "ends.py", "-a", "how=dies", cwd=ours, home=tmp_path)
    assert done.returncode == 1, done.stderr
    assert (ours / "feed.jsonl").read_text() == YESTERDAY
    assert numbers_in(ours / "feed.jsonl.failed") == list(range(12))
    assert reports(ours, "once") == []


def test_start_that_raises_writes_the_feed(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The crawl came to its end; the job says what happened."""
    theirs, ours = folders
    plain(theirs, "start")
    done = run("crawl", "ends.py", "-a", "how=start", cwd=ours, home=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "start() raised LookupError" in done.stderr
    assert numbers_in(ours / "feed.jsonl") == numbers_in(theirs / "feed.jsonl")
    assert reports(ours, "once") == reports(theirs, "once")


# ---- many processes ------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a master and a worker with three slots."""
    cluster = Cluster(tmp_path)
    try:
        cluster.start_master()
        cluster.start_worker("w", "--slots", "3")
        yield cluster
    finally:
        cluster.close()


def submit(cluster: Cluster, folder: Path, how: str = "", processes: int = 3) -> str:
    """Submit the spider; its pages are done when so many processes have opened."""
    words = ("-p", str(processes), "-a", f"processes={processes}", "-a", f"how={how}")
    return cluster.ok("submit", "ends.py", "--project", str(folder), *words).strip()


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.long), True])
def test_once_is_once_whatever_how_many_processes(
    folders: tuple[Path, Path], cluster: Cluster, killed: bool
) -> None:
    """With the job's stats, behind the feeds and all others; if the process that ends
    the job is killed at that another one does it, and the log says so."""
    theirs, ours = folders
    plain(theirs, "")
    (told,) = reports(theirs, "once")
    if killed:
        (ours / "kill").touch()
    job = submit(cluster, ours)
    cluster.ok("wait", job)
    started = {one["started"] for one in lines_of(ours / "each.jsonl")}
    assert reports(ours, "once") == [told]
    assert not (ours / "kill").exists()
    each = reports(ours, "each")
    # What is not named is called in every process that comes so far.
    assert len(each) == 3
    assert each[-1] == told
    assert len(started) == 1
    assert ("is called again" in cluster.ok("logs", job)) == killed
    stats = json.loads(cluster.ok("show", job, "--json"))["stats"]
    assert stats["reports/once"] == 1
    assert stats["reports/each"] == 3
    assert stats["item_scraped_count"] == told["items"]


@pytest.mark.long
def test_a_pause_is_no_end(folders: tuple[Path, Path], cluster: Cluster) -> None:
    """Nothing is called once for processes that stop while their job goes on."""
    _, ours = folders
    job = submit(cluster, ours, "waits", processes=2)
    cluster.wait_until(lambda: cluster.job(job)["items"] > 0)
    cluster.ok("pause", job)
    (ours / "go").touch()
    cluster.wait_until(lambda: cluster.job(job)["processes"] == 0)
    assert cluster.job(job)["state"] == "paused"
    assert reports(ours, "once") == []
    cluster.ok("resume", job)
    cluster.ok("wait", job)
    (told,) = reports(ours, "once")
    assert told["items"] == 12


def test_a_second_process_that_does_not_open_fails_nothing(
    folders: tuple[Path, Path], cluster: Cluster
) -> None:
    """What a pipeline opens is for one process alone: the job is done by that one."""
    _, ours = folders
    words = ("-p", "3", "-a", "how=exclusive")
    job = cluster.ok("submit", "ends.py", "--project", str(ours), *words).strip()
    cluster.ok("wait", job)
    assert cluster.job(job)["state"] == "succeeded"
    assert numbers_in(ours / "feed.jsonl") == list(range(12))
