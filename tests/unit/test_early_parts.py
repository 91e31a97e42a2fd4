"""Pages past their download: what they ask for counts at once, and once; leases are
refilled by what has not started."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decision import Decision, OnTick
from dscrapy.control.machine import Machine
from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import DERIVED, DONT_FILTER
from dscrapy.model import CloseLimits
from tests import builders as b
from tests.unit import machine_driver as d


def free(*requests: int) -> m.Children:
    """Return requests that are compared with no others."""
    return b.children(*requests, flags=DONT_FILTER)


def early(number: int, *requests: int) -> m.Commit:
    """Return an early part of the page of request 1."""
    return b.part(1, number, children=free(*requests))


def again(*requests: int, **fields: Any) -> m.Commit:
    """Return the commit of the page of request 1 by a later run."""
    given = free(*requests)
    return b.page(1, children=given, digests=b.digests(given), **fields)


def die(machine: Machine, process: int, **fields: Any) -> tuple[int, Decision]:
    """Let a process be killed; return the next one, and what it gets when it opens."""
    start = d.started(d.ask(machine, b.ended(process), d.WORKER))
    return start.process, d.ask(machine, b.opened(start.process, **fields), d.WORKER)


def bodies(machine: Machine) -> int:
    """Return how many requests were numbered beside the first."""
    return machine.state.crawls[b.ID].frontier.next_request - 2


def stat(machine: Machine, name: str) -> int:
    """Return one of the job's counts."""
    return machine.state.crawls[b.ID].totals.count(name)


# ---- runs of one page ----------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_there_is_not_added_by_the_next_run(restarts: bool) -> None:
    """Two equal ones are two, and a third is added; what is filtered counts once."""
    machine, first = d.crawling(1)
    given = b.children(7, 8, 8, 1, flags=[DONT_FILTER, DONT_FILTER, DONT_FILTER, 0])
    part = b.part(1, 0, children=given)
    assert d.results(d.commit(machine, first.process, part)) == ["taken"]
    assert (bodies(machine), stat(machine, "dupefilter/filtered")) == (3, 1)
    second, decision = die(machine, first.process)
    ((_, _, granted),) = decision.grants
    assert granted.again == (1,)
    if restarts:
        machine = d.restarted(machine)
        d.ask(machine, b.registration(held=(b.held(second, 1),)), d.WORKER)
    whole = b.children(7, 8, 8, 8, 1, 9, flags=[*[DONT_FILTER] * 4, 0, DONT_FILTER])
    commit = b.page(1, children=whole, digests=b.digests(whole))
    assert d.results(d.commit(machine, second, commit)) == ["published"]
    assert (bodies(machine), stat(machine, "dupefilter/filtered")) == (5, 1)
    assert stat(machine, "scheduler/enqueued") == 1 + 5


def test_a_run_that_is_cut_short_too_adds_what_is_new() -> None:
    """However many runs there are, as many are there as one of them asked for."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, early(0, 7), early(1, 8))
    process, _ = die(machine, first.process)
    d.commit(machine, process, early(0, 8, 9), early(1, 9))
    assert bodies(machine) == 4
    process, _ = die(machine, process)
    # A part that is passed over whole counts for the parts after it.
    d.commit(machine, process, early(0, 9), early(1, 9), early(2, 9))
    assert bodies(machine) == 5
    assert d.results(d.commit(machine, process, b.page(1, part=3))) == ["published"]


def test_the_same_run_goes_on_after_a_restart_of_the_master() -> None:
    """It is known what it gave: the like of that is one more."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, early(0, 7))
    machine = d.restarted(machine)
    entry = b.held(first.process, 1, 2)
    d.ask(machine, b.registration(held=(entry,)), d.WORKER)
    d.commit(machine, first.process, early(1, 7), b.page(1, part=2, children=free(7)))
    assert bodies(machine) == 3


def test_an_old_holder_that_gave_nothing_commits_too_late() -> None:
    """It does not say which of its requests the new one has given, so its commit counts
    only without any."""
    machine, first = d.crawling(1)
    d.carry_out(machine, machine.decide(0, OnTick(), d.later(100.0)))
    start = d.started(d.ask(machine, b.registration(), 7))
    d.ask(machine, b.opened(start.process), 7)
    d.commit(machine, start.process, early(0, 7), session=7)
    late = b.page(1, children=free(7))
    assert d.results(d.commit(machine, first.process, late, session=7)) == ["settled"]
    assert bodies(machine) == 1
    decision = d.commit(machine, first.process, b.page(1), session=7)
    assert d.results(decision) == ["published"]


def test_who_runs_a_page_again_says_which_requests_it_gives() -> None:
    """A live process that does not breaks the protocol."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, early(0, 7))
    second, _ = die(machine, first.process)
    with pytest.raises(RemoteProtocolError, match="run again has digests"):
        d.commit(machine, second, b.page(1, children=free(7)))
    with pytest.raises(RemoteProtocolError, match="has a digest of each"):
        d.commit(machine, second, b.page(1, last=False, children=free(7)))


def test_who_takes_a_pages_place_gives_nothing_twice() -> None:
    """The page was run, and asked for requests; run again, it ends in a retry. What the
    retry gives is compared with that; what this run gave itself is none of it."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, early(0, 7, 8))
    second, _ = die(machine, first.process)
    retry = b.children(7, 1, flags=[DONT_FILTER, DONT_FILTER | DERIVED])
    commit = b.page(1, children=retry, digests=b.digests(retry))
    decision = d.commit(machine, second, commit)
    ((_, _, granted),) = decision.grants
    successor = machine.state.crawls[b.ID].frontier.next_request - 1
    assert granted.again == (successor,)
    # 7 was given by the run that ended, so it is one more now, as in Scrapy.
    given = free(7, 8)
    commit = b.page(successor, children=given, digests=b.digests(given))
    before = bodies(machine)
    d.commit(machine, second, commit)
    assert bodies(machine) - before == 1


def test_a_pages_requests_outlive_its_being_set_aside() -> None:
    """They are crawled, and the page does not give them again when it is retried."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, early(0, 7))
    frontier = machine.state.crawls[b.ID].frontier
    process = first.process
    for _ in range(4):
        under_way = (m.UnderWay(request=1, url="u"),)
        ended = b.ended(process, counted=True, under_way=under_way, alone=True)
        process = d.started(d.ask(machine, ended, d.WORKER)).process
        decision = d.ask(machine, b.opened(process), d.WORKER)
    assert list(frontier.poisoned) == [1]
    assert d.leases(decision) == {process: [2]}
    frontier.pardon()
    decision = d.commit(machine, process, b.page(2))
    ((_, _, granted),) = decision.grants
    assert (granted.requests, granted.again) == ((1,), (1,))
    d.commit(machine, process, again(7))
    assert bodies(machine) == 1


def test_a_job_is_not_over_while_a_page_is_open() -> None:
    """Nothing is pending, and the page may ask for more."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, b.unit(3, "started"))
    decision = d.ask(
        machine, b.progress(first.process, started=(1,), downloaded=(1,)), d.WORKER
    )
    assert d.told(decision, m.Finish) == []
    decision = d.commit(machine, first.process, b.page(1))
    assert len(d.told(decision, m.Finish)) == 1


# ---- leases --------------------------------------------------------------------------


def test_what_has_started_makes_room_at_its_host_what_is_downloaded_everywhere() -> (
    None
):
    """Of a host a process has a few leases that it has not begun; of all a window that
    downloads fill; pages past their download fill nothing."""
    machine, start = d.crawling(1, window=6)
    given = b.children(*range(10, 40))
    opened = b.opened(start.process, window=6, concurrency=1, delay_s=1.0)
    d.ask(machine, opened, d.WORKER)
    decision = d.commit(machine, start.process, b.page(1, children=given))
    assert d.leases(decision) == {start.process: [2, 3, 4]}

    def come(**columns: Any) -> list[int]:
        said = b.progress(start.process, **columns)
        decision = d.ask(machine, said, d.WORKER)
        return d.leases(decision).get(start.process, [])

    assert come(started=(2, 3)) == [5, 6]
    # Five of six places are taken: too many to ask for one more.
    assert come(started=(4,)) == []
    assert come(downloaded=(2,)) == [7]
    assert come(downloaded=(2,)) == []


def test_with_one_at_a_time_the_next_lease_comes_with_the_end_of_the_download() -> None:
    """Neither before it, nor only with the commit."""
    machine, start = d.crawling(1, window=1)
    d.commit(machine, start.process, b.unit(3, children=b.children(2, 3)))
    decision = d.ask(machine, b.progress(start.process, started=(1,)), d.WORKER)
    assert d.leases(decision) == {}
    decision = d.ask(machine, b.progress(start.process, downloaded=(1,)), d.WORKER)
    assert d.leases(decision) == {start.process: [2]}


def test_a_stage_ends_with_its_process() -> None:
    """All leases of a dead process, whatever their stage, are leased anew."""
    machine, start = d.crawling(3, window=3)
    said = b.progress(start.process, started=(1, 2), downloaded=(1,))
    d.ask(machine, said, d.WORKER)
    process, decision = die(machine, start.process, window=3)
    assert d.leases(decision) == {process: [1, 2, 3]}
    decision = d.commit(machine, process, b.page(1, children=b.children(50, 51)))
    assert d.leases(decision) == {process: [4]}


def test_a_process_that_comes_back_says_how_far_it_has_come() -> None:
    """What is past its download takes no place after a restart of the master either."""
    machine, start = d.crawling(3, window=3)
    d.commit(machine, start.process, b.unit(3, children=b.children(50, 51)))
    machine = d.restarted(machine)
    entry = b.held(
        start.process,
        1,
        2,
        3,
        opened=b.opened(start.process, window=3),
        downloaded=(1, 2),
    )
    decision = d.ask(machine, b.registration(held=(entry,)), d.WORKER)
    assert d.leases(decision) == {start.process: [4, 5]}


def test_pages_that_got_a_response_count_for_the_limit_of_pages() -> None:
    """Before they are committed, once, and no more when their process is gone."""
    machine, start = d.crawling(3, window=3)
    opened = b.opened(start.process, window=3, limits=CloseLimits(pages=2))
    d.ask(machine, opened, d.WORKER)
    d.ask(machine, b.progress(start.process, received=(1,)), d.WORKER)
    process, _ = die(machine, start.process, window=3)
    d.ask(machine, msgspec.structs.replace(opened, process=process), d.WORKER)
    stats = {"sum": {"response_received_count": msgspec.Raw(b"1")}}
    said = b.progress(process, received=(1,))
    assert d.told(d.ask(machine, said, d.WORKER), m.Stop) == []
    decision = d.commit(machine, process, b.page(1, stats=stats))
    assert d.told(decision, m.Stop) == []
    decision = d.ask(machine, b.progress(process, received=(2,)), d.WORKER)
    (stop,) = d.told(decision, m.Stop)
    assert stop.reason == "closespider_pagecount"


def test_pages_are_asked_for_their_requests_when_work_is_short() -> None:
    """From when nothing is pending until all processes have enough; a process that is
    alone knows by itself."""
    machine, first, second = d.wide()
    decision = d.commit(machine, first.process, b.unit(6))
    assert d.told(decision, m.WorkShort) == []
    decision = d.commit(machine, second.process, b.page(3))
    told = d.told(decision, m.WorkShort)
    assert [(one.process, one.on) for one in told] == [(1, True), (2, True)]
    assert d.told(d.commit(machine, first.process, b.unit(7)), m.WorkShort) == []
    many = b.children(*range(60, 80), hosts=[f"h{n}" for n in range(20)])
    decision = d.commit(machine, first.process, b.part(1, 0, children=many))
    told = d.told(decision, m.WorkShort)
    assert [(one.process, one.on) for one in told] == [(1, False), (2, False)]


@pytest.mark.parametrize("window", [1, 4])
def test_in_order_the_next_lease_is_chosen_at_the_command_that_asks(
    window: int,
) -> None:
    """From what is pending then, before the next command of the same group; where
    several requests go out at a time that waits for the end of the group."""
    machine, start = d.crawling(1, window=window)
    asks = b.progress(start.process, downloaded=(1,))
    late = b.commits(start.process, b.unit(3, children=b.children(7)))
    for command in (b.commits(start.process, b.unit(4)), asks, late):
        done = machine.handle(d.WORKER, command, d.NOW)
        assert len(done) == 1 or (command is asks and window == 1)
    given = [d.leases(decision) for decision in machine.settle(d.NOW)]
    assert {start.process: [2]} in given
    # Who asks is gone: nothing is chosen, and nothing breaks.
    d.ask(machine, b.ended(start.process), d.WORKER)
    assert len(machine.handle(d.WORKER, asks, d.NOW)) == 1
