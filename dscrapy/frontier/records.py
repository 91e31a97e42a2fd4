"""The facts that change the master's state.

``Record`` is what the journal holds: replaying it gives the state again. What is
volatile (who is connected, how far a crawl process has come) is applied by the
same function and never journalled.

``at`` is seconds since the epoch, for people. ``now`` is an instant of the
master's run clock (see ``frontier.clock``), which means nothing to another
process: it stands in volatile records only.
"""

from typing import Literal

import msgspec

from dscrapy.messages import Register
from dscrapy.model import JobSpec, Stats


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


class ProcessStarted(_Fact, tag="process_started", kw_only=True, frozen=True):
    """A crawl process of this worker was granted the job's request."""

    job: str
    process: int
    worker: str
    at: float


class CodeSeen(_Fact, tag="code_seen", kw_only=True, frozen=True):
    """The digest of the project's code that this job runs."""

    job: str
    digest: str


class PartStored(_Fact, tag="part_stored", kw_only=True, frozen=True):
    """A part of a commit, provisional: no effect until ``Published``."""

    job: str
    process: int
    part: int
    items: tuple[msgspec.Raw, ...]
    tagged: tuple[msgspec.Raw, ...]


class Published(_Fact, tag="published", kw_only=True, frozen=True):
    """The request is done: this process's parts and these items have effect."""

    job: str
    process: int
    request: int
    items: tuple[msgspec.Raw, ...]
    tagged: tuple[msgspec.Raw, ...]
    stats: Stats


class ProcessEnded(_Fact, tag="process_ended", kw_only=True, frozen=True):
    """A crawl process is gone; what it had not published is void.

    ``counted``: its death is the job's own doing. ``text`` is for people.
    """

    job: str
    process: int
    how: Literal["exited", "refused", "other_code", "failed", "lost"]
    counted: bool
    text: str
    at: float


class JobEnded(_Fact, tag="job_ended", kw_only=True, frozen=True):
    """The job is in a final state."""

    job: str
    state: Literal["succeeded", "failed", "cancelled"]
    reason: str
    traceback: str
    at: float


class JobAgain(_Fact, tag="job_again", kw_only=True, frozen=True):
    """The job is ready again, with a new request for its run.

    ``fresh``: with empty items. ``automatic``: costs one of its retries.
    """

    job: str
    fresh: bool
    automatic: bool
    reason: str
    at: float


class JobPaused(_Fact, tag="job_paused", kw_only=True, frozen=True):
    """The job is paused (``on``) or goes on."""

    job: str
    on: bool


class CancelAsked(_Fact, tag="cancel_asked", kw_only=True, frozen=True):
    """The job is to end; its process has been told or will be."""

    job: str


Record = (
    MasterStarted
    | JobAdded
    | ScheduleAdded
    | ScheduleCancelled
    | ProcessStarted
    | CodeSeen
    | PartStored
    | Published
    | ProcessEnded
    | JobEnded
    | JobAgain
    | JobPaused
    | CancelAsked
)


# ---- volatile: applied, never journalled ------------------------------------


class WorkerCame(_Fact, kw_only=True, frozen=True):
    """A worker registered on this session."""

    session: int
    register: Register
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


class WorkerDiffers(_Fact, kw_only=True, frozen=True):
    """The worker's copy of the job's project is another: it gets nothing of it."""

    name: str
    job: str


class ProgressSeen(_Fact, kw_only=True, frozen=True):
    """How far the job's process has come."""

    job: str
    pages: int
    items: int
    errors: int


class WaiterAdded(_Fact, kw_only=True, frozen=True):
    """A client's call waits for the end of the job."""

    session: int
    call: int
    job: str


class SessionGone(_Fact, kw_only=True, frozen=True):
    """Nobody is there any more to be answered."""

    session: int


Volatile = (
    WorkerCame
    | WorkerAway
    | WorkerGone
    | WorkerDrains
    | WorkerDiffers
    | ProgressSeen
    | WaiterAdded
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


def line_of(item: msgspec.Raw) -> bytes:
    """Return the item's line of ``items.jsonl``, without its end.

    An item is a JSON object as it stands, or a JSON string that holds the line.
    """
    raw = bytes(item)
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str).encode()
    return raw


def lines_of(items: tuple[msgspec.Raw, ...]) -> bytes:
    """Return the items as lines, each with its end."""
    return b"".join(line_of(item) + b"\n" for item in items)


def tagged_lines_of(
    items: tuple[msgspec.Raw, ...], tagged: tuple[msgspec.Raw, ...]
) -> bytes:
    """Return a line of tagged form for each item; ``null`` where it is the line."""
    if tagged:
        return b"".join(bytes(form) + b"\n" for form in tagged)
    return b"null\n" * len(items)
