"""Plugins whose requests carry objects: they spread over processes and bear kills.

Skipped where a package is not installed (``pip install scrapy-playwright scrapy-poet``;
Debian's ``chromium``, or another that ``CHROMIUM`` names).
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.cluster import DYING, running_cluster
from tests.e2e.small_site import small_site

PLUGINS = Path(__file__).parent / "plugins"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
COUNT, HOSTS, KILLS = 30, 6, 2
# One process has two under way: so many at a time are those of several.
TOGETHER = 4


def missing(package: str) -> str:
    """Return why a plugin cannot run here, empty if it can."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if package == "scrapy_playwright" and not CHROMIUM:
        return "there is no chromium"
    return ""


@pytest.mark.parametrize(
    ("package", "spider"),
    [("scrapy_playwright", "with_playwright.py"), ("scrapy_poet", "with_poet.py")],
)
def test_a_plugins_objects_travel(
    package: str, spider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes share the pages (several are asked for at a time) and two of them
    are killed: every item once, nothing stayed where it was asked for."""
    if why := missing(package):
        pytest.skip(why)
    monkeypatch.setenv("CHROMIUM", CHROMIUM)
    with (
        small_site(together=TOGETHER, free=COUNT // 3) as site,
        running_cluster(tmp_path, DYING) as cluster,
    ):
        cluster.start_master()
        workers = [cluster.start_worker(f"w{n}", "--slots", "1") for n in range(3)]
        words = ["submit", spider, "--project", str(PLUGINS), "-p", "3"]
        for name, value in (("site", site.address), ("count", COUNT), ("hosts", HOSTS)):
            words += ["-a", f"{name}={value}"]
        job = cluster.ok(*words).strip()
        cluster.wait_until(lambda: cluster.job(job)["items"] >= COUNT // 4)
        for worker in workers[:KILLS]:
            for pid in cluster.crawl_pids(worker):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        site.let_go()
        cluster.ok("wait", job)
        lines = Counter(
            json.loads(line)["title"] for line in cluster.items(job).elements()
        )
        shown = cluster.job(job)
    assert lines == Counter(f"number {number}" for number in range(COUNT))
    assert site.most_at_once >= TOGETHER
    assert shown["runs"] >= 3, shown
    assert "cannot leave" not in cluster.log()
