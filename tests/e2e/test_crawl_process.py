"""The crawl process as its worker sees it, against plain ``scrapy crawl``."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dscrapy.crawl.outgoing.commit_parts import PART_BYTES_MAX, PARTS_UNSEEN_MAX
from dscrapy.messages import Alive, Commits, Opened, Probe, Stop
from dscrapy.model import CloseLimits, HostLimits
from tests.e2e.crawl_harness import (
    PROJECT,
    WAIT_S,
    CrawlProcess,
    plain_scrapy,
    requests_in,
    running_site,
)
from tests.e2e.naive_master import JOB
from tests.e2e.small_site import small_site

FOLDER = Path(__file__).parent / "project"
Start = Callable[..., CrawlProcess]


@pytest.fixture
def site_log(tmp_path: Path) -> Path:
    return tmp_path / "site.log"


@pytest.fixture
def site(site_log: Path) -> Iterator[str]:
    with running_site(site_log) as address:
        yield address


@pytest.mark.parametrize(
    "spider",
    [
        "pages",
        "starterror",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("items", "kinds")),
    ],
)
def test_items_are_those_of_plain_scrapy(
    site: str, start: Start, tmp_path: Path, spider: str
) -> None:
    """The committed lines are, as a multiset, the bytes of ``scrapy crawl -O``."""
    args = {"site": site}
    if spider != "starterror":
        args["count"] = "40"
    process = start(spider, args=args)
    assert process.finish() == 0
    plain_scrapy(spider, args, tmp_path / "plain.jsonl")
    plain = (tmp_path / "plain.jsonl").read_text().splitlines()
    assert plain
    assert Counter(process.lines) == Counter(plain)


def test_stats_are_those_of_plain_scrapy(
    site: str, start: Start, tmp_path: Path
) -> None:
    """What Scrapy counts is the same, merged from commits; the dump is Scrapy's."""
    args = {"site": site, "count": "30"}
    process = start("kinds", args=args)
    process.finish()
    log = plain_scrapy("kinds", args, tmp_path / "plain.jsonl")
    marker = "[scrapy.statscollectors] INFO: Dumping Scrapy stats:\n{"
    plain = log.partition(marker)[2]
    ours = process.log.partition(marker)[2]
    assert plain
    assert ours
    sums = process.stats["sum"]
    compared = 0
    for key, value in sums.items():
        # Log lines of our own and bytes of headers that hold times differ.
        if not key.startswith("log_count/") and not key.endswith("_bytes"):
            assert f"'{key}': {value}" in plain, key
            assert f"'{key}': {value}" in ours, key
            compared += 1
    assert compared >= 10
    assert sums["item_scraped_count"] == len(process.lines)
    assert process.stats["max"]["request_depth_max"] > 1
    assert process.stats["last"]["finish_reason"] == "finished"
    assert set(process.stats["last"]["start_time"]) == {"$dt"}
    assert "'start_time': datetime.datetime(" in ours


def test_feeds_jobdir_and_log_file_of_the_project_are_not_written(
    site: str, start: Start
) -> None:
    """A spider's FEEDS, JOBDIR and LOG_FILE leave no file; the feeds are told."""
    process = start("kinds", args={"site": site, "count": "2"})
    process.finish()
    assert list(PROJECT.glob("must-not-exist*")) == []
    assert process.peer.opened is not None
    assert process.peer.opened.has_feeds
    assert "Dumping Scrapy stats" in process.log
    # Said once, by the project that has pipelines.
    assert process.log.count("written at least once") == 1
    assert process.log.count("JOBDIR is not used") == 1


def test_what_json_cannot_hold_is_kept(site: str, start: Start) -> None:
    """Every item has a line with a repr in it, one warning, a count, a tagged form."""
    process = start("unencodable", args={"site": site, "count": "1"})
    process.finish()
    raw, shelf, loop = (json.loads(line) for line in process.lines)
    assert raw == {"raw": repr(b"\xff\x00"), repr(("a", 1)): 2}
    assert shelf["plain"] == "é"
    assert "Shelf.UPPER" in shelf["shelf"]
    assert loop == {"loop": ["[[...]]"]}
    assert b'{"$b":"/wA="}' in process.tagged[0]
    assert b'{"$e":["testsite.items:Shelf","upper"]}' in process.tagged[1]
    assert process.stats["sum"]["dscrapy/unencodable_items"] == 3
    assert process.log.count("holds what JSON cannot") == 1


@pytest.mark.parametrize(
    ("spider", "spec", "failure", "text"),
    [
        ("nobody", {}, "unknown_spider", "there are: counted, flood, hang, heavy,"),
        ("missing.py", {}, "unknown_spider", "no file"),
        ("../project/scrapy.py", {}, "unknown_spider", "no file"),
        ("../server.py", {}, "unknown_spider", "not inside"),
        ("pages", {}, "bad_arguments", "'site'"),
        ("one", {"urls": ("x:",), "args": {"urls": "y:"}}, "bad_arguments", "twice"),
        ("otherreactor", {}, "unsupported", "SelectReactor"),
        (
            "pages",
            {
                "settings": {
                    "TWISTED_REACTOR": "twisted.internet.pollreactor.PollReactor"
                }
            },
            "unsupported",
            "PollReactor",
        ),
        (
            "one",
            {"settings": {"SCHEDULER": "scrapy.core.scheduler.BaseScheduler"}},
            "unsupported",
            "SCHEDULER is scrapy.core.scheduler.BaseScheduler",
        ),
        (
            "one",
            {"settings": {"DUPEFILTER_CLASS": "testsite.pipelines.Rounding"}},
            "unsupported",
            "DUPEFILTER_CLASS is testsite.pipelines.Rounding",
        ),
        (
            "one",
            {"settings": {"DOWNLOAD_SLOTS": '{"a.example": {"delay": "soon"}}'}},
            "spider_error",
            "ValueError: could not convert string to float: 'soon'",
        ),
    ],
)
def test_what_cannot_start_is_one_failure(
    start: Start, spider: str, spec: dict[str, Any], failure: str, text: str
) -> None:
    """The only commit is the last one, with the code and one line that says why."""
    process = start(spider, **spec)
    assert process.finish() == 0
    (commit,) = process.master.commits
    assert (commit.kind, commit.unit) == ("closed", 1)
    assert process.outcome.failure == failure
    assert text in process.outcome.text
    assert "\n" not in process.outcome.text


def write_project(folder: Path, settings: str = "", spider: str = "") -> Path:
    """Write a Scrapy project of one spider module."""
    package = folder / "broken"
    package.mkdir()
    (folder / "scrapy.cfg").write_text("[settings]\ndefault = broken.settings\n")
    (package / "__init__.py").touch()
    (package / "settings.py").write_text(
        f"SPIDER_MODULES = ['broken.spiders']\n{settings}\n"
    )
    (package / "spiders.py").write_text(spider)
    return folder


@pytest.mark.parametrize(
    ("settings", "spider", "failure", "text"),
    [
        ("import nowhere", "", "import_error", "No module named 'nowhere'"),
        ("", "import nowhere", "import_error", "No module named 'nowhere'"),
        ("", "syntax error", "import_error", "SyntaxError: invalid syntax"),
        ("", "raise SystemExit('bye')", "import_error", "SystemExit: bye"),
        ("", "from twisted.internet import reactor", "unsupported", "reactor"),
    ],
)
def test_a_broken_project_is_told_with_its_traceback(
    start: Start, tmp_path: Path, settings: str, spider: str, failure: str, text: str
) -> None:
    """The outcome has one line and the traceback; the log has the traceback too."""
    folder = write_project(tmp_path, settings, spider)
    process = start("any", folder=folder)
    assert process.finish() == 0
    assert process.outcome.failure == failure
    assert text in process.outcome.text
    trace = process.outcome.traceback
    # Python itself tells a syntax error by its place, without a head.
    is_syntax = spider == "syntax error"
    head = f'  File "{folder}/broken/spiders.py", line 1' if is_syntax else "Traceback"
    assert trace.startswith(head)
    assert text in trace
    assert trace.strip() in process.log


def test_no_project_is_told(start: Start, tmp_path: Path) -> None:
    """A folder without scrapy.cfg has no spiders by name."""
    process = start("pages", folder=tmp_path)
    assert process.finish() == 0
    assert process.outcome.failure == "unknown_project"
    assert str(tmp_path) in process.outcome.text


def test_a_component_that_fails_to_open_fails_the_run(
    start: Start, tmp_path: Path
) -> None:
    """Where Scrapy itself gives up, the error is the outcome's."""
    spider = "import scrapy\nclass A(scrapy.Spider):\n    name = 'a'\n"
    settings = "ITEM_PIPELINES = {'broken.spiders.A': 1, 'broken.nowhere.P': 2}"
    process = start("a", folder=write_project(tmp_path, settings, spider))
    assert process.finish() == 0
    assert process.outcome.failure == "import_error"
    assert "broken.nowhere" in process.outcome.text


def test_start_error(site: str, start: Start) -> None:
    """An exception in start() fails the run and keeps the items before it."""
    process = start("starterror", args={"site": site})
    assert process.finish() == 0
    assert process.outcome.finish_reason == "start_error"
    assert process.outcome.failure == "start_error"
    assert "LookupError: no more start" in process.outcome.text
    assert "LookupError" in process.outcome.traceback
    assert process.lines == ['{"number": 3}']


def test_what_the_settings_ask_is_told(site: str, start: Start) -> None:
    """Limits count for the job, so no process closes by itself for one."""
    settings = {
        "DOWNLOAD_DELAY": "0.01",
        "CONCURRENT_REQUESTS": "10",
        "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",
        "DOWNLOAD_SLOTS": '{"a.example": {"concurrency": 2, "delay": 1.5}}',
    }
    args = {"site": site, "count": "30"}
    process = start("counted", args=args, settings=settings)
    process.finish()
    assert len(process.lines) == 30
    (opened,) = (one for one in process.received if isinstance(one, Opened))
    assert opened == Opened(
        job=JOB,
        process=process.number,
        window=15,
        lifo=False,
        start_lifo=False,
        default_host=HostLimits(concurrency=16, delay_s=0.01),
        hosts={"a.example": HostLimits(concurrency=2, delay_s=1.5)},
        limits=CloseLimits(items=5),
        has_feeds=False,
    )


def test_a_spider_file_without_a_project(
    site: str, start: Start, tmp_path: Path
) -> None:
    """A file runs as with ``scrapy runspider``, urls as start_urls and argument."""
    (tmp_path / "single.py").write_text(
        "import scrapy\n"
        "class Single(scrapy.Spider):\n"
        "    name = 'single'\n"
        "    def parse(self, response):\n"
        "        yield {'url': response.url, 'urls': self.urls}\n"
    )
    urls = (f"{site}/page/1", f"{site}/page/2")
    process = start("single.py", folder=tmp_path, urls=urls)
    assert process.finish() == 0
    items = [json.loads(line) for line in process.lines]
    assert sorted(item["url"] for item in items) == sorted(urls)
    assert {item["urls"] for item in items} == {";".join(urls)}


def test_urls_do_not_replace_start_urls(site: str, start: Start) -> None:
    """A spider with start_urls of its own keeps them."""
    process = start(
        "pages", urls=(f"{site}/page/7",), args={"site": site, "count": "1"}
    )
    process.finish()
    assert [json.loads(line)["number"] for line in process.lines] == [0]


def test_stop_ends_gracefully(site: str, start: Start) -> None:
    """The reason is the job's; what is under way is finished and committed."""
    args = {"site": site, "count": "100000", "ms": "20"}
    process = start("pages", args=args)
    assert process.read_until(lambda: bool(process.lines))
    process.master.stop(process.number, "cancelled")
    assert process.finish() == 0
    assert process.outcome.finish_reason == "cancelled"
    assert process.outcome.failure == ""
    assert not process.peer.leases
    assert len(process.lines) == process.stats["sum"]["item_scraped_count"]
    assert process.stats["last"]["finish_reason"] == "cancelled"


def test_stop_before_the_crawl_has_begun(site: str, start: Start) -> None:
    """A stop that comes while the project loads is not lost."""
    args = {"site": site, "count": "100000"}
    process = start("pages", args=args)
    process.send(Stop(job=JOB, process=process.number, reason="cancelled"))
    assert process.finish() == 0
    assert process.outcome.finish_reason == "cancelled"
    assert process.lines == []


def test_items_wait_for_credit(site: str, start: Start) -> None:
    """Unanswered parts bound what one page holds; every item comes in the end."""
    process = start("flood", args={"site": site, "items": "3000", "size": "10000"})
    # Of the lease; what comes before it are units.
    assert process.read_until(lambda: bool(process.peer.leases))
    process.credit = False

    def parts() -> list[Any]:
        frames = (one for one in process.received if isinstance(one, Commits))
        return [one for frame in frames for one in frame.commits if one.request]

    assert process.read_until(lambda: len(parts()) == PARTS_UNSEEN_MAX)
    process.read_until(lambda: False, 1)
    assert len(parts()) == PARTS_UNSEEN_MAX
    assert not any(part.last for part in parts())
    # The callback waits; what it gave is a part more, and what Scrapy has in hand.
    assert "flooded" not in process.log
    process.credit = True
    process.answer()
    assert process.finish() == 0
    assert len(process.lines) == 3000
    numbers = [json.loads(line)["number"] for line in process.lines]
    assert sorted(numbers) == list(range(3000))
    sizes = [sum(len(bytes(item)) for item in part.items) for part in parts()]
    assert max(sizes) <= PART_BYTES_MAX
    assert len(parts()) >= 3000 * 10_000 // PART_BYTES_MAX
    # A commit has effect as a whole.
    (page,) = process.master.pages()
    assert [part.last for part in page.parts].count(True) == 1


def test_large_items_travel(site: str, start: Start) -> None:
    """Items far larger than a part are parts of their own."""
    process = start("flood", args={"site": site, "items": "5", "size": "3000000"})
    assert process.finish() == 0
    assert [len(json.loads(line)["text"]) for line in process.lines] == [3_000_000] * 5


def test_one_request_at_a_time_is_taken_in_exact_order(
    site: str, site_log: Path, start: Start, tmp_path: Path
) -> None:
    """Nothing is prefetched: the next request is chosen when the download before it is
    over, before its page is parsed, as in Scrapy."""
    settings = {"CONCURRENT_REQUESTS": "1"}
    args = {"site": site, "count": "25"}
    process = start("pages", args=args, settings=settings)
    assert process.finish() == 0
    order = [path for _, path in requests_in(site_log)]
    assert len(order) == 25
    plain_scrapy("pages", args, tmp_path / "plain.jsonl", settings=settings)
    assert [path for _, path in requests_in(site_log)] == order * 2


def test_without_a_filter_nothing_is_filtered(
    site: str, start: Start, tmp_path: Path
) -> None:
    """Scrapy's empty duplicate filter counts for the master too."""
    args = {"site": site, "count": "6"}
    settings = {"DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter"}
    process = start("pages", args=args, settings=settings)
    assert process.finish() == 0
    plain_scrapy("pages", args, tmp_path / "plain.jsonl", settings=settings)
    plain = (tmp_path / "plain.jsonl").read_text().splitlines()
    assert len(plain) > 6
    assert Counter(process.lines) == Counter(plain)


@pytest.mark.parametrize("how", ["many", "gathers"])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_host_sees_no_more_requests_than_the_project_allows(
    start: Start, concurrency: int, how: str
) -> None:
    """Counted at the site, which answers when as many are there; Scrapy 2.19 itself
    lets a slot's whole queue go."""
    with small_site(together=concurrency) as site:
        args = {"how": how, "site": site.address, "count": "24", "ms": "20"}
        settings = {
            "CONCURRENT_REQUESTS": "32",
            "CONCURRENT_REQUESTS_PER_DOMAIN": str(concurrency),
        }
        process = start("starts.py", FOLDER, args=args, settings=settings)
        assert process.finish() == 0
        assert len(site.paths) == 24
        assert site.most_at_once == concurrency


def test_robots_txt_holds_for_all_that_wait_for_it(start: Start) -> None:
    """Scrapy 2.19 itself lets all but the first through."""
    with small_site("User-agent: *\nDisallow: /p/\n") as site:
        args = {"how": "many", "site": site.address, "count": "12"}
        settings = {"ROBOTSTXT_OBEY": "True"}
        process = start("starts.py", FOLDER, args=args, settings=settings)
        assert process.finish() == 0
        assert site.paths == ["/robots.txt"]
    assert process.stats["sum"]["robotstxt/forbidden"] == 12
    for page in process.master.pages():
        assert "IgnoreRequest" in page.results
        assert page.parts[-1].stats["sum"]["robotstxt/forbidden"] == msgspec.Raw(b"1")


def test_a_probe_is_answered_and_the_link_s_end_is_the_end(
    site: str, start: Start
) -> None:
    """Alive comes from the event loop; without its worker the process goes."""
    process = start("pages", args={"site": site, "count": "100000", "ms": "20"})
    process.send(Probe(number=5))
    assert process.read_until(lambda: Alive(number=5) in process.received)
    process.sock.close()
    assert process.process.wait(WAIT_S) == 1


def test_a_blocked_process_dies_with_its_worker(site: str, start: Start) -> None:
    """A callback that never returns stops neither the stack dump nor the end."""
    process = start("hang", args={"site": site})
    process.wait_for_log("hanging now")
    process.send(Probe(number=1))
    assert not process.read_until(lambda: Alive(number=1) in process.received, 1)
    os.kill(process.process.pid, signal.SIGUSR1)
    process.wait_for_log("in parse")
    os.kill(process.process.pid, signal.SIGTERM)
    assert process.process.poll() is None
    process.cut_lifeline()
    assert process.process.wait(WAIT_S) == -signal.SIGKILL


def test_the_descriptors_are_not_inherited(start: Start, tmp_path: Path) -> None:
    """A program that the project starts holds neither link nor lifeline."""
    spider = (
        "import os, subprocess, scrapy\n"
        "class A(scrapy.Spider):\n"
        "    name = 'a'\n"
        "    async def start(self):\n"
        "        names = subprocess.run(['ls', '-l', '/proc/self/fd'],\n"
        "            close_fds=False, capture_output=True, text=True).stdout\n"
        "        yield {'sockets': names.count('socket:'),\n"
        "            'pipes': names.count('pipe:')}\n"
    )
    process = start("a", folder=write_project(tmp_path, "", spider))
    assert process.finish() == 0
    # The pipe is subprocess's own, for ls to write to; stderr is its other.
    assert [json.loads(line) for line in process.lines] == [{"sockets": 0, "pipes": 2}]
