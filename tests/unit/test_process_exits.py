"""What the end of a process means: who is blamed, who is barred, what fails."""

from typing import Any, Literal

import pytest

from dscrapy import messages as m
from dscrapy.control.decision import Decision, OnTick
from dscrapy.control.machine import Machine
from dscrapy.control.views import show, view_worker
from dscrapy.model import JobSpec, Outcome
from tests import builders as b
from tests.unit import machine_driver as d

SPEC_ONCE = JobSpec(project="p", spider="s")


def die(
    machine: Machine, process: int, *requests: int, alone: bool = False, **fields: Any
) -> Decision:
    """Let a process die by its own doing with these under way."""
    under_way = tuple(m.UnderWay(request=one, url=f"http://{one}") for one in requests)
    values: dict[str, Any] = {"counted": True, "text": "SIGSEGV"} | fields
    return d.ask(
        machine, b.ended(process, under_way=under_way, alone=alone, **values), d.WORKER
    )


def begin_next(machine: Machine, decision: Decision) -> tuple[int, Decision]:
    """Open the process that was started; return its number and what it is told."""
    process = d.started(decision).process
    return process, d.ask(machine, b.opened(process), d.WORKER)


def test_a_page_that_kills_its_process_is_found_among_others() -> None:
    """Two deaths in company, then the suspects together, then each alone: the innocent
    commit, the guilty one dies twice and is set aside; the rest is done and the job
    says so."""
    machine, start = d.crawling(4)
    process, given = start.process, machine.decision(d.NOW)
    for _ in range(2):
        process, given = begin_next(machine, die(machine, process, 2, 3))
    # They are apart in the process that follows: no lead, no company.
    assert d.leases(given) == {process: [2, 3]}
    assert not d.told(given, m.Lead)
    process, given = begin_next(machine, die(machine, process, 2, 3))
    assert d.leases(given) == {process: [2]}
    given = d.commit(machine, process, b.page(2))
    assert d.leases(given) == {process: [3]}
    process, given = begin_next(machine, die(machine, process, 3, alone=True))
    assert d.leases(given) == {process: [3]}
    process, given = begin_next(machine, die(machine, process, 3, alone=True))
    assert d.leases(given) == {process: [1, 4]}
    assert d.told(given, m.Lead)
    d.commit(machine, process, b.page(1), b.page(4))
    d.finish(machine, process, 0)
    shown = show(machine.state, 1, b.ID)
    assert shown is not None
    assert shown.job is not None
    job = shown.job
    assert (job.state, job.poisoned, job.pending) == ("failed", 1, 0)
    assert job.reason == "1 request is poisoned: http://3 (SIGSEGV); the rest is done"
    assert [(one.url, one.reason) for one in shown.poisoned] == [
        ("http://3", "SIGSEGV")
    ]
    assert machine.state.jobs[b.ID].begin().closing == "finished"


def test_what_is_known_against_requests_survives_the_master() -> None:
    """Suspects are suspects for the next master, too."""
    machine, start = d.crawling(3)
    process = start.process
    for _ in range(2):
        process, _ = begin_next(machine, die(machine, process, 2))
        held = b.held(process)
        machine = d.restarted(machine)
        decision = d.ask(machine, b.registration(held=(held,)), d.WORKER)
    assert d.leases(decision) == {process: [2]}


def test_a_death_from_outside_blames_nobody() -> None:
    """Nor does one of a process that has closed, whatever it names."""
    machine, start = d.crawling(3)
    process = start.process
    for _ in range(9):
        process, given = begin_next(machine, die(machine, process, 2, counted=False))
        assert d.leases(given) == {process: [1, 2, 3]}


def test_a_request_that_is_done_meanwhile_is_not_blamed() -> None:
    """Its commit came first, or it is of another run: the death counts for the job."""
    machine, start = d.crawling(2)
    d.commit(machine, start.process, b.page(1))
    die(machine, start.process, 1, 77)
    assert machine.state.jobs[b.ID].begin().deaths == 1


def marks(*requests: int, **fields: Any) -> tuple[m.UnderWay, ...]:
    """Return marks of requests, by default of pages that only wait."""
    values = {"stage": "waits"} | fields
    return tuple(m.UnderWay(request=one, url="u", **values) for one in requests)


def die_with(
    machine: Machine, process: int, *under_way: m.UnderWay
) -> tuple[int, Decision]:
    """Let a process die by its own doing; open the next one."""
    ended = b.ended(process, under_way=under_way, counted=True, text="SIGSEGV")
    return begin_next(machine, d.ask(machine, ended, d.WORKER))


def tick(machine: Machine, seconds: float) -> Decision:
    """Let the time come; the worker has been heard."""
    machine.heard(d.WORKER, d.later(seconds))
    return d.ask(machine, OnTick(), 0, d.later(seconds))


def suspects(machine: Machine) -> list[int]:
    """Return the requests that are tried apart."""
    frontier = machine.state.crawls[b.ID].frontier
    return [one for one in range(1, 30) if frontier.is_suspect(one)]


def test_who_only_waits_is_not_blamed() -> None:
    """A page in its download may have killed the process, and the one whose code ran
    last; one that has only begun, or waits, did not."""
    machine, start = d.crawling(5)
    process = start.process
    said = (
        *marks(1, stage="download"),
        *marks(2, ran_last=True),
        *marks(3),
        *marks(4, stage="begun"),
        *marks(5),
    )
    for _ in range(2):
        process, _ = die_with(machine, process, *said)
    assert suspects(machine) == [1, 2]


def test_who_only_waits_is_blamed_where_nothing_else_was_there() -> None:
    """Else nobody ever would be."""
    machine, start = d.crawling(3)
    process = start.process
    for _ in range(2):
        process, _ = die_with(machine, process, *marks(2, 3))
    assert suspects(machine) == [2, 3]


def test_who_only_waits_is_blamed_after_deaths_in_vain() -> None:
    """Two in a row made nobody a suspect: something else kills. A restart of the master
    in between changes nothing."""
    machine, start = d.crawling(5)
    process, _ = die_with(
        machine, start.process, *marks(1, stage="download"), *marks(5)
    )
    process, _ = die_with(machine, process, *marks(2, stage="download"), *marks(5))
    machine = d.restarted(machine)
    d.ask(machine, b.registration(held=(b.held(process),)), d.WORKER)
    process, _ = die_with(machine, process, *marks(3, stage="download"), *marks(5))
    assert suspects(machine) == []
    process, _ = die_with(machine, process, *marks(4, stage="download"), *marks(5))
    assert suspects(machine) == [5]


@pytest.mark.parametrize("restarts", [False, True])
def test_many_suspects_are_tried_in_halves(restarts: bool) -> None:
    """Of sixteen the bad one is found in as many deaths as it takes to halve them, and
    two; all others are done."""
    machine, start = d.crawling(16)
    every = tuple(range(1, 17))
    process, given = start.process, machine.decision(d.NOW)
    for _ in range(2):
        process, given = begin_next(machine, die(machine, process, *every))
    bad, deaths = 6, 0
    while not machine.state.crawls[b.ID].frontier.poisoned:
        (leased,) = d.leases(given).values()
        if bad not in leased:
            given = d.commit(machine, process, *map(b.page, leased))
            continue
        deaths += 1
        alone = len(leased) == 1
        process, given = begin_next(
            machine, die(machine, process, *leased, alone=alone)
        )
        if restarts:
            machine = d.restarted(machine)
            held = b.held(process, opened=b.opened(process))
            given = d.ask(machine, b.registration(held=(held,)), d.WORKER)
    assert list(machine.state.crawls[b.ID].frontier.poisoned) == [bad]
    assert deaths == 4 + 2


def test_suspects_that_wait_for_others_get_companions() -> None:
    """After a while in which they only waited; then a death condemns none of them."""
    machine, start = d.crawling(4)
    process = start.process
    for _ in range(2):
        process, given = begin_next(machine, die(machine, process, 1, 2))
    assert d.leases(given) == {process: [1, 2]}
    given = d.ask(machine, b.progress(process, downloaded=(1, 2)), d.WORKER)
    assert d.leases(given) == {}
    patience_s = machine.policy.suspect_patience_s
    assert machine.next_deadline_s(d.NOW) <= patience_s
    assert d.leases(tick(machine, patience_s - 1)) == {}
    given = tick(machine, patience_s)
    assert d.leases(given) == {process: [3, 4]}
    process, given = begin_next(machine, die(machine, process, 1, 2, 3, 4))
    assert suspects(machine) == [1, 2]
    assert d.leases(given) == {process: [1, 2]}


def test_pages_that_wait_for_what_never_comes_are_named() -> None:
    """When nothing else is left: in the log of their process, and by ``show``; until
    one of them is done."""
    machine, start = d.crawling(2)
    said = b.progress(start.process, downloaded=(1, 2))
    assert d.told(d.ask(machine, said, d.WORKER), m.AllWait) == []
    assert d.told(tick(machine, 29.0), m.AllWait) == []
    (note,) = d.told(tick(machine, 30.0), m.AllWait)
    assert (note.process, note.pages) == (start.process, 2)
    assert d.told(tick(machine, 31.0), m.AllWait) == []

    def reason() -> str:
        shown = show(machine.state, 1, b.ID)
        assert shown is not None
        assert shown.job is not None
        return shown.job.reason

    assert reason().startswith("2 pages wait in callbacks or pipelines")
    d.commit(machine, start.process, b.page(1))
    assert reason() == ""


def test_a_retry_gives_the_poisoned_another_chance() -> None:
    """Alone, and what is committed stands."""
    machine, start = d.crawling(2)
    process = start.process
    for alone in (False, False, True, True):
        process, given = begin_next(machine, die(machine, process, 1, alone=alone))
    assert d.leases(given) == {process: [2]}
    d.commit(machine, process, b.page(2))
    d.finish(machine, process, 0)
    assert machine.state.jobs[b.ID].status == "failed"
    process, given = begin_next(machine, d.change(machine, "retry"))
    assert d.leases(given) == {process: [1]}
    d.commit(machine, process, b.page(1))
    d.finish(machine, process, 0)
    assert machine.state.jobs[b.ID].status == "succeeded"


def test_a_spider_of_which_every_page_kills_fails_soon() -> None:
    """Three requests set aside in a row, and the job fails with the rest pending."""
    machine, start = d.crawling(9)
    process = start.process
    deaths = 0
    while machine.state.jobs[b.ID].status == "running" and deaths < 50:
        crawl = machine.state.crawls[b.ID]
        held = [n for n in range(1, 10) if crawl.frontier._requests.holder(n)]
        decision = die(machine, process, *held, alone=len(held) == 1)
        deaths += 1
        if d.told(decision, m.Start):
            process, _ = begin_next(machine, decision)
    job = machine.state.jobs[b.ID]
    assert (job.status, deaths) == ("failed", 12)
    assert job.begin().reason == (
        "3 requests in a row killed their process, last: SIGSEGV"
    )
    assert machine.state.crawls[b.ID].frontier.pending_count == 6


def poison(machine: Machine, process: int, request: int) -> int:
    """Let a request kill until it is set aside; return the process that follows."""
    for alone in (False, False, True, True):
        decision = die(machine, process, request, alone=alone)
        if not d.told(decision, m.Start):
            return 0
        process, _ = begin_next(machine, decision)
    return process


@pytest.mark.parametrize("kind", ["page", "start", "late"])
def test_a_page_in_between_begins_the_row_anew(
    kind: Literal["page", "start", "late"],
) -> None:
    """Two that kill, a page that is committed, two more: the job goes on, and the third
    in a row fails it. What is committed beside pages proves nothing of pages."""
    machine, start = d.crawling(9)
    process = start.process
    for request in (1, 2):
        process = poison(machine, process, request)
    if kind == "page":
        d.commit(machine, process, b.page(9))
        for request in (3, 4):
            process = poison(machine, process, request)
            assert machine.state.jobs[b.ID].status == "running"
    else:
        d.commit(machine, process, b.unit(1, kind))
    poison(machine, process, 5)
    job = machine.state.jobs[b.ID]
    assert (job.status, job.begin().reason) == (
        "failed",
        "3 requests in a row killed their process, last: SIGSEGV",
    )


def test_several_are_told_by_their_number_and_the_first() -> None:
    """In one line."""
    machine, start = d.crawling(3)
    process = start.process
    for request in (1, 2):
        for alone in (False, False, True, True):
            process, _ = begin_next(
                machine, die(machine, process, request, alone=alone)
            )
    d.commit(machine, process, b.page(3))
    d.finish(machine, process, 0)
    assert machine.state.jobs[b.ID].begin().reason == (
        "2 requests are poisoned, the first: http://1 (SIGSEGV); the rest is done"
    )


# ---- workers ------------------------------------------------------------------------


def at_once(machine: Machine, process: int, session: int) -> Decision:
    """Let a process die before it is open."""
    end = b.ended(process, counted=True, text="exited with code 1")
    return d.ask(machine, end, session)


def workers_of(decision: Decision) -> list[int]:
    """Return the sessions that were told to start a process."""
    return [to for to, message in decision.sends if isinstance(message, m.Start)]


def test_a_worker_where_processes_die_at_once_gets_no_more_of_the_job() -> None:
    """The other one is tried first after the first death; the second one bars. The
    job goes on elsewhere, and the worker is named."""
    machine = d.new_machine()
    d.register(machine, d.WORKER, "w", slots=4)
    d.register(machine, 6, "v", slots=1)
    decision = d.ask(machine, d.submit())
    assert workers_of(decision) == [d.WORKER]
    decision = at_once(machine, d.started(decision).process, d.WORKER)
    assert workers_of(decision) == [6]
    # It has the only slot there; a kill from outside brings the job back.
    decision = d.ask(machine, b.ended(d.started(decision).process), 6)
    assert workers_of(decision) == [6]
    machine.state.workers["w"].failed[b.ID] = 1
    machine.state.workers["v"].draining = True
    decision = d.ask(machine, b.ended(d.started(decision).process), 6)
    assert workers_of(decision) == [d.WORKER]
    machine.state.workers["v"].draining = False
    decision = at_once(machine, d.started(decision).process, d.WORKER)
    assert workers_of(decision) == [6]
    worker = machine.state.workers["w"]
    note = view_worker(worker, machine.policy.spans, d.NOW).note
    assert note == (
        f"gets no more processes of job {b.ID} (0 s ago): its processes died there "
        "before they had started, 2 times: exited with code 1"
    )
    assert "(2 h ago)" in view_worker(worker, machine.policy.spans, d.later(7200)).note
    assert view_worker(worker, machine.policy.spans, d.NOW, {b.ID}).note == ""
    d.change(machine, "cancel")
    d.ask(machine, b.ended(d.started(decision).process), 6)
    d.change(machine, "retry")
    assert worker.barred == {}


def test_where_there_is_no_other_worker_deaths_at_once_fail_the_job() -> None:
    """It is not barred: three deaths are the job's own."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    decision = d.register(machine)
    for _ in range(3):
        decision = at_once(machine, d.started(decision).process, d.WORKER)
    job = machine.state.jobs[b.ID]
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
    machine = d.new_machine()
    sessions = range(10, 14)
    for session in sessions:
        d.register(machine, session, f"w{session}")
    decision = d.ask(machine, d.submit(spec=SPEC_ONCE))
    count = 0
    while machine.state.jobs[b.ID].status == "running":
        (session,) = workers_of(decision)
        outcome = Outcome(failure=failure, text="why")
        end = b.ended(d.started(decision).process, how="failed", outcome=outcome)
        decision = d.ask(machine, end, session)
        count += 1
    assert count == tried
    assert machine.state.jobs[b.ID].begin().reason == "why"


def test_a_spider_that_cannot_be_imported_here_runs_elsewhere() -> None:
    """The same when the process itself says so in its last commit."""
    machine = d.new_machine()
    d.register(machine, d.WORKER, "w", slots=2)
    d.register(machine, 6, "v")
    process = d.started(d.ask(machine, d.submit())).process
    failed = Outcome(failure="import_error", text="No module named 'x'")
    d.commit(machine, process, b.unit(1, "closed", end=failed))
    assert machine.state.workers["w"].barred == {b.ID: "No module named 'x'"}
    decision = d.ask(machine, b.ended(process), d.WORKER)
    assert workers_of(decision) == [6]
    d.ask(machine, b.opened(d.started(decision).process), 6)
    assert machine.state.jobs[b.ID].status == "running"


def test_a_job_that_no_worker_can_run_says_so() -> None:
    """It waits for another worker."""
    machine = d.new_machine()
    d.register(machine)
    machine.state.workers["w"].barred[b.ID] = "other code"
    d.ask(machine, d.submit())
    shown = show(machine.state, 1, b.ID)
    assert shown is not None
    assert shown.job is not None
    assert shown.job.reason.startswith("no worker that is connected can run it")
