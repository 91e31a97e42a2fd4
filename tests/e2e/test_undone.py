"""A job that did not do its work replaces no file of the day before."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import running_cluster
from tests.e2e.commands import run, run_into, running
from tests.e2e.crawl_harness import PROJECT, plain_scrapy, running_site

OLD = '{"of": "the day before"}\n'
CLOSED_DOOR = """
import scrapy

class Door:
    def open_spider(self):
        raise ConnectionError("cannot reach the database")
    def process_item(self, item):
        return item

class Pages(scrapy.Spider):
    name = "pages"
    custom_settings = {"ITEM_PIPELINES": {Door: 1}}

    async def start(self):
        yield scrapy.Request(f"{self.site}/page/1")

    def parse(self, response):
        yield {"url": response.url}
"""
RAISES = CLOSED_DOOR.replace("open_spider", "open_nothing").replace(
    "    def parse", "        raise ValueError('a start')\n\n    def parse"
)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.mark.parametrize("option", [pytest.param("-o", marks=pytest.mark.long), "-O"])
def test_a_pipeline_that_cannot_be_opened(
    tmp_path: Path, site: str, option: str
) -> None:
    """The crawl fails, says why, and leaves the file; nothing is made beside it."""
    (tmp_path / "door.py").write_text(CLOSED_DOOR)
    out = tmp_path / "out.jsonl"
    out.write_text(OLD)
    words = ("door.py", "-a", f"site={site}", option, "out.jsonl")
    done = run("crawl", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert out.read_text() == OLD
    told, line = done.stderr.splitlines()[-2:]
    assert told.startswith("dscrapy: door.py failed (")
    assert "cannot reach the database" in told
    assert line == f"dscrapy: the job failed without items: {out} is as it was"
    assert not out.with_name("out.jsonl.failed").exists()


def test_settings_that_are_refused_end_without_a_traceback_of_ours(
    tmp_path: Path, site: str
) -> None:
    """What cannot be listed as once per job is told in one line, with its setting."""
    (tmp_path / "raises.py").write_text(RAISES)
    words = ("raises.py", "-a", f"site={site}", "-s", "DSCRAPY_ONCE_PER_JOB=x.y")
    done = run("crawl", *words, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dscrapy: raises.py failed (DSCRAPY_ONCE_PER_JOB names x.y")
    assert "AttributeError" not in done.stderr


def test_a_start_that_raises_writes_its_file(tmp_path: Path, site: str) -> None:
    """The crawl came to its end: the items of what start() gave, as plain Scrapy."""
    (tmp_path / "raises.py").write_text(RAISES)
    out, plain = tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    out.write_text(OLD)
    words = ("raises.py", "-a", f"site={site}", "-O", "out.jsonl")
    done = run("crawl", *words, cwd=tmp_path)
    assert done.returncode == 1
    plain_scrapy("raises.py", {"site": site}, plain, folder=tmp_path)
    assert out.read_text() == plain.read_text() != ""
    count = len(plain.read_text().splitlines())
    wrote = f"dscrapy: wrote {count} item{'s' * (count != 1)} to {out}"
    assert done.stderr.splitlines()[-1] == wrote


@pytest.mark.parametrize("raises", [True, False])
def test_a_reader_that_has_seen_enough_hides_no_failure(
    tmp_path: Path, site: str, raises: bool
) -> None:
    """``crawl -o - | head``: the exit code is the job's. Nobody reads, and the other
    file is written; the crawl is over, so the same command begins another."""
    text = RAISES if raises else RAISES.replace("raise ValueError('a start')", "pass")
    (tmp_path / "raises.py").write_text(text)
    words = ("raises.py", "-a", f"site={site}", "-o", "-", "-o", "out.csv")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run_into(writer, "crawl", *words, cwd=tmp_path)
    finally:
        os.close(writer)
    assert done.returncode == int(raises), done.stderr
    assert "bug in dscrapy" not in done.stderr
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows == ["url", f"{site}/page/1"]
    again = run("crawl", *words, cwd=tmp_path)
    assert "had ended" not in again.stderr
    assert len(again.stdout.splitlines()) == 1


def test_what_a_cancelled_job_has_goes_beside_the_file(
    tmp_path: Path, site: str
) -> None:
    """submit --wait writes FILE.failed in the feed's format; items -O what is asked."""
    out = tmp_path / "out.csv"
    out.write_text(OLD)
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        cluster.start_worker("w1")
        where = ("--state", str(cluster.state), "--project", str(PROJECT))
        words = ("-a", f"site={site}", "-a", "ms=50", "-a", "count=100000")
        serial = ("-s", "CONCURRENT_REQUESTS=1", "--wait", "-O", str(out))
        with running(
            *("submit", "pages", *where, *words, *serial), cwd=tmp_path, home=tmp_path
        ) as waiting:
            waiting.until("\n", stream="out")
            job = waiting.out.decode().strip()
            cluster.wait_until(lambda: cluster.job(job)["items"] > 2)
            cluster.ok("cancel", job)
            assert waiting.finish() == 1, waiting.err
        assert out.read_text() == OLD
        count = cluster.job(job)["items"]
        beside = tmp_path / "out.csv.failed"
        assert len(beside.read_text().splitlines()) == count + 1
        line = (
            f"dscrapy: wrote {count} items to {beside}: the job was cancelled, "
            f"{out} is as it was"
        )
        assert waiting.err.decode().splitlines()[-1] == line
        cluster.ok("items", job, "-O", str(out))
        assert out.read_text() == beside.read_text()
        assert json.loads(cluster.ok("show", job, "--json"))["came_to_end"] is False
