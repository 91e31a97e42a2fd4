"""The feeds of a job: written by an export process once the crawl is done."""

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import OnDamage
from dscrapy.control.machine import Machine
from dscrapy.model import Outcome
from tests import builders as b
from tests.unit import machine_driver as d


def exporting() -> tuple[Machine, m.Start]:
    """Return a machine whose job is crawled, and the process that writes its feeds."""
    machine, start = d.running(has_feeds=True)
    decision = d.succeed(machine, start)
    assert machine.state.jobs[b.ID].begin().role == "export"
    export = d.started(decision)
    assert export.role == "export"
    return machine, export


def test_feeds_are_written_after_the_crawl() -> None:
    """The crawl's last process gets the stats, the job ends with its feeds."""
    machine, export = exporting()
    feeds = m.Feeds(job=b.ID, process=export.process, lengths={"a": 7})
    decision = d.ask(machine, feeds, d.WORKER)
    seen = m.FeedsSeen(job=b.ID, process=export.process, lengths={"a": 7})
    assert d.answers(decision, d.WORKER) == [seen]
    assert machine.state.jobs[b.ID].status == "running"
    decision = d.commit(machine, export.process, b.unit(1, "closed", end=b.WRITTEN))
    assert d.told(decision, m.Done) == [
        m.Done(job=b.ID, process=export.process, stats=None)
    ]
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("succeeded", "finished")
    d.ask(machine, b.ended(export.process), d.WORKER)
    assert machine.state.crawls == {}


def test_feeds_of_damaged_items_fail() -> None:
    """Written without what is missing they would look whole."""
    spec = msgspec.structs.replace(d.SPEC, retries=0)
    machine, start = d.running(spec=spec, has_feeds=True)
    export = d.started(d.succeed(machine, start))
    text = "items.jsonl lacks 8 bytes"
    damage = OnDamage(job=b.ID, process=export.process, text=text)
    assert d.told(d.ask(machine, damage, 0), m.Stop)
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("failed", text)
    # What it says of its end changes nothing; nor does the same damage once more.
    end = Outcome(finish_reason="feeds_error")
    said = d.commit(machine, export.process, b.unit(1, "closed", end=end))
    assert d.told(said, m.CommitsSeen)[0].seen[0].result == "settled"
    assert d.ask(machine, b.ended(export.process), d.WORKER).records == []
    assert machine.decide(0, damage, d.NOW).records == []


def test_feeds_begin_once() -> None:
    """A second try is told the lengths before the first, so that it can cut there."""
    machine, export = exporting()
    feeds = m.Feeds(job=b.ID, process=export.process, lengths={"a": 7})
    d.ask(machine, feeds, d.WORKER)
    again = d.started(d.ask(machine, b.ended(export.process, counted=True), d.WORKER))
    assert (again.role, again.process) == ("export", export.process + 1)
    longer = m.Feeds(job=b.ID, process=again.process, lengths={"a": 9})
    decision = d.ask(machine, longer, d.WORKER)
    assert d.told(decision, m.FeedsSeen)[0].lengths == {"a": 7}
    assert not any(isinstance(one, r.FeedsBegun) for one in decision.records)


def test_feeds_are_told_file_by_file() -> None:
    """Each file is known from its first telling on; an answer names those asked for,
    or all that are known where none is."""
    machine, export = exporting()

    def tell(**lengths: int) -> dict[str, int]:
        feeds = m.Feeds(job=b.ID, process=export.process, lengths=lengths)
        (seen,) = d.answers(d.ask(machine, feeds, d.WORKER), d.WORKER)
        assert isinstance(seen, m.FeedsSeen)
        return seen.lengths

    assert tell() == {}
    assert tell(a=7) == {"a": 7}
    assert tell(b=-1, a=9) == {"b": -1, "a": 7}
    assert tell(c=0) == {"c": 0}
    assert tell() == {"a": 7, "b": -1, "c": 0}


@pytest.mark.parametrize("dies", [False, True])
def test_feeds_that_cannot_be_written_fail_the_job(dies: bool) -> None:
    """Items are kept; the retries are as for any failure."""
    machine, export = exporting()
    job = machine.state.jobs[b.ID]
    job.retries_left = 0
    if dies:
        for _ in range(machine.policy.start_deaths_max):
            decision = d.ask(machine, b.ended(export.process, counted=True), d.WORKER)
            if job.status == "running":
                export = d.started(decision)
    else:
        end = Outcome(failure="spider_error", text="no such format")
        d.commit(machine, export.process, b.unit(1, "closed", end=end))
    assert job.status == "failed"


def test_a_job_that_fails_writes_no_feeds() -> None:
    """Half of the items would look like all of them."""
    machine, start = d.running(
        msgspec.structs.replace(d.SPEC, retries=0), has_feeds=True
    )
    end = Outcome(failure="spider_error", text="why")
    d.commit(machine, start.process, b.unit(1, "closed", end=end))
    assert d.told(d.ask(machine, b.ended(start.process), d.WORKER), m.Start) == []
    assert machine.state.jobs[b.ID].status == "failed"
