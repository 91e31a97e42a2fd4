"""Targets: the master's port, a worker's own, and whoever dials.

An input says how far the peer keeps to the rules (not at all, the first frame, the
proof, the whole handshake as client or worker) and then whatever it likes.
"""

import contextlib
import json
from pathlib import Path
from typing import Any, get_args

import trio
import trio.testing
from trio.testing import MemoryReceiveStream, MemorySendStream

from dscrapy import messages as m
from dscrapy.conf.config import Config, Endpoint
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import PROTOCOL_VERSIONS
from dscrapy.net.connection import Connection, greet
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.proto.handshake import Handshake, Phase, Role, proof_of
from dscrapy.worker.agent import Worker
from dscrapy.worker.status_port import StatusPort
from tests import builders as b
from tests.fuzz.catalogue import Tally, Target
from tests.fuzz.draw import Draw
from tests.fuzz.wire import as_stream, samples
from tests.shell.master_in_memory import TOKEN, MasterInMemory, running

Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]

NONCE = "ab" * 16

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Peer:
    """A dialler that keeps to the handshake for a number of frames."""

    def __init__(self, stream: Stream, role: Role) -> None:
        self.stream = stream
        self.handshake = Handshake(token=TOKEN, nonce=NONCE, role=role)
        self._frames = FrameReader()

    async def greet(self, count: int) -> None:
        """Send the first so many frames of the handshake as they should be."""
        frame = self.handshake.start()
        for _ in range(count):
            assert frame is not None
            await self.stream.send_all(encode_frame(frame))
            heard = await self._hear()
            frame = self.handshake.receive(heard)

    async def _hear(self) -> bytes:
        while (frame := self._frames.next_frame()) is None:
            self._frames.feed(await self.stream.receive_some())
        return frame


async def _attack(stream: Stream, draw: Draw, tally: Tally) -> int:
    """Say the input; return how many frames were as they should be."""
    role: Role = draw.pick(("client", "worker"))
    honest, is_framed = draw.below(4), draw.below(4) > 0
    rest = draw.rest()
    peer = _Peer(stream, role)
    await peer.greet(honest)
    tally.frames += rest.count(b"\n") + 1 if is_framed else 0
    with contextlib.suppress(*_GONE):
        await stream.send_all(as_stream(rest) if is_framed else rest)
        await stream.send_eof()
    return honest


async def _all_heard(stream: Stream) -> bytes:
    heard = b""
    with contextlib.suppress(*_GONE):
        while data := await stream.receive_some():
            heard += data
    return heard


# ---- the master's port -------------------------------------------------------------


def _master_port(data: bytes, tally: Tally) -> None:
    """The master goes on for everybody else; a stranger learns nothing and changes
    nothing."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(_at_master, data, tally, clock=clock)


async def _at_master(data: bytes, tally: Tally) -> None:
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2))
        # Of this name there is a process that has opened.
        known = await master.connect("worker")
        await known.send(b.registration("known"))
        await trio.testing.wait_all_tasks_blocked()
        ours, theirs = trio.testing.memory_stream_pair()
        before = master.committer.machine.state.encode_snapshot()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(master.server.serve, theirs)
            honest = await _attack(ours, Draw(data), tally)
            heard = await _all_heard(ours)
        if honest < 3:
            _assert_told_nothing(heard, honest)
            if honest < 2:
                after = master.committer.machine.state.encode_snapshot()
                assert after == before
        assert master.failure is None
        assert isinstance(await master.ask(client, m.Ping(call=9)), m.Accepted)
        status = await master.ask(client, m.GetStatus(call=10))
        assert isinstance(status, m.Status)
        await _assert_at_rest(master)


def _assert_told_nothing(heard: bytes, honest: int) -> None:
    """Check that before the proof there are the handshake's own frames only."""
    reader = FrameReader()
    reader.feed(heard)
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(json.loads(frame))
    allowed = [{"nonce"}, {"error"}] if honest == 0 else [{"error"}]
    if honest < 2:
        assert all(set(frame) in allowed for frame in frames), frames
        assert all(
            frame.get("error", "unauthorised") == "unauthorised" for frame in frames
        )


async def _assert_at_rest(master: MasterInMemory) -> None:
    """Check that nothing is left of a connection that is gone."""
    assert master.server.connections == 2
    assert master.server.admission.newcomers == 0
    assert master.server.submitting_bytes == 0
    state = master.committer.machine.state
    snapshot = state.encode_snapshot()
    assert type(state).decode_snapshot(snapshot).encode_snapshot() == snapshot


def _port_seeds() -> list[bytes]:
    hello = json.dumps({"nonce": "cd" * 16, "role": "client"}).encode()
    proof = json.dumps({"proof": proof_of(TOKEN, "dialler", "client", NONCE, NONCE)})
    versions = json.dumps({"versions": PROTOCOL_VERSIONS}).encode()
    said = [encode(b.registration("w", slots=2)), *samples("FromWorker")]
    calls = samples("ClientCall")
    # First byte: role; then how honest, whether framed.
    return [
        b"\0\0\1" + b"\n".join((hello, proof.encode(), versions)),
        b"\0\1\1" + proof.encode(),
        b"\1\2\1" + versions,
        b"\0\0\0" + b"GET / HTTP/1.1\r\n\r\n",
        *(b"\0\3\1" + call for call in calls),
        *(b"\1\3\1" + b"\n".join((said[0], one)) for one in said[1:]),
        b"\1\3\1" + b"\n".join(said),
        b"\0\3\1" + b"\n".join(calls),
    ]


MASTER_PORT = Target(run=_master_port, seeds=_port_seeds)


# ---- a worker's own port -----------------------------------------------------------


def _worker_port(data: bytes, tally: Tally) -> None:
    """It answers for itself whatever comes, and keeps nothing of it."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(_at_worker, data, tally, clock=clock)


async def _at_worker(data: bytes, tally: Tally) -> None:
    config = Config(state=Path("/nowhere"), projects_root=Path("/nowhere"), token=TOKEN)
    endpoint = Endpoint("127.0.0.1", 1)
    worker = Worker(config=config, name="w", endpoint=endpoint, slots=1)
    door = StatusPort(config=config, worker=worker, started_at=0.0)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.serve, theirs)
        honest = await _attack(ours, Draw(data), tally)
        heard = await _all_heard(ours)
    if honest < 2:
        _assert_told_nothing(heard, honest)
    assert door._connections == 0
    assert door._admission.newcomers == 0
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.serve, theirs)
        client = await greet(ours, token=TOKEN, role="client", incoming=m.Answer)
        await client.send(m.Ping(call=1))
        assert await client.receive() == m.Accepted(call=1)
        await client.aclose()


WORKER_PORT = Target(run=_worker_port, seeds=_port_seeds)


# ---- who dials ---------------------------------------------------------------------


def _dialler(data: bytes, tally: Tally) -> None:
    """Whatever answers at the master's address, the dialler bears it."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(_against_dialler, data, tally, clock=clock)


async def _against_dialler(data: bytes, tally: Tally) -> None:
    draw = Draw(data)
    role: Role = draw.pick(("client", "worker"))
    honest, is_framed = draw.below(4), draw.below(4) > 0
    rest = draw.rest()
    tally.frames += rest.count(b"\n") + 1 if is_framed else 0
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_dial_and_listen, ours, role)
        acceptor = Handshake(token=TOKEN, nonce=NONCE)
        frames = FrameReader()
        for _ in range(honest):
            while (frame := frames.next_frame()) is None:
                frames.feed(await theirs.receive_some())
            answer = acceptor.receive(frame)
            assert answer is not None
            await theirs.send_all(encode_frame(answer))
        assert honest < 3 or acceptor.phase is Phase.DONE
        with contextlib.suppress(*_GONE):
            await theirs.send_all(as_stream(rest) if is_framed else rest)
            await theirs.send_eof()


async def _dial_and_listen(stream: Stream, role: Role) -> None:
    incoming: Any = m.Answer if role == "client" else m.ToWorker
    try:
        connection: Connection[Any] = await greet(
            stream, token=TOKEN, role=role, incoming=incoming
        )
        async with connection:
            while (message := await connection.receive()) is not None:
                assert isinstance(message, get_args(incoming))
    except (RemoteProtocolError, *_GONE):
        return
    finally:
        await trio.aclose_forcefully(stream)


def _dialler_seeds() -> list[bytes]:
    challenge = json.dumps({"nonce": NONCE}).encode()
    return [
        b"\0\0\1" + challenge + b'\n{"proof":"' + b"a" * 64 + b'"}',
        b"\0\1\1" + b'{"error":"unauthorised"}',
        b"\1\2\1" + b'{"error":"version","versions":[3]}',
        b"\1\2\1" + json.dumps({"version": PROTOCOL_VERSIONS[-1]}).encode(),
        *(b"\0\3\1" + answer for answer in samples("Answer")),
        *(b"\1\3\1" + told for told in samples("ToWorker")),
    ]


DIALLER = Target(run=_dialler, seeds=_dialler_seeds)
