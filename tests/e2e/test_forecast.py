"""What several processes change is told before a job begins, and in its log."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from dscrapy.cli.local.forecast import forecast
from dscrapy.conf.config import Config
from dscrapy.model import JobSpec
from tests.e2e.cluster import WAIT_S, Cluster, running_cluster
from tests.e2e.commands import run, running
from tests.e2e.crawl_harness import running_site

PIPELINES = """
from scrapy import signals

print("a module that prints")

class Duplicates:
    def __init__(self):
        self.seen = set()
    def process_item(self, item):
        self.seen.add(item["url"])
        return item

class Writer:
    def open_spider(self):
        self.file = open("items.txt", "a")
    def process_item(self, item):
        self.file.write(item["url"])
        return item

class Report:
    @classmethod
    def from_crawler(cls, crawler):
        report = cls()
        report.stats = crawler.stats
        crawler.signals.connect(report.over, signal=signals.spider_closed)
        return report
    def over(self):
        self.stats.get_value("item_scraped_count")

class Listed(Report):
    pass
"""
SPIDER = """
import scrapy

class Pages(scrapy.Spider):
    name = "pages"
    custom_settings = {"ITEM_PIPELINES": {"shop.parts.Writer": 2}}

    async def start(self):
        yield scrapy.Request(f"{self.site}/{getattr(self, 'path', 'page/1')}")

    def parse(self, response):
        yield {"url": response.url}
"""
KEPT = (
    "f several processes each has its own, so that results may differ from those of "
    "one process (-p 1): "
)
READ = (
    "ach process calls these when its spider closes, and all but the last one with "
    "stats of its own: shop.parts.Report (name in DSCRAPY_ONCE_PER_JOB what is to be "
    "called once)"
)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and a worker."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_master()
        cluster.start_worker("w1", "--slots", "2")
        yield cluster


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project whose components keep what they should not."""
    root = tmp_path / "shop"
    for name, content in {
        "scrapy.cfg": "[settings]\ndefault = shop.settings\n",
        "shop/__init__.py": "",
        "shop/parts.py": PIPELINES,
        "shop/spiders/__init__.py": "",
        "shop/spiders/pages.py": SPIDER,
        "shop/settings.py": (
            'SPIDER_MODULES = ["shop.spiders"]\n'
            'ITEM_PIPELINES = {"shop.parts.Duplicates": 1}\n'
            'EXTENSIONS = {"shop.parts.Report": 1, "shop.parts.Listed": 2}\n'
            'DSCRAPY_ONCE_PER_JOB = ["shop.parts.Listed"]\n'
        ),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def submit(cluster: Cluster, shop: Path, *words: str) -> tuple[str, list[str]]:
    """Submit a job of the project; return its id and what stderr says."""
    project = ("--project", str(shop))
    done = cluster.run("submit", "pages", *project, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


def test_submit_and_log_name_what_is_kept(
    cluster: Cluster, shop: Path, site: str
) -> None:
    """Classes and attributes, on stderr and in the log, once each; those of the
    spider's own settings, but not what is listed as once per job."""
    job, said = submit(cluster, shop, "-a", f"site={site}", "-p", "2")
    own = "shop.parts.Writer (file)"
    assert said == [f"dscrapy: o{KEPT}{own}", f"dscrapy: e{READ}"]
    cluster.ok("wait", job)
    told = [
        line.partition("WARNING: ")[2]
        for line in cluster.ok("logs", job).splitlines()
        if "[dscrapy.crawl.run] WARNING" in line
    ]
    assert told == [f"O{KEPT}{own}", f"E{READ}"]
    again = ("-s", "ITEM_PIPELINES={}", "-p", "0")
    assert submit(cluster, shop, "-a", f"site={site}", *again)[1] == [
        f"dscrapy: e{READ}"
    ]


def test_a_job_of_one_process_is_told_nothing(
    cluster: Cluster, shop: Path, site: str
) -> None:
    """Neither at submit, where the project is not even looked at, nor in the log."""
    job, said = submit(cluster, shop, "-a", f"site={site}")
    assert said == []
    cluster.ok("wait", job)
    assert KEPT not in cluster.ok("logs", job)


@pytest.mark.long
def test_crawl_tells_it_by_its_log(shop: Path, site: str, tmp_path: Path) -> None:
    """With -p N only, and once."""
    words = ("crawl", "pages", "-a", f"site={site}")
    done = run(*words, cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert KEPT not in done.stderr
    done = run(*words, "-p", "2", cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(KEPT) == 1
    assert done.stderr.count(READ) == 1


@pytest.mark.long
def test_a_crawl_goes_on_with_the_processes_of_its_new_p(
    shop: Path, site: str, tmp_path: Path
) -> None:
    """And is told what that changes."""
    endless = ("-a", "path=slow?ms=600000")
    words = ("crawl", "pages", "-a", f"site={site}", *endless)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("Spider opened")
        command.kill()
    assert KEPT.encode() not in command.err
    with running(*words, "-p", "2", cwd=shop, home=tmp_path) as command:
        command.until("resuming")
        command.until(KEPT)
        command.kill()


@pytest.mark.parametrize(
    "settings",
    [
        "raise SystemExit(3)\n",
        "this is no Python\n",
        'SPIDER_MODULES = ["shop.nowhere"]\n',
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    ],
)
def test_a_project_that_cannot_be_loaded_holds_nothing_up(
    cluster: Cluster, shop: Path, settings: str
) -> None:
    """The job is submitted, and stderr says nothing: the job will."""
    (shop / "shop" / "settings.py").write_text(settings)
    job, said = submit(cluster, shop, "-p", "2", "--priority", "-5")
    assert said == []
    cluster.run("cancel", job)


HANGS = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
with open("pids.part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.part", "pids")
time.sleep(600)
"""


def test_an_import_that_hangs_is_given_up(
    cluster: Cluster, shop: Path, tmp_path: Path
) -> None:
    """With all that it has started; whoever waited for it goes on without a line."""
    (shop / "shop" / "settings.py").write_text(HANGS)
    config = Config(state=tmp_path, projects_root=tmp_path)
    spec = JobSpec(project="shop", spider="pages", parallelism=0)

    async def give_up_once_it_hangs() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(forecast, config, [spec], within_s=math.inf))
            with trio.fail_after(WAIT_S):
                while not (shop / "pids").exists():  # noqa: ASYNC110 - a file tells
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    trio.run(give_up_once_it_hangs)
    pids = (shop / "pids").read_text().split()
    cluster.wait_until(lambda: all(map(is_gone, pids)))
    assert trio.run(partial(forecast, config, [spec], within_s=0.2)) == []


def is_gone(pid: str) -> bool:
    """Whether a process has ended; somebody else may still have to reap it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
