"""A decision: what it is made from, its records and messages, and their effects.

Every step of the core gets the decision that it adds to. It reads the decision's
``state``, ``now`` and ``policy``, and changes none of them: ``apply`` alone changes the
state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import attrs

from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.effects import Effects
from dscrapy.control.state.jobs import Job
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.verdict import Verdict
from dscrapy.control.state.workers import Spans
from dscrapy.endings import came_to_end
from dscrapy.errors import RemoteProtocolError
from dscrapy.frontier.frontier import Granted
from dscrapy.keep import Keep
from dscrapy.messages import (
    ClientCall,
    FromWorker,
    Message,
    Refused,
    Stop,
    ToProcess,
)
from dscrapy.model import Outcome

# What deciding raised at: a "job", "worker" or "schedule", with its id or name.
Culprit = tuple[Literal["job", "worker", "schedule"], str]


class StepError(Exception):
    """Deciding about one of many has raised ``__cause__``: a bug of our own."""

    def __init__(self, culprit: Culprit) -> None:
        super().__init__(" ".join(culprit))
        self.culprit = culprit


@contextmanager
def deciding_on(
    kind: Literal["job", "worker", "schedule"], name: str
) -> Iterator[None]:
    """Name the culprit if the block raises, so that the others can still be decided."""
    try:
        yield
    except Exception as error:
        raise StepError((kind, name)) from error


@attrs.frozen
class OnTick:
    """A deadline may have passed. ``exclude`` are left out: deciding on them raised."""

    exclude: frozenset[Culprit] = frozenset()


@attrs.frozen
class OnClosed:
    """The session's connection has ended."""


@attrs.frozen
class OnMissing:
    """The bodies of these requests, leased to a process, are not in the job's file."""

    job: str
    requests: tuple[int, ...]


@attrs.frozen
class OnDamage:
    """A file that an export process has to read lacks bytes, as ``text`` says."""

    job: str
    process: int
    text: str


@attrs.frozen
class OnMeasured:
    """The logs of these ended jobs have so many bytes."""

    sizes: dict[str, int]


@attrs.frozen
class OnPrune:
    """There may be more ended jobs than are to be kept."""


OwnCommand = OnTick | OnClosed | OnMissing | OnDamage | OnMeasured | OnPrune
Command = ClientCall | FromWorker | OwnCommand


@attrs.frozen(kw_only=True)
class Policy:
    """What the operator has chosen.

    ``start_deaths_max`` processes that die without a commit fail their job. Suspects
    that only wait get companions after ``suspect_patience_s``. ``secret`` is what the
    keys of jobs are made from; without a secret jobs have no keys. ``keep`` says how
    many ended jobs stay, beside those named in ``kept_names``.
    """

    spans: Spans = attrs.field(factory=Spans)
    start_deaths_max: int = 3
    suspect_patience_s: float = 60.0
    secret: bytes = attrs.field(default=b"", repr=False)
    keep: Keep = attrs.field(factory=Keep)
    kept_names: frozenset[str] = frozenset()


@attrs.frozen
class Bug:
    """A step of the core has raised ``error``; ``at`` is what the step was about."""

    step: str
    at: str
    error: Exception


@attrs.define(kw_only=True)
class Decision:
    """Records to apply in order; then messages to send and sessions to close.

    ``shows`` are answers that show a job or schedule as it stands afterwards:
    session, call and id. ``came`` are the sessions of workers that register by these
    records, so that messages can be sent to them at once.

    The loop fills in the rest when it carries the decision out: ``effects`` of the
    records, ``grants``, which are leases to send to a session's process once their
    bodies are at hand, ``bugs`` for which this was decided instead of something else,
    and the ``violation`` for which the command's session ends.
    """

    state: State = attrs.field(repr=False)
    now: Now
    policy: Policy = attrs.field(repr=False)
    records: list[r.Record | r.Volatile] = attrs.field(factory=list)
    sends: list[tuple[int, Message]] = attrs.field(factory=list)
    shows: list[tuple[int, int, str]] = attrs.field(factory=list)
    closes: list[int] = attrs.field(factory=list)
    came: dict[str, int] = attrs.field(factory=dict)
    effects: Effects = attrs.field(factory=Effects)
    grants: list[tuple[int, Process, Granted]] = attrs.field(factory=list)
    bugs: list[Bug] = attrs.field(factory=list)
    violation: RemoteProtocolError | None = None

    @property
    def all_shows(self) -> list[tuple[int, int, str]]:
        """``shows``, and the answers to those who waited for jobs that have ended."""
        return self.shows + self.effects.answered

    def take(self, other: "Decision") -> None:
        """Let another decision, which was applied after this one, be a part of it."""
        self.records += other.records
        self.effects.add(other.effects)
        self.grants += other.grants
        self.sends += other.sends
        self.closes += other.closes

    def send(self, session: int, message: Message) -> None:
        """Let the message leave once the records are durable."""
        self.sends.append((session, message))

    def refuse(self, session: int, call: int, code: str, text: str) -> None:
        """Answer a call with a refusal."""
        self.sends.append((session, Refused(call=call, code=code, text=text)))

    def notify(self, process: Process, message: ToProcess) -> None:
        """Send to a process if its worker is connected; a worker that comes back is
        sent what still counts then."""
        worker = self.state.workers.get(process.worker)
        session = None if worker is None else worker.session
        session = self.came.get(process.worker, session)
        if session is not None:
            self.send(session, message)

    def stop(self, process: Process, reason: str) -> None:
        """End a process gracefully; it takes no more leases."""
        self.records.append(r.ProcessStops(job=process.job, process=process.number))
        message = Stop(job=process.job, process=process.number, reason=reason)
        self.notify(process, message)

    def lose(self, process: Process, why: str, *, counted: bool) -> None:
        """Give up a process that cannot be reached; ``counted`` if that was its job's
        own doing, else it costs the job nothing."""
        self.records.append(
            r.ProcessEnded(
                job=process.job,
                process=process.number,
                how="lost",
                counted=counted,
                text=why,
                at=self.now.wall,
            )
        )

    def stop_all(
        self,
        job: Job,
        reason: str,
        *,
        exclude: int | None = None,
        exports: bool = True,
    ) -> None:
        """Stop the processes of the job that do not end already, without ``exclude``;
        those that write feeds only with ``exports``."""
        for process in self.state.processes_of(job.id):
            is_ending = process.stopping or process.closed
            if process.role == "export" and not exports:
                continue
            if not is_ending and process.number != exclude:
                self.stop(process, reason)

    def close_job(
        self,
        job: Job,
        reason: str,
        failure: Outcome | None = None,
        *,
        exclude: int | None = None,
    ) -> None:
        """Let the spider close for this reason in all processes of the job.

        Process ``exclude`` closes its spider already. A job that closes may be closed
        again, with a ``failure`` that comes to light later.
        """
        has_feeds = job.progress.has_feeds or any(
            process.opened is not None and process.opened.has_feeds
            for process in self.state.processes_of(job.id)
        )
        self.records.append(
            r.Closes(job=job.id, reason=reason, failure=failure, has_feeds=has_feeds)
        )
        # A process that writes feeds goes on with what is left of them.
        goes_on = has_feeds and came_to_end(failure)
        self.stop_all(job, reason, exclude=exclude, exports=not goes_on)

    def fail_feeds(self, job: Job, failure: Outcome) -> None:
        """Note that the job's feeds cannot be written; its crawl is over already."""
        self._fail_after_crawl(job, failure, "feeds")

    def fail_end(self, job: Job, failure: Outcome) -> None:
        """Note that what is called once in a job cannot be called."""
        self._fail_after_crawl(job, failure, "end")

    def _fail_after_crawl(
        self, job: Job, failure: Outcome, of: Literal["feeds", "end"]
    ) -> None:
        self.records.append(
            r.Closes(
                job=job.id,
                reason=job.progress.closing,
                failure=failure,
                has_feeds=False,
                of=of,
            )
        )

    def end_job(self, job: Job, verdict: Verdict) -> None:
        """Bring the job to a final state."""
        ending = verdict.ending
        assert ending.state
        self.records.append(
            r.JobEnded(
                job=job.id,
                state=ending.state,
                reason=verdict.reason,
                traceback=verdict.traceback,
                at=self.now.wall,
                came_to_end=ending.came_to_end,
            )
        )
