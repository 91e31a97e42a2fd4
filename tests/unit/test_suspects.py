"""Suspects: alone with one process, whoever owns their hosts."""

from dscrapy.frontier.frontier import Frontier
from dscrapy.frontier.quarantine import Poisoned
from tests import builders as b


def frontier_of(*hosts: str) -> Frontier:
    """Return a frontier with two open processes and a request of each host."""
    frontier = Frontier()
    frontier.add(b.children(*(f"u{at}" for at in range(len(hosts))), hosts=hosts))
    for process in (1, 2):
        frontier.leases.open_process(process, b.opened(process, window=4))
    return frontier


def suspect(frontier: Frontier, *requests: int) -> None:
    """Blame them for two deaths."""
    for _ in range(2):
        frontier.count_death(requests, alone=False)


def test_one_that_is_leased_goes_on_and_comes_back_apart() -> None:
    """It was given out before anything was known against it."""
    frontier = frontier_of("a", "a")
    assert frontier.lease(1, 4, 0.0).requests == (1, 2)
    suspect(frontier, 1)
    assert not frontier.quarantine.wants_isolator
    frontier.leases.end_process(1, 1.0)
    assert frontier.quarantine.wants_isolator
    assert frontier.lease(2, 4, 1.0).requests == (2,)


def test_a_host_of_another_process_is_given_up_for_the_isolator() -> None:
    """It gets no further leases there; when its last has gone the suspect goes out.
    Meanwhile the isolator gets nothing else."""
    frontier = frontier_of("a", "a", "a", "b")
    assert frontier.lease(1, 2, 0.0).requests == (1, 2)
    suspect(frontier, 3)
    frontier.quarantine.isolate(2)
    assert frontier.capacity.room(2) == 4
    for _ in range(2):
        # Once asked for, the host is only waited for.
        assert frontier.lease(2, 4, 1.0).requests == ()
    assert frontier.lease(1, 2, 1.0).requests == (4,)
    for request in (1, 2):
        frontier.done(request, 2.0)
    assert frontier.lease(2, 4, 3.0).requests == (3,)
    assert (frontier.capacity.room(2), frontier.lease(2, 4, 3.0).requests) == (0, ())
    frontier.done(3, 4.0)
    assert frontier.quarantine.isolator is None
    assert frontier.capacity.room(2) == 4


def test_a_host_that_is_given_up_for_another_process_already_is_waited_for() -> None:
    """Who it is given up for comes first."""
    frontier = frontier_of("a", "b", "a", "b", "b", "a", "b")
    assert frontier.lease(1, 4, 0.0).requests == (1, 2, 3, 4)
    # The second process has nothing: it is given a host of the first one's two.
    assert frontier.lease(2, 1, 0.0).requests == ()
    frontier.leases.open_process(3, b.opened(3, window=4))
    suspect(frontier, 5)
    frontier.quarantine.isolate(3)
    assert frontier.lease(3, 4, 0.0).requests == ()
    for request in (2, 4):
        frontier.done(request, 1.0)
    assert frontier.lease(3, 4, 1.0).requests == ()
    assert frontier.lease(2, 1, 1.0).requests == (7,)
    assert frontier.lease(3, 4, 1.0).requests == ()
    frontier.done(7, 2.0)
    assert frontier.lease(3, 4, 2.0).requests == (5,)


def test_one_that_is_set_aside_while_leased_is_nobodys() -> None:
    """Its process may have other requests."""
    frontier = frontier_of("a", "a")
    assert frontier.lease(1, 4, 0.0).requests == (1, 2)
    frontier.set_aside(1, Poisoned(url="u", text="why"))
    assert (frontier.leases.count_of(1), frontier.pending_count) == (1, 0)
    assert frontier.is_open(1)
    # What still held it may be first after all.
    assert frontier.done(1)
    assert frontier.poisoned == {}


def test_a_host_that_an_isolator_waited_for_is_free_when_its_suspects_are_gone() -> (
    None
):
    """Also for the process that it was to be taken from."""
    frontier = frontier_of("a", "a", "a")
    assert frontier.lease(1, 2, 0.0).requests == (1, 2)
    suspect(frontier, 3)
    frontier.quarantine.isolate(2)
    assert frontier.lease(2, 4, 1.0).requests == ()
    assert frontier.done(3)
    assert frontier.quarantine.isolator is None
    frontier.add(b.children("n", hosts=["a"]))
    for request in (1, 2):
        frontier.done(request, 2.0)
    assert frontier.lease(1, 4, 2.0).requests == (4,)
