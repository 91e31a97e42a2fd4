"""The network of the simulation: who may reach whom, and what becomes of it.

A *party* is whoever dials, by name. A partition holds one or both ways of all its
connections, old and new, until it heals.
"""

import random
from collections.abc import Callable
from typing import Any, Literal

import attrs
import trio

from dscrapy.net.connection import Connection
from dscrapy.proto.handshake import Role
from tests.doubles.wire import CutKind, End, Wire
from tests.shell.worker_in_memory import Network

# Which ways of a party's connections a partition holds: to the master, and back.
Ways = Literal["both", "there", "back"]
HELD: dict[Ways, tuple[bool, bool]] = {
    "both": (True, True),
    "there": (True, False),
    "back": (False, True),
}


@attrs.define(eq=False)
class Link:
    """One connection of a party."""

    party: str
    wire: Wire


@attrs.define(eq=False, init=False)
class SimNetwork(Network):
    """``accept`` takes the master's side of a new connection, None: nobody listens."""

    accept: Callable[[End], None] | None
    links: list[Link]
    held: dict[str, Ways]
    splits: float
    bytes_cut: tuple[int, int] | None

    def __init__(self, nursery: trio.Nursery, rng: random.Random) -> None:
        super().__init__(nursery, None)
        self.rng = rng
        self.accept = None
        self.links = []
        self.held = {}
        self.splits = 0.0
        self.latest: dict[str, Wire] = {}

    def dialler(self, party: str) -> Callable[..., Any]:
        """Return what this party dials with, in place of ``net.connection.dial``."""

        async def dial_as(
            host: str,
            port: int,
            *,
            token: str,
            role: Role,
            incoming: Any,
            timeout_s: float,
        ) -> Connection[Any]:
            if party in self.held:
                await trio.sleep(timeout_s)
                raise OSError(f"no answer within {timeout_s:g} s")
            await trio.lowlevel.checkpoint()
            if self.accept is None:
                raise OSError("connection refused")
            wire = Wire(self.rng, lag_s=self.lag_s, splits=self.splits)
            self.links = [link for link in self.links if not link.wire.is_over]
            self.links.append(Link(party, wire))
            self.latest[party] = wire
            self.accept(wire.ends[1])
            return await self.greet(
                wire.ends[0],
                token=token,
                role=role,
                incoming=incoming,
                timeout_s=timeout_s,
            )

        return dial_as

    def of(self, party: str) -> list[Wire]:
        """Return the connections of a party that are not over."""
        return [
            link.wire
            for link in self.links
            if link.party == party and not link.wire.is_over
        ]

    def live(self) -> list[Wire]:
        """Return all connections that are not over."""
        return [link.wire for link in self.links if not link.wire.is_over]

    # ---- faults --------------------------------------------------------------------

    def part(self, party: str, ways: Ways) -> None:
        """Let nothing of this party arrive, these ways."""
        self.held[party] = ways
        for wire in self.of(party):
            for way, is_held in zip(wire.ways, HELD[ways], strict=True):
                way.is_held = way.is_held or is_held

    def heal(self, party: str) -> None:
        """End the partition; what was held arrives now."""
        self.held.pop(party, None)
        for wire in self.of(party):
            for way in wire.ways:
                way.release(trio.current_time())

    def hang_up(self, side: int, *, party: str | None, silently: bool) -> None:
        """The program on this side of its connections is gone (0 dialled, 1 serves).

        Silently: as when its machine is gone, so that nobody tells the other side.
        """
        for link in self.links:
            if party in (None, link.party):
                if silently:
                    link.wire.abandon(side)
                else:
                    link.wire.ends[side].shut()

    def cut_one(self, wire: Wire, kind: CutKind, after: int | None, side: int) -> None:
        """Cut a connection now, or after so many bytes more on one way."""
        if after is None:
            wire.cut(kind)
        else:
            wire.ways[side].cut_after = after
