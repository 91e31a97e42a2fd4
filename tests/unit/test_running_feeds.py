"""The feeds of a job: written by an export process once the crawl is done."""

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import OnDamage
from dscrapy.control.machine import Machine
from dscrapy.model import Outcome
from tests.unit.frontier_values import (
    ID,
    NOW,
    SPEC,
    WORKER,
    WRITTEN,
    answers,
    ask,
    commit,
    ended,
    running,
    started,
    succeed,
    told,
    unit,
)


def exporting() -> tuple[Machine, m.Start]:
    """Return a machine whose job is crawled, and the process that writes its feeds."""
    machine, start = running(has_feeds=True)
    decision = succeed(machine, start)
    assert machine.state.jobs[ID].begin().role == "export"
    export = started(decision)
    assert export.role == "export"
    return machine, export


def test_feeds_are_written_after_the_crawl() -> None:
    """The crawl's last process gets the stats, the job ends with its feeds."""
    machine, export = exporting()
    feeds = m.Feeds(job=ID, process=export.process, lengths={"a": 7})
    decision = ask(machine, feeds, WORKER)
    seen = m.FeedsSeen(job=ID, process=export.process, lengths={"a": 7})
    assert answers(decision, WORKER) == [seen]
    assert machine.state.jobs[ID].status == "running"
    decision = commit(machine, export.process, unit(1, "closed", end=WRITTEN))
    assert told(decision, m.Done) == [
        m.Done(job=ID, process=export.process, stats=None)
    ]
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().reason) == ("succeeded", "finished")
    ask(machine, ended(export.process), WORKER)
    assert machine.state.crawls == {}


def test_feeds_of_damaged_items_fail() -> None:
    """Written without what is missing they would look whole."""
    spec = msgspec.structs.replace(SPEC, retries=0)
    machine, start = running(spec=spec, has_feeds=True)
    export = started(succeed(machine, start))
    text = "items.jsonl lacks 8 bytes"
    damage = OnDamage(job=ID, process=export.process, text=text)
    assert told(ask(machine, damage, 0), m.Stop)
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().reason) == ("failed", text)
    # What it says of its end changes nothing; nor does the same damage once more.
    end = Outcome(finish_reason="feeds_error")
    said = commit(machine, export.process, unit(1, "closed", end=end))
    assert told(said, m.CommitsSeen)[0].seen[0].result == "settled"
    assert ask(machine, ended(export.process), WORKER).records == []
    assert machine.decide(0, damage, NOW).records == []


def test_feeds_begin_once() -> None:
    """A second try is told the lengths before the first, so that it can cut there."""
    machine, export = exporting()
    feeds = m.Feeds(job=ID, process=export.process, lengths={"a": 7})
    ask(machine, feeds, WORKER)
    again = started(ask(machine, ended(export.process, counted=True), WORKER))
    assert (again.role, again.process) == ("export", export.process + 1)
    longer = m.Feeds(job=ID, process=again.process, lengths={"a": 9})
    decision = ask(machine, longer, WORKER)
    assert told(decision, m.FeedsSeen)[0].lengths == {"a": 7}
    assert not any(isinstance(one, r.FeedsBegun) for one in decision.records)


def test_feeds_are_told_file_by_file() -> None:
    """Each file is known from its first telling on; an answer names those asked for,
    or all that are known where none is."""
    machine, export = exporting()

    def tell(**lengths: int) -> dict[str, int]:
        feeds = m.Feeds(job=ID, process=export.process, lengths=lengths)
        (seen,) = answers(ask(machine, feeds, WORKER), WORKER)
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
    job = machine.state.jobs[ID]
    job.retries_left = 0
    if dies:
        for _ in range(machine.policy.start_deaths_max):
            decision = ask(machine, ended(export.process, counted=True), WORKER)
            if job.status == "running":
                export = started(decision)
    else:
        end = Outcome(failure="spider_error", text="no such format")
        commit(machine, export.process, unit(1, "closed", end=end))
    assert job.status == "failed"


def test_a_job_that_fails_writes_no_feeds() -> None:
    """Half of the items would look like all of them."""
    machine, start = running(msgspec.structs.replace(SPEC, retries=0), has_feeds=True)
    end = Outcome(failure="spider_error", text="why")
    commit(machine, start.process, unit(1, "closed", end=end))
    assert told(ask(machine, ended(start.process), WORKER), m.Start) == []
    assert machine.state.jobs[ID].status == "failed"
