"""A stretch of network between one worker and the master, with faults on demand.

Bytes are passed on as they come; frames are not looked at, so a reset falls within one
as often as between two. A way that is *held* passes nothing on and closes nothing: the
bytes wait, like those that TCP sends again, until the way is let go. New connections
are taken at any time, as a listening kernel takes them, and wait at a held way too.
"""

import socket
import struct
from collections.abc import Callable
from typing import Literal

import attrs
import trio

Way = Literal["up", "down"]
WAYS: tuple[Way, ...] = ("up", "down")
# Small, so that a reset within a frame is the rule.
READ_BYTES = 4096
# On, zero seconds: what is not sent is thrown away, and the other side gets a reset.
_LINGER = struct.pack("ii", 1, 0)


@attrs.define
class Relay:
    """Serves one worker; the master's address is asked for at each connection."""

    master: Callable[[], tuple[str, int]]
    delay_s: float = 0.0
    connections: int = 0
    resets: int = 0
    passed: dict[Way, int] = attrs.Factory(lambda: dict.fromkeys(WAYS, 0))
    # Bytes until everything is reset, counted over both ways; none: never.
    _budget: int | None = None
    _held: dict[Way, trio.Event] = attrs.Factory(dict)
    _links: set[trio.CancelScope] = attrs.Factory(set)

    # ---- faults -----------------------------------------------------------------

    def hold(self, way: Way) -> None:
        """Pass nothing on that way, and close nothing."""
        self._held.setdefault(way, trio.Event())

    def let_go(self, way: Way) -> None:
        """Pass on what has waited, and what comes."""
        held = self._held.pop(way, None)
        if held is not None:
            held.set()

    def reset(self) -> None:
        """Reset every connection, both its sides."""
        self._budget = None
        self.resets += bool(self._links)
        for scope in self._links:
            scope.cancel()

    def reset_after(self, count: int) -> None:
        """Reset every connection once so many more bytes have passed."""
        self._budget = count

    # ---- passing on -------------------------------------------------------------

    async def serve(
        self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; tells its port."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, worker: trio.SocketStream) -> None:
        async with worker:
            await self._wait("up")
            try:
                master = await trio.open_tcp_stream(*self.master())
            except OSError:
                # It is being restarted; the worker will try again.
                return
            self.connections += 1
            async with master, trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                self._links.add(scope)
                try:
                    nursery.start_soon(self._pump, worker, master, "up", scope)
                    nursery.start_soon(self._pump, master, worker, "down", scope)
                    await trio.sleep_forever()
                finally:
                    self._links.discard(scope)
                    for stream in (worker, master):
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        way: Way,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while data := await source.receive_some(READ_BYTES):
                await self._wait(way)
                if self.delay_s:
                    await trio.sleep(self.delay_s)
                await self._pass(sink, data, way)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            scope.cancel()

    async def _pass(self, sink: trio.SocketStream, data: bytes, way: Way) -> None:
        is_last = self._budget is not None and self._budget <= len(data)
        if self._budget is not None:
            data = data[: self._budget]
            self._budget -= len(data)
        await sink.send_all(data)
        self.passed[way] += len(data)
        if is_last:
            self.reset()

    async def _wait(self, way: Way) -> None:
        while way in self._held:
            await self._held[way].wait()
