"""Ended jobs go when somebody asks, or by the rules; nothing else ever does."""

from typing import Any

import attrs
import pytest

from dscrapy import messages as m
from dscrapy.conf.config import MasterConfig
from dscrapy.control import effects, projections
from dscrapy.control import events as r
from dscrapy.control.clock import Now
from dscrapy.control.decide import retention
from dscrapy.control.decide.retention import SPARED_S, bytes_of, surplus
from dscrapy.control.decision import OnClosed, OnMeasured, OnPrune, OnTick
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import State
from dscrapy.keep import Keep
from tests import builders as b
from tests.unit import machine_driver as d

LATER = d.later(10 * SPARED_S)


def with_ended(count: int) -> Machine:
    """A machine with jobs that were cancelled, one second after another."""
    machine = d.new_machine()
    for number in range(count):
        at = d.later(float(number))
        d.ask(machine, b.submit(number, name=f"job{number}"), now=at)
        cancel = m.ChangeJob(call=2, verb="cancel", job=b.job_id(number))
        d.ask(machine, cancel, now=at)
    return machine


def left(machine: Machine) -> list[int]:
    """Numbers of the jobs that are there."""
    return [int(identity, 16) for identity in machine.state.jobs]


def refusal(machine: Machine, command: Any) -> str:
    """The text of the refusal of a call."""
    (answer,) = d.answers(d.ask(machine, command), d.CLIENT)
    assert isinstance(answer, m.Refused), answer
    return answer.text


def keep_only(machine: Machine, keep: Keep, *names: str) -> None:
    """Let the master keep so much by itself, beside the jobs of these names."""
    machine.policy = attrs.evolve(
        machine.policy, keep=keep, kept_names=frozenset(names)
    )


def test_a_removed_job_leaves_no_trace() -> None:
    """Not in the state, its counts or a snapshot; its folder goes."""
    machine = with_ended(2)
    remove = m.Remove(call=7, job=b.job_id(0))
    record = r.JobRemoved(job=remove.job)
    assert projections.effects_of(machine.state, record).writes == [
        effects.Clear(f"jobs/{0:016x}")
    ]
    decision = d.ask(machine, remove)
    assert d.answers(decision, d.CLIENT) == [m.Accepted(call=7, count=1)]
    assert decision.records == [record]
    assert left(machine) == [1]
    assert machine.state.counts["cancelled"] == 1
    assert remove.job.encode() not in machine.state.encode_snapshot()
    for known in (machine.state.ended, machine.state.log_bytes, machine.state.crawls):
        assert remove.job not in known
    for again in (remove, m.WaitJob(call=1, job=remove.job)):
        assert "no job" in refusal(machine, again)


@pytest.mark.parametrize("verb", ["", "pause"])
def test_only_what_has_ended_is_removed(verb: str) -> None:
    """A ready and a paused job stay; so does a running one, and an active schedule."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    if verb:
        d.change(machine, verb)
    assert "cancel" in refusal(machine, m.Remove(call=1, job=b.ID))
    assert b.ID in machine.state.jobs
    busy, _ = d.running()
    assert "is running" in refusal(busy, m.Remove(call=1, job=b.ID))
    assert b.ID in busy.state.jobs


def test_a_job_whose_process_is_on_its_way_out_goes_when_that_is_gone() -> None:
    """Who asked is answered then; a retry in between is refused."""
    machine, start = d.running()
    job = machine.state.jobs[b.ID]
    at_end = r.JobEnded(job=b.ID, state="failed", reason="", traceback="", at=1.0)
    d.let_be(machine, at_end)
    assert d.answers(d.ask(machine, m.Remove(call=7, job=b.ID)), d.CLIENT) == []
    assert job.has_processes
    assert b.ID in machine.state.jobs
    (refused,) = d.answers(d.change(machine, "retry"), d.CLIENT)
    assert refused.text == f"job {b.ID} is being removed"
    decision = d.ask(machine, b.ended(start.process), d.WORKER)
    assert m.Accepted(call=7, count=1) in d.answers(decision, d.CLIENT)
    assert b.ID not in machine.state.jobs
    assert machine.state.removing == {}


def test_numbers_are_not_used_twice_and_pages_go_on_behind_what_is_gone() -> None:
    """Also after a restart from a snapshot, when the last job was removed."""
    machine = with_ended(4)
    listing = m.ListJobs(call=1, limit=2)
    (page,) = d.answers(d.ask(machine, listing), d.CLIENT)
    for number in (1, 3):
        d.ask(machine, m.Remove(call=1, job=b.job_id(number)))
    machine = Machine(state=State.decode_snapshot(machine.state.encode_snapshot()))
    d.ask(machine, d.submit())
    assert [job.number for job in machine.state.order] == [0, 2, 4]
    listing = m.ListJobs(call=1, limit=2, after=page.next)
    (page,) = d.answers(d.ask(machine, listing), d.CLIENT)
    assert [job.id for job in page.jobs] == [b.job_id(2), b.ID]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (Keep(), []),
        (Keep(jobs=3), [0, 1]),
        (Keep(jobs=0), [0, 1, 2, 3, 4]),
        (Keep(bytes=250), [0, 1, 2]),
        (Keep(bytes=0), [0, 1, 2, 3]),
        (Keep(days=2.5 / 86400), [0, 1, 2]),
        (Keep(jobs=4, bytes=350), [0, 1]),
    ],
)
def test_the_oldest_go_first(keep: Keep, gone: list[int]) -> None:
    """Until the rest is within every limit; the latest stays whatever its bytes."""
    machine = with_ended(5)
    sizes = {job: 100 for job in machine.state.jobs}
    d.ask(machine, OnMeasured(sizes))
    found = surplus(machine.state, keep, d.later(5.0).wall)
    assert [int(job.id, 16) for job in found] == gone


def test_by_itself_the_master_spares_the_young_and_those_of_its_file() -> None:
    """Whoever waits fetches items first; a file's job would else run once more."""
    machine = with_ended(4)
    keep_only(machine, Keep(jobs=1), "job1")
    d.ask(machine, OnPrune(), now=d.later(3.0))
    assert left(machine) == [0, 1, 2, 3]
    d.ask(machine, OnPrune(), now=LATER)
    assert left(machine) == [1, 3]


def test_prune_tells_or_removes_and_needs_a_rule() -> None:
    """A dry run changes nothing; the master's own rules count where none is given."""
    machine = with_ended(3)
    assert "--keep-jobs" in refusal(machine, m.Prune(call=1))
    d.ask(machine, OnMeasured({b.job_id(0): 7}))
    asked = m.Prune(call=1, keep_jobs=1, dry_run=True)
    (told,) = d.answers(d.ask(machine, asked), d.CLIENT)
    assert told.jobs == (b.job_id(0), b.job_id(1))
    assert (told.bytes, told.left, left(machine)) == (7, 0, [0, 1, 2])
    keep_only(machine, Keep(jobs=2))
    (told,) = d.answers(d.ask(machine, m.Prune(call=1)), d.CLIENT)
    assert (told.jobs, left(machine)) == ((b.job_id(0),), [1, 2])


def test_a_schedule_goes_on_without_its_old_runs() -> None:
    """And goes itself once it is cancelled and its last run is gone."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=60.0))
    d.ask(machine, OnTick())
    run = f"{b.ID}-1"
    d.ask(machine, m.ChangeJob(call=1, verb="cancel", job=run))
    assert "active" in refusal(machine, m.Remove(call=1, job=b.ID))
    d.ask(machine, m.Remove(call=1, job=run))
    assert machine.state.schedules[b.ID].job is None
    second = Now(run=d.NOW.run + 61, wall=d.NOW.wall + 61)
    d.ask(machine, OnTick(), now=second)
    assert list(machine.state.jobs) == [f"{b.ID}-2"]
    d.ask(machine, m.ChangeJob(call=1, verb="cancel", job=f"{b.ID}-2"), now=second)
    d.ask(machine, m.ChangeJob(call=1, verb="cancel", job=b.ID), now=second)
    d.ask(machine, m.Prune(call=1, keep_jobs=0), now=LATER)
    assert (machine.state.jobs, machine.state.schedules) == ({}, {})


def test_a_client_that_has_gone_is_not_answered() -> None:
    """The job goes all the same; nothing is kept of who asked."""
    machine, start = d.running()
    at_end = r.JobEnded(job=b.ID, state="failed", reason="", traceback="", at=1.0)
    d.let_be(machine, at_end)
    d.ask(machine, m.Remove(call=7, job=b.ID))
    d.ask(machine, OnClosed(), d.CLIENT)
    decision = d.ask(machine, b.ended(start.process), d.WORKER)
    assert b.ID not in machine.state.jobs
    assert d.answers(decision, d.CLIENT) == []


def test_all_files_of_a_job_count() -> None:
    """Items with their tagged forms, bodies of requests, and the log once it ended."""
    machine, _ = d.running()
    state = machine.state
    job = state.jobs[b.ID]
    job.begin().items_bytes, job.begin().tagged_bytes = 1, 20
    state.crawls[b.ID].frontier.body_bytes = 300
    assert bytes_of(state, job) == 321
    d.ask(machine, OnMeasured({b.ID: 4000}))
    assert bytes_of(state, job) == 321
    state.ended[b.ID] = None
    d.ask(machine, OnMeasured({b.ID: 4000}))
    assert bytes_of(state, job) == 4321


def test_many_go_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work waits for one step only; an answer tells what is left for the next."""
    monkeypatch.setattr(retention, "REMOVED_MAX", 2)
    machine = with_ended(6)
    d.ask(machine, OnMeasured({b.job_id(number): 10**number for number in range(6)}))
    asked = m.Prune(call=1, keep_jobs=1)
    (told,) = d.answers(d.ask(machine, asked), d.CLIENT)
    assert (told.bytes, told.left, told.left_bytes) == (11, 3, 11_100)
    assert left(machine) == [2, 3, 4, 5]
    keep_only(machine, Keep(jobs=1))
    d.ask(machine, OnPrune(), now=LATER)
    assert left(machine) == [4, 5]
    (told,) = d.answers(d.ask(machine, asked), d.CLIENT)
    assert (len(told.jobs), told.left, left(machine)) == (1, 0, [5])


def test_a_zero_of_the_conf_file_is_no_limit() -> None:
    """Of a flag it is one: nothing stays."""
    config = MasterConfig(keep_jobs=0, keep_days=0.0, keep_bytes=5)
    assert Keep.of(config) == Keep(bytes=5)
    assert Keep.of(MasterConfig()).is_everything
    assert not Keep(jobs=0).is_everything
