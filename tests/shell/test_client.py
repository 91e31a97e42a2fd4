"""The client's promises: carried out once or told, repeated only where that is safe."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.client import (
    PART_BYTES_MAX,
    PING_EVERY_S,
    Client,
    Target,
)
from dscrapy.errors import (
    RefusedError,
    RemoteProtocolError,
    UnauthorisedError,
    UnreachableError,
    UserError,
)
from dscrapy.model import JobSpec, Submission
from tests import builders as b
from tests.doubles.masters import TOKEN, HangUp, ScriptedMaster, Served
from tests.hang import HANG_S

TIMEOUT_S = 5.0
Clock = trio.testing.MockClock


def target(port: int = 7411, token: str | None = TOKEN) -> Callable[[], Target]:
    """Return what a client asks for the master's place."""
    found = Target(
        host="127.0.0.1", port=port, token=token, token_from="looked in THE-PLACE"
    )
    return lambda: found


@asynccontextmanager
async def client_of(
    master: ScriptedMaster,
    *,
    patient: bool = False,
    told: list[str] | None = None,
    token: str = TOKEN,
) -> AsyncIterator[Client]:
    """A client of a master over memory."""
    said: list[str] = [] if told is None else told
    async with trio.open_nursery() as nursery:
        client = Client(
            target(token=token),
            connect_timeout_s=TIMEOUT_S,
            patient=patient,
            tell=said.append,
            dial=master.dial_from(nursery),
        )
        async with client:
            yield client
        nursery.cancel_scope.cancel()


async def accept_all(served: Served, call: m.ClientCall) -> None:
    """Accept whatever is called."""
    await served.answer(m.Accepted(call=call.call))


def shown(call: int, job: str) -> m.Shown:
    """Return an answer about a job or schedule that has no view."""
    return m.Shown(call=call, job=None, schedule=None, spec=JobSpec(spider=job))


# ---- calls ------------------------------------------------------------------------


async def test_answer_belongs_to_its_call(autojump_clock: Clock) -> None:
    """An answer to another call is not taken for the one that is awaited."""

    async def script(served: Served, call: m.ClientCall) -> None:
        assert isinstance(call, m.ShowJob)
        await served.answer(shown(call.call + 1000, "other"))
        await served.answer(shown(call.call, call.job))

    async with client_of(ScriptedMaster(script)) as client:
        for job in ("a", "b"):
            assert (await client.show(job)).spec.spider == job


async def test_refusal_is_an_error_with_its_code(autojump_clock: Clock) -> None:
    """A refusal reaches the caller with code and text, and ends nothing else."""

    async def script(served: Served, call: m.ClientCall) -> None:
        if isinstance(call, m.ShowJob):
            refused = m.Refused(call=call.call, code="no_such_job", text="no job x")
            await served.answer(refused)
        else:
            await accept_all(served, call)

    async with client_of(ScriptedMaster(script)) as client:
        with pytest.raises(RefusedError, match="no job x") as caught:
            await client.show("x")
        assert caught.value.code == "no_such_job"
        await client.drain("worker")


async def test_refusal_of_no_call_ends_the_wait(autojump_clock: Clock) -> None:
    """A refusal that ends the session is told, whatever call is awaited."""

    async def script(served: Served, call: m.ClientCall) -> None:
        await served.answer(m.Refused(call=-1, code="too_many", text="too many"))
        raise HangUp

    async with client_of(ScriptedMaster(script)) as client:
        with pytest.raises(RefusedError, match="too many"):
            await client.show("x")


async def test_wrong_answer_is_told(autojump_clock: Clock) -> None:
    """An answer of another kind is an error, never taken as it comes."""
    async with client_of(ScriptedMaster(accept_all)) as client:
        with pytest.raises(UnreachableError, match="Accepted where a Shown"):
            await client.show("x")


async def test_wrong_token_names_where_it_came_from(autojump_clock: Clock) -> None:
    """A token that is not the master's gives exit code 4 and the place, at once."""
    master = ScriptedMaster(accept_all)

    async def serve(stream: trio.abc.Stream) -> None:
        with pytest.raises(RemoteProtocolError, match="token"):
            await original(stream)

    original, master.serve = master.serve, serve  # type: ignore[method-assign] # watched
    async with client_of(master, token="another-token-of-22-characters") as client:
        with pytest.raises(UnauthorisedError, match="THE-PLACE") as caught:
            await client.show("x")
    assert caught.value.exit_code == 4
    assert trio.current_time() == pytest.approx(0, abs=0.01)


# ---- lost connections -------------------------------------------------------------


async def test_a_read_is_repeated_when_its_answer_is_lost(
    autojump_clock: Clock,
) -> None:
    """A call that only reads is asked again on a new connection."""

    async def script(served: Served, call: m.ClientCall) -> None:
        if served.number < 3:
            raise HangUp
        await served.answer(shown(call.call, "job"))

    master = ScriptedMaster(script)
    async with client_of(master) as client:
        assert (await client.show("x")).spec.spider == "job"
    assert [number for number, _ in master.received] == [1, 2, 3]


async def test_a_change_is_never_made_twice(autojump_clock: Clock) -> None:
    """When the reply to a change is lost, the caller is told and nothing is sent."""

    async def script(served: Served, call: m.ClientCall) -> None:
        raise HangUp

    master = ScriptedMaster(script)
    async with client_of(master, patient=True) as client:
        change = m.ChangeJob(call=0, verb="retry", job="x")
        with pytest.raises(UnreachableError, match="unknown"):
            await client.change(change)
        with pytest.raises(UnreachableError, match="unknown"):
            await client.drain("worker")
    kinds = [type(call) for _, call in master.received]
    assert kinds == [m.ChangeJob, m.DrainWorker]


async def test_master_that_always_hangs_up_ends_in_an_error(
    autojump_clock: Clock,
) -> None:
    """A read is not repeated for ever, nor in a tight loop."""

    async def script(served: Served, call: m.ClientCall) -> None:
        raise HangUp

    master = ScriptedMaster(script)
    async with client_of(master) as client:
        with pytest.raises(UnreachableError, match="hung up"):
            await client.show("x")
    assert TIMEOUT_S <= trio.current_time() < 3 * TIMEOUT_S
    assert master.connections < 20


async def test_patient_client_outlives_a_long_absence(autojump_clock: Clock) -> None:
    """A patient client waits for a master it has reached once, and says so once."""
    away_s = 3600.0

    async def script(served: Served, call: m.ClientCall) -> None:
        if served.number == 1 and isinstance(call, m.WaitJob):
            raise HangUp
        if trio.current_time() < away_s:
            raise HangUp
        await served.answer(shown(call.call, "job"))

    told: list[str] = []
    master = ScriptedMaster(script)
    async with client_of(master, patient=True, told=told) as client:
        assert (await client.wait("x")).spec.spider == "job"
    assert away_s <= trio.current_time() < away_s + 10
    assert len(told) == 1
    assert "waiting" in told[0]


async def test_silent_master_is_given_up(autojump_clock: Clock) -> None:
    """A connection on which nothing comes back, pings included, counts as lost."""

    async def script(served: Served, call: m.ClientCall) -> None:
        if served.number > 1:
            await served.answer(shown(call.call, "job"))

    master = ScriptedMaster(script)
    async with client_of(master) as client:
        assert (await client.wait("x")).spec.spider == "job"
    assert 2 * PING_EVERY_S <= trio.current_time() <= 4 * PING_EVERY_S
    first = [type(call) for number, call in master.received if number == 1]
    assert first == [m.WaitJob, m.Ping, m.Ping]


async def test_long_wait_lasts_while_pings_are_answered(
    autojump_clock: Clock,
) -> None:
    """An answer that takes hours is awaited on the same connection."""
    hours_s = 5 * 3600.0
    waiting: list[m.ClientCall] = []

    async def script(served: Served, call: m.ClientCall) -> None:
        if isinstance(call, m.Ping):
            await accept_all(served, call)
        else:
            waiting.append(call)
        if trio.current_time() >= hours_s:
            await served.answer(shown(waiting[0].call, "job"))

    master = ScriptedMaster(script)
    async with client_of(master) as client:
        assert (await client.wait("x")).spec.spider == "job"
    assert trio.current_time() >= hours_s
    assert master.connections == 1


async def test_a_cancelled_call_leaves_no_answer_behind(
    autojump_clock: Clock,
) -> None:
    """After a call was cancelled, the next one gets its own answer."""

    async def script(served: Served, call: m.ClientCall) -> None:
        assert isinstance(call, m.ShowJob)
        if call.job == "slow":
            await trio.sleep(2)
        await served.answer(shown(call.call, call.job))

    async with client_of(ScriptedMaster(script)) as client:
        with trio.move_on_after(1) as scope:
            await client.show("slow")
        assert scope.cancelled_caught
        assert (await client.show("quick")).spec.spider == "quick"


# ---- submissions and files -----------------------------------------------------------


def submissions(count: int, url_chars: int = 10) -> list[Submission]:
    """Return that many jobs, each with one url of a length."""
    url = "http://x/" + "y" * url_chars
    return [
        Submission(
            id=b.job_id(number), spec=JobSpec(project="p", spider="s", urls=(url,))
        )
        for number in range(count)
    ]


async def test_submit_in_parts_that_fit(autojump_clock: Clock) -> None:
    """Parts are numbered, bounded, in order and together exactly what was given."""
    master = ScriptedMaster(accept_all)
    jobs = submissions(300, url_chars=10_000)
    async with client_of(master) as client:
        await client.submit(jobs)
        await client.submit([])
    parts = [call for _, call in master.received if isinstance(call, m.Submit)]
    assert len(parts) == len(master.received) == 3
    assert [part.part for part in parts] == [0, 1, 2]
    assert [part.last for part in parts] == [False, False, True]
    assert [one for part in parts for one in part.submissions] == jobs
    sizes = [len(msgspec.json.encode(part.submissions)) for part in parts]
    assert max(sizes) <= PART_BYTES_MAX


@pytest.mark.parametrize("lost_after", [1, 2, 3])
async def test_submit_is_repeated_whole(autojump_clock: Clock, lost_after: int) -> None:
    """A submission whose connection is lost is sent again from its first part."""

    async def script(served: Served, call: m.ClientCall) -> None:
        if len(master.received) == lost_after:
            raise HangUp
        await accept_all(served, call)

    master = ScriptedMaster(script)
    jobs = submissions(300, url_chars=10_000)
    async with client_of(master) as client:
        await client.submit(jobs)
    second = [
        call
        for number, call in master.received
        if number == 2 and isinstance(call, m.Submit)
    ]
    assert [one for part in second for one in part.submissions] == jobs
    assert [part.part for part in second] == [0, 1, 2]


async def test_job_beyond_a_frame_is_a_clear_error(autojump_clock: Clock) -> None:
    """A job that fits in no frame is refused here, before anything is sent."""
    master = ScriptedMaster(accept_all)
    async with client_of(master) as client:
        with pytest.raises(UserError, match="the limit is"):
            await client.submit(submissions(1, url_chars=9 * 1024 * 1024))
    assert not master.received


async def test_jobs_come_in_pages(autojump_clock: Clock) -> None:
    """All pages are asked for, each after the one before."""
    asked: list[int | None] = []

    async def script(served: Served, call: m.ClientCall) -> None:
        assert isinstance(call, m.ListJobs)
        asked.append(call.after)
        following = {None: 5, 5: 9, 9: None}[call.after]
        await served.answer(m.Jobs(call=call.call, jobs=(), next=following))

    async with client_of(ScriptedMaster(script)) as client:
        assert await client.jobs() == []
    assert asked == [None, 5, 9]


# ---- reaching the master -------------------------------------------------------------


async def free_port() -> int:
    """Return a port on which nobody listens."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port: int = listener.socket.getsockname()[1]
        return port


@pytest.mark.parametrize("token", [TOKEN, None])
async def test_nobody_there_is_told_in_time(token: str | None) -> None:
    """With nobody listening the error has exit code 3, the place and a way out.

    That holds without a token too: it is not what is missing first.
    """
    port = await free_port()
    began = trio.current_time()
    # On a busy machine a single try may take a second.
    async with Client(target(port, token), connect_timeout_s=5.0) as client:
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}") as caught:
            await client.status()
    assert trio.current_time() - began < HANG_S
    assert "dscrapy master" in str(caught.value)
    assert "refused" in str(caught.value)
    assert caught.value.exit_code == 3


async def test_master_that_comes_up_in_time_is_reached() -> None:
    """A command started just before its master finds it."""
    port = await free_port()
    master = ScriptedMaster(accept_all)
    tries = 0

    def find() -> Target:
        nonlocal tries
        tries += 1
        if tries == 3:
            nursery.start_soon(trio.serve_tcp, master.serve, port)
        return target(port)()

    async with trio.open_nursery() as nursery:
        async with Client(find, connect_timeout_s=HANG_S) as client:
            await client.drain("worker")
        nursery.cancel_scope.cancel()
    assert tries >= 3


async def test_no_token_where_a_master_listens() -> None:
    """Without a token for a master that is there, the places are named: exit 4."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, trio.aclose_forcefully, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with Client(target(port, None), connect_timeout_s=HANG_S) as client:
            with pytest.raises(UnauthorisedError, match="THE-PLACE") as caught:
                await client.status()
        nursery.cancel_scope.cancel()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\2{}", b"\0\0\0\1["]
)
async def test_something_else_that_answers_is_told_at_once(greeting: bytes) -> None:
    """What answers but is no master is named, without trying until the timeout."""

    async def serve(stream: trio.abc.Stream) -> None:
        await stream.send_all(greeting)
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with Client(target(port), connect_timeout_s=600) as client:
            with pytest.raises(UnreachableError, match="no dscrapy master"):
                await client.status()
        nursery.cancel_scope.cancel()
