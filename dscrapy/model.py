"""Frozen values that every layer shares; data only, no behaviour of any layer.

Instants are seconds since the Unix epoch (``_at``, for people), durations are
seconds (``_s``). Bodies, which the master never looks into, are ``msgspec.Raw``: one
JSON value, kept byte for byte.
"""

import re
from typing import Literal

import msgspec

PROTOCOL_VERSIONS = (6,)

# A name becomes part of a path (a project under projects_root) or of a terminal
# line, so it is one plain component.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
# Ids are made by clients (so that a repeated submit is the same job) and name
# folders in the master's state: hexadecimal digits, for runs of a schedule
# followed by "-" and the number of the run.
ID_PATTERN = re.compile(r"[0-9a-f]{16}(-[0-9]{1,9})?\Z")

JobState = Literal["ready", "running", "paused", "succeeded", "failed", "cancelled"]
FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


class Value(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """Settings common to shared values: frozen, strict, named fields only."""


class JobSpec(Value, omit_defaults=True, kw_only=True, frozen=True):
    """What a user asks for: one run of a spider.

    ``project`` is a folder name under each worker's ``projects_root``; ``project_dir``
    an absolute folder for workers on the same machine; exactly one of them is set.
    ``spider`` is a spider's name or, with ``project_dir``, a file in it that ends in
    ``.py``. ``parallelism`` is a ceiling for crawl processes, 0 means as many as there
    are slots. ``retries`` counts automatic runs after a failure. ``scrapy_project`` and
    ``settings_module`` choose the project's settings as ``SCRAPY_PROJECT`` and
    ``SCRAPY_SETTINGS_MODULE`` do; where both are empty, the variables of whoever runs
    the job count.
    """

    project: str = ""
    project_dir: str = ""
    spider: str
    urls: tuple[str, ...] = ()
    args: dict[str, str] = {}
    settings: dict[str, str] = {}
    priority: int = 0
    retries: int = 0
    parallelism: int = 1
    name: str = ""
    scrapy_project: str = ""
    settings_module: str = ""


class Submission(Value, omit_defaults=True, kw_only=True, frozen=True):
    """A job, or with ``every_s`` a schedule, under the id its client made."""

    id: str
    spec: JobSpec
    every_s: float | None = None


class JobView(Value, kw_only=True, frozen=True):
    """What people and scripts see of a job; ``status --json`` prints it.

    ``pages``, ``items`` and ``errors`` count what is committed (``errors`` is None
    where a worker answers, which does not read stats); ``pending`` and
    ``leased`` requests, ``runs`` the processes that were started for it.
    ``processes`` crawl now. ``came_to_end``: it has ended, and its crawl did its work,
    so that older files of its items may be replaced.
    """

    id: str
    name: str
    project: str
    spider: str
    state: JobState
    reason: str
    priority: int
    parallelism: int
    pages: int
    items: int
    errors: int | None
    pending: int
    leased: int
    poisoned: int
    processes: int
    retries_left: int
    runs: int
    workers: tuple[str, ...]
    schedule: str | None
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    came_to_end: bool = False


class PoisonedView(Value, kw_only=True, frozen=True):
    """A request that was set aside, since it killed its processes."""

    request: int
    url: str
    reason: str


class FeedFiles(Value, omit_defaults=True, kw_only=True, frozen=True):
    """What a job has written of one feed of its project's ``FEEDS``, so far.

    ``feed`` is its key there. ``files`` have ``items`` in all; ``failed`` more files
    could not be stored. ``first`` and ``last`` say where the first and the last of all
    these go: a path of the machine that wrote it, or a URI. Passwords are left out.
    ``workers`` are the first ten workers that wrote files; the master fills them in.
    """

    feed: str
    first: str
    last: str
    files: int = 0
    items: int = 0
    failed: int = 0
    workers: tuple[str, ...] = ()


class ScheduleView(Value, kw_only=True, frozen=True):
    """What people see of a schedule; ``job`` is its latest run."""

    id: str
    name: str
    project: str
    spider: str
    every_s: float
    state: Literal["active", "paused", "cancelled"]
    runs: int
    job: str | None
    next_at: float | None


class WorkerView(Value, kw_only=True, frozen=True):
    """What people see of a worker.

    ``state`` is ``live``, ``silent`` (no word for two heartbeats), ``away``
    (connection broken, not reaped yet) or ``draining``.
    """

    name: str
    host: str
    port: int
    slots: int
    busy: int
    state: Literal["live", "silent", "away", "draining"]
    last_heartbeat_s: float
    versions: dict[str, str]
    note: str


class Versions(Value, kw_only=True, frozen=True):
    """Versions of what decides how a crawl behaves, for people."""

    dscrapy: str
    scrapy: str
    python: str


class Outcome(Value, omit_defaults=True, kw_only=True, frozen=True):
    """How a process's spider was closed, or why it never opened.

    ``finish_reason`` is Scrapy's. ``failure`` is a code of ``endings`` or empty,
    ``text`` one line for people, ``traceback`` what ``show`` prints.
    """

    finish_reason: str = ""
    failure: str = ""
    text: str = ""
    traceback: str = ""


class HostLimits(Value, kw_only=True, frozen=True):
    """What Scrapy's settings allow towards a host: ``delay_s`` between requests."""

    concurrency: int
    delay_s: float


class CloseLimits(Value, omit_defaults=True, kw_only=True, frozen=True):
    """``CLOSESPIDER_*`` of the project; 0 is no limit."""

    timeout_s: float = 0.0
    timeout_no_item_s: float = 0.0
    items: int = 0
    pages: int = 0
    pages_no_item: int = 0
    errors: int = 0


# Finish reasons of a process whose job goes on; a spider has none of these.
WORKER_DRAINS = "dscrapy_worker_drains"
JOB_PAUSES = "dscrapy_job_pauses"
PROCESS_IDLES = "dscrapy_process_idles"
SLOT_NEEDED = "dscrapy_slot_needed"
PROCESS_REASONS = frozenset({WORKER_DRAINS, JOB_PAUSES, PROCESS_IDLES, SLOT_NEEDED})

# Finish reason of a process that has written all feeds of its job.
FEEDS_WRITTEN = "feeds written"

# Stats by the operation that wrote them: "sum", "max", "min" with numbers alone, and
# "last", each with key -> JSON value (datetimes are tagged, see docs/protocol.md). In
# what a commit adds also "drop": keys that are removed, with null.
Stats = dict[str, dict[str, msgspec.Raw]]


def waiting_text(pages: int) -> str:
    """Return what people are told when all open pages wait and nothing else is left."""
    return (
        f"{pages} pages wait in callbacks or pipelines, nothing else is left to do. "
        "A pipeline that gathers the items of several pages needs these in one process "
        "(-p 1); a callback that waits for a page which was parsed before a kill needs "
        "a fresh start (retry --fresh, crawl --fresh)"
    )
