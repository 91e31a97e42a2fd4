"""Who gets a process where: order, further processes, slots that are given back."""

from typing import Any

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.control import views
from dscrapy.control.decision import OnClosed
from dscrapy.control.machine import Machine
from dscrapy.model import SLOT_NEEDED, Outcome
from tests.unit.frontier_values import (
    CLIENT,
    ID,
    NOW,
    OTHER,
    SPEC,
    WORKER,
    answers,
    ask,
    change,
    children,
    commit,
    ended,
    leases,
    new_machine,
    opened,
    page,
    register,
    registration,
    running,
    started,
    submit,
    submit_other,
    told,
    unit,
    wide,
)


def spread(machine: Machine, process: int, hosts: int, **fields: Any) -> Any:
    """Let ``start()`` give a request for each of so many hosts, and be exhausted."""
    given = [
        unit(number, "start", children=children(number, host=f"h{number}"))
        for number in range(1, hosts + 1)
    ]
    return commit(machine, process, *given, unit(hosts + 1, "started"), **fields)


def reason(machine: Machine, job: str = ID) -> str:
    """Return what people see."""
    return views.view_job(machine.state, machine.state.jobs[job]).reason


# ---- first processes -----------------------------------------------------------------


def test_higher_priority_first_then_first_come_to_the_freest_worker() -> None:
    """The order in which jobs are given out, and to whom."""
    machine = new_machine()
    ask(machine, submit_other("a" * 16))
    ask(machine, submit())
    ask(machine, submit_other("b" * 16))
    ask(machine, submit_other("c" * 16, priority=5))
    for session, name, slots in ((5, "one", 1), (6, "two", 3)):
        # Both are there before anything is given out.
        machine.carry_out(machine.decide(session, registration(name, slots), NOW))
    decision = ask(machine, m.Heartbeat(number=1), 5)
    given = [(to, one.job) for to, one in decision.sends if isinstance(one, m.Start)]
    assert [job for _, job in given] == ["c" * 16, "a" * 16, ID, "b" * 16]
    assert [to for to, _ in given][:2] == [6, 6]


def test_a_job_that_its_workers_cannot_run_holds_up_no_other() -> None:
    """It stays in its place for a worker that can."""
    machine = new_machine()
    ask(machine, submit())
    start = started(register(machine))
    ask(machine, submit_other())
    said = ended(start.process, how="other_code", text="differs")
    assert started(ask(machine, said, WORKER)).job == OTHER
    assert started(register(machine, 6, "v")).job == ID


def test_a_process_is_given_the_key_of_its_job() -> None:
    """The same after a restart, of that job only, shown in no text; none without a
    secret."""
    keys = {}
    for secret in (b"s" * 32, b"t" * 32, b""):
        for name in (ID, OTHER):
            machine = new_machine()
            machine.policy = attrs.evolve(machine.policy, secret=secret)
            ask(machine, submit() if name == ID else submit_other())
            start = started(register(machine))
            keys[secret, name] = start.key
            assert start.job == name
            assert "key" not in repr(start)
            assert repr(start.key)[2:-1] not in repr(start) or not start.key
            again = new_machine()
            again.policy = machine.policy
            ask(again, submit() if name == ID else submit_other())
            assert started(register(again)).key == start.key
            told_to = m.Run(job=name, process=1, role="crawl", spec=SPEC, key=b"keykey")
            assert "key" not in repr(told_to)
    assert keys.pop((b"", ID)) == keys.pop((b"", OTHER)) == b""
    assert len(set(keys.values())) == 4
    assert all(len(key) == 64 for key in keys.values())


# ---- further ones --------------------------------------------------------------------


def test_another_process_starts_where_it_finds_a_host_of_its_own() -> None:
    """Up to the ceiling, on free slots, once the first is open."""
    machine = new_machine()
    ask(machine, submit(spec=msgspec.structs.replace(SPEC, parallelism=3)))
    first = started(register(machine, slots=8))
    decision = ask(machine, opened(first.process, window=2), WORKER)
    assert told(decision, m.Start) == []
    decision = spread(machine, first.process, 9)
    starts = told(decision, m.Start)
    assert [one.process for one in starts] == [2, 3]
    assert machine.state.jobs[ID].processes == 3
    assert {one.digest for one in starts} == {first.digest}
    leased: list[int] = []
    for number in (1, 2, 3):
        ask(machine, opened(number, window=2), WORKER)
        frontier = machine.state.crawls[ID].frontier
        leased.append(frontier.leases.count_of(number))
    assert leased == [2, 2, 2]


def test_one_host_that_nobody_has_room_for_is_enough() -> None:
    """Where ``start()`` is asked for no more than can be started there is one request
    too many at a time: it goes to another process, not behind the first one's pages."""
    spec = msgspec.structs.replace(SPEC, parallelism=3)
    machine, first = running(spec, slots=3, window=1)
    given = [
        unit(number, "start", children=children(number, host=f"h{number}"))
        for number in (1, 2)
    ]
    second = started(commit(machine, first.process, *given))
    # It is about to come: nobody else is started for the same host.
    another = unit(3, "start", children=children(3, host="h2"))
    assert told(commit(machine, first.process, another), m.Start) == []
    ask(machine, opened(second.process, window=1), WORKER)
    third = unit(4, "start", children=children(4, host="h4"))
    assert told(commit(machine, first.process, third), m.Start)


def test_a_process_is_told_how_many_its_job_may_have_now() -> None:
    """Not how many it was submitted with."""
    machine = new_machine()
    ask(machine, submit())
    change(machine, "parallelism", count=3)
    start = started(register(machine))
    assert start.spec == msgspec.structs.replace(SPEC, parallelism=3)


def test_one_host_needs_one_process() -> None:
    """More would find nothing that they may do; people are told why."""
    machine, start = running(
        msgspec.structs.replace(SPEC, parallelism=0), slots=4, window=2
    )
    decision = commit(
        machine, start.process, unit(1, "start", children=children(*range(50)))
    )
    assert told(decision, m.Start) == []
    assert reason(machine) == (
        "1 of any number processes: more would find no host of their own"
    )
    change(machine, "parallelism", count=1)
    assert reason(machine) == ""


def test_a_job_of_one_process_stays_one() -> None:
    """Whatever it could do with more, and however many slots are free."""
    machine, start = running(slots=4, window=2)
    assert told(spread(machine, start.process, 9), m.Start) == []


def test_a_ready_job_goes_before_anothers_second_process() -> None:
    """Of whatever priority: a first process is worth more than a further one."""
    machine, start = running(
        msgspec.structs.replace(SPEC, parallelism=0, priority=9), slots=1, window=2
    )
    spread(machine, start.process, 9)
    ask(machine, submit_other(priority=-5))
    assert started(register(machine, 6, "v")).job == OTHER


# ---- slots given back ----------------------------------------------------------------


def test_a_slot_is_given_back_to_a_ready_job() -> None:
    """One at a time, the newest first, never the leader; then the job starts."""
    machine, first = running(
        msgspec.structs.replace(SPEC, parallelism=3), slots=3, window=2
    )
    spread(machine, first.process, 9)
    second, third = 2, 3
    for number in (second, third):
        ask(machine, opened(number, window=2), WORKER)
    decision = ask(machine, submit_other(OTHER, "f" * 16))
    assert told(decision, m.Stop) == [m.Stop(job=ID, process=third, reason=SLOT_NEEDED)]
    assert told(ask(machine, submit_other("d" * 16)), m.Stop) == []
    end = Outcome(finish_reason=SLOT_NEEDED)
    commit(machine, third, unit(1, "closed", end=end))
    decision = ask(machine, ended(third), WORKER)
    assert started(decision).job == OTHER
    assert told(decision, m.Stop) == [
        m.Stop(job=ID, process=second, reason=SLOT_NEEDED)
    ]
    commit(machine, second, unit(1, "closed", end=end))
    decision = ask(machine, ended(second), WORKER)
    assert started(decision).job == "f" * 16
    # The first process of a job is its own.
    assert told(decision, m.Stop) == []
    assert machine.state.crawls[ID].leader == first.process
    assert machine.state.jobs[ID].is_crawling


def test_the_leader_keeps_its_slot_though_it_is_the_newest() -> None:
    """The others are as good as it is, but for its lead."""
    machine, first, second = wide()
    machine.state.crawls[ID].leader = second.process
    assert told(ask(machine, submit_other()), m.Stop) == [
        m.Stop(job=ID, process=first.process, reason=SLOT_NEEDED)
    ]


def test_a_job_of_lower_priority_takes_no_slot() -> None:
    """It waits until one is free."""
    machine, *_ = wide()
    assert told(ask(machine, submit_other(priority=-1)), m.Stop) == []


def test_no_slot_is_given_back_to_a_job_that_could_not_use_it() -> None:
    """Else the slot would go to and fro for ever; the next job in line gets it."""
    machine, _, second = wide()
    machine.state.workers["w"].barred[OTHER] = "other code"
    assert told(ask(machine, submit_other()), m.Stop) == []
    decision = ask(machine, submit_other("f" * 16, priority=-1))
    assert told(decision, m.Stop) == []
    decision = ask(machine, submit_other("d" * 16))
    assert told(decision, m.Stop) == [
        m.Stop(job=ID, process=second.process, reason=SLOT_NEEDED)
    ]
    assert set(machine.state.ready) == {OTHER, "f" * 16, "d" * 16}


def test_a_draining_worker_has_no_slot_to_give() -> None:
    """What is stopped there frees nothing that anybody could use."""
    machine, *_ = wide()
    machine.state.workers["w"].draining = True
    assert told(ask(machine, submit_other()), m.Stop) == []


def test_a_stop_that_was_lost_on_the_way_is_said_again() -> None:
    """A process that was to go while its worker was away would hold its slot for
    ever."""
    machine, _, second = wide()
    ask(machine, OnClosed(), WORKER)
    assert answers(ask(machine, submit_other()), WORKER) == []
    stopping = {one.number for one in machine.state.processes_of(ID) if one.stopping}
    assert stopping == {second.process}
    held = tuple(
        m.Held(job=ID, process=number, opened=opened(number, window=2))
        for number in (1, 2)
    )
    decision = ask(machine, registration(slots=2, held=held), 6)
    assert told(decision, m.Stop) == [
        m.Stop(job=ID, process=second.process, reason=SLOT_NEEDED)
    ]
    assert second.process not in leases(decision)


def test_a_started_process_that_is_to_go_takes_nothing() -> None:
    """It is told again when it opens, and hinders nobody."""
    machine, first = running(
        msgspec.structs.replace(SPEC, parallelism=2), slots=2, window=2
    )
    second = started(spread(machine, first.process, 9))
    decision = ask(machine, submit_other(), CLIENT)
    stop = m.Stop(job=ID, process=second.process, reason=SLOT_NEEDED)
    assert told(decision, m.Stop) == [stop]
    decision = ask(machine, opened(second.process, window=2), WORKER)
    assert (told(decision, m.Stop), leases(decision)) == ([stop], {})
    commit(machine, first.process, page(1))
    assert machine.state.crawls[ID].frontier.leases.count_of(second.process) == 0
