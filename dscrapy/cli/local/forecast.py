"""Warnings about a project before its job runs in several processes.

The project is loaded in a process of its own: its modules may do anything when they
are imported, hang too. Whatever goes wrong there, the submission stands; the job's log
says the same.
"""

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from dscrapy.conf.config import Config
from dscrapy.model import JobSpec

# Importing Scrapy and a project takes a second or two, on a busy machine some more.
# What takes longer hangs, or is not worth a wait.
SCAN_S = 10.0
# Projects and spiders of one file of jobs that are looked at.
SCANS_MAX = 4
_COMMAND = (sys.executable, "-P", "-m", "dscrapy.crawl.project_checks.components")


async def forecast(
    config: Config, specs: Iterable[JobSpec], *, within_s: float = SCAN_S
) -> list[str]:
    """Return lines about what will not be the same in several processes.

    Only of jobs that may have several, and whose project is on this machine.
    """
    lines: dict[str, None] = {}
    with trio.move_on_after(within_s):
        for folder, spec in _jobs_to_scan(config, specs):
            lines.update(dict.fromkeys(await _scan(folder, spec)))
    return list(lines)


def _jobs_to_scan(
    config: Config, specs: Iterable[JobSpec]
) -> list[tuple[Path, JobSpec]]:
    scans: dict[bytes, tuple[Path, JobSpec]] = {}
    for spec in specs:
        if spec.parallelism == 1 or len(scans) >= SCANS_MAX:
            continue
        # Only these fields of a job decide on its components.
        reduced = msgspec.structs.replace(
            spec, urls=(), args={}, priority=0, retries=0, parallelism=0, name=""
        )
        folder = Path(spec.project_dir or config.projects_root / spec.project)
        if folder.is_dir():
            scans[msgspec.json.encode(reduced)] = (folder, reduced)
    return list(scans.values())


async def _scan(folder: Path, spec: JobSpec) -> list[str]:
    try:
        done = await trio.run_process(
            _COMMAND,
            stdin=msgspec.json.encode(spec),
            capture_stdout=True,
            check=False,
            cwd=folder,
            # What the project may start goes with it.
            start_new_session=True,
            deliver_cancel=_kill,
        )
        return msgspec.json.decode(done.stdout, type=list[str])
    except (OSError, msgspec.MsgspecError):
        # It cannot be started, or ended without a word.
        return []


async def _kill(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
