"""Kill anything: the items are those of plain ``scrapy crawl``, each once."""

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import DYING, Cluster, running_cluster
from tests.e2e.crawl_harness import Gate, plain_scrapy, requests_in, running_site


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster where nobody who is alive is given up."""
    with running_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with short spans."""
    with running_cluster(tmp_path, DYING) as cluster:
        yield cluster


def oracle(spider: str, tmp_path: Path, site: str, count: str) -> Counter[str]:
    """Return the items of plain Scrapy, of pages that nothing slows down."""
    output = tmp_path / f"{spider}.jsonl"
    plain_scrapy(spider, {"site": site, "count": count}, output)
    items = Counter(output.read_text().splitlines())
    assert items
    return items


@pytest.mark.long
def test_twenty_jobs_survive_a_killed_worker_and_a_killed_master(
    dying: Cluster, site: str, tmp_path: Path
) -> None:
    """Twenty jobs of two spiders, a worker and the master killed in mid-job: every
    job succeeds with exactly the items of plain Scrapy."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    rng = random.Random(seed)
    arguments = {"site": site, "count": "30", "ms": "40"}
    expected = {
        spider: oracle(spider, tmp_path, site, "30") for spider in ("pages", "items")
    }
    dying.start_master()
    jobs = {}
    for number in range(20):
        spider = ("pages", "items")[number % 2]
        priority = rng.randrange(-5, 6)
        job = dying.submit(spider, "--priority", str(priority), **arguments)
        jobs[job] = spider
    # Now that all are there: a busy machine ends a job while the next is submitted.
    workers = [dying.start_worker(f"w{number}") for number in range(3)]
    victim = rng.choice(workers)
    dying.wait_until(lambda: bool(dying.crawl_pids(victim)))
    held = dying.crawl_pids(victim)
    dying.kill(victim)
    # The victim held at least one job: the kill counts.
    assert held
    ended = rng.randrange(3, 9)
    dying.wait_until(lambda: _ended(dying) >= ended)
    assert dying.master is not None
    dying.kill(dying.master)
    dying.start_master()
    waited = dying.run("wait", *jobs)
    assert waited.returncode == 0, (waited.stdout, waited.stderr, dying.log())
    for job, spider in jobs.items():
        shown = dying.job(job)
        assert shown["state"] == "succeeded", shown
        assert dying.items(job) == expected[spider], (job, spider)
        assert shown["items"] == expected[spider].total()


def _ended(cluster: Cluster) -> int:
    states = [job["state"] for job in cluster.status()["jobs"]]
    return states.count("succeeded")


def test_a_killed_crawl_process_costs_what_it_had_under_way(
    cluster: Cluster, tmp_path: Path
) -> None:
    """SIGKILL of the crawl process in mid-job: the next one goes on, no item is lost or
    there twice, and no page that was committed is fetched again."""
    log = tmp_path / "site.log"
    with running_site(log) as site:
        expected = oracle("pages", tmp_path, site, "160")
        plain = len(requests_in(log))
        cluster.start_master()
        worker = cluster.start_worker("w")
        gate = Gate(tmp_path, free=20)
        job = cluster.submit("pages", site=site, count="160", **gate.arguments)
        cluster.wait_until(lambda: cluster.job(job)["pages"] == 20)
        (pid,) = cluster.crawl_pids(worker)
        os.kill(pid, signal.SIGKILL)
        gate.open()
        cluster.ok("wait", job)
        shown = cluster.job(job)
        fetched = len(requests_in(log)) - plain
    assert shown["runs"] == 2
    assert cluster.items(job) == expected
    # A process holds no more leases than these: Scrapy's 16 requests at a time, and a
    # few at hand.
    assert plain <= fetched <= plain + 24


def test_a_running_job_goes_on_through_a_restart_of_the_master(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """The master killed in mid-job and started again: the same crawl process goes on
    and ends the job in its first run."""
    expected = oracle("pages", tmp_path, site, "160")
    master = cluster.start_master()
    worker = cluster.start_worker("w")
    gate = Gate(tmp_path, free=20)
    job = cluster.submit("pages", site=site, count="160", **gate.arguments)
    cluster.wait_until(lambda: cluster.job(job)["pages"] > 0)
    cluster.kill(master)
    # The crawl was under way: it outlives the master.
    running = cluster.crawl_pids(worker)
    assert running
    cluster.start_master()
    assert cluster.crawl_pids(worker) == running
    gate.open()
    cluster.ok("wait", job)
    shown = cluster.job(job)
    assert shown["runs"] == 1, cluster.log()
    assert cluster.items(job) == expected


def test_a_frozen_worker_is_reaped_and_its_late_items_are_dropped(
    dying: Cluster, site: str, tmp_path: Path
) -> None:
    """A worker under SIGSTOP loses its job after ``die_after_s``; what it offers when
    it wakes up is dropped, and its crawl process with it."""
    expected = oracle("pages", tmp_path, site, "160")
    dying.start_master()
    frozen = dying.start_worker("frozen")
    gate = Gate(tmp_path, free=30)
    job = dying.submit("pages", site=site, count="160", **gate.arguments)
    dying.wait_until(lambda: dying.job(job)["pages"] == 30)
    held = dying.crawl_pids(frozen)
    assert held
    frozen.send_signal(signal.SIGSTOP)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    # What it had under way is answered while it sleeps.
    gate.open()
    dying.start_worker("other")
    dying.wait_until(lambda: dying.job(job)["workers"] == ["other"])
    frozen.send_signal(signal.SIGCONT)
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    dying.ok("wait", job)
    assert dying.items(job) == expected
    dying.wait_until(lambda: not set(held) & set(dying.crawl_pids(frozen)))
    dying.wait_until(lambda: names_of(dying) == {"frozen", "other"})


def names_of(cluster: Cluster) -> set[str]:
    """Return the names of the workers that are there."""
    return {worker["name"] for worker in cluster.status()["workers"]}


def test_crawl_processes_end_with_their_worker(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """SIGKILL of a worker leaves no crawl process behind."""
    cluster.start_master()
    worker = cluster.start_worker("w")
    cluster.submit("pages", site=site, **Gate(tmp_path, free=0).arguments)
    cluster.wait_until(lambda: bool(cluster.crawl_pids(worker)))
    pids = cluster.crawl_pids(worker)
    cluster.kill(worker)
    cluster.wait_until(lambda: not any(_is_there(pid) for pid in pids))


def _is_there(pid: int) -> bool:
    try:
        # A zombie that init has not taken yet is gone for our purposes.
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
