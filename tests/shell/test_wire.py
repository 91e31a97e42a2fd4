"""The wire of the simulation is a stream as trio knows it, and fails as told."""

import random

import pytest
import trio
from trio.testing import MockClock, check_two_way_stream

from tests.doubles.wire import WAY_BYTES_MAX, CutKind, Wire


async def test_its_ends_are_streams(autojump_clock: MockClock) -> None:
    """They pass the suite that trio's own streams pass, also late and in pieces."""
    wires = [{"lag_s": 0.0, "splits": 0.0}, {"lag_s": 0.2, "splits": 0.5}]
    for fields in wires:

        async def make(
            fields: dict[str, float] = fields,
        ) -> tuple[trio.abc.Stream, trio.abc.Stream]:
            return Wire(random.Random(1), **fields).ends

        async def make_clogged() -> tuple[trio.abc.Stream, trio.abc.Stream]:
            wire = Wire()
            for end in wire.ends:
                await end.send_all(bytes(WAY_BYTES_MAX))
            return wire.ends

        await check_two_way_stream(make, make_clogged)


@pytest.mark.parametrize("kind", ["reset", "end"])
async def test_what_arrived_before_a_cut_is_read(
    kind: CutKind, autojump_clock: MockClock
) -> None:
    """Then both sides learn of it, by an error or by an end."""
    wire = Wire()
    one, other = wire.ends
    await one.send_all(b"before")
    wire.cut(kind)
    assert await other.receive_some() == b"before"
    for end in wire.ends:
        if kind == "end":
            assert await end.receive_some() == b""
        else:
            with pytest.raises(trio.BrokenResourceError):
                await end.receive_some()


async def test_a_cut_comes_at_its_byte(autojump_clock: MockClock) -> None:
    """So many bytes arrive, of whatever frame they are."""
    wire = Wire()
    one, other = wire.ends
    wire.ways[0].cut_after = 8
    await one.send_all(b"first")
    await one.send_all(b"second")
    assert await other.receive_some() == b"firstsec"
    with pytest.raises(trio.BrokenResourceError):
        await other.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await one.send_all(b"third")


async def test_a_partition_holds_and_heals(autojump_clock: MockClock) -> None:
    """What is held on one way arrives later; the other way goes on."""
    wire = Wire()
    one, other = wire.ends
    wire.ways[0].is_held = True
    await one.send_all(b"held")
    await other.send_all(b"back")
    assert await one.receive_some() == b"back"
    with trio.move_on_after(60) as scope:
        await other.receive_some()
    assert scope.cancelled_caught
    wire.ways[0].release(trio.current_time())
    assert await other.receive_some() == b"held"


async def test_one_side_never_learns(autojump_clock: MockClock) -> None:
    """Who has lost the connection knows; the other one sends into nothing."""
    wire = Wire()
    one, other = wire.ends
    wire.abandon(1)
    await one.send_all(b"into nothing")
    with trio.move_on_after(3600) as scope:
        await one.receive_some()
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await other.receive_some()
