"""Who gets which request: owners, bounds, delays, and hosts that change hands."""

import pytest

from dscrapy.frontier.frontier import Frontier
from dscrapy.frontier.politeness import DELAYED_PREFETCH, Cooldowns, at_once
from dscrapy.frontier.priority_index import PriorityIndex
from dscrapy.frontier.rights import Host
from dscrapy.messages import START_REQUEST, Share
from dscrapy.model import HostLimits
from tests import builders as b


def with_hosts(*names: str, each: int = 2) -> Frontier:
    """Return a frontier with so many requests of each host, in that order."""
    frontier = Frontier()
    for name in names:
        urls = [f"{name}{number}" for number in range(each)]
        frontier.add(b.children(*urls, hosts=[name] * each))
    return frontier


def test_nobody_gets_anything_before_being_open() -> None:
    """An unknown process has no room and no leases."""
    frontier = with_hosts("a")
    assert frontier.lease(1, 9, 0.0).requests == ()
    assert (frontier.capacity.room(1), frontier.leases.count_of(1)) == (0, 0)
    assert not frontier.capacity.wants_process()
    frontier.leases.close_process(1)
    frontier.leases.end_process(1, 0.0)
    frontier.leases.release(1, (1,), 0.0)
    assert frontier.pending_count == 2


def test_order_is_priority_then_scrapys_queues() -> None:
    """Over all hosts: priority, ordinary before start, each by its own end."""
    frontier = Frontier()
    frontier.add(
        b.children(
            *"abcdefg",
            hosts=("h", "g", "h", "g", "h", "g", "h"),
            priorities=(0, 0, 0, 0, 1, 0, -1),
            flags=(START_REQUEST, 0, 0, START_REQUEST, 0, 0, 0),
        )
    )
    frontier.leases.open_process(1, b.opened(lifo=True))
    assert frontier.lease(1, 9, 0.0).requests == (5, 6, 3, 2, 1, 4, 7)


@pytest.mark.parametrize("concurrency", [1, 2, 3, 4, 5, 16, 17])
def test_places_are_those_of_the_downloader(concurrency: int) -> None:
    """A window is half as much again: what is beyond is there to be next."""
    assert at_once(concurrency + concurrency // 2) == concurrency


def test_spare_places_are_of_all_open_processes_less_what_is_pending() -> None:
    """Leased or pending is the same."""
    frontier = with_hosts("a", each=3)
    frontier.leases.open_process(1, b.opened(window=6))
    frontier.leases.open_process(2, b.opened(window=3))
    assert frontier.capacity.spare_places() == 4 + 2 - 3
    frontier.lease(1, 2, 0.0)
    assert frontier.capacity.spare_places() == 3
    frontier.leases.close_process(2)
    assert frontier.capacity.spare_places() == 1
    frontier.add(b.children("b0", "b1", hosts=["b", "b"]))
    assert frontier.capacity.spare_places() == -1


def test_suspects_take_no_place() -> None:
    """Who consumes start() cannot have them, so it must come to its end without."""
    frontier = with_hosts("a", each=1)
    frontier.leases.open_process(1, b.opened(window=1))
    assert frontier.lease(1, 1, 0.0).requests == (1,)
    frontier.count_death((1,), alone=False)
    frontier.count_death((1,), alone=False)
    frontier.leases.end_process(1, 0.0)
    frontier.leases.open_process(2, b.opened(window=6))
    assert frontier.quarantine.wants_isolator
    assert frontier.capacity.spare_places() == 4
    frontier.quarantine.isolate(2)
    # The isolator takes nothing else.
    frontier.leases.open_process(3, b.opened(window=3))
    assert frontier.capacity.spare_places() == 2


def test_places_are_free_and_what_is_pending_waits_for_others() -> None:
    """Not where a host is free, nor where it waits for a host of the process's own,
    which knows by itself whether that is busy."""
    frontier = with_hosts("a", each=9)
    frontier.leases.open_process(1, b.opened(window=6, concurrency=1, delay_s=9.0))
    frontier.leases.open_process(2, b.opened(2, window=6, concurrency=1, delay_s=9.0))
    assert not frontier.capacity.waits_for_others(2)
    assert len(frontier.lease(1, 6, 0.0).requests) == DELAYED_PREFETCH
    assert [frontier.capacity.waits_for_others(one) for one in (1, 2)] == [False, True]
    frontier.add(b.children("b0", hosts=["b"]))
    assert not frontier.capacity.waits_for_others(2)
    frontier.add(b.children(*"cdef", hosts=[*"cdef"]))
    assert len(frontier.lease(2, 4, 0.0).requests) == 4
    frontier.lease(1, 6, 0.0)
    # All its places are taken.
    assert not frontier.capacity.waits_for_others(2)


def test_other_rules_count_from_when_they_are_told() -> None:
    """A process that asks for another order gets all that is left in it."""
    frontier = with_hosts("a", "b")
    frontier.leases.open_process(1, b.opened())
    assert frontier.lease(1, 1, 0.0).requests == (1,)
    frontier.leases.open_process(1, b.opened(lifo=True))
    assert frontier.lease(1, 9, 0.0).requests == (4, 3, 2)


@pytest.mark.parametrize(
    ("window", "concurrency", "delay_s", "bound"),
    [
        (100, 8, 0.0, 12),
        (100, 9, 0.0, 14),
        (100, 3, 0.0, 7),
        (100, 1, 0.0, 5),
        (100, 0, 0.0, 5),
        (100, 8, 0.5, DELAYED_PREFETCH),
        (1, 8, 0.0, 1),
        (2, 8, 0.0, 2),
    ],
)
def test_leases_of_a_host_are_bounded(
    window: int, concurrency: int, delay_s: float, bound: int
) -> None:
    """Concurrency and a prefetch, or a few with a delay, never over the window."""
    frontier = with_hosts("a", each=30)
    told = b.opened(window=window, concurrency=concurrency, delay_s=delay_s)
    frontier.leases.open_process(1, told)
    assert frontier.lease(1, 1000, 0.0).requests == tuple(range(1, bound + 1))
    assert frontier.lease(1, 1000, 0.0).requests == ()
    frontier.done(1, 1.0)
    assert frontier.lease(1, 1000, 1.0).requests == (bound + 1,)


def test_a_host_may_have_limits_of_its_own() -> None:
    """They stand in place of the default, also when they come later."""
    frontier = with_hosts("a", "b", each=9)
    slow = {"a": HostLimits(concurrency=1, delay_s=0.5)}
    frontier.leases.open_process(1, b.opened(concurrency=1, hosts=slow))
    assert frontier.lease(1, 99, 0.0).requests == (1, 2, 3, 10, 11, 12, 13, 14)
    frontier.leases.open_process(1, b.opened(concurrency=1))
    assert frontier.lease(1, 99, 0.0).requests == (4, 5)


def test_a_wider_window_widens_the_bound() -> None:
    """A process that opens again with another window gets what that allows."""
    frontier = with_hosts("a", each=9)
    frontier.leases.open_process(1, b.opened(window=1))
    assert frontier.lease(1, 9, 0.0).requests == (1,)
    frontier.leases.open_process(1, b.opened(window=3))
    assert frontier.lease(1, 9, 0.0).requests == (2, 3)


def test_room_is_given_below_the_low_water_mark() -> None:
    """None above three quarters of the window, then all of what is missing."""
    frontier = with_hosts(*"abcdefghij")
    frontier.leases.open_process(1, b.opened(window=8))
    assert frontier.capacity.room(1) == 8
    frontier.lease(1, 7, 0.0)
    assert (frontier.capacity.room(1), frontier.leases.count_of(1)) == (0, 7)
    frontier.done(1, 0.0)
    assert frontier.capacity.room(1) == 2
    frontier.leases.close_process(1)
    assert frontier.capacity.room(1) == 0
    for window in (1, 2, 3):
        frontier.leases.open_process(2, b.opened(2, window=window))
        assert frontier.capacity.room(2) == window


def test_a_host_has_one_owner() -> None:
    """Another process gets nothing of it, and takes what is free."""
    frontier = with_hosts("a", "b", each=3)
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process))
    first = frontier.lease(1, 1, 0.0)
    assert (first.requests, first.shares) == ((1,), {"a": Share()})
    second = frontier.lease(2, 9, 0.0)
    assert (second.requests, second.shares) == ((4, 5, 6), {"b": Share()})
    assert set(second.hosts) == {"b"}
    again = frontier.lease(1, 9, 0.0)
    assert (again.requests, again.shares) == ((2, 3), {})


def test_a_host_without_requests_has_no_owner() -> None:
    """Then anybody may take it; with work left it stays where it is."""
    frontier = with_hosts("a", each=2)
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process, concurrency=1))
    frontier.lease(1, 1, 0.0)
    frontier.done(1, 1.0)
    assert frontier.lease(2, 9, 1.0).requests == ()
    frontier.lease(1, 1, 1.0)
    frontier.done(2, 2.0)
    assert frontier.lease(2, 9, 2.0).requests == ()
    frontier.add(b.children("n", hosts=["a"]))
    got = frontier.lease(2, 9, 2.0)
    assert (got.requests, got.shares) == ((3,), {"a": Share()})


def test_the_next_owner_waits_what_is_left_of_the_delay() -> None:
    """Counted from the end of a process that had a lease; never more than it."""
    frontier = with_hosts("a", "b", "c", each=9)
    for process in (1, 2, 3):
        frontier.leases.open_process(process, b.opened(process, delay_s=10.0))
    frontier.lease(1, 1, 0.0)
    frontier.leases.end_process(1, 100.0)
    got = frontier.lease(2, 1, 104.0)
    assert (got.requests, got.shares) == ((1,), {"a": Share(wait_s=6.0)})
    frontier.leases.release(2, (1,), 104.0)
    frontier.leases.end_process(2, 105.0)
    # Process 2 released all: what counts is still the end of process 1.
    assert frontier.lease(3, 1, 105.0).shares == {"a": Share(wait_s=5.0)}
    frontier.leases.end_process(3, 106.0)
    frontier.leases.open_process(4, b.opened(4, delay_s=10.0))
    # A clock that another part reads a little late makes no wait longer.
    assert frontier.lease(4, 1, 105.5).shares == {"a": Share(wait_s=10.0)}
    frontier.leases.end_process(4, 107.0)
    frontier.leases.open_process(5, b.opened(5, delay_s=10.0))
    assert frontier.lease(5, 1, 300.0).shares == {"a": Share(wait_s=0.0)}


def test_a_forgotten_hosts_delay_is_remembered() -> None:
    """Only as long as it lasts, and not for the process that had it."""
    frontier = with_hosts("a", "b", each=1)
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process, delay_s=10.0))
    frontier.lease(1, 9, 0.0)
    for request in (1, 2):
        frontier.done(request, 5.0)
    assert frontier.lease(2, 9, 5.0).requests == ()
    frontier.add(b.children("n", hosts=["a"]))
    assert frontier.lease(1, 9, 6.0).shares == {"a": Share()}
    frontier.done(3, 6.5)
    frontier.lease(1, 9, 6.5)
    frontier.add(b.children("m", "k", hosts=["a", "b"]))
    assert frontier.lease(2, 9, 7.0).shares == {
        "a": Share(wait_s=9.5),
        "b": Share(wait_s=8.0),
    }


def test_rests_are_forgotten_when_they_are_over() -> None:
    """Memory is bounded by a delay; a host remembered again counts anew."""
    cooldowns = Cooldowns()
    cooldowns.remember("a", 1, 0.0, 10.0)
    cooldowns.remember("b", 1, 0.0, 10.0)
    assert cooldowns.take("a") == (1, 0.0)
    cooldowns.remember("a", 2, 5.0, 15.0)
    cooldowns.expire(9.0)
    assert len(cooldowns) == 2
    cooldowns.expire(10.0)
    assert (len(cooldowns), cooldowns.take("b")) == (1, None)
    assert cooldowns.take("a") == (2, 5.0)
    cooldowns.expire(15.0)
    assert len(cooldowns) == 0


def test_what_comes_back_goes_out_first() -> None:
    """Before others of its priority, in the order of its queue, by any process."""
    for lifo in (False, True):
        frontier = with_hosts("a", each=9)
        frontier.leases.open_process(1, b.opened(lifo=lifo))
        took = frontier.lease(1, 3, 0.0).requests
        frontier.add(b.children("n", "top", hosts=["a", "a"], priorities=[0, 1]))
        frontier.leases.release(1, took[:2], 0.0)
        frontier.leases.end_process(1, 0.0)
        frontier.leases.open_process(2, b.opened(2, lifo=lifo))
        assert frontier.lease(2, 4, 0.0).requests == (11, *took)


def test_released_are_only_the_processs_own() -> None:
    """Numbers that are unknown, done or another's are ignored."""
    frontier = with_hosts("a", "b")
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process))
    frontier.lease(1, 2, 0.0)
    frontier.lease(2, 2, 0.0)
    frontier.leases.release(1, (2, 3, 77), 1.0)
    assert (frontier.leases.count_of(1), frontier.leases.count_of(2)) == (1, 2)
    assert frontier.lease(1, 9, 1.0).requests == (2,)


def test_a_closing_process_keeps_its_leases_alone() -> None:
    """It gets none any more; its hosts are free when it has none of them."""
    frontier = with_hosts("a", "b", each=3)
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process, delay_s=4.0))
    frontier.lease(1, 1, 0.0)
    frontier.lease(2, 1, 0.0)
    frontier.leases.close_process(1)
    assert frontier.lease(1, 9, 0.0).requests == ()
    assert frontier.leases.count_of(1) == 1
    assert frontier.lease(2, 9, 0.0).requests == (5, 6)
    frontier.done(1, 1.0)
    got = frontier.lease(2, 9, 2.0)
    assert (got.requests, got.shares) == ((2, 3), {"a": Share(wait_s=3.0)})
    # Closing again, or with hosts that have no lease, changes nothing else.
    frontier.leases.release(2, got.requests, 2.0)
    frontier.leases.close_process(2)
    frontier.leases.close_process(2)
    frontier.leases.open_process(3, b.opened(3))
    assert frontier.lease(3, 9, 9.0).requests == (2, 3)


def test_hold_takes_what_is_pending_and_gives_the_rest_back() -> None:
    """What is done or another's is ignored; a free host is then its own."""
    frontier = with_hosts("a", "b", "c", each=3)
    frontier.leases.hold(1, (1, 5, 99), 3.0)
    assert frontier.leases.count_of(1) == 2
    frontier.leases.hold(1, (2, 5), 4.0)
    assert frontier.leases.count_of(1) == 2
    frontier.leases.open_process(2, b.opened(2), 4.0)
    assert frontier.capacity.room(1) == 0
    assert frontier.lease(2, 9, 4.0).requests == (7, 8, 9)
    frontier.leases.open_process(1, b.opened(1), 4.0)
    frontier.done(2)
    frontier.leases.hold(1, (2, 7, 4), 5.0)
    got = frontier.lease(1, 9, 5.0)
    # Where it had no lease any more it has its right anew.
    assert (got.requests, got.shares) == ((1, 5, 3, 6), {"a": Share()})
    frontier.leases.hold(3, (), 6.0)


def test_a_lease_on_anothers_host_keeps_it_until_it_is_settled() -> None:
    """Nobody becomes owner of a host while requests of others are under way there."""
    frontier = with_hosts("a", each=4)
    for process in (1, 2, 3):
        frontier.leases.open_process(process, b.opened(process, concurrency=1))
    frontier.lease(1, 1, 0.0)
    frontier.leases.hold(2, (2,), 0.0)
    assert frontier.lease(2, 9, 0.0).requests == ()
    frontier.leases.end_process(1, 1.0)
    assert frontier.lease(3, 9, 1.0).requests == ()
    frontier.done(2, 2.0)
    assert frontier.lease(3, 9, 2.0).requests == (1, 3, 4)


def test_a_closing_process_that_holds_owns_nothing_new() -> None:
    """Its host is free once what it holds is settled."""
    frontier = with_hosts("a")
    frontier.leases.open_process(1, b.opened(1))
    frontier.leases.close_process(1)
    frontier.leases.hold(1, (1,), 0.0)
    frontier.leases.open_process(2, b.opened(2))
    assert frontier.lease(2, 9, 0.0).requests == ()
    frontier.done(1, 1.0)
    assert frontier.lease(2, 9, 1.0).requests == (2,)


def test_a_host_changes_hands_for_a_process_without_work() -> None:
    """The owner of two gives one up, keeps its leases, and cannot take it back."""
    frontier = with_hosts("a", "b", each=9)
    frontier.leases.open_process(1, b.opened(1, concurrency=2, delay_s=2.0))
    assert frontier.lease(1, 6, 0.0).requests == (1, 2, 3, 10, 11, 12)
    assert frontier.capacity.wants_process()
    frontier.leases.open_process(2, b.opened(2, concurrency=2, delay_s=2.0))
    assert frontier.lease(2, 9, 0.0).requests == ()
    assert not frontier.capacity.wants_process()
    for request in (10, 11, 12):
        assert frontier.lease(1, 9, 1.0).requests == ()
        frontier.done(request, 1.0)
    assert frontier.lease(1, 9, 2.0).requests == ()
    got = frontier.lease(2, 9, 2.0)
    assert (got.requests, got.shares) == ((13, 14, 15), {"b": Share(wait_s=1.0)})
    # Each has one now, there is nothing more to give.
    frontier.done(1, 3.0)
    assert frontier.lease(1, 9, 3.0).requests == (4,)


def test_an_owner_gives_back_what_it_has_not_begun() -> None:
    """It is told once, and again when it comes back: then nobody knows whether it was.
    So the next owner waits for what is under way, and for nothing else."""
    frontier = with_hosts("a", "b", each=9)
    frontier.leases.open_process(1, b.opened(1, concurrency=2, delay_s=2.0))
    frontier.lease(1, 6, 0.0)
    frontier.leases.open_process(2, b.opened(2, concurrency=2, delay_s=2.0))
    assert frontier.leases.recalls() == {}
    assert frontier.lease(2, 9, 0.0).requests == ()
    assert frontier.leases.recalls() == {1: {"b": 0}}
    frontier.leases.recalled(1, 1, ("b",))
    assert frontier.leases.recalls() == {}
    frontier.leases.hold(1, (1, 2, 3, 10, 11, 12), 0.0, started=(10,))
    assert frontier.leases.recalls() == {1: {"b": 0}}
    frontier.leases.release(1, (11, 12), 0.0)
    assert frontier.lease(2, 9, 1.0).requests == ()
    frontier.done(10, 1.0)
    assert frontier.leases.recalls() == {}
    assert frontier.lease(2, 9, 1.0).requests == (11, 12, 13)


def test_a_host_without_leases_changes_hands_at_once() -> None:
    """The process that asked gets requests in the same call."""
    frontier = with_hosts("a", "b", each=2)
    frontier.leases.open_process(1, b.opened(1))
    frontier.lease(1, 4, 0.0)
    frontier.leases.release(1, (1, 2, 3, 4), 0.0)
    frontier.leases.open_process(2, b.opened(2))
    assert frontier.lease(2, 1, 1.0).requests == (3,)
    assert frontier.lease(1, 1, 1.0).requests == (1,)
    assert frontier.lease(2, 9, 1.0).requests == (4,)
    # Without room it asks for nothing.
    frontier.leases.open_process(3, b.opened(3, window=1))
    assert frontier.lease(3, 0, 1.0).requests == ()


def test_a_host_without_leases_waits_for_the_process_it_is_reserved_for() -> None:
    """Its last owner gets nothing there any more."""
    frontier = with_hosts("a", "b", each=2)
    frontier.leases.open_process(1, b.opened(1))
    frontier.lease(1, 4, 0.0)
    frontier.leases.release(1, (1, 2, 3), 0.0)
    frontier.leases.open_process(2, b.opened(2))
    assert frontier.lease(2, 9, 1.0).requests == ()
    frontier.leases.release(1, (4,), 1.0)
    assert frontier.lease(1, 1, 1.0).requests == (1,)
    assert frontier.lease(2, 9, 1.0).requests == (3, 4)


def test_a_reserved_host_is_free_when_the_other_goes() -> None:
    """Also when it closes, or when somebody turns out to hold a lease there."""
    for way in ("close", "end", "hold", "done"):
        frontier = with_hosts("a", "b", each=2)
        frontier.leases.open_process(1, b.opened(1))
        frontier.lease(1, 4, 0.0)
        frontier.leases.release(1, (1, 3), 0.0)
        frontier.leases.open_process(2, b.opened(2))
        # Its owner still has a lease there, so nobody gets anything of it yet.
        assert frontier.lease(2, 9, 1.0).requests == ()
        frontier.leases.release(1, (4,), 1.0)
        # This brings the index up to date, where the host is reserved.
        assert frontier.capacity.workable_count() == 1
        expected: tuple[int, ...] = (1, 3, 4)
        match way:
            case "close":
                frontier.leases.close_process(2)
            case "end":
                frontier.leases.end_process(2, 1.0)
            case "hold":
                frontier.leases.hold(1, (2, 4), 1.0)
                expected = (1, 3)
            case "done":
                frontier.done(3, 1.0)
                frontier.done(4, 1.0)
                expected = (1,)
        assert frontier.lease(1, 9, 1.0).requests == expected, way


def test_a_process_whose_reserved_host_is_done_is_given_another() -> None:
    """It does not wait for what is not there any more."""
    frontier = with_hosts("a", "b", "c", each=2)
    frontier.leases.open_process(1, b.opened(1))
    frontier.lease(1, 6, 0.0)
    frontier.leases.release(1, (1, 3, 5), 0.0)
    frontier.leases.open_process(2, b.opened(2))
    assert frontier.lease(2, 9, 1.0).requests == ()
    for request in (5, 6):
        frontier.done(request, 1.0)
    assert frontier.lease(2, 9, 1.0).requests == ()
    frontier.leases.release(1, (4,), 1.0)
    assert frontier.lease(2, 9, 1.0).requests == (3, 4)


def test_one_more_process_is_wanted_where_it_finds_work() -> None:
    """A free host that nobody has room for, or a second busy one of one owner."""
    frontier = with_hosts("a", "b", each=4)
    frontier.leases.open_process(1, b.opened(1, window=2, concurrency=4))
    # It has room for the free hosts itself.
    assert not frontier.capacity.wants_process()
    assert frontier.lease(1, 2, 0.0).requests == (1, 2)
    assert frontier.capacity.wants_process()
    frontier.leases.open_process(2, b.opened(2, window=2, concurrency=4))
    assert not frontier.capacity.wants_process()
    assert frontier.lease(2, 2, 0.0).requests == (5, 6)
    assert not frontier.capacity.wants_process()
    frontier.leases.end_process(2, 0.0)
    frontier.done(1, 0.0)
    frontier.done(2, 0.0)
    frontier.leases.open_process(1, b.opened(1, window=9, concurrency=4))
    assert frontier.lease(1, 3, 0.0).requests == (5, 6, 3)
    assert frontier.capacity.wants_process()
    for request in (3, 4):
        frontier.done(request, 0.0)
    assert not frontier.capacity.wants_process()


def test_hosts_that_can_be_worked_on_are_counted() -> None:
    """Free ones and those that an owner may lease from, at their bound or not."""
    frontier = with_hosts("a", "b", "c", each=9)
    assert frontier.capacity.workable_count() == 0
    frontier.leases.open_process(1, b.opened(1, window=2, concurrency=1))
    assert frontier.capacity.workable_count() == 3
    frontier.lease(1, 2, 0.0)
    assert frontier.capacity.workable_count() == 3
    for request in range(3, 10):
        frontier.done(request, 0.0)
    assert frontier.capacity.workable_count() == 2


def test_a_change_does_not_look_at_all_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change places the hosts that it touched, and only these."""
    frontier = with_hosts(*map(str, range(1000)), each=1)
    frontier.leases.open_process(1, b.opened(1, window=10_000))
    frontier.lease(1, 1, 0.0)
    placed: list[str] = []
    place = PriorityIndex.place

    def noted(index: PriorityIndex, host: Host) -> None:
        placed.append(host.name)
        place(index, host)

    monkeypatch.setattr(PriorityIndex, "place", noted)
    frontier.add(b.children("n", hosts=["5"]))
    assert set(placed) == {"5"}
    frontier.done(1, 0.0)
    assert set(placed) == {"5", "0"}
    placed.clear()
    frontier.lease(1, 1, 0.0)
    assert len(placed) == 1
    assert len(frontier._rights.touched) == 0


def test_hosts_are_forgotten_with_their_last_request() -> None:
    """Also without any process, as in a replay: done requests cost nothing."""
    frontier = with_hosts("a", "b")
    for request in range(1, 5):
        frontier.done(request)
    assert not frontier._rights.hosts
    assert not frontier._rights.touched
    frontier.leases.open_process(1, b.opened(1))
    frontier.add(b.children("n"))
    frontier.lease(1, 1, 0.0)
    frontier.done(5, 1.0)
    frontier.lease(1, 1, 2.0)
    assert not frontier._rights.hosts
    assert not frontier._rights.processes[1].hosts
    assert not frontier._rights.politeness.cooldowns
