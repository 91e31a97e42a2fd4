"""A memory cgroup with a limit, of version 2 or 1, made and removed by the run."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.chaos.table import Skipped

ROOT = Path("/sys/fs/cgroup")
# Processes that were killed leave it at once, but not within the same instant.
LEAVE_S = 10.0


@attrs.frozen
class Group:
    """A cgroup; ``counter`` is the file that counts the kernel's kills."""

    folder: Path
    version: str
    counter: str

    def add(self, pid: int) -> None:
        """Move a process into it; its children begin there."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """Return how many processes the kernel has killed for the limit."""
        lines = (self.folder / self.counter).read_text().splitlines()
        counts = dict(line.split() for line in lines)
        return int(counts["oom_kill"])


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Group]:
    """Make a cgroup with a limit; raises ``Skipped`` where that is not allowed."""
    group = _make(limit_bytes)
    try:
        # Before anything relies on it.
        group.kills()
        yield group
    finally:
        _remove(group.folder)


def _make(limit_bytes: int) -> Group:
    name = f"dscrapy-chaos-{os.getpid()}"
    if (ROOT / "cgroup.controllers").exists():
        group = Group(ROOT / name, "cgroup v2", "memory.events")
        limits = ("memory.max", "memory.swap.max")
    elif (ROOT / "memory").is_dir():
        group = Group(ROOT / "memory" / name, "cgroup v1", "memory.oom_control")
        limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    else:
        raise Skipped(f"no memory cgroups at {ROOT}")
    try:
        group.folder.mkdir()
    except OSError as error:
        raise Skipped(f"cannot make a memory cgroup: {error}") from error
    try:
        (group.folder / limits[0]).write_text(str(limit_bytes))
    except OSError as error:
        _remove(group.folder)
        raise Skipped(f"cannot limit a memory cgroup: {error}") from error
    # Without this, swap would be used up first; a machine without swap has no file.
    with contextlib.suppress(OSError):
        swap = limit_bytes if "memsw" in limits[1] else 0
        (group.folder / limits[1]).write_text(str(swap))
    return group


def _remove(folder: Path) -> None:
    """Remove it as soon as its last process is gone."""
    end = time.monotonic() + LEAVE_S
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
