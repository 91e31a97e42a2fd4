"""``crawl`` in the hands of its caller: folder, variables, stdin, log."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dscrapy.proto.in_flight import AWAITS_AT
from tests.e2e.cluster import crawls_of, wait_until
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
class Again(scrapy.Spider):
    name = "again"
    custom_settings = {"LOG_FILE": None}
    async def start(self):
        lines = []
        for line in sys.stdin:
            lines.append(line.strip())
            if lines == ["a", "b"]:
                self.die_once("in the middle")
        self.die_once("at the end")
        for line in lines:
            yield scrapy.Request("data:," + line)
    def die_once(self, when):
        if not os.path.exists(when):
            open(when, "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
    def parse(self, response):
        yield {"line": response.text}
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
    assert done.stderr == ""
    assert os.read(read, 100) == b"for others"
    os.close(read)
    os.close(write)


@contextmanager
def on_a_pipe(
    spider: str, *words: str, cwd: Path, home: Path
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a crawl; yields it and the end of the pipe that is its stdin."""
    read, write = os.pipe()
    with subprocess.Popen(
        [*DSCRAPY, "crawl", spider, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        stdin=read,
        env=environment(home),
    ) as process:
        os.close(read)
        try:
            yield process, write
        finally:
            process.kill()


def waits_for_input(command: int) -> bool:
    """Whether the crawl process of this command says that it does."""
    for pid in crawls_of(command):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        # The number of the file of its marks is its last argument.
        with open(f"/proc/{pid}/fd/{words[-2].decode()}", "rb") as file:
            return os.pread(file.fileno(), 1, AWAITS_AT) == b"\1"
    return False


def test_a_crawl_that_goes_on_after_a_kill_reads_its_stdin_again(
    project: Path, tmp_path: Path
) -> None:
    """From the beginning: what was kept, if its end had come, else that of the new run.
    While it waits for more it says so."""
    state = tmp_path / "XDG_STATE_HOME/dscrapy/crawls"

    def kept(name: str) -> str:
        (path,) = state.glob(f"*/{name}")
        return path.read_text()

    with on_a_pipe("again", cwd=project, home=tmp_path) as (first, pipe):
        os.write(pipe, b"a\n")
        wait_until(lambda: waits_for_input(first.pid))
        os.write(pipe, b"b\n")
        assert first.wait(WAIT_S) == -signal.SIGKILL
        os.close(pipe)
    assert kept("stdin.part") == "a\nb\n"
    words = ("crawl", "again", "-O", "out.csv")
    second = run(*words, cwd=project, home=tmp_path, input="a\nb\nc\n")
    assert second.returncode == -signal.SIGKILL
    assert kept("stdin") == "a\nb\nc\n"
    third = run(*words, cwd=project, home=tmp_path, input="x\ny\n")
    assert third.returncode == 0, third.stderr
    assert "stdin is what the crawl began with" in third.stderr
    assert (project / "out.csv").read_text().split() == ["line", "a", "b", "c"]
    assert not list(state.glob("*/stdin*"))


READER = """\
import sys
import scrapy
assert sys.stdin.readline() == "head\\n", "it begins with the head"
class Reader(scrapy.Spider):
    name = "reader"
    custom_settings = {
        "FEEDS": {"feed.csv": {"format": "csv"}},
        "FEED_EXPORTERS": {"own": "scrapy.exporters.CsvItemExporter"},
    }
    async def start(self):
        for line in sys.stdin:
            yield scrapy.Request("data:," + line.strip())
    def parse(self, response):
        yield {"line": response.text}
"""


def test_a_module_that_reads_stdin_may_be_imported_once_more(tmp_path: Path) -> None:
    """By what writes FEEDS, and by the command for -O: both read what the crawl read,
    and a check before the crawl takes none of it."""
    (tmp_path / "reader.py").write_text(READER)
    words = ("-O", "out.own:own", "-O", "out.csv")
    done = run("crawl", "reader.py", *words, cwd=tmp_path, input="head\na\nb\n")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "it begins with the head" not in done.stderr
    # -O takes the place of FEEDS.
    done = run("crawl", "reader.py", cwd=tmp_path, input="head\na\nb\n")
    assert done.returncode == 0, done.stderr
    for name in ("out.own", "out.csv", "feed.csv"):
        lines = (tmp_path / name).read_text().split()
        assert sorted(lines) == ["a", "b", "line"], name


def test_several_processes_are_told_that_stdin_is_empty(tmp_path: Path) -> None:
    """By a warning, where the spider reads it; one has it."""
    (tmp_path / "lines.py").write_text(
        "import sys\n"
        "import scrapy\n"
        "class Lines(scrapy.Spider):\n"
        '    name = "lines"\n'
        "    async def start(self):\n"
        "        for line in sys.stdin:\n"
        '            yield {"line": line}\n'
    )
    words = ("crawl", "lines.py", "-p", "2", "-o", "-")
    done = run(*words, cwd=tmp_path, input="a\n")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    warning = (
        "WARNING: The spider reads stdin, which is empty: -p 1 (the default) gives"
    )
    assert done.stderr.count(warning) == 1


@pytest.mark.parametrize("words", [(), ("--logfile", "mine.log")])
def test_the_log_goes_where_scrapy_writes_it(
    project: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """To the project's LOG_FILE, behind what is there, or to that of --logfile alone;
    in the folder where the command is called."""
    plain, ours = project / "sub", project / "sub2"
    ours.mkdir()
    for folder in (plain, ours):
        (folder / "list.txt").write_text("sub")
        (folder / "of_project.log").write_text("of yesterday\n")
    command = (sys.executable, "-m", "scrapy", "crawl", "deaf", *words)
    done = subprocess.run(
        [*command, "-s", "TELNETCONSOLE_ENABLED=0", "-s", "REMOTE_CONTROL_ENABLED=0"],
        cwd=plain,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    crawl = run("crawl", "deaf", *words, cwd=ours, home=tmp_path)
    assert crawl.returncode == 0, crawl.stderr
    found = []
    for folder, told in ((plain, done.stderr), (ours, crawl.stderr)):
        logs = {path.name: path.read_text() for path in folder.glob("*.log")}
        logs["stderr"] = told
        said = ("of yesterday", "INFO: Spider opened", "INFO: Spider closed")
        found.append(
            {name: [text.count(one) for one in said] for name, text in logs.items()}
        )
    assert found[0] == found[1]
    # Nor a heading of what is not there.
    assert "--- process" not in crawl.stderr
