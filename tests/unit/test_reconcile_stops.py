"""Which processes of a running job are stopped, and what follows if one is lost."""

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decide.reconcile import (
    PROCESS_IDLE_S,
)
from dscrapy.control.decision import OnClosed, OnTick
from dscrapy.model import (
    JOB_PAUSES,
    PROCESS_IDLES,
    SLOT_NEEDED,
    WORKER_DRAINS,
    Outcome,
)
from tests import builders as b
from tests.unit import machine_driver as d

# ---- stops ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "reason", "state"),
    [("cancel", "cancelled", "cancelled"), ("pause", JOB_PAUSES, "paused")],
)
def test_cancel_and_pause_stop_every_process(
    verb: str, reason: str, state: str
) -> None:
    """They finish what they started and give the rest back; nobody gets anything."""
    machine, first, second = d.wide()
    decision = d.change(machine, verb)
    assert d.answers(decision, d.WORKER) == [
        m.Stop(job=b.ID, process=start.process, reason=reason)
        for start in (first, second)
    ]
    given_back = m.Release(job=b.ID, process=1, requests=(2,))
    assert d.leases(d.ask(machine, given_back, d.WORKER)) == {}
    end = Outcome(finish_reason=reason)
    for number in (1, 2):
        decision = d.commit(machine, number, b.unit(7, "closed", end=end))
        assert d.told(decision, m.Done)
        assert d.told(d.ask(machine, b.ended(number), d.WORKER), m.Start) == []
    job = machine.state.jobs[b.ID]
    assert (job.state, job.processes) == (state, 0)


def test_a_resumed_job_goes_on_where_it_was() -> None:
    """Also when its process has not gone yet: the next one waits for that."""
    machine, start = d.crawling(3)
    d.change(machine, "pause")
    d.commit(machine, start.process, b.page(1))
    d.change(machine, "resume")
    end = Outcome(finish_reason=JOB_PAUSES)
    decision = d.commit(machine, start.process, b.unit(3, "closed", end=end))
    assert d.told(decision, m.Done) == [m.Done(job=b.ID, process=1, stats=None)]
    again = d.started(d.ask(machine, b.ended(start.process), d.WORKER))
    decision = d.ask(machine, b.opened(again.process), d.WORKER)
    assert d.leases(decision) == {again.process: [2, 3]}


def test_what_is_stopped_before_it_opens_is_told_again() -> None:
    """Whoever came up meanwhile is told when there is somebody to hear it."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    stop = m.Stop(job=b.ID, process=start.process, reason="cancelled")
    assert d.answers(d.change(machine, "cancel"), d.WORKER) == [stop]
    assert d.answers(d.ask(machine, b.opened(start.process), d.WORKER), d.WORKER) == [
        stop
    ]


def test_a_drained_worker_stops_its_processes_and_the_job_goes_on() -> None:
    """Theirs give back what they have not started; others take it."""
    machine, start = d.crawling(3)
    decision = d.ask(machine, m.Draining(), d.WORKER)
    assert d.answers(decision, d.WORKER) == [
        m.Stop(job=b.ID, process=start.process, reason=WORKER_DRAINS)
    ]
    d.register(machine, 6, "v")
    d.ask(machine, m.Release(job=b.ID, process=1, requests=(2, 3)), d.WORKER)
    d.commit(machine, start.process, b.page(1))
    assert d.closing(machine, start.process, WORKER_DRAINS) == []
    end = Outcome(finish_reason=WORKER_DRAINS)
    d.commit(machine, start.process, b.unit(3, "closed", end=end))
    again = d.started(d.ask(machine, b.ended(start.process), d.WORKER))
    decision = d.ask(machine, b.opened(again.process), 6)
    assert d.leases(decision) == {again.process: [2, 3]}


def test_an_idle_process_beside_the_leader_gives_its_slot_back() -> None:
    """After a while, counted from when its last lease ended; the leader never does."""
    machine, first, second = d.wide()
    number = second.process
    frontier = machine.state.crawls[b.ID].frontier
    assert frontier.leases.count_of(number)
    long = d.later(1000.0)
    machine.heard(d.WORKER, long)
    d.ask(machine, b.commits(1, *map(b.page, range(1, 5))), d.WORKER, long)
    assert frontier.leases.count_of(number) == 0
    assert d.told(d.ask(machine, OnTick(), 0, long), m.Stop) == []
    after = d.later(1000.0 + PROCESS_IDLE_S)
    machine.heard(d.WORKER, after)
    assert machine.next_deadline_s(long) == pytest.approx(PROCESS_IDLE_S)
    assert d.told(d.ask(machine, OnTick(), 0, after), m.Stop) == [
        m.Stop(job=b.ID, process=number, reason=PROCESS_IDLES)
    ]
    assert machine.next_deadline_s(after) > 0
    d.commit(
        machine, number, b.unit(1, "closed", end=Outcome(finish_reason=PROCESS_IDLES))
    )
    assert d.told(d.ask(machine, b.ended(number), d.WORKER), m.Start) == []
    assert machine.state.jobs[b.ID].is_crawling
    assert machine.state.crawls[b.ID].leader == first.process


def test_a_lease_that_lasts_is_no_idleness() -> None:
    """A single lease held for long: its holder is not stopped the moment it is done."""
    machine, _, second = d.wide(hosts=1)
    frontier = machine.state.crawls[b.ID].frontier
    assert frontier.leases.count_of(second.process) == 1
    long = d.later(10 * PROCESS_IDLE_S)
    machine.heard(d.WORKER, long)
    mine = [one for one in range(1, 4) if frontier.is_open(one)]
    d.ask(machine, b.commits(second.process, *map(b.page, mine)), d.WORKER, long)
    assert frontier.leases.count_of(second.process) == 0
    assert d.told(d.ask(machine, OnTick(), 0, long), m.Stop) == []


def test_a_lowered_ceiling_stops_what_is_beyond_it() -> None:
    """The newest first, and never the leader; a raised one lets more start."""
    machine, first, second = d.wide()
    (stop,) = d.told(d.change(machine, "parallelism", count=1), m.Stop)
    assert stop == m.Stop(job=b.ID, process=second.process, reason=SLOT_NEEDED)
    assert d.told(d.ask(machine, OnTick(), 0), m.Stop) == []
    d.commit(machine, second.process, b.unit(1, "closed"))
    assert d.told(d.ask(machine, b.ended(second.process), d.WORKER), m.Start) == []
    assert d.started(d.change(machine, "parallelism", count=0)).process == 3
    assert machine.state.jobs[b.ID].parallelism == 0
    (refused,) = d.answers(d.change(machine, "parallelism", count=-1), d.CLIENT)
    assert refused.code == "bad_state"
    assert machine.state.crawls[b.ID].leader == first.process


def test_the_leader_stays_though_it_is_the_newest() -> None:
    """A lowered ceiling stops another one."""
    machine, first, second = d.wide()
    machine.state.crawls[b.ID].leader = second.process
    (stop,) = d.told(d.change(machine, "parallelism", count=1), m.Stop)
    assert stop.process == first.process


# ---- failures to open ----------------------------------------------------------------


@pytest.mark.parametrize("by_worker", [False, True])
def test_where_others_run_a_worker_that_cannot_is_not_asked_again(
    by_worker: bool,
) -> None:
    """The job goes on where it runs; it does not fail."""
    machine, first = d.running(msgspec.structs.replace(d.SPEC, parallelism=2))
    d.register(machine, 6, "v")
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, 40)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    end = Outcome(failure="import_error", text="why")
    if by_worker:
        said = b.ended(second.process, how="failed", outcome=end)
        d.ask(machine, said, 6)
    else:
        d.commit(machine, second.process, b.unit(1, "closed", end=end), session=6)
        d.ask(machine, b.ended(second.process), 6)
    job = machine.state.jobs[b.ID]
    assert (job.is_crawling, job.processes) == (True, 1)
    assert list(machine.state.workers["v"].barred) == [b.ID]


def test_a_process_that_closes_for_an_error_fails_the_job() -> None:
    """It had opened: what it says is the job's, in all processes."""
    machine, _, second = d.wide()
    end = Outcome(finish_reason="", failure="spider_error", text="why")
    decision = d.commit(machine, second.process, b.unit(1, "closed", end=end))
    assert d.told(decision, m.Stop) == [
        m.Stop(job=b.ID, process=1, reason="spider_error")
    ]
    d.commit(machine, 1, b.unit(6, "closed", end=Outcome(finish_reason="spider_error")))
    job = machine.state.jobs[b.ID]
    # A retry may help against that.
    assert (job.status, job.retries_left) == ("ready", 0)


# ---- nobody there --------------------------------------------------------------------


def test_a_job_that_has_lost_its_last_process_ends_as_it_was_to() -> None:
    """Closing, cancelling: there is nobody left to wait for."""
    for verb, status in (("close", "succeeded"), ("cancel", "cancelled")):
        machine, start = d.crawling(1)
        if verb == "close":
            d.closing(machine, start.process, "enough")
        else:
            d.change(machine, verb)
        d.ask(machine, OnClosed(), d.WORKER)
        d.ask(machine, OnTick(), 0, d.later(100.0))
        assert machine.state.jobs[b.ID].status == status


def test_nothing_is_given_to_who_cannot_be_reached() -> None:
    """Leases, the lead and how far to go wait until its worker is back."""
    machine, start = d.crawling(0)
    late = b.unit(3, "late", children=b.children(1))
    machine.state.crawls[b.ID].leader = None
    # Both in one group: the connection's end was behind the commit.
    for session, command in (
        (d.WORKER, b.commits(start.process, late)),
        (d.WORKER, OnClosed()),
    ):
        machine.carry_out(machine.decide(session, command, d.NOW))
    assert all(not one.records and not one.sends for one in machine.settle(d.NOW))
    held = b.held(start.process)
    decision = d.ask(machine, b.registration(held=(held,)), 6)
    assert d.leases(decision) == {start.process: [1]}
    assert d.told(decision, m.Lead)
