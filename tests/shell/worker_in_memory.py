"""Real workers without machines: a network that fails as told, and crawl processes
that are tasks. They join the master of ``master_in_memory`` in virtual time."""

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import msgspec
import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.conf.config import Config, Endpoint, WorkerConfig
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import Outcome, Stats
from dscrapy.net.connection import Connection, accept, greet
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.proto.handshake import Role
from dscrapy.worker.agent import Worker
from dscrapy.worker.crawl_process import Death
from dscrapy.worker.process_view import Process
from tests import builders as b
from tests.doubles.masters import TOKEN

T = TypeVar("T")

# How a connection fails: closed between two frames, inside one, or without a word.
Fault = Literal["closed", "torn", "silent"]
Serve = Callable[[trio.abc.Stream], Awaitable[None]]
Script = Callable[[Connection[Any], m.Register], Awaitable[None]]
# What a killed process takes to be gone.
DYING_S = 0.25
# More frames than any test sends.
NEVER = 1 << 30
# What a page adds to the job's stats.
PAGE: Stats = {"sum": {"response_received_count": msgspec.Raw(b"1")}}


# ---- network -----------------------------------------------------------------------


class FailingStream(trio.abc.Stream):
    """A stream that fails after ``frames`` frames, counted in both directions.

    One that fails silently goes on taking bytes, and the other side never learns of
    its end.
    """

    def __init__(
        self, inner: trio.abc.Stream, frames: int, fault: Fault, lag_s: float = 0.0
    ) -> None:
        """``lag_s`` is what each frame takes to be sent."""
        self._inner = inner
        self._lag_s = lag_s
        self._left = frames
        self._fault = fault
        self._incoming = FrameReader()
        # Whether a frame was lost by it.
        self.has_failed = False

    @property
    def _is_silent(self) -> bool:
        return self._left <= 0 and self._fault == "silent"

    async def _pass(self, frame: bytes) -> bytes:
        """Return what of the frame goes through; raises when nothing ever will."""
        if self._left > 0:
            self._left -= 1
            return frame
        self.has_failed = True
        if self._fault == "torn" and self._left == 0:
            self._left = -1
            return frame[: len(frame) // 2]
        await self.fail()
        raise trio.BrokenResourceError("the network failed")

    async def fail(self) -> None:
        """Break the connection; both sides find out."""
        self._left, self._fault = -1, "closed"
        await trio.aclose_forcefully(self._inner)

    def hush(self) -> None:
        """Let nothing through from now on, either way; nobody finds out."""
        self._left, self._fault = 0, "silent"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        frames = FrameReader()
        frames.feed(bytes(data))
        while (payload := frames.next_frame()) is not None:
            await trio.sleep(self._lag_s)
            if self._is_silent:
                self.has_failed = True
            else:
                await self._inner.send_all(await self._pass(encode_frame(payload)))

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # One frame at a time: what follows may come an instant later, or never.
        while (payload := self._incoming.next_frame()) is None:
            try:
                data = await self._inner.receive_some(max_bytes)
            except trio.ClosedResourceError:
                if self._left >= 0:
                    raise
                raise trio.BrokenResourceError("the network failed") from None
            if not data:
                return b""
            self._incoming.feed(data)
        if self._is_silent:
            self.has_failed = True
            await trio.sleep_forever()
        return await self._pass(encode_frame(payload))

    async def aclose(self) -> None:
        if self._is_silent:
            await trio.lowlevel.checkpoint()
        else:
            await self._inner.aclose()


class Network:
    """Where a worker dials. ``faults`` gives each connection its end in turn.

    ``serve`` is the master's side; while it is None nobody answers. ``dialled`` has
    the instant of each attempt. ``lag_s`` is what each frame of a worker takes.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        serve: Serve | None,
        faults: Iterator[tuple[int, Fault]] | None = None,
    ) -> None:
        self.nursery = nursery
        self.serve = serve
        self.faults = faults or repeat((NEVER, "closed"))
        self.lag_s = 0.0
        self.dialled: list[float] = []
        self._streams: list[FailingStream] = []

    async def dial(
        self,
        host: str,
        port: int,
        *,
        token: str,
        role: Role,
        incoming: Any,
        timeout_s: float,
    ) -> Connection[Any]:
        """Do as ``net.connection.dial``, with its errors."""
        self.dialled.append(trio.current_time())
        if self.serve is None:
            await trio.lowlevel.checkpoint()
            raise OSError("connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        frames, fault = next(self.faults)
        stream = FailingStream(ours, frames, fault, self.lag_s)
        self._streams.append(stream)
        self.nursery.start_soon(self.serve, theirs)
        return await self.greet(
            stream, token=token, role=role, incoming=incoming, timeout_s=timeout_s
        )

    async def greet(
        self,
        stream: trio.abc.Stream,
        *,
        token: str,
        role: Role,
        incoming: Any,
        timeout_s: float,
    ) -> Connection[Any]:
        """Shake hands within the time, with the errors of ``dial``."""
        with trio.move_on_after(timeout_s):
            try:
                return await greet(stream, token=token, role=role, incoming=incoming)
            except BaseException as error:
                await trio.aclose_forcefully(stream)
                if isinstance(error, trio.BrokenResourceError):
                    raise RemoteProtocolError("no_handshake", "hung up") from error
                raise
        raise OSError(f"no answer within {timeout_s:g} s")

    @property
    def failed(self) -> int:
        """How many of the connections that were not cut have failed."""
        return sum(stream.has_failed for stream in self._streams)

    async def cut(self) -> None:
        """Break every connection there is; both sides find out."""
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.fail()

    async def down(self, fault: Fault = "closed") -> None:
        """End the connections; nobody answers until ``serve`` is set again."""
        self.serve = None
        if fault == "silent":
            for stream in self._streams:
                stream.hush()
        else:
            await self.cut()


# ---- masters by script -------------------------------------------------------------


def serving(*scripts: Script, token: str = TOKEN) -> Serve:
    """A master that shakes hands and plays a script with each connection in turn.

    A script gets the connection after the worker's registration; when it returns
    the connection is closed. The last script is played again and again.
    """
    left = list(scripts)

    async def serve(stream: trio.abc.Stream) -> None:
        script = left.pop(0) if len(left) > 1 else left[0]
        incoming: Any = {"worker": m.FromWorker}
        try:
            connection = await accept(stream, token=token, incoming=incoming)
            async with connection:
                register = await connection.receive()
                assert isinstance(register, m.Register)
                await script(connection, register)
        except (RemoteProtocolError, trio.BrokenResourceError):
            await trio.aclose_forcefully(stream)

    return serve


# ---- crawl processes ---------------------------------------------------------------


async def in_place(call: Callable[[], T], /) -> T:
    """Run a blocking call at once: virtual time must not run past a thread."""
    await trio.lowlevel.checkpoint()
    return call()


class Slow:
    """Holds up what runs in a thread until ``go`` is set."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.asked = 0

    async def __call__(self, call: Callable[[], T], /) -> T:
        self.asked += 1
        await self.go.wait()
        return call()


@attrs.define(kw_only=True, eq=False)
class Crawl:
    """A crawl process that is a task; it takes what ``CrawlProcess`` takes.

    It does a page in ``page_s`` seconds, one at a time, while it may start requests;
    a page commits one item. Leading it commits ``start()``, an element for each page,
    and closes when it is told that nothing is left. ``worked`` has the instants at
    which it began pages, ``told`` all that it was told.
    """

    crawls: "Crawls"
    start: m.Start
    folder: Path
    process_silent_s: float
    stop_grace_s: float
    on_message: Callable[[m.FromProcess, bytes], None]
    on_log: Callable[[bytes], None]
    wait_room: Callable[[], Awaitable[None]]
    valid_until: float = math.inf
    told: list[m.ToCrawl] = attrs.field(factory=list)
    worked: list[float] = attrs.field(factory=list)
    end: Literal["", "exited", "killed"] = ""
    _inbox: deque[tuple[int, msgspec.Raw]] = attrs.field(factory=deque)
    _units: int = 0
    _starts: int = 0
    _may_start: int = 0
    _next_element: int | None = None
    _skip: Counter[bytes] = attrs.field(factory=Counter)
    _finish: int = 0
    _stop: m.Stop | None = None
    _is_done: bool = False
    _dies_after: int | None = None
    _changed: trio.Event = attrs.field(factory=trio.Event)

    # ---- said by the worker -----------------------------------------------------

    def tell(self, message: m.ToCrawl) -> None:
        self.told.append(message)
        match message:
            case m.Grant():
                self._inbox.extend(zip(message.requests, message.bodies, strict=True))
            case m.Skip():
                digests = message.digests
                for at in range(0, len(digests), m.DIGEST_BYTES):
                    self._skip[digests[at : at + m.DIGEST_BYTES]] += 1
            case m.Lead():
                self._next_element = 0 if message.start else self.crawls.pages + 1
            case m.StartMay():
                self._may_start = message.upto
            case m.Finish():
                self._finish = message.number
            case m.Done():
                self._is_done = True
            case _:
                pass
        self._wake()

    def extend(self, until: float) -> None:
        self.valid_until = until
        self.tell(m.Valid(until=until))

    def stop(self, message: m.Stop) -> None:
        self._stop = message
        self.tell(message)

    def wait_for_order(self) -> None:
        pass

    def retire(self, message: m.Retire) -> None:
        self.tell(message)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---- its life ---------------------------------------------------------------

    async def run(self) -> Death:
        """Crawl to the end; a cancelled one takes a moment to die."""
        self.crawls.started.append(self)
        if self.crawls.deaths:
            self._dies_after = self.crawls.deaths.pop(0)
        if self.crawls.error is not None:
            raise self.crawls.error
        try:
            await self._crawl()
            self.end = "exited"
        finally:
            if not self.end:
                with trio.CancelScope(shield=True):
                    await trio.sleep(DYING_S)
                # Only now it is gone.
                self.end = "killed"
        return Death(counted=True, text="crawl process exited with code 0")

    async def _crawl(self) -> None:
        self.say(b.opened(**self._ids, window=self.crawls.window, concurrency=8))
        while self._stop is None and not self._is_over():
            if len(self.worked) == self._dies_after:
                return
            if self._next_element is not None and self._goes_on_with_start():
                continue
            if self._inbox and trio.current_time() <= self.valid_until:
                await self._do_page(*self._inbox.popleft())
            else:
                await self._changed.wait()
        reason = self._stop.reason if self._stop else "finished"
        self.say(m.Closing(**self._ids, reason=reason))
        if self._inbox:
            given_back = tuple(request for request, _ in self._inbox)
            self.say(m.Release(**self._ids, requests=given_back))
        self.commit_unit("closed", end=Outcome(finish_reason=reason))
        while not self._is_done:
            await self._changed.wait()

    def _is_over(self) -> bool:
        return bool(self._finish) and not self._inbox

    def _goes_on_with_start(self) -> bool:
        """Commit the next element of ``start()`` if that is possible now."""
        number = self._next_element
        assert number is not None
        if number > self.crawls.pages:
            return False
        if number == self.crawls.pages:
            self.commit_unit("started")
            self._next_element = number + 1
            return True
        digest = number.to_bytes(m.DIGEST_BYTES)
        if self._skip[digest]:
            self._skip[digest] -= 1
        elif self._starts >= self._may_start:
            return False
        else:
            self._starts += 1
            self.commit_unit(
                "start", digest=digest, children=b.children(number, flags=m.DONT_FILTER)
            )
        self._next_element = number + 1
        return True

    async def _do_page(self, request: int, body: msgspec.Raw) -> None:
        self.worked.append(trio.current_time())
        self.on_log(b"page %s\n" % bytes(body))
        await trio.sleep(self.crawls.page_s)
        self.commit(m.Commit(request=request, items=(body,), stats=PAGE))

    # ---- said by the process ----------------------------------------------------

    @property
    def _ids(self) -> Any:
        return {"job": self.start.job, "process": self.start.process}

    def commit(self, *commits: m.Commit) -> None:
        """Commit, all in one message."""
        self.say(b.commits(self.start.process, *commits, job=self.start.job))

    def commit_unit(self, kind: Any, **fields: Any) -> None:
        """Commit the next unit."""
        self._units += 1
        self.commit(m.Commit(unit=self._units, kind=kind, **fields))

    def say(self, message: m.FromProcess) -> None:
        """Say something to the master."""
        self.on_message(message, encode_frame(encode(message)))


@attrs.define(kw_only=True)
class Crawls:
    """Makes crawl processes for workers; ``started`` has all of them in order.

    With ``error`` none can be started. The first ones die when they have begun as many
    pages as ``deaths`` says, None for never.
    """

    pages: int = 4
    page_s: float = 1.0
    # Of leases: small, so that grants are met often.
    window: int = 2
    error: OSError | None = None
    deaths: list[int | None] = attrs.field(factory=list)
    started: list[Crawl] = attrs.field(factory=list)

    def __call__(self, **fields: Any) -> Crawl:
        return Crawl(crawls=self, **fields)

    @property
    def lines(self) -> list[bytes]:
        """The lines of one whole job, sorted."""
        return sorted(bytes(b.body_of(page)) for page in range(self.pages))

    def check_fences(self) -> None:
        """Of a job, a process does nothing once a later one of it has begun to."""
        latest: dict[str, int] = {}
        steps = [(at, one) for one in self.started for at in one.worked]
        for _, one in sorted(steps, key=lambda step: step[0]):
            start = one.start
            assert start.process >= latest.get(start.job, 0)
            latest[start.job] = start.process


# ---- workers -----------------------------------------------------------------------


def config_of(folder: Path, **fields: Any) -> Config:
    """Return the settings of a worker that has the project ``p``."""
    project = folder / "projects" / "p"
    if not project.exists():
        project.mkdir(parents=True)
        (project / "scrapy.cfg").write_text("[settings]\n")
    return Config(
        state=folder / "state",
        projects_root=project.parent,
        token=TOKEN,
        worker=WorkerConfig(master="127.0.0.1:7411", **fields),
    )


def worker_of(
    network: Network,
    crawls: Callable[..., Process],
    folder: Path,
    *,
    name: str = "w",
    slots: int = 1,
    draw: Callable[[], float] = lambda: 0.5,
    **fields: Any,
) -> Worker:
    """Return a real worker that dials there; ``run`` it. ``draw`` spreads its tries."""
    values: dict[str, Any] = {
        "config": config_of(folder),
        "crawl": crawls,
        "in_thread": in_place,
        "dial": network.dial,
        "instant": trio.current_time,
    }
    worker = Worker(
        name=name,
        endpoint=Endpoint("127.0.0.1", 7412),
        slots=slots,
        **(values | fields),
    )
    worker.link.draw = draw
    return worker
