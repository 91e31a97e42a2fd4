"""Events of the journal: replaying them gives the state again."""

from typing import Literal

import msgspec

from dscrapy.messages import CommitFields, PartFields
from dscrapy.model import JobSpec, Outcome


class Fact(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """Settings common to records."""


class MasterStarted(Fact, tag="master_started", kw_only=True, frozen=True):
    """A master took over the state; its epoch is one more than the last."""

    epoch: int
    at: float


class JobAdded(Fact, tag="job_added", kw_only=True, frozen=True, omit_defaults=True):
    """A job is ready. A schedule's run names it and says when the next is due."""

    id: str
    spec: JobSpec
    at: float
    schedule: str | None = None
    next_at: float = 0.0


class ScheduleAdded(Fact, tag="schedule_added", kw_only=True, frozen=True):
    """A schedule whose first run is due at once."""

    id: str
    spec: JobSpec
    every_s: float
    at: float


class ScheduleCancelled(Fact, tag="schedule_cancelled", kw_only=True, frozen=True):
    """The schedule makes no further run; a run under way goes on."""

    id: str


class SchedulePaused(Fact, tag="schedule_paused", kw_only=True, frozen=True):
    """The schedule pauses (``on``): it makes no run; or it makes runs again."""

    id: str
    on: bool


class ProcessStarted(
    Fact, tag="process_started", kw_only=True, frozen=True, omit_defaults=True
):
    """A worker was told to start a process for the job.

    ``instance`` is that of the worker's present life: nobody else has the process.
    """

    job: str
    process: int
    worker: str
    instance: str = ""
    role: Literal["crawl", "export"]
    at: float


class CrawlOpened(
    Fact, tag="crawl_opened", kw_only=True, frozen=True, omit_defaults=True
):
    """The job's first crawl process is open: its spans of time begin.

    ``has_feeds``: the project asks for FEEDS; ``has_once``: it has what is called once
    in a job; ``own_lines`` is as in ``messages.Opened``. Journalled again where a retry
    finds one of these changed.
    """

    job: str
    at: float
    has_feeds: bool = False
    has_once: bool = False
    own_lines: bool = False


class JobRan(Fact, tag="job_ran", kw_only=True, frozen=True):
    """The job has run for so long, in seconds of run clocks.

    Journalled now and then, and only for jobs with a time limit. The period in which an
    item has to come began at second ``period_at``, when there were ``period_items``.
    """

    job: str
    ran_s: float
    period_at: float
    period_items: int


class CodeSeen(Fact, tag="code_seen", kw_only=True, frozen=True):
    """The digest of the project's code that this job runs."""

    job: str
    digest: str


class _Part(Fact, PartFields, kw_only=True, frozen=True, omit_defaults=True):
    """A part of a commit that is not the last.

    ``children`` leaves out those that were seen already; ``filtered`` counts them.
    """

    job: str
    process: int
    part: int
    filtered: int


class PartStored(
    _Part, tag="part_stored", kw_only=True, frozen=True, omit_defaults=True
):
    """A part without effect until ``Published``."""


class PartTaken(_Part, tag="part_taken", kw_only=True, frozen=True, omit_defaults=True):
    """A part of a page whose requests have effect at once; all else in it has none
    until ``Published``.

    ``children`` and ``filtered`` leave out those that an earlier run of the page has
    given; ``digests`` has them, too.
    """


class Published(
    Fact,
    CommitFields,
    tag="published",
    kw_only=True,
    frozen=True,
    omit_defaults=True,
):
    """A commit has effect: its stored parts and what stands here, all at once.

    The request, if any, is done. ``children`` and ``filtered`` are as in
    ``PartTaken``. ``process`` may be one that was given up.
    """

    job: str
    process: int
    filtered: int = 0


class FeedsBegun(Fact, tag="feeds_begun", kw_only=True, frozen=True):
    """Lengths (bytes) of some of the job's feeds before anything is written to them;
    -1 where there is no file."""

    job: str
    lengths: dict[str, int]


class Closes(Fact, tag="closes", kw_only=True, frozen=True, omit_defaults=True):
    """The job's spider closes for this reason, in all its processes.

    Of several such events the first reason and the first failure count. The job's end
    is decided when all processes have closed. ``has_feeds``: there are feeds to write
    then. ``of`` says what failed after the crawl: "feeds" could not be written, or what
    is called once in a job, at its "end", could not be called.
    """

    job: str
    reason: str
    failure: Outcome | None
    has_feeds: bool
    of: Literal["", "feeds", "end"] = ""


class Concludes(Fact, tag="concludes", kw_only=True, frozen=True):
    """The process is told to end the job: it is the last one."""

    job: str
    process: int


class ProcessEnded(
    Fact, tag="process_ended", kw_only=True, frozen=True, omit_defaults=True
):
    """A process is gone; its leases and unpublished parts are void.

    ``counted``: its death is the job's own doing. ``blamed`` are the requests that may
    have caused it, ``alone`` if no other was under way; ``halved`` are suspects that it
    tried together. ``end_failed``: it was to end the job, and died before it did.
    ``text`` is for people.
    """

    job: str
    process: int
    how: Literal["exited", "refused", "other_code", "failed", "lost"]
    counted: bool
    text: str
    at: float
    blamed: tuple[int, ...] = ()
    alone: bool = False
    halved: tuple[int, ...] = ()
    end_failed: bool = False


class RequestPoisoned(Fact, tag="request_poisoned", kw_only=True, frozen=True):
    """An open request is set aside: it is not leased any more.

    ``url`` and ``text`` (why) are for people.
    """

    job: str
    request: int
    url: str
    text: str


class RequestFailed(Fact, tag="request_failed", kw_only=True, frozen=True):
    """An open request is done without having run: no process of its job can read it.

    ``text`` (why) is for people.
    """

    job: str
    request: int
    text: str


class JobEnded(Fact, tag="job_ended", kw_only=True, frozen=True, omit_defaults=True):
    """The job is in a final state. ``came_to_end``: see ``endings``."""

    job: str
    state: Literal["succeeded", "failed", "cancelled"]
    reason: str
    traceback: str
    at: float
    came_to_end: bool = False


class JobAgain(Fact, tag="job_again", kw_only=True, frozen=True):
    """The job is ready again and goes on with its frontier.

    ``fresh``: with an empty frontier and empty items. ``automatic``: costs one of
    its retries.
    """

    job: str
    fresh: bool
    automatic: bool
    reason: str
    at: float


class JobPaused(Fact, tag="job_paused", kw_only=True, frozen=True, omit_defaults=True):
    """The job is paused (``on``) or goes on; ``at`` is 0 where that is not known."""

    job: str
    on: bool
    at: float = 0.0


class ParallelismSet(Fact, tag="parallelism_set", kw_only=True, frozen=True):
    """The job may have ``count`` processes; 0 means as many as there are slots."""

    job: str
    count: int


class CancelAsked(Fact, tag="cancel_asked", kw_only=True, frozen=True):
    """The job is to be cancelled; its processes have been told to stop or will be."""

    job: str


class JobRemoved(Fact, tag="job_removed", kw_only=True, frozen=True):
    """An ended job is removed, with its files: nothing is known of it any more."""

    job: str


class ScheduleRemoved(Fact, tag="schedule_removed", kw_only=True, frozen=True):
    """A cancelled schedule is removed: nothing is known of it any more."""

    id: str


Record = (
    MasterStarted
    | JobAdded
    | ScheduleAdded
    | ScheduleCancelled
    | SchedulePaused
    | ProcessStarted
    | CrawlOpened
    | JobRan
    | CodeSeen
    | PartStored
    | PartTaken
    | Published
    | FeedsBegun
    | Closes
    | Concludes
    | ProcessEnded
    | RequestPoisoned
    | RequestFailed
    | JobEnded
    | JobAgain
    | JobPaused
    | ParallelismSet
    | CancelAsked
    | JobRemoved
    | ScheduleRemoved
)
# A part of a commit that is not the last, and any part.
Part = PartStored | PartTaken
AnyPart = Part | Published
# What changes the life of one job.
JobChange = (
    CrawlOpened
    | CodeSeen
    | FeedsBegun
    | Closes
    | JobEnded
    | JobAgain
    | JobPaused
    | ParallelismSet
    | CancelAsked
)

_decoder = msgspec.json.Decoder(tuple[Record, ...])
_encoder = msgspec.json.Encoder()


def encode_group(records: list[Record]) -> bytes:
    """Return the payload of one journal record: a group of facts."""
    return _encoder.encode(records)


def decode_group(payload: bytes) -> tuple[Record, ...]:
    """Return the facts of one journal record; raises ``msgspec.DecodeError``."""
    return _decoder.decode(payload)
