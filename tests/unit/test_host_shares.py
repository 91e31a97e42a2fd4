"""Hosts that several processes share: who has how much, and when."""

from dscrapy.frontier.frontier import Frontier
from dscrapy.messages import Share
from tests import builders as b


def frontier_of(count: int) -> Frontier:
    """Return a frontier with so many requests of one host."""
    frontier = Frontier()
    frontier.add(b.children(*range(count), host="a"))
    return frontier


def test_a_host_is_shared_by_processes_that_have_no_other() -> None:
    """Each has a whole share; nobody gets one before somebody else has less. What is
    left of one that ends goes to who still has one, with its next lease."""
    frontier = frontier_of(60)
    for process in (1, 2, 3):
        frontier.leases.open_process(process, b.opened(process, concurrency=8))
    leases = frontier.leases
    assert frontier.lease(1, 8, 0.0).shares == {"a": Share()}
    assert frontier.lease(2, 8, 0.0).requests == ()
    assert leases.recalls() == {1: {"a": 4}}
    leases.recalled(1, 1, ("a",))
    # Nobody has less than was asked for.
    leases.yielded(1, 1, {"a": 3})
    assert frontier.lease(2, 8, 0.0).requests == ()
    leases.yielded(1, 1, {"a": 4})
    assert frontier.lease(2, 2, 0.0).shares == {"a": Share(count=4, recall=1)}
    assert frontier.lease(3, 8, 0.0).requests == ()
    assert leases.recalls() == {1: {"a": 3}, 2: {"a": 3}}
    leases.recalled(1, 2, ("a",))
    leases.recalled(2, 3, ("a",))
    # An answer to the first recall says nothing.
    leases.yielded(1, 1, {"a": 3})
    assert frontier.lease(3, 8, 0.0).requests == ()
    leases.yielded(2, 3, {"a": 3})
    # That is for the process that waits.
    assert frontier.lease(2, 1, 0.0).shares == {}
    assert frontier.lease(3, 2, 0.0).shares == {"a": Share(count=1, recall=3)}
    leases.yielded(1, 2, {"a": 3})
    # What is free by now comes with the next lease.
    assert frontier.lease(3, 1, 0.0).shares == {"a": Share(count=2, recall=3)}
    leases.end_process(1, 1.0)
    assert frontier.lease(2, 1, 1.0).shares == {"a": Share(count=4, recall=3)}
    assert frontier.lease(3, 1, 1.0).shares == {"a": Share(count=4, recall=3)}


def test_there_are_at_most_as_many_shares_as_requests_at_a_time() -> None:
    """Who comes then waits until another one has ended."""
    frontier = frontier_of(60)
    for process in (1, 2, 3):
        frontier.leases.open_process(process, b.opened(process, concurrency=2))
    frontier.lease(1, 3, 0.0)
    frontier.lease(2, 3, 0.0)
    frontier.leases.recalled(1, 1, ("a",))
    frontier.leases.yielded(1, 1, {"a": 1})
    assert frontier.lease(2, 3, 0.0).requests
    assert frontier.lease(3, 3, 0.0).requests == ()
    assert frontier.leases.recalls() == {}
    frontier.leases.end_process(1, 1.0)
    assert frontier.lease(3, 3, 1.0).shares == {"a": Share(count=1, recall=1)}


def test_a_host_that_cannot_be_shared_stays_with_its_process() -> None:
    """The process says so; nobody asks it again while the host has requests."""
    frontier = frontier_of(30)
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process, concurrency=4))
    frontier.lease(1, 4, 0.0)
    frontier.lease(2, 4, 0.0)
    frontier.leases.recalled(1, 1, ("a",))
    frontier.leases.yielded(1, 1, {"a": 0})
    assert frontier.lease(2, 4, 0.0).requests == ()
    assert frontier.leases.recalls() == {}
    granted = frontier.lease(1, 4, 0.0)
    assert (len(granted.requests), granted.shares) == (4, {})


def test_a_process_without_leases_of_a_host_has_nothing_to_lower() -> None:
    """Its share is free at once, and it is asked for nothing."""
    frontier = frontier_of(30)
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process, concurrency=4))
    frontier.lease(1, 1, 0.0)
    frontier.leases.proceed(1, (1,), (1,), 0.0)
    assert frontier.lease(2, 1, 0.0).shares == {"a": Share()}
    assert frontier.leases.recalls() == {}
