"""A Scrapy that is too old: one line that says which are needed, and nothing begins."""

from pathlib import Path

import pytest

from tests.e2e.cluster import running_cluster
from tests.e2e.commands import assert_user_error, run
from tests.e2e.crawl_harness import PROJECT, ROOT

LINE = (
    "Scrapy 2.15.2 is too old: dscrapy needs Scrapy 2.16 to 2.19 "
    "(pip install 'scrapy>=2.16')"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PYTHONPATH on which 2.15.2 is what is found installed."""
    known = tmp_path / "old" / "scrapy-2.15.2.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: Scrapy\nVersion: 2.15.2\n"
    )
    return f"{known.parent}:{ROOT}"


@pytest.mark.parametrize("command", ["crawl", "submit"])
def test_a_command_is_refused(command: str, path: str, tmp_path: Path) -> None:
    """Before a master is asked or a folder made; as what else is unsupported."""
    home = tmp_path / "home"
    done = run(command, "pages", cwd=PROJECT, home=home, PYTHONPATH=path)
    assert assert_user_error(done, 1) == f"dscrapy: {LINE}"
    assert done.stdout == ""
    assert not home.exists()


def test_a_job_on_a_worker_with_it_fails(path: str, tmp_path: Path) -> None:
    """Its crawl process says so before it imports Scrapy; no retry helps."""
    with running_cluster(tmp_path) as cluster:
        cluster.start_master()
        cluster.start_worker("w1", within=("env", f"PYTHONPATH={path}"))
        words = ("pages", "--project", str(PROJECT), "--retries", "3")
        done = cluster.run("submit", *words, "--wait")
        assert done.returncode == 1, done.stderr
        shown = cluster.job(done.stdout.strip())
        assert shown["state"] == "failed"
        assert LINE in shown["reason"]
        assert shown["runs"] == 1
        assert LINE in done.stderr
        assert "Traceback" not in cluster.log()
