"""What the master remembers of jobs and schedules.

Jobs that have not begun are many, so such a job keeps only what it needs to be found
and assigned; its ``Course``, and a ``Crawl`` beside it, are made when its first process
starts. All of this module survives a restart; a crawl's volatile part does not.
"""

from bisect import bisect_left
from typing import Literal, assert_never

import attrs

from dscrapy.control import events as r
from dscrapy.control.state.closespider import Watch
from dscrapy.control.state.processes import Role
from dscrapy.endings import came_to_end
from dscrapy.messages import Batch
from dscrapy.model import FINAL_STATES, FeedFiles, JobSpec, JobState, Outcome

Status = Literal["ready", "running", "succeeded", "failed", "cancelled"]


@attrs.define(kw_only=True)
class Course:
    """What a job has been through since it first started or was changed.

    ``next_request`` is the number where its next frontier begins, so that no number is
    used twice. ``deaths`` counts deaths since the last commit that no request is blamed
    for, ``poisoned_streak`` requests set aside since the last page. ``items_bytes`` and
    ``tagged_bytes`` are the lengths of the job's derived files. ``start_done``:
    ``start()`` is exhausted, or raised ``start_failure``. ``opened``: the requests of
    handlers of ``spider_opened`` are committed. ``finish`` numbers the last idle unit.
    ``closing`` is the first finish reason once the spider closes in all processes,
    ``failure`` the first failure that belongs to the job, which may come later.
    ``own_lines``: see ``messages.Opened``. ``has_feeds``: the project asks for FEEDS;
    ``feeds`` are the files' lengths before the job wrote to them, ``batches`` the batch
    that each feed with batches is at, ``written`` what stands in files of feeds.
    ``export_deaths`` counts deaths of processes that write feeds, since the last batch
    that one of them delivered. ``feeds_done``: the feeds need not be written (any
    more); ``feeds_failure``: they could not be. ``has_once``: the project has something
    to call once in a job; ``conclusions`` counts processes told to call it,
    ``end_failures`` those that died before they had; ``concluded``: one has called it;
    ``end_failure``: none will try again. ``came_to_end``: see ``endings``. ``stats``
    are the final stats, a JSON object by operation; ``errors`` is counted from them as
    they grow, and is None only in a snapshot of a master that did not count errors.
    ``watch`` says for how long it has run.
    """

    processes_count: int = 0
    next_request: int = 1
    deaths: int = 0
    poisoned_streak: int = 0
    digest: str = ""
    items: int = 0
    items_bytes: int = 0
    tagged_bytes: int = 0
    pages: int = 0
    errors: int | None = None
    start_done: bool = False
    start_failure: Outcome | None = None
    opened: bool = False
    finish: int = 0
    cancelling: bool = False
    closing: str = ""
    failure: Outcome | None = None
    has_feeds: bool = False
    own_lines: bool = False
    feeds: dict[str, int] | None = None
    batches: tuple[Batch, ...] = ()
    written: tuple[FeedFiles, ...] = ()
    export_deaths: int = 0
    feeds_done: bool = True
    feeds_failure: Outcome | None = None
    has_once: bool = False
    conclusions: int = 0
    concluded: bool = False
    end_failures: int = 0
    end_failure: Outcome | None = None
    came_to_end: bool = False
    reason: str = ""
    traceback: str = ""
    stats: bytes = b"{}"
    worker: str = ""
    started_at: float | None = None
    opened_at: float | None = None
    finished_at: float | None = None
    watch: Watch = attrs.field(factory=Watch)

    @property
    def lengths(self) -> dict[str, int]:
        """Lengths of the files that people and export processes read."""
        return {"items": self.items_bytes, "tagged": self.tagged_bytes}

    def note(
        self,
        record: r.CrawlOpened | r.CodeSeen | r.FeedsBegun | r.Closes | r.CancelAsked,
    ) -> None:
        """Note a fact about the job's crawl."""
        match record:
            case r.CrawlOpened():
                self.opened_at = record.at
                self.has_feeds = record.has_feeds
                self.has_once = record.has_once
                self.own_lines = record.own_lines
            case r.CodeSeen():
                self.digest = record.digest
            case r.FeedsBegun():
                self.feeds = {**(self.feeds or {}), **record.lengths}
            case r.Closes():
                self._close(record)
            case r.CancelAsked():
                self.cancelling = True
            case _:
                assert_never(record)

    def _close(self, record: r.Closes) -> None:
        """Let the job close, or note a failure that comes to light while it closes."""
        if not self.closing:
            self.closing = record.reason
            self.export_deaths = 0
        if record.of == "feeds":
            self.feeds_failure = record.failure
            self.feeds_done = True
            return
        if record.of == "end":
            self.end_failure = record.failure
            return
        self.failure = self.failure or record.failure
        if record.has_feeds:
            self.has_feeds = True
            self.feeds_done = False

    @property
    def wants_another(self) -> bool:
        """Whether to start a process only to end the job, if it has no other."""
        is_due = self.closing and self.role == "crawl" and not self.cancelling
        is_done = self.concluded or self.end_failure is not None
        return bool(is_due and self.has_once and not is_done) and came_to_end(
            self.failure
        )

    def begin_again(self, reason: str) -> None:
        """Forget how the job ended; ``reason`` says why it goes on."""
        if self.start_failure is not None:
            self.start_done = False
            self.start_failure = None
        self.cancelling = False
        self.poisoned_streak = 0
        self.closing = ""
        self.failure = None
        self.feeds_done = True
        self.feeds_failure = self.end_failure = None
        self.concluded = False
        self.conclusions = self.end_failures = 0
        self.came_to_end = False
        self.deaths = self.export_deaths = 0
        self.reason = reason
        self.traceback = ""
        self.finished_at = None

    @property
    def role(self) -> Role:
        """What the job's next process is for, apart from exports beside its crawl."""
        return "export" if self.closing and not self.feeds_done else "crawl"


_NOT_BEGUN = Course(errors=0)


@attrs.define(kw_only=True)
class Job:
    """A job; ``spec`` is its ``JobSpec`` as JSON, decoded only when needed.

    ``processes`` counts its crawl processes that are not known to be gone, ``exports``
    such processes that write its feeds. ``paused_at`` is 0 where it is not known.
    """

    number: int
    id: str
    spec: bytes
    project: str
    spider: str
    name: str
    priority: int
    parallelism: int
    retries_left: int
    submitted_at: float
    schedule: str | None = None
    status: Status = "ready"
    paused: bool = False
    paused_at: float = 0.0
    processes: int = 0
    exports: int = 0
    course: Course | None = None

    @property
    def state(self) -> JobState:
        """The state that people see: a paused job that has not ended is ``paused``."""
        if self.paused and not self.is_final:
            return "paused"
        return self.status

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATES

    @property
    def has_processes(self) -> bool:
        """Whether a process of the job, of any role, is not known to be gone."""
        return bool(self.processes or self.exports)

    @property
    def is_assignable(self) -> bool:
        """Whether a first crawl process may be given to a worker now."""
        if self.is_final or self.paused or self.processes:
            return False
        course = self.course
        is_ending = course is not None and (course.closing or course.cancelling)
        return not is_ending or (course is not None and course.wants_another)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and all its processes are known to be gone."""
        return self.is_final and not self.has_processes

    @property
    def ended_at(self) -> float:
        """When the job ended, 0 while it has not."""
        return (self.course and self.course.finished_at) or 0.0

    def count_process(self, role: Role, by: int) -> None:
        """Count one process more or less (``by`` is 1 or -1)."""
        if role == "export":
            self.exports += by
        else:
            self.processes += by

    @property
    def is_crawling(self) -> bool:
        """Whether its processes may be given leases."""
        return (
            self.status == "running"
            and not self.paused
            and self.course is not None
            and not self.course.cancelling
            and not self.course.closing
        )

    @property
    def progress(self) -> Course:
        """The job's course, to be read; an empty one while the job has not begun."""
        return self.course or _NOT_BEGUN

    def begin(self) -> Course:
        """Return the job's course, to be changed; the first call makes it."""
        if self.course is None:
            self.course = Course(errors=0)
        return self.course


@attrs.define(kw_only=True)
class Schedule:
    """Makes a job every ``every_s`` seconds, never two at a time.

    Runs that were due while it was ``paused`` collapse into one, when it is resumed.
    """

    id: str
    spec: bytes
    every_s: float
    next_at: float
    runs: int = 0
    job: str | None = None
    cancelled: bool = False
    paused: bool = False

    def is_due(self, wall: float) -> bool:
        """Whether the next run is due; a clock that was set back does not delay it."""
        return wall >= self.next_at or self.next_at - wall > self.every_s

    def next_after(self, wall: float) -> float:
        """Return when the run after one at ``wall`` is due.

        Runs that were missed collapse into the one that starts now.
        """
        late = wall - self.next_at
        if late < 0:
            return wall + self.every_s
        return self.next_at + (late // self.every_s + 1) * self.every_s


def position_of(order: list[Job], number: int) -> int:
    """Return where the job of this number stands in ``order``, or would stand."""
    return bisect_left(order, number, key=lambda job: job.number)


def project_label(spec: JobSpec) -> str:
    """Return what people call the job's project: its name or its folder."""
    return spec.project or spec.project_dir
