"""The worker's one connection to the master: dial, back off, register, heartbeat.

The link keeps dialling for as long as the worker lives. Each session is a nursery: one
task reads, one sends what the outbox has, one sends heartbeats.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
import trio

from dscrapy import messages as m
from dscrapy.conf.config import Config, Endpoint, find_master, find_token
from dscrapy.errors import RemoteProtocolError, UnauthorisedError, UserError
from dscrapy.net.connection import Connection, dial
from dscrapy.net.host import boot_instant
from dscrapy.proto.handshake import Unauthorised
from dscrapy.worker.outbox import Answering, Outbox

logger = logging.getLogger(__name__)

# First pause between tries to reach the master; it doubles up to a setting.
RECONNECT_S = 0.1
# One try to connect and to be registered.
DIAL_TIMEOUT_S = 10.0
# Bytes of one write: large enough to be cheap, small enough for heartbeats.
WRITE_BYTES = 256 * 1024

# Errors of a connection that breaks during its handshake: the master is being started
# or stopped, or a tunnel has no master behind it yet.
_HUNG_UP = ("no_handshake", "cut_short")
_TRY_LATER = ("name_silent", "busy")
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

# What ``net.connection.dial`` is.
Dial = Callable[..., Awaitable[Connection[Any]]]


class Agent(Protocol):
    """The worker, which acts on the master's messages."""

    def registration(self) -> m.Register:
        """Return what to register with, as of now."""

    def registered(self, registered: m.Registered) -> None:
        """Take note that a session begins."""

    def receive(self, message: m.ToWorker) -> None:
        """Act on a message of the master; never waits."""

    def extend(self, until: float) -> None:
        """Let requests start until this boot instant: the master has answered."""

    def lost(self) -> None:
        """Take note that the session has ended."""


@attrs.define(kw_only=True)
class Link:
    """The link of one worker. ``state`` says for people whether it has a master, where.

    ``instant`` reads the machine's boot clock; tests dial over memory.
    """

    config: Config
    agent: Agent
    outbox: Outbox
    draw: Callable[[], float] = random.random
    dial: Dial = dial
    instant: Callable[[], float] = boot_instant
    connected: bool = False
    state: str = "not connected yet"
    _was_registered: bool = False
    _last_logged: str = ""
    _wake: trio.Event = attrs.field(factory=trio.Event)
    _moved: trio.Event = attrs.field(factory=trio.Event)

    def wake(self) -> None:
        """Send: the outbox has something new."""
        self._wake.set()

    async def wait_moved(self) -> None:
        """Wait until something was sent, or the session has ended."""
        await self._moved.wait()

    def _notify_moved(self) -> None:
        # All who wait now have this event; those who wait later get a new one.
        self._moved.set()
        self._moved = trio.Event()

    async def run(self) -> None:
        """Keep a session with the master until cancelled.

        Raises ``UserError`` when the master refuses this worker for good, before its
        first session; later it goes on trying, since crawls depend on it.
        """
        pause_s = RECONNECT_S
        while True:
            try:
                endpoint, token = self._whereabouts()
                if endpoint is not None:
                    await self._session(endpoint, token)
                    pause_s = RECONNECT_S
            except OSError as error:
                self._log_once(f"waiting for the master at {endpoint}: {error}")
            except UserError as error:
                # The token's file is gone, or holds none.
                self._refused(error)
            except Unauthorised as error:
                self._refused(UnauthorisedError(_unauthorised(endpoint, error)))
            except RemoteProtocolError as error:
                if error.code in _TRY_LATER:
                    self._log_once(f"waiting: {error.detail}")
                elif error.code in _HUNG_UP:
                    self._log_once(f"waiting for the master at {endpoint}: it hangs up")
                else:
                    self._refused(UserError(f"master at {endpoint}: {error.detail}"))
            self.connected = False
            self._notify_moved()
            # Spread, so that a fleet does not come back in one instant.
            await trio.sleep(pause_s * (0.5 + self.draw()))
            pause_s = min(pause_s * 2, self.config.worker.reconnect_s_max)

    def _whereabouts(self) -> tuple[Endpoint | None, str]:
        """Return address and token; None and "" until a master has written them."""
        is_configured = bool(self.config.worker.master)
        endpoint = find_master(self.config, "worker")
        try:
            return endpoint, find_token(self.config)
        except UnauthorisedError:
            if is_configured or self._was_registered:
                raise
            self._log_once(f"waiting for a master to start with {self.config.state}")
            return None, ""

    def _log_once(self, text: str) -> None:
        """Log a text that differs from the last one, and make it the link's state."""
        if text != self._last_logged:
            logger.info("%s", text)
        self._last_logged = text
        self.state = text

    def _refused(self, error: UserError) -> None:
        if not self._was_registered:
            raise error
        self._log_once(f"trying again: {error}")

    # ---- one session ------------------------------------------------------------

    async def _session(self, endpoint: Endpoint, token: str) -> None:
        connection = await self.dial(
            endpoint.host,
            endpoint.port,
            token=token,
            role="worker",
            incoming=m.ToWorker,
            timeout_s=DIAL_TIMEOUT_S,
        )
        async with connection:
            sent_at = self.instant()
            try:
                registered = await self._register(connection)
            except _GONE:
                raise OSError("the connection broke") from None
            self._was_registered = True
            self.connected = True
            self.state = f"registered at {endpoint}"
            if self._last_logged:
                self._last_logged = ""
            logger.info("registered at %s, epoch %d", endpoint, registered.epoch)
            self.agent.registered(registered)
            spans = _Spans.of(registered)
            self.agent.extend(sent_at + spans.valid_s)
            await self._attend(connection, spans)
        self.connected = False
        self.agent.lost()

    async def _register(self, connection: Connection[Any]) -> m.Registered:
        with trio.move_on_after(DIAL_TIMEOUT_S):
            self.outbox.begin_session()
            await connection.send(self.agent.registration())
            answer = await connection.receive()
            match answer:
                case m.Registered():
                    return answer
                case m.Refused():
                    raise RemoteProtocolError(answer.code, answer.text)
                case None:
                    raise OSError("the master hung up")
                case _:
                    raise RemoteProtocolError("bad_answer", "no answer to register")
        raise OSError(f"the master did not answer within {DIAL_TIMEOUT_S:g} s")

    async def _attend(self, connection: Connection[Any], spans: "_Spans") -> None:
        sent: dict[int, float] = {}
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope
            nursery.start_soon(self._write, connection, stop)
            nursery.start_soon(self._beat, connection, spans.heartbeat_s, sent, stop)
            try:
                await self._read(connection, spans, sent)
            except _GONE:
                logger.debug("the connection broke")
            except RemoteProtocolError as error:
                logger.error("the master broke the protocol: %s", error)
            stop.cancel()

    async def _read(
        self, connection: Connection[Any], spans: "_Spans", sent: dict[int, float]
    ) -> None:
        while True:
            with trio.move_on_after(spans.die_after_s) as scope:
                message = await connection.receive()
            if scope.cancelled_caught:
                logger.warning("the master is silent for %g s", spans.die_after_s)
                return
            match message:
                case None:
                    return
                case m.HeartbeatSeen():
                    sent_at = sent.pop(message.number, None)
                    if sent_at is not None:
                        self.agent.extend(sent_at + spans.valid_s)
                case m.Refused():
                    logger.error("the master ends the session: %s", message.text)
                case _:
                    if isinstance(message, Answering):
                        self.outbox.hear(message)
                    self.agent.receive(message)

    async def _write(self, connection: Connection[Any], stop: trio.CancelScope) -> None:
        while True:
            while not self.outbox.has_more:
                self._wake = trio.Event()
                await self._wake.wait()
            try:
                await connection.send_frame(self.outbox.take(WRITE_BYTES))
                self._notify_moved()
            except _GONE:
                stop.cancel()
                return

    async def _beat(
        self,
        connection: Connection[Any],
        heartbeat_s: float,
        sent: dict[int, float],
        stop: trio.CancelScope,
    ) -> None:
        number = 0
        while True:
            number += 1
            sent[number] = self.instant()
            try:
                await connection.send(m.Heartbeat(number=number))
            except _GONE:
                stop.cancel()
                return
            await trio.sleep(heartbeat_s)


@attrs.frozen(kw_only=True)
class _Spans:
    heartbeat_s: float
    die_after_s: float
    valid_s: float

    @classmethod
    def of(cls, registered: m.Registered) -> "_Spans":
        # The master may lose the connection before the worker notices, so the shorter
        # span counts, from the sending of the heartbeat that it last answered.
        return cls(
            heartbeat_s=registered.heartbeat_s,
            die_after_s=registered.die_after_s,
            valid_s=min(registered.die_after_s, registered.reconnect_grace_s),
        )


def _unauthorised(endpoint: Endpoint | None, error: Unauthorised) -> str:
    return (
        f"the master at {endpoint} does not accept our token ({error.detail}): copy "
        "its token file into the state folder, or set DSCRAPY_TOKEN"
    )
