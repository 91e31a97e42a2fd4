"""What a decision consists of, and the commands that come from the master itself."""

from typing import Literal

import attrs

from dscrapy.frontier import records as r
from dscrapy.frontier.clock import Now
from dscrapy.frontier.jobs import Job, Process
from dscrapy.frontier.state import State
from dscrapy.messages import Hold, Message, Refused, Stop


@attrs.frozen
class OnTick:
    """A deadline may have passed."""


@attrs.frozen
class OnClosed:
    """The session's connection has ended."""


@attrs.define(kw_only=True)
class Decision:
    """Records to apply in order; then messages to send and sessions to close.

    ``shows`` are answers that show a job or schedule as it stands afterwards:
    session, call and id.
    """

    records: list[r.Record | r.Volatile] = attrs.field(factory=list)
    sends: list[tuple[int, Message]] = attrs.field(factory=list)
    shows: list[tuple[int, int, str]] = attrs.field(factory=list)
    closes: list[int] = attrs.field(factory=list)

    def send(self, session: int, message: Message) -> None:
        """Let the message leave once the records are durable."""
        self.sends.append((session, message))

    def refuse(self, session: int, call: int, code: str, text: str) -> None:
        """Answer a call with a refusal."""
        self.sends.append((session, Refused(call=call, code=code, text=text)))

    def tell(self, state: State, process: Process, message: Stop | Hold) -> None:
        """Tell a process; one that cannot be reached is told when it is back."""
        worker = state.workers.get(process.worker)
        if worker is not None and worker.session is not None:
            self.send(worker.session, message)

    def end_job(
        self,
        job: Job,
        end: Literal["succeeded", "failed", "cancelled"],
        reason: str,
        now: Now,
        traceback: str = "",
    ) -> None:
        """Bring the job to a final state."""
        self.records.append(
            r.JobEnded(
                job=job.id, state=end, reason=reason, traceback=traceback, at=now.wall
            )
        )


def stop_message(process: Process, reason: str) -> Stop:
    """Return what ends a process gracefully."""
    return Stop(job=process.job, process=process.number, reason=reason)


def hold_message(process: Process, *, on: bool) -> Hold:
    """Return what holds a process or lets it go on."""
    return Hold(job=process.job, process=process.number, on=on)
