"""Every message that crosses a connection, as values, with their fixed tags.

Two kinds of connection carry them: TCP between a client or a worker and the
master (after the handshake of ``proto.session``), and the socket pair between a
worker and its crawl process. The unions at the end say who may send what;
docs/protocol.md says when.

``call`` numbers a client's calls on one connection; the answer has the same number.
``process`` numbers crawl processes, never twice in the life of a master's state.
``request`` numbers the requests of a job from 1, never twice; what a process does
beside its leases (``start()``, ``spider_idle``, its end) it commits as *units*, which
it numbers from 1 itself.

Requests travel in columns, as they are many: several arrays with a value per request in
each. Bodies of requests and items are ``Raw``: the master never looks into them.
"""

from dscrapy.messages.base import Message
from dscrapy.messages.client_messages import (
    Accepted,
    ChangeJob,
    Chunk,
    DrainWorker,
    GetStatus,
    Jobs,
    ListJobs,
    Ping,
    Prune,
    Pruned,
    ReadFile,
    Refused,
    Remove,
    ShowJob,
    Shown,
    Status,
    Submit,
    WaitJob,
)
from dscrapy.messages.process_messages import (
    DERIVED,
    DIGEST_BYTES,
    DONT_FILTER,
    FINGERPRINT_BYTES,
    KIND_MAX,
    START_REQUEST,
    UNITS_AHEAD_MAX,
    Alive,
    AllWait,
    Batch,
    Children,
    Closing,
    Commit,
    CommitFields,
    Commits,
    CommitsSeen,
    Conclude,
    Done,
    Feeds,
    FeedsSeen,
    Finish,
    Grant,
    ItemsEnd,
    Lead,
    Local,
    Offer,
    Offered,
    Opened,
    PartFields,
    Piece,
    Probe,
    Progress,
    ProgressFields,
    Read,
    ReadSeen,
    Recall,
    Release,
    Retire,
    Run,
    Seen,
    Share,
    Skip,
    StartMay,
    Stop,
    Valid,
    WorkShort,
    Yielded,
)
from dscrapy.messages.worker_messages import (
    Drain,
    Draining,
    Ended,
    EndedSeen,
    Heartbeat,
    HeartbeatSeen,
    HeldProcess,
    Leaving,
    Log,
    Register,
    Registered,
    Start,
    Started,
    UnderWay,
)

ClientCall = (
    Submit
    | GetStatus
    | ListJobs
    | ShowJob
    | WaitJob
    | ChangeJob
    | Remove
    | Prune
    | DrainWorker
    | ReadFile
    | Ping
)
Answer = Accepted | Status | Jobs | Shown | Chunk | Pruned | Refused
# What a crawl process says to the master, handed on by its worker as it is.
FromProcess = (
    Opened | Commits | Progress | Release | Yielded | Closing | Offer | Feeds | Read
)
FromWorker = (
    Register | Heartbeat | Draining | Leaving | Started | Log | Ended | FromProcess
)
# What the master says to a crawl process, handed on by its worker as it is.
ToProcess = (
    Grant
    | Skip
    | Lead
    | StartMay
    | WorkShort
    | Recall
    | AllWait
    | Finish
    | Stop
    | Retire
    | Conclude
    | Done
    | Offered
    | CommitsSeen
    | FeedsSeen
    | ReadSeen
    | ItemsEnd
)
ToWorker = Registered | HeartbeatSeen | Start | Drain | EndedSeen | Refused | ToProcess
ToCrawl = Run | Valid | Probe | ToProcess
FromCrawl = Alive | FromProcess

__all__ = [
    "DERIVED",
    "DIGEST_BYTES",
    "DONT_FILTER",
    "FINGERPRINT_BYTES",
    "KIND_MAX",
    "START_REQUEST",
    "UNITS_AHEAD_MAX",
    "Accepted",
    "Alive",
    "AllWait",
    "Answer",
    "Batch",
    "ChangeJob",
    "Children",
    "Chunk",
    "ClientCall",
    "Closing",
    "Commit",
    "CommitFields",
    "Commits",
    "CommitsSeen",
    "Conclude",
    "Done",
    "Drain",
    "DrainWorker",
    "Draining",
    "Ended",
    "EndedSeen",
    "Feeds",
    "FeedsSeen",
    "Finish",
    "FromCrawl",
    "FromProcess",
    "FromWorker",
    "GetStatus",
    "Grant",
    "Heartbeat",
    "HeartbeatSeen",
    "HeldProcess",
    "ItemsEnd",
    "Jobs",
    "Lead",
    "Leaving",
    "ListJobs",
    "Local",
    "Log",
    "Message",
    "Offer",
    "Offered",
    "Opened",
    "PartFields",
    "Piece",
    "Ping",
    "Probe",
    "Progress",
    "ProgressFields",
    "Prune",
    "Pruned",
    "Read",
    "ReadFile",
    "ReadSeen",
    "Recall",
    "Refused",
    "Register",
    "Registered",
    "Release",
    "Remove",
    "Retire",
    "Run",
    "Seen",
    "Share",
    "ShowJob",
    "Shown",
    "Skip",
    "Start",
    "StartMay",
    "Started",
    "Status",
    "Stop",
    "Submit",
    "ToCrawl",
    "ToProcess",
    "ToWorker",
    "UnderWay",
    "Valid",
    "WaitJob",
    "WorkShort",
    "Yielded",
]
