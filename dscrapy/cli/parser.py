"""The command line's grammar: every subcommand with its flags, as data.

Nothing is imported here that a quick command would not need.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dscrapy import __version__
from dscrapy.cli.argument_types import (
    days,
    natural,
    pair,
    port,
    positive,
    seconds,
    size,
    whole,
)
from dscrapy.cli.terminal.help import Formatter, overview

PROGRAM = "dscrapy"

_LOG_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
_JOB = "a job's id, the beginning of it, or its name (of several the newest)"
_JOB_OR_SCHEDULE = f"{_JOB}; or a schedule's"
_FEED_FLAGS = ("-o", "-O", "--output", "--overwrite-output")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are the usage and one line."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation that works today would break with the next flag.
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", Formatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Print the usage and one line that names the fault; exit with 2."""
        one_line = " ".join(message.split())
        self.exit(2, f"{self.format_usage()}{PROGRAM}: {one_line}\n")


class Program(Parser):
    """The parser of the whole command line; its help lists the commands in groups."""

    commands: "argparse._SubParsersAction[Parser]"

    def format_help(self) -> str:
        """Return the help of the program."""
        listed = [
            (action.dest, action.help or "")
            for action in self.commands._choices_actions
        ]
        return overview(
            f"usage: {PROGRAM} COMMAND ...",
            self.description or "",
            listed,
            f"'{PROGRAM} COMMAND --help' describes a command and its options; "
            f"'{PROGRAM} --version' tells the version.",
        )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options; ``command`` names the subcommand.

    Exits (``SystemExit``) with 2 for a wrong command line, with 0 after
    ``--help`` and ``--version``, and without any word after the list of commands.
    """
    parser = build_parser()
    words = _joined(sys.argv[1:] if argv is None else argv)
    if not words:
        # As ``scrapy`` alone.
        parser.print_help()
        parser.exit()
    options = parser.parse_args(words)
    if options.command == "submit":
        _check_submit(options.parser, options)
    if options.command == "crawl":
        _check_feeds(options.parser, options)
        if options.fresh and options.resume:
            options.parser.error("--fresh and --resume exclude each other")
        if options.no_keep and options.resume:
            options.parser.error("--no-keep and --resume exclude each other")
    if options.command == "crawls" and bool(options.ids) != (options.action == "rm"):
        options.parser.error("name crawls behind rm, and only there: crawls rm ID...")
    if options.command == "items":
        _check_feeds(options.parser, options)
    return options


def _joined(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with ``-o -:jsonl`` as ``-o-:jsonl``.

    As it stands, argparse takes ``-:jsonl`` for an unknown flag.
    """
    joined: list[str] = []
    for word in argv:
        flag = joined[-1] if joined else ""
        if word.startswith("-:") and flag in _FEED_FLAGS:
            joined[-1] = f"{flag}={word}" if flag.startswith("--") else f"{flag}{word}"
        else:
            joined.append(word)
    return joined


def build_parser() -> Program:
    """Return the parser of the whole command line."""
    parser = Program(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Run Scrapy spiders on many machines.",
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {__version__}"
    )
    commands = parser.add_subparsers(
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=Parser,
        prog=PROGRAM,
    )
    parser.commands = commands
    _add_services(commands)
    _add_crawl(commands)
    _add_submit(commands)
    _add_jobs(commands)
    _add_results(commands)
    _add_removal(commands)
    _add_fleet(commands)
    return parser


Commands = Any  # argparse names the type of add_subparsers privately


def _command(commands: Commands, name: str, help: str) -> Parser:
    parser: Parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(parser=parser)
    return parser


def _client_command(commands: Commands, name: str, help: str) -> Parser:
    parser = _command(commands, name, help)
    group = parser.add_argument_group("which master")
    group.add_argument(
        "--master",
        metavar="HOST:PORT",
        help="the master's address (default: DSCRAPY_MASTER, else what the state "
        "folder names)",
    )
    _add_state(group)
    _add_conf(group)
    group.add_argument(
        "--connect-timeout",
        type=seconds,
        metavar="SECONDS",
        help="how long to try to reach the master (default: 5)",
    )
    return parser


def _add_state(parser: Any) -> None:
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="the folder of the master's state and token (default: DSCRAPY_STATE, "
        "else ~/.local/state/dscrapy)",
    )


def _add_conf(parser: Any) -> None:
    parser.add_argument(
        "--conf",
        metavar="FILE",
        help="the configuration file (default: DSCRAPY_CONF, else ./conf.toml with a "
        "[dscrapy] table, else ~/.config/dscrapy/conf.toml)",
    )


def _add_log_level(parser: Parser, default: str = "INFO") -> None:
    parser.add_argument(
        "-L",
        "--loglevel",
        metavar="LEVEL",
        type=str.upper,
        choices=_LOG_LEVELS,
        help=f"one of {', '.join(_LOG_LEVELS)} (default: {default})",
    )


def _add_services(commands: Commands) -> None:
    master = _command(commands, "master", "serve: own all state, assign jobs")
    master.add_argument(
        "--host", metavar="HOST", help="address to listen on (default: 127.0.0.1)"
    )
    master.add_argument(
        "-p",
        "--port",
        type=port,
        metavar="PORT",
        help="port to listen on; 0: any free one (default: 7411)",
    )
    _add_state(master)
    master.add_argument(
        "--jobs",
        metavar="FILE",
        help="load these jobs (TOML or JSONL) at start, each name once",
    )
    _add_conf(master)
    _add_log_level(master)
    worker = _command(commands, "worker", "serve crawl processes to a master")
    worker.add_argument(
        "--master",
        metavar="HOST:PORT",
        help="the master's address (default: DSCRAPY_MASTER, else what the state "
        "folder names)",
    )
    worker.add_argument(
        "--host",
        metavar="HOST",
        help="address to listen on for 'status --at' (default: 127.0.0.1)",
    )
    worker.add_argument(
        "-p",
        "--port",
        type=port,
        metavar="PORT",
        help="port to listen on; 0: any free one (default: the first free one from "
        "7412)",
    )
    worker.add_argument(
        "--slots",
        type=positive,
        metavar="N",
        help="crawl processes at a time (default: the CPUs that it may use)",
    )
    worker.add_argument(
        "--name", metavar="NAME", help="its name (default: HOSTNAME-PORT)"
    )
    _add_state(worker)
    _add_conf(worker)
    _add_log_level(worker)


def _add_spider_options(parser: Parser) -> None:
    parser.add_argument(
        "-a",
        dest="args",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=VALUE",
        help="set a spider argument (may be repeated)",
    )
    parser.add_argument(
        "-s",
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=VALUE",
        help="set or override a setting (may be repeated)",
    )


def _add_feeds(parser: Parser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        dest="append_to",
        action="append",
        default=[],
        metavar="FILE[:FORMAT]",
        help="append the items to FILE; the format follows the ending",
    )
    parser.add_argument(
        "-O",
        "--overwrite-output",
        dest="overwrite",
        action="append",
        default=[],
        metavar="FILE[:FORMAT]",
        help="write the items to FILE, replacing what is there",
    )


def _add_crawl(commands: Commands) -> None:
    crawl = _command(
        commands, "crawl", "run a spider here: master and worker in one command"
    )
    crawl.add_argument(
        "spider", metavar="SPIDER", help="a spider's name, or a file ending in .py"
    )
    _add_spider_options(crawl)
    _add_feeds(crawl)
    _add_parallelism(crawl)
    crawl.add_argument(
        "--no-keep",
        action="store_true",
        help="keep nothing of this crawl: it cannot go on, its items are in the files "
        "of -o, -O and FEEDS alone",
    )
    crawl.add_argument(
        "--fresh",
        action="store_true",
        help="start over, even if this crawl is unfinished",
    )
    crawl.add_argument(
        "--resume",
        action="store_true",
        help="go on with the unfinished crawl, even if the project's files changed",
    )
    _add_state(crawl)
    _add_conf(crawl)
    _add_log_level(
        crawl, "the project's LOG_LEVEL; a terminal shows warnings and what is worse"
    )
    for flag, help in (
        ("--logfile", "write the log to FILE (default: stderr)"),
        ("--profile", "write cProfile stats of the crawl process to FILE"),
        ("--pidfile", "write the process id of this command to FILE"),
    ):
        crawl.add_argument(flag, metavar="FILE", help=help)
    crawl.add_argument(
        "--nolog", action="store_true", help="no log, nor progress if all goes well"
    )


def _add_submit(commands: Commands) -> None:
    submit = _client_command(commands, "submit", "submit a job; prints its id")
    submit.add_argument("spider", nargs="?", metavar="SPIDER", help="a spider's name")
    submit.add_argument(
        "--file",
        metavar="FILE",
        help="submit all jobs of a TOML or JSONL file; -: JSON lines of stdin",
    )
    submit.add_argument(
        "--project",
        metavar="DIR",
        help="a project folder, for workers on this machine, or the name of a "
        "folder under the workers' projects_root (default: the project around "
        "the current folder)",
    )
    _add_spider_options(submit)
    submit.add_argument(
        "--url",
        dest="urls",
        action="append",
        default=[],
        metavar="URL",
        help="a start URL (may be repeated)",
    )
    _add_parallelism(submit)
    submit.add_argument(
        "--priority",
        type=whole,
        default=0,
        metavar="N",
        help="larger goes first (default: 0)",
    )
    submit.add_argument(
        "--retries",
        type=natural,
        default=0,
        metavar="N",
        help="how often to go on after a failure (default: 0)",
    )
    submit.add_argument(
        "--every",
        metavar="SPAN",
        help="run periodically: 30s, 10m, 1h30m, 1d (default: once)",
    )
    submit.add_argument("--name", default="", metavar="NAME", help="a name for people")
    submit.add_argument(
        "--wait", action="store_true", help="wait until the job has ended"
    )
    _add_feeds(submit)


def _add_parallelism(parser: Parser) -> None:
    parser.add_argument(
        "-p",
        "--parallelism",
        type=natural,
        default=1,
        metavar="N",
        help="at most N crawl processes; 0: as many as there are slots (default: 1)",
    )


def _add_jobs(commands: Commands) -> None:
    jobs = _client_command(
        commands, "jobs", "list the jobs: at a terminal the newest first, else last"
    )
    jobs.add_argument(
        "--only",
        dest="states",
        action="append",
        default=[],
        choices=("ready", "running", "paused", "succeeded", "failed", "cancelled"),
        metavar="STATE",
        help="only jobs in this state (may be repeated; default: all)",
    )
    jobs.add_argument("--spider", metavar="SPIDER", help="only jobs of this spider")
    jobs.add_argument(
        "--project", metavar="NAME", help="only jobs of this project, or its folder"
    )
    jobs.add_argument(
        "--limit", type=positive, metavar="N", help="only the newest N of these"
    )
    _add_json(jobs)
    show = _client_command(commands, "show", "show all that is known of a job")
    show.add_argument("job", metavar="JOB", help=_JOB_OR_SCHEDULE)
    _add_json(show)
    wait = _client_command(
        commands, "wait", "wait until jobs have ended; exit 0 if all succeeded"
    )
    wait.add_argument("jobs", nargs="+", metavar="JOB", help=_JOB)
    for verb, help in (
        ("cancel", "end a job, or a schedule; items so far are kept"),
        ("pause", "stop a job's crawl processes, or a schedule, until it is resumed"),
        ("resume", "let a paused job or schedule go on"),
        ("retry", "let a job go on that has failed or was cancelled"),
    ):
        change = _client_command(commands, verb, help)
        change.add_argument("jobs", nargs="+", metavar="JOB", help=_JOB_OR_SCHEDULE)
        change.set_defaults(fresh=False)
        if verb == "retry":
            change.add_argument(
                "--fresh",
                action="store_true",
                help="start anew, without items and requests so far",
            )


def _add_results(commands: Commands) -> None:
    items = _client_command(
        commands, "items", "write a job's items; JSON lines on stdout without -o"
    )
    items.add_argument("job", metavar="JOB", help=_JOB)
    _add_feeds(items)
    logs = _client_command(commands, "logs", "print a job's log")
    logs.add_argument("job", metavar="JOB", help=_JOB)
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on until the job has ended"
    )
    logs.add_argument(
        "--tail", type=natural, metavar="N", help="of what is there the last N lines"
    )
    logs.add_argument(
        "--level",
        metavar="LEVEL",
        type=str.upper,
        choices=_LOG_LEVELS,
        help=f"from this level on: one of {', '.join(_LOG_LEVELS)}",
    )


def _add_removal(commands: Commands) -> None:
    rm = _client_command(
        commands, "rm", "remove ended jobs with their items, logs and requests"
    )
    rm.add_argument(
        "jobs", nargs="+", metavar="JOB", help="a job's or cancelled schedule's id"
    )
    prune = _client_command(
        commands, "prune", "remove the oldest ended jobs, beyond what is to be kept"
    )
    prune.description = (
        "Remove ended jobs, the oldest first, until the rest is within all limits "
        "given; without one those of the master's conf file count."
    )
    _add_keep(prune)
    crawls = _command(
        commands, "crawls", "list what `crawl` keeps, or remove finished crawls"
    )
    crawls.add_argument(
        "action",
        nargs="?",
        choices=("rm", "prune"),
        help="rm ID...: remove these; prune: remove the oldest finished ones; "
        "default: list them all",
    )
    crawls.add_argument("ids", nargs="*", metavar="ID", help="a crawl of the list")
    _add_keep(crawls)
    _add_json(crawls)
    _add_state(crawls)
    _add_conf(crawls)


def _add_keep(parser: Parser) -> None:
    parser.add_argument(
        "--keep-jobs", type=natural, metavar="N", help="keep the latest N; 0: none"
    )
    parser.add_argument(
        "--keep-days", type=days, metavar="DAYS", help="keep what ended since then"
    )
    parser.add_argument(
        "--keep-bytes",
        type=size,
        metavar="SIZE",
        help="keep so much, as 500M or 10G, and the latest in any case",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell what would be removed"
    )


def _add_fleet(commands: Commands) -> None:
    status = _client_command(commands, "status", "show workers, jobs and rates")
    group = status.add_mutually_exclusive_group()
    group.add_argument(
        "--watch", action="store_true", help="show it again each second, until Ctrl-C"
    )
    _add_json(group)
    status.add_argument(
        "--at",
        metavar="HOST:PORT",
        help="ask the worker that listens there (default: ask the master)",
    )
    workers = _client_command(commands, "workers", "list the workers")
    _add_json(workers)
    drain = _client_command(
        commands, "drain", "let a worker finish what it has started, and leave"
    )
    drain.add_argument("workers", nargs="+", metavar="WORKER", help="a worker's name")


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: JSON")


def _check_submit(parser: Parser, options: argparse.Namespace) -> None:
    _check_feeds(parser, options)
    if options.file is None and options.spider is None:
        parser.error("name a SPIDER, or a file of jobs with --file FILE")
    if options.file is not None:
        flags = [
            flag
            for flag, value in (
                ("SPIDER", options.spider),
                ("--project", options.project),
                ("-a", options.args),
                ("-s", options.settings),
                ("--url", options.urls),
                ("-p", options.parallelism != 1),
                ("--priority", options.priority),
                ("--retries", options.retries),
                ("--every", options.every),
                ("--name", options.name),
                ("-o", options.append_to or options.overwrite),
            )
            if value
        ]
        if flags:
            parser.error(
                f"--file cannot be combined with {', '.join(flags)}: the file has it"
            )
    if options.every and (options.wait or options.append_to or options.overwrite):
        parser.error(
            "--every cannot be combined with --wait, -o or -O: a schedule does not end"
        )
    if (options.append_to or options.overwrite) and not options.wait:
        parser.error("-o and -O need --wait: this command writes the file")


def _check_feeds(parser: Parser, options: argparse.Namespace) -> None:
    if options.append_to and options.overwrite:
        parser.error("use either -o (append) or -O (overwrite), not both")
