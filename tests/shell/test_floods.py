"""Many connections, and peers that ask for much: what they cost is bounded."""

import gc
import logging
import resource
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.conf.config import Config, Endpoint
from dscrapy.control.effects import Append
from dscrapy.master import files, session
from dscrapy.master.server import _connections_max
from dscrapy.model import Submission
from dscrapy.net import admission
from dscrapy.net.connection import greet
from dscrapy.proto.framing import LENGTH_BYTES, encode_frame
from dscrapy.proto.handshake import HANDSHAKE_FRAME_BYTES_MAX
from dscrapy.worker import status_port
from dscrapy.worker.agent import Worker
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.hang import HANG_S
from tests.shell.master_in_memory import (
    TOKEN,
    MasterInMemory,
    in_place,
    receive,
    running,
)
from tests.shell.test_hostile import JOB, assert_serves

STRANGERS = 2000
STRANGER_BYTES_MAX = 16 * 1024
BAD = encode_frame(b"{}")


def knock(master: MasterInMemory) -> trio.abc.Stream:
    """Return a stranger's end of a new connection."""
    ours, theirs = trio.testing.memory_stream_pair()
    master.nursery.start_soon(master.server.serve, theirs)
    return ours


# ---- before the proof --------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\0", BAD[:5]], ids=["idle", "slow", "cut"])
async def test_strangers_keep_nobody_out(
    said: bytes, autojump_clock: MockClock
) -> None:
    """Two thousand connections that prove nothing: the oldest give way, a worker
    registers and a client is answered while they last, and nothing is written."""
    storage = MemoryStorage()
    async with running(storage) as master:
        await trio.testing.wait_all_tasks_blocked()
        written = storage.used_bytes()
        strangers = []
        for _ in range(STRANGERS):
            strangers.append(knock(master))
            await strangers[-1].send_all(said)
            await trio.testing.wait_all_tasks_blocked()
            assert master.server.admission.newcomers <= admission.NEWCOMERS_MAX
        assert storage.used_bytes() == written
        began = trio.current_time()
        await master.register("w")
        await assert_serves(master)
        # At once: nobody's time ran out for it.
        assert trio.current_time() == began
        assert master.server.admission.newcomers == admission.NEWCOMERS_MAX - 1
        assert await strangers[0].receive_some() == b""
        await trio.sleep(master.server.handshake_timeout_s + 1)
        assert master.server.admission.newcomers == 0
        await assert_serves(master)


async def test_a_flood_from_one_address_costs_others_nothing() -> None:
    """The one that must give way is of the address that has most."""
    entrance = admission.Admission(
        incoming={"client": m.ClientCall},
        handshake_timeout_s=HANG_S,
        logger=logging.getLogger("test"),
        newcomers_max=4,
    )

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            connection = await entrance.admit(stream, token=TOKEN)
            if connection is not None:
                await connection.send(m.Accepted(call=7))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        ours = await trio.open_tcp_stream("127.0.0.1", port)
        await _until(lambda: entrance.newcomers == 1)
        flood = []
        for _ in range(20):
            flood.append(
                await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2")
            )
        for old in flood[:-3]:
            assert await old.receive_some() == b""
        assert entrance.newcomers == 4
        connection = await greet(ours, token=TOKEN, role="client", incoming=m.Answer)
        assert await connection.receive() == m.Accepted(call=7)
        for one in (ours, *flood):
            await one.aclose()
        nursery.cancel_scope.cancel()


async def _until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(HANG_S):
        while not holds():
            await trio.lowlevel.checkpoint()


async def test_a_stranger_costs_some_kilobytes() -> None:
    """With its task, its stream and what it has said, on a real socket."""
    entrance = admission.Admission(
        incoming={"client": m.ClientCall},
        handshake_timeout_s=HANG_S,
        logger=logging.getLogger("test"),
    )

    async def serve(stream: trio.SocketStream) -> None:
        await entrance.admit(stream, token=TOKEN)

    strangers: list[trio.SocketStream] = []
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        begun: list[int] = []
        tracemalloc.start()
        try:
            for count in (20, 220):
                while len(strangers) < count:
                    strangers.append(await trio.open_tcp_stream("127.0.0.1", port))
                    await strangers[-1].send_all(b"\0\0\1\0" + b"x" * 200)
                await _until(lambda: entrance.newcomers == len(strangers))
                gc.collect()
                begun.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        each = (begun[1] - begun[0]) / 200
        # Half of it is the stranger's own end, which stands in this process as well.
        assert each <= STRANGER_BYTES_MAX, each
        nursery.cancel_scope.cancel()
    for one in strangers:
        await one.aclose()


class Recording(trio.abc.ReceiveStream):
    """A stream's receiving half that notes how much is asked for."""

    def __init__(self, inner: trio.abc.ReceiveStream) -> None:
        self.inner = inner
        self.asked: list[int | None] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.asked.append(max_bytes)
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_a_stranger_makes_us_hold_two_frames_at_most(
    autojump_clock: MockClock,
) -> None:
    """No more is read before the proof than the handshake's frames can be."""
    async with running() as master:
        ours, theirs = trio.testing.memory_stream_pair()
        recording = Recording(theirs.receive_stream)
        stream = trio.StapledStream(theirs.send_stream, recording)
        master.nursery.start_soon(master.server.serve, stream)
        client = await greet(ours, token=TOKEN, role="client", incoming=m.Answer)
        limit = LENGTH_BYTES + HANDSHAKE_FRAME_BYTES_MAX
        await trio.testing.wait_all_tasks_blocked()
        *before, after = recording.asked
        assert len(before) >= 3
        assert all(one is not None and one <= limit for one in before)
        assert after is not None
        assert after > limit
        assert isinstance(await master.ask(client, m.Ping(call=1)), m.Accepted)


async def test_strangers_fill_no_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A few lines in a span, then their number; no line has what they sent in it."""
    caplog.set_level(logging.DEBUG)
    async with running() as master:
        for span in range(2):
            for _ in range(500):
                stranger = knock(master)
                await stranger.send_all(encode_frame(b'{"a\\n\\u001b[2J":1}'))
                assert await stranger.receive_some() == b""
            await trio.sleep(admission.LOGGED_SPAN_S)
            lines = [one for one in caplog.messages if "turned away" in one]
            assert len(lines) <= (span + 1) * (admission.LOGGED_MAX + 1)
        assert (
            f"{500 - admission.LOGGED_MAX} more connections were turned away"
            in caplog.messages
        )
        assert all(line.isprintable() for line in caplog.messages)


async def test_one_with_proof_too_many_hears_so(autojump_clock: MockClock) -> None:
    """It is told ``busy``, and comes in when another has left."""
    async with running() as master:
        most = master.server.connections_max
        clients = [await master.connect("client") for _ in range(most)]
        late = await master.connect("worker")
        refused = await receive(late, m.Refused)
        assert (refused.call, refused.code) == (-1, "busy")
        assert await late.receive() is None
        await clients[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        await assert_serves(master)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "most", "newcomers"),
    [
        (1024, 20_000, 4096, 4096, admission.NEWCOMERS_MAX),
        (1024, -1, 100_000, 100_000, admission.NEWCOMERS_MAX),
        (-1, -1, 4096, 4096, admission.NEWCOMERS_MAX),
        (1024, 1024, 4096, 1024 - 256 - 64, 256),
        (256, 256, 4096, 256 - 64 - 64, 64),
        (16, 16, 4096, 1, 4),
    ],
)
def test_connections_leave_files_to_the_journal(
    soft: int,
    hard: int,
    wanted: int,
    most: int,
    newcomers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both kinds together are fewer than the system allows open files, which is raised
    as far as it may be."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: raised.append(to))
    assert _connections_max(wanted) == (most, newcomers)
    allowed = raised[0][0] if raised else soft
    assert allowed in (-1, 16) or most + newcomers + 64 <= allowed


@asynccontextmanager
async def door(
    token: str | None = TOKEN,
) -> AsyncIterator[tuple[status_port.StatusPort, trio.Nursery]]:
    """A worker's own port."""
    config = Config(state=Path("/nowhere"), projects_root=Path("/nowhere"), token=token)
    worker = Worker(config=config, name="w", endpoint=Endpoint("127.0.0.1", 1), slots=1)
    async with trio.open_nursery() as nursery:
        yield (
            status_port.StatusPort(config=config, worker=worker, started_at=0.0),
            nursery,
        )
        nursery.cancel_scope.cancel()


async def test_strangers_keep_nobody_from_a_workers_own_port(
    autojump_clock: MockClock,
) -> None:
    """The same there."""
    async with door() as (ours, nursery):
        for _ in range(STRANGERS):
            _, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(ours.serve, theirs)
            await trio.testing.wait_all_tasks_blocked()
            assert ours._admission.newcomers <= status_port.NEWCOMERS_MAX
        mine, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(ours.serve, theirs)
        client = await greet(mine, token=TOKEN, role="client", incoming=m.Answer)
        await client.send(m.GetStatus(call=1))
        assert isinstance(await client.receive(), m.Status)


async def test_a_worker_without_a_token_fills_no_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its token's file may be gone; strangers who dial then cost a few lines."""
    async with door(token=None) as (ours, _):
        for _ in range(100):
            mine, theirs = trio.testing.memory_stream_pair()
            await ours.serve(theirs)
            assert await mine.receive_some() == b""
    assert len(caplog.messages) == admission.LOGGED_MAX
    assert "no token" in caplog.messages[0]


# ---- after it ----------------------------------------------------------------------


async def test_a_client_that_reads_nothing_is_not_heard_further(
    autojump_clock: MockClock,
) -> None:
    """A thousand calls with large answers make the master hold a few of these."""
    async with running() as master:
        client = await master.connect("client")
        whole = b.submit(JOB, args={"a": "x" * 900_000})
        assert isinstance(await master.ask(client, whole), m.Accepted)
        ours, theirs = trio.testing.lockstep_stream_pair()
        master.nursery.start_soon(master.server.serve, theirs)
        deaf = await greet(ours, token=TOKEN, role="client", incoming=m.Answer)
        sent = 0
        with trio.move_on_after(5):
            for number in range(1000):
                await deaf.send(m.ShowJob(call=number, job=JOB))
                sent += 1
        assert sent <= session.ANSWERS_MAX + 1
        waiting = sum(
            outbox.statistics().current_buffer_used
            for outbox in master.sessions._outboxes.values()
        )
        assert waiting <= session.ANSWERS_MAX
        await assert_serves(master)


async def test_one_that_reads_may_ask_on_and_on(autojump_clock: MockClock) -> None:
    """Calls need not be made one by one, and all are answered in order."""
    async with running() as master:
        client = await master.connect("client")
        for number in range(500):
            await client.send(m.Ping(call=number // 2))
        for number in range(500):
            assert await client.receive() == m.Accepted(call=number // 2)


async def test_waits_are_bounded(autojump_clock: MockClock) -> None:
    """So many jobs may be waited for at a time on one connection; nothing is left of
    the waits when it ends."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        greedy = await master.connect("client")
        for number in range(session.WAITS_MAX + 1):
            await greedy.send(m.WaitJob(call=number, job=JOB))
        refused = await receive(greedy, m.Refused)
        assert (refused.call, refused.code) == (-1, "too_many")
        assert await greedy.receive() is None
        await trio.testing.wait_all_tasks_blocked()
        assert not master.committer.machine.state.waiters
        await assert_serves(master)


async def test_a_wait_that_is_answered_makes_room(autojump_clock: MockClock) -> None:
    """One after the other there may be any number."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        cancel = m.ChangeJob(call=0, verb="cancel", job=JOB)
        await master.ask(client, cancel)
        for number in range(3 * session.WAITS_MAX):
            shown = await master.ask(client, m.WaitJob(call=number, job=JOB))
            assert isinstance(shown, m.Shown)


async def test_what_waits_for_a_peer_is_bounded_in_bytes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is told more than it ever reads loses its session; one that reads
    may be told any amount."""
    monkeypatch.setattr(session, "OUTBOX_BYTES_MAX", 10_000)
    data = b"x" * 1000
    told = m.ReadSeen(job=JOB, process=1, file="items", offset=0, data=data)
    async with running() as master:
        reading = await master.connect("worker")
        (hearing,) = master.sessions._outboxes
        for _ in range(100):
            master.sessions.send(hearing, told)
            assert await reading.receive() == told
        await reading.send(b.registration("w"))
        assert isinstance(await reading.receive(), m.Registered)
        ours, theirs = trio.testing.lockstep_stream_pair()
        master.nursery.start_soon(master.server.serve, theirs)
        await greet(ours, token=TOKEN, role="worker", incoming=m.ToWorker)
        await trio.testing.wait_all_tasks_blocked()
        (deaf,) = set(master.sessions._outboxes) - {hearing}
        for number in range(100):
            if number == 1:
                # Its writer has taken the first and hangs.
                await trio.testing.wait_all_tasks_blocked()
            master.sessions.send(deaf, told)
            if deaf not in master.sessions._outboxes:
                break
        # As frames, with their objects; what is being written counts, too.
        assert number == 7
        await trio.testing.wait_all_tasks_blocked()
        assert master.server.connections == 1
        assert not any(master.sessions._waiting_bytes.values())


async def test_reads_that_wait_are_bounded(autojump_clock: MockClock) -> None:
    """So many reads of a log may wait on one connection; they end with it."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        greedy = await master.connect("client")
        for number in range(session.READS_MAX + 1):
            await greedy.send(
                m.ReadFile(
                    call=number, job=JOB, file="log", offset=0, limit=9, wait=True
                )
            )
        refused = await receive(greedy, m.Refused)
        assert (refused.call, refused.code) == (-1, "too_many")
        assert await greedy.receive() is None
        await trio.testing.wait_all_tasks_blocked()
        assert master.server.connections == 1
        await assert_serves(master)


async def test_unfinished_submissions_are_bounded_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clients' parts count; whoever comes too much loses its own alone, and what
    ends or leaves makes room."""
    monkeypatch.setattr(session, "SUBMITTING_BYTES_MAX", 10_000)
    spec = b.spec(args={"a": "x" * 6000})

    def part(number: int, *, last: bool) -> m.Submit:
        one = Submission(id=b.job_id(number), spec=spec)
        return m.Submit(call=1, part=0, last=last, submissions=(one,))

    async with running() as master:
        first, second = [await master.connect("client") for _ in range(2)]
        assert isinstance(await master.ask(first, part(1, last=False)), m.Accepted)
        refused = await master.ask(second, part(2, last=False))
        assert (refused.call, refused.code) == (-1, "too_many")
        assert await second.receive() is None
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert master.server.submitting_bytes == 0
        third = await master.connect("client")
        for number in range(5):
            answer = await master.ask(third, part(number, last=True))
            assert isinstance(answer, m.Accepted)
        assert master.server.submitting_bytes == 0
        assert len(master.committer.machine.state.jobs) == 5


async def test_a_registration_of_many_processes_is_borne(
    autojump_clock: MockClock,
) -> None:
    """A worker that claims a hundred thousand processes is told to drop them; nothing
    is kept of them."""
    held = tuple(m.HeldProcess(job=JOB, process=number) for number in range(1, 100_001))
    async with running() as master:
        worker = await master.connect("worker")
        await worker.send(b.registration("w", slots=10_000, held=held))
        registered = await receive(worker, m.Registered)
        assert len(registered.drop) == 100_000
        state = master.committer.machine.state
        assert not state.processes
        assert not state.workers["w"].processes
        await assert_serves(master)


# ---- what waits for the disk ---------------------------------------------------------


async def test_a_flood_of_log_is_bounded_in_bytes(autojump_clock: MockClock) -> None:
    """Few pieces may be long ones; what is dropped is counted in the log itself."""
    storage = MemoryStorage()
    waiting = files.JobFiles(storage, log_bytes_max=1 << 30, in_thread=in_place)
    piece = b"x" * (1 << 20) + b"\n"
    for _ in range(100):
        waiting.log_nowait(JOB, piece)
    assert waiting._logs_waiting_bytes <= files.LOGS_WAITING_BYTES_MAX + len(piece)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await waiting.caught_up()
        kept = waiting.done
        waiting.log_nowait(JOB, b"end\n")
        await waiting.caught_up()
        nursery.cancel_scope.cancel()
    name = f"jobs/{JOB}/log.txt"
    end = storage.read(name, kept * len(piece), 1000)
    assert end == b"(%d lines of log dropped here)\nend\n" % (100 - kept)
    assert waiting._logs_waiting_bytes == 0


async def test_what_waits_for_a_slow_disk_is_bounded_in_bytes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hands over more waits; nothing is lost by that, nor out of order."""
    monkeypatch.setattr(files, "WAITING_BYTES_MAX", 3000 + 3 * files.WRITE_BYTES)
    storage = MemoryStorage()
    waiting = files.JobFiles(storage, log_bytes_max=1 << 30, in_thread=in_place)
    name = f"jobs/{JOB}/items.jsonl"

    async def hand_over() -> None:
        for at in range(10):
            while not waiting.hand_over_nowait(
                [Append(name, at * 1000, b"%d" % at * 1000)]
            ):
                await waiting.progress()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over)
        await trio.testing.wait_all_tasks_blocked()
        assert waiting.handed == 4
        nursery.start_soon(waiting.run)
        # Virtual time: nobody has anything to do any more then.
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    written = b"".join(b"%d" % at * 1000 for at in range(10))
    assert storage.read(name, 0, 1 << 20) == written
