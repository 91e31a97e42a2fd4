"""What files, snapshots and views make of the facts."""

import itertools
from typing import get_args

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.frontier import derive, views
from dscrapy.frontier import records as r
from dscrapy.frontier.decision import Decision, OnClosed, OnTick
from dscrapy.frontier.machine import Machine
from dscrapy.frontier.state import FAILED_SHOWN_MAX, State, count_of
from dscrapy.model import Submission, Versions
from tests.unit.frontier_values import (
    CLIENT,
    OTHER,
    WORKER,
    again,
    change,
    later,
    part,
    result,
    running,
    submit_other,
)
from tests.unit.test_machine import (
    ID,
    NOW,
    SPEC,
    apply,
    ask,
    commit,
    new_machine,
    register,
    submit,
)

# ---- files that are derived --------------------------------------------------------


def writes(machine: Machine, decision: Decision) -> list[derive.Write]:
    """Return the writes of a decision as the committer asks for them; apply it."""
    done: list[derive.Write] = []
    for record in decision.records:
        done += derive.writes_of(machine.state, record)
        machine.state.apply(record)
    return done


def test_parts_go_to_a_spool_and_are_moved_when_published() -> None:
    """Every write names its place; the job's files come into being at the end."""
    machine, start = running()

    def said(commit: m.Commit) -> list[derive.Write]:
        return writes(machine, machine.decide(WORKER, commit, NOW))

    items, tagged = derive.spool_names(start.process)
    line = b'{"a":1}\n'
    one = part(start, 0)
    forms = msgspec.structs.replace(part(start, 1), tagged=(msgspec.Raw(b'{"$i":1}'),))
    assert said(one) == [
        derive.Append(items, 0, line),
        derive.Append(tagged, 0, b"null\n"),
    ]
    assert said(forms) == [
        derive.Append(items, 8, line),
        derive.Append(tagged, 5, b'{"$i":1}\n'),
    ]
    assert said(part(start, 2, last=True)) == [
        derive.Move(derive.items_name(ID), 0, items, 16),
        derive.Append(derive.items_name(ID), 16, line),
        derive.Move(derive.tagged_name(ID), 0, tagged, 14),
        derive.Append(derive.tagged_name(ID), 14, b"null\n"),
    ]
    course = machine.state.jobs[ID].begin()
    assert (course.items, course.items_bytes, course.tagged_bytes) == (3, 24, 19)
    ended = m.Ended(job=ID, process=start.process, how="exited")
    assert writes(machine, machine.decide(WORKER, ended, NOW)) == [
        derive.Discard(items),
        derive.Discard(tagged),
    ]
    fresh = m.ChangeJob(call=1, verb="retry", job=ID, fresh=True)
    assert writes(machine, machine.decide(CLIENT, fresh, NOW)) == [
        derive.Append(derive.items_name(ID), 0, b""),
        derive.Append(derive.tagged_name(ID), 0, b""),
    ]


def test_a_run_without_parts_has_no_spool_and_yet_its_files() -> None:
    """Also when its process is one that the master has given up."""
    machine, first = running()
    apply(machine, machine.decide(0, OnTick(), later(100.0)))
    ask(machine, again(held=(first.process,)), 7)
    whole = machine.decide(7, commit(first), NOW)
    assert writes(machine, whole) == [
        derive.Append(derive.items_name(ID), 0, b""),
        derive.Append(derive.tagged_name(ID), 0, b""),
    ]
    machine, second = running()
    ended = m.Ended(job=ID, process=second.process, how="exited")
    assert writes(machine, machine.decide(WORKER, ended, NOW)) == []


@pytest.mark.parametrize(
    ("name", "process"),
    [("12.items.jsonl", 12), ("12", 12), ("x.jsonl", None), ("", None), ("-1.x", None)],
)
def test_a_spool_is_known_by_its_name(name: str, process: int | None) -> None:
    """What has another name is not the master's to remove."""
    assert derive.process_of_spool(name) == process


def test_spools_are_known_by_the_names_they_are_given() -> None:
    """Both names of a process lead back to it."""
    for path in derive.spool_names(31):
        folder, name = path.split("/")
        assert (folder, derive.process_of_spool(name)) == (derive.SPOOL_FOLDER, 31)
    assert derive.log_name(ID).startswith(f"{derive.JOBS_FOLDER}/{ID}/")


# ---- state and views ---------------------------------------------------------------


def test_an_item_that_is_no_json_is_its_string() -> None:
    """A line with NaN travels in a JSON string and lands as it was."""
    raws = (msgspec.Raw(b'"{\\"a\\": NaN}"'), msgspec.Raw(b'{"b": "\\u00e9"}'))
    assert r.lines_of(raws) == b'{"a": NaN}\n{"b": "\\u00e9"}\n'


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (b"7", 7),
        (b"1.9", 1),
        (b"-3", -3),
        (b'"many"', 0),
        (b"null", 0),
        (b"1e999", 0),
        (b"[[[1]]]", 0),
    ],
)
def test_a_stat_that_is_no_number_counts_nothing(value: bytes, count: int) -> None:
    """A project may write anything into its stats; the master goes on."""
    stats = {"sum": {"n": msgspec.Raw(value)}}
    assert count_of(stats, "n") == count
    assert count_of(stats, "other") == count_of({}, "n") == 0


def test_a_snapshot_is_all_that_a_restart_needs() -> None:
    """Jobs in every state, a schedule and its run, a process with a stored part."""
    machine, start = running()
    result(machine, part(start, 0))
    ids = [f"{number:016x}" for number in range(10, 14)]
    ask(machine, submit_other(*ids), CLIENT)
    change(machine, "pause", ids[0])
    change(machine, "cancel", ids[1])
    machine.state.apply(
        r.JobEnded(job=ids[2], state="failed", reason="x", traceback="y", at=1.0)
    )
    schedule = Submission(id=OTHER, spec=SPEC, every_s=60.0)
    ask(machine, m.Submit(call=1, part=0, last=True, submissions=(schedule,)), CLIENT)
    ask(machine, OnTick())
    state = machine.state
    read = State.decode_snapshot(state.encode_snapshot())
    for name in ("epoch", "next_process", "jobs", "processes", "schedules", "order"):
        assert getattr(read, name) == getattr(state, name)
    assert list(read.failed) == list(state.failed) == [ids[2]]
    assert +read.counts == +state.counts
    assert sorted(set(read.ready)) == sorted(
        entry for entry in set(state.ready) if state.jobs[entry[2]].is_assignable
    )


def test_a_replay_needs_no_workers() -> None:
    """The journal's facts alone bring jobs and processes to where they were."""
    machine, journal = new_machine(), []
    register(machine, WORKER)
    decisions = [machine.decide(CLIENT, submit(), NOW)]
    apply(machine, decisions[0])
    granted = machine.assign(NOW)
    assert granted is not None
    decisions.append(apply(machine, granted))
    (_, start) = granted.sends[0]
    assert isinstance(start, m.Start)
    ended = m.Ended(job=ID, process=start.process, how="exited")
    for said in (part(start, 0), ended):
        decisions.append(apply(machine, machine.decide(WORKER, said, NOW)))
    journal = list(itertools.chain(*(one.records for one in decisions)))
    replayed = State()
    for record in journal:
        if isinstance(record, get_args(r.Record)):
            replayed.apply(record)
    assert replayed.jobs == machine.state.jobs
    assert replayed.processes == machine.state.processes == {}
    assert replayed.counts == machine.state.counts


def test_status_names_the_latest_failures_and_no_more() -> None:
    """Five of them; a job that is run again is none of them."""
    machine = new_machine()
    ids = [f"{number:016x}" for number in range(FAILED_SHOWN_MAX + 2)]
    ask(machine, submit_other(*ids), CLIENT)
    for one in ids:
        machine.state.apply(
            r.JobEnded(job=one, state="failed", reason="x", traceback="", at=1.0)
        )
    change(machine, "retry", ids[-1])
    status = views.status(
        machine.state,
        machine.spans,
        NOW,
        call=1,
        host="h",
        port=1,
        uptime_s=0.0,
        versions=Versions(dscrapy="1", scrapy="2", python="3"),
        note="",
    )
    assert [one.id for one in status.failed] == ids[2:-1]
    assert status.jobs == {"failed": len(ids) - 1, "ready": 1}


def test_a_job_says_why_it_waits() -> None:
    """Nobody there to run it; nothing to say once somebody is, or when paused."""
    machine = new_machine()
    ask(machine, submit(), CLIENT)

    def reason() -> str:
        return views.view_job(machine.state, machine.state.jobs[ID]).reason

    assert reason() == "no worker is connected"
    change(machine, "pause")
    assert reason() == ""
    change(machine, "resume")
    register(machine, WORKER)
    assert reason() == ""
    ask(machine, OnClosed(), WORKER)
    assert reason() == "no worker is connected"


def test_nothing_is_shown_of_what_is_not_there() -> None:
    """The caller decides what to say of it."""
    assert views.show(State(), 1, ID) is None


def test_a_tick_passes_over_a_schedule_that_is_not_due() -> None:
    """Its run has ended; the next one comes at its time, not before."""
    machine = new_machine()
    ask(machine, submit(every_s=60.0), CLIENT)
    ask(machine, OnTick())
    (run,) = machine.state.jobs
    change(machine, "cancel", run)
    assert machine.next_deadline_s(later(59.0)) == pytest.approx(1.0)
    assert machine.decide(0, OnTick(), later(59.0)).records == []
    (added,) = machine.decide(0, OnTick(), later(60.0)).records
    assert isinstance(added, r.JobAdded)
    assert (added.id, added.schedule) == (f"{ID}-2", ID)


def test_a_fact_that_nobody_knows_is_our_own_bug() -> None:
    """A record of a newer master must stop this one, never be passed over."""
    with pytest.raises(AssertionError):
        State().apply(OnTick())  # type: ignore[arg-type]  # what is no record
    with pytest.raises(msgspec.DecodeError):
        r.decode_group(b'[{"type":"of_a_newer_master"}]')
