"""Jobs and crawls that are removed: by hand, by rules, or because nothing is kept."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import running_cluster
from tests.e2e.commands import Running, assert_user_error, run, running
from tests.e2e.crawl_harness import PROJECT, Gate, running_site


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


@pytest.mark.long
def test_ended_jobs_go_and_stay_gone(site: str, tmp_path: Path) -> None:
    """With their files, by ``rm`` and ``prune``, which print what goes. A job that has
    not ended is refused in one line and goes on, also when the master is killed."""
    gate = Gate(tmp_path, free=0)
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        cluster.start_worker("w", "--slots", "1")
        done = cluster.submit("pages", site=site, count=2)
        cluster.ok("wait", done)
        folders = cluster.state / "jobs"
        assert (folders / done / "items.jsonl").read_text().count("\n") == 2
        busy = cluster.submit("pages", site=site, count=3, **gate.arguments)
        cluster.wait_until(lambda: cluster.job(busy)["state"] == "running")
        file = tmp_path / "jobs.jsonl"
        waiting = {"spider": "pages", "dir": str(PROJECT), "args": {"site": site}}
        file.write_text(f"{json.dumps(waiting)}\n" * 3)
        ended = cluster.ok("submit", "--file", str(file)).split()
        cluster.run("cancel", *ended)

        removed = cluster.run("rm", busy, "nosuch", done)
        assert (removed.returncode, removed.stdout) == (1, f"{done} removed\n")
        refused, unknown = removed.stderr.splitlines()
        assert f"job {busy} is running" in refused
        assert f"`dscrapy cancel {busy}`" in refused
        assert "nosuch" in unknown
        cluster.wait_until(lambda: not (folders / done).exists())
        assert done in assert_user_error(cluster.run("show", done), 1)

        rules = assert_user_error(cluster.run("prune"), 1)
        assert "--keep-jobs" in rules
        dry = cluster.run("prune", "--keep-jobs", "1", "--dry-run")
        assert dry.stdout.split() == ended[:2]
        assert "2 jobs would be removed" in dry.stderr
        told = cluster.run("prune", "--keep-jobs", "1")
        assert (told.returncode, told.stdout) == (0, dry.stdout)
        assert re.fullmatch(r"dscrapy: 2 jobs removed, \d+ bytes\n", told.stderr)

        assert cluster.master is not None
        cluster.kill(cluster.master)
        cluster.start_master()
        left = [one["id"] for one in cluster.status()["jobs"]]
        assert left == [busy, ended[2]]
        assert {path.name for path in folders.iterdir()} <= set(left)
        gate.open()
        assert "3 pages, 3 items" in cluster.ok("wait", busy)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A spider's file, whose pages a gate may hold."""
    path = tmp_path / "shop" / "shop.py"
    path.parent.mkdir()
    path.write_text(
        "import scrapy\n"
        "class Shop(scrapy.Spider):\n"
        '    name = "shop"\n'
        "    def __init__(self, site, more='', **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.start_urls = [f'{site}/slow?{more}&n={n}' for n in range(4)]\n"
        "    def parse(self, response):\n"
        "        self.logger.info('parsed one')\n"
        "        yield {'url': response.url}\n"
    )
    return path.parent


@pytest.mark.long
def test_crawls_are_listed_and_removed(shop: Path, site: str, tmp_path: Path) -> None:
    """A running one is refused in one line, and no rule takes an unfinished one. A
    crawl that is to keep nothing leaves nothing: at its end, nor after Ctrl-C, once or
    twice; an unfinished one of the same name stays."""
    gate = Gate(tmp_path, free=1)
    more = "&".join(f"{name}={value}" for name, value in gate.arguments.items())
    words = ("crawl", "shop.py", "-a", f"site={site}")
    held = (*words, "-a", f"more={more}", "-s", "CONCURRENT_REQUESTS=1")
    folder = tmp_path / "XDG_STATE_HOME/dscrapy/crawls"

    def kept() -> dict[str, str]:
        listed = run("crawls", "--json", cwd=shop, home=tmp_path)
        assert listed.returncode == 0, listed.stderr
        return {one["id"]: one["stands"] for one in json.loads(listed.stdout)}

    def names() -> set[str]:
        return {path.name for path in folder.iterdir()}

    def crawls(*arguments: str) -> tuple[int, str, str]:
        asked = run("crawls", *arguments, cwd=shop, home=tmp_path)
        return asked.returncode, asked.stdout, asked.stderr

    assert run(*words, cwd=shop, home=tmp_path).returncode == 0
    ((finished, stands),) = kept().items()
    assert stands == "succeeded"
    heads, row = crawls()[1].splitlines()
    assert heads.startswith("CRAWL ")
    assert row.split()[:2] == [finished, "succeeded"]
    with running(*held, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        (busy,) = kept().keys() - {finished}
        code, out, err = crawls("rm", busy, "nosuch")
        assert (code, out) == (1, "")
        assert [line.split(":")[1].strip() for line in err.splitlines()] == [
            f"crawl {busy} runs now",
            "no crawl nosuch is kept",
        ]
        code, out, err = crawls("prune", "--keep-jobs", "0", "--dry-run")
        assert (code, out) == (0, f"{finished}\n")
        assert "1 crawl would be removed" in err
        code, out, err = crawls("prune", "--keep-jobs", "0")
        assert (code, out) == (0, f"{finished}\n")
        assert names() == {busy, f"{busy}.lock"}
        assert command.process.poll() is None
        command.kill()
    # The same words keep nothing now, and it is not theirs.
    for times in (2, 1):
        with running(*held, "--no-keep", cwd=shop, home=tmp_path) as command:
            stop(command, times, gate)
        assert kept() == {busy: "unfinished"}
        assert names() == {busy, f"{busy}.lock"}
    whole = run(*held, "--no-keep", "-O", "out.jsonl", cwd=shop, home=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert (shop / "out.jsonl").read_text().count("\n") == 4
    assert names() == {busy, f"{busy}.lock"}
    code, _, err = crawls("rm", busy)
    assert (code, "removed" in err, names()) == (0, True, set())


def stop(command: Running, times: int, gate: Gate) -> None:
    """Press Ctrl-C so often; what is under way after the first is finished."""
    command.until("Spider opened")
    command.interrupt()
    command.until("stopping: ")
    if times == 1:
        gate.open()
    else:
        command.interrupt()
    assert command.finish() == 1
    said = "nothing is kept" if times == 1 else "nothing of it is kept"
    assert said in command.err.decode()
