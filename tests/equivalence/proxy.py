"""Stands between workers and master: passes frames on, and knows where each is.

Every frame is read whole, noted in ``HeldLeases`` and passed on unchanged. At some
moments somebody may act while the frame stands still: it was passed on to the master
that a download is over (``downloaded``), or what pages have asked for before they are
finished (``early``), or commits (``sent``); the master has answered, which it does when
they are durable, and the worker does not know it yet (``journalled``); the answer was
passed on (``acknowledged``). Commits beside leases tell the stage they are of instead.
"""

from collections.abc import Awaitable, Callable

import attrs
import msgspec
import trio

from dscrapy import messages as m
from dscrapy.proto.framing import FrameReader, encode_frame
from tests.equivalence.held_leases import HeldLeases
from tests.equivalence.kill_choice import Stage

READ_BYTES = 65536
# Frames of either side before the first message; see docs/protocol.md.
HANDSHAKE_FRAMES = 3
# Units and the stage that they belong to; what comes late is like a page.
UNITS: dict[str, Stage] = {
    "start": "start",
    "started": "start",
    "opened": "start",
    "idle": "idle",
    "closed": "finish",
}

# Stage, and the process whose frame it is; returns whether the connection is lost.
Moment = Callable[[Stage, int], Awaitable[bool]]

_from_worker: msgspec.json.Decoder[m.FromWorker] = msgspec.json.Decoder(m.FromWorker)
_to_worker: msgspec.json.Decoder[m.ToWorker] = msgspec.json.Decoder(m.ToWorker)


def stage_of(kinds: set[str], moment: Stage) -> Stage:
    """Return the moment, or of commits beside leases the stage they are of."""
    stages = {UNITS.get(kind, moment) for kind in kinds}
    return moment if moment in stages or not stages else min(stages)


@attrs.define
class Proxy:
    """Serves workers on a port of its own and dials the master for each."""

    master_port: int
    leases: HeldLeases
    moment: Moment
    committed: Callable[[], None]

    async def serve(
        self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; tells its port."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._serve_worker, [listener])

    async def _serve_worker(self, worker: trio.SocketStream) -> None:
        async with worker:
            try:
                master = await trio.open_tcp_stream("127.0.0.1", self.master_port)
            except OSError:
                # It is being restarted; the worker will try again.
                return
            async with master, trio.open_nursery() as nursery:
                link = _Link(self, worker, master, nursery.cancel_scope)
                nursery.start_soon(link.pump, worker, link.up)
                nursery.start_soon(link.pump, master, link.down)


@attrs.define
class _Link:
    """One worker's connection; ends when either side does."""

    proxy: Proxy
    worker: trio.SocketStream
    master: trio.SocketStream
    scope: trio.CancelScope
    name: str = ""

    async def pump(
        self, source: trio.SocketStream, take: Callable[[bytes, int], Awaitable[bool]]
    ) -> None:
        """Pass frames on until the end; ``take`` returns whether it is reached."""
        frames = FrameReader()
        count = 0
        try:
            while data := await source.receive_some(READ_BYTES):
                frames.feed(data)
                while (frame := frames.next_frame()) is not None:
                    count += 1
                    if await take(frame, count):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.scope.cancel()

    async def up(self, frame: bytes, count: int) -> bool:
        """Pass a frame on to the master."""
        if count <= HANDSHAKE_FRAMES:
            await self.master.send_all(encode_frame(frame))
            return False
        message = _from_worker.decode(frame)
        if isinstance(message, m.Register):
            self.name = message.name
        self.proxy.leases.from_worker(self.name, message)
        await self.master.send_all(encode_frame(frame))
        if isinstance(message, m.Commits):
            is_early = any(one.digests and not one.last for one in message.commits)
            kinds: set[str] = {one.kind for one in message.commits}
            stage = stage_of(kinds, "early" if is_early else "sent")
            if await self.proxy.moment(stage, message.process):
                return True
        if isinstance(message, m.ProgressFields) and message.downloaded:
            return await self.proxy.moment("downloaded", message.process)
        return False

    async def down(self, frame: bytes, count: int) -> bool:
        """Pass a frame on to the worker."""
        if count <= HANDSHAKE_FRAMES:
            await self.worker.send_all(encode_frame(frame))
            return False
        message = _to_worker.decode(frame)
        proxy = self.proxy
        if not isinstance(message, m.CommitsSeen):
            proxy.leases.from_master(self.name, message)
            await self.worker.send_all(encode_frame(frame))
            return False
        kinds = proxy.leases.kinds(message)
        if await proxy.moment(stage_of(kinds, "journalled"), message.process):
            return True
        proxy.leases.from_master(self.name, message)
        await self.worker.send_all(encode_frame(frame))
        if any(one.request and one.result == "published" for one in message.seen):
            proxy.committed()
        return await proxy.moment(stage_of(kinds, "acknowledged"), message.process)
