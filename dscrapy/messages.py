"""Every message that crosses a connection, as values, with their fixed tags.

Two kinds of connection carry them: TCP between a client or a worker and the
master (after the handshake of ``proto.session``), and the socket pair between a
worker and its crawl process. The unions at the end say who may send what;
docs/protocol.md says when.

``call`` numbers a client's calls on one connection; the answer repeats it.
``process`` numbers crawl processes, never twice in the life of a master's state.
``request`` numbers the requests of a job from 1, never twice; what a process does
beside its leases (``start()``, ``spider_idle``, its end) it commits as *units*, which
it numbers from 1 itself.

What travels by the thousand travels in columns: a value per request in each of several
arrays. Bodies of requests and items are ``Raw``: the master never looks into them.
"""

from typing import Literal

import msgspec

from dscrapy.model import (
    CloseLimits,
    HostLimits,
    JobSpec,
    JobView,
    Outcome,
    ScheduleView,
    Stats,
    Submission,
    Value,
    Versions,
    WorkerView,
)

# Bytes of a fingerprint; a project's own of another length are hashed to this.
FINGERPRINT_BYTES = 20
# Bytes of the digest of an element of start().
DIGEST_BYTES = 8
# Flags of a request: not looked up in nor added to what is seen, as in Scrapy; and
# one that start() gave, which has a queue of its own.
DONT_FILTER = 1
START_REQUEST = 2


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

    ``fresh`` belongs to ``retry``: run again with empty items; ``count`` to
    ``parallelism``: as many processes from now on.
    """

    call: int
    verb: Literal["cancel", "pause", "resume", "retry", "parallelism"]
    job: str
    fresh: bool = False
    count: int = 1


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


class Opened(Message, tag="opened", kw_only=True, frozen=True):
    """A crawl process is open: what its project's settings ask of the frontier.

    ``window`` bounds the leases it holds at a time. ``lifo`` and ``start_lifo`` say
    which end of a queue is taken first. ``limits`` count for the whole job.
    ``has_feeds``: the project's ``FEEDS`` are to be written when the job is done.
    """

    job: str
    process: int
    window: int
    lifo: bool
    start_lifo: bool
    default_host: HostLimits
    hosts: dict[str, HostLimits]
    limits: CloseLimits
    has_feeds: bool


class Held(Message, kw_only=True, frozen=True, omit_defaults=True):
    """A crawl process that a worker still has something to say about.

    ``requests`` are those leased to it, or with a commit that is not acknowledged.
    ``leads``: it was told ``Lead``. ``closing`` is the reason that it told, if any.
    """

    job: str
    process: int
    requests: tuple[int, ...] = ()
    opened: Opened | None = None
    leads: bool = False
    closing: str = ""


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


class Log(Message, tag="log", kw_only=True, frozen=True):
    """Bytes of a crawl process's log, cut at line ends where possible."""

    job: str
    process: int
    data: bytes


class Children(Value, kw_only=True, frozen=True, omit_defaults=True):
    """Requests, in columns of one length.

    ``fingerprints`` holds ``FINGERPRINT_BYTES`` for each; ``host_of`` an index into
    ``hosts`` (download-slot keys); ``priorities`` are Scrapy's, larger goes first;
    ``flags`` are those above.
    """

    fingerprints: bytes = b""
    hosts: tuple[str, ...] = ()
    host_of: tuple[int, ...] = ()
    priorities: tuple[int, ...] = ()
    flags: tuple[int, ...] = ()
    bodies: tuple[msgspec.Raw, ...] = ()


class Commit(Value, kw_only=True, frozen=True, omit_defaults=True):
    """What a leased request or a unit gave, in parts numbered from 0.

    ``request`` is the lease's (``kind`` is "page"), else ``unit`` numbers what the
    process did beside its leases, in the order of these commits. Kinds of units:

    - ``start``: one element of ``start()``, of this ``digest``;
    - ``started``: ``start()`` is exhausted; with ``end`` it raised that;
    - ``opened``: what handlers of ``spider_opened`` asked for;
    - ``idle``: what handlers of ``spider_idle`` asked for, after ``Finish`` number
      ``finish``, which this revokes;
    - ``late``: what came outside of all that (tasks that outlive their callback);
    - ``closed``: the spider is closed, ``end`` says how; the last of a process.

    ``items`` are the lines of ``items.jsonl``: a JSON object as it stands, or a
    JSON string that holds the line where the line is no JSON (NaN). ``tagged``
    is empty, or as long as ``items`` with each item's tagged form, null where
    that is the line itself. ``seen`` holds fingerprints of requests that never left
    the process. Only the part with ``last`` carries ``outcome`` (for people: a
    status, "request" for a redirect or retry, or an error's type), ``stats`` (what
    it adds to the job's) and ``end``; before it nothing has effect.
    """

    request: int = 0
    unit: int = 0
    part: int = 0
    last: bool = True
    kind: Literal["page", "start", "started", "opened", "idle", "late", "closed"] = (
        "page"
    )
    digest: bytes = b""
    finish: int = 0
    items: tuple[msgspec.Raw, ...] = ()
    tagged: tuple[msgspec.Raw, ...] = ()
    children: Children = Children()
    seen: bytes = b""
    outcome: str = ""
    stats: Stats = msgspec.field(default_factory=dict)
    end: Outcome | None = None


class Commits(Message, tag="commits", kw_only=True, frozen=True):
    """Commits of one process, gathered over a few ms; answered by ``CommitsSeen``."""

    job: str
    process: int
    commits: tuple[Commit, ...]


class Release(Message, tag="release", kw_only=True, frozen=True):
    """Give leases back; nothing of them was started."""

    job: str
    process: int
    requests: tuple[int, ...]


class Closing(Message, tag="closing", kw_only=True, frozen=True):
    """The spider closes for this reason: no further leases; ``closed`` follows."""

    job: str
    process: int
    reason: str


class Offer(Message, tag="offer", kw_only=True, frozen=True):
    """Ask which fingerprints are seen already; answered by ``Offered``.

    ``number`` counts the offers of a process from 1.
    """

    job: str
    process: int
    number: int
    fingerprints: bytes


class Feeds(Message, tag="feeds", kw_only=True, frozen=True):
    """An export process is about to write files of these lengths (bytes).

    -1 where there is no file. Answered by ``FeedsSeen`` once durable, for these files
    or, if none is named, for all that the job's export processes have named.
    """

    job: str
    process: int
    lengths: dict[str, int]


class Read(Message, tag="read", kw_only=True, frozen=True):
    """An export process asks for bytes of its job's file; answered by ``ReadSeen``."""

    job: str
    process: int
    file: Literal["items", "tagged"]
    offset: int
    limit: int


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
    """Start a process for a job: it crawls, or writes the project's feeds.

    ``digest`` is empty until a first process has told it; later a worker whose
    copy of the project differs answers ``Ended`` with ``other_code``.
    ``hash_seed`` is the job's ``PYTHONHASHSEED``, which follows from its id.
    """

    job: str
    process: int
    role: Literal["crawl", "export"]
    spec: JobSpec
    digest: str
    hash_seed: int


class Share(Value, kw_only=True, frozen=True, omit_defaults=True):
    """A process's share of a host that it now owns.

    ``share`` of the host's concurrency is its own. Its first request waits
    ``wait_s`` seconds: another owner's may have gone out just now.
    """

    share: float = 1.0
    wait_s: float = 0.0


class Grant(Message, tag="grant", kw_only=True, frozen=True):
    """Leases, in columns, in the order in which they are to start.

    ``host_of`` is an index into ``hosts``. ``shares`` names hosts that the process
    did not own before.
    """

    job: str
    process: int
    requests: tuple[int, ...]
    hosts: tuple[str, ...]
    host_of: tuple[int, ...]
    bodies: tuple[msgspec.Raw, ...]
    shares: dict[str, Share] = {}


class Skip(Message, tag="skip", kw_only=True, frozen=True):
    """Digests of elements of ``start()`` that are committed, in parts from 0.

    They come before ``Lead``, each as often as it is committed; part 0 begins anew.
    """

    job: str
    process: int
    part: int
    digests: bytes


class Lead(Message, tag="lead", kw_only=True, frozen=True):
    """This process alone consumes ``start()``, is idle and ends the job.

    ``start``: ``start()`` is not exhausted yet. ``opened``: what its handlers of
    ``spider_opened`` asked for is wanted.
    """

    job: str
    process: int
    start: bool
    opened: bool


class StartMay(Message, tag="start_may", kw_only=True, frozen=True):
    """The leading process may commit as many ``start`` units in all."""

    job: str
    process: int
    upto: int


class Finish(Message, tag="finish", kw_only=True, frozen=True):
    """Nothing is left to do: the leading process may be idle, and then close."""

    job: str
    process: int
    number: int


class Stop(Message, tag="stop", kw_only=True, frozen=True):
    """Close the spider, with this finish reason: what has started is finished,
    the other leases are given back."""

    job: str
    process: int
    reason: str


class Done(Message, tag="done", kw_only=True, frozen=True):
    """``closed`` is durable: the process ends.

    ``stats`` are the whole job's if that ended it, to be dumped as Scrapy does.
    """

    job: str
    process: int
    stats: Stats | None


class Offered(Message, tag="offered", kw_only=True, frozen=True):
    """Answer to ``Offer``: whether each fingerprint is seen."""

    job: str
    process: int
    number: int
    seen: tuple[bool, ...]


class FeedsSeen(Message, tag="feeds_seen", kw_only=True, frozen=True):
    """Answer to ``Feeds``: lengths of the files as they were first told."""

    job: str
    process: int
    lengths: dict[str, int]


class ReadSeen(Message, tag="read_seen", kw_only=True, frozen=True):
    """Answer to ``Read``: bytes, none at the file's end."""

    job: str
    process: int
    file: Literal["items", "tagged"]
    offset: int
    data: bytes


class Drain(Message, tag="drain", kw_only=True, frozen=True):
    """Take nothing new, finish what is held, then leave."""


class Seen(Value, array_like=True, frozen=True):
    """What became of a part of a commit.

    ``stored``: durable; ``published``: durable and all its parts have effect;
    ``settled``: dropped, it is done already or this process lost it.
    """

    request: int
    unit: int
    part: int
    result: Literal["stored", "published", "settled"]


class CommitsSeen(Message, tag="commits_seen", kw_only=True, frozen=True):
    """Answer to ``Commits``, for each of its parts in order."""

    job: str
    process: int
    seen: tuple[Seen, ...]


class EndedSeen(Message, tag="ended_seen", kw_only=True, frozen=True):
    """The end of this process is durable; forget it."""

    process: int


# ---- worker to crawl process, beside what the master says to it --------------


class Run(Message, tag="run", kw_only=True, frozen=True):
    """First message: what to run."""

    job: str
    process: int
    role: Literal["crawl", "export"]
    spec: JobSpec


class Valid(Message, tag="valid", kw_only=True, frozen=True):
    """Start no request after this instant of the machine's CLOCK_BOOTTIME."""

    until: float


class Probe(Message, tag="probe", kw_only=True, frozen=True):
    """Asks the event loop for a sign of life; answered by ``Alive``."""

    number: int


# ---- crawl process to worker, beside what it says to the master ---------------


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
# What a crawl process says to the master, handed on by its worker as it is.
FromProcess = Opened | Commits | Release | Closing | Offer | Feeds | Read
FromWorker = (
    Register | Heartbeat | Draining | Leaving | Started | Log | Ended | FromProcess
)
# What the master says to a crawl process, handed on by its worker as it is.
ToProcess = (
    Grant
    | Skip
    | Lead
    | StartMay
    | Finish
    | Stop
    | Done
    | Offered
    | CommitsSeen
    | FeedsSeen
    | ReadSeen
)
ToWorker = Registered | HeartbeatSeen | Start | Drain | EndedSeen | Refused | ToProcess
ToCrawl = Run | Valid | Probe | ToProcess
FromCrawl = Alive | FromProcess
