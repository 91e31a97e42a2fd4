"""The master's disk fills up while jobs run, again and again, and has room again.

The state folder is a small ext4 file system in a file, mounted through a loop device;
where that is not allowed, a small tmpfs. A *point* is: fill it up to some free bytes,
look, make room, look. ``status`` answers all the time, new jobs are refused while room
is short and only then, and what was accepted goes on and ends with all its items.
"""

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from dscrapy.client import Client
from dscrapy.errors import RefusedError
from tests.chaos.kills import MS, shuffled
from tests.chaos.rig import Rig, Work, conf, running_rig, say, until
from tests.chaos.table import Skipped, Wrong
from tests.equivalence.ours import submission

IMAGE_BYTES = 96 * 1024 * 1024
# Below this the master takes no new jobs; far below is where it cannot write.
FREE_BYTES_MIN = 2 * 1024 * 1024
POINTS = 32
# Bytes left free: none, a block, a few records, some commits, and room enough for
# accepted work but not for new jobs.
FREE_BYTES = (0, 0, 0, 4096, 8192, 20_000, 65_536, 1_000_000)
# Small segments and many snapshots, so that each of their writes meets a full disk.
CONF = {
    "disk_free_bytes_min": str(FREE_BYTES_MIN),
    "segment_bytes_max": "300000",
    "snapshot_after_bytes": "500000",
}
FULL_S = (0.3, 2.5)
ROOM_S = (0.2, 1.5)
WORKERS = ("w0", "w1")
JOBS_AT_A_TIME = 2
# Of the points, those at which the master is killed before there is room.
KILLED_SHARE = 0.2
WORKS = (
    Work("weighty", {"count": "300"}, MS),
    Work("wide", ours=MS),
    Work("many", ours=MS),
    Work("start_many", ours=MS),
    Work("pipes", ours=MS),
)
STATUS_LIMIT_S = 10.0
# What a file system keeps for itself is not had at once.
TRIES = 20


@attrs.define
class Filler:
    """A file that takes the room of a file system but for some bytes."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file; the master does not know it."""
        return self.folder / "filler"

    def fill(self, free_bytes: int) -> None:
        """Leave at most so many bytes free."""
        with self.path.open("ab") as file:
            for _ in range(TRIES):
                more = self.free() - free_bytes
                if more <= 0:
                    return
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), more)
                except OSError as error:
                    if error.errno != errno.ENOSPC or more < 4096:
                        return
                    self._write(file.fileno(), more // 2)
                file.seek(0, os.SEEK_END)

    def _write(self, file: int, count: int) -> None:
        with contextlib.suppress(OSError):
            os.write(file, bytes(count))

    def free(self) -> int:
        """Return the bytes that are free."""
        seen = os.statvfs(self.folder)
        return seen.f_bavail * seen.f_frsize

    def make_room(self) -> None:
        """Give all of it back."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, image: Path) -> Iterator[str]:
    """Mount a small file system there; tells its kind, or raises ``Skipped``."""
    kind, reasons = "", []
    for name, mount in (("ext4 in a loop device", _ext4), ("tmpfs", _tmpfs)):
        try:
            mount(folder, image)
        except (OSError, subprocess.CalledProcessError) as error:
            reasons.append(f"{name}: {getattr(error, 'stderr', '') or error}".strip())
            continue
        kind = name
        break
    if not kind:
        raise Skipped("; ".join(reasons))
    try:
        yield kind
    finally:
        _run("umount", str(folder))


def _ext4(folder: Path, image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(folder))


def _tmpfs(folder: Path, image: Path) -> None:
    del image
    size = f"size={IMAGE_BYTES}"
    _run("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder))


def _run(*words: str) -> None:
    path = shutil.which(words[0]) or shutil.which(words[0], path="/usr/sbin:/sbin")
    if path is None:
        raise FileNotFoundError(f"no `{words[0]}`")
    subprocess.run([path, *words[1:]], check=True, capture_output=True, text=True)


@attrs.define
class Points:
    """Tries one point after another, and counts."""

    rig: Rig
    filler: Filler
    tried: int = 0
    refused: int = 0
    written: int = 0
    killed: int = 0
    answers: int = 0

    async def run(self) -> None:
        """Try all points."""
        async with self.rig.client() as client:
            for _ in range(POINTS):
                await self._point(client)

    async def _point(self, client: Client) -> None:
        rng = self.rig.rng
        before = self._no_room()
        left = rng.choice(FREE_BYTES)
        self.filler.fill(left)
        try:
            await until(lambda: self._is_full(client, left), "disk full, told")
            await self._look(client, rng.uniform(*FULL_S), left)
            await self._refusal(client)
            is_killed = rng.random() < KILLED_SHARE
            if is_killed:
                assert self.rig.cluster.master is not None
                self.rig.cluster.kill(self.rig.cluster.master)
        finally:
            self.filler.make_room()
        if is_killed:
            self.killed += 1
            await self.rig.start_master()
        await until(lambda: self._has_room(client), "room again, told")
        self.tried += 1
        self.written += self._no_room() > before
        say(f"{self.tried:4} {left} bytes left{', killed' * is_killed}")
        await self._look(client, rng.uniform(*ROOM_S))

    def _no_room(self) -> int:
        return self.rig.cluster.log().count("no room for")

    async def _is_full(self, client: Client, left: int) -> bool:
        """Whether the master says so; it looks at its disk whenever it writes."""
        # It may have removed files of its own since the last time.
        self.filler.fill(left)
        return await self._note(client)

    async def _has_room(self, client: Client) -> bool:
        return not await self._note(client)

    async def _note(self, client: Client) -> bool:
        with trio.move_on_after(STATUS_LIMIT_S):
            status = await client.status()
            self.answers += 1
            return status.note.startswith("disk full")
        raise Wrong(f"no status within {STATUS_LIMIT_S:g} s")

    async def _look(
        self, client: Client, span_s: float, left: int | None = None
    ) -> None:
        """Ask for the status again and again; keep the disk full, if it is."""
        end = trio.current_time() + span_s
        while trio.current_time() < end:
            if left is not None:
                self.filler.fill(left)
            await self._note(client)
            await trio.sleep(0.1)

    async def _refusal(self, client: Client) -> None:
        """A new job is refused as long as the master says that its disk is full."""
        what = submission(
            self.rig.site, self.rig.folder, "wide", "refused", processes=1
        )
        try:
            await client.submit([what])
        except RefusedError as error:
            if error.code != "disk_full":
                raise
            self.refused += 1
        else:
            raise Wrong("a job was taken while the disk was full")


async def full_disk(folder: Path, seed: int, minutes: float) -> str:
    """Fill the master's disk at many points while jobs run."""
    del minutes
    state = folder / "state"
    state.mkdir()
    rng = random.Random(f"disk-{seed}")
    with small_disk(state, folder / "disk.img") as kind:
        async with running_rig(folder, rng, conf(CONF)) as rig:
            for work in WORKS:
                await rig.plain(work)
            await rig.start_master()
            for name in WORKERS:
                rig.start_worker(name)
            points = Points(rig, Filler(state))
            works = shuffled(rng, WORKS)
            async with trio.open_nursery() as around:
                for _ in range(JOBS_AT_A_TIME):
                    around.start_soon(rig.feed, works, lambda: points.tried >= POINTS)
                await points.run()
            return (
                f"{points.tried} disk-full points ({kind}, {IMAGE_BYTES >> 20} MiB), "
                f"in {points.written} a write of the master failed, in {points.killed} "
                f"it was killed; {points.refused} submits refused with disk_full, "
                f"{points.answers} status answers; {rig.counts}"
            )
