"""Feeds with batches against plain Scrapy: files that are there before the crawl ends,
and the same in the end whoever is killed meanwhile."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import DYING, Cluster, running_cluster
from tests.e2e.crawl_harness import Gate, plain_scrapy, running_site
from tests.e2e.feeds_harness import files_in

SPIDER = """
import scrapy

class Pages(scrapy.Spider):
    name = "pages"
    custom_settings = {"CONCURRENT_REQUESTS": 1}

    async def start(self):
        for number in range(8):
            site = self.sites.split()[number % len(self.sites.split())]
            url = f"{site}/page/{number}"
            if hasattr(self, "gate"):
                url += f"?gate={self.gate}&free={self.free}"
            yield scrapy.Request(url, cb_kwargs={"number": number})

    def parse(self, response, number):
        yield {"number": number, "title": response.css("title::text").get()}
"""
# The first pages that nobody holds back.
FREE = 5


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


def feeds_in(folder: Path) -> str:
    """Return FEEDS of two sizes, and one without batches."""
    return json.dumps(
        {
            f"{folder}/two-%(batch_id)d.json": {
                "format": "json",
                "batch_item_count": 2,
            },
            f"{folder}/three-%(batch_id)03d-%(batch_time)s.csv": {
                "format": "csv",
                "batch_item_count": 3,
            },
            f"{folder}/all.jsonl": {"format": "jsonl", "overwrite": True},
        }
    )


def named(folder: Path) -> dict[str, bytes]:
    """Return a folder's files under names without the time."""
    files = files_in(folder)
    short = {re.sub(r"-20[^.]+\.\d+[^.]*", "", name): files[name] for name in files}
    assert len(short) == len(files), files
    return short


def expected(tmp_path: Path, site: str) -> dict[str, bytes]:
    """Return the files of plain Scrapy."""
    (tmp_path / "pages.py").write_text(SPIDER)
    plain = tmp_path / "plain"
    plain_scrapy(
        "pages.py",
        {"sites": site},
        tmp_path / "plain.jsonl",
        folder=tmp_path,
        settings={"FEEDS": feeds_in(plain)},
    )
    files = named(plain)
    assert len(files) == 4 + 3 + 1
    return files


def submit(cluster: Cluster, folder: Path, ours: Path, *more: str, **args: Any) -> str:
    """Submit the job; return its id."""
    words = [word for key, value in args.items() for word in ("-a", f"{key}={value}")]
    feeds = ("-s", f"FEEDS={feeds_in(ours)}")
    project = ("--project", str(folder))
    return cluster.ok("submit", "pages.py", *project, *feeds, *words, *more).strip()


def full(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of the batches that the first pages fill."""
    names = ("two-1.json", "two-2.json", "three-001.csv")
    return {name: files[name] for name in names}


def has_full(ours: Path, files: dict[str, bytes]) -> bool:
    """Whether these are there; a part beside them has another name."""
    there = named(ours) if ours.exists() else {}
    return full(files).items() <= there.items()


Victim = Callable[[Cluster, Any], Any]


def nobody(cluster: Cluster, worker: Any) -> None:
    """Let them live."""


def export(cluster: Cluster, worker: Any) -> None:
    """Kill the process that writes feeds: the last one that was started."""
    pids = cluster.crawl_pids(worker)
    assert len(pids) == 2
    os.kill(pids[-1], signal.SIGKILL)


def the_worker(cluster: Cluster, worker: Any) -> None:
    """Kill it; another life of it comes."""
    cluster.kill(worker)
    cluster.start_worker("w", "--slots", "1")


def the_master(cluster: Cluster, worker: Any) -> None:
    """Kill it, and start it again."""
    assert cluster.master is not None
    cluster.kill(cluster.master)
    cluster.start_master()


@pytest.mark.parametrize(
    "victim",
    [
        nobody,
        export,
        *(
            pytest.param(one, marks=pytest.mark.long)
            for one in (the_worker, the_master)
        ),
    ],
)
def test_batches_appear_while_the_crawl_runs(
    victim: Victim, tmp_path: Path, site: str
) -> None:
    """The site holds back until all batches that can be full are there; who is killed
    then is in the middle of the next ones. In the end the files are plain Scrapy's."""
    files = expected(tmp_path, site)
    ours, gate = tmp_path / "ours", Gate(tmp_path, free=FREE)
    with running_cluster(tmp_path, DYING) as cluster:
        cluster.start_master()
        worker = cluster.start_worker("w", "--slots", "1")
        job = submit(cluster, tmp_path, ours, sites=site, **gate.arguments)
        cluster.wait_until(lambda: has_full(ours, files))
        assert cluster.job(job)["state"] == "running"
        victim(cluster, worker)
        gate.open()
        waited = cluster.run("wait", job)
        assert named(ours) == files
        assert cluster.job(job)["items"] == 8
        assert counts_of(cluster, job) == [(4, 8), (3, 8), (1, 8)]
        told = [
            f"8 items to 4 files, from {ours}/two-1.json to {ours}/two-4.json on w",
            *(f"8 items to 3 files, from {ours}/three-001", f"8 items to {ours}/all"),
        ]
        text = cluster.ok("show", job)
        for line, start in zip(waited.stderr.splitlines(), told, strict=True):
            assert line.startswith(f"dscrapy: wrote {start}")
            assert line.removeprefix("dscrapy: wrote ") in text


def counts_of(cluster: Cluster, job: str) -> list[tuple[int, int]]:
    """Return how many files and items the job is said to have written of each feed."""
    feeds = json.loads(cluster.ok("show", job, "--json"))["feeds"]
    assert {(one["failed"], *one["workers"]) for one in feeds} == {(0, "w")}
    return [(one["files"], one["items"]) for one in feeds]


@pytest.mark.long
def test_a_cancelled_job_keeps_full_batches(tmp_path: Path, site: str) -> None:
    """And nothing else: no part of a file, no feed that is not complete."""
    files = expected(tmp_path, site)
    ours, gate = tmp_path / "ours", Gate(tmp_path, free=FREE)
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        cluster.start_worker("w", "--slots", "1")
        job = submit(cluster, tmp_path, ours, sites=site, **gate.arguments)
        cluster.wait_until(lambda: has_full(ours, files))
        cluster.ok("cancel", job)
        gate.open()
        assert cluster.run("wait", job).returncode == 1
        assert cluster.job(job)["state"] == "cancelled"
        assert named(ours) == full(files)
        assert counts_of(cluster, job) == [(2, 4), (1, 3)]


@pytest.mark.long
def test_batches_of_many_processes_are_full(tmp_path: Path, site: str) -> None:
    """Whoever gave them: all items are there once, and each batch is full but the
    last."""
    expected(tmp_path, site)
    ours = tmp_path / "ours"
    sites = f"{site} {site.replace('127.0.0.1', 'localhost')}"
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        cluster.start_worker("w", "--slots", "3")
        job = submit(cluster, tmp_path, ours, "-p", "3", sites=sites)
        cluster.ok("wait", job)
    files = named(ours)
    two = [json.loads(files[f"two-{number}.json"]) for number in range(1, 5)]
    assert [len(batch) for batch in two] == [2, 2, 2, 2]
    three = [files[f"three-{number:03d}.csv"].splitlines() for number in range(1, 4)]
    assert [len(batch) for batch in three] == [4, 4, 3]
    numbers = sorted(item["number"] for batch in two for item in batch)
    assert numbers == list(range(8))
    assert (
        sorted(int(line.split(b",")[0]) for batch in three for line in batch[1:])
        == numbers
    )
    assert len(files) == 4 + 3 + 1
