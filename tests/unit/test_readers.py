"""Requests that a process could not read: who gets them, and when nobody is left."""

import msgspec

from dscrapy import messages as m
from dscrapy.frontier.frontier import Frontier
from tests import builders as b
from tests.unit import machine_driver as d

CLASSES = 7


def frontier_of(*hosts: str, kinds: tuple[int, ...] = ()) -> Frontier:
    """Return a frontier with three open processes and a request of each host."""
    frontier = Frontier()
    given = b.children(*(f"u{at}" for at in range(len(hosts))), hosts=hosts)
    every = kinds or (CLASSES,) * len(hosts)
    frontier.add(msgspec.structs.replace(given, kinds=every))
    for process in (1, 2, 3):
        frontier.leases.open_process(process, b.opened(process, window=4))
    return frontier


def test_it_goes_to_one_that_wrote_its_like() -> None:
    """Not to whoever asks first, and with its host, which is given up for it."""
    frontier = frontier_of("a", "a")
    frontier.leases.wrote(3, {CLASSES})
    assert frontier.lease(1, 4, 0.0).requests == (1, 2)
    frontier.leases.refuse(1, (1,), "no module x", 1.0)
    assert frontier.pending_count == 1
    assert frontier.lease(1, 4, 1.0).requests == ()
    assert frontier.lease(2, 4, 1.0).requests == ()
    # The first process has one of the host's still under way.
    assert frontier.lease(3, 4, 1.0).requests == ()
    frontier.done(2, 2.0)
    assert frontier.lease(3, 4, 2.0).requests == (1,)
    assert frontier.leases.unreadable() == {}


def test_without_a_writer_any_other_may_try() -> None:
    """Each of them once; then nobody is left, and it is said why."""
    frontier = frontier_of("a")
    for process in (1, 2, 3):
        assert frontier.leases.unreadable() == {}
        assert frontier.lease(process, 4, 0.0).requests == (1,)
        frontier.leases.refuse(process, (1,), f"not by {process}", 0.0)
    assert frontier.leases.unreadable() == {1: "not by 3"}
    assert frontier.done(1)
    assert frontier.leases.unreadable() == {}


def test_what_one_could_not_read_it_is_not_given_again_of_that_kind() -> None:
    """Others of the kind are tried once by a process at most; other kinds go on."""
    frontier = frontier_of("a", "a", "a", kinds=(CLASSES, CLASSES, 8))
    assert frontier.lease(1, 4, 0.0).requests == (1, 2, 3)
    frontier.leases.refuse(1, (1,), "why", 0.0)
    frontier.leases.refuse(1, (2,), "why", 0.0)
    assert frontier.lease(1, 4, 0.0).requests == ()
    frontier.done(3, 1.0)
    assert set(frontier.lease(2, 4, 1.0).requests) == {1, 2}


def test_a_writer_that_closes_is_none_any_more() -> None:
    """What waits for it goes to others, and what nobody can read is named."""
    frontier = frontier_of("a")
    frontier.leases.wrote(2, {CLASSES})
    frontier.lease(1, 1, 0.0)
    frontier.leases.refuse(1, (1,), "why", 0.0)
    frontier.leases.close_process(2)
    frontier.leases.end_process(3, 0.0)
    assert frontier.leases.unreadable() == {1: "why"}
    frontier.leases.open_process(4, b.opened(4, window=4))
    assert frontier.leases.unreadable() == {}
    assert frontier.lease(4, 4, 1.0).requests == (1,)


def test_nobody_is_blamed_while_no_process_is_open() -> None:
    """The next one may be on another worker."""
    frontier = frontier_of("a")
    frontier.lease(1, 1, 0.0)
    frontier.leases.refuse(1, (1,), "why", 0.0)
    for process in (1, 2, 3):
        frontier.leases.end_process(process, 0.0)
    assert frontier.leases.unreadable() == {}
    assert frontier.pending_count == 1


def test_it_comes_back_apart_from_a_process_that_dies_with_it() -> None:
    """Who refused it still does not get it."""
    frontier = frontier_of("a")
    frontier.lease(1, 1, 0.0)
    frontier.leases.refuse(1, (1,), "why", 0.0)
    assert frontier.lease(2, 4, 0.0).requests == (1,)
    frontier.leases.end_process(2, 1.0)
    assert frontier.lease(1, 4, 1.0).requests == ()
    assert frontier.lease(3, 4, 1.0).requests == (1,)


def test_one_that_is_suspected_meanwhile_is_a_suspect() -> None:
    """It leaves the others that were refused."""
    frontier = frontier_of("a")
    frontier.lease(1, 1, 0.0)
    frontier.leases.refuse(1, (1,), "why", 0.0)
    for _ in range(2):
        frontier.count_death((1,), alone=False)
    assert frontier.quarantine.wants_isolator
    assert frontier.lease(2, 4, 0.0).requests == ()
    frontier.quarantine.isolate(2)
    assert frontier.lease(2, 4, 0.0).requests == (1,)


def test_kinds_survive_a_snapshot_and_refusals_do_not() -> None:
    """The next master tries anew, with what each process says and writes then."""
    frontier = frontier_of("a")
    frontier.lease(1, 1, 0.0)
    frontier.leases.refuse(1, (1,), "why", 0.0)
    other = Frontier.decode(frontier.encode())
    assert other.encode() == frontier.encode()
    for process in (1, 2):
        other.leases.open_process(process, b.opened(process, window=4))
    other.leases.wrote(2, {CLASSES})
    assert other.lease(1, 1, 0.0).requests == (1,)
    other.leases.refuse(1, (1,), "why", 0.0)
    assert other.lease(1, 1, 0.0).requests == ()
    assert other.lease(2, 1, 0.0).requests == (1,)


# ---- the machine ---------------------------------------------------------------------


def test_a_request_that_no_process_can_read_fails_and_the_job_goes_on() -> None:
    """It is done, an error of the job's, and never given out again."""
    machine, start = d.crawling(2)
    release = m.Release(
        job=b.ID, process=start.process, requests=(1,), unreadable="no module x"
    )
    decision = d.ask(machine, release, d.WORKER)
    assert d.leases(decision) == {}
    crawl = machine.state.crawls[b.ID]
    assert not crawl.frontier.is_open(1)
    assert machine.state.jobs[b.ID].begin().errors == 1
    assert crawl.totals.count("dscrapy/unreadable_requests") == 1
    assert d.told(d.commit(machine, start.process, b.page(2)), m.Finish)


def test_the_writer_gets_what_another_cannot_read() -> None:
    """Requests that one process wrote come back to it from the one that leased them."""
    machine, first, second = d.wide(2, concurrency=1)
    # A host of each: the first holds h1 and h2, the second h3 and h4.
    given = msgspec.structs.replace(b.children(9, host="h3"), kinds=(CLASSES,))
    d.commit(machine, first.process, b.page(1, children=given))
    decision = d.commit(machine, second.process, b.page(3))
    (request,) = d.leases(decision)[second.process]
    release = m.Release(
        job=b.ID, process=second.process, requests=(request,), unreadable="why"
    )
    decision = d.ask(machine, release, d.WORKER)
    assert d.leases(decision) == {first.process: [request]}


def test_a_suspect_that_cannot_be_read_fails() -> None:
    """No other process is tried for what is wrong twice."""
    machine, start = d.crawling(1)
    crawl = machine.state.crawls[b.ID]
    for _ in range(2):
        crawl.frontier.count_death((1,), alone=False)
    release = m.Release(
        job=b.ID, process=start.process, requests=(1,), unreadable="why"
    )
    d.ask(machine, release, d.WORKER)
    assert not crawl.frontier.is_open(1)
