"""Connections that have not proved the token yet, of one listener.

Whoever has not proved the token costs little and holds up nobody: only so many are
kept at a time, each for so long. For one more, the oldest of the address with the most
connections is closed. So neither idle nor slow connections keep out a peer of ours,
which proves the token within milliseconds, and a flood from one address costs others
nothing.

The log lines about refused connections are bounded too: a few in a span, then a count.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from dscrapy.errors import RemoteProtocolError
from dscrapy.net.connection import Connection, accept
from dscrapy.text import show

# Handshakes under way at the same time. A fleet that comes back at once is done with
# them in less than a second; peers whose connection is closed dial again.
NEWCOMERS_MAX = 256
# Lines about refused connections, in a span of so many seconds.
LOGGED_MAX = 10
LOGGED_SPAN_S = 60.0

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Admission:
    """Shakes hands with whoever dials; ``incoming`` gives a union by role."""

    def __init__(
        self,
        *,
        incoming: dict[Any, Any],
        handshake_timeout_s: float,
        logger: logging.Logger,
        newcomers_max: int = NEWCOMERS_MAX,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._incoming = incoming
        self._handshake_timeout_s = handshake_timeout_s
        self._logger = logger
        self._newcomers_max = newcomers_max
        self._clock = clock
        # Connections that shake hands, the oldest first, each with its address.
        self._newcomers: dict[trio.CancelScope, str] = {}
        self._span_began_at = float("-inf")
        self._logged = 0
        self._not_logged = 0

    @property
    def newcomers(self) -> int:
        """How many are shaking hands."""
        return len(self._newcomers)

    async def admit(
        self, stream: trio.abc.Stream, *, token: str
    ) -> Connection[Any] | None:
        """Return the connection of a peer that knows the token, else None.

        The caller closes the stream in either case.
        """
        address = address_of(stream)
        scope = trio.CancelScope(
            deadline=trio.current_time() + self._handshake_timeout_s
        )
        if len(self._newcomers) >= self._newcomers_max:
            self._make_room()
        self._newcomers[scope] = address
        try:
            with scope:
                return await accept(stream, token=token, incoming=self._incoming)
        except RemoteProtocolError as error:
            # The detail may quote what a stranger sent.
            self.log_refusal(address, error)
            return None
        except _GONE:
            # The peer went away in the middle of the handshake.
            return None
        finally:
            self._newcomers.pop(scope, None)
        late = trio.current_time() >= scope.deadline
        reason = (
            "no proof in time" if late else "closed to make room for newer connections"
        )
        self.log_refusal(address, reason)
        return None

    def _make_room(self) -> None:
        counts = Counter(self._newcomers.values())
        busiest = max(counts, key=lambda address: counts[address])
        oldest = next(
            scope for scope, address in self._newcomers.items() if address == busiest
        )
        # Removed at once, so that the next newcomer does not choose it again.
        del self._newcomers[oldest]
        oldest.cancel()

    def log_refusal(self, address: str, reason: object) -> None:
        """Log that a connection was refused, unless many were logged just now."""
        now = self._clock()
        if now - self._span_began_at >= LOGGED_SPAN_S:
            if self._not_logged:
                self._logger.warning(
                    "%d more connections were turned away", self._not_logged
                )
            self._span_began_at, self._logged, self._not_logged = now, 0, 0
        if self._logged >= LOGGED_MAX:
            self._not_logged += 1
            return
        self._logged += 1
        text = "a connection from %s was turned away: %s"
        self._logger.warning(text, address, show(str(reason)))


def address_of(stream: trio.abc.Stream) -> str:
    """Return the address, without its port, of who is at the other end."""
    if not isinstance(stream, trio.SocketStream):
        return "this process"
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "an address that is gone"
