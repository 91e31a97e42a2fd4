"""A bug met in deciding one command: it ends that command, and nothing else."""

from typing import Any

import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import Decision, OnTick, StepError
from dscrapy.control.machine import Machine
from dscrapy.control.own_bugs import KEYS_MAX, TEXT, TIMES_MAX, Fallbacks
from tests import builders as b
from tests.doubles.bugs import plant_in_start, plant_in_tick
from tests.unit import machine_driver as d


@pytest.fixture
def machine() -> Machine:
    """A job with three leases in process 1."""
    return d.crawling(3)[0]


def raised(
    machine: Machine, fallbacks: Fallbacks, command: Any, session: int = d.WORKER
) -> Any:
    """Let deciding the command have raised; carry out what is decided instead."""
    decision = machine.decision(d.NOW)
    fallbacks.for_command(decision, session, command)
    return d.carry_out(machine, decision)


def raised_at(
    machine: Machine, fallbacks: Fallbacks, job: str, step: str = "reconcile"
) -> Decision:
    """Let a step have raised at the job; return what is decided instead."""
    decision = machine.decision(d.NOW)
    fallbacks.for_job(decision, step, job)
    return decision


def back(machine: Machine, session: int, process: int) -> Decision:
    """Let the worker come back with this process of its."""
    held = b.held(process, leads=True)
    return d.ask(machine, b.registration(held=(held,)), session)


def test_a_client_is_told_each_time(machine: Machine) -> None:
    """It may ask for something else on the same connection."""
    fallbacks = Fallbacks()
    for _ in range(TIMES_MAX + 1):
        decision = raised(machine, fallbacks, m.ShowJob(call=7, job=b.ID), d.CLIENT)
        (answer,) = d.answers(decision, d.CLIENT)
        assert (answer.call, answer.code) == (7, "internal_error")
        assert decision.closes == []


def test_a_page_is_done_again_twice_then_set_aside(machine: Machine) -> None:
    """Its sender drops it each time; the session and the other pages go on."""
    fallbacks = Fallbacks()
    command = b.commits(1, b.page(2, items=b.ITEM))
    for time in range(TIMES_MAX):
        decision = raised(machine, fallbacks, command)
        (seen,) = d.told(decision, m.CommitsSeen)[0].seen
        assert (seen.request, seen.result) == (2, "settled")
        assert decision.closes == []
        assert d.leases(decision) == ({} if time + 1 == TIMES_MAX else {1: [2]})
    frontier = machine.state.crawls[b.ID].frontier
    assert frontier.poisoned[2].text == TEXT
    assert frontier.leases.count_of(1) == 2
    # One that is not open any more is dropped.
    assert d.told(raised(machine, fallbacks, b.commits(1, b.page(99))), m.CommitsSeen)


@pytest.mark.parametrize(
    "command",
    [
        b.commits(1, b.unit(3, items=b.ITEM)),
        b.opened(1),
        b.ended(1),
    ],
)
def test_what_cannot_be_done_again_alone_ends_its_process(
    machine: Machine, command: Any
) -> None:
    """Offered again it ends the session; the third time its process is given up, and
    its pages are done by another one."""
    fallbacks = Fallbacks()
    for session in range(d.WORKER, d.WORKER + TIMES_MAX):
        assert 1 in machine.state.processes
        decision = raised(machine, fallbacks, command, session)
        assert decision.closes == [session]
        # Its slot is not free before the worker has dropped what it holds.
        assert d.told(decision, m.Start) == []
        again = back(machine, session + 1, 1)
    assert 1 not in machine.state.processes
    assert machine.state.jobs[b.ID].begin().deaths == 1
    assert d.told(again, m.Registered)[0].drop == (1,)
    assert d.started(again).process == 2


def test_a_part_of_a_page_sets_its_request_aside(machine: Machine) -> None:
    """Offered again it ends the session; the third time the page is set aside, and its
    process goes on with the others."""
    fallbacks = Fallbacks()
    command = b.commits(1, b.part(2, 0, items=b.ITEM))
    for session in range(d.WORKER, d.WORKER + TIMES_MAX - 1):
        decision = raised(machine, fallbacks, command, session)
        assert decision.closes == [session]
        back(machine, session + 1, 1)
    decision = raised(machine, fallbacks, command, d.WORKER + TIMES_MAX - 1)
    assert decision.closes == []
    (seen,) = d.told(decision, m.CommitsSeen)[0].seen
    assert (seen.request, seen.part, seen.result) == (2, 0, "settled")
    assert machine.state.crawls[b.ID].frontier.poisoned[2].text == TEXT
    assert 1 in machine.state.processes


def test_a_job_whose_processes_are_given_up_again_and_again_fails(
    machine: Machine,
) -> None:
    """As if they had died by its own doing."""
    fallbacks = Fallbacks()
    session = d.WORKER
    for process in range(1, machine.policy.start_deaths_max + 1):
        for _ in range(TIMES_MAX):
            raised(machine, fallbacks, b.opened(process), session)
            session += 1
            again = back(machine, session, process)
    job = machine.state.jobs[b.ID]
    assert d.told(again, m.Start)
    # It has a retry, with a clean record.
    assert job.retries_left == 0
    assert job.begin().deaths == 0


def test_a_registration_that_raises_drops_what_it_holds(machine: Machine) -> None:
    """The worker is welcome; its processes are lost and killed."""
    fallbacks = Fallbacks()
    held = (m.HeldProcess(job=b.ID, process=1), m.HeldProcess(job=b.ID, process=8))
    command = b.registration(held=held)
    for session in (6, 7):
        assert raised(machine, fallbacks, command, session).closes == [session]
    decision = raised(machine, fallbacks, command, 8)
    (answer,) = d.told(decision, m.Registered)
    assert answer.drop == (1, 8)
    assert d.started(decision).process == 2


def test_a_tick_that_raises_is_tried_again(machine: Machine) -> None:
    """Nobody has sent it, so nobody is told."""
    fallbacks = Fallbacks()
    for _ in range(TIMES_MAX + 1):
        decision = raised(machine, fallbacks, OnTick(), 0)
        assert (decision.records, decision.closes) == ([], [])


def test_a_job_that_cannot_be_followed_up_fails_the_third_time(
    machine: Machine,
) -> None:
    """Its processes are stopped; what is committed stands."""
    fallbacks = Fallbacks()
    for _ in range(TIMES_MAX - 1):
        assert raised_at(machine, fallbacks, b.ID).records == []
    decision = d.carry_out(machine, raised_at(machine, fallbacks, b.ID))
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("failed", TEXT)
    assert d.told(decision, m.Stop)
    assert raised_at(machine, fallbacks, b.ID).records == []
    assert raised_at(machine, fallbacks, "none").records == []


def test_what_is_remembered_is_bounded(machine: Machine) -> None:
    """The oldest is forgotten first."""
    fallbacks = Fallbacks()
    for request in range(1, KEYS_MAX + 50):
        command = b.commits(77, b.page(request), job="j")
        fallbacks.for_command(machine.decision(d.NOW), d.WORKER, command)
    assert len(fallbacks._times) == KEYS_MAX


# ---- one job of many ---------------------------------------------------------------


def test_a_raise_in_assign_takes_nothing_from_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deciding is pure: the job at which it raises is named and stays ready, and the
    others are assigned without it."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    d.ask(machine, b.submit(b.OTHER))
    register_silently(machine, slots=4)
    plant_in_start(monkeypatch, b.ID)
    before = list(machine.state.ready)
    for _ in range(3):
        with pytest.raises(StepError) as raised:
            machine.place(d.NOW)
        assert raised.value.culprit == ("job", b.ID)
        assert list(machine.state.ready) == before == [b.ID, b.OTHER]
    decision = machine.place(d.NOW, {b.ID})
    assert decision is not None
    assert d.started(decision).job == b.OTHER
    monkeypatch.undo()
    assert [
        one.job
        for one in d.told(d.carry_out(machine, machine.decision(d.NOW)), m.Start)
    ] == [
        b.ID,
        b.OTHER,
    ]


def test_a_job_that_cannot_be_assigned_fails_the_third_time() -> None:
    """Also one that has never begun."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    fallbacks = Fallbacks()
    for _ in range(TIMES_MAX - 1):
        assert raised_at(machine, fallbacks, b.ID, "place").records == []
    d.carry_out(machine, raised_at(machine, fallbacks, b.ID, "place"))
    assert machine.state.jobs[b.ID].status == "failed"
    assert list(machine.state.ready) == []


def test_a_tick_names_whom_it_raises_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, the others get their turn."""
    d.ask(machine, b.submit(b.OTHER))
    silent = d.later(100.0)
    plant_in_tick(monkeypatch, b.ID)
    with pytest.raises(StepError) as raised:
        machine.decide(0, OnTick(), silent)
    assert raised.value.culprit == ("job", b.ID)
    rest = machine.decide(0, OnTick(exclude=frozenset({("job", b.ID)})), silent)
    assert r.WorkerGone(name="w") in rest.records


def test_what_is_not_completed_is_refused_and_granted_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leases that were taken and not told are the worker's to deny when it is
    back; whoever waited for an answer gets one."""
    release = m.Release(job=b.ID, process=1, requests=(2,))
    machine.carry_out(machine.decide(d.WORKER, release, d.NOW))
    granting = machine.reconcile(b.ID, d.NOW)
    granting.shows.append((d.CLIENT, 7, b.ID))
    monkeypatch.setattr(Machine, "complete", plant_in_complete)
    instead = machine.carry_out(granting)
    monkeypatch.undo()
    assert [str(bug.error) for bug in instead.bugs] == ["a bug"]
    assert instead.effects.granted
    assert not instead.grants
    (refused,) = d.answers(instead, d.CLIENT)
    assert (refused.call, refused.code) == (7, "internal_error")
    assert instead.closes == [d.WORKER]
    held = b.held(1, 1, 3, leads=True)
    assert d.leases(d.ask(machine, b.registration(held=(held,)), 6)) == {1: [2]}


def plant_in_complete(machine: Machine, decision: Decision) -> None:
    """Raise where a decision is completed."""
    raise RuntimeError("a bug")


def register_silently(machine: Machine, slots: int) -> None:
    """Let a worker come, and look for nothing that follows."""
    machine.carry_out(machine.decide(d.WORKER, b.registration(slots=slots), d.NOW))
