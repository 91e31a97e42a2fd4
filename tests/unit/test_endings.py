"""The table of endings: each row is met, docs tell the same, no order changes it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.decision import Decision
from dscrapy.control.machine import Machine
from dscrapy.control.own_bugs import TIMES_MAX, Fallbacks
from dscrapy.control.state.verdict import verdict_of
from dscrapy.control.views import view_job
from dscrapy.endings import ENDINGS, FAILURES, Ending
from dscrapy.model import (
    JOB_PAUSES,
    PROCESS_IDLES,
    PROCESS_REASONS,
    SLOT_NEEDED,
    WORKER_DRAINS,
    Outcome,
)
from tests import builders as b
from tests.unit import machine_driver as d

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
ONCE = msgspec.structs.replace(d.SPEC, retries=0)


# ---- the table -----------------------------------------------------------------------


def row_in_docs(row: Ending) -> str:
    """Return a row as docs/reliability.md has it."""
    retry = "first" if row.retry_helps else "-"
    yes = "yes" if row.came_to_end else "no"
    files = {"written": "written", "failed": "NAME.failed", "kept": "-"}[row.files]
    cells = (f"`{row.code}`", row.meaning, row.state or "goes on", retry, yes, files)
    return "| " + " | ".join(cells if row.state else (*cells[:3], "-", "-", "-")) + " |"


def test_docs_tell_the_table() -> None:
    """The same rows in the same order."""
    lines = DOCS.read_text().splitlines()
    begin = next(i for i, one in enumerate(lines) if one.startswith("| ending |"))
    rows = itertools.takewhile(lambda one: one.startswith("|"), lines[begin + 2 :])
    assert list(rows) == [row_in_docs(row) for row in ENDINGS.values()]


def test_the_reasons_of_processes_are_rows() -> None:
    """What ends a process and not its job."""
    for reason in PROCESS_REASONS:
        assert ENDINGS[reason].state == ""


# ---- each row of a job ---------------------------------------------------------------


def crawled(retries: int = 0) -> tuple[Machine, int]:
    """Return a machine whose job has a committed item, an open process and feeds."""
    spec = msgspec.structs.replace(d.SPEC, retries=retries)
    machine, start = d.crawling(3, spec, has_feeds=True)
    d.commit(machine, start.process, b.page(1, items=b.ITEM))
    return machine, start.process


def close(machine: Machine, process: int, unit_number: int, **end: Any) -> Decision:
    """Let a process commit its last, and exit."""
    decision = d.commit(
        machine, process, b.unit(unit_number, "closed", end=Outcome(**end))
    )
    exited = d.ask(machine, b.ended(process), d.WORKER)
    decision.sends += exited.sends
    return decision


def do_rest(machine: Machine, process: int) -> None:
    """Let the pages under way be done."""
    d.commit(machine, process, b.page(2), b.page(3))


def closes(retries: int) -> Machine:
    machine, process = crawled(retries)
    closing = m.Closing(job=b.ID, process=process, reason="enough")
    d.ask(machine, closing, d.WORKER)
    close(machine, process, 3, finish_reason="enough")
    return machine


def start_raises(retries: int) -> Machine:
    spec = msgspec.structs.replace(d.SPEC, retries=retries)
    machine, start = d.running(spec, has_feeds=True)
    failure = Outcome(failure="start_error", text="why")
    given = b.unit(1, "late", items=b.ITEM)
    d.commit(machine, start.process, given, b.unit(2, "started", end=failure))
    end = {"finish_reason": "start_error", "failure": "start_error", "text": "why"}
    close(machine, start.process, 3, **end)
    return machine


def page_kills(retries: int) -> Machine:
    machine, process = crawled(retries)
    for alone in (False, False, True, True):
        # The isolator has it alone.
        under_way = (m.UnderWay(request=2, url="http://2"),)
        died = b.ended(process, counted=True, text="bang", under_way=under_way)
        said = msgspec.structs.replace(died, alone=alone)
        process = d.started(d.ask(machine, said, d.WORKER)).process
        d.ask(machine, b.opened(process, has_feeds=True), d.WORKER)
    d.commit(machine, process, b.page(3))
    close(machine, process, 1, finish_reason="finished")
    return machine


def feeds_fail(retries: int) -> Machine:
    machine, process = crawled(retries)
    do_rest(machine, process)
    export = d.started(close(machine, process, 3, finish_reason="finished"))
    assert export.role == "export"
    close(machine, export.process, 1, failure="spider_error", text="no such format")
    return machine


def end_dies(retries: int) -> Machine:
    spec = msgspec.structs.replace(d.SPEC, retries=retries)
    machine, start = d.crawling(0, spec, has_feeds=True, has_once=True)
    process, units = start.process, 2
    end = Outcome(finish_reason="enough")
    for count in range(machine.policy.start_deaths_max):
        d.commit(machine, process, b.unit(units + 1, "ending", end=end))
        if count == 0:
            export = machine.state.processes_of(b.ID)[-1]
            close(machine, export.number, 1, finish_reason="feeds written")
        died = d.ask(machine, b.ended(process, counted=True, text="bang"), d.WORKER)
        if count + 1 < machine.policy.start_deaths_max:
            process, units = d.started(died).process, 0
            d.ask(machine, b.opened(process, has_feeds=True, has_once=True), d.WORKER)
    return machine


def fails(code: str) -> Callable[[int], Machine]:
    """Return what lets an open process end with a failure of this code."""

    def run(retries: int) -> Machine:
        machine, process = crawled(retries)
        close(machine, process, 3, finish_reason="x", failure=code, text="why")
        return machine

    return run


def dies(retries: int) -> Machine:
    machine, process = crawled(retries)
    for count in range(machine.policy.start_deaths_max):
        decision = d.ask(machine, b.ended(process, counted=True, text="bang"), d.WORKER)
        if count + 1 < machine.policy.start_deaths_max:
            process = d.started(decision).process
            d.ask(machine, b.opened(process, has_feeds=True), d.WORKER)
    return machine


def all_pages_kill(retries: int) -> Machine:
    machine, process = crawled(retries)
    course = machine.state.jobs[b.ID].begin()
    course.poisoned_streak = 2
    for alone in (False, False, True, True):
        under_way = (m.UnderWay(request=2, url="http://2"),)
        died = b.ended(
            process, counted=True, text="bang", under_way=under_way, alone=alone
        )
        decision = d.ask(machine, died, d.WORKER)
        if machine.state.jobs[b.ID].begin().closing:
            break
        process = d.started(decision).process
        d.ask(machine, b.opened(process, has_feeds=True), d.WORKER)
    return machine


def master_fails(retries: int) -> Machine:
    machine, process = crawled(retries)
    fallbacks = Fallbacks()
    for _ in range(TIMES_MAX):
        decision = machine.decision(d.NOW)
        fallbacks.for_job(decision, "reconcile", b.ID)
        d.carry_out(machine, decision)
    close(machine, process, 3, finish_reason="failed")
    return machine


def cancel(retries: int) -> Machine:
    machine, process = crawled(retries)
    d.change(machine, "cancel")
    close(machine, process, 3, finish_reason="cancelled")
    return machine


JOBS: dict[str, Callable[[int], Machine]] = {
    "closed": closes,
    "start_error": start_raises,
    "set_aside": page_kills,
    "feeds_error": feeds_fail,
    "end_error": end_dies,
    **{
        code: fails(code)
        for code in FAILURES
        if code not in ("start_error", "died", "poisoned")
    },
    "died": dies,
    "poisoned": all_pages_kill,
    "internal_error": master_fails,
    "cancelled": cancel,
}


@pytest.mark.parametrize(
    "row", [one for one in ENDINGS.values() if one.state], ids=lambda one: one.code
)
def test_a_job_ends_as_its_row_says(row: Ending) -> None:
    """State, feeds (written, or beside older ones), and whether it came to its end."""
    machine = JOBS[row.code](0)
    job = machine.state.jobs[b.ID]
    exports = [one for one in machine.state.processes_of(b.ID) if one.role == "export"]
    # Of those two they are written, or given up, already.
    wants = row.files != "kept" and row.code not in ("feeds_error", "end_error")
    assert [job.is_final, len(exports)] == ([False, 1] if wants else [True, 0])
    if wants:
        (export,) = exports
        # The worker is told again what it was told: an export that died starts anew.
        again = d.started(d.ask(machine, b.ended(export.number), d.WORKER))
        assert (again.role, again.came_to_end) == ("export", row.files == "written")
        close(machine, again.process, 1, finish_reason="feeds written")
    view = view_job(machine.state, job)
    assert (view.state, view.came_to_end) == (row.state, row.came_to_end)


@pytest.mark.parametrize(
    "row", [one for one in ENDINGS.values() if one.state], ids=lambda one: one.code
)
def test_a_retry_comes_first_where_it_may_help(row: Ending) -> None:
    """It goes on with the crawl; nothing is written before that."""
    machine = JOBS[row.code](1)
    job = machine.state.jobs[b.ID]
    is_again = job.retries_left == 0
    assert is_again == row.retry_helps
    if is_again:
        assert not job.is_final
        roles = {one.role for one in machine.state.processes_of(b.ID)}
        assert roles == {"crawl"}


def test_a_failed_crawl_without_items_writes_nothing() -> None:
    """There is nothing to put beside older files."""
    machine, start = d.crawling(0, ONCE, has_feeds=True)
    close(machine, start.process, 3, failure="unsupported", text="why")
    assert machine.state.jobs[b.ID].status == "failed"


def test_a_code_that_is_no_failure_is_one_all_the_same() -> None:
    """A process of another version cannot make a failure read as success."""
    for code in ("closed", "cancelled", "unheard_of"):
        machine = fails(code)(1)
        verdict = verdict_of(machine.state.jobs[b.ID].begin(), {})
        assert verdict is not None
        assert (verdict.ending.state, verdict.ending.code) == ("failed", "unsupported")


# ---- each row of a process -----------------------------------------------------------


def pauses(machine: Machine, second: int) -> None:
    d.change(machine, "pause")
    d.change(machine, "resume")
    assert second


def drains(machine: Machine, second: int) -> None:
    machine.state.workers["v"].draining = True
    d.ask(machine, m.Draining(), 6)
    assert second


def nothing(machine: Machine, second: int) -> None:
    assert second in machine.state.processes


STOPS = {
    JOB_PAUSES: pauses,
    WORKER_DRAINS: drains,
    PROCESS_IDLES: nothing,
    SLOT_NEEDED: nothing,
}


@pytest.mark.parametrize("failure", ["", "unsupported"])
@pytest.mark.parametrize("reason", STOPS)
def test_what_stops_a_process_decides_nothing_of_its_job(
    reason: str, failure: str
) -> None:
    """But a failure that comes to light meanwhile is the job's."""
    machine, _, second = d.wide()
    d.register(machine, 6, "v")
    STOPS[reason](machine, second.process)
    d.ask(machine, m.Closing(job=b.ID, process=second.process, reason=reason), d.WORKER)
    close(machine, second.process, 1, finish_reason=reason, failure=failure)
    job = machine.state.jobs[b.ID]
    course = job.begin()
    assert course.closing == failure
    assert (course.failure is not None) == bool(failure)
    assert not job.is_final


def unfit(machine: Machine, process: int) -> None:
    close(machine, process, 1, failure="bad_arguments", text="why")


def lost(machine: Machine, process: int) -> None:
    d.ask(machine, b.ended(process), d.WORKER)


def crashed(machine: Machine, process: int) -> None:
    d.ask(machine, b.ended(process, counted=True, text="bang"), d.WORKER)


@pytest.mark.parametrize("end", [unfit, lost, crashed], ids=lambda one: one.__name__)
def test_a_process_ends_and_its_job_goes_on(
    end: Callable[[Machine, int], None],
) -> None:
    """Beside one that runs, before it was open."""
    machine, _, second = d.wide()
    machine.state.processes[second.process].opened = None
    end(machine, second.process)
    assert end.__name__ in ENDINGS
    assert machine.state.jobs[b.ID].is_crawling


def test_every_row_of_a_process_is_met() -> None:
    """By one of the tests above."""
    rows = {one.code for one in ENDINGS.values() if not one.state}
    assert rows == {*STOPS, "unfit", "lost", "crashed"}
    assert {one.code for one in ENDINGS.values() if one.state} == JOBS.keys()


# ---- whose fault it is, and in which order -------------------------------------------


def two_that_start() -> Machine:
    """Return a machine whose job has a process on each of two workers, 1 on w and 2 on
    v; neither is open."""
    spec = msgspec.structs.replace(ONCE, parallelism=2)
    machine, first = d.running(spec)
    d.register(machine, 6, "v")
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, 40)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    assert (first.process, second.process) == (1, 2)
    for process in machine.state.processes_of(b.ID):
        process.opened = None
    return machine


@pytest.mark.parametrize("order", [("fails", "opens"), ("opens", "fails")])
def test_one_that_opens_disproves_a_failure_to_open(order: tuple[str, ...]) -> None:
    """Whoever says its word first; the worker where it failed gets no more."""
    machine = two_that_start()
    for event in order:
        if event == "opens":
            d.ask(machine, b.opened(1), d.WORKER)
        else:
            end = Outcome(failure="bad_arguments", text="why")
            d.commit(machine, 2, b.unit(1, "closed", end=end), session=6)
            d.ask(machine, b.ended(2), 6)
    assert machine.state.jobs[b.ID].is_crawling
    assert list(machine.state.workers["v"].barred) == [b.ID]


def test_a_worker_that_takes_only_one_process_gets_the_next_first_one() -> None:
    """A second one beside the first did not open there; when the first is killed the
    job does not wait for ever."""
    machine, first, second = d.wide()
    machine.state.processes[second.process].opened = None
    close(machine, second.process, 1, failure="open_error", text="locked")
    assert list(machine.state.workers["w"].barred) == [b.ID]
    again = d.started(d.ask(machine, b.ended(first.process), d.WORKER))
    # And with that open no second one is tried there.
    assert (
        d.told(d.ask(machine, b.opened(again.process, window=2), d.WORKER), m.Start)
        == []
    )


class Event(NamedTuple):
    """What a process says, or a client where it is none's."""

    process: int
    what: str
    end: Outcome


def life(process: int, **end: Any) -> tuple[Event, ...]:
    """Return how a process closes and ends."""
    outcome = Outcome(**end)
    return tuple(
        Event(process, what, outcome) for what in ("closing", "closed", "ends")
    )


def interleaved(*lives: tuple[Event, ...]) -> Iterator[list[Event]]:
    """Yield all orders in which these can come."""
    left = [one for one in lives if one]
    if not left:
        yield []
    for place, one in enumerate(left):
        rest = [*left[:place], one[1:], *left[place + 1 :]]
        for order in interleaved(*rest):
            yield [one[0], *order]


def play(machine: Machine, events: list[Event], unit_of: dict[int, int]) -> bool:
    """Let them happen; return whether the job was cancelled before its end."""
    is_cancelled = False
    for event in events:
        if event.what == "closing":
            reason = event.end.finish_reason
            d.ask(
                machine,
                m.Closing(job=b.ID, process=event.process, reason=reason),
                d.WORKER,
            )
        elif event.what == "closed":
            number = unit_of[event.process]
            d.commit(machine, event.process, b.unit(number, "closed", end=event.end))
        elif event.what == "ends":
            d.ask(machine, b.ended(event.process), d.WORKER)
        else:
            is_cancelled = not machine.state.jobs[b.ID].is_final
            d.change(machine, "cancel")
    return is_cancelled


ENOUGH = life(1, finish_reason="enough")
CLIENT_CANCELS = (Event(0, "cancel", Outcome()),)


@pytest.mark.parametrize(
    ("second", "is_open", "code"),
    [
        (life(2, finish_reason="enough"), True, "closed"),
        (
            life(2, finish_reason="unsupported", failure="unsupported", text="why"),
            True,
            "unsupported",
        ),
        (
            life(2, finish_reason="shutdown", failure="spider_error", text="why"),
            True,
            "spider_error",
        ),
        # A worker's environment, when the job was open in another process.
        (life(2, failure="open_error", text="why")[1:], False, "closed"),
        (life(2, failure="bad_arguments", text="why")[1:], False, "closed"),
        # What is killed while the job closes is not done; that decides nothing.
        (life(2)[2:], True, "closed"),
    ],
)
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_no_order_changes_the_end(
    second: tuple[Event, ...], is_open: bool, code: str, is_cancelled: bool
) -> None:
    """``Closing`` may come before or after what others say, or be lost; a failure that
    comes later still is the job's."""
    more = [CLIENT_CANCELS] if is_cancelled else []
    lives = [
        (first, other)
        for first in (ENOUGH, ENOUGH[1:])
        for other in (second, [one for one in second if one.what != "closing"])
    ]
    for first, other in lives:
        for order in interleaved(first, tuple(other), *more):
            machine, *_ = d.wide()
            if not is_open:
                machine.state.processes[2].opened = None
            job = machine.state.jobs[b.ID]
            job.retries_left = 0
            ends_first = order[0].what == "ends"
            was_cancelled = play(machine, order, {1: 6, 2: 1})
            if order[0].process == 2 and ends_first:
                # It was killed while the job went on: another came, and is told.
                continue
            wanted = ENDINGS["cancelled" if was_cancelled else code]
            view = view_job(machine.state, job)
            shown = (view.state, view.came_to_end)
            assert shown == (wanted.state, wanted.came_to_end), order


def test_a_failure_survives_the_master() -> None:
    """It came after the reason to close, and the master died before the end."""
    machine, *_ = d.wide()
    machine.state.jobs[b.ID].retries_left = 0
    play(machine, list(ENOUGH[:1]), {})
    bad = life(2, finish_reason="x", failure="unsupported", text="why")
    play(machine, list(bad[1:2]), {2: 1})
    held = tuple(b.held(number, closing="enough") for number in (1, 2))
    machine = d.restarted(machine)
    d.ask(machine, b.registration(slots=2, held=held), d.WORKER)
    play(machine, [*ENOUGH[1:], bad[2]], {1: 6})
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == ("failed", "why")


def test_a_paused_job_that_is_retried_stays_paused() -> None:
    """A retry of the job's own does not resume it."""
    machine, start = d.crawling(2)
    d.change(machine, "pause")
    close(machine, start.process, 3, finish_reason=JOB_PAUSES, failure="spider_error")
    job = machine.state.jobs[b.ID]
    assert (job.state, job.retries_left) == ("paused", 0)
