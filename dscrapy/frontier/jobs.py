"""What the master remembers of jobs, crawl processes and schedules.

Jobs that have not begun are many, so a job keeps only what it needs to be found and
assigned; the rest (``Course``) is made when its first process starts.
"""

from typing import Literal

import attrs

from dscrapy.model import FINAL_STATES, JobSpec, JobState

Status = Literal["ready", "running", "succeeded", "failed", "cancelled"]


@attrs.define(kw_only=True)
class Course:
    """What a job has been through since it first started or was changed.

    ``request`` is the run's request, a new one for each run that follows a failed
    or finished one. ``items_bytes`` and ``tagged_bytes`` are the lengths of the
    job's derived files. ``stats`` is a JSON object by operation.
    """

    request: int = 1
    process: int | None = None
    processes_count: int = 0
    deaths: int = 0
    digest: str = ""
    items: int = 0
    items_bytes: int = 0
    tagged_bytes: int = 0
    pages: int = 0
    done: bool = False
    cancelling: bool = False
    reason: str = ""
    traceback: str = ""
    stats: bytes = b"{}"
    worker: str = ""
    started_at: float | None = None
    finished_at: float | None = None


@attrs.define(kw_only=True)
class Job:
    """A job; ``spec`` is its ``JobSpec`` as JSON, decoded only when needed."""

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
    course: Course | None = None

    @property
    def state(self) -> JobState:
        """What people see: a paused job that has not ended is ``paused``."""
        if self.paused and not self.is_final:
            return "paused"
        return self.status

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATES

    @property
    def is_assignable(self) -> bool:
        """Whether the job may be given to a worker now."""
        return self.status == "ready" and not self.paused and not self.has_process

    @property
    def has_process(self) -> bool:
        """Whether a crawl process of the job is not known to be gone."""
        return self.course is not None and self.course.process is not None

    def begin(self) -> Course:
        """Return the job's course, which begins with the first call."""
        if self.course is None:
            self.course = Course()
        return self.course


@attrs.define(kw_only=True)
class Process:
    """A crawl process that the master counts on.

    ``parts`` of its commit are stored; they fill ``spool_bytes`` of lines and
    ``spool_tagged_bytes`` of tagged forms, holding ``spool_items`` items.
    """

    number: int
    job: str
    worker: str
    request: int
    parts: int = 0
    spool_items: int = 0
    spool_bytes: int = 0
    spool_tagged_bytes: int = 0


@attrs.define(kw_only=True)
class Schedule:
    """Makes a job every ``every_s`` seconds, never two at a time."""

    id: str
    spec: bytes
    every_s: float
    next_at: float
    runs: int = 0
    job: str | None = None
    cancelled: bool = False

    def is_due(self, wall: float) -> bool:
        """Whether its time has come; a clock set back does not hold it up."""
        return wall >= self.next_at or self.next_at - wall > self.every_s

    def next_after(self, wall: float) -> float:
        """Return when the run after one at ``wall`` is due.

        Runs that were missed collapse into the one that starts now.
        """
        late = wall - self.next_at
        if late < 0:
            return wall + self.every_s
        return self.next_at + (late // self.every_s + 1) * self.every_s


def project_label(spec: JobSpec) -> str:
    """Return what people call the job's project: its name or its folder."""
    return spec.project or spec.project_dir
