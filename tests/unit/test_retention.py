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
from dscrapy.model import JobSpec, Submission
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    NOW,
    WORKER,
    answers,
    ask,
    change,
    ended,
    later,
    let_be,
    new_machine,
    running,
    submit,
)

LATER = later(10 * SPARED_S)


def with_ended(count: int) -> Machine:
    """A machine with jobs that were cancelled, one second after another."""
    machine = new_machine()
    for number in range(count):
        at = later(float(number))
        named = JobSpec(project="p", spider="s", name=f"job{number}")
        one = Submission(id=f"{number:016x}", spec=named)
        ask(machine, m.Submit(call=1, part=0, last=True, submissions=(one,)), now=at)
        cancel = m.ChangeJob(call=2, verb="cancel", job=one.id)
        ask(machine, cancel, now=at)
    return machine


def left(machine: Machine) -> list[int]:
    """Numbers of the jobs that are there."""
    return [int(identity, 16) for identity in machine.state.jobs]


def refusal(machine: Machine, command: Any) -> str:
    """The text of the refusal of a call."""
    (answer,) = answers(ask(machine, command), CLIENT)
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
    remove = m.Remove(call=7, job=f"{0:016x}")
    record = r.JobRemoved(job=remove.job)
    assert projections.effects_of(machine.state, record).writes == [
        effects.Clear(f"jobs/{0:016x}")
    ]
    decision = ask(machine, remove)
    assert answers(decision, CLIENT) == [m.Accepted(call=7, count=1)]
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
    machine = new_machine()
    ask(machine, submit())
    if verb:
        change(machine, verb)
    assert "cancel" in refusal(machine, m.Remove(call=1, job=ID))
    assert ID in machine.state.jobs
    busy, _ = running()
    assert "is running" in refusal(busy, m.Remove(call=1, job=ID))
    assert ID in busy.state.jobs


def test_a_job_whose_process_is_on_its_way_out_goes_when_that_is_gone() -> None:
    """Who asked is answered then; a retry in between is refused."""
    machine, start = running()
    job = machine.state.jobs[ID]
    at_end = r.JobEnded(job=ID, state="failed", reason="", traceback="", at=1.0)
    let_be(machine, at_end)
    assert answers(ask(machine, m.Remove(call=7, job=ID)), CLIENT) == []
    assert job.has_processes
    assert ID in machine.state.jobs
    (refused,) = answers(change(machine, "retry"), CLIENT)
    assert refused.text == f"job {ID} is being removed"
    decision = ask(machine, ended(start.process), WORKER)
    assert m.Accepted(call=7, count=1) in answers(decision, CLIENT)
    assert ID not in machine.state.jobs
    assert machine.state.removing == {}


def test_numbers_are_not_used_twice_and_pages_go_on_behind_what_is_gone() -> None:
    """Also after a restart from a snapshot, when the last job was removed."""
    machine = with_ended(4)
    listing = m.ListJobs(call=1, limit=2)
    (page,) = answers(ask(machine, listing), CLIENT)
    for number in (1, 3):
        ask(machine, m.Remove(call=1, job=f"{number:016x}"))
    machine = Machine(state=State.decode_snapshot(machine.state.encode_snapshot()))
    ask(machine, submit())
    assert [job.number for job in machine.state.order] == [0, 2, 4]
    listing = m.ListJobs(call=1, limit=2, after=page.next)
    (page,) = answers(ask(machine, listing), CLIENT)
    assert [job.id for job in page.jobs] == [f"{2:016x}", ID]


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
    ask(machine, OnMeasured(sizes))
    found = surplus(machine.state, keep, later(5.0).wall)
    assert [int(job.id, 16) for job in found] == gone


def test_by_itself_the_master_spares_the_young_and_those_of_its_file() -> None:
    """Whoever waits fetches items first; a file's job would else run once more."""
    machine = with_ended(4)
    keep_only(machine, Keep(jobs=1), "job1")
    ask(machine, OnPrune(), now=later(3.0))
    assert left(machine) == [0, 1, 2, 3]
    ask(machine, OnPrune(), now=LATER)
    assert left(machine) == [1, 3]


def test_prune_tells_or_removes_and_needs_a_rule() -> None:
    """A dry run changes nothing; the master's own rules count where none is given."""
    machine = with_ended(3)
    assert "--keep-jobs" in refusal(machine, m.Prune(call=1))
    ask(machine, OnMeasured({f"{0:016x}": 7}))
    asked = m.Prune(call=1, keep_jobs=1, dry_run=True)
    (told,) = answers(ask(machine, asked), CLIENT)
    assert told.jobs == (f"{0:016x}", f"{1:016x}")
    assert (told.bytes, told.left, left(machine)) == (7, 0, [0, 1, 2])
    keep_only(machine, Keep(jobs=2))
    (told,) = answers(ask(machine, m.Prune(call=1)), CLIENT)
    assert (told.jobs, left(machine)) == ((f"{0:016x}",), [1, 2])


def test_a_schedule_goes_on_without_its_old_runs() -> None:
    """And goes itself once it is cancelled and its last run is gone."""
    machine = new_machine()
    ask(machine, submit(every_s=60.0))
    ask(machine, OnTick())
    run = f"{ID}-1"
    ask(machine, m.ChangeJob(call=1, verb="cancel", job=run))
    assert "active" in refusal(machine, m.Remove(call=1, job=ID))
    ask(machine, m.Remove(call=1, job=run))
    assert machine.state.schedules[ID].job is None
    second = Now(run=NOW.run + 61, wall=NOW.wall + 61)
    ask(machine, OnTick(), now=second)
    assert list(machine.state.jobs) == [f"{ID}-2"]
    ask(machine, m.ChangeJob(call=1, verb="cancel", job=f"{ID}-2"), now=second)
    ask(machine, m.ChangeJob(call=1, verb="cancel", job=ID), now=second)
    ask(machine, m.Prune(call=1, keep_jobs=0), now=LATER)
    assert (machine.state.jobs, machine.state.schedules) == ({}, {})


def test_a_client_that_has_gone_is_not_answered() -> None:
    """The job goes all the same; nothing is kept of who asked."""
    machine, start = running()
    at_end = r.JobEnded(job=ID, state="failed", reason="", traceback="", at=1.0)
    let_be(machine, at_end)
    ask(machine, m.Remove(call=7, job=ID))
    ask(machine, OnClosed(), CLIENT)
    decision = ask(machine, ended(start.process), WORKER)
    assert ID not in machine.state.jobs
    assert answers(decision, CLIENT) == []


def test_all_files_of_a_job_count() -> None:
    """Items with their tagged forms, bodies of requests, and the log once it ended."""
    machine, _ = running()
    state = machine.state
    job = state.jobs[ID]
    job.begin().items_bytes, job.begin().tagged_bytes = 1, 20
    state.crawls[ID].frontier.body_bytes = 300
    assert bytes_of(state, job) == 321
    ask(machine, OnMeasured({ID: 4000}))
    assert bytes_of(state, job) == 321
    state.ended[ID] = None
    ask(machine, OnMeasured({ID: 4000}))
    assert bytes_of(state, job) == 4321


def test_many_go_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work waits for one step only; an answer tells what is left for the next."""
    monkeypatch.setattr(retention, "REMOVED_MAX", 2)
    machine = with_ended(6)
    ask(machine, OnMeasured({f"{number:016x}": 10**number for number in range(6)}))
    asked = m.Prune(call=1, keep_jobs=1)
    (told,) = answers(ask(machine, asked), CLIENT)
    assert (told.bytes, told.left, told.left_bytes) == (11, 3, 11_100)
    assert left(machine) == [2, 3, 4, 5]
    keep_only(machine, Keep(jobs=1))
    ask(machine, OnPrune(), now=LATER)
    assert left(machine) == [4, 5]
    (told,) = answers(ask(machine, asked), CLIENT)
    assert (len(told.jobs), told.left, left(machine)) == (1, 0, [5])


def test_a_zero_of_the_conf_file_is_no_limit() -> None:
    """Of a flag it is one: nothing stays."""
    config = MasterConfig(keep_jobs=0, keep_days=0.0, keep_bytes=5)
    assert Keep.of(config) == Keep(bytes=5)
    assert Keep.of(MasterConfig()).is_everything
    assert not Keep(jobs=0).is_everything
