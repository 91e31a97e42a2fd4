"""Workers that come, fall silent, come again and speak late."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import views
from dscrapy.control.decide.registration import SLOTS_MAX, WINDOW_MAX
from dscrapy.control.decision import OnClosed, OnTick
from dscrapy.control.state.workers import Spans, Worker
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import JOB_PAUSES, Outcome
from tests import builders as b
from tests.unit import machine_driver as d

# ---- workers that come and go ------------------------------------------------------


def test_a_silent_worker_is_reaped_and_its_job_pays_nothing() -> None:
    """Not before its time; then its session ends and the job goes on elsewhere, with
    all that was leased and nothing that is done."""
    machine, start = d.crawling(3)
    d.commit(machine, start.process, b.page(2))
    silent = d.later(machine.policy.spans.die_after_s - 0.1)
    assert machine.next_deadline_s(silent) == pytest.approx(0.1)
    assert machine.decide(0, OnTick(), silent).records == []
    decision = d.ask(machine, OnTick(), 0, d.later(20.0))
    assert decision.closes == [d.WORKER]
    job = machine.state.jobs[b.ID]
    assert (job.status, job.retries_left, job.begin().deaths) == ("ready", 1, 0)
    assert machine.state.workers == {}
    assert machine.state.processes == {}
    again = d.started(d.register(machine, 6, "v"))
    assert again.process == start.process + 1
    decision = d.ask(machine, b.opened(again.process), 6)
    assert d.leases(decision) == {again.process: [1, 3]}


def test_any_word_of_a_worker_puts_its_death_off() -> None:
    """A word of somebody who is no worker does not."""
    machine = d.new_machine()
    d.register(machine)
    machine.heard(d.CLIENT, d.later(10.0))
    assert machine.next_deadline_s(d.later(10.0)) == pytest.approx(10.0)
    machine.heard(d.WORKER, d.later(10.0))
    assert machine.next_deadline_s(d.later(10.0)) == pytest.approx(20.0)


def test_a_broken_connection_has_its_own_shorter_grace() -> None:
    """Away, then gone; in between nothing is given to it."""
    machine, start = d.running()
    d.ask(machine, OnClosed(), d.WORKER)
    assert d.told(d.ask(machine, b.submit(b.OTHER), d.CLIENT), m.Start) == []
    assert machine.state.jobs[b.ID].status == "running"
    grace_s = machine.policy.spans.reconnect_grace_s
    assert machine.next_deadline_s(d.NOW) == pytest.approx(grace_s)
    decision = d.ask(machine, OnTick(), 0, d.later(grace_s))
    assert decision.closes == []
    assert machine.state.jobs[b.ID].status == "ready"
    assert start.process not in machine.state.processes


def test_a_worker_that_leaves_is_gone_at_once() -> None:
    """Its session is closed; whatever it says after that only closes it again."""
    machine, _ = d.running()
    assert d.ask(machine, m.Leaving(), d.WORKER).closes == [d.WORKER]
    assert machine.state.workers == {}
    late = d.ask(machine, m.Heartbeat(number=1), d.WORKER)
    assert (late.records, late.sends, late.closes) == ([], [], [d.WORKER])


def test_a_worker_says_that_it_drains() -> None:
    """It gets nothing more, and people see why."""
    machine = d.new_machine()
    d.register(machine)
    d.ask(machine, m.Draining(), d.WORKER)
    assert d.told(d.ask(machine, d.submit(), d.CLIENT), m.Start) == []
    worker = machine.state.workers["w"]
    assert views.view_worker(worker, machine.policy.spans, d.NOW).state == "draining"


def test_a_heartbeat_is_answered_with_its_number() -> None:
    """And it is no fact: nothing is written for it."""
    machine, _ = d.running()
    decision = d.ask(machine, m.Heartbeat(number=8), d.WORKER)
    assert decision.sends == [(d.WORKER, m.HeartbeatSeen(number=8))]
    assert decision.records == []


@pytest.mark.parametrize(
    ("silence_s", "is_away", "code"),
    [
        (0.0, False, "name_taken"),
        (4.1, False, "name_silent"),
        (0.0, True, "name_silent"),
    ],
)
def test_a_second_worker_of_a_name_is_refused(
    silence_s: float, is_away: bool, code: str
) -> None:
    """For good while the first is heard; else it may be the same one, restarted."""
    machine, _ = d.running()
    if is_away:
        d.ask(machine, OnClosed(), d.WORKER)
    decision = d.ask(machine, b.registration(instance="2"), 6, d.later(silence_s))
    (refused,) = d.answers(decision, 6)
    assert (refused.call, refused.code) == (-1, code)
    assert decision.closes == [6]
    assert decision.records == []


# ---- what a worker says that comes again ---------------------------------------------


def test_a_worker_that_comes_again_keeps_what_both_sides_know() -> None:
    """Its old session ends; strangers among its processes are to be killed; nothing is
    leased twice, and who leads is told again how far it may go."""
    machine, start = d.crawling(3)
    stranger = m.HeldProcess(job=b.ID, process=99, requests=(1,))
    said = b.registration(held=(b.held(start.process, 1, 2, 3, leads=True), stranger))
    decision = d.ask(machine, said, 6)
    assert decision.closes == [d.WORKER]
    (registered,) = d.answers(decision, 6)
    assert registered.drop == (99,)
    assert d.leases(decision) == {}
    assert machine.state.jobs[b.ID].status == "running"
    # The old connection's end comes late and concerns nobody.
    d.ask(machine, OnClosed(), d.WORKER)
    assert machine.state.workers["w"].session == 6


def test_grants_that_were_lost_on_the_way_are_given_again() -> None:
    """What a process does not hold is pending again; what it holds stays its own."""
    machine, start = d.crawling(4)
    d.ask(machine, OnClosed(), d.WORKER)
    decision = d.ask(
        machine, b.registration(held=(b.held(start.process, 1, 3, leads=True),)), 6
    )
    assert d.leases(decision) == {start.process: [2, 4]}


def test_what_a_worker_no_longer_holds_is_run_again() -> None:
    """It came back without the process: its end was lost on the way."""
    machine, start = d.crawling(2)
    decision = d.ask(machine, b.registration(), 6)
    assert d.started(decision).process == start.process + 1
    assert machine.state.jobs[b.ID].retries_left == 1


def test_a_lead_that_was_lost_on_the_way_is_given_again() -> None:
    """With all that comes before it; one that arrived is not."""
    machine, start = d.running()
    d.commit(machine, start.process, b.unit(1, "start"))
    decision = d.ask(
        machine, b.registration(held=(b.held(start.process, leads=False),)), 6
    )
    skip, lead, may = d.answers(decision, 6)[1:]
    assert len(skip.digests) == 8
    assert (lead.start, may.upto) == (True, 201)
    decision = d.ask(
        machine, b.registration(held=(b.held(start.process, leads=True),)), 7
    )
    assert d.answers(decision, 7)[1:] == [may]


def test_a_finish_that_was_lost_on_the_way_is_said_again() -> None:
    """Else the job would never end."""
    machine, start = d.crawling(0)
    decision = d.ask(
        machine, b.registration(held=(b.held(start.process, leads=True),)), 6
    )
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=1, number=1)]


@pytest.mark.parametrize(
    ("verb", "reason"), [("cancel", "cancelled"), ("pause", JOB_PAUSES)]
)
def test_a_worker_that_was_away_learns_what_it_missed(verb: str, reason: str) -> None:
    """Its processes are stopped then, and take nothing."""
    machine, start = d.crawling(2)
    d.ask(machine, OnClosed(), d.WORKER)
    assert d.answers(d.change(machine, verb), d.WORKER) == []
    decision = d.ask(
        machine, b.registration(held=(b.held(start.process, 1, leads=True),)), 6
    )
    assert d.told(decision, m.Stop) == [
        m.Stop(job=b.ID, process=start.process, reason=reason)
    ]
    assert d.leases(decision) == {}
    # One that said that it closes knows.
    closing = b.held(start.process, closing=reason, leads=True)
    assert d.told(d.ask(machine, b.registration(held=(closing,)), 7), m.Stop) == []


def test_a_process_whose_job_has_ended_is_let_go_again() -> None:
    """``Done`` was lost on the way: else it would hold its slot for ever."""
    machine, start = d.crawling(0)
    d.ask(machine, m.Closing(job=b.ID, process=1, reason="finished"), d.WORKER)
    d.commit(machine, start.process, b.unit(3, "closed"))
    assert machine.state.jobs[b.ID].status == "succeeded"
    entry = b.held(start.process, closing="finished", leads=True)
    decision = d.ask(machine, b.registration(held=(entry,)), 6)
    assert d.told(decision, m.Done) == [
        m.Done(job=b.ID, process=start.process, stats=None)
    ]
    assert machine.next_deadline_s(d.NOW) > 0


def test_a_process_that_committed_its_last_is_let_go_again() -> None:
    """Also while its job goes on elsewhere."""
    machine, _, second = d.wide()
    d.commit(machine, second.process, b.unit(1, "closed"))
    entries = (
        b.held(1, 1, 2, leads=True),
        b.held(2, leads=False, closing="dscrapy_slot_needed"),
    )
    decision = d.ask(machine, b.registration(slots=2, held=entries), 6)
    assert d.told(decision, m.Done) == [m.Done(job=b.ID, process=2, stats=None)]
    assert d.told(decision, m.Stop) == []


# ---- after the master's own restart --------------------------------------------------


def test_a_started_master_waits_for_those_who_hold_something() -> None:
    """As long as for a silent one; they are away, and nobody else is expected."""
    machine, start = d.crawling(2)
    other = d.restarted(machine)
    assert other.state.epoch == machine.state.epoch + 1
    (worker,) = other.state.workers.values()
    seen = views.view_worker(worker, other.policy.spans, d.later(3.0))
    assert (seen.state, seen.busy, seen.last_heartbeat_s) == ("away", 1, 3.0)
    assert other.next_deadline_s(d.NOW) == other.policy.spans.die_after_s
    decision = d.ask(
        other, b.registration(held=(b.held(start.process, 1, leads=True),)), 6
    )
    assert d.leases(decision) == {start.process: [2]}
    assert d.results(d.commit(other, start.process, b.page(1), session=6)) == [
        "published"
    ]


def test_another_worker_of_the_name_waits_until_the_expected_one_is_given_up() -> None:
    """Whose processes may live, and begin what they hold. One that no journal names an
    instance of (an older master's) may be any."""
    machine, start = d.crawling(2)
    other = d.restarted(machine)
    newcomer = b.registration(instance="2")
    (answer,) = d.answers(d.ask(other, newcomer, 6, d.later(3.0)), 6)
    assert (answer.code, start.process in other.state.processes) == (
        "name_silent",
        True,
    )
    assert "was here 3 s ago and is not given up yet" in answer.text
    span = other.policy.spans.die_after_s
    d.ask(other, OnTick(), 0, d.later(span))
    assert start.process not in other.state.processes
    decision = d.ask(other, newcomer, 7, d.later(span))
    assert d.told(decision, m.Registered)
    machine.state.processes[start.process].instance = ""
    older = d.restarted(machine)
    assert d.told(d.ask(older, newcomer, 6), m.Registered)


@pytest.mark.parametrize("comes", [True, False])
def test_nothing_is_granted_before_all_who_hold_something_have_spoken(
    comes: bool,
) -> None:
    """One worker's process may hold what another one asks for; it speaks, or is
    reaped."""
    machine, first = d.running(msgspec.structs.replace(d.SPEC, parallelism=2), window=2)
    d.register(machine, 6, "v")
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, 7)
    ]
    second = d.started(d.commit(machine, first.process, *given, b.unit(7, "started")))
    taken = d.leases(d.ask(machine, b.opened(second.process, window=2), 6))
    (mine,) = taken.values()
    other = d.restarted(machine)
    entry = b.held(1, leads=True)
    decision = d.ask(other, b.registration(held=(entry,)), 7)
    assert (d.leases(decision), d.told(decision, m.StartMay)) == ({}, [])
    assert d.leases(d.commit(other, 1, b.page(1), session=7)) == {}
    if comes:
        entry = b.held(second.process, *mine, opened=b.opened(second.process, window=2))
        decision = d.ask(other, b.registration("v", held=(entry,)), 8)
        assert second.process not in d.leases(decision)
        assert not set(mine) & set(d.leases(decision)[1])
    else:
        other.heard(7, d.later(19.9))
        decision = d.ask(other, OnTick(), 0, d.later(20.0))
        assert set(mine) <= set(d.leases(decision)[1])


def test_a_new_process_waits_too_for_those_who_are_unknown() -> None:
    """Its job's frontier is not known before; another job's is."""
    machine, _ = d.crawling(2)
    d.ask(machine, b.submit(b.OTHER))
    other = d.restarted(machine)
    decision = d.register(other, 6, "v")
    assert d.started(decision).job == b.OTHER
    assert d.told(d.ask(other, b.opened(2, b.OTHER), 6), m.Lead)


def test_a_leader_that_closed_while_the_master_was_away_ends_its_job() -> None:
    """It had been told to finish by the master before."""
    machine, start = d.crawling(0)
    other = d.restarted(machine)
    entry = b.held(start.process, closing="finished", leads=True)
    decision = d.ask(other, b.registration(held=(entry,)), 6)
    assert d.told(decision, m.Stop) == []
    assert other.state.jobs[b.ID].begin().closing == "finished"
    d.commit(other, start.process, b.unit(3, "closed"), session=6)
    assert other.state.jobs[b.ID].status == "succeeded"


def test_a_leader_that_closed_with_work_left_ends_nothing() -> None:
    """Also after the master's restart: what came up meanwhile is not lost."""
    machine, start = d.crawling(0)
    d.commit(machine, start.process, b.unit(3, "late", children=b.children(1)))
    other = d.restarted(machine)
    entry = b.held(start.process, closing="finished", leads=True)
    d.ask(other, b.registration(held=(entry,)), 6)
    assert other.state.jobs[b.ID].begin().closing == ""
    d.commit(other, start.process, b.unit(4, "closed"), session=6)
    again = d.started(d.ask(other, b.ended(start.process), 6))
    assert d.leases(d.ask(other, b.opened(again.process), 6)) == {again.process: [1]}


def test_a_job_runs_where_its_process_is_only_expected() -> None:
    """A worker that cannot run the job says so before the other one has come back:
    the job does not fail for it."""
    machine, first = d.running(msgspec.structs.replace(d.SPEC, parallelism=2), window=2)
    d.register(machine, 6, "v")
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, 7)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    other = d.restarted(machine)
    entry = m.HeldProcess(job=b.ID, process=second.process)
    d.ask(other, b.registration("v", held=(entry,)), 8)
    end = Outcome(failure="import_error", text="why")
    said = b.ended(second.process, how="failed", outcome=end)
    d.ask(other, said, 8)
    job = other.state.jobs[b.ID]
    assert (job.is_crawling, job.begin().closing, job.retries_left) == (True, "", 1)
    assert list(other.state.workers["v"].barred) == [b.ID]


@pytest.mark.parametrize(
    ("worker", "now", "seen"),
    [
        (Worker(name="w", since=0.0), 0.0, "away"),
        (Worker(name="w", since=0.0, session=1), 4.0, "live"),
        (Worker(name="w", since=0.0, session=1), 4.1, "silent"),
        (Worker(name="w", since=0.0, session=1, draining=True), 4.0, "draining"),
        (Worker(name="w", since=0.0, session=1, draining=True), 4.1, "silent"),
    ],
)
def test_what_people_see_of_a_worker(worker: Worker, now: float, seen: str) -> None:
    """Two heartbeats of silence are shown, whatever else it does."""
    assert Spans(heartbeat_s=2.0).state(worker, now) == seen


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../w"},
        {"name": ""},
        {"name": "w\n"},
        {"slots": 0},
        {"slots": SLOTS_MAX + 1},
    ],
)
def test_a_worker_needs_a_plain_name_and_some_slots(fields: dict[str, Any]) -> None:
    """Its name stands in paths and on terminals; nothing is known of it after."""
    machine = d.new_machine()
    with pytest.raises(RemoteProtocolError, match="bad_worker"):
        d.ask(machine, msgspec.structs.replace(b.registration(), **fields), d.WORKER)
    assert machine.state.workers == {}


def test_a_session_registers_once() -> None:
    """A second name on one connection would be two workers that die as one."""
    machine, _ = d.running()
    with pytest.raises(RemoteProtocolError, match="registers once"):
        d.ask(machine, b.registration("v"), d.WORKER)


@pytest.mark.parametrize("window", [0, -1, WINDOW_MAX + 1, 10**400])
@pytest.mark.parametrize("again", [False, True])
def test_a_window_is_a_number_of_leases(window: int, again: bool) -> None:
    """None, or more than fits a float: said on opening or on coming again."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    said = b.opened(start.process, window=window)
    entry = b.held(start.process, opened=said)
    command: m.Message = b.registration(held=(entry,)) if again else said
    if again:
        # The worker is welcome; it drops that process alone.
        decision = d.ask(machine, command, 6)
        assert d.told(decision, m.Registered)[0].drop == (start.process,)
        assert start.process not in machine.state.processes
        return
    with pytest.raises(RemoteProtocolError, match="bad_opened"):
        d.ask(machine, command, d.WORKER)
    assert all(one.opened is None for one in machine.state.processes_of(b.ID))


# ---- what workers say of processes -------------------------------------------------


def test_words_about_another_workers_process_change_nothing() -> None:
    """A worker speaks of its own: nothing of another's, under whatever name."""
    machine, start = d.crawling(2)
    d.register(machine, 6, "v")
    number = start.process
    log = m.Log(job=b.ID, process=number, data=b"x")
    for said in (
        m.Started(job=b.ID, process=number, digest="d"),
        b.ended(number),
        b.opened(number),
        m.Release(job=b.ID, process=number, requests=(1,)),
        m.Closing(job=b.ID, process=number, reason="enough"),
        m.Offer(job=b.ID, process=number, number=1, fingerprints=b""),
        m.Feeds(job=b.ID, process=number, lengths={}),
    ):
        decision = d.ask(machine, said, 6)
        assert decision.records == []
        assert {type(one) for _, one in decision.sends} <= {m.EndedSeen}
    assert not machine.holds(6, log)
    assert not machine.holds(d.CLIENT, log)
    assert machine.holds(d.WORKER, log)
    # Another job's name on it makes it another's, too.
    assert not machine.holds(d.WORKER, msgspec.structs.replace(log, job=b.OTHER))


def test_a_release_gives_back_its_own_leases_only() -> None:
    """What is done, unknown or leased to nobody stays as it is."""
    machine, start = d.crawling(3, window=3)
    d.commit(machine, start.process, b.page(1))
    said = m.Release(
        job=b.ID, process=start.process, requests=(1, 2, 2, 99, -1, 10**30)
    )
    decision = d.ask(machine, said, d.WORKER)
    assert d.leases(decision) == {start.process: [2]}
    assert machine.state.crawls[b.ID].frontier.leased_count == 2


@pytest.mark.parametrize("kind", [m.Log, m.Read])
def test_what_is_the_shells_is_not_decided_here(kind: Any) -> None:
    """Asking the frontier for it is our own bug, and told as one."""
    machine, start = d.running()
    fields: dict[str, Any] = (
        {"data": b""} if kind is m.Log else {"file": "items", "offset": 0, "limit": 1}
    )
    with pytest.raises(AssertionError, match="not decided here"):
        d.ask(machine, kind(job=b.ID, process=start.process, **fields), d.WORKER)


def test_the_first_digest_stays() -> None:
    """Later processes are measured against it; telling it again writes nothing."""
    machine, start = d.running()
    seen = m.Started(job=b.ID, process=start.process, digest="d1")
    d.ask(machine, seen, d.WORKER)
    other = msgspec.structs.replace(seen, digest="d2")
    assert d.ask(machine, other, d.WORKER).records == []
    assert d.started(d.ask(machine, b.ended(start.process), d.WORKER)).digest == "d1"


def test_what_is_leased_and_pending_is_shown() -> None:
    """Of a job that has ended nothing is leased any more."""
    machine, start = d.crawling(2)
    d.commit(machine, start.process, b.unit(3, children=b.children(7, 8)))
    view = views.view_job(machine.state, machine.state.jobs[b.ID])
    assert (view.pending, view.leased, view.processes) == (0, 4, 1)
    d.ask(machine, OnClosed(), d.WORKER)
    d.ask(machine, OnTick(), 0, d.later(100.0))
    view = views.view_job(machine.state, machine.state.jobs[b.ID])
    assert (view.pending, view.leased, view.workers) == (4, 0, ("w",))


@pytest.mark.parametrize(("is_draining", "differs"), [(False, True), (True, False)])
def test_a_worker_that_refuses_a_job_is_not_asked_again(
    is_draining: bool, differs: bool
) -> None:
    """Unless it refused because it drains: that says nothing of the job."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    if is_draining:
        d.ask(machine, m.Draining(), d.WORKER)
    d.ask(machine, b.ended(start.process, how="refused", text="no room"), d.WORKER)
    worker = machine.state.workers["w"]
    assert (b.ID in worker.barred) == differs
    assert bool(views.view_worker(worker, machine.policy.spans, d.NOW).note) == differs
    assert machine.state.jobs[b.ID].begin().reason == "no room on worker w"


@pytest.mark.parametrize("how", ["exited", "refused", "failed"])
def test_a_process_that_ends_while_cancelled_ends_its_job(how: Any) -> None:
    """Also one that was killed, or never came to run."""
    machine, start = d.running()
    d.change(machine, "cancel")
    outcome = Outcome(failure="import_error") if how == "failed" else None
    d.ask(machine, b.ended(start.process, how=how, outcome=outcome), d.WORKER)
    assert machine.state.jobs[b.ID].status == "cancelled"
