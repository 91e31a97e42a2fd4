"""``crawl`` in the hands of its caller: folder, variables, stdin, log."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.commands import DSCRAPY, WAIT_S, environment, run

SPIDER = """\
import os, signal, sys
import scrapy
class Lines(scrapy.Spider):
    name = "lines"
    async def start(self):
        for number, line in enumerate(sys.stdin):
            if number == 3 and not os.path.exists("died"):
                open("died", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield scrapy.Request("data:," + line.strip())
    def parse(self, response):
        self.logger.info("parsed %s", response.text)
        yield {"line": response.text, "stage": self.settings["STAGE"]}
class Deaf(scrapy.Spider):
    name = "deaf"
    start_urls = ["data:,a"]
    def parse(self, response):
        yield {"stage": self.settings["STAGE"], "list": self.settings["LIST"]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose settings read a file of the folder they are loaded in."""
    root = tmp_path / "project"
    for name, content in {
        "scrapy.cfg": "[settings]\ndefault = p.settings\nstaging = p.staging\n",
        "p/__init__.py": "",
        "p/settings.py": (
            'SPIDER_MODULES = ["p.spiders"]\nSTAGE = "default"\n'
            'LIST = open("list.txt").read()\nLOG_FILE = "of_project.log"\n'
        ),
        "p/staging.py": 'from p.settings import *\nSTAGE = "staging"\n',
        "p/spiders.py": SPIDER,
        "list.txt": "project",
        "sub/list.txt": "sub",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_stdin_is_read_from_its_beginning_after_a_kill(
    project: Path, tmp_path: Path
) -> None:
    """In the caller's folder, with the caller's choice of settings; the log goes to the
    caller's file, the state keeps no input of a crawl that is over."""
    sub = project / "sub"
    lines = [f"l{number}" for number in range(6)]
    done = run(
        *("crawl", "lines", "-O", "out.jsonl", "--logfile", "log.txt"),
        *("--pidfile", "pid", "--profile", "profile"),
        cwd=sub,
        home=tmp_path,
        input="\n".join(lines),
        SCRAPY_PROJECT="staging",
    )
    assert done.returncode == 0, done.stderr
    items = [json.loads(line) for line in (sub / "out.jsonl").read_text().splitlines()]
    assert sorted(item["line"] for item in items) == lines
    assert {item["stage"] for item in items} == {"staging"}
    log = (sub / "log.txt").read_text()
    assert log.count("INFO: parsed l") == len(lines)
    assert "INFO: parsed" not in done.stderr
    assert int((sub / "pid").read_text()) > 0
    # The first process was killed.
    assert (sub / "profile.2").stat().st_size > 0
    state = tmp_path / "XDG_STATE_HOME/dscrapy/crawls"
    assert not list(state.glob("*/stdin*"))


def test_stdin_that_is_not_read_is_left_alone(project: Path, tmp_path: Path) -> None:
    """It may stay open for ever; without scrapy.cfg the variable names the project."""
    (project / "scrapy.cfg").unlink()
    read, write = os.pipe()
    os.write(write, b"for others")
    done = subprocess.run(
        [*DSCRAPY, "crawl", "deaf", "--nolog", "-s", "LOG_FILE=", "-o", "-:jsonl"],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=project,
        stdin=read,
        env=environment(tmp_path, SCRAPY_SETTINGS_MODULE="p.staging"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"stage": "staging", "list": "project"}
    assert done.stderr == "--- process 1 on crawl ---\n"
    assert os.read(read, 100) == b"for others"
    os.close(read)
    os.close(write)
