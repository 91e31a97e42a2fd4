"""What ``crawl`` takes from whoever calls it: folder, variables, stdin, log options.

Variables that choose the project's settings travel in the job. The rest is for one run
of the command and does not make it another crawl.
"""

import os
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from dscrapy.cli.local.crawl_state import Crawl
from dscrapy.cli.parser import PROGRAM
from dscrapy.conf.config import expanded
from dscrapy.errors import UserError
from dscrapy.worker.caller_streams import (
    STDIN_NAME,
    STDIN_PART_NAME,
    Caller,
    stdin_of_caller,
)

LOG_PREFIX = "LOG_"
# Field of a job -> the variable that Scrapy reads.
VARIABLES = {
    "scrapy_project": "SCRAPY_PROJECT",
    "settings_module": "SCRAPY_SETTINGS_MODULE",
}


# As in Scrapy: -o and -O take the place of what the project's settings name.
NO_FEEDS = {"FEEDS": "{}"}


def chosen_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a job that say which settings these variables choose."""
    return {field: environ.get(name, "") for field, name in VARIABLES.items()}


def run_settings(options: Namespace) -> dict[str, str]:
    """Return the settings of this run alone, as the command line of ``scrapy`` gives
    them: LOG_*, and no ``FEEDS`` where files are named by -o or -O."""
    settings = {
        name: value
        for name, value in dict(options.settings).items()
        if name.startswith(LOG_PREFIX)
    }
    if options.logfile is not None:
        settings |= {"LOG_ENABLED": "True", "LOG_FILE": options.logfile}
    if options.loglevel is not None:
        settings |= {"LOG_ENABLED": "True", "LOG_LEVEL": options.loglevel}
    if options.nolog:
        settings |= {"LOG_ENABLED": "False"}
    if options.append_to or options.overwrite:
        settings |= NO_FEEDS
    return settings


def other_settings(options: Namespace) -> dict[str, str]:
    """Return the settings that distinguish this crawl from others."""
    return {
        name: value
        for name, value in dict(options.settings).items()
        if not name.startswith(LOG_PREFIX)
    }


def surroundings(
    folder: Path, project: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return what else makes a crawl another one, where it is not as usual: the
    folder it is called in, whose files it may read, and what chooses its settings."""
    around = {}
    if folder != project:
        around["folder"] = shown(str(folder))
    for name in VARIABLES.values():
        if environ.get(name):
            around[name] = environ[name]
    return around


def check_files(options: Namespace) -> None:
    """Write the process id where that is asked for; raise ``UserError`` where a file
    cannot be written, before anything starts."""
    for name, content in (
        (options.pidfile, f"{os.getpid()}{os.linesep}"),
        (options.logfile, None),
        (options.profile, None),
    ):
        if not name:
            continue
        try:
            if content is not None:
                Path(name).write_text(content, encoding="utf-8")
                continue
            # What it is to be opened for, without a change to what is there.
            is_new = not os.path.lexists(name)
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666))
            if is_new:
                os.unlink(name)
        except OSError as error:
            raise UserError(f"cannot write {name}: {error.strerror}") from None


def make_caller(options: Namespace, crawl: Crawl) -> tuple[Caller, str]:
    """Return what this run's processes get, and a line for people (may be empty).

    The crawl's folder holds nothing of an older crawl by now.
    """
    stdin = stdin_of_caller()
    kept, part = (crawl.folder / name for name in (STDIN_NAME, STDIN_PART_NAME))
    is_single = options.parallelism == 1
    note = ""
    if kept.exists():
        if stdin is not None:
            note = f"stdin is what the crawl began with ({kept}); --fresh reads yours"
    elif part.exists() and stdin is None:
        note = f"stdin is what had come of it before ({part}); its end had not"
    elif is_single:
        # The same command again: what it reads begins anew.
        part.unlink(missing_ok=True)
    caller = Caller(
        folder=Path.cwd(),
        settings=run_settings(options),
        profile=os.path.abspath(options.profile) if options.profile else "",
        keep=crawl.folder,
        stdin=stdin if is_single else None,
        stdin_is_left=stdin is not None and not is_single,
    )
    return caller, note


def forget_stdin(crawl: Crawl) -> None:
    """Remove what was kept of stdin: the crawl has ended."""
    for name in (STDIN_NAME, STDIN_PART_NAME):
        (crawl.folder / name).unlink(missing_ok=True)


def command_of(options: Namespace) -> str:
    """Return the command that goes on with this crawl, for a shell."""
    words = [PROGRAM, "crawl", options.spider]
    for flag, pairs in (("-a", options.args), ("-s", options.settings)):
        for name, value in pairs:
            words += [flag, f"{name}={value}"]
    for flag, names in (("-o", options.append_to), ("-O", options.overwrite)):
        for name in names:
            words += [flag, name]
    if options.parallelism != 1:
        words += ["-p", str(options.parallelism)]
    for flag, folder in (("--state", options.state), ("--conf", options.conf)):
        if folder is not None:
            words += [flag, str(expanded(folder))]
    return shown(shlex.join(words))


def shown(text: str) -> str:
    """Return what came from the system as text that a record can hold."""
    return os.fsencode(text).decode(errors="replace")
