"""A page that kills its process, with real processes: it is found, the rest is done."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, running_cluster
from tests.e2e.crawl_harness import Gate, plain_scrapy, requests_in, running_site

COUNT = 300
# Of the last level: what it links to is found elsewhere, too.
BAD = 211


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster where nobody who is alive is given up."""
    with running_cluster(tmp_path) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("number", "parallelism"),
    [(signal.SIGSEGV, 1), pytest.param(0, 2, marks=pytest.mark.long)],
)
def test_a_page_that_kills_is_set_aside_and_the_rest_is_done(
    cluster: Cluster, tmp_path: Path, number: int, parallelism: int
) -> None:
    """One among hundreds: the job fails and names it, with all other items once."""
    output = tmp_path / "plain.jsonl"
    with running_site() as site:
        arguments = {"site": site, "count": str(COUNT)}
        plain_scrapy("pages", arguments, output)
        cluster.start_master()
        cluster.start_worker("w", "--slots", "2")
        job = cluster.submit(
            "killer",
            "-p",
            str(parallelism),
            **arguments,
            bad=BAD,
            signal=int(number),
        )
        waited = cluster.run("wait", job)
    lines = Counter(output.read_text().splitlines())
    (bad,) = (line for line in lines if json.loads(line)["number"] == BAD)
    assert waited.returncode == 1
    shown = cluster.job(job)
    assert cluster.items(job) == lines - Counter([bad])
    assert (shown["state"], shown["poisoned"], shown["pending"]) == ("failed", 1, 0)
    (poisoned,) = shown["poisoned_requests"]
    assert poisoned["url"] == f"{site}/page/{BAD}"
    how = "was killed by SIGSEGV" if number else "exited with code 3 before its end"
    assert poisoned["reason"].endswith(how)
    assert f"1 request is poisoned: {poisoned['url']}" in waited.stdout
    assert poisoned["url"] in cluster.ok("show", job)


@pytest.mark.long
def test_kills_from_outside_condemn_nobody(cluster: Cluster, tmp_path: Path) -> None:
    """However often the process is killed with the same pages under way."""
    log = tmp_path / "site.log"
    with running_site(log) as site:
        arguments = {"site": site, "count": "40"}
        output = tmp_path / "plain.jsonl"
        plain_scrapy("pages", arguments, output)
        cluster.start_master()
        worker = cluster.start_worker("w")
        # Nothing ends before the kill: each process dies with the first page.
        gate = Gate(tmp_path, free=0)
        plain = len(requests_in(log))
        job = cluster.submit("pages", **arguments, **gate.arguments)
        for runs in range(1, 6):
            cluster.wait_until(lambda runs=runs: len(requests_in(log)) == plain + runs)  # type: ignore[misc]  # the loop's own number
            (pid,) = cluster.crawl_pids(worker)
            os.kill(pid, signal.SIGKILL)
        gate.open()
        cluster.ok("wait", job)
    shown = cluster.job(job)
    assert (shown["state"], shown["poisoned"]) == ("succeeded", 0)
    assert shown["runs"] == 6
    assert cluster.items(job) == Counter(output.read_text().splitlines())


def test_a_worker_with_a_broken_environment_gets_no_more_of_the_job(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its crawl processes die at once; the job ends elsewhere, ``status`` names it."""
    broken = tmp_path / "broken"
    (broken / "twisted").mkdir(parents=True)
    (broken / "twisted" / "__init__.py").write_text("import os\nos._exit(9)\n")
    with running_site() as site:
        cluster.start_master()
        cluster.start_worker("whole", "--slots", "1")
        # It has the only sound slot for a while.
        gate = Gate(tmp_path, free=5)
        first = cluster.submit("pages", site=site, count="30", **gate.arguments)
        cluster.wait_until(lambda: cluster.job(first)["pages"] > 0)
        cluster.start_worker("broken", within=("env", f"PYTHONPATH={broken}"))
        job = cluster.submit("pages", site=site, count="9")
        cluster.wait_until(lambda: bool(notes_of(cluster).get("broken")))
        gate.open()
        cluster.ok("wait", first, job)
        workers = notes_of(cluster)
    assert cluster.job(job)["workers"] == ["whole"]
    assert cluster.items(job).total() == 9
    assert workers["whole"] == ""
    note = workers["broken"]
    assert note.startswith(f"gets no more processes of job {job} (")
    assert " ago): its processes died there before they had started" in note


def notes_of(cluster: Cluster) -> dict[str, str]:
    """Return what the status says of each worker."""
    return {one["name"]: one["note"] for one in cluster.status()["workers"]}
