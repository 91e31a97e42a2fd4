"""Mistakes and hostile peers against real processes: one clear line, nothing lost."""

import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import GetStatus
from dscrapy.proto.framing import encode_frame
from dscrapy.proto.handshake import Handshake
from tests.e2e.cluster import CONF, WAIT_S, Cluster, running_cluster
from tests.e2e.commands import assert_user_error, run
from tests.e2e.crawl_harness import PROJECT, Gate, running_site
from tests.e2e.hostile import Peer, peer


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and a worker that no test here may end; neither shows a traceback."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        root = cluster.folder / "projects"
        make_project(root / "broken", "import no_such_module\n")
        make_project(root / "whole", "")
        worker = f'[dscrapy.worker]\nprojects_root = "{root}"\n'
        # What says nothing is waited for here.
        conf = CONF.replace("handshake_timeout_s = 60", "handshake_timeout_s = 5")
        cluster.conf.write_text(conf + worker)
        cluster.start_master()
        cluster.start_worker("w1", "--slots", "2")
        yield cluster
        assert "Traceback" not in cluster.log()
        for process in cluster.processes:
            assert process.poll() is None, cluster.log()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of the test's own."""
    with running_cluster(tmp_path) as cluster:
        yield cluster
        assert "Traceback" not in cluster.log()


def make_project(folder: Path, head: str) -> None:
    """Write a project with one spider, ``tidy``; ``head`` begins its module."""
    spiders = folder / "shop" / "spiders"
    spiders.mkdir(parents=True)
    (folder / "scrapy.cfg").write_text("[settings]\ndefault = shop.settings\n")
    (folder / "shop/__init__.py").touch()
    (folder / "shop/settings.py").write_text('SPIDER_MODULES = ["shop.spiders"]\n')
    (spiders / "__init__.py").touch()
    spider = 'class Tidy(scrapy.Spider):\n    name = "tidy"\n'
    (spiders / "tidy.py").write_text(f"{head}import scrapy\n{spider}")


def port_of(cluster: Cluster) -> int:
    """Return the master's port."""
    port = json.loads((cluster.state / "endpoint.json").read_text())["port"]
    assert isinstance(port, int)
    return port


def worker_port(cluster: Cluster) -> int:
    """Return the port of the first worker."""
    cluster.wait_until(lambda: bool(cluster.status()["workers"]))
    port = cluster.status()["workers"][0]["port"]
    assert isinstance(port, int)
    return port


# ---- what a job may get wrong -----------------------------------------------------


def test_an_unknown_spider_fails_at_once_and_names_the_spiders(
    shared: Cluster,
) -> None:
    """No retry helps; the reason names what there is."""
    words = ("submit", "nosuch", "--project", "whole", "--retries", "5", "--wait")
    done = shared.run(*words)
    assert done.returncode == 1
    shown = shared.job(done.stdout.strip())
    assert (shown["state"], shown["runs"]) == ("failed", 1)
    assert "nosuch" in shown["reason"]
    assert "tidy" in shown["reason"]


def test_an_unknown_project_fails_at_once_and_names_the_projects(
    shared: Cluster, tmp_path: Path
) -> None:
    """By name the worker's projects are told; a folder that is not there is refused."""
    done = shared.run("submit", "tidy", "--project", "nowhere", "--wait")
    assert done.returncode == 1
    assert "whole" in done.stderr
    missing = str(tmp_path / "missing")
    done = shared.run("submit", "tidy", "--project", missing, "--wait")
    assert missing in assert_user_error(done, 2)
    assert done.stdout == ""


def test_an_import_error_is_told_where_it_helps(shared: Cluster) -> None:
    """The traceback, of the project's code alone, is in ``show`` and ``logs``, and
    ``submit --wait`` tells it once; ``status`` has one line."""
    done = shared.run("submit", "tidy", "--project", "broken", "--wait")
    assert done.returncode == 1
    job = done.stdout.strip()
    shown, log = shared.ok("show", job), shared.ok("logs", "-f", job)
    for text in (done.stderr, shown, log):
        assert text.count("Traceback") == 1
        assert "dscrapy/crawl" not in text
        assert "No module named 'no_such_module'" in text
    status = shared.ok("status")
    assert "Traceback" not in status
    assert sum(job in line for line in status.splitlines()) == 1
    assert "no_such_module" in shared.job(job)["reason"]


def test_a_file_with_one_bad_line_submits_nothing(
    shared: Cluster, tmp_path: Path
) -> None:
    """The file, the line and the key are named; the good lines wait for the mended
    file."""
    lines = [json.dumps({"spider": "tidy", "project": "whole"})] * 3
    before = len(shared.status()["jobs"])
    for bad, told in (
        ('{"spider": "tidy"', "line 3"),
        ('{"spider": "tidy", "project": "whole", "speling": 1}', "speling"),
        ('{"spider": "tidy", "project": "whole", "retries": "2"}', "retries"),
        ("[" * 100_000, "line 3"),
        ('{"spider": "tidy", "project": "../whole"}', "project"),
    ):
        file = tmp_path / "jobs.jsonl"
        file.write_text("\n".join([*lines[:2], bad, lines[2]]))
        error = assert_user_error(shared.run("submit", "--file", str(file)), 2)
        assert "jobs.jsonl" in error
        assert "line 3" in error
        assert told in error
    assert len(shared.status()["jobs"]) == before


# ---- garbage on either port -------------------------------------------------------

GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": random.Random(3).randbytes(100_000),
    "huge length": b"\xff\xff\xff\xff",
    "half a frame": b"\x00\x00\x00\x40{",
    "half a handshake": encode_frame(
        json.dumps({"nonce": "a" * 32, "role": "client"}).encode()
    ),
    "nothing": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("side", ["master", "worker"])
def test_garbage_on_a_port_harms_nobody(
    shared: Cluster, side: str, garbage: bytes
) -> None:
    """The connection is ended, within the time of a handshake, and others are
    served."""
    port = port_of(shared) if side == "master" else worker_port(shared)
    with peer(port) as stranger:
        stranger.write(garbage)
        if garbage == GARBAGE["half a handshake"]:
            assert b'"nonce"' in (stranger.hear() or b"")
        with peer(port) as client:
            answer = client.greet(shared.state).ask(GetStatus(call=1))
            assert answer["role"] == side
        # Hung up on, or so after handshake_timeout_s; longer fails the socket.
        assert stranger.hear() is None


@pytest.mark.parametrize("side", ["master", "worker"])
def test_garbage_after_the_handshake_harms_nobody(shared: Cluster, side: str) -> None:
    """Whoever knows the token and talks nonsense loses its connection only."""
    port = port_of(shared) if side == "master" else worker_port(shared)
    for nonsense in (
        b"\xff\xff\xff\xff",
        encode_frame(b"[" * 1_000_000),
        encode_frame(b'{"type":"register"}'),
        encode_frame(b'{"type":"\xff"}'),
    ):
        with peer(port) as stranger:
            stranger.greet(shared.state).write(nonsense)
            refused = stranger.hear()
            assert refused is None or b'"refused"' in refused
            assert refused is None or stranger.hear() is None
        with peer(port) as client:
            answer = client.greet(shared.state).ask(GetStatus(call=10**40))
            assert (answer["role"], answer["call"]) == (side, 10**40)


def test_idle_connections_hold_up_nobody(shared: Cluster, site: str) -> None:
    """Five hundred clients that say nothing, and a job runs beside them."""
    idle = []
    try:
        for _ in range(500):
            idle.append(Peer(port_of(shared)).greet(shared.state))
        job = shared.submit("pages", "--wait", site=site, count=20)
        assert shared.items(job).total() == 20
    finally:
        for one in idle:
            one.socket.close()


# ---- other versions, other tokens -------------------------------------------------


def test_another_version_is_told_on_both_sides(shared: Cluster) -> None:
    """A peer of another protocol version hears which one is spoken here."""
    with (
        peer(port_of(shared)) as stranger,
        pytest.raises(RemoteProtocolError, match=r"protocol 6\b.*install the same"),
    ):
        stranger.greet(shared.state, role="worker", versions=(99,))
    shared.wait_until(lambda: "speaks protocol 99, this one 6" in shared.log())


@contextmanager
def master_of_the_future(token: str) -> Iterator[int]:
    """Serve handshakes of version 99 only; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_turn_away, args=(server, token))
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            # Wakes the thread from its accept.
            server.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)


def _turn_away(server: socket.socket, token: str) -> None:
    while True:
        try:
            accepted, _ = server.accept()
        except OSError:
            return
        with accepted:
            handshake = Handshake(token=token, nonce="b" * 32, versions=(99,))
            heard = b""
            while handshake.last_words is None and (data := accepted.recv(4096)):
                heard += data
                size = 4 + int.from_bytes(heard[:4], "big")
                if len(heard) < size:
                    continue
                try:
                    answer = handshake.receive(heard[4:size])
                except RemoteProtocolError:
                    answer = handshake.last_words
                heard = heard[size:]
                accepted.sendall(encode_frame(answer or b""))


@pytest.mark.parametrize("command", ["worker --port 0", "status"])
def test_a_master_of_another_version_is_one_line(tmp_path: Path, command: str) -> None:
    """Worker and client say what differs and what to do, and end."""
    token = "t" * 32
    with master_of_the_future(token) as port:
        done = run(
            *command.split(),
            "--master",
            f"127.0.0.1:{port}",
            cwd=tmp_path,
            DSCRAPY_TOKEN=token,
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("dscrapy: ")]
    assert len(lines) == 1, done.stderr
    assert "99" in lines[0]
    assert "install the same dscrapy" in lines[0]
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr


def test_a_worker_with_a_wrong_token_is_4(shared: Cluster, tmp_path: Path) -> None:
    """Both sides say so; the worker ends, and nobody new is among the workers."""
    where = ("--master", f"127.0.0.1:{port_of(shared)}", "--port", "0")
    done = run("worker", *where, cwd=tmp_path, DSCRAPY_TOKEN="x" * 32)
    assert "DSCRAPY_TOKEN" in assert_user_error(done, 4)
    assert "x" * 32 not in done.stderr
    done = run("worker", *where, cwd=tmp_path)
    assert "DSCRAPY_TOKEN" in assert_user_error(done, 4)
    assert len(shared.status()["workers"]) == 1


# ---- state folders ----------------------------------------------------------------


def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file in its place is named, and so is a folder that takes no files."""
    (tmp_path / "file").touch()
    done = run("master", "--state", "file", "--port", "0", cwd=tmp_path)
    assert str(tmp_path / "file") in assert_user_error(done, 1)
    done = run("master", "--state", "/proc/state", "--port", "0", cwd=tmp_path)
    assert "/proc/state" in assert_user_error(done, 1)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a disk of its own at ``folder``, or skip where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - as mount


def test_a_full_disk_loses_nothing(site: str, tmp_path: Path) -> None:
    """Submits until the disk is full: a clear error, status is served, the running
    job ends when there is room, and every printed id is there after a restart."""
    disk = tmp_path / "disk"
    conf = f"{CONF}disk_free_bytes_min = 1000000\n"
    with small_disk(disk, "8m"), running_cluster(disk, conf) as cluster:
        master = cluster.start_master()
        cluster.start_worker("w", "--slots", "1")
        gate = Gate(tmp_path, free=10)
        running_job = cluster.submit("pages", site=site, count=60, **gate.arguments)
        cluster.wait_until(lambda: cluster.job(running_job)["pages"] > 0)
        printed = fill(cluster)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            room = os.statvfs(disk)
            file.write(b"x" * (room.f_bavail * room.f_frsize))
        gate.open()
        # Nobody knows before there is something to write.
        cluster.wait_until(lambda: "disk full" in cluster.status()["master"]["note"])
        status = cluster.status()
        assert {job["id"] for job in status["jobs"]} == {running_job, *printed}
        refused = cluster.run("submit", "one", "--project", str(PROJECT))
        assert "disk full" in assert_user_error(refused, 1)
        ballast.unlink()
        cluster.ok("wait", running_job)
        assert cluster.items(running_job).total() == 60
        cluster.kill(master)
        cluster.start_master()
        here = {job["id"] for job in cluster.status()["jobs"]}
        assert here == {running_job, *printed}
        assert "Traceback" not in cluster.log()


def fill(cluster: Cluster) -> list[str]:
    """Submit large jobs until one is refused; return the ids that were printed."""
    printed: list[str] = []
    while True:
        # Eight at a time, of lower priority than what runs.
        file = cluster.folder / "jobs.jsonl"
        args = {"filler": "x" * 120_000}
        job = {"spider": "one", "dir": str(PROJECT), "args": args, "priority": -1}
        file.write_text(f"{json.dumps(job)}\n" * 8)
        done = cluster.run("submit", "--file", str(file))
        if done.returncode:
            assert "disk full" in assert_user_error(done, 1)
            assert done.stdout == ""
            file.unlink()
            return printed
        printed += done.stdout.split()


@pytest.mark.long
def test_every_printed_id_outlives_a_kill(cluster: Cluster) -> None:
    """SIGKILL of the master between submits: what was printed is there again."""
    printed = []
    master = cluster.start_master()
    for _ in range(4):
        printed.append(cluster.submit("one"))
        cluster.kill(master)
        master = cluster.start_master()
    assert [job["id"] for job in cluster.status()["jobs"]] == printed


# ---- a job's life, refused ----------------------------------------------------------


@pytest.mark.long
def test_changes_that_cannot_be_are_one_line(
    shared: Cluster, site: str, tmp_path: Path
) -> None:
    """A job that has ended is neither paused, resumed, cancelled nor retried; a
    schedule is never retried, and neither paused nor resumed twice."""
    job = shared.submit("pages", "--wait", site=site, count=3)
    for verb, told in (
        ("cancel", "already succeeded"),
        ("pause", "already succeeded"),
        ("resume", "not paused"),
        ("retry", "--fresh"),
    ):
        assert told in assert_user_error(shared.run(verb, job), 1)
    gate = Gate(tmp_path, free=0)
    slow = shared.submit("pages", site=site, count=100, **gate.arguments)
    assert "has not ended" in assert_user_error(shared.run("retry", slow), 1)
    assert "not paused" in assert_user_error(shared.run("resume", slow), 1)
    shared.ok("cancel", slow)
    gate.open()
    shared.run("wait", slow)
    schedule = shared.submit("pages", "--every", "1h", site=site, count=1)
    assert "is a schedule" in assert_user_error(shared.run("retry", schedule), 1)
    assert "not paused" in assert_user_error(shared.run("resume", schedule), 1)
    shared.ok("pause", schedule)
    assert "already paused" in assert_user_error(shared.run("pause", schedule), 1)
    shared.ok("resume", schedule)
    shared.ok("cancel", schedule)
    for verb in ("cancel", "pause", "resume"):
        assert "cancelled" in assert_user_error(shared.run(verb, schedule), 1)


@pytest.mark.long
def test_a_schedule_lives_through_a_restart(cluster: Cluster, site: str) -> None:
    """The first run at once, never two at a time, more after a restart of the
    master; a cancelled schedule starts none, and leaves its run alone."""
    master = cluster.start_master()
    cluster.start_worker("w", "--slots", "4")
    schedule = cluster.submit("pages", "--every", "1s", site=site, count=5, ms=100)

    def runs() -> list[str]:
        states = [job["state"] for job in cluster.status()["jobs"]]
        assert sum(state in ("ready", "running") for state in states) <= 1
        return states

    cluster.wait_until(lambda: runs().count("succeeded") >= 2)
    cluster.kill(master)
    cluster.start_master()
    before = len(runs())
    cluster.wait_until(lambda: len(runs()) > before)
    cluster.ok("cancel", schedule)
    last = cluster.status()["jobs"][-1]
    assert last["id"].startswith(f"{schedule}-")
    cluster.ok("wait", last["id"])
    assert cluster.status()["jobs"][-1]["id"] == last["id"]


def test_jobs_of_a_file_are_loaded_once(cluster: Cluster, tmp_path: Path) -> None:
    """Loaded by name at the first start, known at the second; changed content is an
    error that names the job, and changes nothing."""
    file = tmp_path / "jobs.toml"
    job = f'[[jobs]]\nname = "first"\nspider = "one"\nproject_dir = "{PROJECT}"\n'
    file.write_text(job)
    for _ in range(2):
        master = cluster.start_master("--jobs", str(file))
        assert [one["name"] for one in cluster.status()["jobs"]] == ["first"]
        master.send_signal(signal.SIGTERM)
        assert master.wait(WAIT_S) == 0
    file.write_text(f"{job}priority = 3\n")
    where = ("--state", str(cluster.state), "--port", "0", "--jobs", str(file))
    done = run("master", *where, cwd=tmp_path)
    assert "first" in assert_user_error(done, 1)
    cluster.start_master()
    assert [one["priority"] for one in cluster.status()["jobs"]] == [0]


def test_jobs_of_a_file_are_taken_with_little_room(tmp_path: Path) -> None:
    """A master below ``disk_free_bytes_min`` never drops what it was started with."""
    file = tmp_path / "jobs.toml"
    file.write_text(
        f'[[jobs]]\nname = "first"\nspider = "one"\nproject_dir = "{PROJECT}"\n'
    )
    conf = f"{CONF}disk_free_bytes_min = {2**60}\n"
    with running_cluster(tmp_path, conf) as cluster:
        cluster.start_master("--jobs", str(file))
        assert [one["name"] for one in cluster.status()["jobs"]] == ["first"]
        refused = cluster.run("submit", "one", "--project", str(PROJECT))
        assert "disk full" in assert_user_error(refused, 1)
