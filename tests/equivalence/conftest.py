"""Every run is made once in a session: plain, with one process, with three."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from dscrapy.model import Submission
from tests.e2e.cluster import Cluster, running_cluster
from tests.equivalence.cases import BURST, CASES, CLOSINGS, ROBOTS_BURST, Case, Closing
from tests.equivalence.ours import run_job, submission
from tests.equivalence.runs import Run, Site, plain_scrapy, running_site

# As many crawls at a time as keep a small machine busy; more only wait for it.
PLAIN_AT_A_TIME = 3
# Jobs of three processes at a time: each finds three free slots, so that nothing but
# its own hosts decides how many it gets.
SHARED_AT_A_TIME = 3
WORKERS = 3
SLOTS = 3

# Answers this slow leave time for a second process; a shared case waits for it.
MS = "60"
TOGETHER = 2

# Set to "all", three processes run every spider; else those marked for it: a process
# costs a second of CPU at its start.
VARIABLE = "EQUIVALENCE"

Runs = Mapping[str, Run]


def runs_shared(one: Case | Closing) -> bool:
    """Whether three processes run this in this session."""
    return one.in_fast or os.environ.get(VARIABLE) == "all"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the runs with one process: each costs seconds of CPU."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        needed = {*getattr(item, "fixturenames", ()), params.get("kind")}
        if "one_process" in needed:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all runs."""
    return tmp_path_factory.mktemp("equivalence")


@pytest.fixture(scope="session")
def site(folder: Path) -> Iterator[Site]:
    """The site of all runs; each run's requests are told apart by its name."""
    with running_site(folder / "site.jsonl") as site:
        yield site


@pytest.fixture(scope="session")
def plain(site: Site, folder: Path) -> Runs:
    """Runs of plain Scrapy, by name."""
    runs: dict[str, Callable[[], Run]] = {}
    for case in (*CASES, ROBOTS_BURST, BURST):
        runs[case.name] = lambda name=case.name: plain_scrapy(site, folder, name)  # type: ignore[misc]  # its default binds the loop's value
    for one in CLOSINGS:
        runs[one.name] = lambda one=one: plain_scrapy(  # type: ignore[misc]  # as above
            site,
            folder,
            one.spider,
            name=one.name,
            arguments=one.arguments,
            settings=one.settings,
        )
    with ThreadPoolExecutor(PLAIN_AT_A_TIME) as pool:
        done = list(pool.map(lambda run: run(), runs.values()))
    return dict(zip(runs, done, strict=True))


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[Cluster]:
    """A master and three workers for all jobs."""
    with running_cluster(folder) as cluster:
        cluster.start_master()
        for number in range(WORKERS):
            cluster.start_worker(f"w{number}", "--slots", str(SLOTS))
        yield cluster


@pytest.fixture(scope="session")
def one_process(cluster: Cluster, site: Site, folder: Path) -> Runs:
    """Jobs of one process, by name; all of them wait for a slot at once."""
    jobs = _jobs(site, folder, "one", 1, {})
    return trio.run(_run_all, cluster, site, jobs, len(jobs))


@pytest.fixture(scope="session")
def three_processes(cluster: Cluster, site: Site, folder: Path) -> Runs:
    """Jobs of up to three processes, by name."""
    jobs = _jobs(site, folder, "three", 3, {"ms": MS})
    return trio.run(_run_all, cluster, site, jobs, SHARED_AT_A_TIME)


def _jobs(
    site: Site, folder: Path, label: str, processes: int, more: dict[str, str]
) -> dict[str, Submission]:
    jobs = {}
    for case in (*CASES, ROBOTS_BURST, BURST):
        if processes > 1 and not runs_shared(case):
            continue
        arguments = dict(more)
        if case.shared and processes > 1:
            arguments["together"] = str(TOGETHER)
        jobs[case.name] = submission(
            site,
            folder,
            case.name,
            f"{label}-{case.name}",
            processes=processes,
            arguments=arguments,
        )
    for one in CLOSINGS:
        if processes > 1 and not runs_shared(one):
            continue
        jobs[one.name] = submission(
            site,
            folder,
            one.spider,
            f"{label}-{one.name}",
            processes=processes,
            arguments=one.arguments,
            settings=one.settings,
        )
    return jobs


async def _run_all(
    cluster: Cluster, site: Site, jobs: dict[str, Submission], at_a_time: int
) -> Runs:
    runs: dict[str, Run] = {}
    limit = trio.CapacityLimiter(at_a_time)

    async def run(name: str, job: Submission) -> None:
        async with limit:
            runs[name] = await run_job(cluster, site, job)

    async with trio.open_nursery() as nursery:
        for name, job in jobs.items():
            nursery.start_soon(run, name, job)
    return runs
