"""Calls to a master: dial, ask, and ask again when the connection is lost.

A call is carried out once, or the caller gets an error. Calls that only read, and
submits (the same id is the same job), are repeated on a new connection; a change is
not, since only its reply may be lost. A *patient* client waits for a master that
it has reached once, however long that takes; any other gives up after
``connect_timeout_s``.

While a client waits for an answer it pings the master, so that a long wait ends when
the master's machine is gone, and only then.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

import attrs
import msgspec
import trio

from dscrapy.errors import (
    RefusedError,
    RemoteProtocolError,
    UnauthorisedError,
    UnreachableError,
    UserError,
)
from dscrapy.messages import (
    Accepted,
    Answer,
    ChangeJob,
    Chunk,
    ClientCall,
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
from dscrapy.model import JobView, Submission
from dscrapy.net.connection import Connection, dial
from dscrapy.proto.framing import FRAME_BYTES_MAX
from dscrapy.proto.handshake import Role, Unauthorised

T = TypeVar("T")
A = TypeVar("A", bound=Answer)

# Submissions of one frame: large enough that its round trip does not show, small
# enough that the master never holds the loop for long with one.
PART_BYTES_MAX = 1024 * 1024
# One answer's worth of a file; base64 makes a third more of it on the wire.
CHUNK_BYTES = 1024 * 1024
# The most that ``ListJobs`` gives at a time.
JOBS_PAGE = 1000
JOBS_PAGE_MIN = 100
# A master that answers neither the call nor two pings in a row is gone.
PING_EVERY_S = 10.0
PINGS_UNANSWERED_MAX = 2
# Between attempts to reach the master: quick at first, since it may just be
# starting, then seldom enough not to be noticed.
BACK_OFF_FIRST_S = 0.05
BACK_OFF_MAX_S = 2.0
# Room in a frame for what stands around a submission.
_FRAME_HEADROOM_BYTES = 1024


@attrs.frozen(kw_only=True)
class Target:
    """Where the master is and how to prove that we may talk to it.

    ``token`` is None when none was found; ``token_from`` says where it was found
    or looked for, for people.
    """

    host: str
    port: int
    token: str | None = attrs.field(repr=False)
    token_from: str

    @property
    def name(self) -> str:
        """Return ``host:port`` as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class _Lost(Exception):
    """The connection ended before the answer came; never leaves this module."""


class _Silence:
    """Counts the pings that nobody answered."""

    def __init__(self) -> None:
        self.pings = 0
        self.over = trio.Event()


class Dial(Protocol):
    """What ``net.connection.dial`` is; tests dial over memory."""

    async def __call__(
        self,
        host: str,
        port: int,
        *,
        token: str,
        role: Role,
        incoming: Any,
        timeout_s: float,
    ) -> Connection[Any]: ...


def _say_nothing(text: str) -> None:
    pass


class Client:
    """A connection to the master, dialled when a call needs it.

    One call at a time. ``find`` is asked before each attempt to connect, since a
    master that was started again may listen elsewhere; ``tell`` gets one line for
    people when the client begins to wait for the master. Use as an async context
    manager: leaving it closes the connection.
    """

    def __init__(
        self,
        find: Callable[[], Target],
        *,
        connect_timeout_s: float,
        patient: bool = False,
        tell: Callable[[str], None] = _say_nothing,
        dial: Dial = dial,
    ) -> None:
        self._find = find
        self._connect_timeout_s = connect_timeout_s
        self._patient = patient
        self._tell = tell
        self._dialler = dial
        self._connection: Connection[Answer] | None = None
        self._was_connected = False
        self._calls = 0
        self._is_busy = False
        self._is_loss_reported = False

    # ---- calls --------------------------------------------------------------

    async def submit(self, submissions: Iterable[Submission]) -> None:
        """Submit all or nothing; returns when they are durable.

        Raises ``UserError`` for a submission that fits in no frame, and as
        ``call`` does.
        """
        parts = list(_cut(submissions))

        async def send_all(connection: Connection[Answer]) -> None:
            for number, part in enumerate(parts):
                message = Submit(
                    call=0,
                    part=number,
                    last=number == len(parts) - 1,
                    submissions=part,
                )
                _expect(Accepted, await self._ask(connection, message))

        if parts:
            await self._carry_out(send_all, repeat=True)

    async def status(self) -> Status:
        """Return who is there and what goes on."""
        return _expect(Status, await self.call(GetStatus(call=0)))

    async def jobs(
        self,
        states: tuple[str, ...] = (),
        newest: bool = False,
        limit: int | None = None,
        wanted: Callable[[JobView], bool] = lambda job: True,
    ) -> list[JobView]:
        """Return all jobs in order of submission, or the newest first; of those that
        are ``wanted`` the first ``limit``."""
        jobs: list[JobView] = []
        after: int | None = None
        # Few are on a short page; not so short that a search takes many of them.
        page_max = min(max(limit or JOBS_PAGE, JOBS_PAGE_MIN), JOBS_PAGE)
        while True:
            message = ListJobs(
                call=0, after=after, limit=page_max, states=states, newest=newest
            )
            page = _expect(Jobs, await self.call(message))
            jobs.extend(job for job in page.jobs if wanted(job))
            after = page.next
            if limit is not None and len(jobs) >= limit:
                return jobs[:limit]
            if after is None:
                return jobs

    async def show(self, job: str) -> Shown:
        """Return all that is known of a job or schedule."""
        return _expect(Shown, await self.call(ShowJob(call=0, job=job)))

    async def wait(self, job: str) -> Shown:
        """Return the job once it is in a final state."""
        return _expect(Shown, await self.call(WaitJob(call=0, job=job)))

    async def change(self, message: ChangeJob) -> Shown:
        """Change a job's life, once; ``call`` of the message is ignored."""
        return _expect(Shown, await self.call(message, repeat=False))

    async def remove(self, job: str) -> None:
        """Remove an ended job, or a cancelled schedule; returns when it is gone."""
        _expect(Accepted, await self.call(Remove(call=0, job=job), repeat=False))

    async def prune(self, message: Prune) -> Pruned:
        """Remove ended jobs beyond limits; ``call`` of the message is ignored."""
        return _expect(Pruned, await self.call(message, repeat=message.dry_run))

    async def drain(self, worker: str) -> None:
        """Let a worker finish and leave."""
        message = DrainWorker(call=0, worker=worker)
        _expect(Accepted, await self.call(message, repeat=False))

    async def read_file(self, message: ReadFile) -> Chunk:
        """Return bytes of a job's file; ``call`` of the message is ignored."""
        return _expect(Chunk, await self.call(message))

    async def call(self, message: ClientCall, *, repeat: bool = True) -> Answer:
        """Return the answer to a call; ``repeat`` when it may be made twice.

        Raises ``RefusedError`` for a refusal, ``UnreachableError`` when nobody
        answers in time and ``UnauthorisedError`` for a missing or wrong token.
        """
        return await self._carry_out(
            lambda connection: self._ask(connection, message), repeat=repeat
        )

    async def aclose(self) -> None:
        """Close the connection; the next call dials again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # ---- over lost connections ----------------------------------------------

    async def _carry_out(
        self, action: Callable[[Connection[Answer]], Awaitable[T]], *, repeat: bool
    ) -> T:
        give_up_at: float | None = None
        pause = BACK_OFF_FIRST_S
        while True:
            connection = await self._connected()
            try:
                result = await self._run_alone(action, connection)
                self._is_loss_reported = False
                return result
            except _Lost as lost:
                reason = str(lost)
            where = self._find().name
            if not repeat:
                raise UnreachableError(
                    f"the connection to the master at {where} was lost ({reason}): "
                    "whether it carried this out is unknown, see `dscrapy jobs` or "
                    "`dscrapy workers` before you repeat it"
                )
            if self._patient:
                self._report_loss(f"lost the master at {where} ({reason}), waiting")
            elif give_up_at is None:
                give_up_at = trio.current_time() + self._connect_timeout_s
            elif trio.current_time() >= give_up_at:
                raise UnreachableError(
                    f"the master at {where} does not answer ({reason}): "
                    "see its log, then repeat the command"
                )
            # A master that accepts and hangs up at once must not be hammered.
            await trio.sleep(pause)
            pause = min(2 * pause, BACK_OFF_MAX_S)

    def _report_loss(self, text: str) -> None:
        if not self._is_loss_reported:
            self._tell(text)
        self._is_loss_reported = True

    async def _run_alone(
        self,
        action: Callable[[Connection[Answer]], Awaitable[T]],
        connection: Connection[Answer],
    ) -> T:
        assert not self._is_busy, "one call at a time"
        self._is_busy = True
        try:
            return await action(connection)
        except BaseException:
            # An answer may still be on its way; no later call may take it for its own.
            self._connection = None
            await _close(connection)
            raise
        finally:
            self._is_busy = False

    async def _connected(self) -> Connection[Answer]:
        if self._connection is None:
            self._connection = await self._dial()
            self._was_connected = True
        return self._connection

    async def _dial(self) -> Connection[Answer]:
        """Connect, trying again until it is time to give up."""
        waits = self._patient and self._was_connected
        give_up_at = trio.current_time() + self._connect_timeout_s
        pause = BACK_OFF_FIRST_S
        while True:
            target = self._find()
            left_s = self._connect_timeout_s
            if not waits:
                left_s = give_up_at - trio.current_time()
            try:
                return await _dial_once(
                    self._dialler, target, max(left_s, BACK_OFF_FIRST_S)
                )
            except OSError as error:
                reason = _reason(error)
            except UnauthorisedError:
                # A master that starts makes its token just before it listens.
                if target.token is not None or self._find().token is None:
                    raise
                continue
            if not waits and trio.current_time() + pause >= give_up_at:
                raise UnreachableError(
                    f"no master answers at {target.name} ({reason}) after "
                    f"{self._connect_timeout_s:g} s: start one with `dscrapy master`, "
                    "or name another with --master HOST:PORT or --state DIR"
                )
            await trio.sleep(pause)
            pause = min(2 * pause, BACK_OFF_MAX_S)

    # ---- one connection -----------------------------------------------------

    async def _ask(self, connection: Connection[Answer], message: ClientCall) -> Answer:
        """Send the call and return its answer; raises ``_Lost``."""
        number = self._next_call()
        silence = _Silence()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping, connection, silence)
            # Outcomes are values in here: what a nursery's body raises is wrapped.
            try:
                outcome: Answer | _Lost | RemoteProtocolError
                await connection.send(msgspec.structs.replace(message, call=number))
                outcome = await _answer_to(connection, number, silence)
            except _Lost as error:
                outcome = error
            except RemoteProtocolError as error:
                outcome = error
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                outcome = _Lost("the connection broke")
            finally:
                silence.over.set()
        return self._judge(outcome)

    def _judge(self, outcome: "Answer | _Lost | RemoteProtocolError") -> Answer:
        if isinstance(outcome, _Lost):
            raise outcome
        if isinstance(outcome, RemoteProtocolError):
            if outcome.code == "cut_short":
                raise _Lost("it hung up inside an answer")
            raise UnreachableError(
                f"what answers at {self._find().name} is no dscrapy master that "
                f"this command understands ({outcome}): install the same dscrapy"
            )
        if isinstance(outcome, Refused):
            raise RefusedError(outcome.code, outcome.text)
        return outcome

    async def _ping(self, connection: Connection[Answer], silence: _Silence) -> None:
        """Ask for signs of life until the answer is here; end a dead connection."""
        while True:
            # Waits instead of being cancelled: a cancelled send closes the stream.
            with trio.move_on_after(PING_EVERY_S):
                await silence.over.wait()
            if silence.over.is_set():
                return
            if silence.pings == PINGS_UNANSWERED_MAX:
                await _close(connection)
                return
            silence.pings += 1
            try:
                await connection.send(Ping(call=self._next_call()))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls


async def _close(connection: Connection[Answer]) -> None:
    """Close the stream at once, also when cancelled."""
    async with connection:
        pass


async def _answer_to(
    connection: Connection[Answer], number: int, silence: _Silence
) -> Answer:
    while True:
        answer = await connection.receive()
        if answer is None:
            raise _Lost("it hung up")
        silence.pings = 0
        if answer.call == number:
            return answer
        if answer.call == -1:
            assert isinstance(answer, Refused)
            return answer


async def _dial_once(
    dial: Dial, target: Target, timeout_s: float
) -> Connection[Answer]:
    """Connect once; raises ``OSError`` when it is worth trying again."""
    if target.token is None:
        with trio.move_on_after(timeout_s):
            # Whether a master is there at all decides which error helps.
            await trio.aclose_forcefully(
                await trio.open_tcp_stream(target.host, target.port)
            )
            raise UnauthorisedError(
                f"the master at {target.name} wants its token: {target.token_from}"
            )
        raise OSError("no answer")
    try:
        return await dial(
            target.host,
            target.port,
            token=target.token,
            role="client",
            incoming=Answer,
            timeout_s=timeout_s,
        )
    except Unauthorised as error:
        raise UnauthorisedError(
            f"the master at {target.name} does not accept our token "
            f"({error.detail}): {target.token_from}"
        ) from None
    except RemoteProtocolError as error:
        if error.code in ("no_handshake", "cut_short"):
            # The master is being started or stopped. If it is no master, trying again
            # shows that.
            raise OSError("it hangs up during the handshake") from None
        raise UnreachableError(
            f"what answers at {target.name} is no dscrapy master that this command "
            f"understands ({error}): check --master, install the same dscrapy"
        ) from None


def _reason(error: OSError) -> str:
    """Return why a connection could not be made, in a few words."""
    cause: BaseException | None = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        error = cause
    # A positive number is the system's, whose text is shorter than trio's.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _cut(submissions: Iterable[Submission]) -> Iterator[tuple[Submission, ...]]:
    """Yield the submissions in parts that fit in a frame."""
    part: list[Submission] = []
    part_bytes = 0
    for submission in submissions:
        size = len(msgspec.json.encode(submission)) + 1
        if size > FRAME_BYTES_MAX - _FRAME_HEADROOM_BYTES:
            spider = submission.spec.spider
            raise UserError(
                f"the job of spider {spider} takes {size} bytes, the limit is "
                f"{FRAME_BYTES_MAX - _FRAME_HEADROOM_BYTES}: give it fewer urls, or "
                "let the spider read them from a file"
            )
        if part and part_bytes + size > PART_BYTES_MAX:
            yield tuple(part)
            part, part_bytes = [], 0
        part.append(submission)
        part_bytes += size
    if part:
        yield tuple(part)


def _expect(kind: type[A], answer: Answer) -> A:
    """Return the answer as the type that the call is answered by."""
    if not isinstance(answer, kind):
        raise UnreachableError(
            f"the master gave a {type(answer).__name__} where a {kind.__name__} "
            "belongs: install the same dscrapy"
        )
    return answer
