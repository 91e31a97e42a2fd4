"""A bug met in deciding one command: it ends that command, and nothing else."""

from typing import Any

import pytest

from dscrapy import messages as m
from dscrapy.frontier.decision import OnTick
from dscrapy.frontier.faults import KEYS_MAX, TEXT, TIMES_MAX, Faults
from dscrapy.frontier.machine import Machine
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    ITEM,
    NOW,
    WORKER,
    answers,
    carry_out,
    commits,
    crawling,
    ended,
    leases,
    opened,
    page,
    registration,
    started,
    told,
    unit,
)


@pytest.fixture
def machine() -> Machine:
    """A job with three leases in process 1."""
    return crawling(3)[0]


def raised(
    machine: Machine, faults: Faults, command: Any, session: int = WORKER
) -> Any:
    """Let deciding the command have raised; carry out what is decided instead."""
    return carry_out(machine, faults.instead(session, command, NOW))


def test_a_client_is_told_each_time(machine: Machine) -> None:
    """It may ask for something else on the same connection."""
    faults = Faults(machine)
    for _ in range(TIMES_MAX + 1):
        decision = raised(machine, faults, m.ShowJob(call=7, job=ID), CLIENT)
        (answer,) = answers(decision, CLIENT)
        assert (answer.call, answer.code) == (7, "internal_error")
        assert decision.closes == []


def test_a_page_is_done_again_twice_then_set_aside(machine: Machine) -> None:
    """Its sender drops it each time; the session and the other pages go on."""
    faults = Faults(machine)
    command = commits(1, page(2, items=ITEM))
    for time in range(TIMES_MAX):
        decision = raised(machine, faults, command)
        (seen,) = told(decision, m.CommitsSeen)[0].seen
        assert (seen.request, seen.result) == (2, "settled")
        assert decision.closes == []
        assert leases(decision) == ({} if time + 1 == TIMES_MAX else {1: [2]})
    frontier = machine.state.crawls[ID].frontier
    assert frontier.poisoned[2].text == TEXT
    assert frontier.leased_by(1) == 2
    # One that is not open any more is dropped.
    assert told(raised(machine, faults, commits(1, page(99))), m.CommitsSeen)


@pytest.mark.parametrize(
    "command",
    [
        commits(1, unit(3, items=ITEM)),
        commits(1, page(2, part=1, items=ITEM)),
        opened(1),
        ended(1),
    ],
)
def test_what_cannot_be_done_again_alone_ends_its_process(
    machine: Machine, command: Any
) -> None:
    """Offered again it ends the session; the third time its process is given up, and
    its pages are done by another one."""
    faults = Faults(machine)
    for _ in range(TIMES_MAX - 1):
        decision = raised(machine, faults, command)
        assert decision.closes == [WORKER]
        assert 1 in machine.state.processes
    decision = raised(machine, faults, command)
    assert decision.closes == [WORKER]
    assert 1 not in machine.state.processes
    assert machine.state.jobs[ID].begin().deaths == 1
    assert started(decision).process == 2


def test_a_job_whose_processes_are_given_up_again_and_again_fails(
    machine: Machine,
) -> None:
    """As if they had died by its own doing."""
    faults = Faults(machine)
    process = 1
    for _ in range(machine.start_deaths_max):
        for _ in range(TIMES_MAX):
            decision = raised(machine, faults, opened(process))
        process += 1
    job = machine.state.jobs[ID]
    assert told(decision, m.Start)
    # It has a retry, with a clean record.
    assert job.retries_left == 0
    assert job.begin().deaths == 0


def test_a_registration_that_raises_drops_what_it_holds(machine: Machine) -> None:
    """The worker is welcome; its processes are lost and killed."""
    faults = Faults(machine)
    held = (m.Held(job=ID, process=1), m.Held(job=ID, process=8))
    command = registration(held=held)
    for session in (6, 7):
        assert raised(machine, faults, command, session).closes == [session]
    decision = raised(machine, faults, command, 8)
    (answer,) = told(decision, m.Registered)
    assert answer.drop == (1, 8)
    assert started(decision).process == 2


def test_a_tick_that_raises_is_tried_again(machine: Machine) -> None:
    """Nobody has sent it, so nobody is told."""
    faults = Faults(machine)
    for _ in range(TIMES_MAX + 1):
        decision = raised(machine, faults, OnTick(), 0)
        assert (decision.records, decision.closes) == ([], [])


def test_a_job_that_cannot_be_followed_up_fails_the_third_time(
    machine: Machine,
) -> None:
    """Its processes are stopped; what is committed stands."""
    faults = Faults(machine)
    for _ in range(TIMES_MAX - 1):
        assert faults.instead_of_follow_up(ID, NOW).records == []
    decision = carry_out(machine, faults.instead_of_follow_up(ID, NOW))
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().reason) == ("failed", TEXT)
    assert told(decision, m.Stop)
    assert faults.instead_of_follow_up(ID, NOW).records == []
    assert faults.instead_of_follow_up("none", NOW).records == []


def test_what_is_remembered_is_bounded(machine: Machine) -> None:
    """The oldest is forgotten first."""
    faults = Faults(machine)
    for request in range(1, KEYS_MAX + 50):
        faults.instead(WORKER, commits(77, page(request), job="j"), NOW)
    assert len(faults._times) == KEYS_MAX
