"""What ``crawl`` takes from its caller, and what makes it another crawl."""

import os
import pty
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from dscrapy.cli.job_commands import _with_variables
from dscrapy.cli.local.caller_options import (
    check_files,
    command_of,
    forget_stdin,
    make_caller,
    other_settings,
    run_settings,
    surroundings,
)
from dscrapy.cli.local.crawl_others import others_line
from dscrapy.cli.local.crawl_state import Crawl, Record
from dscrapy.cli.parser import parse
from dscrapy.errors import UserError
from dscrapy.model import JobSpec, Submission
from dscrapy.worker.caller_streams import Caller, kept_stdin, stdin_of_caller


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
    first = caller.inputs_for("crawl")
    assert first.stdin == 0
    assert caller.inputs_for("export").stdin == Path("/dev/null")
    assert first.local is not None
    assert (first.local.settings, first.local.profile) == ({}, b"p")
    (tmp_path / "stdin.part").write_text("a")
    # What writes feeds reads what there is, never what the spider is to read.
    assert caller.inputs_for("export").stdin == tmp_path / "stdin.part"
    third = caller.inputs_for("crawl")
    assert third.stdin == 0
    assert third.local is not None
    assert third.local.profile == b"p.4"
    assert third.local.settings == {"LOG_FILE_APPEND": "True"}
    (tmp_path / "stdin.part").rename(tmp_path / "stdin")
    assert caller.inputs_for("crawl").stdin == tmp_path / "stdin"


@contextmanager
def as_stdin(fd: int) -> Iterator[None]:
    """Let descriptor 0 be this one."""
    before = os.dup(0)
    os.dup2(fd, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_stdin_is_a_pipe_or_a_file_that_has_more(tmp_path: Path) -> None:
    """Never a terminal or a device: a spider must not wait for somebody to type."""
    path = tmp_path / "list"
    path.write_text("a")
    with path.open("rb") as file, as_stdin(file.fileno()):
        assert stdin_of_caller() == 0
        os.lseek(0, 0, os.SEEK_END)
        assert stdin_of_caller() is None
    ends = (*os.pipe(), *pty.openpty())
    for fd, found in ((ends[0], 0), (ends[3], None)):
        with as_stdin(fd):
            assert stdin_of_caller() == found
    with open(os.devnull, "rb") as null, as_stdin(null.fileno()):
        assert stdin_of_caller() is None
    for fd in ends:
        os.close(fd)


def test_one_process_has_stdin_and_what_was_kept_comes_first(tmp_path: Path) -> None:
    """Half of it is forgotten where there is another; what is used instead is said."""
    crawl = crawl_of(tmp_path, {})
    begun(crawl)
    whole, part = crawl.folder / "stdin", crawl.folder / "stdin.part"
    one, two = (parse(["crawl", "s", "-p", count]) for count in ("1", "2"))
    read, write = os.pipe()
    with as_stdin(read):
        caller, said = make_caller(two, crawl)
        assert (caller.stdin, caller.stdin_is_left, said) == (None, True, "")
        part.write_text("half")
        caller, said = make_caller(one, crawl)
        assert (caller.stdin, said, part.exists()) == (0, "", False)
        whole.write_text("all")
        _, said = make_caller(one, crawl)
        assert f"began with ({whole})" in said
    whole.rename(part)
    with open(os.devnull, "rb") as null, as_stdin(null.fileno()):
        _, said = make_caller(one, crawl)
    assert f"had come of it before ({part})" in said
    assert kept_stdin(crawl.folder) == part
    forget_stdin(crawl)
    assert kept_stdin(crawl.folder) is None
    os.close(read)
    os.close(write)


def test_each_log_option_switches_the_log_on() -> None:
    """As those of ``scrapy`` do, whatever the project's settings say."""
    on = {"LOG_ENABLED": "True"}
    assert run_settings(parse(["crawl", "s", "-L", "info"])) == on | {
        "LOG_LEVEL": "INFO"
    }
    assert run_settings(parse(["crawl", "s", "--logfile", "f"])) == on | {
        "LOG_FILE": "f"
    }


def test_the_command_that_goes_on_names_what_makes_the_crawl() -> None:
    """And where its items go; nothing that is of one run alone."""
    words = ["crawl", "s", "-a", "x=1 2", "-s", "A=b", "-o", "a.csv", "-p", "3"]
    words += ["--state", "/st", "--conf", "/c.toml"]
    more = ["-L", "INFO", "--logfile", "f", "--fresh"]
    assert command_of(parse([*words, *more])) == "dscrapy " + shlex.join(words)
    assert command_of(parse(["crawl", "s", "-O", "a"])) == "dscrapy crawl s -O a"


def test_files_of_a_run_are_tried_before_it(tmp_path: Path) -> None:
    """Without a change to what is there; the process's id is written at once."""
    old, new, pid = (tmp_path / name for name in ("old", "new", "pid"))
    old.write_text("of yesterday")
    words = ["crawl", "s", "--logfile", str(old), "--profile", str(new)]
    check_files(parse([*words, "--pidfile", str(pid)]))
    assert (old.read_text(), new.exists()) == ("of yesterday", False)
    assert int(pid.read_text()) == os.getpid()
    for flag in ("--logfile", "--profile", "--pidfile"):
        with pytest.raises(UserError, match="cannot write"):
            check_files(parse(["crawl", "s", flag, str(tmp_path / "no" / "f")]))


def test_each_difference_of_the_latest_is_told(tmp_path: Path) -> None:
    """And how to go on with it from here; other projects' are nobody's business, nor
    are runs that keep nothing."""
    mine = crawl_of(tmp_path, {"n": "1"})
    record = begun(mine)
    begun(crawl_of(tmp_path, {"n": "2"}))
    around, settings = {"folder": "/p/s b"}, {"A": "1"}
    other = Crawl.of(tmp_path, Path("/p"), "s", {"n": "1"}, settings, around)
    begun(attrs.evolve(other, called_in="/p/s b", command="C"))
    begun(Crawl.of(tmp_path, Path("/q"), "s", {}, {}, called_in="/q", command="D"))
    begun(crawl_of(tmp_path, {"n": "1"}).once("f" * 16))
    line = others_line(mine, record)
    assert "has other -s, another folder (there are 2);" in line
    assert line.endswith(": cd '/p/s b' && C")


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, ("staging", "p.b")),
        ({"scrapy_project": "mine"}, ("mine", "")),
        ({"settings_module": "m"}, ("", "m")),
    ],
)
def test_a_job_of_a_file_keeps_its_choice_of_settings(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], chosen: tuple[str, str]
) -> None:
    """One that names either has both from its file."""
    monkeypatch.setenv("SCRAPY_PROJECT", "staging")
    monkeypatch.setenv("SCRAPY_SETTINGS_MODULE", "p.b")
    spec = JobSpec(project="p", spider="s", **given)
    (told,) = _with_variables([Submission(id="1" * 16, spec=spec)])
    assert (told.spec.scrapy_project, told.spec.settings_module) == chosen
