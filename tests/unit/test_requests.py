"""The durable part of a frontier: numbers, places, exact dedupe, snapshots."""

import msgspec
import pytest

from dscrapy.frontier.frontier import (
    Frontier,
    FrontierSnapshot,
    Granted,
    Seen,
    Stored,
    is_sound,
)
from dscrapy.messages import DONT_FILTER, START_REQUEST, Children, Share
from tests import builders as b

BOTH = DONT_FILTER | START_REQUEST


def test_requests_are_numbered_in_order_from_one() -> None:
    """The first is 1; a number once given is not given again, done or not."""
    frontier = Frontier()
    assert frontier.add(b.children("a", "b")) == 0
    assert frontier.next_request == 3
    assert frontier.done(2)
    assert frontier.add(b.children("c")) == 0
    assert [frontier.is_open(number) for number in range(5)] == [
        *(False, True, False, True, False)
    ]
    assert Frontier(next_request=7).next_request == 7


def test_every_body_has_its_place_in_the_file() -> None:
    """Also those that are filtered occupy it: body and newline each."""
    frontier = Frontier(body_bytes=100)
    assert frontier.add(b.children("aaa", "aaa", "b")) == 1
    assert frontier.body_bytes == 100 + 6 + 6 + 4
    frontier.leases.open_process(1, b.opened())
    granted = frontier.lease(1, 9, 0.0)
    assert granted == Granted(
        requests=(1, 2),
        hosts=("h", "h"),
        places=((100, 5), (112, 3)),
        shares={"h": Share()},
    )


def test_what_is_seen_is_not_taken_again() -> None:
    """Not of an earlier batch, of the same batch, or seen without coming here."""
    frontier = Frontier()
    seen = b.fingerprint("x") + b.fingerprint("y")
    frontier.publish([frontier.store(Children(), seen)])
    assert frontier.add(b.children("a", "x", "a", "b")) == 2
    assert frontier.done(1)
    assert frontier.add(b.children("a", "y", "c")) == 2
    assert frontier.pending_count == 2
    asked = b"".join(map(b.fingerprint, ("a", "z", "x")))
    assert frontier.seen_of(asked) == (True, False, True)
    assert frontier.seen_of(b"") == ()


def test_dont_filter_keeps_multiplicity_and_records_nothing() -> None:
    """Two equal ones are two, and a later one that asks is new."""
    frontier = Frontier()
    twice = b.children("a", "a", "b", "a", flags=(DONT_FILTER, BOTH, 0, 0))
    assert frontier.add(twice) == 0
    assert frontier.add(b.children("a", "a", flags=(DONT_FILTER, 0))) == 1
    assert frontier.pending_count == 5
    only = b.children("q", flags=(DONT_FILTER,))
    assert frontier.add(only) == 0
    assert frontier.seen_of(b.fingerprint("q")) == (False,)


def test_unseen_are_those_that_add_takes() -> None:
    """Without any effect; what is filtered there is not filtered again."""
    frontier = Frontier()
    frontier.publish([frontier.store(Children(), b.fingerprint("x"))])
    before = frontier.encode()
    offered = b.children(
        *("a", "x", "x", "a", "b"),
        hosts=("h", "g", "g", "h", "f"),
        priorities=(1, 2, 3, 4, 5),
        flags=(0, 0, DONT_FILTER, 0, START_REQUEST),
    )
    kept, filtered = frontier.unseen(offered)
    assert frontier.encode() == before
    assert filtered == 2
    assert kept.bodies == tuple(offered.bodies[at] for at in (0, 2, 4))
    assert kept.priorities == (1, 3, 5)
    assert kept.flags == (0, DONT_FILTER, START_REQUEST)
    assert [kept.hosts[host] for host in kept.host_of] == ["h", "g", "f"]
    assert is_sound(kept)
    assert frontier.add(kept) == 0
    assert frontier.unseen(offered)[0].bodies == (offered.bodies[2],)
    fresh = b.children("n")
    assert frontier.unseen(fresh) == (fresh, 0)
    assert frontier.unseen(b.children("n", "n"))[1] == 1
    assert frontier.unseen(b.children("a")) == (Children(), 1)


def test_stored_parts_have_effect_when_they_are_added() -> None:
    """Bodies take their place at once; dedupe is decided at publication."""
    frontier = Frontier()
    stored = frontier.store(b.children("a", "b", "a"))
    assert (frontier.pending_count, frontier.body_bytes) == (0, 12)
    assert frontier.seen_of(b.fingerprint("a")) == (False,)
    assert frontier.add(b.children("b")) == 0
    decoded = msgspec.json.decode(msgspec.json.encode(stored), type=Stored)
    assert decoded == stored
    assert frontier.publish([decoded]) == 2
    assert (frontier.pending_count, frontier.body_bytes) == (2, 16)
    frontier.leases.open_process(1, b.opened())
    assert frontier.lease(1, 9, 0.0).places == ((12, 3), (0, 3))


def test_done_counts_once_whoever_has_it() -> None:
    """A request is done from pending or from leased, and then it is neither."""
    frontier = Frontier()
    frontier.add(b.children("a", "b"))
    frontier.leases.open_process(1, b.opened())
    frontier.lease(1, 1, 0.0)
    assert (frontier.pending_count, frontier.leased_count) == (1, 1)
    assert frontier.done(1, 1.0)
    assert not frontier.done(1)
    assert frontier.done(2)
    assert (frontier.pending_count, frontier.leased_count) == (0, 0)
    assert not frontier.done(3)


def test_a_snapshot_is_the_durable_part() -> None:
    """Through JSON too: leases are pending again, order and dedupe are the same."""
    frontier = Frontier()
    frontier.add(
        b.children(
            *("a", "b", "c", "d", "e"),
            hosts=("h", "g", "h", "g", "f"),
            priorities=(0, -5, 2**40, 0, 0),
            flags=(0, BOTH, 0, START_REQUEST, 0),
        )
    )
    frontier.done(5)
    replayed = frontier.encode()
    frontier.leases.open_process(1, b.opened())
    frontier.lease(1, 2, 0.0)
    frontier.leases.release(1, (1,), 0.0)
    snapshot = frontier.encode()
    assert snapshot == replayed
    data = msgspec.json.encode(snapshot)
    again = Frontier.decode(msgspec.json.decode(data, type=FrontierSnapshot))
    assert again.encode() == snapshot
    assert (again.pending_count, again.leased_count) == (4, 0)
    assert (again.next_request, again.body_bytes) == (6, 20)
    assert again.add(b.children("a", "b", "e")) == 2
    again.leases.open_process(1, b.opened())
    assert again.lease(1, 9, 0.0).requests == (3, 1, 6, 4, 2)


def test_an_empty_frontier_has_a_snapshot() -> None:
    """Nothing at all comes back as nothing at all."""
    assert Frontier.decode(Frontier().encode()).encode() == Frontier().encode()


def test_seen_is_a_set_with_an_order() -> None:
    """Counted once, dumped in the order in which they came."""
    seen = Seen()
    one, two = b.fingerprint("a"), b.fingerprint("b")
    assert seen.add_many(two + one + two) == [True, True, False]
    assert seen.test_many(one + b.fingerprint("c")) == [True, False]
    assert (len(seen), seen.dump()) == (2, two + one)
    with pytest.raises(AssertionError):
        seen.add_many(b"x")


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprints": b"x" * 39},
        {"host_of": (0,)},
        {"host_of": (0, 1)},
        {"host_of": (0, -1)},
        {"priorities": (0,)},
        {"flags": (0, 0, 0)},
        {"bodies": ()},
        {"hosts": ()},
    ],
)
def test_unsound_columns_are_told(changes: dict[str, object]) -> None:
    """Any column of another length, or a host that is not there, is found."""
    sound = b.children("a", "b")
    assert is_sound(sound)
    assert is_sound(Children())
    assert not is_sound(msgspec.structs.replace(sound, **changes))
