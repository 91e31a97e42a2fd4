"""What peers make the master hold is bounded with its objects, in all together."""

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.master import session as session_module
from dscrapy.master.bodies import Bodies
from dscrapy.net import connection as connection_module
from dscrapy.net.byte_budget import VALUE_BYTES, Room, weight_of
from dscrapy.net.connection import Connection, greet
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import LENGTH_BYTES, encode_frame
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import (
    SPANS,
    TOKEN,
    CrawlInMemory,
    MasterInMemory,
    receive,
    running,
)
from tests.shell.test_hostile import JOB, assert_serves

MIB = 1024 * 1024
# Of what tests, the harness and the streams in memory hold themselves.
SLACK = MIB


@contextmanager
def held() -> Iterator[list[int]]:
    """Gives what is allocated between, and stays, once the block is left."""
    found: list[int] = []
    gc.collect()
    tracemalloc.start()
    try:
        yield found
        gc.collect()
        found.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


# ---- what a message weighs ---------------------------------------------------------

HEAD = '{"type":"commits","job":"j","process":1,"commits":['
COUNT = 20_000
ONES = ",".join(["1"] * COUNT)
NAMES = ",".join(f'"{number}":1' for number in range(COUNT))
HEAVY: dict[str, tuple[Any, str]] = {
    "commits": (m.FromWorker, HEAD + ",".join(["{}"] * COUNT) + "]}"),
    "items": (m.FromWorker, HEAD + '{"items":[' + ONES + "]}]}"),
    "hosts": (
        m.FromWorker,
        HEAD
        + '{"children":{"hosts":['
        + ",".join(f'"{number}"' for number in range(COUNT))
        + "]}}]}",
    ),
    "stats": (m.FromWorker, HEAD + '{"stats":{"sum":{' + NAMES + "}}}]}"),
    "one stat each": (
        m.FromWorker,
        HEAD + ",".join(['{"stats":{"":{"":1}}}'] * COUNT) + "]}",
    ),
    "ends": (m.FromWorker, HEAD + ",".join(['{"end":{}}'] * COUNT) + "]}"),
    "feeds": (
        m.FromWorker,
        '{"type":"feeds","job":"j","process":1,"lengths":{' + NAMES + "}}",
    ),
    "jobs": (
        m.ClientCall,
        '{"type":"submit","call":1,"part":0,"last":true,"submissions":['
        + ",".join(['{"id":"1","spec":{"project":"p","spider":"s"}}'] * COUNT)
        + "]}",
    ),
    "states": (
        m.ClientCall,
        '{"type":"list_jobs","call":1,"states":['
        + ",".join(f'"{number}"' for number in range(COUNT))
        + "]}",
    ),
}


@pytest.mark.parametrize(("union", "text"), HEAVY.values(), ids=HEAVY)
def test_a_message_never_takes_more_than_its_weight(union: Any, text: str) -> None:
    """Whatever it is made of: many small values take many times their bytes."""
    decoder: Decoder[Any] = Decoder(union)
    frame = text.encode()
    with held() as taken:
        message = decoder.decode(frame)
    del message
    assert taken[0] <= weight_of(frame)
    # One that holds its items as they stand weighs little more than these.
    long = HEAD.encode() + b'{"items":["' + b"x" * MIB + b'"]}]}'
    assert weight_of(long) < len(long) + 20 * VALUE_BYTES


# ---- the room ----------------------------------------------------------------------


async def test_a_room_is_fair_and_lets_the_largest_in_alone(
    autojump_clock: MockClock,
) -> None:
    """Who waits for much is not overtaken by those who want little."""
    room = Room(100)
    order: list[int] = []

    async def take(count: int) -> None:
        await room.take(count)
        order.append(count)
        await trio.sleep(1)
        room.give(count)

    async with trio.open_nursery() as nursery:
        for count in (60, 1000, 10, 20, 1):
            nursery.start_soon(take, count)
            await trio.testing.wait_all_tasks_blocked()
        assert order == [60]
    assert order == [60, 1000, 10, 20, 1]
    assert room.used == 0


# ---- what waits for the committer --------------------------------------------------


async def test_messages_that_wait_are_bounded_with_their_objects(
    autojump_clock: MockClock,
) -> None:
    """While the disk is full, workers tell large messages of small values: they are
    taken up to the bound, then the workers wait. Nobody is given up for that, though
    it lasts; a client is answered; with room again everything is taken."""
    storage = MemoryStorage()
    workers, room_bytes = 6, 4 * MIB
    async with running(storage) as master:
        master.server.rooms["worker"] = Room(room_bytes)
        client = await master.connect("client")
        await master.ask(client, b.submit(*range(1, workers + 1)))
        crawls = [
            await CrawlInMemory.begun(await master.register(f"w{number}"))
            for number in range(workers)
        ]
        commits = [crawl.unit("late") for crawl in crawls]
        # As a hostile process would make it: all parts but the first are nothing.
        text = [
            encode(
                m.Commits(
                    job=crawl.job,
                    process=crawl.process,
                    commits=(commit, *(m.Commit(request=7),) * 3000),
                )
            )
            for crawl, commit in zip(crawls, commits, strict=True)
        ]
        weight = weight_of(text[0])
        assert room_bytes / 6 < weight < room_bytes / 2
        storage.room = storage.used_bytes() + 10
        await crawls[0].send(crawls[0].unit("late"))
        await trio.sleep(0.1)
        frames = [encode_frame(one) for one in text]
        with held() as taken:
            for crawl, frame in zip(crawls, frames, strict=True):
                await crawl.worker.send_frame(frame)
            await trio.testing.wait_all_tasks_blocked()
        # Those that wait are frames still, in the reader or on their way.
        assert taken[0] < room_bytes + 3 * sum(map(len, frames)) + SLACK
        assert room_bytes - weight < master.server.rooms["worker"].used <= room_bytes
        for _ in range(20):
            await trio.sleep(SPANS.die_after_s / 4)
            assert (await master.ask(client, m.GetStatus(call=2))).note
            # Some of these wait behind what waits.
            for crawl in crawls:
                await crawl.worker.send(m.Heartbeat(number=1))
        storage.room = None
        for crawl in crawls:
            seen = await crawl.hear(m.CommitsSeen)
            while len(seen.seen) == 1:
                seen = await crawl.hear(m.CommitsSeen)
            assert [one.result for one in seen.seen[:2]] == ["published", "settled"]
        await assert_serves(master)
        await trio.testing.wait_all_tasks_blocked()
        assert master.server.rooms["worker"].used == 0
        assert len(master.committer.machine.state.workers) == workers


async def test_a_session_that_ends_gives_its_room_back(
    autojump_clock: MockClock,
) -> None:
    """Whatever it was about to say: a frame that is no message, one that waited."""
    async with running() as master:
        room = master.server.rooms["client"] = Room(100_000)
        await room.take(90_000)
        client = await master.connect("client")
        states = tuple(map(str, range(20_000)))
        await client.send(m.ListJobs(call=1, states=states))
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert master.server.connections == 1
        room.give(90_000)
        await trio.testing.wait_all_tasks_blocked()
        assert (master.server.connections, room.used) == (0, 0)
        client = await master.connect("client")
        await client.send_frame(encode_frame(b"[" + b"1," * 50_000 + b"1]"))
        assert isinstance(await client.receive(), m.Refused)
        await trio.testing.wait_all_tasks_blocked()
        assert room.used == 0


# ---- frames on their way in --------------------------------------------------------


async def test_frames_that_have_begun_are_bounded_together(
    autojump_clock: MockClock,
) -> None:
    """Clients that begin long frames and go no further hold up other clients' long
    ones for a while, and nobody's short ones; then they lose their sessions."""
    size = 200_000
    async with running() as master:
        room = master.server.frames["client"] = Room(2 * size)
        slow = [await begun_frame(master, size) for _ in range(6)]
        assert room.used == 2 * size
        await assert_serves(master)
        crawls = await master.register("w")
        await crawls.send(m.Heartbeat(number=1))
        await receive(crawls, m.HeartbeatSeen)
        honest = await master.connect("client")
        states = tuple("x" * 100 for _ in range(2000))
        asked = trio.current_time()
        await honest.send(m.ListJobs(call=1, states=states))
        assert isinstance(await receive(honest, m.Jobs), m.Jobs)
        # Two at a time lose theirs.
        turns = len(slow) / 2
        timeout_s = connection_module.FRAME_TIMEOUT_S
        assert trio.current_time() - asked <= turns * timeout_s + 1
        for one in slow:
            assert isinstance(await receive(one, m.Refused), m.Refused)
        await trio.testing.wait_all_tasks_blocked()
        assert room.used == 0


async def begun_frame(master: MasterInMemory, size: int) -> Connection[Any]:
    """Return a client that has sent all of a long frame but its end."""
    client = await master.connect("client")
    frame = encode_frame(b" " * size)
    await client._stream.send_all(frame[: -size // 10 + LENGTH_BYTES])
    await trio.testing.wait_all_tasks_blocked()
    return client


# ---- answers that wait -------------------------------------------------------------


async def test_clients_that_do_not_read_are_bounded_in_all_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have less than its own bound: who has most loses its session first.
    Workers and clients that read are served, and the workers' answers do not count."""
    monkeypatch.setattr(session_module, "CLIENTS_OUTBOX_BYTES_MAX", 100_000)
    chunk = m.Chunk(call=1, data=b"x" * 10_000, end=False)
    told = m.ReadSeen(job=JOB, process=1, file="items", offset=0, data=b"x" * 10_000)
    async with running() as master:
        worker = await deaf(master, "worker")
        for _ in range(50):
            master.sessions.send(worker, told)
        assert master.sessions.clients_bytes == 0
        clients = [await deaf(master, "client") for _ in range(8)]
        for count, client in enumerate(clients):
            for _ in range(count):
                master.sessions.send(client, chunk)
                assert master.sessions.clients_bytes <= 100_000
        left = [one for one in clients if one in master.sessions._outboxes]
        assert 0 < len(left) < len(clients)
        assert worker in master.sessions._outboxes
        await assert_serves(master)
        for client in left:
            master.sessions.close(client)
        await trio.sleep(session_module.CLOSE_S + 1)
        assert master.sessions.clients_bytes == 0


async def deaf(master: MasterInMemory, role: Any) -> int:
    """Return the session of a peer that reads nothing any more."""
    before = set(master.sessions._outboxes)
    ours, theirs = trio.testing.lockstep_stream_pair()
    master.nursery.start_soon(master.server.serve, theirs)
    incoming: Any = m.Answer if role == "client" else m.ToWorker
    await greet(ours, token=TOKEN, role=role, incoming=incoming)
    await trio.testing.wait_all_tasks_blocked()
    (session,) = set(master.sessions._outboxes) - before
    return session


async def test_answers_wait_as_frames(autojump_clock: MockClock) -> None:
    """A grant of many tiny bodies takes many times its bytes; what waits is counted as
    it is."""
    grant = m.Grant(
        job=JOB,
        process=1,
        requests=tuple(range(10_000, 20_000)),
        hosts=("h",),
        host_of=(0,) * 10_000,
        bodies=tuple(msgspec.Raw(b"%d" % number) for number in range(10_000)),
    )
    async with running() as master:
        worker = await deaf(master, "worker")
        with held() as taken:
            for _ in range(20):
                master.sessions.send(worker, grant)
        assert taken[0] <= master.sessions._waiting_bytes[worker] + SLACK // 10


# ---- bodies ------------------------------------------------------------------------


def test_bodies_that_are_kept_count_with_their_objects() -> None:
    """Tiny ones take many times their bytes: all together stay below the bound."""
    most = 2 * MIB
    bodies = Bodies(MemoryStorage(), kept_bytes_max=most)
    with held() as taken:
        at = 1_000_000
        for write in range(1, 301):
            data = [msgspec.Raw(b"%d" % (at + number)) for number in range(100)]
            bodies.keep(JOB, at, data)
            bodies.handed_over(write)
            bodies.trim(write)
            at += 1000
    assert taken[0] <= most
    assert bodies._bytes <= most
