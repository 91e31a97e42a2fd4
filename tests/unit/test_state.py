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
from dscrapy.model import JobView, Outcome, Stats, Versions
from tests import builders as b
from tests.unit import machine_driver as d

# ---- files that are derived --------------------------------------------------------

LINE = b'{"a":1}\n'


def writes(machine: Machine, command: object, session: int) -> list[effects.Write]:
    """Return a command's writes as the committer asks for them; carry it out."""
    return d.ask(machine, command, session).effects.writes


def part(number: int, *, last: bool = False, **fields: object) -> m.Commit:
    """Return one of several parts of request 1."""
    return b.part(1, number, last=last, items=b.ITEM, **fields)


def test_parts_go_to_a_spool_and_are_moved_when_published() -> None:
    """Every write names its place; bodies go to their file with their part."""
    machine, start = d.crawling(1)
    body = b'{"n":1}\n'

    def said(commit: m.Commit) -> list[effects.Write]:
        return writes(machine, b.commits(start.process, commit), d.WORKER)

    items, tagged = projections.spool_names(start.process, "r1")
    assert said(part(0)) == [
        effects.Append(items, 0, LINE),
        effects.Append(tagged, 0, b"null\n"),
    ]
    forms = part(1, tagged=(msgspec.Raw(b'{"$i":1}'),), children=b.children(7))
    assert said(forms) == [
        effects.Append(items, 8, LINE),
        effects.Append(tagged, 5, b'{"$i":1}\n'),
        effects.Append(projections.requests_name(b.ID), len(body), b'{"n":7}\n'),
    ]
    assert said(part(2, last=True, children=b.children(8, 9))) == [
        effects.Move(projections.items_name(b.ID), 0, items, 16),
        effects.Discard(items),
        effects.Append(projections.items_name(b.ID), 16, LINE),
        effects.Move(projections.tagged_name(b.ID), 0, tagged, 14),
        effects.Discard(tagged),
        effects.Append(projections.tagged_name(b.ID), 14, b"null\n"),
        effects.Append(
            projections.requests_name(b.ID), 2 * len(body), b'{"n":8}\n{"n":9}\n'
        ),
    ]
    course = machine.state.jobs[b.ID].begin()
    assert (course.items, course.items_bytes, course.tagged_bytes) == (3, 24, 19)
    assert machine.state.crawls[b.ID].frontier.body_bytes == 4 * len(body)


def test_spools_of_units_and_of_requests_are_apart() -> None:
    """Two commits in parts at a time, each with spools of its own; what a process
    leaves unfinished goes with it."""
    machine, start = d.crawling(2)
    names = []
    for said in (
        part(0),
        b.page(2, last=False, items=b.ITEM),
        b.unit(3, last=False, items=b.ITEM),
    ):
        done = writes(machine, b.commits(start.process, said), d.WORKER)
        names += [one.name for one in done if isinstance(one, effects.Append)]
    assert len(set(names)) == len(names) == 6
    done = writes(machine, b.ended(start.process), d.WORKER)
    assert [one.name for one in done] == names
    assert all(isinstance(one, effects.Discard) for one in done)


def test_a_job_that_ran_has_its_files_though_they_are_empty() -> None:
    """``items`` of it are none, which is not the same as unknown; what is left of its
    requests goes when it has succeeded, and with a fresh run."""
    machine, start = d.crawling(1)
    d.ask(machine, m.Closing(job=b.ID, process=1, reason="enough"), d.WORKER)
    assert writes(machine, b.commits(1, b.unit(3, "closed")), d.WORKER) == [
        effects.Append(projections.items_name(b.ID), 0, b""),
        effects.Append(projections.tagged_name(b.ID), 0, b""),
        effects.Discard(projections.requests_name(b.ID)),
    ]
    fresh = m.ChangeJob(call=1, verb="retry", job=b.ID, fresh=True)
    assert writes(machine, fresh, d.CLIENT) == [
        effects.Append(name(b.ID), 0, b"")
        for name in (
            projections.items_name,
            projections.tagged_name,
            projections.requests_name,
        )
    ]
    assert start.process == 1


def test_a_failed_job_keeps_its_requests() -> None:
    """A retry goes on with them."""
    machine, start = d.crawling(1, msgspec.structs.replace(d.SPEC, retries=0))
    end = Outcome(failure="spider_error", text="why")
    done = writes(
        machine, b.commits(start.process, b.unit(3, "closed", end=end)), d.WORKER
    )
    assert effects.Discard(projections.requests_name(b.ID)) not in done
    assert machine.state.jobs[b.ID].status == "failed"


def test_writes_that_continue_each_other_are_one() -> None:
    """Same bytes at the same places; a move sees what its spool held then."""
    file, spool = "file", "spool"
    move = effects.Move(file, 5, spool, 2)
    given: list[effects.Write] = [
        effects.Append(file, 0, b"xx"),
        effects.Append(spool, 0, b"y"),
        effects.Append(file, 2, b"x"),
        effects.Append(spool, 1, b"z"),
        effects.Append(file, 3, b""),
        effects.Append(file, 5, b"gap"),
        move,
        effects.Append(file, 7, b"w"),
        effects.Append(spool, 2, b"v"),
        effects.Discard(spool),
        effects.Append(spool, 0, b"u"),
    ]
    assert effects.coalesced(given) == [
        effects.Append(file, 0, b"xxx"),
        effects.Append(spool, 0, b"yz"),
        effects.Append(file, 5, b"gap"),
        move,
        effects.Append(file, 7, b"w"),
        effects.Append(spool, 2, b"v"),
        effects.Discard(spool),
        effects.Append(spool, 0, b"u"),
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
    assert projections.log_name(b.ID).startswith(f"{projections.JOBS_FOLDER}/{b.ID}/")


# ---- state and views ---------------------------------------------------------------


def test_an_item_that_is_no_json_is_its_string() -> None:
    """A line with NaN travels in a JSON string and lands as it was."""
    raws = (msgspec.Raw(b'"{\\"a\\": NaN}"'), msgspec.Raw(b'{"b": "\\u00e9"}'))
    assert lines_of(raws) == b'{"a": NaN}\n{"b": "\\u00e9"}\n'


def eventful() -> tuple[Machine, list[r.Record]]:
    """Return a machine that has been through much, and what was journalled of it."""
    machine, journal = d.new_machine(), list[r.Record]()

    def say(command: object, session: int = d.CLIENT, seconds: float = 0.0) -> Decision:
        decision = d.ask(machine, command, session, d.later(seconds))
        journal.extend(one for one in decision.records if isinstance(one, r.Record))
        return decision

    say(d.submit(spec=msgspec.structs.replace(d.SPEC, parallelism=2)))
    first = d.started(say(b.registration(slots=2), d.WORKER))
    say(b.opened(first.process, window=4, has_feeds=True), d.WORKER)
    given = [
        b.unit(
            number,
            "start",
            children=b.children(number, 100 + number, host=f"h{number}"),
        )
        for number in range(1, 6)
    ]
    second = d.started(say(b.commits(1, b.unit(6, "opened"), *given), d.WORKER))
    say(b.opened(second.process, window=4), d.WORKER)
    say(m.Started(job=b.ID, process=first.process, digest="d"), d.WORKER)
    say(
        b.commits(1, part(0, children=b.children(50)), b.page(2, items=b.ITEM)),
        d.WORKER,
    )
    say(b.commits(2, b.unit(2, last=False, items=b.ITEM), b.unit(3)), d.WORKER)
    say(b.commits(1, part(1, last=True, children=b.children(50, 51))), d.WORKER)
    stats = {"sum": {"n": msgspec.Raw(b"2")}, "last": {"t": msgspec.Raw(b'"x"')}}
    say(
        b.commits(2, b.page(3, stats=stats, seen=b.children(77).fingerprints)), d.WORKER
    )
    say(m.Release(job=b.ID, process=1, requests=(4,)), d.WORKER)
    say(b.ended(second.process, counted=True), d.WORKER)
    ids = [b.job_id(number) for number in range(10, 14)]
    say(b.submit(*ids))
    for verb, job in (("pause", ids[0]), ("cancel", ids[1])):
        say(m.ChangeJob(call=2, verb=verb, job=job))  # type: ignore[arg-type]  # from a table
    say(b.submit(b.OTHER, every_s=60.0, retries=1))
    say(OnTick(), 0)
    failed = r.JobEnded(job=ids[2], state="failed", reason="x", traceback="y", at=1.0)
    journal.append(failed)
    d.carry_out(machine, d.decision_of(machine, failed))
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
    machine, start = d.crawling(2)
    d.commit(machine, start.process, b.page(1, stats=errors))
    assert view(machine).errors == 3
    old = _older(machine)
    assert view(old).errors == 3
    old.state.crawls[b.ID].set_aside(
        r.RequestPoisoned(job=b.ID, request=2, url="u", text="t"),
        old.state.jobs[b.ID].begin(),
    )
    assert view(old).errors == 4
    d.commit(machine, start.process, b.page(2), b.unit(3, "started"))
    d.commit(machine, start.process, b.unit(4, "closed", stats=errors))
    d.ask(machine, b.ended(start.process), d.WORKER)
    d.carry_out(machine, d.decision_of(machine, _succeeded()))
    assert b.ID not in machine.state.crawls
    assert (view(machine).errors, view(_older(machine)).errors) == (6, 6)
    again = r.JobAgain(job=b.ID, fresh=True, automatic=False, reason="", at=1.0)
    d.carry_out(machine, d.decision_of(machine, again))
    assert view(machine).errors == 0


def view(machine: Machine) -> JobView:
    """Return what people see of the job."""
    return views.view_job(machine.state, machine.state.jobs[b.ID])


def _older(machine: Machine) -> Machine:
    """Return the next master on a snapshot of one that did not count errors."""
    snapshot = msgspec.json.decode(machine.state.encode_snapshot())
    for job in snapshot["jobs"]:
        del job["course"]["errors"]
    return Machine(state=State.decode_snapshot(msgspec.json.encode(snapshot)))


def _succeeded() -> r.JobEnded:
    return r.JobEnded(
        job=b.ID, state="succeeded", reason="finished", traceback="", at=1.0
    )


def test_stored_parts_are_in_a_snapshot() -> None:
    """The rest of them comes after the restart: a unit's requests with the last, a
    page's are there already."""
    machine, start = d.crawling(1)
    early = part(0, children=b.children(7))
    late = b.unit(3, last=False, items=b.ITEM, children=b.children(8))
    d.commit(machine, start.process, early, late)
    other = d.restarted(machine)
    entry = b.held(start.process, 1, leads=True)
    decision = d.ask(other, b.registration(held=(entry,)), d.WORKER)
    assert d.leases(decision) == {start.process: [2]}
    end = b.unit(3, part=1, items=b.ITEM)
    decision = d.commit(other, start.process, part(1, last=True), end)
    assert d.results(decision) == ["published", "published"]
    assert d.leases(decision) == {start.process: [3]}
    assert other.state.jobs[b.ID].begin().items == 4


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
    machine = d.new_machine()
    ids = [b.job_id(number) for number in range(FAILED_SHOWN_MAX + 2)]
    d.ask(machine, b.submit(*ids), d.CLIENT)
    for one in ids:
        d.let_be(
            machine,
            r.JobEnded(job=one, state="failed", reason="x", traceback="", at=1.0),
        )
    d.change(machine, "retry", ids[-1])
    status = views.status(
        machine.state,
        machine.policy.spans,
        d.NOW,
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
    machine = d.new_machine()
    d.ask(machine, d.submit(), d.CLIENT)

    def reason() -> str:
        return views.view_job(machine.state, machine.state.jobs[b.ID]).reason

    assert reason() == "no worker is connected"
    d.change(machine, "pause")
    assert reason() == "since 1970-01-12 13:46:40 UTC"
    d.change(machine, "resume")
    drains = msgspec.structs.replace(b.registration(), draining=True)
    d.ask(machine, drains, d.WORKER)
    assert reason() == "all workers that are connected are draining"
    d.ask(machine, OnClosed(), d.WORKER)
    assert reason() == "no worker is connected"


def test_nothing_is_shown_of_what_is_not_there() -> None:
    """The caller decides what to say of it."""
    assert views.show(State(), 1, b.ID) is None


def test_a_tick_passes_over_a_schedule_that_is_not_due() -> None:
    """Its run has ended; the next one comes at its time, not before."""
    machine = d.new_machine()
    d.ask(machine, d.submit(every_s=60.0), d.CLIENT)
    d.ask(machine, OnTick())
    (run,) = machine.state.jobs
    d.change(machine, "cancel", run)
    assert machine.next_deadline_s(d.later(59.0)) == pytest.approx(1.0)
    assert machine.decide(0, OnTick(), d.later(59.0)).records == []
    (added,) = machine.decide(0, OnTick(), d.later(60.0)).records
    assert isinstance(added, r.JobAdded)
    assert (added.id, added.schedule) == (f"{b.ID}-2", b.ID)


def test_a_fact_that_nobody_knows_is_our_own_bug() -> None:
    """A record of a newer master must stop this one, never be passed over."""
    with pytest.raises((AssertionError, AttributeError)):
        apply(State(), OnTick())  # type: ignore[arg-type]  # what is no record
    with pytest.raises(msgspec.DecodeError):
        r.decode_group(b'[{"type":"of_a_newer_master"}]')


def test_a_snapshot_that_contradicts_itself_is_no_state() -> None:
    """A process of a job that is not there, bytes that are no text."""
    machine, _ = d.crawling(1)
    payload = machine.state.encode_snapshot()
    for damaged in (payload.replace(b'"id":"0', b'"id":"1', 1), b'{"epoch":"\xff"}'):
        with pytest.raises(msgspec.DecodeError):
            State.decode_snapshot(damaged)
