"""A crawl process whose life takes another course: stops, closes and ends of the link
before it runs, while it opens and while it closes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dscrapy.messages import Closing, Commits, Opened
from dscrapy.model import WORKER_DRAINS
from tests.e2e.crawl_harness import WAIT_S, CrawlProcess
from tests.e2e.naive_master import NaiveMaster

FOLDER = Path(__file__).parent / "project"
Start = Callable[..., CrawlProcess]


def closings(process: CrawlProcess) -> list[str]:
    """Return the reasons for which the process has said that it closes."""
    return [one.reason for one in process.received if isinstance(one, Closing)]


def kinds(process: CrawlProcess) -> list[str]:
    """Return the kinds of its commits, whether they are answered or not."""
    frames = (one for one in process.received if isinstance(one, Commits))
    return [commit.kind for frame in frames for commit in frame.commits]


def is_told_open(process: CrawlProcess) -> bool:
    """Whether the process has asked for leases."""
    return any(isinstance(one, Opened) for one in process.received)


# ---- stops ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "commits", "told"),
    [
        ("cancelled", ["ending", "closed"], "Closing spider (cancelled)"),
        (WORKER_DRAINS, ["closed"], "Closing spider (shutdown)"),
    ],
)
def test_a_stop_while_the_pipelines_open(
    start: Start, tmp_path: Path, reason: str, commits: list[str], told: str
) -> None:
    """It is told at once that the process closes. That opens nevertheless, asks for no
    leases, and closes as soon as its engine runs."""
    until = tmp_path / "until"
    process = start("opens.py", FOLDER, args={"until": str(until)})
    process.wait_for_log("the pipeline opens")
    process.master.stop(process.number, reason)
    process.master.stop(process.number, "asked again")
    assert process.read_until(lambda: bool(process.peer.closing))
    until.touch()
    assert process.finish() == 0
    assert closings(process) == [reason]
    assert not is_told_open(process)
    assert kinds(process) == commits
    assert process.outcome.finish_reason == reason
    assert not process.outcome.failure
    assert told in process.log


def test_a_stop_while_a_pipeline_that_fails_opens(start: Start, tmp_path: Path) -> None:
    """The failure is the outcome, and the only commit; the stop is told once."""
    until = tmp_path / "until"
    args = {"how": "raises", "until": str(until)}
    process = start("opens.py", FOLDER, args=args)
    process.wait_for_log("the pipeline opens")
    process.master.stop(process.number, "cancelled")
    assert process.read_until(lambda: bool(process.peer.closing))
    until.touch()
    assert process.finish() == 0
    assert closings(process) == ["cancelled"]
    assert kinds(process) == ["closed"]
    assert process.outcome.failure == "open_error"


def test_a_stop_while_the_spider_closes_changes_nothing(start: Start) -> None:
    """The reason is the spider's, and nobody is told another one."""
    master = NaiveMaster()
    master.is_ordering = False
    process = start("opens.py", FOLDER, master=master)
    assert process.read_until(lambda: process.peer.is_ending)
    master.stop(process.number, "cancelled")
    master.is_ordering = True
    master.advance()
    assert process.finish() == 0
    assert closings(process) == ["finished"]
    assert process.outcome.finish_reason == "finished"


# ---- closes before the engine runs --------------------------------------------------


def test_a_pipeline_that_refuses_the_spider(start: Start) -> None:
    """The spider opens and closes for that reason; the job ends as one that ran."""
    process = start("opens.py", FOLDER, args={"how": "refuses"})
    assert process.finish() == 0
    assert is_told_open(process)
    assert closings(process) == ["refused"]
    assert kinds(process) == ["ending", "closed"]
    assert process.outcome.finish_reason == "refused"
    assert not process.outcome.failure


def test_a_pipeline_that_raises(start: Start) -> None:
    """It never opened: the failure is all that there is to be told."""
    process = start("opens.py", FOLDER, args={"how": "raises"})
    assert process.finish() == 0
    assert not is_told_open(process)
    assert closings(process) == []
    assert kinds(process) == ["closed"]
    assert process.outcome.failure == "open_error"
    assert "the database is down" in process.outcome.text


def test_a_spider_that_is_closed_when_it_is_open(start: Start) -> None:
    """Before its engine runs: that it closes is told once, and the job ends."""
    process = start("opens.py", FOLDER, args={"how": "closes when open"})
    assert process.finish() == 0
    assert is_told_open(process)
    assert closings(process) == ["no database"]
    # The engine runs for a moment, and begins start() where the process leads.
    assert set(kinds(process)) - {"opened"} == {"ending", "closed"}
    assert process.outcome.finish_reason == "no database"
    assert not process.outcome.failure


@pytest.mark.parametrize("how", ["closes", "begins to close"])
def test_a_spider_that_is_closed_while_it_opens(start: Start, how: str) -> None:
    """By a pipeline, through the engine: Scrapy closes it, and opens it nevertheless.
    The last commit tells why; there was nothing open that could be told to close."""
    process = start("opens.py", FOLDER, args={"how": how})
    assert process.finish() == 0
    assert is_told_open(process)
    assert closings(process) == []
    assert kinds(process) == ["closed"]
    assert process.outcome.finish_reason == "no database"
    assert not process.outcome.failure


# ---- the end of the link ----------------------------------------------------------


def end_of_link(process: CrawlProcess) -> int:
    """End the link; return the exit code."""
    process.sock.close()
    return process.process.wait(WAIT_S)


@pytest.mark.long
def test_the_link_ends_while_the_project_loads(start: Start) -> None:
    """The process goes as soon as it can look."""
    assert end_of_link(start("opens.py", FOLDER)) == 1


@pytest.mark.long
def test_the_link_ends_while_the_pipelines_open(start: Start, tmp_path: Path) -> None:
    """The process goes at once, and closes nothing."""
    process = start("opens.py", FOLDER, args={"until": str(tmp_path / "never")})
    process.wait_for_log("the pipeline opens")
    assert end_of_link(process) == 1
    assert "Closing spider" not in process.log


@pytest.mark.long
def test_the_link_ends_while_the_spider_closes(start: Start) -> None:
    """What is not answered may be lost, so that is no good end."""
    master = NaiveMaster()
    master.is_ordering = False
    process = start("opens.py", FOLDER, master=master)
    assert process.read_until(lambda: process.peer.is_ending)
    assert end_of_link(process) == 1


@pytest.mark.long
def test_the_link_ends_behind_the_last_commit(start: Start) -> None:
    """The worker has it, so the process has done all that it could."""
    master = NaiveMaster()
    master.is_ordering = False
    process = start("opens.py", FOLDER, master=master)
    assert process.read_until(lambda: process.peer.is_ending)
    process.credit = False
    master.is_ordering = True
    master.advance()
    assert process.read_until(lambda: "closed" in kinds(process))
    assert end_of_link(process) == 0
