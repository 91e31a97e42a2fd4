"""``crawl`` as the drop-in for ``scrapy crawl``: files, log, Ctrl-C, going on later."""

import json
import os
import re
import select
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import WAIT_S, assert_user_error, run, running
from tests.e2e.crawl_harness import PROJECT, Gate, plain_scrapy, running_site


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the test site."""
    with running_site() as address:
        yield address


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
            "    def __init__(self, site, count='10', more='', **kwargs):\n"
            "        super().__init__(**kwargs)\n"
            "        self.start_urls = [\n"
            "            f'{site}/slow?{more}&n={n}' for n in range(int(count))]\n"
            "    def parse(self, response):\n"
            "        self.logger.info('parsed one')\n"
            "        yield {'url': response.url.rpartition('&')[2]}\n"
        ),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


SERIAL = ("-s", "CONCURRENT_REQUESTS=1")


def held(gate: Gate, count: int = 12) -> tuple[str, ...]:
    """Return arguments of a crawl that is in its middle until the gate is open."""
    more = "&".join(f"{name}={value}" for name, value in gate.arguments.items())
    return ("-a", f"more={more}", "-a", f"count={count}", *SERIAL)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Lets two pages through."""
    return Gate(tmp_path, free=2)


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


def test_the_projects_feeds_are_written(shop: Path, site: str, tmp_path: Path) -> None:
    """Once for the whole crawl, also by a spider's own settings; a second crawl appends
    to what the first has written, as Scrapy does, and replaces what is to be."""
    with (shop / "shop/settings.py").open("a") as file:
        file.write(
            'FEEDS = {"out/%(name)s.jsonl": {"format": "jsonl"},\n'
            '  "whole.csv": {"format": "csv", "overwrite": True}}\n'
        )
    for again in (1, 2):
        done = run("crawl", "prices", "-a", f"site={site}", cwd=shop, home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Stored jsonl feed (10 items)" in done.stderr
        assert done.stderr.splitlines()[-2:] == [
            f"dscrapy: wrote 10 items to {shop}/{name}"
            for name in ("out/prices.jsonl", "whole.csv")
        ]
        lines = (shop / "out" / "prices.jsonl").read_text()
        assert numbers_in(lines) == sorted(list(range(10)) * again)
        rows = (shop / "whole.csv").read_text().splitlines()
        assert sorted(rows) == sorted(["url", *(f"n={n}" for n in range(10))])


def test_named_files_take_the_place_of_feeds(tmp_path: Path) -> None:
    """With -O the FEEDS of the project and its spider are not written, as in Scrapy;
    in a run without it they are."""
    spider = tmp_path / "own.py"
    spider.write_text(
        "import scrapy\n\nclass Own(scrapy.Spider):\n    name = 'own'\n"
        "    start_urls = ['data:,x']\n"
        "    custom_settings = {'FEEDS': {'own.json': {'format': 'json'}}}\n"
        "    def parse(self, response):\n        yield {'url': response.url}\n"
    )
    out = tmp_path / "out.jsonl"

    def written() -> dict[str, bytes]:
        found = [path for path in tmp_path.iterdir() if ".json" in path.suffix]
        texts = {path.name: path.read_bytes() for path in found}
        for path in found:
            path.unlink()
        return texts

    plain_scrapy("own.py", {}, out, tmp_path)
    plain = written()
    assert list(plain) == ["out.jsonl"]
    done = run("crawl", "own.py", "-O", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert written() == plain
    quiet = run("crawl", "own.py", "--nolog", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert list(written()) == ["own.json"]


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
    # A mistake in the project is shown once, from the project's code on.
    assert done.stderr.count("Traceback") == (words != ("nosuch",))
    assert "dscrapy/crawl" not in done.stderr


def test_crawl_that_was_killed_goes_on(
    shop: Path, site: str, tmp_path: Path, gate: Gate
) -> None:
    """After SIGKILL the same command resumes, says so first, and gives all items once;
    a finished crawl starts anew."""
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate))
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    gate.open()
    done = run(*words, "-o", "-:jsonl", cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert re.match(r"dscrapy: resuming: \d+ pages? done, \d+ pending; --fresh", first)
    assert numbers_in(done.stdout) == list(range(12))
    # The log of the run that was killed is not told again.
    assert done.stderr.count("Spider opened") == 1
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    assert b"resuming" not in command.err


def test_one_crawl_at_a_time(shop: Path, site: str, tmp_path: Path) -> None:
    """The same crawl is refused while it runs; a different one runs beside it."""
    words = ("crawl", "prices", "-a", f"site={site}")
    endless = held(Gate(tmp_path, free=0))
    with running(*words, *endless, cwd=shop, home=tmp_path) as command:
        command.until("Spider opened")
        same = run(*words, *endless, cwd=shop, home=tmp_path)
        assert "already runs" in assert_user_error(same, 1)
        assert run(*words, cwd=shop, home=tmp_path).returncode == 0
        assert command.process.poll() is None


def test_crawl_with_changed_files(
    shop: Path, site: str, tmp_path: Path, gate: Gate
) -> None:
    """With changed files a crawl starts fresh and keeps the old one for --resume."""
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate))
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    (old,) = crawls(tmp_path)
    kept = json.loads((old / "crawl.json").read_text())["job"]
    with (shop / "shop/spiders/prices.py").open("a") as file:
        file.write("        yield {'url': 'n=-1'}\n")
    gate.open()
    text = run(*words, cwd=shop, home=tmp_path).stderr
    assert "starting fresh" in text.splitlines()[0]
    assert "--resume" in text.splitlines()[0]
    assert "resuming" not in text
    resumed = run(*words, "--resume", "-o", "-:jsonl", cwd=shop, home=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stderr
    # All pages are there, once, the new code ran on what was left, and it is the old
    # job.
    numbers = numbers_in(resumed.stdout)
    left = numbers.count(-1)
    assert 1 <= left <= 12
    assert numbers[left:] == list(range(12))
    (now,) = crawls(tmp_path)
    assert json.loads((now / "crawl.json").read_text())["job"] == kept
    nothing = run(*words, "--resume", cwd=shop, home=tmp_path)
    assert "no unfinished crawl" in assert_user_error(nothing, 1)


def test_fresh_starts_over(shop: Path, site: str, tmp_path: Path, gate: Gate) -> None:
    """--fresh forgets an unfinished crawl."""
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate))
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    with running(*words, "--fresh", cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.kill()
    assert b"resuming" not in command.err
    assert len(crawls(tmp_path)) == 1


@pytest.mark.parametrize("flag", ["-O", pytest.param("-o", marks=pytest.mark.long)])
def test_ctrl_c_stops_and_the_next_run_goes_on(
    flag: str, shop: Path, site: str, tmp_path: Path, gate: Gate
) -> None:
    """The first Ctrl-C lets pages under way finish: the items so far are written, and
    the same command gives the others, each once, also with more processes."""
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate), flag, "out.jsonl")
    target = shop / "out.jsonl"
    target.write_text('{"url": "n=99"}\n')
    there = [99] if flag == "-o" else []
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.interrupt()
        # Its pages are let go when it takes no more of them.
        command.until("Closing spider")
        gate.open()
        assert command.finish() == 1
    # As Scrapy says it; the job goes on all the same.
    assert b"Spider closed (shutdown)" in command.err
    assert b"'finish_reason': 'shutdown'" in command.err
    last = command.err.decode().splitlines()[-2]
    assert re.search(r"prices stopped: .* \d+ pending, run the same command", last)
    got = numbers_in(target.read_text())
    assert 1 + len(there) <= len(got) < 12
    done = run(*words, "-p", "2", cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    pages = len(got) - len(there)
    assert re.match(rf"dscrapy: resuming: {pages} pages? done, \d+ pending;", first)
    assert numbers_in(target.read_text()) == [*range(12), *there]
    # What was done before is not crawled again.
    assert done.stderr.count("parsed one") == 12 - pages
    anew = run(*words, "-a", "count=1", cwd=shop, home=tmp_path)
    assert "resuming" not in anew.stderr


def test_what_others_append_meanwhile_is_not_removed(
    shop: Path, site: str, tmp_path: Path, gate: Gate
) -> None:
    """A stopped crawl undoes its own append only: a file that grew is an error that
    says what to do, and costs no item."""
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate), "-o", "out.jsonl")
    target = shop / "out.jsonl"
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.interrupt()
        # Its pages are let go when it takes no more of them.
        command.until("Closing spider")
        gate.open()
        assert command.finish() == 1
    with target.open("a") as file:
        file.write('{"url": "n=99"}\n')
    text = target.read_text()
    refused = run(*words, cwd=shop, home=tmp_path)
    assert refused.returncode == 1
    assert "has changed since" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert target.read_text() == text
    target.unlink()
    done = run(*words, cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert numbers_in(target.read_text()) == list(range(12))


@pytest.mark.long
def test_an_append_that_fails_leaves_what_the_last_run_wrote(
    shop: Path, site: str, tmp_path: Path, gate: Gate
) -> None:
    """The items so far of a crawl that was stopped, though it has all of them now; the
    next run puts these in their place, in a format that begins otherwise."""
    (shop / "shop" / "fragile.py").write_text(
        "from pathlib import Path\n"
        "from scrapy.exporters import JsonItemExporter\n"
        "class Fragile(JsonItemExporter):\n"
        "    def finish_exporting(self):\n"
        "        if Path('broken').exists():\n"
        "            raise OSError(28, 'No space left on device')\n"
        "        super().finish_exporting()\n"
    )
    with (shop / "shop/settings.py").open("a") as file:
        file.write("FEED_EXPORTERS = {'fragile': 'shop.fragile.Fragile'}\n")
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate), "-o", "out.fragile")
    target, there = shop / "out.fragile", '[\n{"url": "n=99"}\n]'
    target.write_text(there)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        command.interrupt()
        command.until("Closing spider")
        gate.open()
        assert command.finish() == 1
    text = target.read_text()
    some = json.loads(text.removeprefix(there))
    assert 1 <= len(some) < 12
    (shop / "broken").touch()
    for again in (False, True):
        failed = run(*words, cwd=shop, home=tmp_path)
        assert failed.returncode == 1
        last = failed.stderr.splitlines()[-1]
        assert last == f"dscrapy: cannot write {target}: No space left on device"
        assert ("had ended" in failed.stderr) == again
        assert target.read_text() == text
    (shop / "broken").unlink()
    done = run(*words, cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    items = json.loads(target.read_text().removeprefix(there))
    assert sorted(int(item["url"][2:]) for item in items) == list(range(12))
    assert target.read_text().startswith(text.removesuffix("\n]"))


def test_second_ctrl_c_stops_at_once(shop: Path, site: str, tmp_path: Path) -> None:
    """The second Ctrl-C leaves no process behind, and the crawl can go on later."""
    # Its pages would be waited for, and never come.
    endless = held(Gate(tmp_path, free=0), count=3)
    words = ("crawl", "prices", "-a", f"site={site}", *endless)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("Spider opened")
        (process,) = crawl_processes(shop)
        command.interrupt()
        command.until("stopping")
        command.interrupt()
        assert command.finish() == 1
    assert "stopped at once" in command.err.decode().splitlines()[-1]
    assert "Traceback" not in command.err.decode()
    assert_ends(process)
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("resuming")
        command.kill()


def assert_ends(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], WAIT_S)[0], f"process {pid} lives on"
    finally:
        os.close(handle)


def crawl_processes(folder: Path) -> list[int]:
    """Return the pids of crawl processes that work in ``folder``."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            is_ours = process.name.isdecimal() and os.path.samefile(
                process / "cwd", folder
            )
            if is_ours and b"dscrapy.crawl" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            # It has just ended, or is none of ours.
            continue
    return found


def test_files_are_written_by_the_next_run_if_need_be(
    shop: Path, site: str, tmp_path: Path, gate: Gate
) -> None:
    """A crawl whose file could not be written keeps its items for the next run.

    An append that was cut short before is undone first.
    """
    there = '{"url": "n=99"}\n'
    target = shop / "results" / "out.jsonl"
    target.parent.mkdir()
    target.write_text(there)
    words = ("crawl", "prices", "-a", f"site={site}", *held(gate), "-o", str(target))
    with running(*words, cwd=shop, home=tmp_path) as command:
        command.until("parsed one")
        shutil.rmtree(target.parent)
        gate.open()
        assert command.finish() == 1
    assert b"cannot write" in command.err.splitlines()[-1]
    # As a crash in the middle of the append would leave it.
    target.parent.mkdir()
    target.write_text(there + '{"url":')
    (folder,) = crawls(tmp_path)
    record = json.loads((folder / "crawl.json").read_text())
    record["appended"] = {str(target): len(there)}
    (folder / "crawl.json").write_text(json.dumps(record))
    done = run(*words, cwd=shop, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "had ended" in done.stderr.splitlines()[0]
    assert "parsed one" not in done.stderr
    assert numbers_in(target.read_text()) == [*range(12), 99]
