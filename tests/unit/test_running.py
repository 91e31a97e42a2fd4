"""What a running job needs next: who leads, how far ``start()`` goes, when it ends."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decide.reconcile import (
    PROCESS_IDLE_S,
    SKIP_DIGESTS,
    START_AHEAD,
    START_PENDING_MAX,
)
from dscrapy.control.decision import Decision, OnClosed, OnTick
from dscrapy.control.machine import Machine
from dscrapy.frontier.politeness import at_once
from dscrapy.messages import DIGEST_BYTES
from dscrapy.model import (
    JOB_PAUSES,
    PROCESS_IDLES,
    SLOT_NEEDED,
    WORKER_DRAINS,
    CloseLimits,
    HostLimits,
    Outcome,
    Stats,
)
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    ITEM,
    NOW,
    SPEC,
    WORKER,
    answers,
    ask,
    change,
    children,
    commit,
    commits,
    crawling,
    ended,
    finish,
    later,
    leases,
    new_machine,
    opened,
    page,
    register,
    registration,
    results,
    running,
    started,
    submit,
    told,
    unit,
    wide,
)

# What a process with the window of ``opened`` can have under way.
AT_ONCE = at_once(16)


def closing(machine: Machine, process: int, reason: str) -> list[m.Stop]:
    """Let a process close its spider; return who is stopped for that."""
    said = m.Closing(job=ID, process=process, reason=reason)
    return told(ask(machine, said, WORKER), m.Stop)


# ---- leading -------------------------------------------------------------------------


def test_the_first_open_process_leads_alone() -> None:
    """It is told what is wanted of it and how far it may go."""
    machine = new_machine()
    ask(machine, submit())
    start = started(register(machine))
    decision = ask(machine, opened(start.process), WORKER)
    assert answers(decision, WORKER) == [
        m.Skip(job=ID, process=1, part=0, digests=b""),
        m.Lead(job=ID, process=1, start=True, opened=True),
        m.StartMay(job=ID, process=1, upto=START_AHEAD, upto_free=AT_ONCE),
    ]
    # Saying it again changes nothing.
    assert answers(ask(machine, opened(start.process), WORKER), WORKER) == []
    wide_machine, _, second = wide()
    assert wide_machine.state.crawls[ID].leader == 1
    again = ask(wide_machine, opened(second.process), WORKER)
    assert told(again, m.Lead) == []


def test_a_dead_leaders_successor_skips_what_is_committed() -> None:
    """Each digest as often as it is committed; ``opened`` is not asked for again."""
    machine, first = running()
    digests = [b"A" * 8, b"B" * 8, b"A" * 8]
    given = [unit(n, "start", digest=one) for n, one in enumerate(digests, 1)]
    commit(machine, first.process, *given, unit(4, "opened"))
    second = started(ask(machine, ended(first.process), WORKER))
    decision = ask(machine, opened(second.process), WORKER)
    skip, lead, may = answers(decision, WORKER)
    assert sorted(skip.digests[at : at + 8] for at in (0, 8, 16)) == sorted(digests)
    assert lead == m.Lead(job=ID, process=second.process, start=True, opened=False)
    assert may.upto == START_AHEAD
    # What it commits itself counts for its own successor, too.
    commit(machine, second.process, unit(1, "start", digest=b"C" * 8))
    third = started(ask(machine, ended(second.process), WORKER))
    (skip,) = told(ask(machine, opened(third.process), WORKER), m.Skip)
    assert len(skip.digests) == 4 * DIGEST_BYTES


def test_an_exhausted_start_is_not_run_again() -> None:
    """The successor is told so, and to finish when nothing is left."""
    machine, first = crawling(0)
    second = started(ask(machine, ended(first.process), WORKER))
    assert answers(ask(machine, opened(second.process), WORKER), WORKER) == [
        m.Lead(job=ID, process=second.process, start=False, opened=True),
        m.Finish(job=ID, process=second.process, number=1),
    ]


def test_many_digests_travel_in_parts() -> None:
    """Numbered from 0, together the whole multiset."""
    machine, first = running()
    machine.state.crawls[ID].skip.update(
        number.to_bytes(DIGEST_BYTES, "big") for number in range(SKIP_DIGESTS + 1)
    )
    second = started(ask(machine, ended(first.process), WORKER))
    decision = ask(machine, opened(second.process), WORKER)
    skips = told(decision, m.Skip)
    assert [one.part for one in skips] == [0, 1]
    assert [len(one.digests) // DIGEST_BYTES for one in skips] == [SKIP_DIGESTS, 1]
    assert answers(decision, WORKER).index(skips[1]) < answers(decision, WORKER).index(
        told(decision, m.Lead)[0]
    )


def free(decision: Decision) -> list[int]:
    """Return how far ``start()`` was let on at any time."""
    return [one.upto_free for one in told(decision, m.StartMay)]


def test_start_is_let_on_in_steps_and_by_what_it_committed() -> None:
    """While its engine holds back: absolute, so many units of this process in all."""
    machine, start = running(window=1)
    half = START_AHEAD // 2
    given = [unit(1, "start", children=children(1, 2, 3))]
    given += [unit(number, "start") for number in range(2, START_AHEAD + 1)]
    assert told(commit(machine, start.process, *given[: half - 1]), m.StartMay) == []
    decision = commit(machine, start.process, given[half - 1])
    may = m.StartMay(
        job=ID, process=start.process, upto=half + START_AHEAD, upto_free=1
    )
    assert told(decision, m.StartMay) == [may]
    decision = commit(machine, start.process, *given[half:])
    assert [one.upto for one in told(decision, m.StartMay)] == [2 * START_AHEAD]


def test_start_is_not_further_ahead_than_the_free_places() -> None:
    """Not answered and pending together: no more than what could be started; raised by
    half of what the leader can have under way, so that few messages do."""
    machine, start = running()
    process = start.process
    step = AT_ONCE // 2
    # What is committed has taken its places; a duplicate or an item takes none.
    first = [unit(n, "start", children=children(n)) for n in range(1, AT_ONCE)]
    same = unit(AT_ONCE, "start", children=children(1))
    assert free(commit(machine, process, *first, same)) == []
    # AT_ONCE - 1 are leased: at the end of some of them there are places enough.
    done = [commit(machine, process, page(n)) for n in range(1, step)]
    assert [free(one) for one in done[:-1]] == [[]] * (step - 2)
    assert free(done[-1]) == [AT_ONCE + step]
    # Ten more than places: nothing, until enough of them are done.
    count = AT_ONCE + 10
    more = unit(AT_ONCE + 1, "start", children=children(*range(100, 100 + count)))
    assert free(commit(machine, process, more)) == []


def test_one_element_stands_ready_where_all_places_are_taken() -> None:
    """With one request at a time it is there when that is done; not two."""
    machine, start = running(window=1)
    decision = commit(machine, start.process, unit(1, "start", children=children(1)))
    assert (leases(decision), free(decision)) == ({start.process: [1]}, [2])
    second = unit(2, "start", children=children(2))
    assert free(commit(machine, start.process, second)) == []
    assert free(commit(machine, start.process, page(1))) == [3]


def test_each_open_process_has_places_for_start() -> None:
    """Also one that does not lead; what is pending takes some of them."""
    spec = msgspec.structs.replace(SPEC, parallelism=2)
    machine, first = running(spec, slots=2, window=2)
    given = [unit(n, "start", children=children(n, host=f"h{n}")) for n in range(1, 5)]
    second = started(commit(machine, first.process, *given))
    # The two that are pending are for the new one.
    decision = ask(machine, opened(second.process, window=8), WORKER)
    assert free(decision) == [4 + at_once(8) - 2]


def test_start_goes_on_where_what_is_pending_waits_for_others() -> None:
    """Scrapy's one engine, which has those in its slots, would hold back."""
    limits = HostLimits(concurrency=8, delay_s=60.0)
    values: dict[str, Any] = {"window": 3, "default_host": limits}
    spec = msgspec.structs.replace(SPEC, parallelism=2)
    machine, first = running(spec, slots=2, **values)
    given = [unit(n, "start", children=children(n, host=f"h{n}")) for n in range(1, 6)]
    second = started(commit(machine, first.process, *given))
    decision = ask(machine, opened(second.process, **values), WORKER)
    assert leases(decision) == {second.process: [4, 5]}
    # Eight more for a host of the other process, of which that may have three.
    more = unit(6, "start", children=children(*range(10, 18), host="h4"))
    assert free(commit(machine, first.process, more)) == []
    done = commit(machine, first.process, page(1), page(2), page(3))
    assert free(done) == [6 + START_AHEAD]


def test_start_waits_while_too_much_is_pending() -> None:
    """Whatever ``start()`` gives, the frontier stays of that size; what is done lets it
    go on."""
    machine, start = running(window=1)
    count = START_PENDING_MAX + START_AHEAD
    given = [unit(1, "start", children=children(*range(count)))]
    given += [unit(number, "start") for number in range(2, START_AHEAD + 1)]
    assert told(commit(machine, start.process, *given), m.StartMay) == []
    decision = commit(machine, start.process, *map(page, range(1, START_AHEAD)))
    assert told(decision, m.StartMay) == []
    decision = commit(machine, start.process, page(START_AHEAD))
    assert [one.upto for one in told(decision, m.StartMay)] == []
    decision = commit(machine, start.process, page(START_AHEAD + 1))
    assert [one.upto for one in told(decision, m.StartMay)] == [2 * START_AHEAD]


# ---- the end -------------------------------------------------------------------------


def test_finish_comes_when_nothing_is_left_and_again_after_idle() -> None:
    """Not while something is pending or leased or ``start()`` goes on; each answer of
    the idle handlers revokes it, also an empty one."""
    machine, start = running()
    process = start.process
    decision = commit(machine, process, unit(1, "start", children=children(1)))
    assert told(decision, m.Finish) == []
    assert told(commit(machine, process, page(1)), m.Finish) == []
    decision = commit(machine, process, unit(2, "started"))
    assert told(decision, m.Finish) == [m.Finish(job=ID, process=process, number=1)]
    idle = unit(3, "idle", finish=1, children=children(2))
    decision = commit(machine, process, idle)
    assert (told(decision, m.Finish), leases(decision)) == ([], {process: [2]})
    decision = commit(machine, process, page(2))
    assert told(decision, m.Finish) == [m.Finish(job=ID, process=process, number=2)]
    decision = commit(machine, process, unit(4, "idle", finish=2))
    assert told(decision, m.Finish) == [m.Finish(job=ID, process=process, number=3)]


def test_a_job_ends_with_its_leader_and_the_others_are_stopped() -> None:
    """The last process of the crawl gets the stats of them all."""
    machine, first, second = wide()
    stats: Stats = {"sum": {"n": msgspec.Raw(b"1")}}
    for _ in range(4):
        for number in (first.process, second.process):
            held = machine.state.crawls[ID].frontier
            every = [one for one in range(1, 5) if held.is_open(one)]
            commit(machine, number, *(page(one, stats=stats) for one in every[:1]))
    assert closing(machine, first.process, "finished") == [
        m.Stop(job=ID, process=second.process, reason="finished")
    ]
    decision = commit(machine, first.process, unit(6, "closed"))
    assert told(decision, m.Done) == [m.Done(job=ID, process=1, stats=None)]
    assert machine.state.jobs[ID].status == "running"
    decision = commit(machine, second.process, unit(1, "closed"))
    (done,) = told(decision, m.Done)
    assert bytes(done.stats["sum"]["n"]) == b"4"
    assert bytes(done.stats["last"]["finish_reason"]) == b'"finished"'
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().reason) == ("succeeded", "finished")
    for number in (1, 2):
        ask(machine, ended(number), WORKER)
    assert machine.state.crawls == {}
    shown = machine.state.jobs[ID].begin().stats
    assert msgspec.json.decode(shown)["sum"]["n"] == 4


def test_a_leader_that_closes_while_work_is_left_ends_nothing() -> None:
    """Something came up after it was told to finish: another process goes on."""
    machine, first = crawling(0)
    commit(machine, first.process, unit(3, "late", children=children(1)))
    assert closing(machine, first.process, "finished") == []
    commit(machine, first.process, unit(4, "closed"))
    decision = ask(machine, ended(first.process), WORKER)
    second = started(decision)
    decision = ask(machine, opened(second.process), WORKER)
    assert leases(decision) == {second.process: [1]}
    decision = commit(machine, second.process, page(1))
    assert told(decision, m.Finish) == [
        m.Finish(job=ID, process=second.process, number=1)
    ]
    finish(machine, second.process, 0)
    assert machine.state.jobs[ID].status == "succeeded"


def test_one_that_does_not_lead_finishes_nothing() -> None:
    """It was told to finish by nobody: the job goes on without it."""
    machine, _, second = wide()
    assert closing(machine, second.process, "finished") == []
    assert machine.state.jobs[ID].is_crawling


@pytest.mark.parametrize("by", [0, 1])
def test_a_spider_that_closes_in_one_process_closes_in_all(by: int) -> None:
    """``CloseSpider`` anywhere; the job's finish reason is the spider's."""
    machine, *starts = wide()
    closer, other = starts[by].process, starts[1 - by].process
    assert closing(machine, closer, "enough") == [
        m.Stop(job=ID, process=other, reason="enough")
    ]
    # What was started is finished and counts; nothing new is given.
    decision = commit(machine, closer, page(1, items=ITEM))
    assert (results(decision), leases(decision)) == (["published"], {})
    end = Outcome(finish_reason="enough")
    for number, units in ((closer, 6), (other, 6)):
        commit(machine, number, unit(units, "closed", end=end))
        ask(machine, ended(number), WORKER)
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().reason) == ("succeeded", "enough")
    assert job.begin().items == 1


def test_a_close_is_the_jobs_though_it_was_not_announced() -> None:
    """``Closing`` may be lost: the last commit says it, too."""
    machine, start = running()
    end = Outcome(finish_reason="enough")
    commit(machine, start.process, unit(1, "closed", end=end))
    assert machine.state.jobs[ID].begin().closing == "enough"
    assert machine.state.jobs[ID].status == "succeeded"


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
    machine, first, second = wide(limits=limits)
    one, *rest = (page(number, stats=count(key, 1)) for number in (1, 2, 3))
    assert told(commit(machine, first.process, one), m.Stop) == []
    decision = commit(machine, second.process, *rest)
    assert {stop.process for stop in told(decision, m.Stop)} == {1, 2}
    assert {stop.reason for stop in told(decision, m.Stop)} == {reason}
    assert leases(decision) == {}
    for number in (first.process, second.process):
        commit(machine, number, unit(7, "closed", end=Outcome(finish_reason=reason)))
    job = machine.state.jobs[ID]
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
    machine, _ = running(limits=limits)
    for seconds in (15.0, 30.0, 45.0, 59.0):
        machine.heard(WORKER, later(seconds))
        decision = ask(machine, OnTick(), 0, later(seconds))
        assert told(decision, m.Stop) == []
    assert machine.next_deadline_s(later(59.0)) == pytest.approx(1.0)
    decision = ask(machine, OnTick(), 0, later(60.0))
    assert told(decision, m.Stop) == [m.Stop(job=ID, process=1, reason=reason)]


# ---- stops ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "reason", "state"),
    [("cancel", "cancelled", "cancelled"), ("pause", JOB_PAUSES, "paused")],
)
def test_cancel_and_pause_stop_every_process(
    verb: str, reason: str, state: str
) -> None:
    """They finish what they started and give the rest back; nobody gets anything."""
    machine, first, second = wide()
    decision = change(machine, verb)
    assert answers(decision, WORKER) == [
        m.Stop(job=ID, process=start.process, reason=reason)
        for start in (first, second)
    ]
    given_back = m.Release(job=ID, process=1, requests=(2,))
    assert leases(ask(machine, given_back, WORKER)) == {}
    end = Outcome(finish_reason=reason)
    for number in (1, 2):
        decision = commit(machine, number, unit(7, "closed", end=end))
        assert told(decision, m.Done)
        assert told(ask(machine, ended(number), WORKER), m.Start) == []
    job = machine.state.jobs[ID]
    assert (job.state, job.processes) == (state, 0)


def test_a_resumed_job_goes_on_where_it_was() -> None:
    """Also when its process has not gone yet: the next one waits for that."""
    machine, start = crawling(3)
    change(machine, "pause")
    commit(machine, start.process, page(1))
    change(machine, "resume")
    end = Outcome(finish_reason=JOB_PAUSES)
    decision = commit(machine, start.process, unit(3, "closed", end=end))
    assert told(decision, m.Done) == [m.Done(job=ID, process=1, stats=None)]
    again = started(ask(machine, ended(start.process), WORKER))
    decision = ask(machine, opened(again.process), WORKER)
    assert leases(decision) == {again.process: [2, 3]}


def test_what_is_stopped_before_it_opens_is_told_again() -> None:
    """Whoever came up meanwhile is told when there is somebody to hear it."""
    machine = new_machine()
    ask(machine, submit())
    start = started(register(machine))
    stop = m.Stop(job=ID, process=start.process, reason="cancelled")
    assert answers(change(machine, "cancel"), WORKER) == [stop]
    assert answers(ask(machine, opened(start.process), WORKER), WORKER) == [stop]


def test_a_drained_worker_stops_its_processes_and_the_job_goes_on() -> None:
    """Theirs give back what they have not started; others take it."""
    machine, start = crawling(3)
    decision = ask(machine, m.Draining(), WORKER)
    assert answers(decision, WORKER) == [
        m.Stop(job=ID, process=start.process, reason=WORKER_DRAINS)
    ]
    register(machine, 6, "v")
    ask(machine, m.Release(job=ID, process=1, requests=(2, 3)), WORKER)
    commit(machine, start.process, page(1))
    assert closing(machine, start.process, WORKER_DRAINS) == []
    end = Outcome(finish_reason=WORKER_DRAINS)
    commit(machine, start.process, unit(3, "closed", end=end))
    again = started(ask(machine, ended(start.process), WORKER))
    decision = ask(machine, opened(again.process), 6)
    assert leases(decision) == {again.process: [2, 3]}


def test_an_idle_process_beside_the_leader_gives_its_slot_back() -> None:
    """After a while, counted from when its last lease ended; the leader never does."""
    machine, first, second = wide()
    number = second.process
    frontier = machine.state.crawls[ID].frontier
    assert frontier.leases.count_of(number)
    long = later(1000.0)
    machine.heard(WORKER, long)
    ask(machine, commits(1, *map(page, range(1, 5))), WORKER, long)
    assert frontier.leases.count_of(number) == 0
    assert told(ask(machine, OnTick(), 0, long), m.Stop) == []
    after = later(1000.0 + PROCESS_IDLE_S)
    machine.heard(WORKER, after)
    assert machine.next_deadline_s(long) == pytest.approx(PROCESS_IDLE_S)
    assert told(ask(machine, OnTick(), 0, after), m.Stop) == [
        m.Stop(job=ID, process=number, reason=PROCESS_IDLES)
    ]
    assert machine.next_deadline_s(after) > 0
    commit(machine, number, unit(1, "closed", end=Outcome(finish_reason=PROCESS_IDLES)))
    assert told(ask(machine, ended(number), WORKER), m.Start) == []
    assert machine.state.jobs[ID].is_crawling
    assert machine.state.crawls[ID].leader == first.process


def test_a_lease_that_lasts_is_no_idleness() -> None:
    """A single lease held for long: its holder is not stopped the moment it is done."""
    machine, _, second = wide(hosts=1)
    frontier = machine.state.crawls[ID].frontier
    assert frontier.leases.count_of(second.process) == 1
    long = later(10 * PROCESS_IDLE_S)
    machine.heard(WORKER, long)
    mine = [one for one in range(1, 4) if frontier.is_open(one)]
    ask(machine, commits(second.process, *map(page, mine)), WORKER, long)
    assert frontier.leases.count_of(second.process) == 0
    assert told(ask(machine, OnTick(), 0, long), m.Stop) == []


def test_a_lowered_ceiling_stops_what_is_beyond_it() -> None:
    """The newest first, and never the leader; a raised one lets more start."""
    machine, first, second = wide()
    (stop,) = told(change(machine, "parallelism", count=1), m.Stop)
    assert stop == m.Stop(job=ID, process=second.process, reason=SLOT_NEEDED)
    assert told(ask(machine, OnTick(), 0), m.Stop) == []
    commit(machine, second.process, unit(1, "closed"))
    assert told(ask(machine, ended(second.process), WORKER), m.Start) == []
    assert started(change(machine, "parallelism", count=0)).process == 3
    assert machine.state.jobs[ID].parallelism == 0
    (refused,) = answers(change(machine, "parallelism", count=-1), CLIENT)
    assert refused.code == "bad_state"
    assert machine.state.crawls[ID].leader == first.process


def test_the_leader_stays_though_it_is_the_newest() -> None:
    """A lowered ceiling stops another one."""
    machine, first, second = wide()
    machine.state.crawls[ID].leader = second.process
    (stop,) = told(change(machine, "parallelism", count=1), m.Stop)
    assert stop.process == first.process


# ---- failures to open ----------------------------------------------------------------


@pytest.mark.parametrize("by_worker", [False, True])
def test_where_others_run_a_worker_that_cannot_is_not_asked_again(
    by_worker: bool,
) -> None:
    """The job goes on where it runs; it does not fail."""
    machine, first = running(msgspec.structs.replace(SPEC, parallelism=2))
    register(machine, 6, "v")
    given = [
        unit(number, "start", children=children(number, host=f"h{number}"))
        for number in range(1, 40)
    ]
    second = started(commit(machine, first.process, *given))
    end = Outcome(failure="import_error", text="why")
    if by_worker:
        said = ended(second.process, how="failed", outcome=end)
        ask(machine, said, 6)
    else:
        commit(machine, second.process, unit(1, "closed", end=end), session=6)
        ask(machine, ended(second.process), 6)
    job = machine.state.jobs[ID]
    assert (job.is_crawling, job.processes) == (True, 1)
    assert list(machine.state.workers["v"].barred) == [ID]


def test_a_process_that_closes_for_an_error_fails_the_job() -> None:
    """It had opened: what it says is the job's, in all processes."""
    machine, _, second = wide()
    end = Outcome(finish_reason="", failure="spider_error", text="why")
    decision = commit(machine, second.process, unit(1, "closed", end=end))
    assert told(decision, m.Stop) == [m.Stop(job=ID, process=1, reason="spider_error")]
    commit(machine, 1, unit(6, "closed", end=Outcome(finish_reason="spider_error")))
    job = machine.state.jobs[ID]
    # A retry may help against that.
    assert (job.status, job.retries_left) == ("ready", 0)


# ---- nobody there --------------------------------------------------------------------


def test_a_job_that_has_lost_its_last_process_ends_as_it_was_to() -> None:
    """Closing, cancelling: there is nobody left to wait for."""
    for verb, status in (("close", "succeeded"), ("cancel", "cancelled")):
        machine, start = crawling(1)
        if verb == "close":
            closing(machine, start.process, "enough")
        else:
            change(machine, verb)
        ask(machine, OnClosed(), WORKER)
        ask(machine, OnTick(), 0, later(100.0))
        assert machine.state.jobs[ID].status == status


def test_nothing_is_given_to_who_cannot_be_reached() -> None:
    """Leases, the lead and how far to go wait until its worker is back."""
    machine, start = crawling(0)
    late = unit(3, "late", children=children(1))
    machine.state.crawls[ID].leader = None
    # Both in one group: the connection's end was behind the commit.
    for session, command in (
        (WORKER, commits(start.process, late)),
        (WORKER, OnClosed()),
    ):
        machine.carry_out(machine.decide(session, command, NOW))
    assert all(not one.records and not one.sends for one in machine.settle(NOW))
    held = m.Held(job=ID, process=start.process, opened=opened(start.process))
    decision = ask(machine, registration(held=(held,)), 6)
    assert leases(decision) == {start.process: [1]}
    assert told(decision, m.Lead)
