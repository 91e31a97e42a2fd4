"""Where the token is and where it is not, and who may read what lies on the disk."""

import json
import os
import stat
from base64 import b64encode
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from dscrapy.control.decide.placement import KEY_PURPOSE
from dscrapy.master.server import SECRET_NAME
from dscrapy.messages import GetStatus
from tests.e2e.cluster import CONF, Cluster, running_cluster
from tests.e2e.commands import environment, run, running
from tests.e2e.crawl_harness import PROJECT, running_site
from tests.e2e.hostile import peer

# Small ones, so that there are several of each kind of file.
SMALL = f"{CONF}segment_bytes_max = 65536\nsnapshot_after_bytes = 20000\n"
GARBAGE = b"\xff" * 50


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as url:
        yield url


@pytest.fixture(
    params=[
        0,
        pytest.param(0o022, marks=pytest.mark.long),
        pytest.param(0o077, marks=pytest.mark.long),
    ],
    ids=["0", "022", "077"],
)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """What the processes of this test inherit."""
    value: int = request.param
    before = os.umask(value)
    yield value
    os.umask(before)


def assert_private(root: Path) -> set[str]:
    """Check that only the owner may read a folder and all in it; return the names."""
    names = set()
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        wanted = 0o700 if path.is_dir() else 0o600
        assert mode == wanted, (oct(mode), path)
        assert not path.is_symlink()
        names.add(path.name)
    return names


def assert_untold(secret: str, *texts: str) -> None:
    """Check that no text has the token in it, nor half of it."""
    for text in texts:
        for part in (secret, secret[:16], secret[-16:]):
            assert part not in text, text


def assert_in_no_file(secret: str, root: Path, but: Path) -> None:
    """Check that of all files one alone holds the token."""
    for path in root.rglob("*"):
        if path.is_file() and path != but:
            assert secret.encode() not in path.read_bytes(), path
    assert secret in but.read_text()


def keys_of(state: Path) -> list[bytes]:
    """Return the master's secret and the keys of the jobs whose folders are there."""
    secret = (state / SECRET_NAME).read_bytes()
    assert len(secret) == 32
    jobs = [path.name for path in (state / "jobs").iterdir()]
    made = (
        blake2b(job.encode(), key=secret, person=KEY_PURPOSE).digest() for job in jobs
    )
    return [secret, *made]


def assert_key_in_no_file(root: Path, state: Path) -> None:
    """Check that of all files one alone holds the secret, and none a job's key."""
    keys = keys_of(state)
    for path in root.rglob("*"):
        if path.is_file() and path != state / SECRET_NAME:
            data = path.read_bytes()
            for key in keys:
                for form in (key, key[:16], key.hex().encode(), b64encode(key)):
                    assert form not in data, path


def crawl_shown(cluster: Cluster) -> list[str]:
    """Return arguments and environment of the crawl processes there are."""
    shown: list[str] = []
    for worker in cluster.processes[1:]:
        for pid in cluster.crawl_pids(worker):
            for name in ("cmdline", "environ"):
                path = Path(f"/proc/{pid}/{name}")
                shown.append(path.read_bytes().decode(errors="replace"))
    return shown


def test_the_token_is_in_one_file_alone(site: str, tmp_path: Path, umask: int) -> None:
    """Not in a log of level DEBUG, not in argv or environment of crawl processes, not
    in what clients print, not in the journal, spools, logs or snapshots; whatever the
    umask, the state is the owner's alone."""
    with running_cluster(tmp_path, SMALL) as cluster:
        cluster.start_master("-L", "DEBUG")
        cluster.start_worker("w", "--slots", "2", "-L", "DEBUG")
        secret = (cluster.state / "token").read_text().strip()
        with peer(cluster._port) as stranger:
            stranger.write(GARBAGE)
            assert stranger.hear() is None
        with peer(cluster._port) as known:
            known.greet(cluster.state).ask(GetStatus(call=1))
            known.write(GARBAGE)
        slow = cluster.submit("pages", site=site, count=200)
        cluster.wait_until(lambda: bool(crawl_shown(cluster)))
        shown = crawl_shown(cluster)
        assert_untold(secret, *shown)
        assert not any("DSCRAPY_" in text for text in shown)
        out = tmp_path / "out.csv"
        job = cluster.submit("items", "--wait", "-O", str(out), site=site)
        printed = [
            cluster.ok(*words)
            for words in (
                ("status", "--json"),
                ("show", job, "--json"),
                ("logs", job),
                ("items", job),
                ("jobs", "--json"),
                ("workers", "--json"),
            )
        ]
        cluster.ok("wait", slow)
        assert cluster.master is not None
        keys = keys_of(cluster.state)
        # Killed in the middle of its work, and started again: torn tails and all.
        cluster.kill(cluster.master)
        segment = max(cluster.state.glob("journal-*.log"))
        with segment.open("ab") as file:
            file.write(b"\xfeREC torn")
        cluster.start_master("-L", "DEBUG")
        printed.append(cluster.ok("show", job))
        assert keys_of(cluster.state) == keys, "pickles of its jobs would be lost"
        # What is kept of a job's requests goes with the first snapshot after its end.
        held = cluster.submit("pages", "-s", "DOWNLOAD_DELAY=60", site=site, count=5)
        requests = cluster.state / "jobs" / held / "requests.jsonl"
        cluster.wait_until(requests.exists)
        assert_untold(secret, cluster.log(), *printed)
        assert_in_no_file(secret, tmp_path, cluster.state / "token")
        assert_key_in_no_file(tmp_path, cluster.state)
        for key in keys_of(cluster.state):
            for form in (repr(key)[2:-1], key.hex(), b64encode(key).decode()):
                assert_untold(form, *shown, *printed)
        names = assert_private(cluster.state)
        assert {SECRET_NAME, "token", "endpoint.json", "lock", "jobs", "spool"} <= names
        assert {"items.jsonl", "requests.jsonl", "log.txt"} <= names
        assert any(name.startswith("snapshot-") for name in names)
        assert any(".torn" in name for name in names)


@pytest.mark.long
def test_a_crawl_keeps_its_state_to_itself(
    site: str, tmp_path: Path, umask: int
) -> None:
    """The same of ``crawl``, which is master and worker in one: its token, its log,
    its folder, what it keeps beside it, and the folders above that it makes."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    state = home / "XDG_STATE_HOME"
    with running(
        *("crawl", "pages", "-a", f"site={site}", "-a", "count=15", "-L", "DEBUG"),
        *("-s", "DOWNLOAD_DELAY=0.2", "-O", str(tmp_path / "out.jsonl")),
        cwd=PROJECT,
        home=home,
    ) as command:
        # Once it has ended its token is not kept.
        command.until("Crawled (200)")
        names = assert_private(state)
        assert {"crawl.json", "token", "endpoint.json"} <= names
        assert any(name.endswith(".lock") for name in names)
        (token,) = state.rglob("token")
        secret = token.read_text().strip()
        assert_in_no_file(secret, tmp_path, token)
        assert command.finish() == 0
    assert_private(state)
    assert_untold(secret, command.out.decode(), command.err.decode())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("command", ["status", "worker", "jobs"])
def test_a_wrong_token_is_told_by_its_place(
    site: str, tmp_path: Path, command: str
) -> None:
    """Whoever gives a wrong one hears where it was found, and never either of them."""
    wrong = "w" * 40
    with running_cluster(tmp_path) as cluster:
        cluster.start_master("-L", "DEBUG")
        port = cluster._port
        done = run(
            *(command, "--master", f"127.0.0.1:{port}"),
            cwd=tmp_path,
            home=tmp_path / "nobody",
            DSCRAPY_TOKEN=wrong,
        )
        assert done.returncode == 4, done.stderr
        secret = (cluster.state / "token").read_text().strip()
        for text in (done.stdout, done.stderr, cluster.log()):
            assert_untold(secret, text)
            assert wrong not in text


def test_a_token_of_the_environment_goes_no_further(site: str, tmp_path: Path) -> None:
    """Master and worker that got theirs by variable hand it on to nobody."""
    secret = "e" * 40
    with pytest.MonkeyPatch.context() as patch, running_cluster(tmp_path) as cluster:
        found = environment(tmp_path, DSCRAPY_TOKEN=secret)
        patch.setattr("tests.e2e.cluster.child_environment", lambda: found)
        cluster.start_master("-L", "DEBUG")
        cluster.start_worker("w", "--slots", "1", "-L", "DEBUG")
        job = cluster.submit("pages", site=site, count=100)
        cluster.wait_until(lambda: bool(crawl_shown(cluster)))
        assert_untold(secret, *crawl_shown(cluster))
        cluster.ok("wait", job)
        assert not (cluster.state / "token").exists()
        assert_untold(secret, cluster.log(), json.dumps(cluster.status()))
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes()
