"""What ``crawl`` takes from its caller, and what makes it another crawl."""

from pathlib import Path

import pytest

from dscrapy.cli.caller import other_settings, run_settings, surroundings
from dscrapy.cli.crawl_others import others_line
from dscrapy.cli.crawl_state import Crawl, Record
from dscrapy.cli.parser import parse
from dscrapy.worker.caller import Caller


def crawl_of(base: Path, args: dict[str, str], **around: str) -> Crawl:
    """Return a crawl of the spider s, called in /p."""
    return Crawl.of(
        base, Path("/p"), "s", args, {}, around, called_in="/p", command="C"
    )


def test_log_options_are_those_of_scrapy() -> None:
    """And no part of what the crawl is; the last word is --nolog's."""
    words = "-s LOG_LEVEL=INFO -s A=1 -L error --logfile f --nolog"
    options = parse(["crawl", "s", *words.split()])
    assert run_settings(options) == {
        "LOG_LEVEL": "ERROR",
        "LOG_FILE": "f",
        "LOG_ENABLED": "False",
    }
    assert other_settings(options) == {"A": "1"}


@pytest.mark.parametrize("flag", ["-o", "-O"])
def test_named_files_take_the_place_of_feeds(flag: str) -> None:
    """In this run alone: one without them writes the project's feeds."""
    options = parse(["crawl", "s", "-s", "FEEDS={}", flag, "a.csv"])
    assert run_settings(options) == {"FEEDS": "{}"}
    assert run_settings(parse(["crawl", "s"])) == {}
    assert other_settings(options) == {"FEEDS": "{}"}


def test_only_what_is_not_as_usual_makes_another_crawl(tmp_path: Path) -> None:
    """In the project's folder, without variables, a crawl keeps the name it had."""
    home = Path("/p")
    assert surroundings(home, home, {"SCRAPY_PROJECT": ""}) == {}
    around = surroundings(Path("/p/sub"), home, {"SCRAPY_PROJECT": "staging"})
    assert around == {"folder": "/p/sub", "SCRAPY_PROJECT": "staging"}
    usual = Crawl.of(tmp_path, home, "s", {}, {})
    assert crawl_of(tmp_path, {}).folder == usual.folder
    assert crawl_of(tmp_path, {}, folder="/p/sub").folder != usual.folder


def begun(crawl: Crawl, *, done: bool = False) -> Record:
    """Begin the crawl and return its record."""
    record = crawl.start_over("j", "d")
    record.done = done
    crawl.save(record)
    return record


def test_an_unfinished_crawl_with_others_is_named(tmp_path: Path) -> None:
    """With the command that goes on with it; not one that is done, or that runs."""
    mine = crawl_of(tmp_path, {"n": "1"})
    record = begun(mine)
    assert others_line(mine, record) == ""
    begun(crawl_of(tmp_path, {"n": "2"}), done=True)
    other = crawl_of(tmp_path, {"n": "3"}, SCRAPY_PROJECT="x y")
    begun(other)
    with other.locked():
        assert others_line(mine, record) == ""
    line = others_line(mine, record)
    assert "other -a, other SCRAPY_* variables;" in line
    assert line.endswith(": SCRAPY_PROJECT='x y' C")


def test_processes_get_what_is_kept_of_stdin(tmp_path: Path) -> None:
    """The live one until it is whole; only the first begins the log anew."""
    caller = Caller(folder=tmp_path, settings={}, profile="p", keep=tmp_path, stdin=0)
    first = caller.give("crawl")
    assert first.stdin == 0
    assert first.local is not None
    assert (first.local.settings, first.local.profile) == ({}, b"p")
    (tmp_path / "stdin.part").write_text("a")
    assert caller.give("export").stdin == Path("/dev/null")
    third = caller.give("crawl")
    assert third.stdin == 0
    assert third.local is not None
    assert third.local.profile == b"p.3"
    assert third.local.settings == {"LOG_FILE_APPEND": "True"}
    (tmp_path / "stdin.part").rename(tmp_path / "stdin")
    assert caller.give("crawl").stdin == tmp_path / "stdin"
