"""Who leaves and who comes: Ctrl-C, drains, names and ports of workers."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import CONF, DYING, WAIT_S, Cluster, running_cluster
from tests.e2e.commands import assert_user_error, run, running
from tests.e2e.crawl_harness import Gate, running_site


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of the test's own."""
    with running_cluster(tmp_path) as cluster:
        yield cluster
        assert "Traceback" not in cluster.log()


# ---- Ctrl-C -----------------------------------------------------------------------


def test_ctrl_c_at_a_worker_drains(cluster: Cluster, site: str, tmp_path: Path) -> None:
    """It finishes what has started, gives the rest back and leaves; the job goes on
    elsewhere, and nothing is done twice."""
    cluster.start_master()
    first = cluster.start_worker("first", "--slots", "1")
    gate = Gate(tmp_path, free=20)
    job = cluster.submit("pages", site=site, count=200, **gate.arguments)
    cluster.wait_until(lambda: cluster.job(job)["pages"] == 20)
    first.send_signal(signal.SIGINT)
    cluster.wait_until(lambda: cluster.status()["workers"][0]["state"] == "draining")
    gate.open()
    assert first.wait(WAIT_S) == 0
    done = cluster.job(job)
    assert done["state"] == "ready"
    assert 20 < done["pages"] < 200
    cluster.start_worker("second")
    cluster.ok("wait", job)
    shown = cluster.job(job)
    assert (shown["runs"], shown["items"], shown["pages"]) == (2, 200, 200)


def test_a_second_ctrl_c_at_a_worker_kills(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """What takes long to finish is not waited for; it is done again elsewhere."""
    cluster.conf.write_text(DYING)
    cluster.start_master()
    worker = cluster.start_worker("w", "--slots", "1")
    # It takes for ever.
    gate = Gate(tmp_path, free=0)
    job = cluster.submit("pages", site=site, count=3, **gate.arguments)
    cluster.wait_until(lambda: cluster.job(job)["leased"] > 0)
    worker.send_signal(signal.SIGINT)
    cluster.wait_until(lambda: cluster.status()["workers"][0]["state"] == "draining")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(WAIT_S) == 1
    assert cluster.job(job)["pages"] == 0
    cluster.wait_until(lambda: cluster.job(job)["leased"] == 0)


@pytest.mark.long
def test_ctrl_c_ends_master_wait_and_logs(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """Each ends without a traceback; the job goes on, and the master's next life
    knows it."""
    master = cluster.start_master()
    cluster.start_worker("w")
    gate = Gate(tmp_path, free=10)
    first = cluster.submit("pages", "--wait", site=site, count=1)
    job = cluster.submit("pages", site=site, count=80, **gate.arguments)
    where = ("--state", str(cluster.state))
    with (
        running("wait", first, job, *where, cwd=tmp_path, home=tmp_path) as waiting,
        running("logs", "-f", job, *where, cwd=tmp_path, home=tmp_path) as logs,
    ):
        waiting.until(first, stream="out")
        logs.until("Spider opened", stream="out")
        cluster.wait_until(lambda: cluster.job(job)["pages"] == 10)
        for command, code in ((waiting, 1), (logs, 0)):
            command.interrupt()
            assert command.finish() == code
            assert b"Traceback" not in command.err
    master.send_signal(signal.SIGINT)
    assert master.wait(WAIT_S) == 0
    cluster.start_master()
    gate.open()
    cluster.ok("wait", job)
    assert cluster.job(job)["runs"] == 1


# ---- the fleet --------------------------------------------------------------------


def test_drain_and_names_of_workers(cluster: Cluster, tmp_path: Path) -> None:
    """A worker may come before its master; a second one of its name is refused; its
    own port answers; ``drain`` lets it leave."""
    worker = cluster.start_worker("w")
    cluster.wait_until(lambda: "waiting for" in cluster.log())
    cluster.start_master()
    cluster.wait_until(lambda: bool(cluster.status()["workers"]))
    where = ("--state", str(cluster.state), "--port", "0", "--name", "w")
    done = run("worker", *where, cwd=tmp_path)
    assert "--name" in assert_user_error(done, 1)
    at = f"127.0.0.1:{cluster.status()['workers'][0]['port']}"
    told = json.loads(cluster.ok("status", "--at", at, "--json"))
    assert [one["name"] for one in told["workers"]] == ["w"]
    cluster.ok("drain", "w")
    assert worker.wait(WAIT_S) == 0
    cluster.wait_until(lambda: cluster.status()["workers"] == [])
    assert "w" in assert_user_error(cluster.run("drain", "w"), 1)


def test_a_default_port_that_is_taken_moves_on(cluster: Cluster) -> None:
    """Without --port two workers on one machine take two ports, one after another;
    with it the same port is an error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster.conf.write_text(f"{CONF}[dscrapy.worker]\nport = {port}\n")
        cluster.start_master()
        given = cluster.run("worker", "--port", str(port))
        assert str(port) in assert_user_error(given, 1)


@pytest.mark.long
def test_a_worker_outlives_its_token_file(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """The token's file vanishes with the master: the worker waits, and its crawl is
    still its own when both are back."""
    master = cluster.start_master()
    worker = cluster.start_worker("w")
    gate = Gate(tmp_path, free=10)
    job = cluster.submit("pages", site=site, count=60, **gate.arguments)
    cluster.wait_until(lambda: cluster.job(job)["pages"] > 0)
    token = cluster.state / "token"
    token.rename(cluster.state / "elsewhere")
    cluster.kill(master)
    cluster.wait_until(lambda: "trying again: no token" in cluster.log())
    assert worker.poll() is None
    (cluster.state / "elsewhere").rename(token)
    cluster.start_master()
    gate.open()
    cluster.ok("wait", job)
    assert cluster.items(job).total() == 60
