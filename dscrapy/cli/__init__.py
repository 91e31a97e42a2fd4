"""The command line: parses, runs one command, reports errors, sets the exit code.

Modules are imported by the command that needs them, so that a quick command stays
quick.
"""

import io
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence

from dscrapy.cli.parser import PROGRAM, parse
from dscrapy.cli.terminal.screen import discard_stdout, note, write_err
from dscrapy.conf.config import variables
from dscrapy.conf.variables import remarks
from dscrapy.errors import DscrapyError, LocalProtocolError, UserError
from dscrapy.text import clean


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see "Exit codes" in the README."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parse(argv)
    except SystemExit as end:
        # argparse has said it all.
        return end.code if isinstance(end.code, int) else 2
    try:
        code = _run(options)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - reported below, or raised again
        return _report(error, options)
    return code


def _run(options: Namespace) -> int:
    """Run the subcommand."""
    for line in remarks(os.environ, variables()):
        note(f"{PROGRAM}: {line}")
    match options.command:
        case "master":
            from dscrapy.cli import serve

            return serve.master(options)
        case "worker":
            from dscrapy.cli import serve

            return serve.worker(options)
        case "crawl":
            from dscrapy.cli.local import crawl_command

            return crawl_command.crawl(options)
        case "status":
            from dscrapy.cli import fleet

            return fleet.status(options)
        case "workers":
            from dscrapy.cli import fleet

            return fleet.workers(options)
        case "drain":
            from dscrapy.cli import fleet

            return fleet.drain(options)
        case "rm" | "prune" | "crawls":
            from dscrapy.cli import removal

            return getattr(removal, options.command)(options)  # type: ignore[no-any-return]  # the three take the options
    from dscrapy.cli import job_commands

    match options.command:
        case "submit":
            return job_commands.submit(options)
        case "jobs":
            return job_commands.jobs(options)
        case "show":
            return job_commands.show(options)
        case "wait":
            return job_commands.wait(options)
        case "cancel" | "pause" | "resume" | "retry":
            return job_commands.change(options)
        case "items":
            return job_commands.items(options)
        case "logs":
            return job_commands.logs(options)
    raise AssertionError(f"{options.command} has no code")


def _report(error: BaseException, options: Namespace) -> int:
    """Print what ended the command, and return the exit code."""
    causes = list(_leaves(error))
    for cause in causes:
        if isinstance(cause, SystemExit):
            raise cause
    for cause in causes:
        if isinstance(cause, KeyboardInterrupt):
            # Ctrl-C is how a person ends what would go on for ever.
            endless = ("watch", "follow")
            return 0 if any(getattr(options, name, False) for name in endless) else 1
    for cause in causes:
        if isinstance(cause, BrokenPipeError):
            # Whoever read our output has seen enough (``| head``): no failure.
            discard_stdout()
            return 0
    expected = [
        cause
        for cause in causes
        if isinstance(cause, DscrapyError) and not isinstance(cause, LocalProtocolError)
    ]
    if len(expected) < len(causes):
        traceback.print_exception(error)
        write_err(
            f"{PROGRAM}: this is a bug in dscrapy; please report it with the above\n"
        )
        return 1
    write_err(f"{PROGRAM}: {clean(' '.join(str(expected[0]).split()))}\n")
    return expected[0].exit_code if isinstance(expected[0], UserError) else 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside the groups that nurseries make."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
