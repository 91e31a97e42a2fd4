"""The command line as people and scripts use it: real processes, real exit codes."""

import json
import os
import pty
import re
import resource
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, running_cluster
from tests.e2e.commands import (
    DSCRAPY,
    WAIT_S,
    assert_user_error,
    environment,
    run,
    run_into,
    running,
)
from tests.e2e.crawl_harness import PROJECT, Gate, plain_scrapy, running_site

# A port that nothing listens on: reserved, and we are no inetd.
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and a worker that all tests of this file share."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_master()
        cluster.start_worker("w1", "--slots", "2")
        yield cluster


# ---- a job's way ------------------------------------------------------------------


def test_a_job_from_submit_to_items(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """submit prints the id alone, wait tells the truth, items are those of Scrapy."""
    job = cluster.submit("pages", "--name", "first", site=site, count="20")
    assert re.fullmatch(r"[0-9a-f]{16}", job)
    told = f"{job} succeeded finished: 20 pages, 20 items, 0 errors\n"
    assert cluster.ok("wait", job) == told
    output = tmp_path / "plain.jsonl"
    plain_scrapy("pages", {"site": site, "count": "20"}, output)
    assert cluster.items(job) == Counter(output.read_text().splitlines())
    text = cluster.ok("show", job)
    assert f"argument      site={site}" in text
    assert "'item_scraped_count': 20" in text
    assert f"{job}  succeeded" in cluster.ok("jobs")
    assert job not in cluster.ok("jobs", "--only", "failed", "--json")
    assert "Spider closed (finished)" in cluster.ok("logs", job, "-f")
    assert cluster.ok("logs", job, "-f") == cluster.ok("logs", job)
    (listed,) = [one for one in cluster.status()["jobs"] if one["id"] == job]
    assert (listed["name"], listed["state"], listed["items"]) == (
        "first",
        "succeeded",
        20,
    )
    (worker,) = json.loads(cluster.ok("workers", "--json"))
    assert (worker["name"], worker["slots"], worker["state"]) == ("w1", 2, "live")
    assert "w1" in cluster.ok("status")


def test_submit_and_wait_writes_files(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """--wait gives the job's exit code, and -O writes what plain Scrapy writes, in the
    place of FEEDS."""
    files = ("out.jsonl", "out.csv", "out.json:jsonl")
    feeds = [word for name in files for word in ("-O", str(tmp_path / name))]
    own = tmp_path / "own.jsonl"
    feeds += ["-s", f'FEEDS={{"{own}": {{"format": "jsonl"}}}}']
    job = cluster.submit("pages", "--wait", *feeds, site=site, count="10")
    assert not own.exists()
    assert re.fullmatch(r"[0-9a-f]{16}", job)
    for name in ("plain.jsonl", "plain.csv"):
        plain_scrapy("pages", {"site": site, "count": "10"}, tmp_path / name)

    def lines(name: str) -> Counter[str]:
        return Counter((tmp_path / name).read_text().splitlines())

    assert lines("out.jsonl") == lines("out.json") == lines("plain.jsonl")
    assert lines("out.csv") == lines("plain.csv")
    cluster.ok("items", job, "-o", str(tmp_path / "out.jsonl"))
    assert lines("out.jsonl") == lines("plain.jsonl") + lines("plain.jsonl")
    failed = cluster.run(
        "submit", "nosuch", "--project", str(PROJECT), "--wait", "--name", "bad"
    )
    assert failed.returncode == 1
    assert "pages" in failed.stderr


@pytest.mark.long
def test_many_jobs_and_a_schedule(cluster: Cluster, site: str, tmp_path: Path) -> None:
    """A file's ids come in its order; a schedule is told from its runs."""
    gate = Gate(tmp_path, free=0)
    # Both slots are taken, so that none of the file's begins.
    blocking = [cluster.submit("pages", site=site, **gate.arguments) for _ in range(2)]
    file = tmp_path / "jobs.jsonl"
    jobs = [
        {
            "spider": "pages",
            "dir": str(PROJECT),
            "args": {"site": site, "count": "1"},
            "name": f"job-{number}",
        }
        for number in range(20)
    ]
    file.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    ids = cluster.ok("submit", "--file", str(file)).split()
    names = {one["id"]: one["name"] for one in cluster.status()["jobs"]}
    assert [names[one] for one in ids] == [job["name"] for job in jobs]
    cluster.run("cancel", *ids[1:])
    gate.open()
    cluster.ok("wait", *blocking)
    waited = cluster.run("wait", *ids)
    assert waited.returncode == 1
    assert [line.split()[0] for line in waited.stdout.splitlines()] == ids
    schedule = cluster.submit("pages", "--every", "1h", site=site, count="1")
    refused = cluster.run("wait", schedule)
    assert "schedule" in assert_user_error(refused, 1)
    assert cluster.ok("cancel", schedule) == f"{schedule} cancelled\n"
    assert json.loads(cluster.ok("show", schedule, "--json"))["state"] == "cancelled"


def test_jobs_of_a_file_take_along_which_settings(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Those of the submitter's variables, where a job names neither; no variable of
    dscrapy's reaches a crawl process."""
    for name, text in {
        "scrapy.cfg": "[settings]\ndefault = chosen.a\nstaging = chosen.b\n",
        "chosen/__init__.py": "",
        "chosen/a.py": 'SPIDER_MODULES = ["chosen.spiders"]\nSTAGE = "a"\n',
        "chosen/b.py": 'from chosen.a import *\nSTAGE = "b"\n',
        "chosen/c.py": 'from chosen.a import *\nSTAGE = "c"\n',
        "chosen/spiders.py": (
            "import os\n"
            "import scrapy\n"
            "class Chosen(scrapy.Spider):\n"
            '    name = "chosen"\n'
            '    start_urls = ["data:,x"]\n'
            "    def parse(self, response):\n"
            '        seen = [one for one in os.environ if one.startswith("DSCRAPY")]\n'
            '        yield {"stage": self.settings["STAGE"], "seen": seen}\n'
        ),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    common = {"spider": "chosen", "project_dir": str(tmp_path)}
    chosen = [{}, {"settings_module": "chosen.c"}, {"scrapy_project": "default"}]
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(f"{json.dumps(common | one)}\n" for one in chosen))
    submitted = cluster.run(
        *("submit", "--file", str(file)),
        SCRAPY_PROJECT="staging",
        DSCRAPY_WORKER_SLOTS="7",
    )
    assert submitted.returncode == 0, submitted.stderr
    ids = submitted.stdout.split()
    cluster.ok("wait", *ids)
    given = [json.loads(line) for one in ids for line in cluster.items(one)]
    assert [one["stage"] for one in given] == ["b", "c", "a"]
    assert [one["seen"] for one in given] == [[], [], []]


def test_pause_resume_cancel_retry(cluster: Cluster, site: str, tmp_path: Path) -> None:
    """Each change prints how the job stands; a change that cannot be is an error."""
    gate = Gate(tmp_path, free=10)
    job = cluster.submit("pages", site=site, count="200", **gate.arguments)
    assert cluster.ok("pause", job).startswith(f"{job} paused")
    assert "already paused" in assert_user_error(cluster.run("pause", job), 1)
    assert cluster.ok("resume", job).startswith(job)
    cluster.ok("cancel", job)
    gate.open()
    waited = cluster.run("wait", job)
    assert waited.returncode == 1
    assert waited.stdout.startswith(f"{job} cancelled cancelled: ")
    assert "already cancelled" in assert_user_error(cluster.run("cancel", job), 1)
    gate.close()
    assert cluster.ok("retry", job, "--fresh").startswith(job)
    cluster.ok("cancel", job)
    gate.open()
    several = cluster.run("cancel", "0" * 16, job)
    assert several.returncode == 1
    assert len(several.stderr.splitlines()) == 2


FLOOD = """
from itertools import count

import scrapy

class Flood(scrapy.Spider):
    name = "flood"

    async def start(self):
        for number in count():
            yield scrapy.Request(f"{self.site}/page/{number}")

    def parse(self, response):
        for number in range(100):
            yield {"text": f"{response.url} {number}", "odd": number % 2 == 1}
"""


@pytest.mark.long
def test_items_of_a_running_job_are_those_of_one_moment(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """Items pour in while lines and types are read: each table is the beginning of the
    next one and of all there are in the end, row by row."""
    (tmp_path / "flood.py").write_text(FLOOD)
    words = ("submit", "flood.py", "--project", str(tmp_path), "-a", f"site={site}")
    job = cluster.ok(*words).strip()
    cluster.wait_until(lambda: cluster.job(job)["items"] > 0)
    tables: list[list[str]] = []
    for number in range(5):
        path = tmp_path / f"{number}.csv"
        done = cluster.run("items", job, "-O", str(path))
        assert done.returncode == 0, done.stderr
        rows = path.read_text().splitlines()[1:]
        assert done.stderr.splitlines() == [
            f"dscrapy: {job} is running: items so far",
            f"dscrapy: wrote {len(rows)} items to {path}",
        ]
        tables.append(rows)
    cluster.ok("cancel", job)
    cluster.run("wait", job)
    items = [json.loads(line) for line in cluster.ok("items", job).splitlines()]
    whole = [f"{item['text']},{item['odd']}" for item in items]
    assert 0 < len(tables[0]) <= len(tables[-1]) < len(whole)
    for rows in tables:
        assert rows == whole[: len(rows)]


def test_a_broken_pipe_ends_quietly(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """A reader that has seen enough (``| head``) is no failure."""
    job = cluster.submit("pages", "--wait", site=site, count="2")
    where = ("--state", str(cluster.state))
    for words in (("items", job), ("logs", job), ("jobs",), ("status", "--json")):
        reader, writer = os.pipe()
        os.close(reader)
        done = run_into(writer, *words, *where, cwd=tmp_path)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, "")


def test_status_watch_and_ctrl_c(cluster: Cluster, tmp_path: Path) -> None:
    """--watch shows the status again and again, and Ctrl-C ends it without a word."""
    where = ("--state", str(cluster.state))
    with running("status", "--watch", *where, cwd=tmp_path, home=tmp_path) as command:
        command.until("\nMaster ", stream="out")
        command.interrupt()
        assert command.finish() == 0
    assert command.err == b""


def test_a_terminal_gets_a_table_and_no_control_characters(
    cluster: Cluster, tmp_path: Path
) -> None:
    """On a terminal names of jobs are escaped, and NO_COLOR leaves no colour."""
    cluster.submit("one", "-a", "urls=data:,x", "-s", "X=\x1b[2J")
    job = json.loads(cluster.ok("jobs", "--json"))[-1]["id"]
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [*DSCRAPY, "show", job, "--state", str(cluster.state)],
            check=True,
            stdout=theirs,
            timeout=WAIT_S,
            cwd=tmp_path,
            env=environment(tmp_path, NO_COLOR="1", TERM="xterm"),
        )
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"X=\\x1b[2J" in shown
    assert b"\x1b" not in shown


# ---- a master that goes and comes ---------------------------------------------------


def test_wait_and_logs_survive_a_master_that_is_killed(
    site: str, tmp_path: Path
) -> None:
    """wait and logs -f go on when the master is back, and say so in one line."""
    with running_cluster(tmp_path) as cluster:
        master = cluster.start_master()
        cluster.start_worker("w1")
        gate = Gate(tmp_path, free=10)
        first = cluster.submit("pages", "--wait", site=site, count="1")
        job = cluster.submit("pages", site=site, count="60", **gate.arguments)
        where = ("--state", str(cluster.state))
        with (
            running("wait", first, job, *where, cwd=tmp_path, home=tmp_path) as waiting,
            running("logs", "-f", job, *where, cwd=tmp_path, home=tmp_path) as logs,
        ):
            # Both have been answered, so they are connected.
            waiting.until(f"{first} succeeded finished", stream="out")
            logs.until("Spider opened", stream="out")
            cluster.kill(master)
            waiting.until("waiting")
            logs.until("waiting")
            gate.open()
            cluster.start_master()
            assert waiting.finish() == 0, waiting.err
            assert logs.finish() == 0, logs.err
        ended = [
            f"{first} succeeded finished: 1 page, 1 item, 0 errors\n",
            f"{job} succeeded finished: 60 pages, 60 items, 0 errors\n",
        ]
        assert waiting.out.decode() == "".join(ended)
        assert logs.out.decode() == cluster.ok("logs", job)
        assert b"Spider closed (finished)" in logs.out
        for command in (waiting, logs):
            assert len(command.err.splitlines()) == 1, command.err


# ---- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("show", "0" * 16), 1, "no job"),
        (("wait", "0" * 16), 1, "no job"),
        (("logs", "0" * 16), 1, "no job"),
        (("items", "0" * 16), 1, "no job"),
        (("items", "0" * 16, "-o", "x"), 1, "no job"),
        (("drain", "nobody"), 1, "nobody"),
        (("submit", "pages"), 2, "scrapy.cfg"),
        (("submit", "nofile.py"), 2, "nofile.py"),
        (("submit", "s", "--project", "./nowhere"), 2, "nowhere"),
        (("submit", "s", "--project", "p", "--url", "no-url"), 2, "url"),
        (("submit", "s", "--project", "p", "--every", "soon"), 2, "soon"),
        (("submit", "s", "--project", "p", "--wait", "-o", "x.foo"), 2, "foo"),
        (("submit", "--file", "missing.jsonl"), 2, "missing.jsonl"),
        (("submit", "--file", "bad.jsonl"), 2, "line 2"),
        (("status", "--at", "nowhere"), 2, "HOST:PORT"),
        (("status", "--conf", "bad.toml"), 2, "frobnicate"),
        (("status", "--conf", "missing.toml"), 2, "missing.toml"),
    ],
)
def test_mistakes_are_one_line(
    cluster: Cluster, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    """What a person got wrong is told in one line, without a traceback."""
    good = {"spider": "s", "project": "p"}
    lines = [json.dumps(good), json.dumps({**good, "priority": "high"})]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad.toml").write_text("[dscrapy.master]\nfrobnicate = 1\n")
    before = len(cluster.status()["jobs"])
    done = run(*arguments, "--state", str(cluster.state), cwd=tmp_path)
    assert told in assert_user_error(done, code)
    assert done.stdout == ""
    assert len(cluster.status()["jobs"]) == before


@pytest.mark.parametrize("command", ["status", "jobs", "wait x", "logs -f x"])
def test_nobody_there_is_3(tmp_path: Path, command: str) -> None:
    """Where no master answers, every client gives up in time with exit code 3."""
    where = ("--master", NOBODY, "--connect-timeout", "0.3")
    done = run(*command.split(), *where, cwd=tmp_path)
    assert NOBODY in assert_user_error(done, 3)


def test_wrong_or_missing_token_is_4(cluster: Cluster, tmp_path: Path) -> None:
    """Without the right token the places looked at are named, exit code 4."""
    where = ("--state", str(cluster.state))
    done = run("status", *where, cwd=tmp_path, DSCRAPY_TOKEN="x" * 32)
    assert "DSCRAPY_TOKEN" in assert_user_error(done, 4)
    endpoint = json.loads((cluster.state / "endpoint.json").read_text())
    done = run("status", "--master", f"127.0.0.1:{endpoint['port']}", cwd=tmp_path)
    told = assert_user_error(done, 4)
    for place in ("DSCRAPY_TOKEN", "conf.toml", "token"):
        assert place in told


def test_masters_mistakes_are_one_line(cluster: Cluster, tmp_path: Path) -> None:
    """A port in use, a state in use and a bad job file end with one line each."""
    endpoint = json.loads((cluster.state / "endpoint.json").read_text())
    port = str(endpoint["port"])
    done = run("master", "--state", "other", "--port", port, cwd=tmp_path)
    assert port in assert_user_error(done, 1)
    done = run("worker", "--state", "other", "--port", port, cwd=tmp_path)
    assert port in assert_user_error(done, 1)
    done = run("master", "--state", str(cluster.state), "--port", "0", cwd=tmp_path)
    assert_user_error(done, 1)
    (tmp_path / "jobs.toml").write_text('[[jobs]]\nspider = "s"\nproject = "p"\n')
    done = run("master", "--jobs", "jobs.toml", "--state", "third", cwd=tmp_path)
    assert "jobs[0].name" in assert_user_error(done, 2)


@pytest.mark.parametrize("room_bytes", [0, 16])
def test_a_master_without_room_says_so(tmp_path: Path, room_bytes: int) -> None:
    """A full disk at the start is one line, whichever file finds it first: the
    journal, or the one that says where the master listens."""
    command = ("master", "--state", str(tmp_path / "state"), "--port", "0")
    if room_bytes:
        with running(*command, cwd=tmp_path, home=tmp_path) as master:
            master.until("listening on")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes))

    done = subprocess.run(
        [*DSCRAPY, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=tmp_path,
        env=environment(tmp_path),
        preexec_fn=no_room,
    )
    assert "no room in state folder" in assert_user_error(done, 1)
