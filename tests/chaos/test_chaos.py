"""The run's own parts: how a row ends, what the table says, the relay's faults."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tests.chaos.__main__ import carry_out
from tests.chaos.experiments import ROWS, Row
from tests.chaos.kills import WORKS, shuffled
from tests.chaos.peer import PAGES, count, schedule, tables
from tests.chaos.relay import Relay
from tests.chaos.rig import Rig, Work
from tests.chaos.table import (
    Outcome,
    Skipped,
    Wrong,
    exit_code,
    first_line,
    render,
    summary,
)
from tests.e2e.cluster import Cluster
from tests.equivalence.runs import Site
from tests.hang import HANG_S

# ---- rows and their table ---------------------------------------------------------


async def good(folder: Path, seed: int, minutes: float) -> str:
    """Run well."""
    return f"seed {seed}, {minutes:g} minutes"


async def skipping(folder: Path, seed: int, minutes: float) -> str:
    """Find within a nursery that it cannot be carried out."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse, Skipped("no such device"))
    raise AssertionError


async def failing(folder: Path, seed: int, minutes: float) -> str:
    """See what must never be, and beside it a skip that excuses nothing."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse, Wrong("items lost 1"))
        nursery.start_soon(refuse, Skipped("no such device"))
    raise AssertionError


async def hanging(folder: Path, seed: int, minutes: float) -> str:
    """Never end."""
    await trio.sleep_forever()


async def refuse(error: Exception) -> None:
    """Raise."""
    raise error


def outcome_of(row: Row, folder: Path) -> Outcome:
    """Carry a row out in a folder of its own."""
    return carry_out(row, folder, 7, 0.0)


def test_a_row_that_ran_says_what_it_counted(tmp_path: Path) -> None:
    """Seed and minutes come in; the folder goes."""
    outcome = outcome_of(Row("good", "", good), tmp_path)
    assert (outcome.end, outcome.text) == ("ran", "seed 7, 0 minutes")
    assert not list(tmp_path.iterdir())


def test_a_skipped_row_says_why(tmp_path: Path) -> None:
    """Also when a nursery wraps it."""
    outcome = outcome_of(Row("skipping", "", skipping), tmp_path)
    assert (outcome.end, outcome.text) == ("skipped", "no such device")


@pytest.mark.parametrize("run", [failing, hanging])
def test_a_failed_row_keeps_its_folder(run: object, tmp_path: Path) -> None:
    """What went wrong, or took too long, is FAILED, whatever else was skipped."""
    outcome = outcome_of(Row("row", "", run, limit_s=0.01), tmp_path)  # type: ignore[arg-type]  # one of the two above
    assert outcome.end == "FAILED"
    assert str(tmp_path / "row") in outcome.text
    assert (tmp_path / "row").is_dir()


def test_the_exit_code_is_that_of_the_worst_row() -> None:
    """A failed row is 1; so is a run in which nothing ran at all."""
    ran, skipped, failed = (
        Outcome("x", "ran", "", 1.0),
        Outcome("y", "skipped", "", 0.0),
        Outcome("z", "FAILED", "", 1.0),
    )
    assert exit_code([ran, skipped]) == 0
    assert exit_code([ran, failed]) == 1
    assert exit_code([skipped]) == 1
    assert exit_code([]) == 1


def test_the_table_tells_each_row_and_how_it_ended() -> None:
    """Long texts are wrapped and lose nothing."""
    words = " ".join(f"word{number}" for number in range(40))
    outcomes = [
        Outcome("kills", "ran", words, 61.7),
        Outcome("namespaces", "skipped", "not allowed", 0.0),
    ]
    text = render(outcomes)
    assert set(words.split()) <= set(text.split())
    assert any("namespaces  skipped" in line for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120
    assert summary(outcomes) == "1 ran, 1 skipped (not survived, not tried), 0 FAILED"


def test_an_error_is_one_line_of_the_table() -> None:
    """The first line of the first error of a group."""
    group = ExceptionGroup("outer", [ExceptionGroup("in", [Wrong("lost 1\n- item")])])
    assert first_line(group) == "Wrong: lost 1"


def test_rows_have_names_of_their_own() -> None:
    """``--only`` names them, and so do their folders."""
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


# ---- what jobs gave ---------------------------------------------------------------


def test_a_lost_and_a_repeated_item_are_wrong(tmp_path: Path) -> None:
    """Every line of plain Scrapy exactly as often, and no other."""
    site = Site(port=1, log=tmp_path / "log")
    rig = Rig(tmp_path, site, Cluster(tmp_path), None)  # type: ignore[arg-type]  # draws nothing
    plain = Counter(a=2, b=1)
    rig.compare("x", Counter(b=1, a=2), plain)
    with pytest.raises(Wrong, match="items lost 1, repeated 0"):
        rig.compare("x", Counter(a=2), plain)
    with pytest.raises(Wrong, match="items lost 0, repeated 1"):
        rig.compare("x", Counter(a=3, b=1), plain)
    assert rig.items == 3 + 2 + 4


def test_works_come_all_before_any_comes_again() -> None:
    """Each round has another order, drawn from the seed."""
    works = shuffled(random.Random(1), WORKS)
    rounds = [[next(works) for _ in WORKS] for _ in range(2)]
    assert rounds[0] != rounds[1]
    for one in rounds:
        assert Counter(work.key for work in one) == Counter(w.key for w in WORKS)


def test_plain_scrapy_runs_once_for_the_same_arguments() -> None:
    """What only slows or kills is no part of the oracle's name."""
    assert Work("x", {"count": "3"}, {"ms": "60"}).key == Work("x", {"count": "3"}).key
    assert Work("x", {"count": "3"}).key != Work("x", {"count": "4"}).key


# ---- the comparison ---------------------------------------------------------------


def test_a_seed_is_a_schedule() -> None:
    """Both sides get the same kills at the same moments."""
    assert schedule(5) == schedule(5)
    assert schedule(5) != schedule(6)


def test_pages_and_items_are_counted_apart() -> None:
    """Two pages never fetched, one fetched three times; an item lost, one repeated."""
    paths = [f"/page/{number}" for number in range(PAGES - 2)] + ["/page/0"] * 2
    items = Counter(
        f'{{"number": {number}, "title": "page {number}"}}'
        for number in range(PAGES - 1)
    )
    items['{"number": 0, "title": "page 0"}'] += 1
    found = count(8, paths, items, "")
    assert (found.pages_lost, found.pages_repeated) == (2, 2)
    assert (found.items_lost, found.items_repeated) == (1, 1)
    quiet, struck = tables({"dscrapy": [attrs.evolve(found, kills=0), found, found]})
    assert quiet.splitlines()[-1] == "| dscrapy | 1 | 0 | 2 | 2 | 1 | 1 |"
    assert struck.splitlines()[-1] == "| dscrapy | 2 | 16 | 4 | 4 | 2 | 2 |"


# ---- the relay --------------------------------------------------------------------


@attrs.frozen
class Line:
    """A worker's and a master's end, with the relay between."""

    relay: Relay
    port: int
    accepted: trio.MemoryReceiveChannel[trio.SocketStream]
    worker: trio.SocketStream
    master: trio.SocketStream


@asynccontextmanager
async def connected() -> AsyncIterator[Line]:
    """One connection through a relay."""
    send, receive = trio.open_memory_channel[trio.SocketStream](1)

    async def accept(stream: trio.SocketStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, accept, [listener])
        relay = Relay(lambda: ("127.0.0.1", port))
        at = await nursery.start(relay.serve)
        with trio.fail_after(HANG_S):
            async with await trio.open_tcp_stream("127.0.0.1", at) as worker:
                yield Line(relay, at, receive, worker, await receive.receive())
        nursery.cancel_scope.cancel()


async def read(stream: trio.SocketStream, size: int) -> bytes:
    """Return so many bytes, or fewer when the stream ends or breaks."""
    data = b""
    try:
        while len(data) < size and (more := await stream.receive_some(65536)):
            data += more
    except trio.BrokenResourceError:
        pass
    return data


async def test_bytes_pass_both_ways() -> None:
    """Without a fault it is a wire, with a delay a slow one."""
    async with connected() as line:
        await line.worker.send_all(b"up" * 50_000)
        assert await read(line.master, 100_000) == b"up" * 50_000
        line.relay.delay_s = 0.01
        await line.master.send_all(b"down")
        assert await read(line.worker, 4) == b"down"
        assert line.relay.connections == 1


async def test_a_held_way_holds_while_the_other_passes() -> None:
    """Nothing is lost: what has waited comes in order, once it is let go."""
    async with connected() as line:
        line.relay.hold("up")
        await line.worker.send_all(b"first ")
        await line.master.send_all(b"other way")
        assert await read(line.worker, 9) == b"other way"
        assert line.relay.passed["up"] == 0
        line.relay.let_go("up")
        await line.worker.send_all(b"second")
        assert await read(line.master, 12) == b"first second"


async def test_a_reset_comes_at_its_byte() -> None:
    """The byte is the last that passes; then both sides' connections are gone."""
    async with connected() as line:
        await line.worker.send_all(b"x" * 10)
        assert await read(line.master, 10) == b"x" * 10
        line.relay.reset_after(7)
        await line.worker.send_all(b"y" * 100)
        assert len(await read(line.master, 100)) <= 7
        assert await read(line.worker, 1) == b""
        assert line.relay.passed["up"] == 17
        assert line.relay.resets == 1


async def test_after_a_reset_a_new_connection_is_whole() -> None:
    """A fault is over when it is over."""
    async with connected() as line:
        await line.worker.send_all(b"x")
        assert await read(line.master, 1) == b"x"
        line.relay.reset()
        assert await read(line.worker, 1) == b""
        async with await trio.open_tcp_stream("127.0.0.1", line.port) as worker:
            await worker.send_all(b"z" * 50_000)
            master = await line.accepted.receive()
            assert await read(master, 50_000) == b"z" * 50_000
        assert (line.relay.connections, line.relay.resets) == (2, 1)
