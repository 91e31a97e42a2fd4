"""Messages between workers and the master that are about workers and processes."""

from typing import Literal

import msgspec

from dscrapy.messages.base import Message, hidden
from dscrapy.messages.process_messages import Opened
from dscrapy.model import JobSpec, Outcome, Value, Versions

# ---- worker to master ----------------------------------------------------------


class HeldProcess(Message, kw_only=True, frozen=True, omit_defaults=True):
    """A crawl process that a worker has, or whose end or commits are not acknowledged.

    ``requests`` are leased to it, or have a commit that is not acknowledged; the other
    columns are those of its ``Progress``, of these requests. ``leads``: it was sent
    ``Lead``. ``closing`` is the reason of its ``Closing``, if any. ``shares`` are its
    shares of hosts that are not all of them.
    """

    job: str
    process: int
    requests: tuple[int, ...] = ()
    started: tuple[int, ...] = ()
    downloaded: tuple[int, ...] = ()
    received: tuple[int, ...] = ()
    opened: Opened | None = None
    leads: bool = False
    closing: str = ""
    shares: dict[str, int] = msgspec.field(default_factory=dict)


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
    held: tuple[HeldProcess, ...]


class Heartbeat(Message, tag="heartbeat", kw_only=True, frozen=True):
    """Proof that the session lives; answered by ``HeartbeatSeen`` at once."""

    number: int


class Draining(Message, tag="draining", kw_only=True, frozen=True):
    """The worker takes no new processes from now on."""


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


class UnderWay(Value, kw_only=True, frozen=True, omit_defaults=True):
    """A leased request that a process had started and not finished when it died.

    ``stage``: it had ``begun``, was in its ``download`` (until its callback began), or
    was past that and ``waits``. ``ran_last``: of all code that ran for requests its
    was the last. ``url`` is for people, and cut where it is long.
    """

    request: int
    url: str
    stage: Literal["begun", "download", "waits"] = "download"
    ran_last: bool = False


class Ended(Message, tag="ended", kw_only=True, frozen=True):
    """A crawl process is gone, or was never started; answered by ``EndedSeen``.

    ``how``: ``exited``, ``refused`` (this worker cannot run it now: draining, or no
    room), ``other_code`` (its copy of the project differs), ``failed`` (the job cannot
    run: ``outcome`` says why). ``counted`` when the death is the job's own doing: not a
    SIGKILL from outside. Then one of the requests ``under_way`` may have caused it;
    ``alone`` when the process had no other lease.
    """

    job: str
    process: int
    how: Literal["exited", "refused", "other_code", "failed"]
    counted: bool = False
    text: str = ""
    outcome: Outcome | None = None
    under_way: tuple[UnderWay, ...] = ()
    alone: bool = False


# ---- master to worker ----------------------------------------------------------


class Registered(Message, tag="registered", kw_only=True, frozen=True):
    """Answer to ``Register``: the session's epoch and the spans to keep.

    The worker kills the processes of ``drop`` at once: the master has given them up.
    Then it sends again what was not acknowledged.
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

    ``digest`` is empty until a first process has reported it; later a worker whose
    copy of the project differs answers ``Ended`` with ``other_code``.
    ``hash_seed`` is the job's ``PYTHONHASHSEED``, which follows from its id. Feeds of
    a crawl that has not ``came_to_end`` leave older files as they are: they go to
    NAME.failed. ``opened_at`` is the job's ``start_time``, if it has one already.
    ``key`` signs the job's pickles; it is empty where pickles are not allowed, and no
    ``repr`` shows it.
    """

    job: str
    process: int
    role: Literal["crawl", "export"]
    spec: JobSpec
    digest: str
    hash_seed: int
    came_to_end: bool = True
    opened_at: float | None = None
    key: bytes = b""

    def __repr__(self) -> str:
        return hidden(self)


class Drain(Message, tag="drain", kw_only=True, frozen=True):
    """Take no new processes, let those that run finish their pages, then leave."""


class EndedSeen(Message, tag="ended_seen", kw_only=True, frozen=True):
    """The end of this process is durable: the worker may forget it."""

    process: int
