"""What a running job needs next: who leads, how far ``start()`` goes, when it ends."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decide.reconcile import (
    SKIP_DIGESTS,
    START_AHEAD,
    START_PENDING_MAX,
)
from dscrapy.control.decision import Decision, OnTick
from dscrapy.frontier.politeness import at_once
from dscrapy.model import (
    CloseLimits,
    HostLimits,
    Outcome,
    Stats,
)
from tests import builders as b
from tests.unit import machine_driver as d

# What a process with the window of ``opened`` can have under way.
AT_ONCE = at_once(16)


# ---- leading -------------------------------------------------------------------------


def test_the_first_open_process_leads_alone() -> None:
    """It is told what is wanted of it and how far it may go."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    decision = d.ask(machine, b.opened(start.process), d.WORKER)
    assert d.answers(decision, d.WORKER) == [
        m.Skip(job=b.ID, process=1, part=0, digests=b""),
        m.Lead(job=b.ID, process=1, start=True, opened=True),
        m.StartMay(job=b.ID, process=1, upto=START_AHEAD, upto_free=AT_ONCE),
    ]
    # Saying it again changes nothing.
    assert d.answers(d.ask(machine, b.opened(start.process), d.WORKER), d.WORKER) == []
    wide_machine, _, second = d.wide()
    assert wide_machine.state.crawls[b.ID].leader == 1
    again = d.ask(wide_machine, b.opened(second.process), d.WORKER)
    assert d.told(again, m.Lead) == []


def test_a_dead_leaders_successor_skips_what_is_committed() -> None:
    """Each digest as often as it is committed; ``opened`` is not asked for again."""
    machine, first = d.running()
    digests = [b"A" * 8, b"B" * 8, b"A" * 8]
    given = [b.unit(n, "start", digest=one) for n, one in enumerate(digests, 1)]
    d.commit(machine, first.process, *given, b.unit(4, "opened"))
    second = d.started(d.ask(machine, b.ended(first.process), d.WORKER))
    decision = d.ask(machine, b.opened(second.process), d.WORKER)
    skip, lead, may = d.answers(decision, d.WORKER)
    assert sorted(skip.digests[at : at + 8] for at in (0, 8, 16)) == sorted(digests)
    assert lead == m.Lead(job=b.ID, process=second.process, start=True, opened=False)
    assert may.upto == START_AHEAD
    # What it commits itself counts for its own successor, too.
    d.commit(machine, second.process, b.unit(1, "start", digest=b"C" * 8))
    third = d.started(d.ask(machine, b.ended(second.process), d.WORKER))
    (skip,) = d.told(d.ask(machine, b.opened(third.process), d.WORKER), m.Skip)
    assert len(skip.digests) == 4 * m.DIGEST_BYTES


def test_an_exhausted_start_is_not_run_again() -> None:
    """The successor is told so, and to finish when nothing is left."""
    machine, first = d.crawling(0)
    second = d.started(d.ask(machine, b.ended(first.process), d.WORKER))
    assert d.answers(d.ask(machine, b.opened(second.process), d.WORKER), d.WORKER) == [
        m.Lead(job=b.ID, process=second.process, start=False, opened=True),
        m.Finish(job=b.ID, process=second.process, number=1),
    ]


def test_many_digests_travel_in_parts() -> None:
    """Numbered from 0, together the whole multiset."""
    machine, first = d.running()
    machine.state.crawls[b.ID].skip.update(
        number.to_bytes(m.DIGEST_BYTES, "big") for number in range(SKIP_DIGESTS + 1)
    )
    second = d.started(d.ask(machine, b.ended(first.process), d.WORKER))
    decision = d.ask(machine, b.opened(second.process), d.WORKER)
    skips = d.told(decision, m.Skip)
    assert [one.part for one in skips] == [0, 1]
    assert [len(one.digests) // m.DIGEST_BYTES for one in skips] == [SKIP_DIGESTS, 1]
    assert d.answers(decision, d.WORKER).index(skips[1]) < d.answers(
        decision, d.WORKER
    ).index(d.told(decision, m.Lead)[0])


def free(decision: Decision) -> list[int]:
    """Return how far ``start()`` was let on at any time."""
    return [one.upto_free for one in d.told(decision, m.StartMay)]


def test_start_is_let_on_in_steps_and_by_what_it_committed() -> None:
    """While its engine holds back: absolute, so many units of this process in all."""
    machine, start = d.running(window=1)
    half = START_AHEAD // 2
    given = [b.unit(1, "start", children=b.children(1, 2, 3))]
    given += [b.unit(number, "start") for number in range(2, START_AHEAD + 1)]
    assert (
        d.told(d.commit(machine, start.process, *given[: half - 1]), m.StartMay) == []
    )
    decision = d.commit(machine, start.process, given[half - 1])
    may = m.StartMay(
        job=b.ID, process=start.process, upto=half + START_AHEAD, upto_free=1
    )
    assert d.told(decision, m.StartMay) == [may]
    decision = d.commit(machine, start.process, *given[half:])
    assert [one.upto for one in d.told(decision, m.StartMay)] == [2 * START_AHEAD]


def test_start_is_not_further_ahead_than_the_free_places() -> None:
    """Not answered and pending together: no more than what could be started; raised by
    half of what the leader can have under way, so that few messages do."""
    machine, start = d.running()
    process = start.process
    step = AT_ONCE // 2
    # What is committed has taken its places; a duplicate or an item takes none.
    first = [b.unit(n, "start", children=b.children(n)) for n in range(1, AT_ONCE)]
    same = b.unit(AT_ONCE, "start", children=b.children(1))
    assert free(d.commit(machine, process, *first, same)) == []
    # AT_ONCE - 1 are leased: at the end of some of them there are places enough.
    done = [d.commit(machine, process, b.page(n)) for n in range(1, step)]
    assert [free(one) for one in done[:-1]] == [[]] * (step - 2)
    assert free(done[-1]) == [AT_ONCE + step]
    # Ten more than places: nothing, until enough of them are done.
    count = AT_ONCE + 10
    more = b.unit(AT_ONCE + 1, "start", children=b.children(*range(100, 100 + count)))
    assert free(d.commit(machine, process, more)) == []


def test_one_element_stands_ready_where_all_places_are_taken() -> None:
    """With one request at a time it is there when that is done; not two."""
    machine, start = d.running(window=1)
    decision = d.commit(
        machine, start.process, b.unit(1, "start", children=b.children(1))
    )
    assert (d.leases(decision), free(decision)) == ({start.process: [1]}, [2])
    second = b.unit(2, "start", children=b.children(2))
    assert free(d.commit(machine, start.process, second)) == []
    assert free(d.commit(machine, start.process, b.page(1))) == [3]


def test_each_open_process_has_places_for_start() -> None:
    """Also one that does not lead; what is pending takes some of them."""
    spec = msgspec.structs.replace(d.SPEC, parallelism=2)
    machine, first = d.running(spec, slots=2, window=2)
    given = [
        b.unit(n, "start", children=b.children(n, host=f"h{n}")) for n in range(1, 5)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    # The two that are pending are for the new one.
    decision = d.ask(machine, b.opened(second.process, window=8), d.WORKER)
    assert free(decision) == [4 + at_once(8) - 2]


def test_start_goes_on_where_what_is_pending_waits_for_others() -> None:
    """Scrapy's one engine, which has those in its slots, would hold back."""
    limits = HostLimits(concurrency=8, delay_s=60.0)
    values: dict[str, Any] = {"window": 3, "default_host": limits}
    spec = msgspec.structs.replace(d.SPEC, parallelism=2)
    machine, first = d.running(spec, slots=2, **values)
    given = [
        b.unit(n, "start", children=b.children(n, host=f"h{n}")) for n in range(1, 6)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    decision = d.ask(machine, b.opened(second.process, **values), d.WORKER)
    assert d.leases(decision) == {second.process: [4, 5]}
    # Eight more for a host of the other process, of which that may have three.
    more = b.unit(6, "start", children=b.children(*range(10, 18), host="h4"))
    assert free(d.commit(machine, first.process, more)) == []
    done = d.commit(machine, first.process, b.page(1), b.page(2), b.page(3))
    assert free(done) == [6 + START_AHEAD]


def test_a_host_that_is_given_up_comes_with_what_has_not_begun() -> None:
    """Its owner is told at once; the process that waits has nothing until then."""
    spec = msgspec.structs.replace(d.SPEC, parallelism=2)
    machine, first = d.running(spec, slots=2, window=6)
    given = [
        b.unit(n, "start", children=b.children(n, host=f"h{n % 2}"))
        for n in range(1, 9)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    begun = b.progress(first.process, started=(1, 2))
    d.ask(machine, begun, d.WORKER)
    decision = d.ask(machine, b.opened(second.process, window=6), d.WORKER)
    assert d.leases(decision) == {}
    (recall,) = d.told(decision, m.Recall)
    ((host, share),) = recall.hosts.items()
    assert (recall.process, share) == (first.process, 0)
    parity = int(host[1:])
    back = tuple(n for n in range(3, 7) if n % 2 == parity)
    release = m.Release(job=b.ID, process=first.process, requests=back)
    decision = d.ask(machine, release, d.WORKER)
    assert d.told(decision, m.Recall) == []
    # Of that host the one under way is left.
    last = 1 if parity else 2
    over = b.progress(first.process, downloaded=(last,))
    decision = d.ask(machine, over, d.WORKER)
    assert d.leases(decision)[second.process] == [*back, last + 6]


def test_start_waits_while_too_much_is_pending() -> None:
    """Whatever ``start()`` gives, the frontier stays of that size; what is done lets it
    go on."""
    machine, start = d.running(window=1)
    count = START_PENDING_MAX + START_AHEAD
    given = [b.unit(1, "start", children=b.children(*range(count)))]
    given += [b.unit(number, "start") for number in range(2, START_AHEAD + 1)]
    assert d.told(d.commit(machine, start.process, *given), m.StartMay) == []
    decision = d.commit(machine, start.process, *map(b.page, range(1, START_AHEAD)))
    assert d.told(decision, m.StartMay) == []
    decision = d.commit(machine, start.process, b.page(START_AHEAD))
    assert [one.upto for one in d.told(decision, m.StartMay)] == []
    decision = d.commit(machine, start.process, b.page(START_AHEAD + 1))
    assert [one.upto for one in d.told(decision, m.StartMay)] == [2 * START_AHEAD]


# ---- the end -------------------------------------------------------------------------


def test_finish_comes_when_nothing_is_left_and_again_after_idle() -> None:
    """Not while something is pending or leased or ``start()`` goes on; each answer of
    the idle handlers revokes it, also an empty one."""
    machine, start = d.running()
    process = start.process
    decision = d.commit(machine, process, b.unit(1, "start", children=b.children(1)))
    assert d.told(decision, m.Finish) == []
    assert d.told(d.commit(machine, process, b.page(1)), m.Finish) == []
    decision = d.commit(machine, process, b.unit(2, "started"))
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=process, number=1)]
    idle = b.unit(3, "idle", finish=1, children=b.children(2))
    decision = d.commit(machine, process, idle)
    assert (d.told(decision, m.Finish), d.leases(decision)) == ([], {process: [2]})
    decision = d.commit(machine, process, b.page(2))
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=process, number=2)]
    decision = d.commit(machine, process, b.unit(4, "idle", finish=2))
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=process, number=3)]


def test_a_job_ends_with_its_leader_and_the_others_are_stopped() -> None:
    """The last process of the crawl gets the stats of them all."""
    machine, first, second = d.wide()
    stats: Stats = {"sum": {"n": msgspec.Raw(b"1")}}
    for _ in range(4):
        for number in (first.process, second.process):
            held = machine.state.crawls[b.ID].frontier
            every = [one for one in range(1, 5) if held.is_open(one)]
            d.commit(machine, number, *(b.page(one, stats=stats) for one in every[:1]))
    assert d.closing(machine, first.process, "finished") == [
        m.Stop(job=b.ID, process=second.process, reason="finished")
    ]
    decision = d.commit(machine, first.process, b.unit(6, "closed"))
    assert d.told(decision, m.Done) == [m.Done(job=b.ID, process=1, stats=None)]
    assert machine.state.jobs[b.ID].status == "running"
    decision = d.commit(machine, second.process, b.unit(1, "closed"))
    (done,) = d.told(decision, m.Done)
    assert bytes(done.stats["sum"]["n"]) == b"4"
    assert bytes(done.stats["last"]["finish_reason"]) == b'"finished"'
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("succeeded", "finished")
    for number in (1, 2):
        d.ask(machine, b.ended(number), d.WORKER)
    assert machine.state.crawls == {}
    shown = machine.state.jobs[b.ID].begin().stats
    assert msgspec.json.decode(shown)["sum"]["n"] == 4


def test_a_leader_that_closes_while_work_is_left_ends_nothing() -> None:
    """Something came up after it was told to finish: another process goes on."""
    machine, first = d.crawling(0)
    d.commit(machine, first.process, b.unit(3, "late", children=b.children(1)))
    assert d.closing(machine, first.process, "finished") == []
    d.commit(machine, first.process, b.unit(4, "closed"))
    decision = d.ask(machine, b.ended(first.process), d.WORKER)
    second = d.started(decision)
    decision = d.ask(machine, b.opened(second.process), d.WORKER)
    assert d.leases(decision) == {second.process: [1]}
    decision = d.commit(machine, second.process, b.page(1))
    assert d.told(decision, m.Finish) == [
        m.Finish(job=b.ID, process=second.process, number=1)
    ]
    d.finish(machine, second.process, 0)
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_one_that_does_not_lead_finishes_nothing() -> None:
    """It was told to finish by nobody: the job goes on without it."""
    machine, _, second = d.wide()
    assert d.closing(machine, second.process, "finished") == []
    assert machine.state.jobs[b.ID].is_crawling


@pytest.mark.parametrize("by", [0, 1])
def test_a_spider_that_closes_in_one_process_closes_in_all(by: int) -> None:
    """``CloseSpider`` anywhere; the job's finish reason is the spider's."""
    machine, *starts = d.wide()
    closer, other = starts[by].process, starts[1 - by].process
    assert d.closing(machine, closer, "enough") == [
        m.Stop(job=b.ID, process=other, reason="enough")
    ]
    # What was started is finished and counts; nothing new is given.
    decision = d.commit(machine, closer, b.page(1, items=b.ITEM))
    assert (d.results(decision), d.leases(decision)) == (["published"], {})
    end = Outcome(finish_reason="enough")
    for number, units in ((closer, 6), (other, 6)):
        d.commit(machine, number, b.unit(units, "closed", end=end))
        d.ask(machine, b.ended(number), d.WORKER)
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("succeeded", "enough")
    assert job.begin().items == 1


def test_a_close_is_the_jobs_though_it_was_not_announced() -> None:
    """``Closing`` may be lost: the last commit says it, too."""
    machine, start = d.running()
    end = Outcome(finish_reason="enough")
    d.commit(machine, start.process, b.unit(1, "closed", end=end))
    assert machine.state.jobs[b.ID].begin().closing == "enough"
    assert machine.state.jobs[b.ID].status == "succeeded"


def count(key: str, number: int) -> Stats:
    """Return a commit's stats."""
    return {"sum": {key: msgspec.Raw(b"%d" % number)}}


@pytest.mark.parametrize(
    ("limits", "key", "reason"),
    [
        (CloseLimits(items=3), "item_scraped_count", "closespider_itemcount"),
        (CloseLimits(pages=3), "response_received_count", "closespider_pagecount"),
        (CloseLimits(errors=3), "spider_exceptions/count", "closespider_errorcount"),
        (
            CloseLimits(pages_no_item=3),
            "response_received_count",
            "closespider_pagecount_no_item",
        ),
    ],
)
def test_limits_count_over_all_processes(
    limits: CloseLimits, key: str, reason: str
) -> None:
    """What all commits together bring, whoever made them."""
    machine, first, second = d.wide(limits=limits)
    one, *rest = (b.page(number, stats=count(key, 1)) for number in (1, 2, 3))
    assert d.told(d.commit(machine, first.process, one), m.Stop) == []
    decision = d.commit(machine, second.process, *rest)
    assert {stop.process for stop in d.told(decision, m.Stop)} == {1, 2}
    assert {stop.reason for stop in d.told(decision, m.Stop)} == {reason}
    assert d.leases(decision) == {}
    for number in (first.process, second.process):
        d.commit(
            machine, number, b.unit(7, "closed", end=Outcome(finish_reason=reason))
        )
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("succeeded", reason)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (CloseLimits(timeout_s=60.0), "closespider_timeout"),
        (CloseLimits(timeout_no_item_s=60.0), "closespider_timeout_no_item"),
    ],
)
def test_limits_of_time_close_a_job(limits: CloseLimits, reason: str) -> None:
    """At their time and not before; the reaper is told when that is."""
    machine, _ = d.running(limits=limits)
    for seconds in (15.0, 30.0, 45.0, 59.0):
        machine.heard(d.WORKER, d.later(seconds))
        decision = d.ask(machine, OnTick(), 0, d.later(seconds))
        assert d.told(decision, m.Stop) == []
    assert machine.next_deadline_s(d.later(59.0)) == pytest.approx(1.0)
    decision = d.ask(machine, OnTick(), 0, d.later(60.0))
    assert d.told(decision, m.Stop) == [m.Stop(job=b.ID, process=1, reason=reason)]
