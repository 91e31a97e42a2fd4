"""The command line as people and scripts use it: real processes, real exit codes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, running_cluster
from tests.e2e.crawl_harness import (
    PROJECT,
    child_environment,
    plain_scrapy,
    running_site,
)

pytestmark = pytest.mark.timeout(240)

# Longer than any of these commands takes on a busy machine.
WAIT_S = 90.0
# A port that nothing listens on: reserved, and we are no inetd.
NOBODY = "127.0.0.1:1"
DSCRAPY = (sys.executable, "-m", "dscrapy")


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


def run(
    *arguments: str,
    cwd: Path,
    home: Path | None = None,
    input: str | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command with an empty home and no conf file to its end."""
    return subprocess.run(
        [*DSCRAPY, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=cwd,
        input=input,
        env=environment(home or cwd, **variables),
    )


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return an environment whose user has nothing yet."""
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    folders = {name: str(home / name) for name in names}
    return {**child_environment(), "HOME": str(home), **folders, **variables}


def assert_user_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Check that the last line alone tells the error; return it."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    said = [line for line in lines if line.startswith("dscrapy: ")]
    assert said == lines[-1:], done.stderr
    return said[0]


class Running:
    """A command that is running; its stderr is read as it comes."""

    def __init__(self, *arguments: str, cwd: Path, home: Path) -> None:
        self.process = subprocess.Popen(
            [*DSCRAPY, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(home),
        )
        self.err = b""
        self.out = b""

    def until(self, text: str, *, stream: str = "err") -> None:
        """Read until ``text`` appears."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        pipe = self.process.stderr if stream == "err" else self.process.stdout
        end = time.monotonic() + WAIT_S
        while text.encode() not in getattr(self, stream):
            ready, _, _ = select.select([pipe], [], [], max(end - time.monotonic(), 0))
            assert ready, (text, self.err, self.out)
            data = os.read(pipe.fileno(), 65536)
            assert data, (text, self.err, self.out)
            setattr(self, stream, getattr(self, stream) + data)

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        out, err = self.process.communicate(timeout=WAIT_S)
        self.out += out
        self.err += err
        return self.process.returncode

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(WAIT_S)


@contextmanager
def running(*arguments: str, cwd: Path, home: Path) -> Iterator[Running]:
    """Run a command beside the test; it does not outlive the block."""
    command = Running(*arguments, cwd=cwd, home=home)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.kill()
        for pipe in (command.process.stdout, command.process.stderr):
            assert pipe is not None
            pipe.close()


# ---- a job's way ------------------------------------------------------------------


def test_a_job_from_submit_to_items(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """submit prints the id alone, wait tells the truth, items are those of Scrapy."""
    job = cluster.submit("pages", "--name", "first", site=site, count="20")
    assert re.fullmatch(r"[0-9a-f]{16}", job)
    assert cluster.ok("wait", job) == f"{job} succeeded finished\n"
    output = tmp_path / "plain.jsonl"
    plain_scrapy("pages", {"site": site, "count": "20"}, output)
    assert cluster.items(job) == Counter(output.read_text().splitlines())
    text = cluster.ok("show", job)
    assert f"argument      site={site}" in text
    assert "'item_scraped_count': 20" in text
    assert f"{job}  succeeded" in cluster.ok("jobs")
    assert job not in cluster.ok("jobs", "--only", "failed", "--json")
    assert "Spider closed (finished)" in cluster.ok("logs", job)
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
    """--wait gives the job's exit code, and -O writes what plain Scrapy writes."""
    files = ("out.jsonl", "out.csv", "out.json:jsonl")
    feeds = [word for name in files for word in ("-O", str(tmp_path / name))]
    job = cluster.submit("pages", "--wait", *feeds, site=site, count="10")
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


def test_many_jobs_and_a_schedule(cluster: Cluster, site: str, tmp_path: Path) -> None:
    """A file's ids come in its order; a schedule is told from its runs."""
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
    waited = cluster.run("wait", *ids)
    assert waited.returncode == 1
    assert [line.split()[0] for line in waited.stdout.splitlines()] == ids
    schedule = cluster.submit("pages", "--every", "1h", site=site, count="1")
    refused = cluster.run("wait", schedule)
    assert "schedule" in assert_user_error(refused, 1)
    assert cluster.ok("cancel", schedule) == f"{schedule} cancelled\n"
    assert json.loads(cluster.ok("show", schedule, "--json"))["state"] == "cancelled"


def test_pause_resume_cancel_retry(cluster: Cluster, site: str) -> None:
    """Each change prints how the job stands; a change that cannot be is an error."""
    arguments = {"site": site, "count": "200", "ms": "100"}
    job = cluster.submit("pages", **arguments)
    assert cluster.ok("pause", job).startswith(f"{job} paused")
    assert "already paused" in assert_user_error(cluster.run("pause", job), 1)
    assert cluster.ok("resume", job).startswith(job)
    cluster.ok("cancel", job)
    waited = cluster.run("wait", job)
    assert (waited.returncode, waited.stdout) == (1, f"{job} cancelled cancelled\n")
    assert "already cancelled" in assert_user_error(cluster.run("cancel", job), 1)
    assert cluster.ok("retry", job, "--fresh").startswith(job)
    cluster.ok("cancel", job)
    several = cluster.run("cancel", "0" * 16, job)
    assert several.returncode == 1
    assert len(several.stderr.splitlines()) == 2


def test_a_broken_pipe_ends_quietly(
    cluster: Cluster, site: str, tmp_path: Path
) -> None:
    """A reader that has gone away is no reason to complain."""
    job = cluster.submit("pages", "--wait", site=site, count="2")
    where = ("--state", str(cluster.state))
    for words in (("items", job), ("logs", job), ("jobs",), ("status", "--json")):
        with running(*words, *where, cwd=tmp_path, home=tmp_path) as command:
            assert command.process.stdout is not None
            command.process.stdout.close()
            assert command.process.stderr is not None
            assert command.process.stderr.read() == b""
            assert command.process.wait(WAIT_S) == 1


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
        job = cluster.submit("pages", site=site, count="60", ms="200")
        where = ("--state", str(cluster.state))
        with (
            running("wait", job, *where, cwd=tmp_path, home=tmp_path) as waiting,
            running("logs", "-f", job, *where, cwd=tmp_path, home=tmp_path) as logs,
        ):
            logs.until("Spider opened", stream="out")
            cluster.kill(master)
            waiting.until("waiting")
            logs.until("waiting")
            cluster.start_master()
            assert waiting.finish() == 0, waiting.err
            assert logs.finish() == 0, logs.err
        assert waiting.out.decode() == f"{job} succeeded finished\n"
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


# ---- crawl --------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project of its own, whose files a test may change."""
    root = tmp_path / "shop"
    for name, content in {
        "scrapy.cfg": "[settings]\ndefault = shop.settings\n",
        "shop/__init__.py": "",
        "shop/settings.py": 'SPIDER_MODULES = ["shop.spiders"]\n',
        "shop/spiders/__init__.py": "",
        "shop/spiders/prices.py": (
            "import scrapy\n"
            "class Prices(scrapy.Spider):\n"
            '    name = "prices"\n'
            "    def __init__(self, site, count='10', ms='0', **kwargs):\n"
            "        super().__init__(**kwargs)\n"
            "        self.start_urls = [\n"
            "            f'{site}/slow?ms={ms}&n={n}' for n in range(int(count))]\n"
            "    def parse(self, response):\n"
            "        self.logger.info('parsed one')\n"
            "        yield {'url': response.url.partition('&')[2]}\n"
        ),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


SERIAL = ("-s", "CONCURRENT_REQUESTS=1")
SLOW = ("-a", "ms=250", "-a", "count=12", *SERIAL)


def numbers_in(lines: str) -> list[int]:
    """Return the numbers of the pages that items came from."""
    found = [json.loads(line)["url"] for line in lines.splitlines()]
    return sorted(int(url.removeprefix("n=")) for url in found)


def crawls(home: Path) -> list[Path]:
    """Return the state folders of crawls."""
    return sorted(
        path for path in home.glob("XDG_STATE_HOME/dscrapy/crawls/*") if path.is_dir()
    )


def test_crawl_is_scrapy_crawl(site: str, tmp_path: Path) -> None:
    """In a project: log on stderr, files as asked, nothing on stdout, exit code 0."""
    files = [tmp_path / name for name in ("a.csv", "b.jsonl", "c.csv", "d.jsonl")]
    words = ("pages", "-a", f"site={site}", "-a", "count=15")
    done = run(
        *("crawl", *words, "-O", str(files[0]), "-O", str(files[1])),
        cwd=PROJECT,
        home=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "[scrapy.core.engine] INFO: Spider closed (finished)" in done.stderr
    assert "15 pages, 15 items" in done.stderr.splitlines()[-3]
    for path in files[2:]:
        plain_scrapy("pages", {"site": site, "count": "15"}, path)
    csv, lines, plain_csv, plain_lines = (
        Counter(path.read_text().splitlines()) for path in files
    )
    assert (csv, lines) == (plain_csv, plain_lines)
    again = run(
        *("crawl", *words, "-o", str(files[1]), "-o", "-:jsonl"),
        cwd=PROJECT,
        home=tmp_path,
    )
    assert Counter(again.stdout.splitlines()) == plain_lines
    appended = Counter(files[1].read_text().splitlines())
    assert appended == plain_lines + plain_lines
    assert len(crawls(tmp_path)) == 1


def test_crawl_of_a_spider_file(site: str, tmp_path: Path) -> None:
    """A spider's file needs no project."""
    (tmp_path / "lone.py").write_text(
        "import scrapy\n"
        "class Lone(scrapy.Spider):\n"
        '    name = "lone"\n'
        "    def __init__(self, site, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.start_urls = [f'{site}/page/0']\n"
        "    def parse(self, response):\n"
        "        yield {'status': response.status}\n"
    )
    words = ("lone.py", "-a", f"site={site}", "-o", "-:jsonl")
    done = run("crawl", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, '{"status": 200}\n'), done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nosuch",), "prices"),
        (("prices",), "site"),
        (("prices", "-a", "site=x", "-a", "count=many"), "many"),
    ],
)
def test_failed_crawl_is_1(shop: Path, words: tuple[str, ...], told: str) -> None:
    """A crawl that fails says why in its last line and gives exit code 1."""
    done = run("crawl", *words, cwd=shop, home=shop.parent)
    assert done.returncode == 1
    assert "failed" in done.stderr.splitlines()[-1]
    assert told in done.stderr.splitlines()[-1]


def test_crawl_that_was_killed_goes_on(shop: Path, site: str, tmp_path: Path) -> None:
    """After SIGKILL the same command resumes, says so first, and gives all items once.

    Meanwhile the same crawl is refused, and a different one runs beside it.
    """
    words = ("crawl", "prices", "-a", f"site={site}", *SLOW)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        same = run(*words, cwd=shop, home=tmp_path)
        assert "already runs" in assert_user_error(same, 1)
        other = run(*words, "-a", "count=1", cwd=shop, home=tmp_path)
        assert other.returncode == 0
        command.kill()
    done = run(*words, "-o", "-:jsonl", cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert re.match(r"dscrapy: resuming: \d+ pages? done, \d+ pending; --fresh", first)
    assert numbers_in(done.stdout) == list(range(12))
    anew = run(*words, "-a", "count=2", "-a", "ms=0", cwd=shop, home=tmp_path)
    assert "resuming" not in anew.stderr


def test_crawl_with_changed_files(shop: Path, site: str, tmp_path: Path) -> None:
    """With changed files a crawl starts fresh and keeps the old one for --resume."""
    words = ("crawl", "prices", "-a", f"site={site}", *SLOW)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    (old,) = crawls(tmp_path)
    kept = json.loads((old / "crawl.json").read_text())["job"]
    with (shop / "shop/spiders/prices.py").open("a") as file:
        file.write("        yield {'url': 'n=-1'}\n")
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.interrupt()
        assert command.finish() == 1
    text = command.err.decode()
    assert "starting fresh" in text.splitlines()[0]
    assert "--resume" in text.splitlines()[0]
    assert "resuming" not in text
    resumed = run(*words, "--resume", "-o", "-:jsonl", cwd=shop, home=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stderr
    # The new code ran, all pages are there, and it is the old job.
    assert numbers_in(resumed.stdout) == [-1] * 12 + list(range(12))
    (now,) = crawls(tmp_path)
    assert json.loads((now / "crawl.json").read_text())["job"] == kept
    nothing = run(*words, "--resume", cwd=shop, home=tmp_path)
    assert "no unfinished crawl" in assert_user_error(nothing, 1)


def test_fresh_starts_over(shop: Path, site: str, tmp_path: Path) -> None:
    """--fresh forgets an unfinished crawl."""
    words = ("crawl", "prices", "-a", f"site={site}", *SLOW)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    with running(*words, "--fresh", cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    assert b"resuming" not in command.err
    assert len(crawls(tmp_path)) == 1


def test_ctrl_c_keeps_the_items(shop: Path, site: str, tmp_path: Path) -> None:
    """The first Ctrl-C ends the crawl gracefully: items so far are written."""
    words = ("crawl", "prices", "-a", f"site={site}", *SLOW, "-O", "out.jsonl")
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.interrupt()
        assert command.finish() == 1
    assert "prices cancelled" in command.err.decode()
    got = numbers_in((shop / "out.jsonl").read_text())
    assert 1 <= len(got) < 12
    anew = run(*words, "-a", "count=1", cwd=shop, home=tmp_path)
    assert "resuming" not in anew.stderr


def test_second_ctrl_c_stops_at_once(shop: Path, site: str, tmp_path: Path) -> None:
    """The second Ctrl-C leaves no process behind, and the crawl can go on later."""
    slow = ("-a", "ms=30000", "-a", "count=3")
    words = ("crawl", "prices", "-a", f"site={site}", *slow)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("Spider opened")
        began = time.monotonic()
        command.interrupt()
        command.until("stopping")
        command.interrupt()
        assert command.finish() == 1
        assert time.monotonic() - began < 20
    assert "stopped at once" in command.err.decode().splitlines()[-1]
    assert "Traceback" not in command.err.decode()
    wait_until(lambda: not crawl_processes(shop))
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("resuming")
        command.kill()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a fact that no event tells."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def crawl_processes(folder: Path) -> list[str]:
    """Return the pids of crawl processes that work in ``folder``."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            is_ours = process.name.isdecimal() and os.path.samefile(
                process / "cwd", folder
            )
            if is_ours and b"dscrapy.crawl" in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            # It has just ended, or is none of ours.
            continue
    return found


def test_files_are_written_by_the_next_run_if_need_be(
    shop: Path, site: str, tmp_path: Path
) -> None:
    """A crawl whose file could not be written keeps its items for the next run.

    An append that was cut short before is undone first.
    """
    target = shop / "out.jsonl"
    target.write_text('{"url": "n=99"}\n')
    words = ("crawl", "prices", "-a", f"site={site}", "-o", str(target))
    first = run(*words, cwd=shop, home=tmp_path)
    assert first.returncode == 0, first.stderr
    (folder,) = crawls(tmp_path)
    # As a crash in the middle of the append would leave it.
    record = json.loads((folder / "crawl.json").read_text())
    assert record["done"]
    (folder / "crawl.json").write_text(json.dumps({**record, "done": False}))
    with target.open("a") as file:
        file.write('{"url":')
    done = run(*words, cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "had ended" in done.stderr.splitlines()[0]
    assert "parsed one" not in done.stderr
    assert numbers_in(target.read_text()) == [*range(10), 99]
