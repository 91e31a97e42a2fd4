"""Two thousand connections that prove nothing, against real processes."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dscrapy.messages import GetStatus
from dscrapy.net.admission import LOGGED_MAX, NEWCOMERS_MAX
from dscrapy.worker import status_port
from tests.e2e.cluster import Cluster, running_cluster
from tests.e2e.crawl_harness import running_site
from tests.e2e.flood import Flood, limits_allow, memory_bytes, open_files
from tests.e2e.hostile import peer

STRANGERS = 2000
# Of each that is kept, and there are ``NEWCOMERS_MAX`` of them. Its task and stream are
# some 8 KiB (tests/shell/test_floods.py); what a process holds grows in larger steps.
KEPT_BYTES_MAX = 24 * 1024

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not limits_allow(STRANGERS),
    reason="needs Linux (an address for the strangers, /proc) and 2,200 open files",
)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as url:
        yield url


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A master and a worker."""
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        cluster.start_worker("w", "--slots", "2")
        cluster.wait_until(lambda: len(cluster.status()["workers"]) == 1)
        yield cluster


@pytest.mark.long
def test_two_thousand_strangers_at_the_master(cluster: Cluster, site: str) -> None:
    """While they last a job runs, a client is answered and another worker comes in;
    they cost some kilobytes each, of those few that are kept, and no log."""
    assert cluster.master is not None
    pid = cluster.master.pid
    # What a first job makes it import is not the strangers' doing.
    cluster.submit("pages", "--wait", site=site, count=5)
    before, files_before = memory_bytes(pid), open_files(pid)
    began = time.monotonic()
    with Flood(cluster._port, STRANGERS) as flood:
        grown = memory_bytes(pid) - before
        files = open_files(pid) - files_before
        job = cluster.submit("pages", "--wait", site=site, count=30)
        assert cluster.items(job).total() == 30
        cluster.start_worker("second", "--slots", "1")
        cluster.wait_until(lambda: len(cluster.status()["workers"]) == 2)
        cluster.wait_until(lambda: flood.ended > STRANGERS)
    sys.stdout.write(
        f"{STRANGERS} strangers, {flood.ended} hung up on; memory {grown:+} bytes, "
        f"{grown // NEWCOMERS_MAX} for each of {NEWCOMERS_MAX} that are kept\n"
    )
    assert files <= NEWCOMERS_MAX + 64
    assert grown <= NEWCOMERS_MAX * KEPT_BYTES_MAX
    with peer(cluster._port) as client:
        answer = client.greet(cluster.state).ask(GetStatus(call=1))
        assert answer["role"] == "master"
    lines = [line for line in cluster.log().splitlines() if "turned away" in line]
    # A few in each minute that has begun.
    minutes = (time.monotonic() - began) // 60 + 2
    assert 1 <= len(lines) <= minutes * (LOGGED_MAX + 1)


@pytest.mark.long
def test_two_thousand_strangers_at_a_workers_port(cluster: Cluster, site: str) -> None:
    """Its status is told and its crawl goes on."""
    (shown,) = cluster.status()["workers"]
    worker = cluster.processes[1]
    before, files_before = memory_bytes(worker.pid), open_files(worker.pid)
    where = f"127.0.0.1:{shown['port']}"
    with Flood(shown["port"], STRANGERS) as flood:
        job = cluster.submit("pages", "--wait", site=site, count=30)
        assert cluster.items(job).total() == 30
        status = json.loads(cluster.ok("status", "--json", "--at", where))
        assert status["workers"][0]["name"] == "w"
        grown = memory_bytes(worker.pid) - before
        files = open_files(worker.pid) - files_before
        cluster.wait_until(lambda: flood.ended > STRANGERS // 2)
    assert files <= status_port.NEWCOMERS_MAX + 64
    # Beside the strangers a crawl process was started.
    assert grown <= status_port.NEWCOMERS_MAX * KEPT_BYTES_MAX + 8 * 1024 * 1024
