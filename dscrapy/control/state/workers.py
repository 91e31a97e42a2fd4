"""Workers: which are connected or drain, what they can take, when to reap them.

A worker only moves forward: expected or live, away, gone; draining is never taken
back. Instants are of the run clock.
"""

from collections.abc import Iterable
from typing import Literal, Self

import attrs

from dscrapy.control.state.processes import Role
from dscrapy.messages import Register
from dscrapy.model import Versions

# Processes that write feeds take no slot, but each takes memory and, while it has
# something to write, a core: a worker has no more of them than slots, but may have this
# many. One place is kept for crawls that are over, since a process beside a crawl that
# goes on may live as long as the crawl.
EXPORTS_MIN = 2

NO_VERSIONS = Versions(dscrapy="", scrapy="", python="")


@attrs.define(kw_only=True)
class Worker:
    """One worker; ``session`` is None while it has no connection.

    ``instance`` is empty for a worker that is only expected: the journal says that it,
    of the instance ``expected``, holds processes, and since this master's start it has
    not been heard of. ``exports`` are those of its ``processes`` that write feeds.
    ``barred`` are jobs of which it gets no more processes, and why, the newest last,
    and ``barred_at`` since when; barred jobs in ``beside`` may still have their first
    process there. ``failed`` counts the processes of a job that died there before they
    were open.
    """

    name: str
    since: float
    session: int | None = None
    instance: str = ""
    expected: str = ""
    host: str = ""
    port: int = 0
    slots: int = 0
    draining: bool = False
    versions: Versions = NO_VERSIONS
    heard_at: float = 0.0
    processes: set[int] = attrs.field(factory=set)
    exports: set[int] = attrs.field(factory=set)
    barred: dict[str, str] = attrs.field(factory=dict)
    barred_at: dict[str, float] = attrs.field(factory=dict)
    beside: set[str] = attrs.field(factory=set)
    failed: dict[str, int] = attrs.field(factory=dict)

    @classmethod
    def come(
        cls, register: Register, session: int, now: float, former: "Worker | None"
    ) -> Self:
        """Return a worker that has registered; ``former`` had its name before.

        The master counts on the processes of a former instance until it learns that
        they are gone; a new instance may run what a former one could not.
        """
        former = former or cls(name=register.name, since=now)
        same = former.instance == register.instance
        return cls(
            name=register.name,
            since=now,
            session=session,
            instance=register.instance,
            host=register.host,
            port=register.port,
            slots=register.slots,
            draining=register.draining,
            versions=register.versions,
            heard_at=now,
            processes=former.processes,
            exports=former.exports,
            barred=former.barred if same else {},
            barred_at=former.barred_at if same else {},
            beside=former.beside if same else set(),
            failed=former.failed if same else {},
        )

    @property
    def busy(self) -> int:
        """How many slots crawl processes take."""
        return len(self.processes) - len(self.exports)

    @property
    def free(self) -> int:
        """How many slots can take a crawl process now."""
        if self.session is None or self.draining:
            return 0
        return max(self.slots - self.busy, 0)

    def free_exports(self, *, beside: bool) -> int:
        """Return how many more processes that write feeds it can take; with ``beside``
        for crawls that go on."""
        if self.session is None or self.draining:
            return 0
        most = max(self.slots, EXPORTS_MIN) - beside
        return max(most - len(self.exports), 0)

    def may_take(self, job: str) -> bool:
        """Whether it may have processes of the job, once it has room for one."""
        return not self.draining and job not in self.barred

    def may_begin(self, job: str) -> bool:
        """Whether it may have a process of a job that has no other."""
        return not self.draining and (job not in self.barred or job in self.beside)

    def bar(self, job: str, why: str, *, beside: bool) -> None:
        """Give it nothing more of the job, or only its first process (``beside``)."""
        # The newest stands last, for the worker's note.
        self.barred.pop(job, None)
        self.barred[job] = why
        # The worker has just reported the process that it is barred for.
        self.barred_at[job] = self.heard_at
        if beside:
            self.beside.add(job)
        else:
            self.beside.discard(job)

    def take_in(self, process: int, role: Role) -> None:
        """Note that the worker has one more process."""
        self.processes.add(process)
        if role == "export":
            self.exports.add(process)

    def forget(self, process: int) -> None:
        """Note that the worker does not have the process any more."""
        self.processes.discard(process)
        self.exports.discard(process)


def is_blamed(workers: Iterable[Worker], job: str) -> bool:
    """Whether some worker is barred from the job, or gets it only after others."""
    return any(job in worker.barred or job in worker.failed for worker in workers)


def forgive(workers: Iterable[Worker], job: str) -> None:
    """Let all workers have the job again, whatever happened to it on them."""
    for worker in workers:
        worker.barred.pop(job, None)
        worker.barred_at.pop(job, None)
        worker.beside.discard(job)
        worker.failed.pop(job, None)


@attrs.frozen(kw_only=True)
class Spans:
    """How long the master waits for a worker, in seconds."""

    heartbeat_s: float = 2.0
    die_after_s: float = 20.0
    reconnect_grace_s: float = 5.0

    @property
    def silent_s(self) -> float:
        """A worker is shown as silent after two heartbeats."""
        return 2 * self.heartbeat_s

    def deadline(self, worker: Worker) -> float:
        """Return the instant at which the worker is to be reaped."""
        if worker.session is not None:
            return worker.heard_at + self.die_after_s
        if not worker.instance:
            return worker.since + self.die_after_s
        return worker.since + self.reconnect_grace_s

    def state(
        self, worker: Worker, now: float
    ) -> Literal["live", "silent", "away", "draining"]:
        """Return what people see of the worker."""
        if worker.session is None:
            return "away"
        if now - worker.heard_at > self.silent_s:
            return "silent"
        return "draining" if worker.draining else "live"
