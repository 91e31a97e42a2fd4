"""Processes that write feeds take no slot: they go to whoever has room for them."""

import msgspec

from dscrapy import messages as m
from dscrapy.control import views
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import EXPORTS_MIN, Worker
from tests import builders as b
from tests.unit import machine_driver as d


def exporting(slots: int = 1) -> tuple[Machine, m.Start]:
    """Return a machine whose job is crawled, and the process that writes its feeds."""
    machine, start = d.running(slots=slots, has_feeds=True)
    return machine, d.started(d.succeed(machine, start))


def busy(machine: Machine) -> int:
    """Return how many slots of the worker people see taken."""
    return views.view_worker(
        machine.state.workers["w"], machine.policy.spans, d.NOW
    ).busy


def test_feeds_take_no_slot() -> None:
    """The slot goes to the next job while the feeds of the last one are written."""
    machine, export = exporting()
    job = machine.state.jobs[b.ID]
    assert (job.processes, job.exports, job.status) == (0, 1, "running")
    assert busy(machine) == 0
    assert d.started(d.ask(machine, b.submit(b.OTHER))).job == b.OTHER
    assert busy(machine) == 1
    d.commit(machine, export.process, b.unit(1, "closed", end=b.WRITTEN))
    assert job.status == "succeeded"
    d.ask(machine, b.ended(export.process), d.WORKER)
    assert (job.exports, busy(machine)) == (0, 1)


def test_feeds_are_written_though_no_slot_is_free() -> None:
    """A job of higher priority has taken the slot that the crawl gave back."""
    machine, start = d.running(has_feeds=True)
    d.ask(machine, b.submit(b.OTHER, priority=9))
    d.commit(machine, start.process, b.unit(1, "started"))
    closing = m.Closing(job=b.ID, process=start.process, reason="finished")
    d.ask(machine, closing, d.WORKER)
    # Closed is enough: a process that is on its way out writes nothing more.
    decision = d.commit(machine, start.process, b.unit(2, "closed"))
    assert d.started(decision).role == "export"
    assert d.told(decision, m.Done, start.process)[0].stats is not None
    decision = d.ask(machine, b.ended(start.process), d.WORKER)
    assert (d.started(decision).job, d.started(decision).role) == (b.OTHER, "crawl")


def test_a_worker_has_no_more_exports_than_it_may() -> None:
    """What does not fit waits for an export to end, or for another worker."""
    machine, _ = d.running(slots=EXPORTS_MIN + 2)
    worker = machine.state.workers["w"]
    assert worker.free_exports(beside=False) == EXPORTS_MIN + 2
    worker.slots = 1
    for number in range(100, 100 + EXPORTS_MIN):
        assert worker.free_exports(beside=False) > 0
        worker.take_in(number, "export")
    assert worker.free_exports(beside=False) == 0
    assert worker.busy == 1


def test_one_place_is_kept_for_crawls_that_are_over() -> None:
    """Exports of crawls that go on may live as long as these do."""
    worker = Worker(name="w", since=0.0, session=1, instance="i", slots=3)
    for number in (1, 2):
        assert worker.free_exports(beside=True)
        worker.take_in(number, "export")
    assert worker.free_exports(beside=True) == 0
    assert worker.free_exports(beside=False) == 1
    worker.forget(1)
    assert worker.free_exports(beside=True) == 1
    worker.draining = True
    assert worker.free_exports(beside=False) == 0


def test_feeds_wait_for_a_worker_that_may_write_them() -> None:
    """The one where the job ran drains; the next one that comes gets the feeds."""
    machine, start = d.running(has_feeds=True)
    machine.state.workers["w"].draining = True
    decision = d.succeed(machine, start)
    assert d.told(decision, m.Start) == []
    assert list(machine.state.exports_due) == [b.ID]
    assert machine.state.jobs[b.ID].status == "ready"
    start = d.started(d.register(machine, 6, "v"))
    assert (start.role, start.job) == ("export", b.ID)
    assert not machine.state.exports_due


def test_a_job_that_is_paused_starts_no_export() -> None:
    """And does when it goes on."""
    machine, export = exporting()
    d.change(machine, "pause")
    assert d.told(d.ask(machine, b.ended(export.process), d.WORKER), m.Start) == []
    assert d.started(d.change(machine, "resume")).role == "export"


def test_a_job_whose_feeds_are_written_can_be_cancelled() -> None:
    """It ends with its export, though it has no crawl process any more."""
    machine, export = exporting()
    decision = d.change(machine, "cancel")
    assert d.told(decision, m.Stop, export.process)
    job = machine.state.jobs[b.ID]
    d.ask(machine, b.ended(export.process), d.WORKER)
    assert job.status == "cancelled"


def test_exports_are_counted_apart_after_a_restart() -> None:
    """Also from a snapshot of before, where all processes were counted as one."""
    machine, export = exporting()
    other = d.restarted(machine)
    assert other.state.jobs[b.ID].exports == 1
    assert other.state.workers["w"].exports == {export.process}
    snapshot = msgspec.json.decode(machine.state.encode_snapshot())
    (job,) = snapshot["jobs"]
    del job["exports"]
    job["processes"] = 1
    old = State.decode_snapshot(msgspec.json.encode(snapshot))
    assert (old.jobs[b.ID].processes, old.jobs[b.ID].exports) == (0, 1)
    assert old.encode_snapshot() == machine.state.encode_snapshot()


def test_feeds_that_are_due_are_due_after_a_restart() -> None:
    """Nobody has been given them yet when the master dies."""
    machine, start = d.running(has_feeds=True)
    machine.state.workers["w"].draining = True
    d.succeed(machine, start)
    other = d.restarted(machine)
    assert d.started(d.register(other, 6, "v")).role == "export"
