"""The commands that serve: ``master`` and ``worker``."""

import logging
import os
import secrets
import sys
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import trio

from dscrapy.conf.config import Config, expanded, load, override
from dscrapy.conf.job_file import FILE_BYTES_MAX, parse_job_file
from dscrapy.errors import ConfigError
from dscrapy.model import Submission


def master(options: Namespace) -> int:
    """Serve as the master until a signal comes."""
    from dscrapy.master.server import serve

    config = override(
        _load(options),
        "master",
        state=_path(options.state),
        host=options.host,
        port=options.port,
    )
    submissions: tuple[Submission, ...] = ()
    if options.jobs is not None:
        submissions = read_jobs(expanded(options.jobs), require_names=True)
    set_up_logging("master", options.loglevel)
    return trio.run(partial(serve, config, submissions=submissions))


def worker(options: Namespace) -> int:
    """Serve crawl processes to a master until a signal comes."""
    from dscrapy.worker.agent import serve

    config = override(
        _load(options),
        "worker",
        state=_path(options.state),
        master=options.master,
        host=options.host,
        port=options.port,
        slots=options.slots,
        name=options.name,
    )
    set_up_logging("worker", options.loglevel)
    return trio.run(partial(serve, config))


def set_up_logging(role: str, level: str | None) -> None:
    """Log to stderr, as Scrapy does; ``level`` defaults to INFO."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level or "INFO",
        format=f"%(asctime)s [{role}] %(levelname)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )


def read_jobs(
    path: Path | None, *, require_names: bool = False
) -> tuple[Submission, ...]:
    """Return the jobs of a file under new ids, None for those of stdin, which are
    JSON lines; raises ``ConfigError``."""
    name = path or Path("stdin.jsonl")
    try:
        with path.open("rb") if path else nullcontext(sys.stdin.buffer) as file:
            # One byte more than allowed shows that there is more.
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(name, "", f"cannot be read: {error.strerror}") from None
    return parse_job_file(name, data, new_id, require_names=require_names)


def new_id() -> str:
    """Return an id for a job: 16 hexadecimal digits, never the same again."""
    return secrets.token_hex(8)


def _load(options: Namespace) -> Config:
    return load(_path(options.conf), os.environ)


def _path(text: str | None) -> Path | None:
    return None if text is None else expanded(text)
