"""One crawl process, from its start to its end.

The process runs in a session (process group) of its own, gets its job over a socket
pair and no ``DSCRAPY_*`` variable. It dies with the worker: it reads a pipe that nobody
writes to, which ends when the worker does. What it prints is the job's log.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.proto.in_flight import AWAITS_AT, SLOTS_MAX, decode_marks, file_bytes
from dscrapy.worker.caller_streams import Caller, ProcessInputs

logger = logging.getLogger(__name__)

# The numbers of three inherited files follow: its link, its lifeline and its marks.
COMMAND = (sys.executable, "-P", "-m", "dscrapy.crawl")
_READ_BYTES = 65536
# Bytes of one write: several small messages share a system call.
_WRITE_BYTES = 65536
# Times a silent process is asked before its time is up; see ``_probe``.
PROBES = 10
# Messages that wait for a process to read them. While user code blocks its loop, some
# hundreds may come: a window of leases, answers to its messages, a probe now and then.
# A process with more has stopped reading; none can be dropped, for it may be a lease.
MESSAGES_WAITING_MAX = 4096
# Bytes of these messages: a window of the longest requests.
MESSAGES_WAITING_BYTES_MAX = 256 * 1024 * 1024
# Time for the stack dump to reach the log.
DUMP_S = 2.0
# Where Linux counts its kills for lack of memory, as ``oom_kill``.
VMSTAT = Path("/proc/vmstat")
# A process of a cluster has no caller.
_NO_CALLER = ProcessInputs(
    local=None,
    stdin=Path(os.devnull),
    no_stdin="only `dscrapy crawl` hands it on",
)
_FROM_CRAWL: Decoder[m.FromCrawl] = Decoder(m.FromCrawl)


@attrs.frozen(kw_only=True)
class Death:
    """How a process ended. ``counted``: by its own doing, not a SIGKILL from outside.

    ``under_way`` are the requests that it had in flight, as it says itself.
    """

    counted: bool
    text: str
    under_way: tuple[m.UnderWay, ...] = ()


@attrs.define(kw_only=True)
class CrawlProcess:
    """A crawl process for ``start``, in the folder of its project or of ``caller``.

    ``on_message`` takes its messages to the master, with the frame to send on, and
    raises ``RemoteProtocolError`` for one that it may not send; ``on_log`` takes its
    log. Neither waits. ``wait_room`` waits until messages can be taken: meanwhile the
    process is not read, and its silence does not count.
    """

    start: m.Start
    folder: Path
    process_silent_s: float
    stop_grace_s: float
    on_message: Callable[[m.FromProcess, bytes], None]
    on_log: Callable[[bytes], None]
    wait_room: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    valid_until: float = math.inf
    command: tuple[str, ...] = COMMAND
    caller: Caller | None = None
    _process: trio.Process | None = None
    _waiting: deque[bytes] = attrs.field(factory=deque)
    _waiting_bytes: int = 0
    # Whether the process is not read just now.
    _is_reading_paused: bool = False
    _is_validity_sent: bool = True
    _has_output: trio.Event = attrs.field(factory=trio.Event)
    _answered: int = 0
    _heard: trio.Event = attrs.field(factory=trio.Event)
    _stopping: trio.Event = attrs.field(factory=trio.Event)
    _awaits_order: trio.Event = attrs.field(factory=trio.Event)
    _is_retiring: trio.Event = attrs.field(factory=trio.Event)
    _killed_for: str = ""
    _kill_counted: bool = False
    _inputs: ProcessInputs = _NO_CALLER
    # The file in which it marks requests in flight, while it runs.
    _marks: int = -1

    def __attrs_post_init__(self) -> None:
        start = self.start
        if self.caller is not None:
            self.folder = self.caller.folder
            self._inputs = self.caller.inputs_for(start.role)
        self.tell(
            m.Run(
                job=start.job,
                process=start.process,
                role=start.role,
                spec=start.spec,
                came_to_end=start.came_to_end,
                key=start.key,
                opened_at=start.opened_at,
                local=self._inputs.local,
                no_stdin=self._inputs.no_stdin,
            )
        )
        self._is_validity_sent = not math.isfinite(self.valid_until)

    # ---- said by the worker -----------------------------------------------------

    def tell(self, message: m.ToCrawl) -> None:
        """Send the process a message, as soon as it has started.

        A process that does not read its messages is killed.
        """
        if (
            len(self._waiting) >= MESSAGES_WAITING_MAX
            or self._waiting_bytes > MESSAGES_WAITING_BYTES_MAX
        ):
            self.kill("it does not read its messages")
            return
        # As a frame: a message of many small values costs many times as much.
        frame = encode_frame(encode(message))
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        self._has_output.set()

    def extend(self, until: float) -> None:
        """Let it start requests until this instant of the machine's boot clock."""
        # Only the latest instant is sent, however long the process has not read.
        self.valid_until = until
        self._is_validity_sent = False
        self._has_output.set()

    def stop(self, message: m.Stop) -> None:
        """End it gracefully; after ``stop_grace_s`` it is killed."""
        self.tell(message)
        self._stopping.set()

    def wait_for_order(self) -> None:
        """Do not kill it for not stopping: it is done, and waits for an order."""
        self._awaits_order.set()

    def retire(self, message: m.Retire) -> None:
        """Let it close; ``stop_grace_s`` begins anew if it was told to stop."""
        self.tell(message)
        self._is_retiring.set()

    def kill(self, reason: str, *, counted: bool = False) -> None:
        """End it at once; ``counted`` when that is the job's own doing."""
        if self._process is not None and self._process.returncode is not None:
            return
        # A process that has not started yet is killed when it has.
        if not self._killed_for:
            self._killed_for, self._kill_counted = reason, counted
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # The whole group: a spider may have started programs of its own. The group's
        # first process is not waited for yet, so no other group can have its number.
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                logger.debug("process %d is gone already", self.start.process)

    # ---- its life ---------------------------------------------------------------

    async def run(self) -> Death:
        """Run it to its end; raises ``OSError`` when it cannot be started."""
        with contextlib.ExitStack() as own_ends, contextlib.ExitStack() as child_ends:
            link, child_link = socket.socketpair()
            own_ends.enter_context(link)
            child_ends.enter_context(child_link)
            lifeline, lifeline_kept = os.pipe()
            child_ends.callback(os.close, lifeline)
            own_ends.callback(os.close, lifeline_kept)
            self._marks = marks = marks_file()
            own_ends.callback(os.close, marks)
            log_read, log_write = os.pipe()
            child_ends.callback(os.close, log_write)
            closing_log = own_ends.enter_context(contextlib.ExitStack())
            closing_log.callback(os.close, log_read)
            oom_kills = _oom_kills()
            self._process = await self._spawn(
                (child_link.fileno(), lifeline, marks), log_write
            )
            # The child has copies of these ends. They are closed here, or this side
            # would not see when the child closes its copies.
            child_ends.close()
            try:
                async with trio.lowlevel.FdStream(log_read) as log:
                    closing_log.pop_all()
                    await self._attend(self._process, link, log)
            finally:
                self.kill("the worker ends")
                with trio.CancelScope(shield=True):
                    await self._process.wait()
            death = self._death(self._process, _oom_kills() > oom_kills)
            if not death.counted:
                # The requests in flight had no part in this end.
                return death
            under_way = decode_marks(_content(marks))
            return attrs.evolve(death, under_way=under_way)

    async def _spawn(self, fds: tuple[int, int, int], log: int) -> trio.Process:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DSCRAPY_")
        }
        environ["PYTHONHASHSEED"] = str(self.start.hash_seed)
        environ["PYTHONUNBUFFERED"] = "1"
        stdin = self._inputs.stdin
        with contextlib.ExitStack() as closing:
            if not isinstance(stdin, int):
                stdin = os.open(stdin, os.O_RDONLY)
                closing.callback(os.close, stdin)
            return await trio.lowlevel.open_process(
                [*self.command, *map(str, fds)],
                stdin=stdin,
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
        if self._killed_for:
            self._signal(signal.SIGKILL)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._write, stream)
            nursery.start_soon(self._probe)
            nursery.start_soon(self._kill_after_grace)
            async with trio.open_nursery() as attending:
                attending.start_soon(self._read, stream)
                attending.start_soon(self._pump, log)
                await process.wait()
                # What the process wrote before its death still counts; a child of its
                # own that keeps the pipe open must not keep us.
                attending.cancel_scope.deadline = trio.current_time() + DUMP_S
            nursery.cancel_scope.cancel()

    async def _write(self, stream: trio.SocketStream) -> None:
        while True:
            while not (frames := self._next_frames()):
                self._has_output = trio.Event()
                await self._has_output.wait()
            try:
                await stream.send_all(frames)
            except trio.BrokenResourceError:
                return

    def _next_frames(self) -> bytes:
        """Return the frames of one write: the first message, then its validity."""
        frames = []
        size = 0
        while self._waiting and size < _WRITE_BYTES:
            frames.append(self._waiting.popleft())
            size += len(frames[-1])
        self._waiting_bytes -= size
        if not self._is_validity_sent:
            self._is_validity_sent = True
            frames.insert(1, encode_frame(encode(m.Valid(until=self.valid_until))))
        return b"".join(frames)

    async def _read(self, stream: trio.SocketStream) -> None:
        frames = FrameReader()
        try:
            while True:
                await self._wait_room()
                data = await stream.receive_some(_READ_BYTES)
                if not data:
                    return
                frames.feed(data)
                while (frame := frames.next_frame()) is not None:
                    self._take(_FROM_CRAWL.decode(frame), frame)
        except trio.BrokenResourceError:
            return
        except RemoteProtocolError as error:
            logger.error("process %d: %s", self.start.process, error)
            self.kill(f"it broke the protocol ({error})", counted=True)

    async def _wait_room(self) -> None:
        self._is_reading_paused = True
        await self.wait_room()
        self._is_reading_paused = False

    def _take(self, message: m.FromCrawl, frame: bytes) -> None:
        if isinstance(message, m.Alive):
            self._answered = max(self._answered, message.number)
            self._heard.set()
            return
        own_key = (self.start.job, self.start.process)
        if (message.job, message.process) != own_key:
            raise RemoteProtocolError("not_held", "a message about another process")
        self.on_message(message, encode_frame(frame))

    async def _pump(self, log: trio.lowlevel.FdStream) -> None:
        while data := await log.receive_some(_READ_BYTES):
            self.on_log(bytes(data))

    async def _kill_after_grace(self) -> None:
        await self._stopping.wait()
        with trio.move_on_after(self.stop_grace_s):
            await self._awaits_order.wait()
        if self._awaits_order.is_set():
            await self._is_retiring.wait()
            await trio.sleep(self.stop_grace_s)
        self.kill(f"it did not stop within {self.stop_grace_s:g} s")

    async def _probe(self) -> None:
        """Ask for signs of life; a process silent for too long is dumped and killed.

        Silence is counted in waits of the worker, so time in which the worker itself
        did not run does not count. Neither does time in which the process was not read,
        since its answer may be unread, or waited for its caller's input.
        """
        if not self.process_silent_s:
            return
        number = silent = 0
        while silent < PROBES:
            if self._awaits_stdin():
                # Nor is it asked: probes would pile up, and their number is bounded.
                silent = 0
                await trio.sleep(self.process_silent_s / PROBES)
                continue
            number += 1
            was_paused = self._is_reading_paused
            self.tell(m.Probe(number=number))
            with trio.move_on_after(self.process_silent_s / PROBES):
                while self._answered < number:
                    await self._heard.wait()
                    self._heard = trio.Event()
                await trio.sleep_forever()
            is_excused = was_paused or self._is_reading_paused or self._awaits_stdin()
            is_silent = self._answered < number and not is_excused
            silent = silent + 1 if is_silent else 0
        logger.warning("process %d is silent: killed", self.start.process)
        self._signal(signal.SIGUSR1)
        await trio.sleep(DUMP_S)
        reason = f"its event loop was silent for {self.process_silent_s:g} s"
        self.kill(reason, counted=True)

    def _awaits_stdin(self) -> bool:
        return self._marks >= 0 and os.pread(self._marks, 1, AWAITS_AT) == b"\1"

    def _death(self, process: trio.Process, oom: bool) -> Death:
        status = process.returncode
        assert status is not None
        name = f"crawl process {process.pid}"
        if self._killed_for:
            text = f"{name} was killed: {self._killed_for}"
            return Death(counted=self._kill_counted, text=text)
        if status >= 0:
            text = f"{name} exited with code {status} before its end"
            return Death(counted=True, text=text)
        signal_name = _signal_name(-status)
        if status == -signal.SIGKILL and oom:
            text = f"{name} was killed for lack of memory"
            return Death(counted=True, text=text)
        text = f"{name} was killed by {signal_name}"
        return Death(counted=status != -signal.SIGKILL, text=text)


def marks_file() -> int:
    """Return a new file for ``proto.in_flight``, without a name; to be closed."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("dscrapy-marks")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    return fd


def _content(marks: int) -> bytes:
    """Return what a process has written, which may be anything."""
    return os.pread(marks, min(os.fstat(marks).st_size, file_bytes(SLOTS_MAX)), 0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        # Not Linux: nothing tells such a kill from a SIGKILL from outside.
        return 0
    fields = dict(line.split() for line in lines)
    return int(fields.get("oom_kill", 0))
