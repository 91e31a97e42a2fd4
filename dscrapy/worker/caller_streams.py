"""What the processes of ``crawl`` get from the command itself, beside the job.

The worker is a part of the command, so the caller's folder and stdin are at hand. They
are not part of the job: a run that goes on has its own log, profile and folder.
"""

import os
import stat
from pathlib import Path
from typing import Literal

import attrs

from dscrapy import messages as m

# The file that keeps the caller's stdin, and its name until stdin has ended.
STDIN_NAME = "stdin"
STDIN_PART_NAME = "stdin.part"
_FIRST_ONLY = "-p 1 (the default) gives it to the spider"


@attrs.frozen(kw_only=True)
class ProcessInputs:
    """What one process gets; ``stdin`` is our own descriptor, or a file to open."""

    local: m.Local | None
    stdin: int | Path
    no_stdin: str = ""


@attrs.define(kw_only=True)
class Caller:
    """The caller of ``crawl``; it gives each process its inputs.

    ``folder`` is where the command was called, ``settings`` are those of this run alone
    (LOG_*, for one). The folder ``keep`` keeps stdin; ``stdin`` is the caller's, if
    processes may read it. With ``stdin_is_left`` there is one that they may not read.
    """

    folder: Path
    settings: dict[str, str]
    profile: str
    keep: Path
    stdin: int | None
    stdin_is_left: bool = False
    _started: int = 0

    def inputs_for(self, role: Literal["crawl", "export"]) -> ProcessInputs:
        """Return what the next process gets."""
        self._started += 1
        local = m.Local(settings=self._settings(), profile=self._profile(role))
        kept = kept_stdin(self.keep)
        if kept is not None:
            is_whole = kept.name == STDIN_NAME
            # A process that writes feeds imports the project once more, which may
            # read stdin again from its beginning.
            if is_whole or self.stdin is None or role == "export":
                return ProcessInputs(local=local, stdin=kept)
        if self.stdin is None or role != "crawl":
            reason = _FIRST_ONLY if self.stdin_is_left and role == "crawl" else ""
            return ProcessInputs(local=local, stdin=Path(os.devnull), no_stdin=reason)
        local = m.Local(
            settings=local.settings,
            profile=local.profile,
            stdin=os.fsencode(self.keep / STDIN_NAME),
            stdin_at=_place_in(self.stdin),
        )
        return ProcessInputs(local=local, stdin=self.stdin)

    def _settings(self) -> dict[str, str]:
        # Only the first process of a run may begin the log anew.
        return self.settings if self._started == 1 else {**self.settings, **_APPEND}

    def _profile(self, role: Literal["crawl", "export"]) -> bytes:
        if not self.profile or role != "crawl":
            return b""
        number = f".{self._started}" if self._started > 1 else ""
        return os.fsencode(self.profile + number)


def kept_stdin(folder: Path) -> Path | None:
    """Return the file with what is kept of stdin in this folder, if there is any."""
    for name in (STDIN_NAME, STDIN_PART_NAME):
        if (folder / name).exists():
            return folder / name
    return None


def stdin_of_caller() -> int | None:
    """Return the descriptor of our stdin if something may come from it: a pipe, a
    socket or a file that is not at its end; not from a terminal."""
    try:
        status = os.fstat(0)
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode):
        return 0 if _place_in(0) < status.st_size else None
    return 0 if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode) else None


def _place_in(fd: int) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return 0
    return os.lseek(fd, 0, os.SEEK_CUR)


_APPEND = {"LOG_FILE_APPEND": "True"}
