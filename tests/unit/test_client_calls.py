"""What clients ask for, call by call: answers, refusals, and who is told."""

from typing import Any

import pytest

from dscrapy import messages as m
from dscrapy.control.decision import OnClosed, OnTick
from tests import builders as b
from tests.unit import machine_driver as d


@pytest.mark.parametrize(
    "command",
    [
        m.ShowJob(call=7, job=b.OTHER),
        m.WaitJob(call=7, job=b.OTHER),
        m.ChangeJob(call=7, verb="cancel", job=b.OTHER),
    ],
)
def test_an_unknown_job_is_refused_and_nothing_happens(command: m.ClientCall) -> None:
    """With its call's number, so that the answer finds its way."""
    machine = d.new_machine()
    decision = d.ask(machine, command, d.CLIENT)
    (refused,) = d.answers(decision, d.CLIENT)
    assert (refused.call, refused.code) == (7, "no_such_job")
    assert decision.records == []


@pytest.mark.parametrize("command", [m.GetStatus, m.ReadFile])
def test_what_needs_more_than_the_state_is_not_decided_here(command: Any) -> None:
    """Asking the frontier for it is our own bug, and told as one."""
    fields = {"job": b.ID, "file": "log", "offset": 0, "limit": 1}
    fields = {} if command is m.GetStatus else fields
    with pytest.raises(AssertionError, match="not decided here"):
        d.ask(d.new_machine(), command(call=1, **fields))


def test_a_ping_is_answered() -> None:
    """With its call's number."""
    decision = d.ask(d.new_machine(), m.Ping(call=9), d.CLIENT)
    assert decision.sends == [(d.CLIENT, m.Accepted(call=9))]


def test_waiters_are_answered_when_the_job_ends_and_only_they() -> None:
    """Each once; who has gone not at all; who comes later at once."""
    machine, start = d.running()
    for session, call in ((1, 1), (1, 2), (2, 1), (3, 1)):
        assert d.ask(machine, m.WaitJob(call=call, job=b.ID), session).sends == []
    d.ask(machine, OnClosed(), 2)
    decision = d.succeed(machine, start)
    shown_to = [
        (to, one.call) for to, one in decision.sends if isinstance(one, m.Shown)
    ]
    assert shown_to == [(1, 1), (1, 2), (3, 1)]
    assert machine.state.waiters == {}
    (shown,) = d.answers(d.ask(machine, m.WaitJob(call=4, job=b.ID), 2), 2)
    assert shown.job.state == "succeeded"


def test_the_last_waiter_that_goes_leaves_no_trace() -> None:
    """Waiting and going, over and over, must not grow the state."""
    machine, _ = d.running()
    d.ask(machine, m.WaitJob(call=1, job=b.ID), 2)
    d.ask(machine, OnClosed(), 2)
    assert machine.state.waiters == {}


def test_nobody_waits_for_a_schedule() -> None:
    """It does not end: a wait would be for ever."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=60.0))
    (refused,) = d.answers(
        d.ask(machine, m.WaitJob(call=1, job=b.ID), d.CLIENT), d.CLIENT
    )
    assert refused.code == "is_schedule"


@pytest.mark.parametrize(
    ("verbs", "text"),
    [
        (["resume"], "is not paused"),
        (["pause", "pause"], "is already paused"),
        (["retry"], "it can be cancelled and paused, not retried"),
        (["cancel", "cancel"], "is already cancelled"),
        (["cancel", "pause"], "is already cancelled"),
    ],
)
def test_what_a_schedule_does_not_do(verbs: list[str], text: str) -> None:
    """Its runs have lives of their own."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=60.0))
    for verb in verbs:
        (answer,) = d.answers(d.change(machine, verb), d.CLIENT)
    assert answer.code == "bad_state"
    assert answer.text.endswith(text)


def test_a_paused_schedule_makes_no_run_until_it_is_resumed() -> None:
    """Also over a restart; what was due meanwhile is one run, at once."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=60.0))
    d.ask(machine, OnTick(), 0)
    assert len(machine.state.jobs) == 1
    (run,) = machine.state.jobs
    d.change(machine, "cancel", run)
    (shown,) = d.answers(d.change(machine, "pause"), d.CLIENT)
    assert (shown.schedule.state, shown.schedule.next_at) == ("paused", None)
    machine = d.restarted(machine)
    d.ask(machine, OnTick(), 0, d.later(1000.0))
    assert len(machine.state.jobs) == 1
    (shown,) = d.answers(d.change(machine, "resume"), d.CLIENT)
    assert shown.schedule.state == "active"
    d.ask(machine, OnTick(), 0, d.later(1000.0))
    d.ask(machine, OnTick(), 0, d.later(1000.0))
    assert len(machine.state.jobs) == 2


def test_a_paused_job_waits_and_nobody_is_told() -> None:
    """It has no process yet; resumed, it is given out as if nothing had been."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    d.change(machine, "pause")
    assert (machine.state.jobs[b.ID].state, machine.state.counts["paused"]) == (
        "paused",
        1,
    )
    assert d.told(d.register(machine), m.Start) == []
    assert d.started(d.change(machine, "resume")).job == b.ID
    assert machine.state.counts["paused"] == 0


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_an_ended_job_is_neither_paused_nor_resumed(verb: str) -> None:
    """The refusal says how it ended."""
    machine, start = d.running()
    d.succeed(machine, start)
    (refused,) = d.answers(d.change(machine, verb), d.CLIENT)
    assert "succeeded" in refused.text


def test_draining_a_worker_tells_it_and_gives_it_nothing() -> None:
    """What it holds goes on; asking twice and asking for a stranger is refused."""
    machine, start = d.running()
    d.ask(machine, b.submit(b.OTHER), d.CLIENT)
    drain = m.DrainWorker(call=3, worker="w")
    decision = d.ask(machine, drain, d.CLIENT)
    assert decision.sends == [(d.WORKER, m.Drain()), (d.CLIENT, m.Accepted(call=3))]
    d.ask(machine, m.Draining(), d.WORKER)
    d.commit(machine, start.process, b.unit(1, "closed"))
    decision = d.ask(machine, b.ended(start.process), d.WORKER)
    assert d.told(decision, m.Start) == []
    (refused,) = d.answers(d.ask(machine, drain, d.CLIENT), d.CLIENT)
    assert refused.code == "bad_state"
    (refused,) = d.answers(
        d.ask(machine, m.DrainWorker(call=3, worker="x"), d.CLIENT), d.CLIENT
    )
    assert (refused.code, refused.text[-2:]) == ("no_such_worker", " w")


def test_a_worker_that_is_away_cannot_be_told_to_drain() -> None:
    """The promise could not be kept: it may come back not knowing."""
    machine, _ = d.running()
    d.ask(machine, OnClosed(), d.WORKER)
    (refused,) = d.answers(
        d.ask(machine, m.DrainWorker(call=3, worker="w"), d.CLIENT), d.CLIENT
    )
    assert refused.code == "no_such_worker"


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("limit", [-1, 1, 2, 3, 5000])
def test_pages_of_jobs_hold_each_job_once(limit: int, newest: bool) -> None:
    """In order of submission or the latest first, whatever the size of a page."""
    machine = d.new_machine()
    ids = [b.job_id(number) for number in range(5)]
    d.ask(machine, b.submit(*ids), d.CLIENT)
    listed: list[str] = []
    after: int | None = None
    for _ in range(10):
        call = m.ListJobs(call=1, after=after, limit=limit, newest=newest)
        (page,) = d.answers(d.ask(machine, call, d.CLIENT), d.CLIENT)
        assert len(page.jobs) <= max(limit, 1)
        listed += [one.id for one in page.jobs]
        after = page.next
        if after is None:
            break
    assert listed == (ids[::-1] if newest else ids)


def test_jobs_are_listed_by_what_people_see_of_them() -> None:
    """A paused job is paused, not ready; an offset beyond the end gives nothing."""
    machine = d.new_machine()
    d.ask(machine, b.submit(b.ID, b.OTHER), d.CLIENT)
    d.change(machine, "pause", b.OTHER)
    for states, ids in (
        (("ready",), [b.ID]),
        (("paused",), [b.OTHER]),
        (("failed",), []),
    ):
        (page,) = d.answers(d.ask(machine, m.ListJobs(call=1, states=states)), 1)
        assert [one.id for one in page.jobs] == ids
    (page,) = d.answers(d.ask(machine, m.ListJobs(call=1, after=99)), 1)
    assert page == m.Jobs(call=1, jobs=(), next=None)


def test_an_id_twice_in_one_submission_is_refused() -> None:
    """One of the two would be lost without a word."""
    machine = d.new_machine()
    (refused,) = d.answers(
        d.ask(machine, b.submit(b.ID, b.OTHER, b.ID), d.CLIENT), d.CLIENT
    )
    assert (refused.code, b.ID in refused.text) == ("bad_id", True)
    assert machine.state.jobs == {}
