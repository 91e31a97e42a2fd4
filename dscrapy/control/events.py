"""The events: facts that change the master's state.

The journal holds values of ``Record``: replaying them gives the state again. Values of
``Volatile`` (who is connected, how far a crawl process has come) are applied by the
same function and never journalled.

``at`` is seconds since the epoch: for people, and for waits between requests to a host.
``now`` is an instant of the master's run clock (see ``control.clock``), which means
nothing to another master: it stands in volatile records only.
"""

from typing import Literal

import msgspec

from dscrapy.messages import CommitFields, HeldProcess, Opened, PartFields, Register
from dscrapy.model import JobSpec, Outcome


class _Fact(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """Settings common to records."""


class MasterStarted(_Fact, tag="master_started", kw_only=True, frozen=True):
    """A master took over the state; its epoch is one more than the last."""

    epoch: int
    at: float


class JobAdded(_Fact, tag="job_added", kw_only=True, frozen=True, omit_defaults=True):
    """A job is ready. A schedule's run names it and says when the next is due."""

    id: str
    spec: JobSpec
    at: float
    schedule: str | None = None
    next_at: float = 0.0


class ScheduleAdded(_Fact, tag="schedule_added", kw_only=True, frozen=True):
    """A schedule whose first run is due at once."""

    id: str
    spec: JobSpec
    every_s: float
    at: float


class ScheduleCancelled(_Fact, tag="schedule_cancelled", kw_only=True, frozen=True):
    """The schedule makes no further run; a run under way goes on."""

    id: str


class SchedulePaused(_Fact, tag="schedule_paused", kw_only=True, frozen=True):
    """The schedule pauses (``on``): it makes no run; or it makes runs again."""

    id: str
    on: bool


class ProcessStarted(
    _Fact, tag="process_started", kw_only=True, frozen=True, omit_defaults=True
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
    _Fact, tag="crawl_opened", kw_only=True, frozen=True, omit_defaults=True
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


class JobRan(_Fact, tag="job_ran", kw_only=True, frozen=True):
    """The job has run for so long, in seconds of run clocks.

    Journalled now and then, and only for jobs with a time limit. The period in which an
    item has to come began at second ``period_at``, when there were ``period_items``.
    """

    job: str
    ran_s: float
    period_at: float
    period_items: int


class CodeSeen(_Fact, tag="code_seen", kw_only=True, frozen=True):
    """The digest of the project's code that this job runs."""

    job: str
    digest: str


class PartStored(
    _Fact,
    PartFields,
    tag="part_stored",
    kw_only=True,
    frozen=True,
    omit_defaults=True,
):
    """A part of a commit, provisional: no effect until ``Published``.

    ``children`` leaves out those that were seen already; ``filtered`` counts them.
    """

    job: str
    process: int
    part: int
    filtered: int


class Published(
    _Fact,
    CommitFields,
    tag="published",
    kw_only=True,
    frozen=True,
    omit_defaults=True,
):
    """A commit has effect: its stored parts and what stands here, all at once.

    The request, if any, is done. ``children`` and ``filtered`` are as in
    ``PartStored``. ``process`` may be one that was given up.
    """

    job: str
    process: int
    filtered: int = 0


class FeedsBegun(_Fact, tag="feeds_begun", kw_only=True, frozen=True):
    """Lengths (bytes) of some of the job's feeds before anything is written to them;
    -1 where there is no file."""

    job: str
    lengths: dict[str, int]


class Closes(_Fact, tag="closes", kw_only=True, frozen=True, omit_defaults=True):
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


class Concludes(_Fact, tag="concludes", kw_only=True, frozen=True):
    """The process is told to end the job: it is the last one."""

    job: str
    process: int


class ProcessEnded(
    _Fact, tag="process_ended", kw_only=True, frozen=True, omit_defaults=True
):
    """A process is gone; its leases and unpublished parts are void.

    ``counted``: its death is the job's own doing. ``blamed`` are the requests that it
    had under way then, ``alone`` if it held no other. ``end_failed``: it was to end the
    job, and died before it did. ``text`` is for people.
    """

    job: str
    process: int
    how: Literal["exited", "refused", "other_code", "failed", "lost"]
    counted: bool
    text: str
    at: float
    blamed: tuple[int, ...] = ()
    alone: bool = False
    end_failed: bool = False


class RequestPoisoned(_Fact, tag="request_poisoned", kw_only=True, frozen=True):
    """An open request is set aside: it is not leased any more.

    ``url`` and ``text`` (why) are for people.
    """

    job: str
    request: int
    url: str
    text: str


class RequestFailed(_Fact, tag="request_failed", kw_only=True, frozen=True):
    """An open request is done without having run: no process of its job can read it.

    ``text`` (why) is for people.
    """

    job: str
    request: int
    text: str


class JobEnded(_Fact, tag="job_ended", kw_only=True, frozen=True, omit_defaults=True):
    """The job is in a final state. ``came_to_end``: see ``endings``."""

    job: str
    state: Literal["succeeded", "failed", "cancelled"]
    reason: str
    traceback: str
    at: float
    came_to_end: bool = False


class JobAgain(_Fact, tag="job_again", kw_only=True, frozen=True):
    """The job is ready again and goes on with its frontier.

    ``fresh``: with an empty frontier and empty items. ``automatic``: costs one of
    its retries.
    """

    job: str
    fresh: bool
    automatic: bool
    reason: str
    at: float


class JobPaused(_Fact, tag="job_paused", kw_only=True, frozen=True, omit_defaults=True):
    """The job is paused (``on``) or goes on; ``at`` is 0 where that is not known."""

    job: str
    on: bool
    at: float = 0.0


class ParallelismSet(_Fact, tag="parallelism_set", kw_only=True, frozen=True):
    """The job may have ``count`` processes; 0 means as many as there are slots."""

    job: str
    count: int


class CancelAsked(_Fact, tag="cancel_asked", kw_only=True, frozen=True):
    """The job is to be cancelled; its processes have been told to stop or will be."""

    job: str


class JobRemoved(_Fact, tag="job_removed", kw_only=True, frozen=True):
    """An ended job is removed, with its files: nothing is known of it any more."""

    job: str


class ScheduleRemoved(_Fact, tag="schedule_removed", kw_only=True, frozen=True):
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


# ---- volatile: applied, never journalled ------------------------------------


class WorkerCame(_Fact, kw_only=True, frozen=True):
    """A worker registered on this session."""

    session: int
    register: Register
    now: float


class WorkersExpected(_Fact, kw_only=True, frozen=True):
    """After a replay: workers that hold processes are expected to come back."""

    now: float


class WorkerHeard(_Fact, kw_only=True, frozen=True):
    """The worker has given a sign of life."""

    name: str
    now: float


class WorkerAway(_Fact, kw_only=True, frozen=True):
    """The worker's connection ended; its grace begins."""

    name: str
    now: float


class WorkerGone(_Fact, kw_only=True, frozen=True):
    """The worker was reaped or logged out; it holds nothing any more."""

    name: str


class WorkerDrains(_Fact, kw_only=True, frozen=True):
    """The worker takes nothing new."""

    name: str


class WorkerBarred(_Fact, kw_only=True, frozen=True):
    """The worker gets no more processes of the job; with ``beside`` none while the job
    has another process. ``why`` is for people."""

    name: str
    job: str
    why: str
    beside: bool = False


class WorkerFailed(_Fact, kw_only=True, frozen=True):
    """A process of the job died on this worker before it was open."""

    name: str
    job: str


class WorkersForgiven(_Fact, kw_only=True, frozen=True):
    """All workers may have processes of the job again, whatever happened there."""

    job: str


class ProcessOpened(_Fact, kw_only=True, frozen=True):
    """The process can take leases."""

    opened: Opened


class ProcessCloses(_Fact, kw_only=True, frozen=True):
    """The process takes no more leases."""

    job: str
    process: int


class ProcessKnown(_Fact, kw_only=True, frozen=True):
    """A worker that came back, or meets a new master, reported what its process holds.

    Leases of the process that it does not hold are pending again.
    """

    held: HeldProcess
    at: float


class ProcessStops(_Fact, kw_only=True, frozen=True):
    """The process was told to stop; it takes no more leases."""

    job: str
    process: int


class ProcessIdles(_Fact, kw_only=True, frozen=True):
    """The process has had no lease since this instant; None: it has one."""

    job: str
    process: int
    since: float | None


class ProcessIsolates(_Fact, kw_only=True, frozen=True):
    """The process has the suspects of its job, one at a time, and nothing else."""

    job: str
    process: int


class ProcessDismissed(_Fact, kw_only=True, frozen=True):
    """The process was told that its last commit is durable, so that it may end."""

    job: str
    process: int


class ItemsEndSent(_Fact, kw_only=True, frozen=True):
    """The export process was told that the crawl is over."""

    job: str
    process: int


class ProcessOrdered(_Fact, kw_only=True, frozen=True):
    """The process, which is ending, was told to retire or to conclude."""

    job: str
    process: int


class LeadGiven(_Fact, kw_only=True, frozen=True):
    """The process leads its job from now on."""

    job: str
    process: int


class StartMayGiven(_Fact, kw_only=True, frozen=True):
    """The leading process was told how many elements of ``start()`` it may commit."""

    job: str
    upto: int
    upto_free: int


class FinishSent(_Fact, kw_only=True, frozen=True):
    """The job's leading process was told ``Finish`` of this number."""

    job: str
    number: int


class TimeRuns(_Fact, kw_only=True, frozen=True):
    """The job's time runs since this instant, on from ``JobRan``; None: it stands."""

    job: str
    since: float | None


class LeasesWanted(_Fact, kw_only=True, frozen=True):
    """Up to ``count`` pending requests are leased to the process.

    Which requests follows from the state; the effects name them.
    """

    job: str
    process: int
    count: int
    at: float


class Released(_Fact, kw_only=True, frozen=True):
    """These leases of the process are pending again.

    ``unreadable`` says why the process cannot read the requests, if it cannot.
    """

    job: str
    process: int
    requests: tuple[int, ...]
    at: float
    unreadable: str = ""


class WaiterAdded(_Fact, kw_only=True, frozen=True):
    """A client's call waits for the end of the job."""

    session: int
    call: int
    job: str


class RemovalAsked(_Fact, kw_only=True, frozen=True):
    """A client's call waits until the job, which has ended, can be removed: until its
    last process is gone."""

    session: int
    call: int
    job: str


class LogsMeasured(_Fact, kw_only=True, frozen=True):
    """The logs of these ended jobs have so many bytes."""

    sizes: dict[str, int]


class SessionGone(_Fact, kw_only=True, frozen=True):
    """The session has ended: its calls cannot be answered any more."""

    session: int


# What changes a crawl under way, and nothing else.
CrawlChange = (
    ProcessOpened
    | ProcessCloses
    | ProcessKnown
    | ProcessStops
    | ProcessIdles
    | ProcessIsolates
    | ProcessDismissed
    | ItemsEndSent
    | ProcessOrdered
    | LeadGiven
    | StartMayGiven
    | FinishSent
    | TimeRuns
    | LeasesWanted
    | Released
)

Volatile = (
    WorkersExpected
    | WorkerCame
    | WorkerHeard
    | WorkerAway
    | WorkerGone
    | WorkerDrains
    | WorkerBarred
    | WorkerFailed
    | WorkersForgiven
    | CrawlChange
    | WaiterAdded
    | RemovalAsked
    | LogsMeasured
    | SessionGone
)

_decoder = msgspec.json.Decoder(tuple[Record, ...])
_encoder = msgspec.json.Encoder()


def encode_group(records: list[Record]) -> bytes:
    """Return the payload of one journal record: a group of facts."""
    return _encoder.encode(records)


def decode_group(payload: bytes) -> tuple[Record, ...]:
    """Return the facts of one journal record; raises ``msgspec.DecodeError``."""
    return _decoder.decode(payload)
