"""Messages between crawl processes and the master, which pass through a worker.

The worker hands them on as they are; the last ones are between a worker and its
process.
"""

from typing import Literal

import msgspec

from dscrapy.messages.base import Message, hidden
from dscrapy.model import (
    CloseLimits,
    FeedFiles,
    HostLimits,
    JobSpec,
    Outcome,
    Stats,
    Value,
)

# Bytes of a fingerprint; a project's own fingerprints of another length are hashed to
# it.
FINGERPRINT_BYTES = 20
# Bytes of the digest of an element of start(), or of a request of a page.
DIGEST_BYTES = 8
# A process numbers its units one after another. The units that it has under way fit
# into a few messages of 1 MiB, so a unit this far beyond the latest one is an error.
UNITS_AHEAD_MAX = 10_000
# Flags of a request: its fingerprint is not looked up and not marked as seen, as in
# Scrapy; start() gave it, so it stands in a queue of its own; it takes the place of the
# page that it comes from, which was redirected or is tried again.
DONT_FILTER = 1
START_REQUEST = 2
DERIVED = 4
# Kinds of bodies are positive numbers up to this.
KIND_MAX = 2**31 - 1


# ---- crawl process to master -------------------------------------------------


class Opened(Message, tag="opened", kw_only=True, frozen=True):
    """A crawl process is open, its pipelines too; with what its project's settings ask
    of the frontier.

    ``window`` bounds the leases that it holds at a time. ``lifo`` and ``start_lifo``
    say which end of a queue is taken first. ``limits`` count for the whole job.
    ``has_feeds``: the project's ``FEEDS`` are to be written when the job is done.
    ``batch_items`` is the smallest ``batch_item_count`` among them, 0 if there is none.
    ``has_once``: it has components that are called once in a job, at its end.
    ``own_lines``: the project writes JSON lines in another form than ``items.jsonl``.
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
    batch_items: int = 0
    has_once: bool = False
    own_lines: bool = False


class Batch(Value, kw_only=True, frozen=True, omit_defaults=True):
    """The batch of a feed that is being written, or is written next.

    ``feed`` is its key in ``FEEDS``, ``number`` counts its batches from 1, ``uri`` is
    where this one goes. It begins with the job's item ``item``, counted from 0, which
    stands at these bytes of the job's files. It is not full before the job has
    ``full_at`` items. ``before`` are the batches before this one, if there are any.
    """

    feed: str
    number: int
    uri: str
    full_at: int
    item: int = 0
    items_at: int = 0
    tagged_at: int = 0
    before: FeedFiles | None = None


class Children(Value, kw_only=True, frozen=True, omit_defaults=True):
    """Requests, in columns of one length.

    ``fingerprints`` holds ``FINGERPRINT_BYTES`` for each; ``host_of`` an index into
    ``hosts`` (download-slot keys); ``priorities`` are Scrapy's, larger goes first;
    ``flags`` are those above. ``kinds`` is empty or has a number for each that stands
    for the classes its body needs beside those that any process has: 0 for none, equal
    numbers for equal classes.

    ``values`` are long values that bodies refer to; they are numbered from 0 through
    the parts of a commit, and travel once in it. ``uses`` is empty or names for each
    request the values of this commit, up to this part, that it needs.
    """

    fingerprints: bytes = b""
    hosts: tuple[str, ...] = ()
    host_of: tuple[int, ...] = ()
    priorities: tuple[int, ...] = ()
    flags: tuple[int, ...] = ()
    bodies: tuple[msgspec.Raw, ...] = ()
    kinds: tuple[int, ...] = ()
    values: tuple[msgspec.Raw, ...] = ()
    uses: tuple[tuple[int, ...], ...] = ()


class Piece(Value, kw_only=True, frozen=True, omit_defaults=True):
    """Bytes of an item that is too large for one part, as they stand in the job's
    files: of its line, and of its tagged form. With ``end`` both are complete.
    """

    line: bytes = b""
    tagged: bytes = b""
    end: bool = False


class PartFields(Value, kw_only=True, frozen=True, omit_defaults=True):
    """The fields of any part of a commit, in messages and in the journal's events.

    ``items`` are the lines of ``items.jsonl``: a JSON object as it stands, or a
    JSON string that holds the line where the line is no JSON (NaN). ``tagged``
    is empty, or as long as ``items`` with each item's tagged form, null where
    that is the line itself. A ``piece`` of one large item stands in their place, and
    the parts after it hold the others, to its end. ``seen`` holds fingerprints of
    requests that never left the process. ``digests`` is empty or holds
    ``DIGEST_BYTES`` for each request that this part of a page asks for, by which it is
    known again when the page is run again.
    """

    request: int = 0
    unit: int = 0
    items: tuple[msgspec.Raw, ...] = ()
    tagged: tuple[msgspec.Raw, ...] = ()
    piece: Piece | None = None
    children: Children = Children()
    digests: bytes = b""
    seen: bytes = b""


class CommitFields(PartFields, kw_only=True, frozen=True, omit_defaults=True):
    """The fields of a whole commit, which its last part has: ``stats`` is what it adds
    to the job's stats; for the others see ``Commit``, by ``kind``."""

    kind: Literal[
        "page",
        "start",
        "started",
        "opened",
        "idle",
        "late",
        "batch",
        "ending",
        "closed",
    ] = "page"
    digest: bytes = b""
    finish: int = 0
    stats: Stats = msgspec.field(default_factory=dict)
    batches: tuple[Batch, ...] = ()
    delivered: tuple[str, ...] = ()
    written: tuple[FeedFiles, ...] = ()
    end: Outcome | None = None


class Commit(CommitFields, kw_only=True, frozen=True, omit_defaults=True):
    """All that a leased request or a unit gave, in parts numbered from 0.

    ``request`` is the leased request (``kind`` is "page"), or ``unit`` numbers what the
    process did beside its leases, in the order of its commits. Kinds of units:

    - ``start``: one element of ``start()``, of this ``digest``;
    - ``started``: ``start()`` is exhausted, or raised what ``end`` says;
    - ``opened``: what handlers of ``spider_opened`` asked for;
    - ``idle``: what handlers of ``spider_idle`` asked for, after ``Finish`` number
      ``finish``, which this commit revokes;
    - ``late``: what belongs to none of these (tasks that outlive their callback);
    - ``batch``: the batches before ``batches``, one for each feed that has some, are
      delivered, and with them these local files (``delivered``); of export processes;
    - ``ending``: all pages of the process are committed, ``end`` says how the spider
      closes; before ``spider_closed`` is sent the process waits for ``Retire`` or
      ``Conclude``;
    - ``closed``: the spider is closed, ``end`` says how; the last commit of a process.
      An export process lists in ``written`` the files of complete feeds.

    Only the part with ``last`` carries ``stats`` and ``end``; before it nothing of a
    unit has effect, and of a page only the requests, at once. So a part of a page that
    is not the last has ``digests``, and so has each part of a page that is run again.
    """

    part: int = 0
    last: bool = True


class ProgressFields(Value, kw_only=True, frozen=True, omit_defaults=True):
    """How far a process has come with some of its leases.

    It has ``started`` these requests, those ``downloaded`` are past their download,
    those ``received`` have got a response. Each is said once, and not of a page that
    is committed whole.
    """

    started: tuple[int, ...] = ()
    downloaded: tuple[int, ...] = ()
    received: tuple[int, ...] = ()


class Commits(
    Message,
    ProgressFields,
    tag="commits",
    kw_only=True,
    frozen=True,
    omit_defaults=True,
):
    """Commits of one process, gathered over a few ms; answered by ``CommitsSeen``.

    How far the process has come counts after the commits.
    """

    job: str
    process: int
    commits: tuple[Commit, ...]


class Release(Message, tag="release", kw_only=True, frozen=True, omit_defaults=True):
    """Give leases back that the process has not started.

    ``unreadable`` says why this process cannot read the requests, so that others try
    them; it is empty where leases are given back for another reason.
    """

    job: str
    process: int
    requests: tuple[int, ...]
    unreadable: str = ""


class Progress(
    Message,
    ProgressFields,
    tag="progress",
    kw_only=True,
    frozen=True,
    omit_defaults=True,
):
    """How far a process has come, while it has nothing to commit."""

    job: str
    process: int


class Closing(Message, tag="closing", kw_only=True, frozen=True):
    """The spider closes for this reason: the process takes no further leases."""

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

    A length is -1 where there is no file. Answered by ``FeedsSeen`` once durable, for
    these files or, if none is named, for all that the job's export processes have
    named.
    """

    job: str
    process: int
    lengths: dict[str, int]


class Read(Message, tag="read", kw_only=True, frozen=True):
    """An export process asks for bytes of its job's file; answered by ``ReadSeen``.

    With ``wait`` the answer comes once there are bytes after ``offset``; the next
    ``Read`` of the process takes the place of one that waits.
    """

    job: str
    process: int
    file: Literal["items", "tagged"]
    offset: int
    limit: int
    wait: bool = False


# ---- master to crawl process -------------------------------------------------


class Share(Value, kw_only=True, frozen=True, omit_defaults=True):
    """A process's new share of a host: up to ``count`` requests under way at a time, 0
    for as many as the project allows.

    ``recall`` is the number of the last ``Recall`` before it: leases take a little
    longer on their way, so a later one of the host may be there already, and counts.
    The first request there waits ``wait_s`` seconds: another process may have sent one
    just now.
    """

    count: int = 0
    recall: int = 0
    wait_s: float = 0.0


class Grant(Message, tag="grant", kw_only=True, frozen=True):
    """Leases, in columns, in the order in which they are to start.

    ``host_of`` is an index into ``hosts``. ``shares`` are those that are new to the
    process. ``values`` are the values that the bodies refer to. The pages ``again`` are
    run again, and an earlier run has given requests: their commits have digests.
    """

    job: str
    process: int
    requests: tuple[int, ...]
    hosts: tuple[str, ...]
    host_of: tuple[int, ...]
    bodies: tuple[msgspec.Raw, ...]
    shares: dict[str, Share] = msgspec.field(default_factory=dict)
    values: tuple[msgspec.Raw, ...] = ()
    again: tuple[int, ...] = ()


class Skip(Message, tag="skip", kw_only=True, frozen=True):
    """Digests of elements of ``start()`` that are committed, in parts from 0.

    Sent before ``Lead``. A digest stands there as often as its element is committed;
    part 0 replaces what was sent before.
    """

    job: str
    process: int
    part: int
    digests: bytes


class Lead(Message, tag="lead", kw_only=True, frozen=True):
    """This process alone consumes ``start()``, is idle and ends the job.

    ``start``: ``start()`` is not exhausted yet. ``opened``: the requests of its
    handlers of ``spider_opened`` are to be committed.
    """

    job: str
    process: int
    start: bool
    opened: bool


class StartMay(Message, tag="start_may", kw_only=True, frozen=True):
    """How many ``start`` units the leading process may commit in all.

    ``upto``: while its engine holds back; ``upto_free``: at any time, since the job's
    processes could start that much at once. The larger one counts.
    """

    job: str
    process: int
    upto: int
    upto_free: int


class WorkShort(Message, tag="work_short", kw_only=True, frozen=True):
    """The job is short of work (``on``), or not any more.

    While it is, pages send what they ask for at once: another process waits for it.
    """

    job: str
    process: int
    on: bool


class Recall(Message, tag="recall", kw_only=True, frozen=True):
    """Lower the shares of these hosts: another process waits for what is left.

    At 0: give back the leases that have not begun; there are no more for now. Above:
    begin no request while so many are under way, and say so in ``Yielded`` as soon as
    there are no more. The next ``Share`` takes the place of this.
    """

    job: str
    process: int
    number: int
    hosts: dict[str, int]


class Yielded(Message, tag="yielded", kw_only=True, frozen=True):
    """These are the process's shares of hosts now, after the ``Recall`` of this number;
    0: the host cannot be shared, and the process keeps what it had."""

    job: str
    process: int
    number: int
    hosts: dict[str, int]


class AllWait(Message, tag="all_wait", kw_only=True, frozen=True):
    """All open pages of the job, ``pages``, wait in callbacks or pipelines, and nothing
    else is left to do: the process warns of it in its log."""

    job: str
    process: int
    pages: int


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


class Retire(Message, tag="retire", kw_only=True, frozen=True):
    """Close without what is called once in a job: another process ends the job, or it
    goes on. Answer to ``ending``."""

    job: str
    process: int


class Conclude(Message, tag="conclude", kw_only=True, frozen=True):
    """Close as the job's last process, with its ``stats``. Answer to ``ending``.

    All others are gone and the feeds are written. ``again``: another process was told
    to conclude, and died.
    """

    job: str
    process: int
    stats: Stats
    again: bool


class Done(Message, tag="done", kw_only=True, frozen=True):
    """``closed`` is durable: the process ends.

    ``stats`` are the whole job's, to be dumped as Scrapy does, if the process ended it.
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


class Seen(Value, array_like=True, frozen=True):
    """What became of a part of a commit.

    ``stored``: durable; ``taken``: durable, and its requests have effect;
    ``published``: durable and all its parts have effect; ``settled``: dropped, since
    the request is done already or this process lost it.
    """

    request: int
    unit: int
    part: int
    result: Literal["stored", "taken", "published", "settled"]


class CommitsSeen(Message, tag="commits_seen", kw_only=True, frozen=True):
    """Answer to ``Commits``, for each of its parts in order."""

    job: str
    process: int
    seen: tuple[Seen, ...]


class FeedsSeen(Message, tag="feeds_seen", kw_only=True, frozen=True):
    """Answer to ``Feeds``: the lengths of the files as they were first reported, and
    the batches that the job's export processes are at."""

    job: str
    process: int
    lengths: dict[str, int]
    batches: tuple[Batch, ...] = ()


class ItemsEnd(Message, tag="items_end", kw_only=True, frozen=True):
    """Tell an export process that the crawl is over: there are ``items`` items, in so
    many bytes of lines and of tagged forms. It writes what is left of the feeds."""

    job: str
    process: int
    items: int
    items_bytes: int
    tagged_bytes: int


class ReadSeen(Message, tag="read_seen", kw_only=True, frozen=True):
    """Answer to ``Read``: the bytes; none at the file's end."""

    job: str
    process: int
    file: Literal["items", "tagged"]
    offset: int
    data: bytes


# ---- between a worker and its crawl process ----------------------------------


class Local(Value, kw_only=True, frozen=True, omit_defaults=True):
    """What a process of ``crawl`` gets from the command, and no job holds.

    ``settings`` are those of one run: LOG_*, and empty ``FEEDS`` where -o or -O takes
    their place; the project's ``LOG_FILE`` is heeded too. ``profile`` is the file that
    gets cProfile's stats. ``stdin`` is the file where its stdin is kept, which is the
    command's own then and, if it is a regular file, begins at ``stdin_at``. Paths are
    as the system has them.
    """

    settings: dict[str, str]
    profile: bytes = b""
    stdin: bytes = b""
    stdin_at: int = 0


class Run(Message, tag="run", kw_only=True, frozen=True):
    """First message to a process: what to run; see ``Start`` for the other fields.

    ``no_stdin`` says why stdin is empty, where a person may expect input there.
    """

    job: str
    process: int
    role: Literal["crawl", "export"]
    spec: JobSpec
    came_to_end: bool = True
    opened_at: float | None = None
    key: bytes = b""
    local: Local | None = None
    no_stdin: str = ""

    def __repr__(self) -> str:
        return hidden(self)


class Valid(Message, tag="valid", kw_only=True, frozen=True):
    """Start no request after this instant of the machine's CLOCK_BOOTTIME."""

    until: float


class Probe(Message, tag="probe", kw_only=True, frozen=True):
    """Ask the event loop for a sign of life; answered by ``Alive``."""

    number: int


class Alive(Message, tag="alive", kw_only=True, frozen=True):
    """Answer to ``Probe``."""

    number: int
