"""Runs of the project: the site, plain Scrapy, and what a run showed."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.hang import HANG_S

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
PROJECT = SITE / "project"
WAIT_S = HANG_S
# A line of the dump that Scrapy logs: a number or a text.
_STAT = re.compile(r"^[ {]'([^']+)': (?:'([^']*)'|(-?\d+))[,}]$", re.MULTILINE)

# host, method, path, cookies, digest of the body
Asked = tuple[str, str, str, str, str]


def environment() -> dict[str, str]:
    """Return this process's environment without what changes how children run."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DSCRAPY_", "SCRAPY_"))
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@attrs.frozen(kw_only=True)
class Run:
    """What a run gave: lines, requests at the site, stats.

    ``pids`` asked for something; ``active_max`` requests of one host were under way
    at a time. ``text`` is for people: a log, or a job's view.
    """

    items: Counter[str]
    asked: tuple[Asked, ...]
    stats: dict[str, object]
    pids: frozenset[str]
    active_max: int
    text: str

    @property
    def requests(self) -> Counter[Asked]:
        """Requests as a multiset, without what each process fetches for itself."""
        return Counter(
            one
            for one in self.asked
            if one[2] != "/robots.txt" and not one[2].startswith("/media/")
        )


@attrs.frozen(kw_only=True)
class Site:
    """The running site."""

    port: int
    log: Path

    def requests_of(self, run: str) -> tuple[list[Asked], set[str], int]:
        """Return a run's requests, the processes that made them, most at a time."""
        asked: list[Asked] = []
        pids: set[str] = set()
        active_max = 0
        with self.log.open() as lines:
            for line in lines:
                if f'["{run}",' in line:
                    _, host, method, path, cookies, digest, pid, active = json.loads(
                        line
                    )
                    asked.append((host, method, path, cookies, digest))
                    pids.add(pid)
                    active_max = max(active_max, active)
        return asked, pids, active_max

    def run(
        self, run: str, items: list[str], stats: dict[str, object], text: str
    ) -> Run:
        """Return what a run showed, with the site's side of it."""
        asked, pids, active_max = self.requests_of(run)
        return Run(
            items=Counter(items),
            asked=tuple(asked),
            stats=stats,
            pids=frozenset(pids),
            active_max=active_max,
            text=text,
        )

    def arguments(self, more: dict[str, str]) -> dict[str, str]:
        """Return a spider's arguments."""
        return {"port": str(self.port), **more}


def settings_of(run: str, folder: Path, more: dict[str, str]) -> dict[str, str]:
    """Return a run's settings: its name goes with every request."""
    return {"USER_AGENT": run, "FILES_STORE": str(folder / f"files-{run}"), **more}


@contextmanager
def running_site(log: Path, *more: str, within: tuple[str, ...] = ()) -> Iterator[Site]:
    """Serve the site; ``within`` are words of a program that becomes it, elsewhere."""
    log.touch()
    server = SITE / "server.py"
    site = subprocess.Popen(
        [*within, sys.executable, "-P", str(server), "--log", str(log), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert site.stdout is not None
    assert site.stdin is not None
    try:
        yield Site(port=int(site.stdout.readline()), log=log)
    finally:
        site.stdin.close()
        site.wait(HANG_S)
        site.stdout.close()


def plain_scrapy(
    site: Site,
    folder: Path,
    spider: str,
    *,
    name: str = "",
    arguments: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
) -> Run:
    """Run ``scrapy crawl``; ``name`` tells runs of one spider apart."""
    run = f"plain-{name or spider}"
    output = folder / f"{run}.jsonl"
    words = [sys.executable, "-P", "-m", "scrapy", "crawl", spider, "-O", str(output)]
    for key, value in site.arguments(arguments or {}).items():
        words += ["-a", f"{key}={value}"]
    # In a process of its own these would collide with whatever else runs here.
    alone = {"TELNETCONSOLE_ENABLED": "0", "REMOTE_CONTROL_ENABLED": "0"}
    for key, value in settings_of(run, folder, {**alone, **(settings or {})}).items():
        words += ["-s", f"{key}={value}"]
    done = subprocess.run(
        words,
        cwd=PROJECT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=WAIT_S,
        check=False,
    )
    log = done.stderr.decode()
    assert done.returncode == 0, log
    return site.run(run, output.read_text().splitlines(), stats_in(log), log)


def stats_in(log: str) -> dict[str, object]:
    """Return the numbers and texts of the dump at the end of Scrapy's log."""
    dump = log.rpartition("Dumping Scrapy stats:\n")[2]
    return {
        key: text if not number else int(number)
        for key, text, number in _STAT.findall(dump)
    }
