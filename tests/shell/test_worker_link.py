"""The worker's link: which refusals end it, what its heartbeats are worth."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.conf.config import Config, WorkerConfig
from dscrapy.errors import RemoteProtocolError, UnauthorisedError, UserError
from dscrapy.net.connection import Connection
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.proto.handshake import Handshake
from dscrapy.worker.master_link import DIAL_TIMEOUT_S, RECONNECT_S, Link
from dscrapy.worker.outbox import Outbox
from tests import builders as b
from tests.doubles.masters import TOKEN
from tests.shell.worker_in_memory import Network, Script, serving
from tests.unit.test_outbox import add, commit, end, seen

DIE_AFTER_S = 20.0
GRACE_S = 5.0
BEAT_S = 2.0
MAX_PAUSE_S = 3.0


@attrs.define
class Said:
    """Whoever the link tells what the master says; notes it."""

    clock: Callable[[], float] = trio.current_time
    sessions: list[m.Registered] = attrs.field(factory=list)
    received: list[m.ToWorker] = attrs.field(factory=list)
    valid: list[tuple[float, float]] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)

    def registration(self) -> m.Register:
        return b.registration()

    def registered(self, registered: m.Registered) -> None:
        self.sessions.append(registered)

    def receive(self, message: m.ToWorker) -> None:
        self.received.append(message)

    def extend(self, until: float) -> None:
        """Note when it was told, and until when requests may start."""
        self.valid.append((self.clock(), until))

    def lost(self) -> None:
        """Note when it was told."""
        self.losses.append(self.clock())


def registered(die_after_s: float = DIE_AFTER_S, grace_s: float = GRACE_S) -> Any:
    """Return the answer to a registration."""
    return b.registered(
        heartbeat_s=BEAT_S, die_after_s=die_after_s, reconnect_grace_s=grace_s
    )


def refused(code: str) -> m.Refused:
    """Return what ends a session."""
    return m.Refused(call=-1, code=code, text=f"text of {code}")


def saying(*messages: m.Message) -> Script:
    """A master that says this, then hangs up."""

    async def script(connection: Connection[Any], _: m.Register) -> None:
        for message in messages:
            await connection.send(message)
        # What the worker said meanwhile must not break what we said.
        await trio.sleep(0.1)

    return script


async def welcoming(connection: Connection[Any], _: m.Register) -> None:
    """A master as it should be: answers every heartbeat until the end."""
    await connection.send(registered())
    while (message := await connection.receive()) is not None:
        if isinstance(message, m.Heartbeat):
            await connection.send(m.HeartbeatSeen(number=message.number))


async def silent(connection: Connection[Any], _: m.Register) -> None:
    """A master that takes the registration and never says a word again."""
    await connection.send(registered())
    while await connection.receive() is not None:
        pass


def config_of(folder: Path, **fields: Any) -> Config:
    """Return settings that name the master and its token."""
    values: dict[str, Any] = {"token": TOKEN, "worker": settings("h:7411")}
    return Config(state=folder, projects_root=folder, **(values | fields))


def settings(master: str) -> WorkerConfig:
    """Return a worker's settings for the master there."""
    return WorkerConfig(master=master, reconnect_s_max=MAX_PAUSE_S)


def link_of(network: Network, config: Config, outbox: Outbox | None = None) -> Link:
    """Return a link that dials there, with its pauses as they are."""
    return Link(
        config=config,
        agent=Said(),
        outbox=outbox or Outbox(),
        draw=lambda: 0.5,
        dial=network.dial,
        instant=trio.current_time,
    )


def said(link: Link) -> Said:
    """Return what the link told."""
    assert isinstance(link.agent, Said)
    return link.agent


@asynccontextmanager
async def linked(
    folder: Path, *scripts: Script, outbox: Outbox | None = None
) -> AsyncIterator[tuple[Link, Network]]:
    """A link that runs, to a master that plays the scripts."""
    async with trio.open_nursery() as nursery:
        network = Network(nursery, serving(*scripts))
        link = link_of(network, config_of(folder), outbox)
        nursery.start_soon(link.run)
        yield link, network
        nursery.cancel_scope.cancel()


async def run_alone(
    folder: Path, *scripts: Script, serve: Any = None, **fields: Any
) -> list[float]:
    """Run a link for a minute; return when it dialled. Raises what it raises."""
    async with trio.open_nursery() as nursery:
        network = Network(nursery, serve or (serving(*scripts) if scripts else None))
        link = link_of(network, config_of(folder, **fields))
        failure: UserError | None = None
        with trio.move_on_after(60):
            try:
                await link.run()
            except UserError as error:
                failure = error
        nursery.cancel_scope.cancel()
    # A nursery would wrap it.
    if failure is not None:
        raise failure
    return network.dialled


# ---- who is refused for good ---------------------------------------------------------


@pytest.mark.parametrize("code", ["name_taken", "bad_worker", "version"])
async def test_a_refusal_before_the_first_session_ends_the_worker(
    code: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is an error of the user's, with the master's own text."""
    with pytest.raises(UserError, match=rf"h:7411.*text of {code}"):
        await run_alone(tmp_path, saying(refused(code)))


async def test_a_wrong_token_before_the_first_session_ends_the_worker(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The error says what to do about the token."""
    with pytest.raises(UnauthorisedError, match="DSCRAPY_TOKEN"):
        await run_alone(tmp_path, welcoming, token="x" * 32)


async def test_a_master_of_another_version_ends_the_worker(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The handshake says so, and waiting would not mend it."""

    async def serve(stream: trio.abc.Stream) -> None:
        handshake = Handshake(token=TOKEN, nonce="0" * 32, versions=(99,))
        frames = FrameReader()
        while handshake.last_words is None:
            frames.feed(await stream.receive_some())
            while (frame := frames.next_frame()) is not None:
                try:
                    answer = handshake.receive(frame)
                except RemoteProtocolError:
                    answer = handshake.last_words
                assert answer is not None
                await stream.send_all(encode_frame(answer))
        await trio.aclose_forcefully(stream)

    with pytest.raises(UserError, match=r"99.*install the same dscrapy"):
        await run_alone(tmp_path, serve=serve)


@pytest.mark.parametrize("code", ["name_taken", "version", "bad_message"])
async def test_after_a_first_session_no_refusal_is_final(
    code: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Crawls depend on the link: it goes on trying, and says so."""
    async with linked(
        tmp_path, saying(registered()), saying(refused(code)), welcoming
    ) as (link, network):
        await trio.sleep(RECONNECT_S * 2.5)
        assert link.state == f"trying again: master at h:7411: text of {code}"
        assert not link.connected
        await trio.sleep(5)
        assert link.connected
        assert link.state == "registered at h:7411"
        assert len(network.dialled) == 3


async def test_after_a_first_session_a_wrong_token_is_not_final(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The master may be started again with the right one."""
    async with linked(tmp_path, saying(registered())) as (link, network):
        await trio.sleep(0.05)
        network.serve = serving(welcoming, token="x" * 32)
        await trio.sleep(5)
        assert link.state.startswith("trying again: the master at h:7411 does not")
        network.serve = serving(welcoming)
        await trio.sleep(5)
        assert link.connected


async def test_a_name_whose_holder_is_silent_is_tried_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The holder may be this very worker before its restart."""
    script = saying(refused("name_silent"))
    async with linked(tmp_path, script, script, welcoming) as (link, _):
        await trio.sleep(0.15)
        assert link.state == "waiting: text of name_silent"
        await trio.sleep(5)
        assert link.connected


async def quiet(connection: Connection[Any], _: m.Register) -> None:
    """A master that takes the registration and does not answer it."""
    await trio.sleep_forever()


@pytest.mark.parametrize("first", [saying(), quiet])
async def test_a_master_that_does_not_answer_a_registration_is_dialled_again(
    first: Script, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It hangs up, or says nothing within the time of one try."""
    async with linked(tmp_path, first, welcoming) as (link, network):
        await trio.sleep(DIAL_TIMEOUT_S + 1)
        assert link.connected
        assert len(network.dialled) == 2


async def test_another_answer_to_a_registration_is_no_master_of_ours(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Not even a message that may come later."""
    with pytest.raises(UserError, match="no answer to register"):
        await run_alone(tmp_path, saying(m.Drain()))


@pytest.mark.parametrize("cut", [b"", encode_frame(b"x" * 50)[:20]])
async def test_a_master_that_hangs_up_in_the_handshake_is_dialled_again(
    cut: bytes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is being started, or a tunnel has no master behind it yet."""

    async def serve(stream: trio.abc.Stream) -> None:
        await stream.send_all(cut or b"\0")
        await trio.aclose_forcefully(stream)

    assert len(await run_alone(tmp_path, serve=serve)) > 5


# ---- finding the master --------------------------------------------------------------


async def test_pauses_between_tries_double_up_to_their_limit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Quick at first, and never rarer than the setting says."""
    dialled = await run_alone(tmp_path)
    pauses = [after - before for before, after in pairwise(dialled)]
    expected = [min(RECONNECT_S * 2**n, MAX_PAUSE_S) for n in range(len(pauses))]
    assert pauses == pytest.approx(expected)
    assert len(pauses) > 15


async def test_pauses_begin_anew_after_a_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A worker that was registered is back soon."""
    async with linked(tmp_path, welcoming) as (link, network):
        serve = network.serve
        network.serve = None
        await trio.sleep(30)
        network.serve = serve
        await trio.sleep(MAX_PAUSE_S)
        assert link.connected
        await network.cut()
        await trio.sleep(RECONNECT_S * 1.1)
        assert link.connected


async def test_a_worker_started_first_waits_for_the_token_of_its_master(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The master of the same state folder makes its token when it starts."""
    async with trio.open_nursery() as nursery:
        network = Network(nursery, serving(welcoming))
        config = config_of(tmp_path, token=None, worker=settings(""))
        link = link_of(network, config)
        nursery.start_soon(link.run)
        await trio.sleep(10)
        assert str(tmp_path) in link.state
        assert network.dialled == []
        (tmp_path / "token").write_text(TOKEN + "\n")
        await trio.sleep(MAX_PAUSE_S)
        assert link.connected
        nursery.cancel_scope.cancel()


async def test_a_master_that_is_named_needs_a_token_now(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nobody is going to bring it: the error names the places looked at."""
    with pytest.raises(UnauthorisedError, match=str(tmp_path)):
        await run_alone(tmp_path, welcoming, token=None)


async def test_a_token_that_is_lost_later_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A registered worker outlives the loss of the file."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    async with trio.open_nursery() as nursery:
        network = Network(nursery, serving(welcoming))
        link = link_of(network, config_of(tmp_path, token=None, worker=settings("")))
        nursery.start_soon(link.run)
        await trio.sleep(1)
        (tmp_path / "token").unlink()
        await network.cut()
        await trio.sleep(10)
        assert link.state.startswith("trying again: no token")
        (tmp_path / "token").write_text(TOKEN + "\n")
        await trio.sleep(MAX_PAUSE_S)
        assert link.connected
        nursery.cancel_scope.cancel()


# ---- what a heartbeat is worth -------------------------------------------------------


@pytest.mark.parametrize("lag_s", [0.0, 0.7])
@pytest.mark.parametrize(("die_after_s", "grace_s"), [(20.0, 5.0), (5.0, 20.0)])
async def test_validity_counts_from_the_sending_of_what_was_answered(
    die_after_s: float,
    grace_s: float,
    lag_s: float,
    tmp_path: Path,
    autojump_clock: MockClock,
) -> None:
    """Each answer allows requests for the shorter of both spans, from the instant at
    which the sending began of what it answers, however late the answer is."""
    came: list[float] = []
    late_s = 0.4

    async def slow(connection: Connection[Any], _: m.Register) -> None:
        came.append(trio.current_time())
        await trio.sleep(late_s)
        await connection.send(registered(die_after_s, grace_s))
        async with trio.open_nursery() as nursery:
            while (message := await connection.receive()) is not None:
                came.append(trio.current_time())
                nursery.start_soon(answer, connection, message)

    async def answer(connection: Connection[Any], message: m.Heartbeat) -> None:
        await trio.sleep(late_s)
        await connection.send(m.HeartbeatSeen(number=message.number))

    async with trio.open_nursery() as nursery:
        network = Network(nursery, serving(slow))
        network.lag_s = lag_s
        link = link_of(network, config_of(tmp_path))
        nursery.start_soon(link.run)
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    valid = said(link).valid
    assert len(valid) > 8
    came = came[: len(valid)]
    assert [at - late_s for at, _ in valid] == pytest.approx(came)
    assert [until - 5.0 + lag_s for _, until in valid] == pytest.approx(came)


async def test_a_heartbeat_that_is_not_answered_extends_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nor does an answer to none, nor one that comes twice, nor any other message."""

    async def script(connection: Connection[Any], _: m.Register) -> None:
        await connection.send(registered())
        beat = await connection.receive()
        assert isinstance(beat, m.Heartbeat)
        for _second in range(10):
            await trio.sleep(1)
            await connection.send(m.HeartbeatSeen(number=beat.number))
            await connection.send(m.HeartbeatSeen(number=1000))
            await connection.send(m.Drain())

    async with linked(tmp_path, script, quiet) as (link, _):
        await trio.sleep(9)
        first, second = said(link).valid
        assert list(second) == pytest.approx([first[0] + 1, first[1]])


async def test_a_silent_master_is_dialled_again_after_its_span_and_not_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """An open connection without a word is given up after ``die_after_s``."""
    async with linked(tmp_path, silent, welcoming) as (link, network):
        await trio.sleep(DIE_AFTER_S - 0.1)
        assert link.connected
        assert len(network.dialled) == 1
        await trio.sleep(0.1 + 2 * RECONNECT_S)
        assert len(network.dialled) == 2
        assert link.connected


async def test_a_master_that_takes_nothing_is_given_up_as_one_that_says_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A write that never ends does not hold the link beyond ``die_after_s``."""
    dialled = []

    async def dial(host: str, port: int, **fields: Any) -> Connection[Any]:
        dialled.append(trio.current_time())
        ours, theirs = trio.testing.lockstep_stream_pair()
        nursery.start_soon(serving(deaf), theirs)
        return await Network(nursery, None).greet(ours, **fields)

    async def deaf(connection: Connection[Any], _: m.Register) -> None:
        await connection.send(registered())
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        network = Network(nursery, None)
        link = link_of(network, config_of(tmp_path))
        link.dial = dial
        nursery.start_soon(link.run)
        await trio.sleep(DIE_AFTER_S + 2 * RECONNECT_S)
        assert len(dialled) == 2
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_session_is_told_once_and_no_other_failure(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nobody was lost who was never there: a worker that drains acts on it."""
    async with linked(tmp_path, welcoming) as (link, network):
        serve = network.serve
        for losses in range(1, 3):
            network.serve = serve
            await trio.sleep(2 * MAX_PAUSE_S)
            assert link.connected
            await network.down()
            await trio.sleep(60)
            assert len(said(link).losses) == losses
            assert not link.connected


# ---- what goes over it ---------------------------------------------------------------


async def test_what_is_retained_is_offered_first_thing_on_each_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """In order, all of it, until it is acknowledged; what is new comes behind."""
    offered: list[list[Any]] = []

    def taking(*answers: m.Message) -> Script:
        async def script(connection: Connection[Any], _: m.Register) -> None:
            offered.append([])
            await connection.send(registered())
            with trio.move_on_after(1):
                while (message := await connection.receive()) is not None:
                    if not isinstance(message, m.Heartbeat):
                        offered[-1].append(message)
            for answer in answers:
                await connection.send(answer)
            await trio.sleep(0.01)

        return script

    outbox = Outbox()
    commits = [commit(1, number) for number in range(1, 4)]
    for one in commits:
        add(outbox, one)
    acknowledged = [seen(commits[0]), seen(commits[1])]
    settled = [seen(commits[2], result="settled"), m.EndedSeen(process=1)]
    async with linked(
        tmp_path,
        taking(),
        taking(*acknowledged),
        taking(*settled),
        taking(),
        outbox=outbox,
    ) as (link, _):
        await trio.sleep(1.05)
        outbox.add_end(end(1))
        link.wake()
        await trio.sleep(6)
        told = said(link).received
    assert offered[:4] == [commits, [*commits, end(1)], [commits[2], end(1)], []]
    assert told == [*acknowledged, *settled]
    assert outbox.is_settled


@pytest.mark.parametrize("garbage", [encode_frame(b"{}"), b"\xff" * 8])
async def test_a_master_that_breaks_the_protocol_is_dialled_again(
    garbage: bytes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """In mid-session crawls depend on the link, so nothing is final."""

    async def script(connection: Connection[Any], _: m.Register) -> None:
        await connection.send(registered())
        await connection.send_frame(garbage)
        await trio.sleep_forever()

    async with linked(tmp_path, script, welcoming) as (link, network):
        await trio.sleep(1)
        assert len(network.dialled) == 2
        assert link.connected


async def test_a_session_that_the_master_ends_is_followed_by_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A refusal in mid-session is for people; the agent gets nothing of it."""
    async with linked(
        tmp_path, saying(registered(), refused("bad_commit")), welcoming
    ) as (link, network):
        await trio.sleep(1)
        assert len(network.dialled) == 2
        assert link.connected
        assert said(link).received == []


async def test_all_who_wait_for_a_move_are_woken_by_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Of several who wait until something was sent, nobody is forgotten."""
    outbox = Outbox()
    async with linked(tmp_path, welcoming, outbox=outbox) as (link, _):
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(link.wait_moved)
            await trio.testing.wait_all_tasks_blocked()
            add(outbox, commit(1, 1))
            link.wake()
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks
            nursery.cancel_scope.cancel()
