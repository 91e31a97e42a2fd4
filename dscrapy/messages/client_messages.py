"""What clients ask, and what a master or worker answers them."""

from typing import Literal

import msgspec

from dscrapy.messages.base import Message
from dscrapy.model import (
    FeedFiles,
    JobSpec,
    JobView,
    PoisonedView,
    ScheduleView,
    Stats,
    Submission,
    Versions,
    WorkerView,
)

# ---- client to master: calls, each answered once ---------------------------


class Submit(Message, tag="submit", kw_only=True, frozen=True):
    """Submit jobs and schedules, all or nothing, in parts numbered from 0.

    Answered after every part: ``Accepted`` with the count so far; the answer to
    the part with ``last`` means that all are durable. Parts belong to the
    connection; when it ends before ``last``, nothing was submitted.
    """

    call: int
    part: int
    last: bool
    submissions: tuple[Submission, ...]


class GetStatus(Message, tag="get_status", kw_only=True, frozen=True):
    """Ask for counts and workers; answered by ``Status``."""

    call: int


class ListJobs(Message, tag="list_jobs", kw_only=True, frozen=True):
    """Ask for jobs in order of submission; answered by ``Jobs``.

    ``after`` is the ``next`` of the answer before; ``states`` empty means all.
    ``newest`` asks for the latest first.
    """

    call: int
    after: int | None = None
    limit: int = 1000
    states: tuple[str, ...] = ()
    newest: bool = False


class ShowJob(Message, tag="show_job", kw_only=True, frozen=True):
    """Ask for all that is known of a job or schedule; answered by ``Shown``."""

    call: int
    job: str


class WaitJob(Message, tag="wait_job", kw_only=True, frozen=True):
    """Wait for a job; answered by ``Shown`` once the job is in a final state."""

    call: int
    job: str


class ChangeJob(Message, tag="change_job", kw_only=True, frozen=True):
    """Change a job's life (or cancel a schedule); answered by ``Shown``.

    ``fresh`` belongs to ``retry``: run again with empty items; ``count`` to
    ``parallelism``: as many processes from now on.
    """

    call: int
    verb: Literal["cancel", "pause", "resume", "retry", "parallelism"]
    job: str
    fresh: bool = False
    count: int = 1


class Remove(Message, tag="remove", kw_only=True, frozen=True):
    """Remove an ended job with its files, or a cancelled schedule; answered by
    ``Accepted`` when it is removed."""

    call: int
    job: str


class Prune(Message, tag="prune", kw_only=True, frozen=True):
    """Remove the ended jobs beyond these limits, the oldest first; answered by
    ``Pruned``.

    None is no limit; without any limit the master's own limits count. With ``dry_run``
    nothing is removed.
    """

    call: int
    keep_jobs: int | None = None
    keep_days: float | None = None
    keep_bytes: int | None = None
    dry_run: bool = False


class DrainWorker(Message, tag="drain_worker", kw_only=True, frozen=True):
    """Let a worker take nothing new, finish and leave; answered by ``Accepted``."""

    call: int
    worker: str


class ReadFile(Message, tag="read_file", kw_only=True, frozen=True):
    """Read a job's file from a byte offset; answered by ``Chunk``.

    ``wait`` holds the answer until there are bytes after ``offset`` or the job
    has ended.
    """

    call: int
    job: str
    file: Literal["items", "tagged", "log"]
    offset: int
    limit: int
    wait: bool = False


class Ping(Message, tag="ping", kw_only=True, frozen=True):
    """Ask for a sign of life; answered by ``Accepted``."""

    call: int


# ---- master (or worker) to client: answers ----------------------------------


class Accepted(Message, tag="accepted", kw_only=True, frozen=True):
    """The call was carried out; ``count`` where the call counts something."""

    call: int
    count: int = 0


class Pruned(Message, tag="pruned", kw_only=True, frozen=True):
    """Answer to ``Prune``: the jobs that are removed, or would be, and the bytes of
    their files.

    ``left`` counts jobs that are beyond the limits, too, with ``left_bytes``: ask again
    to remove them.
    """

    call: int
    jobs: tuple[str, ...]
    bytes: int
    left: int
    left_bytes: int


class Status(Message, tag="status", kw_only=True, frozen=True):
    """Answer to ``GetStatus``; ``role`` says who answers.

    ``jobs`` counts jobs by state; ``running`` lists at most 100 of the running
    ones, ``failed`` the latest 5 that failed.
    """

    call: int
    role: Literal["master", "worker"]
    host: str
    port: int
    uptime_s: float
    epoch: int
    versions: Versions
    note: str
    jobs: dict[str, int]
    running: tuple[JobView, ...]
    failed: tuple[JobView, ...]
    schedules: tuple[ScheduleView, ...]
    workers: tuple[WorkerView, ...]


class Jobs(Message, tag="jobs", kw_only=True, frozen=True):
    """Answer to ``ListJobs``; ``next`` is None on the last page."""

    call: int
    jobs: tuple[JobView, ...]
    next: int | None


class Shown(Message, tag="shown", kw_only=True, frozen=True):
    """A job with its specification, or a schedule; the other field is None.

    ``poisoned`` are the first 100 of the job's, ``feeds`` what it has written of the
    100 latest of its project's ``FEEDS``. ``own_lines`` is as in ``Opened``.
    """

    call: int
    job: JobView | None
    schedule: ScheduleView | None
    spec: JobSpec
    digest: str = ""
    stats: Stats = msgspec.field(default_factory=dict)
    traceback: str = ""
    poisoned: tuple[PoisonedView, ...] = ()
    feeds: tuple[FeedFiles, ...] = ()
    own_lines: bool = False


class Chunk(Message, tag="chunk", kw_only=True, frozen=True):
    """Bytes of a job's file; ``end`` when the job has ended and no more follow."""

    call: int
    data: bytes
    end: bool


class Refused(Message, tag="refused", kw_only=True, frozen=True):
    """A call that was not carried out: fixed code, text for people.

    With ``call`` -1 it answers no call but ends the session.
    """

    call: int
    code: str
    text: str
