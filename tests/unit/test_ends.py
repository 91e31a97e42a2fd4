"""What the end of a process means: who is blamed, who is barred, what fails."""

from typing import Any, Literal

import pytest

from dscrapy import messages as m
from dscrapy.control.decision import Decision
from dscrapy.control.machine import Machine
from dscrapy.control.views import show, view_worker
from dscrapy.model import JobSpec, Outcome
from tests.unit.frontier_values import (
    ID,
    NOW,
    WORKER,
    ask,
    change,
    commit,
    crawling,
    ended,
    finish,
    later,
    leases,
    new_machine,
    opened,
    page,
    register,
    registration,
    restarted,
    started,
    submit,
    told,
    unit,
)

SPEC_ONCE = JobSpec(project="p", spider="s")


def die(
    machine: Machine, process: int, *requests: int, alone: bool = False, **fields: Any
) -> Decision:
    """Let a process die by its own doing with these under way."""
    under_way = tuple(m.UnderWay(request=one, url=f"http://{one}") for one in requests)
    values: dict[str, Any] = {"counted": True, "text": "SIGSEGV"} | fields
    return ask(
        machine, ended(process, under_way=under_way, alone=alone, **values), WORKER
    )


def begin_next(machine: Machine, decision: Decision) -> tuple[int, Decision]:
    """Open the process that was started; return its number and what it is told."""
    process = started(decision).process
    return process, ask(machine, opened(process), WORKER)


def test_a_page_that_kills_its_process_is_found_among_others() -> None:
    """Two deaths in company, then each suspect alone: the innocent commit, the guilty
    one dies twice and is set aside; the rest is done and the job says so."""
    machine, start = crawling(4)
    process, given = start.process, machine.decision(NOW)
    for _ in range(2):
        process, given = begin_next(machine, die(machine, process, 2, 3))
    # Three are alone in the process that follows: no lead, no company.
    assert leases(given) == {process: [2]}
    assert not told(given, m.Lead)
    given = commit(machine, process, page(2))
    assert leases(given) == {process: [3]}
    process, given = begin_next(machine, die(machine, process, 3, alone=True))
    assert leases(given) == {process: [3]}
    process, given = begin_next(machine, die(machine, process, 3, alone=True))
    assert leases(given) == {process: [1, 4]}
    assert told(given, m.Lead)
    commit(machine, process, page(1), page(4))
    finish(machine, process, 0)
    shown = show(machine.state, 1, ID)
    assert shown is not None
    assert shown.job is not None
    job = shown.job
    assert (job.state, job.poisoned, job.pending) == ("failed", 1, 0)
    assert job.reason == "1 request is poisoned: http://3 (SIGSEGV); the rest is done"
    assert [(one.url, one.reason) for one in shown.poisoned] == [
        ("http://3", "SIGSEGV")
    ]
    assert machine.state.jobs[ID].begin().closing == "finished"


def test_what_is_known_against_requests_survives_the_master() -> None:
    """Suspects are suspects for the next master, too."""
    machine, start = crawling(3)
    process = start.process
    for _ in range(2):
        process, _ = begin_next(machine, die(machine, process, 2))
        held = m.Held(job=ID, process=process, opened=opened(process))
        machine = restarted(machine)
        decision = ask(machine, registration(held=(held,)), WORKER)
    assert leases(decision) == {process: [2]}


def test_a_death_from_outside_blames_nobody() -> None:
    """Nor does one of a process that has closed, whatever it names."""
    machine, start = crawling(3)
    process = start.process
    for _ in range(9):
        process, given = begin_next(machine, die(machine, process, 2, counted=False))
        assert leases(given) == {process: [1, 2, 3]}


def test_a_request_that_is_done_meanwhile_is_not_blamed() -> None:
    """Its commit came first, or it is of another run: the death counts for the job."""
    machine, start = crawling(2)
    commit(machine, start.process, page(1))
    die(machine, start.process, 1, 77)
    assert machine.state.jobs[ID].begin().deaths == 1


def test_a_suspect_with_company_is_not_condemned() -> None:
    """Leased to another process before it was one, it dies there with others."""
    machine, start = crawling(3)
    process = start.process
    for _ in range(2):
        process, _ = begin_next(machine, die(machine, process, 1))
    for _ in range(3):
        process, given = begin_next(machine, die(machine, process, 1, alone=False))
        assert leases(given) == {process: [1]}


def test_a_retry_gives_the_poisoned_another_chance() -> None:
    """Alone, and what is committed stands."""
    machine, start = crawling(2)
    process = start.process
    for alone in (False, False, True, True):
        process, given = begin_next(machine, die(machine, process, 1, alone=alone))
    assert leases(given) == {process: [2]}
    commit(machine, process, page(2))
    finish(machine, process, 0)
    assert machine.state.jobs[ID].status == "failed"
    process, given = begin_next(machine, change(machine, "retry"))
    assert leases(given) == {process: [1]}
    commit(machine, process, page(1))
    finish(machine, process, 0)
    assert machine.state.jobs[ID].status == "succeeded"


def test_a_spider_of_which_every_page_kills_fails_soon() -> None:
    """Three requests set aside in a row, and the job fails with the rest pending."""
    machine, start = crawling(9)
    process = start.process
    deaths = 0
    while machine.state.jobs[ID].status == "running" and deaths < 50:
        crawl = machine.state.crawls[ID]
        held = [n for n in range(1, 10) if crawl.frontier._requests.holder(n)]
        decision = die(machine, process, *held, alone=len(held) == 1)
        deaths += 1
        if told(decision, m.Start):
            process, _ = begin_next(machine, decision)
    job = machine.state.jobs[ID]
    assert (job.status, deaths) == ("failed", 8)
    assert job.begin().reason == (
        "3 requests in a row killed their process, last: SIGSEGV"
    )
    assert machine.state.crawls[ID].frontier.pending_count == 6


def poison(machine: Machine, process: int, request: int) -> int:
    """Let a request kill until it is set aside; return the process that follows."""
    for alone in (False, False, True, True):
        decision = die(machine, process, request, alone=alone)
        if not told(decision, m.Start):
            return 0
        process, _ = begin_next(machine, decision)
    return process


@pytest.mark.parametrize("kind", ["page", "start", "late"])
def test_a_page_in_between_begins_the_row_anew(
    kind: Literal["page", "start", "late"],
) -> None:
    """Two that kill, a page that is committed, two more: the job goes on, and the third
    in a row fails it. What is committed beside pages proves nothing of pages."""
    machine, start = crawling(9)
    process = start.process
    for request in (1, 2):
        process = poison(machine, process, request)
    if kind == "page":
        commit(machine, process, page(9))
        for request in (3, 4):
            process = poison(machine, process, request)
            assert machine.state.jobs[ID].status == "running"
    else:
        commit(machine, process, unit(1, kind))
    poison(machine, process, 5)
    job = machine.state.jobs[ID]
    assert (job.status, job.begin().reason) == (
        "failed",
        "3 requests in a row killed their process, last: SIGSEGV",
    )


def test_several_are_told_by_their_number_and_the_first() -> None:
    """In one line."""
    machine, start = crawling(3)
    process = start.process
    for request in (1, 2):
        for alone in (False, False, True, True):
            process, _ = begin_next(
                machine, die(machine, process, request, alone=alone)
            )
    commit(machine, process, page(3))
    finish(machine, process, 0)
    assert machine.state.jobs[ID].begin().reason == (
        "2 requests are poisoned, the first: http://1 (SIGSEGV); the rest is done"
    )


# ---- workers ------------------------------------------------------------------------


def at_once(machine: Machine, process: int, session: int) -> Decision:
    """Let a process die before it is open."""
    end = ended(process, counted=True, text="exited with code 1")
    return ask(machine, end, session)


def workers_of(decision: Decision) -> list[int]:
    """Return the sessions that were told to start a process."""
    return [to for to, message in decision.sends if isinstance(message, m.Start)]


def test_a_worker_where_processes_die_at_once_gets_no_more_of_the_job() -> None:
    """The other one is tried first after the first death; the second one bars. The
    job goes on elsewhere, and the worker is named."""
    machine = new_machine()
    register(machine, WORKER, "w", slots=4)
    register(machine, 6, "v", slots=1)
    decision = ask(machine, submit())
    assert workers_of(decision) == [WORKER]
    decision = at_once(machine, started(decision).process, WORKER)
    assert workers_of(decision) == [6]
    # It has the only slot there; a kill from outside brings the job back.
    decision = ask(machine, ended(started(decision).process), 6)
    assert workers_of(decision) == [6]
    machine.state.workers["w"].failed[ID] = 1
    machine.state.workers["v"].draining = True
    decision = ask(machine, ended(started(decision).process), 6)
    assert workers_of(decision) == [WORKER]
    machine.state.workers["v"].draining = False
    decision = at_once(machine, started(decision).process, WORKER)
    assert workers_of(decision) == [6]
    worker = machine.state.workers["w"]
    note = view_worker(worker, machine.policy.spans, NOW).note
    assert note == (
        f"gets no more of job {ID} (0 s ago): its processes died there at once, "
        "2 times: exited with code 1"
    )
    assert "(2 h ago)" in view_worker(worker, machine.policy.spans, later(7200)).note
    assert view_worker(worker, machine.policy.spans, NOW, {ID}).note == ""
    change(machine, "cancel")
    ask(machine, ended(started(decision).process), 6)
    change(machine, "retry")
    assert worker.barred == {}


def test_where_there_is_no_other_worker_deaths_at_once_fail_the_job() -> None:
    """It is not barred: three deaths are the job's own."""
    machine = new_machine()
    ask(machine, submit())
    decision = register(machine)
    for _ in range(3):
        decision = at_once(machine, started(decision).process, WORKER)
    job = machine.state.jobs[ID]
    assert (job.status, job.retries_left) == ("running", 0)
    assert machine.state.workers["w"].barred == {}


@pytest.mark.parametrize(
    ("failure", "tried"),
    [
        ("unknown_project", 4),
        ("import_error", 3),
        ("unknown_spider", 1),
        ("bad_arguments", 1),
    ],
)
def test_what_another_worker_may_have_is_looked_for_there(
    failure: str, tried: int
) -> None:
    """A folder on all of them, a package on as many as deaths fail a job; what follows
    from the code alone fails at once."""
    machine = new_machine()
    sessions = range(10, 14)
    for session in sessions:
        register(machine, session, f"w{session}")
    decision = ask(machine, submit(spec=SPEC_ONCE))
    count = 0
    while machine.state.jobs[ID].status == "running":
        (session,) = workers_of(decision)
        outcome = Outcome(failure=failure, text="why")
        end = ended(started(decision).process, how="failed", outcome=outcome)
        decision = ask(machine, end, session)
        count += 1
    assert count == tried
    assert machine.state.jobs[ID].begin().reason == "why"


def test_a_spider_that_cannot_be_imported_here_runs_elsewhere() -> None:
    """The same when the process itself says so in its last commit."""
    machine = new_machine()
    register(machine, WORKER, "w", slots=2)
    register(machine, 6, "v")
    process = started(ask(machine, submit())).process
    failed = Outcome(failure="import_error", text="No module named 'x'")
    commit(machine, process, unit(1, "closed", end=failed))
    assert machine.state.workers["w"].barred == {ID: "No module named 'x'"}
    decision = ask(machine, ended(process), WORKER)
    assert workers_of(decision) == [6]
    ask(machine, opened(started(decision).process), 6)
    assert machine.state.jobs[ID].status == "running"


def test_a_job_that_no_worker_can_run_says_so() -> None:
    """It waits for another worker."""
    machine = new_machine()
    register(machine)
    machine.state.workers["w"].barred[ID] = "other code"
    ask(machine, submit())
    shown = show(machine.state, 1, ID)
    assert shown is not None
    assert shown.job is not None
    assert shown.job.reason.startswith("no worker that is connected can run it")
