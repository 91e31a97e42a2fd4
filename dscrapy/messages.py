"""Every message that crosses a connection, as values, with their fixed tags.

Two kinds of connection carry them: TCP between a client or a worker and the
master (after the handshake of ``proto.session``), and the socket pair between a
worker and its crawl process. The unions at the end say who may send what;
docs/protocol.md says when.

``call`` numbers a client's calls on one connection; the answer repeats it.
``process`` numbers crawl processes, never twice in the life of a master's state.
``request`` numbers the requests of a job, never twice; a job that runs in one
lease has one, ``RUN_REQUEST``.
"""

from typing import Literal

import msgspec

from dscrapy.model import (
    JobSpec,
    JobView,
    Outcome,
    ScheduleView,
    Stats,
    Submission,
    Versions,
    WorkerView,
)

# The request that stands for a whole run.
RUN_REQUEST = 1


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """Settings common to messages: frozen, strict, named fields only."""


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
    """Answered by ``Shown`` when the job is in a final state, however long."""

    call: int
    job: str


class ChangeJob(Message, tag="change_job", kw_only=True, frozen=True):
    """Change a job's life (or cancel a schedule); answered by ``Shown``.

    ``fresh`` belongs to ``retry``: run again with empty items.
    """

    call: int
    verb: Literal["cancel", "pause", "resume", "retry"]
    job: str
    fresh: bool = False


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
    """A job with its specification, or a schedule; the other field is None."""

    call: int
    job: JobView | None
    schedule: ScheduleView | None
    spec: JobSpec
    digest: str = ""
    stats: Stats = {}
    traceback: str = ""


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


# ---- worker to master -------------------------------------------------------


class Held(Message, kw_only=True, frozen=True):
    """A crawl process that a worker still has something to say about."""

    job: str
    process: int


class Register(Message, tag="register", kw_only=True, frozen=True):
    """First message of a worker's session; answered by ``Registered``.

    ``instance`` is drawn anew at each start of the worker; ``held`` lists its
    crawl processes that live or whose end the master has not acknowledged.
    """

    name: str
    instance: str
    host: str
    port: int
    slots: int
    draining: bool
    versions: Versions
    held: tuple[Held, ...]


class Heartbeat(Message, tag="heartbeat", kw_only=True, frozen=True):
    """Proof that the session lives; answered by ``HeartbeatSeen`` at once."""

    number: int


class Draining(Message, tag="draining", kw_only=True, frozen=True):
    """The worker takes nothing new from now on."""


class Leaving(Message, tag="leaving", kw_only=True, frozen=True):
    """Last message of a worker that logs out; it holds no process any more."""


class Started(Message, tag="started", kw_only=True, frozen=True):
    """A crawl process runs, from project code of this digest."""

    job: str
    process: int
    digest: str


class Progress(Message, tag="progress", kw_only=True, frozen=True):
    """What a crawl process has done so far; never journalled."""

    job: str
    process: int
    pages: int
    items: int
    errors: int
    in_flight: int


class Log(Message, tag="log", kw_only=True, frozen=True):
    """Bytes of a crawl process's log, cut at line ends where possible."""

    job: str
    process: int
    data: bytes


class Commit(Message, tag="commit", kw_only=True, frozen=True):
    """What a leased request gave, in parts numbered from 0.

    ``items`` are the lines of ``items.jsonl``: a JSON object as it stands, or a
    JSON string that holds the line where the line is no JSON (NaN). ``tagged``
    is empty, or as long as ``items`` with each item's tagged form, null where
    that is the line itself. Only the part with ``last`` carries ``outcome`` and
    ``stats``; before it nothing has effect. Answered by ``CommitSeen``.
    """

    job: str
    process: int
    request: int
    part: int
    last: bool
    items: tuple[msgspec.Raw, ...] = ()
    tagged: tuple[msgspec.Raw, ...] = ()
    outcome: Outcome | None = None
    stats: Stats = {}


class Ended(Message, tag="ended", kw_only=True, frozen=True):
    """A crawl process is gone, or was never started; answered by ``EndedSeen``.

    ``how``: ``exited`` (``status`` is the exit code, negative for a signal),
    ``refused`` (this worker cannot run it now: draining, or no room),
    ``other_code`` (its copy of the project differs, ``digest``), ``failed``
    (the job cannot run: ``outcome`` says why). ``counted`` when the death is the
    job's own doing: not a SIGKILL from outside.
    """

    job: str
    process: int
    how: Literal["exited", "refused", "other_code", "failed"]
    status: int = 0
    counted: bool = False
    text: str = ""
    digest: str = ""
    outcome: Outcome | None = None


# ---- master to worker -------------------------------------------------------


class Registered(Message, tag="registered", kw_only=True, frozen=True):
    """Answer to ``Register``: the session's epoch and the spans to keep.

    The worker kills the processes of ``drop`` at once: the master has given up
    on them. It then offers again what was not acknowledged.
    """

    epoch: int
    heartbeat_s: float
    die_after_s: float
    reconnect_grace_s: float
    drop: tuple[int, ...]


class HeartbeatSeen(Message, tag="heartbeat_seen", kw_only=True, frozen=True):
    """Answer to the heartbeat of this number."""

    number: int


class Start(Message, tag="start", kw_only=True, frozen=True):
    """Start a crawl process for a job.

    ``digest`` is empty until a first process has told it; later a worker whose
    copy of the project differs answers ``Ended`` with ``other_code``.
    ``hash_seed`` is the job's ``PYTHONHASHSEED``, which follows from its id.
    """

    job: str
    process: int
    request: int
    spec: JobSpec
    digest: str
    hash_seed: int


class Stop(Message, tag="stop", kw_only=True, frozen=True):
    """End a crawl process: gracefully, with this finish reason."""

    job: str
    process: int
    reason: str


class Hold(Message, tag="hold", kw_only=True, frozen=True):
    """Let a crawl process start no request (``on``) or go on."""

    job: str
    process: int
    on: bool


class Drain(Message, tag="drain", kw_only=True, frozen=True):
    """Take nothing new, finish what is held, then leave."""


class CommitSeen(Message, tag="commit_seen", kw_only=True, frozen=True):
    """Answer to a part of a commit.

    ``stored``: durable; ``published``: durable and all its parts have effect;
    ``settled``: dropped, the request is done or this process lost it.
    """

    job: str
    process: int
    request: int
    part: int
    result: Literal["stored", "published", "settled"]


class EndedSeen(Message, tag="ended_seen", kw_only=True, frozen=True):
    """The end of this process is durable; forget it."""

    process: int


# ---- worker to crawl process, beside CommitSeen, Stop and Hold --------------


class Run(Message, tag="run", kw_only=True, frozen=True):
    """First message: what to run. ``request`` is the lease that is granted."""

    job: str
    process: int
    request: int
    spec: JobSpec


class Valid(Message, tag="valid", kw_only=True, frozen=True):
    """Start no request after this instant of the machine's CLOCK_BOOTTIME."""

    until: float


class Probe(Message, tag="probe", kw_only=True, frozen=True):
    """Asks the event loop for a sign of life; answered by ``Alive``."""

    number: int


# ---- crawl process to worker, beside Commit and Progress --------------------


class Alive(Message, tag="alive", kw_only=True, frozen=True):
    """Answer to ``Probe``."""

    number: int


ClientCall = (
    Submit
    | GetStatus
    | ListJobs
    | ShowJob
    | WaitJob
    | ChangeJob
    | DrainWorker
    | ReadFile
    | Ping
)
Answer = Accepted | Status | Jobs | Shown | Chunk | Refused
FromWorker = (
    Register
    | Heartbeat
    | Draining
    | Leaving
    | Started
    | Progress
    | Log
    | Commit
    | Ended
)
ToWorker = (
    Registered
    | HeartbeatSeen
    | Start
    | Stop
    | Hold
    | Drain
    | CommitSeen
    | EndedSeen
    | Refused
)
ToCrawl = Run | Valid | Probe | CommitSeen | Stop | Hold
FromCrawl = Commit | Progress | Alive
