"""A worker and a master for one export process at a time, and what it leaves."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import attrs

from dscrapy import messages as m
from dscrapy.crawl.export.export_link import READ_BYTES
from dscrapy.model import FEEDS_WRITTEN, WORKER_DRAINS, JobSpec
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.worker.crawl_process import marks_file
from tests import builders as b
from tests.e2e.crawl_harness import (
    PROJECT,
    WAIT_S,
    child_environment,
)

JOB = b.job_id(7)
IDS: Any = {"job": JOB, "process": 5}
# What one answer holds of a file: its ends may be anywhere.
PIECE_BYTES = 100_003
DECODER: Decoder[Any] = Decoder(m.FromCrawl)


# ---- a worker and a master for exports -----------------------------------------------


@attrs.define(kw_only=True)
class Job:
    """A job as its master knows it: items, and what exports told of files and batches.

    ``arrives`` cuts the items: pieces come when the process waits for more, None for
    an order to stop then. Without it the crawl is over.
    """

    spec: JobSpec
    items: bytes
    tagged: bytes
    lengths: dict[str, int] = attrs.field(factory=dict)
    batches: tuple[m.Batch, ...] = ()
    arrives: list[int | None] = attrs.field(factory=list)
    asked: list[m.FromCrawl] = attrs.field(factory=list)
    came_to_end: bool = True
    told: list[m.Commit] = attrs.field(factory=list)
    closed: m.Commit | None = None
    there: int | None = None
    log: str = ""

    def answer(self, message: m.FromCrawl) -> list[m.Message]:
        """Do as the master; return its answers."""
        match message:
            case m.Feeds(lengths=lengths):
                for name, length in lengths.items():
                    self.lengths.setdefault(name, length)
                known = {name: self.lengths[name] for name in lengths}
                lengths = known or dict(self.lengths)
                return [m.FeedsSeen(**IDS, lengths=lengths, batches=self.batches)]
            case m.Read():
                return self._read(message)
            case m.Commits(commits=(commit,)):
                self.batches = commit.batches or self.batches
                for name in commit.delivered:
                    del self.lengths[name]
                seen = m.Seen(0, commit.unit, 0, "published")
                answer = m.CommitsSeen(**IDS, seen=(seen,))
                if commit.kind != "closed":
                    self.told.append(commit)
                    return [answer]
                self.closed = commit
                return [answer, m.Done(**IDS, stats=None)]
            case _:
                return []

    @property
    def end(self) -> m.ItemsEnd:
        """What is told when the crawl is over."""
        return m.ItemsEnd(
            **IDS,
            items=self.items.count(b"\n"),
            items_bytes=len(self.items),
            tagged_bytes=len(self.tagged),
        )

    @property
    def length(self) -> int:
        """How many bytes of items there are by now."""
        return len(b"".join(self.items.splitlines(keepends=True)[: self.there]))

    def _read(self, asked: m.Read) -> list[m.Message]:
        assert asked.limit == READ_BYTES
        whole = self.items if asked.file == "items" else self.tagged
        if self.there is not None:
            whole = b"".join(whole.splitlines(keepends=True)[: self.there])
        # Ends anywhere, as a chunk may.
        data = whole[asked.offset : asked.offset + PIECE_BYTES]
        if data:
            at = asked.offset
            return [m.ReadSeen(**IDS, file=asked.file, offset=at, data=data)]
        assert asked.wait
        if not self.arrives:
            return [self.end]
        count = self.arrives.pop(0)
        if count is None:
            return [m.Stop(**IDS, reason=WORKER_DRAINS)]
        self.there = count
        return self._read(asked)

    def export(self, folder: Path, dies: Callable[[m.FromCrawl], bool]) -> int | None:
        """Run an export process in the project's folder; return its exit code.

        It is killed, for None, at the message for which ``dies`` holds, unanswered.
        """
        ours, theirs = socket.socketpair()
        lifeline, held = os.pipe()
        marks = marks_file()
        words = [str(theirs.fileno()), str(lifeline), str(marks)]
        with ours, TemporaryFile() as output:
            ours.settimeout(WAIT_S)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dscrapy.crawl", *words],
                cwd=folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(), lifeline, marks),
                start_new_session=True,
            )
            theirs.close()
            os.close(lifeline)
            os.close(marks)
            try:
                is_killed = not self._serve(ours, dies)
                if is_killed:
                    process.kill()
                code = process.wait(WAIT_S)
            finally:
                process.kill()
                process.wait(WAIT_S)
                os.close(held)
                output.seek(0)
                self.log = output.read().decode()
        return None if is_killed else code

    def _serve(self, link: socket.socket, dies: Callable[[m.FromCrawl], bool]) -> bool:
        """Answer until the link ends; False at the message to die at."""

        def send(message: m.Message) -> None:
            link.sendall(encode_frame(encode(message)))

        came = self.came_to_end
        send(m.Run(**IDS, role="export", spec=self.spec, came_to_end=came))
        if self.there is None:
            # It neither needs its span nor heeds a stop.
            send(m.Valid(until=0.0))
            send(self.end)
            send(m.Stop(**IDS, reason="r"))
        send(m.Probe(number=1))
        frames = FrameReader()
        while data := link.recv(1 << 20):
            frames.feed(data)
            while (frame := frames.next_frame()) is not None:
                message = DECODER.decode(frame)
                self.asked.append(message)
                if dies(message):
                    return False
                for answer in self.answer(message):
                    send(answer)
        return True


def never(message: m.FromCrawl) -> bool:
    """Let the process live."""
    return False


def finish(job: Job, folder: Path = PROJECT) -> m.Commit:
    """Export to the end; return its last commit, which tells of no failure."""
    assert job.export(folder, never) == 0, job.log
    assert job.closed is not None, job.log
    assert job.closed.end is not None
    assert job.closed.end.finish_reason == FEEDS_WRITTEN, job.log
    assert job.closed.end.failure == ""
    assert job.closed.unit <= len(job.told) + 1
    return job.closed


# ---- jobs and files ------------------------------------------------------------------


Feeds = dict[str, dict[str, Any]]


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def written_of(job: Job) -> dict[str, tuple[int, int, int]]:
    """Return files, items and failed files of each feed, as the last commit has it."""
    assert job.closed is not None
    return {
        Path(one.feed).name: (one.files, one.items, one.failed)
        for one in job.closed.written
    }


def stats_of(*commits: m.Commit) -> dict[str, int]:
    """Return the stats of exports, about feeds."""
    counts: Counter[str] = Counter()
    for commit in commits:
        for name, count in commit.stats.get("sum", {}).items():
            counts[name] += json.loads(bytes(count))
    return dict(counts)


def is_at(job: Job, moment: int, message: m.FromCrawl) -> bool:
    """Whether this is the message of that number, signs of life apart."""
    return len([one for one in job.asked if not isinstance(one, m.Alive)]) == moment


def lines_of(count: int, size: int) -> bytes:
    """Return so many items of about so many bytes."""
    return b"".join(
        b'{"number": %d, "text": "%s"}\n' % (number, b"x" * size)
        for number in range(count)
    )


def job_of(items: bytes, feeds: Feeds, spider: str = "pages", **settings: str) -> Job:
    """Return a job of plain items that nobody has crawled."""
    spec = JobSpec(
        project_dir=str(PROJECT),
        spider=spider,
        args={"site": "http://127.0.0.1"},
        settings={"FEEDS": json.dumps(feeds), **settings},
    )
    return Job(spec=spec, items=items, tagged=b"null\n" * items.count(b"\n"))


def project_with(tmp_path: Path, name: str, code: str) -> Path:
    """Return a copy of the project with one more module."""
    folder = tmp_path / "project"
    for path in PROJECT.rglob("*"):
        if path.suffix in (".py", ".cfg"):
            copy = folder / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (folder / "testsite" / name).write_text(code)
    return folder
