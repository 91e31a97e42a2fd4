"""Events that are applied and never journalled: a restart forgets them."""

from dscrapy.control.events.journalled import Fact
from dscrapy.messages import HeldProcess, Opened, ProgressFields, Register


class WorkerCame(Fact, kw_only=True, frozen=True):
    """A worker registered on this session."""

    session: int
    register: Register
    now: float


class WorkersExpected(Fact, kw_only=True, frozen=True):
    """After a replay: workers that hold processes are expected to come back."""

    now: float


class WorkerHeard(Fact, kw_only=True, frozen=True):
    """The worker has given a sign of life."""

    name: str
    now: float


class WorkerAway(Fact, kw_only=True, frozen=True):
    """The worker's connection ended; its grace begins."""

    name: str
    now: float


class WorkerGone(Fact, kw_only=True, frozen=True):
    """The worker was reaped or logged out; it holds nothing any more."""

    name: str


class WorkerDrains(Fact, kw_only=True, frozen=True):
    """The worker takes nothing new."""

    name: str


class WorkerBarred(Fact, kw_only=True, frozen=True):
    """The worker gets no more processes of the job; with ``beside`` none while the job
    has another process. ``why`` is for people."""

    name: str
    job: str
    why: str
    beside: bool = False


class WorkerFailed(Fact, kw_only=True, frozen=True):
    """A process of the job died on this worker before it was open."""

    name: str
    job: str


class WorkersForgiven(Fact, kw_only=True, frozen=True):
    """All workers may have processes of the job again, whatever happened there."""

    job: str


class ProcessOpened(Fact, kw_only=True, frozen=True):
    """The process can take leases."""

    opened: Opened


class ProcessProceeds(Fact, ProgressFields, kw_only=True, frozen=True):
    """The process has come further with some of its leases."""

    job: str
    process: int
    at: float


class ProcessCloses(Fact, kw_only=True, frozen=True):
    """The process takes no more leases."""

    job: str
    process: int


class ProcessKnown(Fact, kw_only=True, frozen=True):
    """A worker that came back, or meets a new master, reported what its process holds.

    Leases of the process that it does not hold are pending again.
    """

    held: HeldProcess
    at: float


class ProcessStops(Fact, kw_only=True, frozen=True):
    """The process was told to stop; it takes no more leases."""

    job: str
    process: int


class ProcessIdles(Fact, kw_only=True, frozen=True):
    """The process has had no lease since this instant; None: it has one."""

    job: str
    process: int
    since: float | None


class ProcessIsolates(Fact, kw_only=True, frozen=True):
    """The process has the suspects of its job, group by group, and nothing else."""

    job: str
    process: int


class CompaniesGiven(Fact, kw_only=True, frozen=True):
    """The process that has the suspects of its job may have other requests, too."""

    job: str


class ProcessWaits(Fact, kw_only=True, frozen=True):
    """All leases of the process are past their download since this instant, and none
    was committed; None: that holds no more."""

    job: str
    process: int
    since: float | None


class AllWaitNoted(Fact, kw_only=True, frozen=True):
    """All open pages of the job have only waited for a while, and nothing else is left;
    until the next commit."""

    job: str


class ProcessDismissed(Fact, kw_only=True, frozen=True):
    """The process was told that its last commit is durable, so that it may end."""

    job: str
    process: int


class ItemsEndSent(Fact, kw_only=True, frozen=True):
    """The export process was told that the crawl is over."""

    job: str
    process: int


class ProcessOrdered(Fact, kw_only=True, frozen=True):
    """The process, which is ending, was told to retire or to conclude."""

    job: str
    process: int


class LeadGiven(Fact, kw_only=True, frozen=True):
    """The process leads its job from now on."""

    job: str
    process: int


class StartMayGiven(Fact, kw_only=True, frozen=True):
    """The leading process was told how many elements of ``start()`` it may commit."""

    job: str
    upto: int
    upto_free: int


class WorkShortSent(Fact, kw_only=True, frozen=True):
    """The process was told that its job is short of work (``on``), or not any more."""

    job: str
    process: int
    on: bool


class FinishSent(Fact, kw_only=True, frozen=True):
    """The job's leading process was told ``Finish`` of this number."""

    job: str
    number: int


class TimeRuns(Fact, kw_only=True, frozen=True):
    """The job's time runs since this instant, on from ``JobRan``; None: it stands."""

    job: str
    since: float | None


class LeasesWanted(Fact, kw_only=True, frozen=True):
    """Up to ``count`` pending requests are leased to the process.

    Which requests follows from the state; the effects name them.
    """

    job: str
    process: int
    count: int
    at: float


class Released(Fact, kw_only=True, frozen=True):
    """These leases of the process are pending again.

    ``unreadable`` says why the process cannot read the requests, if it cannot.
    """

    job: str
    process: int
    requests: tuple[int, ...]
    at: float
    unreadable: str = ""


class HostsRecalled(Fact, kw_only=True, frozen=True):
    """The process was told to lower its shares of these hosts, by the ``Recall`` of
    this number."""

    job: str
    process: int
    number: int
    hosts: dict[str, int]


class SharesYielded(Fact, kw_only=True, frozen=True):
    """The process has lowered its shares of hosts to these, after the ``Recall`` of
    this number."""

    job: str
    process: int
    number: int
    hosts: dict[str, int]


class WaiterAdded(Fact, kw_only=True, frozen=True):
    """A client's call waits for the end of the job."""

    session: int
    call: int
    job: str


class RemovalAsked(Fact, kw_only=True, frozen=True):
    """A client's call waits until the job, which has ended, can be removed: until its
    last process is gone."""

    session: int
    call: int
    job: str


class LogsMeasured(Fact, kw_only=True, frozen=True):
    """The logs of these ended jobs have so many bytes."""

    sizes: dict[str, int]


class SessionGone(Fact, kw_only=True, frozen=True):
    """The session has ended: its calls cannot be answered any more."""

    session: int


# What changes a crawl under way, and nothing else.
CrawlChange = (
    ProcessOpened
    | ProcessProceeds
    | ProcessCloses
    | ProcessKnown
    | ProcessStops
    | ProcessIdles
    | ProcessIsolates
    | CompaniesGiven
    | ProcessWaits
    | AllWaitNoted
    | ProcessDismissed
    | ItemsEndSent
    | ProcessOrdered
    | LeadGiven
    | StartMayGiven
    | WorkShortSent
    | FinishSent
    | TimeRuns
    | LeasesWanted
    | Released
    | HostsRecalled
    | SharesYielded
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
