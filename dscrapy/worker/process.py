"""One crawl process, from its start to its end.

It runs in a session (process group) of its own, gets its job over a socket pair and
no ``DSCRAPY_*`` variable, and dies with the worker: it holds the other end of a pipe
that nobody writes to. What it prints is the job's log.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame

logger = logging.getLogger(__name__)

# The numbers of two inherited files follow: its link and its lifeline.
COMMAND = (sys.executable, "-P", "-m", "dscrapy.crawl")
_READ_BYTES = 65536
# Times a silent process is asked before its time is up; see ``_probe``.
PROBES = 10
# Messages to a process that does not read; the probes find it before they are many.
MESSAGES_WAITING_MAX = 1024
# Time for the stack dump to reach the log.
DUMP_S = 2.0
_FROM_CRAWL: Decoder[m.FromCrawl] = Decoder(m.FromCrawl)


@attrs.frozen(kw_only=True)
class Death:
    """How a process ended. ``counted``: not by a SIGKILL from outside."""

    status: int
    counted: bool
    text: str


@attrs.define(kw_only=True)
class CrawlProcess:
    """A crawl process for ``start``, in the folder of its project.

    ``on_commit`` takes commits with their frames, ``on_progress`` and ``on_log``
    what they say; none of them waits.
    """

    start: m.Start
    folder: Path
    process_silent_s: float
    stop_grace_s: float
    on_commit: Callable[[m.Commit, bytes], None]
    on_progress: Callable[[m.Progress], None]
    on_log: Callable[[bytes], None]
    valid_until: float = math.inf
    command: tuple[str, ...] = COMMAND
    pid: int = 0
    pages: int = 0
    items: int = 0
    _process: trio.Process | None = None
    _outgoing: tuple[
        trio.MemorySendChannel[m.ToCrawl], trio.MemoryReceiveChannel[m.ToCrawl]
    ] = attrs.field(
        factory=lambda: trio.open_memory_channel[m.ToCrawl](MESSAGES_WAITING_MAX)
    )
    _answered: int = 0
    _heard: trio.Event = attrs.field(factory=trio.Event)
    _stopping: trio.Event = attrs.field(factory=trio.Event)
    _killed_for: str = ""
    _kill_counted: bool = False

    def __attrs_post_init__(self) -> None:
        start = self.start
        run = m.Run(
            job=start.job,
            process=start.process,
            request=start.request,
            spec=start.spec,
        )
        self.tell(run)
        if math.isfinite(self.valid_until):
            self.tell(m.Valid(until=self.valid_until))

    # ---- said by the worker -----------------------------------------------------

    def tell(self, message: m.ToCrawl) -> None:
        """Send the process a message, as soon as it has started."""
        try:
            self._outgoing[0].send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError):
            # Full means that it has not read for long: the probes will find that.
            logger.debug("process %d does not listen", self.start.process)

    def extend(self, until: float) -> None:
        """Let it start requests until this instant of the machine's boot clock."""
        self.valid_until = until
        self.tell(m.Valid(until=until))

    def stop(self, message: m.Stop) -> None:
        """End it gracefully; after ``stop_grace_s`` it is killed."""
        self.tell(message)
        self._stopping.set()

    def kill(self, why: str, *, counted: bool = False) -> None:
        """End it at once; ``counted`` when that is the job's own doing."""
        if self._process is not None and self._process.returncode is None:
            self._killed_for = self._killed_for or why
            self._kill_counted = self._kill_counted or counted
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # The whole group: a spider may have started programs of its own. Its first
        # process is not waited for yet, so the number cannot be another's.
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                logger.debug("process %d is gone already", self.start.process)

    # ---- its life ---------------------------------------------------------------

    async def run(self) -> Death:
        """Run it to its end; raises ``OSError`` when it cannot be started."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            link, its_link = socket.socketpair()
            ours.enter_context(link)
            theirs.enter_context(its_link)
            lifeline, held = os.pipe()
            theirs.callback(os.close, lifeline)
            ours.callback(os.close, held)
            log_read, log_write = os.pipe()
            theirs.callback(os.close, log_write)
            closing_log = ours.enter_context(contextlib.ExitStack())
            closing_log.callback(os.close, log_read)
            oom_kills = _oom_kills()
            self._process = await self._spawn((its_link.fileno(), lifeline), log_write)
            self.pid = self._process.pid
            # Its ends are its own now: when it closes them, ours must show it.
            theirs.close()
            try:
                async with trio.lowlevel.FdStream(log_read) as log:
                    closing_log.pop_all()
                    await self._attend(self._process, link, log)
            finally:
                self.kill("the worker ends")
                with trio.CancelScope(shield=True):
                    await self._process.wait()
        return self._death(self._process, _oom_kills() > oom_kills)

    async def _spawn(self, fds: tuple[int, int], log: int) -> trio.Process:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DSCRAPY_")
        }
        environ["PYTHONHASHSEED"] = str(self.start.hash_seed)
        environ["PYTHONUNBUFFERED"] = "1"
        return await trio.lowlevel.open_process(
            [*self.command, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env=environ,
            pass_fds=fds,
            start_new_session=True,
        )

    async def _attend(
        self,
        process: trio.Process,
        link: socket.socket,
        log: trio.lowlevel.FdStream,
    ) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._write, stream)
            nursery.start_soon(self._probe)
            nursery.start_soon(self._kill_after_grace)
            async with trio.open_nursery() as attending:
                attending.start_soon(self._read, stream)
                attending.start_soon(self._pump, log)
                await process.wait()
                # What it has written before its death still counts; a child of its
                # own that holds the pipe open must not hold us.
                attending.cancel_scope.deadline = trio.current_time() + DUMP_S
            nursery.cancel_scope.cancel()

    async def _write(self, stream: trio.SocketStream) -> None:
        async with self._outgoing[1] as outgoing:
            async for message in outgoing:
                try:
                    await stream.send_all(encode_frame(encode(message)))
                except trio.BrokenResourceError:
                    return

    async def _read(self, stream: trio.SocketStream) -> None:
        frames = FrameReader()
        try:
            while data := await stream.receive_some(_READ_BYTES):
                frames.feed(data)
                while (frame := frames.next_frame()) is not None:
                    self._take(_FROM_CRAWL.decode(frame), frame)
        except trio.BrokenResourceError:
            return
        except RemoteProtocolError as error:
            logger.error("process %d: %s", self.start.process, error)
            self.kill(f"it broke the protocol ({error})", counted=True)

    def _take(self, message: m.FromCrawl, frame: bytes) -> None:
        if isinstance(message, m.Alive):
            self._answered = max(self._answered, message.number)
            self._heard.set()
            return
        mine = (self.start.job, self.start.process)
        is_mine = (message.job, message.process) == mine
        if not is_mine or (
            isinstance(message, m.Commit) and message.request != self.start.request
        ):
            raise RemoteProtocolError("not_held", "a message about another's lease")
        if isinstance(message, m.Commit):
            self.on_commit(message, encode_frame(frame))
        else:
            self.pages, self.items = message.pages, message.items
            self.on_progress(message)

    async def _pump(self, log: trio.lowlevel.FdStream) -> None:
        while data := await log.receive_some(_READ_BYTES):
            self.on_log(bytes(data))

    async def _kill_after_grace(self) -> None:
        await self._stopping.wait()
        await trio.sleep(self.stop_grace_s)
        self.kill(f"it did not stop within {self.stop_grace_s:g} s")

    async def _probe(self) -> None:
        """Ask for signs of life; a process silent for too long is dumped and killed.

        Silence is counted in waits of our own, so time in which the worker itself
        did not run is not held against the process.
        """
        if not self.process_silent_s:
            return
        number = silent = 0
        while silent < PROBES:
            number += 1
            self.tell(m.Probe(number=number))
            with trio.move_on_after(self.process_silent_s / PROBES):
                while self._answered < number:
                    await self._heard.wait()
                    self._heard = trio.Event()
                await trio.sleep_forever()
            silent = silent + 1 if self._answered < number else 0
        logger.warning("process %d is silent: killed", self.start.process)
        self._signal(signal.SIGUSR1)
        await trio.sleep(DUMP_S)
        why = f"its event loop was silent for {self.process_silent_s:g} s"
        self.kill(why, counted=True)

    def _death(self, process: trio.Process, oom: bool) -> Death:
        status = process.returncode
        assert status is not None
        name = f"crawl process {process.pid}"
        if self._killed_for:
            text = f"{name} was killed: {self._killed_for}"
            return Death(status=status, counted=self._kill_counted, text=text)
        if status >= 0:
            text = f"{name} exited with code {status} before its end"
            return Death(status=status, counted=True, text=text)
        by = _signal_name(-status)
        if status == -signal.SIGKILL and oom:
            text = f"{name} was killed for lack of memory"
            return Death(status=status, counted=True, text=text)
        text = f"{name} was killed by {by}"
        return Death(status=status, counted=status != -signal.SIGKILL, text=text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        # Not Linux: such a kill cannot be told from one from outside.
        return 0
    fields = dict(line.split() for line in lines)
    return int(fields.get("oom_kill", 0))
