"""What files, snapshots and views make of the facts."""

from typing import get_args

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import effects, projections, views
from dscrapy.control import events as r
from dscrapy.control.apply import apply
from dscrapy.control.decision import Decision, OnClosed, OnTick
from dscrapy.control.item_lines import lines_of
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import FAILED_SHOWN_MAX, State
from dscrapy.model import JobView, Outcome, Stats, Submission, Versions
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    ITEM,
    NOW,
    OTHER,
    SPEC,
    WORKER,
    ask,
    carry_out,
    change,
    children,
    commit,
    commits,
    crawling,
    decision_of,
    ended,
    later,
    leases,
    let_be,
    new_machine,
    opened,
    page,
    registration,
    restarted,
    results,
    started,
    submit,
    submit_other,
    unit,
)

# ---- files that are derived --------------------------------------------------------

LINE = b'{"a":1}\n'


def writes(machine: Machine, command: object, session: int) -> list[effects.Write]:
    """Return a command's writes as the committer asks for them; carry it out."""
    return ask(machine, command, session).effects.writes


def part(number: int, *, last: bool = False, **fields: object) -> m.Commit:
    """Return one of several parts of request 1."""
    return msgspec.structs.replace(
        page(1, part=number, last=last, items=ITEM), **fields
    )


def test_parts_go_to_a_spool_and_are_moved_when_published() -> None:
    """Every write names its place; bodies go to their file with their part."""
    machine, start = crawling(1)
    body = b'{"n":1}\n'

    def said(commit: m.Commit) -> list[effects.Write]:
        return writes(machine, commits(start.process, commit), WORKER)

    items, tagged = projections.spool_names(start.process, "r1")
    assert said(part(0)) == [
        effects.Append(items, 0, LINE),
        effects.Append(tagged, 0, b"null\n"),
    ]
    forms = part(1, tagged=(msgspec.Raw(b'{"$i":1}'),), children=children(7))
    assert said(forms) == [
        effects.Append(items, 8, LINE),
        effects.Append(tagged, 5, b'{"$i":1}\n'),
        effects.Append(projections.requests_name(ID), len(body), b'{"n":7}\n'),
    ]
    assert said(part(2, last=True, children=children(8, 9))) == [
        effects.Move(projections.items_name(ID), 0, items, 16),
        effects.Discard(items),
        effects.Append(projections.items_name(ID), 16, LINE),
        effects.Move(projections.tagged_name(ID), 0, tagged, 14),
        effects.Discard(tagged),
        effects.Append(projections.tagged_name(ID), 14, b"null\n"),
        effects.Append(
            projections.requests_name(ID), 2 * len(body), b'{"n":8}\n{"n":9}\n'
        ),
    ]
    course = machine.state.jobs[ID].begin()
    assert (course.items, course.items_bytes, course.tagged_bytes) == (3, 24, 19)
    assert machine.state.crawls[ID].frontier.body_bytes == 4 * len(body)


def test_spools_of_units_and_of_requests_are_apart() -> None:
    """Two commits in parts at a time, each with spools of its own; what a process
    leaves unfinished goes with it."""
    machine, start = crawling(2)
    names = []
    for said in (
        part(0),
        page(2, last=False, items=ITEM),
        unit(3, last=False, items=ITEM),
    ):
        done = writes(machine, commits(start.process, said), WORKER)
        names += [one.name for one in done if isinstance(one, effects.Append)]
    assert len(set(names)) == len(names) == 6
    done = writes(machine, ended(start.process), WORKER)
    assert [one.name for one in done] == names
    assert all(isinstance(one, effects.Discard) for one in done)


def test_a_job_that_ran_has_its_files_though_they_are_empty() -> None:
    """``items`` of it are none, which is not the same as unknown; what is left of its
    requests goes when it has succeeded, and with a fresh run."""
    machine, start = crawling(1)
    ask(machine, m.Closing(job=ID, process=1, reason="enough"), WORKER)
    assert writes(machine, commits(1, unit(3, "closed")), WORKER) == [
        effects.Append(projections.items_name(ID), 0, b""),
        effects.Append(projections.tagged_name(ID), 0, b""),
        effects.Discard(projections.requests_name(ID)),
    ]
    fresh = m.ChangeJob(call=1, verb="retry", job=ID, fresh=True)
    assert writes(machine, fresh, CLIENT) == [
        effects.Append(name(ID), 0, b"")
        for name in (
            projections.items_name,
            projections.tagged_name,
            projections.requests_name,
        )
    ]
    assert start.process == 1


def test_a_failed_job_keeps_its_requests() -> None:
    """A retry goes on with them."""
    machine, start = crawling(1, msgspec.structs.replace(SPEC, retries=0))
    end = Outcome(failure="spider_error", text="why")
    done = writes(machine, commits(start.process, unit(3, "closed", end=end)), WORKER)
    assert effects.Discard(projections.requests_name(ID)) not in done
    assert machine.state.jobs[ID].status == "failed"


def test_writes_that_continue_each_other_are_one() -> None:
    """Same bytes at the same places; a move sees what its spool held then."""
    a, b, move = "a", "b", effects.Move("a", 5, "b", 2)
    given: list[effects.Write] = [
        effects.Append(a, 0, b"xx"),
        effects.Append(b, 0, b"y"),
        effects.Append(a, 2, b"x"),
        effects.Append(b, 1, b"z"),
        effects.Append(a, 3, b""),
        effects.Append(a, 5, b"gap"),
        move,
        effects.Append(a, 7, b"w"),
        effects.Append(b, 2, b"v"),
        effects.Discard(b),
        effects.Append(b, 0, b"u"),
    ]
    assert effects.coalesced(given) == [
        effects.Append(a, 0, b"xxx"),
        effects.Append(b, 0, b"yz"),
        effects.Append(a, 5, b"gap"),
        move,
        effects.Append(a, 7, b"w"),
        effects.Append(b, 2, b"v"),
        effects.Discard(b),
        effects.Append(b, 0, b"u"),
    ]


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("12-r1.items.jsonl", 12),
        ("12", 12),
        ("x.jsonl", None),
        ("", None),
        ("-1.x", None),
    ],
)
def test_a_spool_is_known_by_its_name(name: str, process: int | None) -> None:
    """What has another name is not the master's to remove."""
    assert projections.process_of_spool(name) == process


@pytest.mark.parametrize("key", ["r1", "u7"])
def test_spools_are_known_by_the_names_they_are_given(key: str) -> None:
    """Both names of a process lead back to it."""
    for path in projections.spool_names(31, key):
        folder, name = path.split("/")
        assert (folder, projections.process_of_spool(name)) == (
            projections.SPOOL_FOLDER,
            31,
        )
    assert projections.log_name(ID).startswith(f"{projections.JOBS_FOLDER}/{ID}/")


# ---- state and views ---------------------------------------------------------------


def test_an_item_that_is_no_json_is_its_string() -> None:
    """A line with NaN travels in a JSON string and lands as it was."""
    raws = (msgspec.Raw(b'"{\\"a\\": NaN}"'), msgspec.Raw(b'{"b": "\\u00e9"}'))
    assert lines_of(raws) == b'{"a": NaN}\n{"b": "\\u00e9"}\n'


def eventful() -> tuple[Machine, list[r.Record]]:
    """Return a machine that has been through much, and what was journalled of it."""
    machine, journal = new_machine(), list[r.Record]()

    def say(command: object, session: int = CLIENT, seconds: float = 0.0) -> Decision:
        decision = ask(machine, command, session, later(seconds))
        journal.extend(one for one in decision.records if isinstance(one, r.Record))
        return decision

    say(submit(spec=msgspec.structs.replace(SPEC, parallelism=2)))
    first = started(say(registration(slots=2), WORKER))
    say(opened(first.process, window=4, has_feeds=True), WORKER)
    given = [
        unit(
            number, "start", children=children(number, 100 + number, host=f"h{number}")
        )
        for number in range(1, 6)
    ]
    second = started(say(commits(1, unit(6, "opened"), *given), WORKER))
    say(opened(second.process, window=4), WORKER)
    say(m.Started(job=ID, process=first.process, digest="d"), WORKER)
    say(commits(1, part(0, children=children(50)), page(2, items=ITEM)), WORKER)
    say(commits(2, unit(2, last=False, items=ITEM), unit(3)), WORKER)
    say(commits(1, part(1, last=True, children=children(50, 51))), WORKER)
    stats = {"sum": {"n": msgspec.Raw(b"2")}, "last": {"t": msgspec.Raw(b'"x"')}}
    say(commits(2, page(3, stats=stats, seen=children(77).fingerprints)), WORKER)
    say(m.Release(job=ID, process=1, requests=(4,)), WORKER)
    say(ended(second.process, counted=True), WORKER)
    ids = [f"{number:016x}" for number in range(10, 14)]
    say(submit_other(*ids))
    for verb, job in (("pause", ids[0]), ("cancel", ids[1])):
        say(m.ChangeJob(call=2, verb=verb, job=job))  # type: ignore[arg-type]  # from a table
    schedule = Submission(id=OTHER, spec=SPEC, every_s=60.0)
    say(m.Submit(call=1, part=0, last=True, submissions=(schedule,)))
    say(OnTick(), 0)
    failed = r.JobEnded(job=ids[2], state="failed", reason="x", traceback="y", at=1.0)
    journal.append(failed)
    carry_out(machine, decision_of(machine, failed))
    return machine, journal


def assert_same(read: State, state: State) -> None:
    """Check that all that survives a restart is equal, and so are the indexes."""
    for name in ("next_process", "jobs", "schedules", "order"):
        assert getattr(read, name) == getattr(state, name)
    assert {number: one.lasting() for number, one in read.processes.items()} == {
        number: one.lasting() for number, one in state.processes.items()
    }
    assert list(read.failed) == list(state.failed)
    assert +read.counts == +state.counts
    assert {job: set(numbers) for job, numbers in read.by_job.items()} == state.by_job
    assert list(read.wide) == list(state.wide)
    assert {job: one.snapshot() for job, one in read.crawls.items()} == {
        job: one.snapshot() for job, one in state.crawls.items()
    }
    assert list(read.ready) == list(state.ready)


def test_a_snapshot_is_all_that_a_restart_needs() -> None:
    """Jobs in every state, a schedule and its run, parts, leases, a frontier."""
    machine, _ = eventful()
    state = machine.state
    read = State.decode_snapshot(state.encode_snapshot())
    assert_same(read, state)
    assert read.epoch == state.epoch
    assert read.encode_snapshot() == state.encode_snapshot()


def test_errors_are_counted_in_snapshots_of_older_masters() -> None:
    """Of a job that is under way and of one whose crawl is gone; what is new counts
    on."""
    errors: Stats = {"sum": {"log_count/ERROR": msgspec.Raw(b"3")}}
    machine, start = crawling(2)
    commit(machine, start.process, page(1, stats=errors))
    assert view(machine).errors == 3
    old = _older(machine)
    assert view(old).errors == 3
    old.state.crawls[ID].set_aside(
        r.RequestPoisoned(job=ID, request=2, url="u", text="t"),
        old.state.jobs[ID].begin(),
    )
    assert view(old).errors == 4
    commit(machine, start.process, page(2), unit(3, "started"))
    commit(machine, start.process, unit(4, "closed", stats=errors))
    ask(machine, ended(start.process), WORKER)
    carry_out(machine, decision_of(machine, _succeeded()))
    assert ID not in machine.state.crawls
    assert (view(machine).errors, view(_older(machine)).errors) == (6, 6)
    again = r.JobAgain(job=ID, fresh=True, automatic=False, reason="", at=1.0)
    carry_out(machine, decision_of(machine, again))
    assert view(machine).errors == 0


def view(machine: Machine) -> JobView:
    """Return what people see of the job."""
    return views.view_job(machine.state, machine.state.jobs[ID])


def _older(machine: Machine) -> Machine:
    """Return the next master on a snapshot of one that did not count errors."""
    snapshot = msgspec.json.decode(machine.state.encode_snapshot())
    for job in snapshot["jobs"]:
        del job["course"]["errors"]
    return Machine(state=State.decode_snapshot(msgspec.json.encode(snapshot)))


def _succeeded() -> r.JobEnded:
    return r.JobEnded(
        job=ID, state="succeeded", reason="finished", traceback="", at=1.0
    )


def test_stored_parts_are_in_a_snapshot() -> None:
    """The rest of them comes after the restart."""
    machine, start = crawling(1)
    commit(machine, start.process, part(0, children=children(7)))
    other = restarted(machine)
    entry = m.Held(
        job=ID,
        process=start.process,
        requests=(1,),
        opened=opened(start.process),
        leads=True,
    )
    ask(other, registration(held=(entry,)), WORKER)
    decision = commit(other, start.process, part(1, last=True))
    assert results(decision) == ["published"]
    assert leases(decision) == {start.process: [2]}
    assert other.state.jobs[ID].begin().items == 2


def test_a_replay_needs_no_workers() -> None:
    """The journal's facts alone bring everything to where it was: leases, who leads
    and who is there are no part of it."""
    machine, journal = eventful()
    replayed = State()
    for payload in (r.encode_group([one]) for one in journal):
        for record in r.decode_group(payload):
            apply(replayed, record)
    assert_same(replayed, machine.state)
    assert {type(one) for one in journal} <= set(get_args(r.Record))


def test_status_names_the_latest_failures_and_no_more() -> None:
    """Five of them; a job that is run again is none of them."""
    machine = new_machine()
    ids = [f"{number:016x}" for number in range(FAILED_SHOWN_MAX + 2)]
    ask(machine, submit_other(*ids), CLIENT)
    for one in ids:
        let_be(
            machine,
            r.JobEnded(job=one, state="failed", reason="x", traceback="", at=1.0),
        )
    change(machine, "retry", ids[-1])
    status = views.status(
        machine.state,
        machine.policy.spans,
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
    """Nobody there to run it, nobody who takes anything new, or somebody paused it."""
    machine = new_machine()
    ask(machine, submit(), CLIENT)

    def reason() -> str:
        return views.view_job(machine.state, machine.state.jobs[ID]).reason

    assert reason() == "no worker is connected"
    change(machine, "pause")
    assert reason() == "since 1970-01-12 13:46:40 UTC"
    change(machine, "resume")
    drains = msgspec.structs.replace(registration(), draining=True)
    ask(machine, drains, WORKER)
    assert reason() == "all workers that are connected are draining"
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
    with pytest.raises((AssertionError, AttributeError)):
        apply(State(), OnTick())  # type: ignore[arg-type]  # what is no record
    with pytest.raises(msgspec.DecodeError):
        r.decode_group(b'[{"type":"of_a_newer_master"}]')


def test_a_snapshot_that_contradicts_itself_is_no_state() -> None:
    """A process of a job that is not there, bytes that are no text."""
    machine, _ = crawling(1)
    payload = machine.state.encode_snapshot()
    for damaged in (payload.replace(b'"id":"0', b'"id":"1', 1), b'{"epoch":"\xff"}'):
        with pytest.raises(msgspec.DecodeError):
            State.decode_snapshot(damaged)
