"""Peers that say what no peer of ours says: the master goes on for everybody else."""

import errno
import json
import os
import random
from typing import Any

import attrs
import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.master.files import WAITING_MAX
from dscrapy.model import Outcome
from dscrapy.net.connection import greet
from dscrapy.proto.framing import encode_frame
from dscrapy.proto.handshake import Role
from tests import builders as b
from tests.doubles.storage import MemoryFile, MemoryStorage
from tests.shell.master_in_memory import (
    TOKEN,
    CrawlInMemory,
    MasterInMemory,
    receive,
    running,
)

JOB = b.ID
NONCE = "a" * 32


async def assert_serves(master: MasterInMemory) -> None:
    """Check that the master still answers others."""
    client = await master.connect("client")
    status = await master.ask(client, m.GetStatus(call=1))
    assert isinstance(status, m.Status), status
    assert master.failure is None


def frame(value: object) -> bytes:
    """Return any JSON value as a frame."""
    return encode_frame(json.dumps(value).encode(), 1 << 30)


async def heard_until_closed(stream: trio.abc.Stream) -> bytes:
    """Return all that the other side says before it hangs up."""
    heard = b""
    while data := await stream.receive_some(65536):
        heard += data
    return heard


# ---- before the proof -------------------------------------------------------------

GREETINGS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "noise": random.Random(7).randbytes(5000),
    "zeros": b"\x00" * 5000,
    "huge length": b"\xff\xff\xff\xff" + b"x" * 100,
    "one byte too long": b"\x00\x00\x01\x01" + b"x" * 257,
    "no JSON": encode_frame(b"{nonce}"),
    "invalid UTF-8": encode_frame(b'{"nonce":"\xff\xfe","role":"client"}'),
    "deep": encode_frame(b"[" * 250),
    "no nonce": frame({"role": "client"}),
    "short nonce": frame({"nonce": "aa", "role": "client"}),
    "nonce with a newline": frame({"nonce": "a" * 32 + "\n", "role": "client"}),
    "unknown role": frame({"nonce": NONCE, "role": "master"}),
    "unknown field": frame({"nonce": NONCE, "role": "client", "x": 1}),
    "no object": frame([1]),
    "a call at once": frame({"type": "get_status", "call": 1}),
    "wrong proof": frame({"nonce": NONCE, "role": "client"})
    + frame({"proof": "b" * 64}),
    "proof that is no ASCII": frame({"nonce": NONCE, "role": "client"})
    + frame({"proof": "é" * 40}),
    "proof that is no string": frame({"nonce": NONCE, "role": "client"})
    + frame({"proof": 1}),
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
async def test_garbage_learns_nothing(
    greeting: bytes, autojump_clock: MockClock
) -> None:
    """Whoever cannot prove the token is hung up on, told no more than that."""
    async with running() as master:
        ours, theirs = trio.testing.memory_stream_pair()
        master.nursery.start_soon(master.server.serve, theirs)
        await ours.send_all(greeting)
        heard = await heard_until_closed(ours)
        challenge = len(frame({"nonce": NONCE}).replace(b" ", b""))
        rest = heard[challenge:] if heard[4:].startswith(b'{"nonce"') else heard
        assert rest in (b"", encode_frame(b'{"error":"unauthorised"}'))
        assert b"version" not in heard
        await assert_serves(master)
        assert master.server.connections == 1


@pytest.mark.parametrize("step_s", [1.0, 0.1])
async def test_a_slow_handshake_ends_in_time(
    step_s: float, autojump_clock: MockClock
) -> None:
    """Bytes that trickle in do not buy more time than the setting allows."""
    async with running() as master:
        ours, theirs = trio.testing.memory_stream_pair()
        began = trio.current_time()
        master.nursery.start_soon(master.server.serve, theirs)
        is_open = True
        while is_open:
            try:
                # Within a frame for ever: its length says 256 bytes.
                await ours.send_all(
                    b"\0\0\1\0" if trio.current_time() == began else b"1"
                )
            except trio.BrokenResourceError:
                is_open = False
            await trio.sleep(step_s)
        assert (
            trio.current_time() - began
            <= master.server.handshake_timeout_s + 2 * step_s
        )
        await assert_serves(master)


async def test_connections_are_bounded(autojump_clock: MockClock) -> None:
    """One more connection than allowed is hung up on; one that ends makes room."""
    async with running() as master:
        most = master.server.connections_max
        clients = [await master.connect("client") for _ in range(most)]
        ours, theirs = trio.testing.memory_stream_pair()
        master.nursery.start_soon(master.server.serve, theirs)
        assert await heard_until_closed(ours) == b""
        await clients[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        await assert_serves(master)


# ---- after it ---------------------------------------------------------------------


async def raw(master: MasterInMemory, role: Role) -> trio.abc.Stream:
    """Return a stream after its handshake, to say anything on."""
    ours, theirs = trio.testing.memory_stream_pair()
    master.nursery.start_soon(master.server.serve, theirs)
    incoming: Any = m.Answer if role == "client" else m.ToWorker
    connection = await greet(ours, token=TOKEN, role=role, incoming=incoming)
    return connection._stream


COMMIT = b'{"type":"commits","job":"x","process":1,"commits":[{"request":1'
FRAMES: dict[str, tuple[Role, bytes, str]] = {
    "too long": ("client", b"\x00\x80\x00\x01", "frame_too_long"),
    "huge": ("client", b"\xff\xff\xff\xff", "frame_too_long"),
    "no JSON": ("client", encode_frame(b"hello"), "bad_message"),
    "empty": ("client", encode_frame(b""), "bad_message"),
    "no type": ("client", frame({"call": 1}), "bad_message"),
    "unknown type": ("client", frame({"type": "halt", "call": 1}), "bad_message"),
    "unknown field": ("client", frame({"type": "ping", "call": 1, "x": 1}), "bad_"),
    "missing field": ("client", frame({"type": "ping"}), "bad_message"),
    "wrong kind": ("client", frame({"type": "ping", "call": "1"}), "bad_message"),
    "long number": (
        "client",
        encode_frame(b'{"type":"ping","call":' + b"1" * 5000 + b"}"),
        "bad_message",
    ),
    "invalid UTF-8": ("client", encode_frame(b'{"type":"\xff"}'), "bad_message"),
    "lone surrogate": (
        "client",
        encode_frame(b'{"type":"show_job","call":1,"job":"\\ud800"}'),
        "bad_message",
    ),
    "deep": ("client", encode_frame(b'{"type":' + b"[" * 100_000), "bad_message"),
    "deep item": (
        "worker",
        encode_frame(COMMIT + b',"items":[' + b"[" * 99_999 + b"]" * 100_000 + b"}]}"),
        "bad_message",
    ),
    "invalid UTF-8 in an item": (
        "worker",
        encode_frame(COMMIT + b',"items":["\xff"]}]}'),
        "bad_message",
    ),
    "invalid UTF-8 in a request": (
        "worker",
        encode_frame(COMMIT + b',"children":{"bodies":["\xff"]}}]}'),
        "bad_message",
    ),
    "fingerprints that are no base64": (
        "worker",
        encode_frame(COMMIT + b',"children":{"fingerprints":"*"}}]}'),
        "bad_message",
    ),
    "a host that is no number": (
        "worker",
        encode_frame(COMMIT + b',"children":{"host_of":[0.5]}}]}'),
        "bad_message",
    ),
    "an unknown kind of commit": (
        "worker",
        encode_frame(COMMIT + b',"kind":"other"}]}'),
        "bad_message",
    ),
    "a commit of the protocol before": (
        "worker",
        frame(
            {
                "type": "commit",
                "job": "x",
                "process": 1,
                "request": 1,
                "part": 0,
                "last": 1 > 0,
            }
        ),
        "bad_message",
    ),
    "a client that registers": (
        "client",
        frame({"type": "leaving"}),
        "bad_message",
    ),
    "a worker that submits": (
        "worker",
        frame({"type": "submit", "call": 1, "part": 0, "last": True}),
        "bad_message",
    ),
    "parts out of order": (
        "client",
        frame(
            {"type": "submit", "call": 1, "part": 1, "last": 1 > 0, "submissions": []}
        ),
        "bad_part",
    ),
}


@pytest.mark.parametrize(("role", "said", "code"), FRAMES.values(), ids=FRAMES)
async def test_a_frame_that_is_none_ends_its_session(
    role: Role, said: bytes, code: str, autojump_clock: MockClock
) -> None:
    """The peer is told the code, loses its session, and nobody else notices."""
    async with running() as master:
        stream = await raw(master, role)
        await stream.send_all(said)
        heard = await heard_until_closed(stream)
        assert code in json.loads(heard[4:])["code"]
        await assert_serves(master)


def job_with(**fields: Any) -> m.Submit:
    """Return the submission of a job that no command line would let through."""
    return b.submit(JOB, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"project": "../../etc"},
        {"project": ".."},
        {"project": "a/b"},
        {"project": "p\n"},
        {"project": "p", "project_dir": "/p"},
        {"project": "", "project_dir": "relative"},
        {"project": "", "project_dir": "/p\0"},
        {"spider": ""},
        {"spider": "s\x1b[2J"},
        {"name": "../x"},
        {"name": "n" * 101},
        {"args": {"a": "x" * 2_000_000}},
        {"priority": 10**30},
        {"retries": -1},
        {"parallelism": 10**9},
        {"urls": ("no url",)},
    ],
)
async def test_the_master_takes_no_job_that_the_command_line_refuses(
    fields: dict[str, Any], autojump_clock: MockClock
) -> None:
    """A job is checked by who keeps it: no name leads elsewhere, no value is huge."""
    async with running() as master:
        client = await master.connect("client")
        refused = await master.ask(client, job_with(**fields))
        assert isinstance(refused, m.Refused), refused
        assert refused.code == "bad_spec"
        assert not master.committer.machine.state.jobs


@pytest.mark.parametrize("identity", ["", "../x", "A" * 16, "0" * 16 + "-1", "0" * 17])
async def test_an_id_is_checked(identity: str, autojump_clock: MockClock) -> None:
    """Ids name folders: sixteen digits, and none that a schedule's run could have."""
    async with running() as master:
        client = await master.connect("client")
        refused = await master.ask(client, b.submit(identity))
        assert refused.code == "bad_id"


async def test_the_same_id_is_the_same_job(autojump_clock: MockClock) -> None:
    """A submission repeated is no second job; another under its id is refused."""
    async with running() as master:
        client = await master.connect("client")
        for _ in range(2):
            assert await master.ask(client, b.submit(1)) == m.Accepted(call=1, count=1)
        assert len(master.committer.machine.state.jobs) == 1
        other = await master.ask(client, job_with(spider="other"))
        assert other.code == "id_taken"
        twice = await master.ask(client, b.submit(2, 2))
        assert twice.code == "bad_id"
        mixed = await master.ask(client, b.submit(3, 4, 3))
        assert mixed.code == "bad_id"
        assert len(master.committer.machine.state.jobs) == 1


@pytest.mark.parametrize("offset", [-1, 2**62 + 1, 2**63 - 1, 2**70, 10**4000])
@pytest.mark.parametrize("file", ["items", "log"])
async def test_an_offset_that_is_none_is_refused(
    offset: int, file: Any, autojump_clock: MockClock
) -> None:
    """No number that a client gives reaches the system as an offset unchecked."""
    async with running() as master:
        client = await master.connect("client")
        worker = await master.register("w")
        await master.ask(client, b.submit(1))
        crawl = await CrawlInMemory.begun(worker)
        await worker.send(m.Log(job=crawl.job, process=crawl.process, data=b"line\n"))
        await crawl.succeed(b"1")
        read = m.ReadFile(call=2, job=JOB, file=file, offset=offset, limit=9)
        assert isinstance(await master.ask(client, read), m.Refused)
        beyond = m.ReadFile(call=3, job=JOB, file=file, offset=2**62, limit=10**30)
        # The system has no file that long either.
        assert (await master.ask(client, beyond)).data == b""
        await assert_serves(master)


async def test_an_answer_longer_than_a_frame_is_a_refusal(
    autojump_clock: MockClock,
) -> None:
    """What a worker tells of a job may be too long to tell again; that ends nobody."""
    async with running() as master:
        client = await master.connect("client")
        worker = await master.register("w")
        await master.ask(client, job_with(args={"a": "x" * 900_000}))
        crawl = CrawlInMemory(worker, await receive(worker, m.Start))
        text = "x" * (8 * 1024 * 1024 - 1000)
        outcome = Outcome(failure="spider_error", text="", traceback=text)
        assert await crawl.commit(crawl.unit("closed", end=outcome)) == ["published"]
        refused = await master.ask(client, m.ShowJob(call=7, job=JOB))
        assert (refused.call, refused.code) == (7, "too_long")
        assert isinstance(await master.ask(client, m.Ping(call=8)), m.Accepted)
        await assert_serves(master)


# ---- a full disk ------------------------------------------------------------------


async def test_room_is_noticed_though_nothing_is_written(
    autojump_clock: MockClock,
) -> None:
    """Below ``disk_free_bytes_min`` work is refused, and taken when there is room:
    no other record need come in between."""
    storage = MemoryStorage()
    async with running(storage, disk_free_bytes_min=10_000) as master:
        client = await master.connect("client")
        storage.room = storage.used_bytes() + 5_000
        await master.ask(client, b.submit(1))
        assert (await master.ask(client, b.submit(2))).code == "disk_full"
        storage.room = None
        assert isinstance(await master.ask(client, b.submit(2)), m.Accepted)
        assert (await master.ask(client, m.GetStatus(call=3))).note == ""


@attrs.define
class FullJobs(MemoryStorage):
    """While ``is_full`` the jobs' files find no room, and the journal does."""

    is_full: bool = False

    def open(self, name: str) -> MemoryFile:
        """Open a file, or find no room."""
        if self.is_full and name.startswith("jobs/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().open(name)


async def test_items_without_room_let_people_look(autojump_clock: MockClock) -> None:
    """When more waits for the jobs' files than may wait, commits wait with it, while
    status is answered, new work refused, and workers heard; nothing is lost."""
    storage = FullJobs()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker)
        storage.is_full = True
        items = [b'{"n":%d}' % number for number in range(2 * WAITING_MAX)]
        for item in items:
            await crawl.send(crawl.unit("late", items=(msgspec.Raw(item),)))
            await trio.testing.wait_all_tasks_blocked()
        assert "disk full" in (await master.ask(client, m.GetStatus(call=2))).note
        assert (await master.ask(client, b.submit(2))).code == "disk_full"
        cancel = m.ChangeJob(call=3, job=JOB, verb="cancel")
        assert (await master.ask(client, cancel)).code == "disk_full"
        await worker.send(m.Heartbeat(number=1))
        await crawl.hear(m.HeartbeatSeen)
        storage.is_full = False
        assert await crawl.commit(crawl.unit("started")) == ["published"]
        await crawl.finish()
        read = m.ReadFile(call=4, job=JOB, file="items", offset=0, limit=1 << 20)
        assert (await master.ask(client, read)).data.split() == items
        assert (await master.ask(client, m.GetStatus(call=5))).note == ""


async def test_a_full_disk_lets_people_look(autojump_clock: MockClock) -> None:
    """While nothing can be written, lists, jobs and pings are answered."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        storage.room = storage.used_bytes() + 10
        stuck = await master.connect("client")
        # In one group with what waits for room, and behind it. What comes in one
        # instant is one group; sessions are numbered from 1.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(master.committer.submit, 2, b.submit(2))
            nursery.start_soon(master.committer.submit, 1, m.Ping(call=1))
        with trio.fail_after(60):
            assert isinstance(await receive(client, m.Accepted), m.Accepted)
        assert isinstance(await master.ask(client, m.Ping(call=2)), m.Accepted)
        assert isinstance(await master.ask(client, m.ListJobs(call=3)), m.Jobs)
        shown = await master.ask(client, m.ShowJob(call=4, job=JOB))
        assert isinstance(shown, m.Shown)
        storage.room = None
        assert isinstance(await stuck.receive(), m.Accepted)
