"""The command line's grammar: what the contract promises is accepted, nothing else."""

import shlex
from typing import Any

import pytest

from dscrapy.cli.parser import build_parser, parse
from dscrapy.cli.terminal.help import GROUPS
from dscrapy.conf.config import MasterConfig, WorkerConfig

# The commands of the contract, with every flag it names.
CONTRACT = """
master
master --host 0.0.0.0 --port 0 --state d --jobs f.toml --conf c
worker
worker --master h:1 --port 7500 --slots 4 --name w --conf c --state d
worker -p 7500
master -p 0
status
status --watch
status --json
status --at h:1
crawl s -a k=v -s K=V -o f.csv -p 4 --fresh --state d -L DEBUG
crawl s -O f.csv --resume
submit s
submit s --project d -a k=v -a l=w -s K=V --url http://a --url http://b -p 0
submit s --parallelism 3 --priority -5 --retries 2 --name n --wait -o f.json
submit s --every 10m
submit --file jobs.jsonl
submit --file jobs.toml --wait
jobs
jobs --json
show 1
show 1 --json
wait 1 2 3
cancel 1
pause 1
resume 1
retry 1
retry 1 --fresh
items 1
items 1 -o f.csv
logs 1
logs 1 -f
workers
workers --json
drain w
"""

CLIENTS = (
    "status",
    "submit s",
    "jobs",
    "show 1",
    "wait 1",
    "cancel 1",
    "pause 1",
    "resume 1",
    "retry 1",
    "items 1",
    "logs 1",
    "workers",
    "drain w",
)


@pytest.mark.parametrize("line", CONTRACT.strip().splitlines())
def test_contract_is_accepted(line: str) -> None:
    """Every command of the contract parses."""
    assert parse(shlex.split(line)).command == line.split()[0]


@pytest.mark.parametrize("line", CLIENTS)
def test_every_client_says_which_master(line: str) -> None:
    """Every client takes the flags that lead to a master."""
    where = "--master h:1 --state d --conf c --connect-timeout 2.5"
    options = parse(shlex.split(f"{line} {where}"))
    assert (options.master, options.state, options.conf) == ("h:1", "d", "c")
    assert options.connect_timeout == 2.5


def test_values_arrive_as_meant() -> None:
    """Pairs are cut at the first '=', repeated flags gather, numbers are numbers."""
    line = "submit s -a a=1=2 -a b= -s C=d --url u --url v --priority -5 -p 0"
    options = parse(shlex.split(line))
    assert options.args == [("a", "1=2"), ("b", "")]
    assert options.settings == [("C", "d")]
    assert options.urls == ["u", "v"]
    assert (options.priority, options.parallelism, options.retries) == (-5, 0, 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-o", "-:jsonl"], {"append_to": ["-:jsonl"]}),
        (["-o-:jsonl"], {"append_to": ["-:jsonl"]}),
        (["--output", "-:csv"], {"append_to": ["-:csv"]}),
        (["-o", "a.csv", "-o", "b.json"], {"append_to": ["a.csv", "b.json"]}),
        (["-O", "x:csv"], {"overwrite": ["x:csv"]}),
    ],
)
def test_feeds_as_in_scrapy(words: list[str], expected: dict[str, Any]) -> None:
    """Files of items are named as for ``scrapy crawl``, stdout too."""
    options = parse(["crawl", "s", *words])
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("frobnicate", "frobnicate"),
        ("submit", "SPIDER"),
        ("submit s --file f.jsonl", "SPIDER"),
        ("submit --file f.jsonl --name n -p 2", "-p, --name"),
        ("submit s -o f.csv", "--wait"),
        ("submit s --every 10m --wait", "--every"),
        ("submit s -a novalue", "NAME=VALUE"),
        ("submit s -a =v", "NAME=VALUE"),
        ("submit s --priority high", "whole number"),
        ("submit s --retries -1", "0 or more"),
        ("submit s --wait -o a.csv -O b.csv", "not both"),
        ("crawl s --fresh --resume", "--resume"),
        ("crawl s -L LOUD", "LOUD"),
        ("crawl", "SPIDER"),
        ("worker --slots 0", "1 or more"),
        ("worker --port 65536", "65536"),
        ("master --port -1", "port"),
        ("wait", "JOB"),
        ("status --json --watch", "--watch"),
        ("status --connect-timeout 0", "seconds"),
        ("status --connect-timeout nan", "seconds"),
        ("status --connect-timeout inf", "seconds"),
        ("jobs --only lost", "lost"),
        ("status --js", "--js"),
    ],
)
def test_wrong_lines_are_one_line_and_the_usage(
    line: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line exits with 2 and names the fault in one line."""
    with pytest.raises(SystemExit) as caught:
        parse(shlex.split(line))
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("usage: dscrapy")
    last = told.err.splitlines()[-1]
    assert last.startswith("dscrapy: ")
    assert text in last


def test_help_and_version_leave_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """Help of every command and the version go to stdout and are no error."""
    commands = [line.split()[0] for line in CONTRACT.strip().splitlines()]
    for words in (["--help"], ["--version"], *([name, "--help"] for name in commands)):
        with pytest.raises(SystemExit) as caught:
            parse(words)
        assert not caught.value.code
        assert capsys.readouterr().out.strip()


def test_no_word_at_all_lists_the_commands_in_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As --help does: that is no error. Every command stands in a group."""
    told = []
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            parse(words)
        assert not caught.value.code
        told.append(capsys.readouterr())
    assert told[0] == told[1]
    assert told[0].err == ""
    for command in build_parser().commands.choices:
        assert f"\n  {command} " in told[0].out
        assert any(command in names for names in GROUPS.values()), command


def test_help_tells_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever takes a value says what it is without; addresses are those of the
    configuration."""
    for command, parser in build_parser().commands.choices.items():
        # As wide as it takes, so that no default is broken.
        text = " ".join(parser.format_help().split())
        options = [
            action
            for action in parser._actions
            if action.option_strings and action.nargs != 0
        ]
        assert text.count("default: ") >= len(options), command
    with pytest.raises(SystemExit):
        parse(["master", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"(default: {MasterConfig().host})" in text
    assert f"(default: {MasterConfig().port})" in text
    assert f"from {WorkerConfig().port})" in " ".join(
        build_parser().commands.choices["worker"].format_help().split()
    )


def test_a_port_is_p_where_nothing_crawls() -> None:
    """Of those that serve it is short for --port, else for --parallelism."""
    assert parse(["worker", "-p", "7500"]).port == 7500
    assert parse(["master", "-p", "0"]).port == 0
    assert parse(["submit", "s", "-p", "3"]).parallelism == 3


def test_no_flag_is_an_abbreviation_of_another() -> None:
    """What is not spelled out is refused, so that a new flag breaks no script."""
    assert not build_parser().allow_abbrev
    with pytest.raises(SystemExit):
        parse(["submit", "s", "--prio", "3"])
