"""A master played by a script: shakes hands as the real one, answers as told."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.net.connection import Connection, accept, greet
from dscrapy.proto.handshake import Role

TOKEN = "t" * 32
Script = Callable[["Served", m.ClientCall], Awaitable[None]]


class HangUp(Exception):
    """Raised by a script to end the connection."""


class Served:
    """One connection as the script sees it: its number from 1, and a way to answer."""

    def __init__(self, number: int, connection: Connection[m.ClientCall]) -> None:
        self.number = number
        self._connection = connection

    async def answer(self, message: m.Answer) -> None:
        """Send an answer."""
        await self._connection.send(message)


class ScriptedMaster:
    """Serves clients; ``received`` has every call with its connection's number."""

    def __init__(self, script: Script, token: str = TOKEN) -> None:
        self.received: list[tuple[int, m.ClientCall]] = []
        self.connections = 0
        self._script = script
        self._token = token

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one stream to its end."""
        gone = (trio.BrokenResourceError, trio.ClosedResourceError)
        try:
            connection = await accept(
                stream, token=self._token, incoming={"client": m.ClientCall}
            )
            self.connections += 1
            served = Served(self.connections, connection)
            async with connection:
                while (call := await connection.receive()) is not None:
                    self.received.append((served.number, call))
                    await self._script(served, call)
        except (HangUp, *gone):
            await trio.aclose_forcefully(stream)

    def dial_from(self, nursery: trio.Nursery) -> Any:
        """Return a ``client.Dial`` that connects to this master over memory."""

        async def dial(
            host: str,
            port: int,
            *,
            token: str,
            role: Role,
            incoming: Any,
            timeout_s: float,
        ) -> Connection[Any]:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(self.serve, theirs)
            return await greet(ours, token=token, role=role, incoming=incoming)

        return dial
