"""Who gets a process where: order, further processes, slots that are given back."""

from typing import Any

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.control import views
from dscrapy.control.decision import OnClosed
from dscrapy.control.machine import Machine
from dscrapy.model import SLOT_NEEDED, Outcome
from tests import builders as b
from tests.unit import machine_driver as d


def spread(machine: Machine, process: int, hosts: int, **fields: Any) -> Any:
    """Let ``start()`` give a request for each of so many hosts, and be exhausted."""
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, hosts + 1)
    ]
    return d.commit(machine, process, *given, b.unit(hosts + 1, "started"), **fields)


def reason(machine: Machine, job: str = b.ID) -> str:
    """Return what people see."""
    return views.view_job(machine.state, machine.state.jobs[job]).reason


# ---- first processes -----------------------------------------------------------------


def test_higher_priority_first_then_first_come_to_the_freest_worker() -> None:
    """The order in which jobs are given out, and to whom."""
    machine = d.new_machine()
    d.ask(machine, b.submit("a" * 16))
    d.ask(machine, d.submit())
    d.ask(machine, b.submit("b" * 16))
    d.ask(machine, b.submit("c" * 16, priority=5))
    for session, name, slots in ((5, "one", 1), (6, "two", 3)):
        # Both are there before anything is given out.
        machine.carry_out(machine.decide(session, b.registration(name, slots), d.NOW))
    decision = d.ask(machine, m.Heartbeat(number=1), 5)
    given = [(to, one.job) for to, one in decision.sends if isinstance(one, m.Start)]
    assert [job for _, job in given] == ["c" * 16, "a" * 16, b.ID, "b" * 16]
    assert [to for to, _ in given][:2] == [6, 6]


def test_a_job_that_its_workers_cannot_run_holds_up_no_other() -> None:
    """It stays in its place for a worker that can."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    start = d.started(d.register(machine))
    d.ask(machine, b.submit(b.OTHER))
    said = b.ended(start.process, how="other_code", text="differs")
    assert d.started(d.ask(machine, said, d.WORKER)).job == b.OTHER
    assert d.started(d.register(machine, 6, "v")).job == b.ID


def test_a_process_is_given_the_key_of_its_job() -> None:
    """The same after a restart, of that job only, shown in no text; none without a
    secret."""
    keys = {}
    for secret in (b"s" * 32, b"t" * 32, b""):
        for name in (b.ID, b.OTHER):
            machine = d.new_machine()
            machine.policy = attrs.evolve(machine.policy, secret=secret)
            d.ask(machine, d.submit() if name == b.ID else b.submit(b.OTHER))
            start = d.started(d.register(machine))
            keys[secret, name] = start.key
            assert start.job == name
            assert "key" not in repr(start)
            assert repr(start.key)[2:-1] not in repr(start) or not start.key
            again = d.new_machine()
            again.policy = machine.policy
            d.ask(again, d.submit() if name == b.ID else b.submit(b.OTHER))
            assert d.started(d.register(again)).key == start.key
            told_to = m.Run(
                job=name, process=1, role="crawl", spec=d.SPEC, key=b"keykey"
            )
            assert "key" not in repr(told_to)
    assert keys.pop((b"", b.ID)) == keys.pop((b"", b.OTHER)) == b""
    assert len(set(keys.values())) == 4
    assert all(len(key) == 64 for key in keys.values())


# ---- further ones --------------------------------------------------------------------


def test_another_process_starts_where_it_finds_a_host_of_its_own() -> None:
    """Up to the ceiling, on free slots, once the first is open."""
    machine = d.new_machine()
    d.ask(machine, d.submit(spec=msgspec.structs.replace(d.SPEC, parallelism=3)))
    first = d.started(d.register(machine, slots=8))
    decision = d.ask(machine, b.opened(first.process, window=2), d.WORKER)
    assert d.told(decision, m.Start) == []
    decision = spread(machine, first.process, 9)
    starts = d.told(decision, m.Start)
    assert [one.process for one in starts] == [2, 3]
    assert machine.state.jobs[b.ID].processes == 3
    assert {one.digest for one in starts} == {first.digest}
    leased: list[int] = []
    for number in (1, 2, 3):
        d.ask(machine, b.opened(number, window=2), d.WORKER)
        frontier = machine.state.crawls[b.ID].frontier
        leased.append(frontier.leases.count_of(number))
    assert leased == [2, 2, 2]


def test_one_host_that_nobody_has_room_for_is_enough() -> None:
    """Where ``start()`` is asked for no more than can be started there is one request
    too many at a time: it goes to another process, not behind the first one's pages."""
    spec = msgspec.structs.replace(d.SPEC, parallelism=3)
    machine, first = d.running(spec, slots=3, window=1)
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in (1, 2)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    # It is about to come: nobody else is started for the same host.
    another = b.unit(3, "start", children=b.children(3, host="h2"))
    assert d.told(d.commit(machine, first.process, another), m.Start) == []
    d.ask(machine, b.opened(second.process, window=1), d.WORKER)
    third = b.unit(4, "start", children=b.children(4, host="h4"))
    assert d.told(d.commit(machine, first.process, third), m.Start)


def test_a_process_is_told_how_many_its_job_may_have_now() -> None:
    """Not how many it was submitted with."""
    machine = d.new_machine()
    d.ask(machine, d.submit())
    d.change(machine, "parallelism", count=3)
    start = d.started(d.register(machine))
    assert start.spec == msgspec.structs.replace(d.SPEC, parallelism=3)


def test_one_host_needs_one_process() -> None:
    """More would find nothing that they may do; people are told why."""
    machine, start = d.running(
        msgspec.structs.replace(d.SPEC, parallelism=0), slots=4, window=2
    )
    decision = d.commit(
        machine, start.process, b.unit(1, "start", children=b.children(*range(50)))
    )
    assert d.told(decision, m.Start) == []
    assert reason(machine) == (
        "1 of any number processes: more would find no host of their own"
    )
    d.change(machine, "parallelism", count=1)
    assert reason(machine) == ""


def test_a_job_of_one_process_stays_one() -> None:
    """Whatever it could do with more, and however many slots are free."""
    machine, start = d.running(slots=4, window=2)
    assert d.told(spread(machine, start.process, 9), m.Start) == []


def test_a_ready_job_goes_before_anothers_second_process() -> None:
    """Of whatever priority: a first process is worth more than a further one."""
    machine, start = d.running(
        msgspec.structs.replace(d.SPEC, parallelism=0, priority=9), slots=1, window=2
    )
    spread(machine, start.process, 9)
    d.ask(machine, b.submit(b.OTHER, priority=-5))
    assert d.started(d.register(machine, 6, "v")).job == b.OTHER


# ---- slots given back ----------------------------------------------------------------


def test_a_slot_is_given_back_to_a_ready_job() -> None:
    """One at a time, the newest first, never the leader; then the job starts."""
    machine, first = d.running(
        msgspec.structs.replace(d.SPEC, parallelism=3), slots=3, window=2
    )
    spread(machine, first.process, 9)
    second, third = 2, 3
    for number in (second, third):
        d.ask(machine, b.opened(number, window=2), d.WORKER)
    decision = d.ask(machine, b.submit(b.OTHER, "f" * 16))
    assert d.told(decision, m.Stop) == [
        m.Stop(job=b.ID, process=third, reason=SLOT_NEEDED)
    ]
    assert d.told(d.ask(machine, b.submit("d" * 16)), m.Stop) == []
    end = Outcome(finish_reason=SLOT_NEEDED)
    d.commit(machine, third, b.unit(1, "closed", end=end))
    decision = d.ask(machine, b.ended(third), d.WORKER)
    assert d.started(decision).job == b.OTHER
    assert d.told(decision, m.Stop) == [
        m.Stop(job=b.ID, process=second, reason=SLOT_NEEDED)
    ]
    d.commit(machine, second, b.unit(1, "closed", end=end))
    decision = d.ask(machine, b.ended(second), d.WORKER)
    assert d.started(decision).job == "f" * 16
    # The first process of a job is its own.
    assert d.told(decision, m.Stop) == []
    assert machine.state.crawls[b.ID].leader == first.process
    assert machine.state.jobs[b.ID].is_crawling


def test_the_leader_keeps_its_slot_though_it_is_the_newest() -> None:
    """The others are as good as it is, but for its lead."""
    machine, first, second = d.wide()
    machine.state.crawls[b.ID].leader = second.process
    assert d.told(d.ask(machine, b.submit(b.OTHER)), m.Stop) == [
        m.Stop(job=b.ID, process=first.process, reason=SLOT_NEEDED)
    ]


def test_a_job_of_lower_priority_takes_no_slot() -> None:
    """It waits until one is free."""
    machine, *_ = d.wide()
    assert d.told(d.ask(machine, b.submit(b.OTHER, priority=-1)), m.Stop) == []


def test_no_slot_is_given_back_to_a_job_that_could_not_use_it() -> None:
    """Else the slot would go to and fro for ever; the next job in line gets it."""
    machine, _, second = d.wide()
    machine.state.workers["w"].barred[b.OTHER] = "other code"
    assert d.told(d.ask(machine, b.submit(b.OTHER)), m.Stop) == []
    decision = d.ask(machine, b.submit("f" * 16, priority=-1))
    assert d.told(decision, m.Stop) == []
    decision = d.ask(machine, b.submit("d" * 16))
    assert d.told(decision, m.Stop) == [
        m.Stop(job=b.ID, process=second.process, reason=SLOT_NEEDED)
    ]
    assert set(machine.state.ready) == {b.OTHER, "f" * 16, "d" * 16}


def test_a_draining_worker_has_no_slot_to_give() -> None:
    """What is stopped there frees nothing that anybody could use."""
    machine, *_ = d.wide()
    machine.state.workers["w"].draining = True
    assert d.told(d.ask(machine, b.submit(b.OTHER)), m.Stop) == []


def test_a_stop_that_was_lost_on_the_way_is_said_again() -> None:
    """A process that was to go while its worker was away would hold its slot for
    ever."""
    machine, _, second = d.wide()
    d.ask(machine, OnClosed(), d.WORKER)
    assert d.answers(d.ask(machine, b.submit(b.OTHER)), d.WORKER) == []
    stopping = {one.number for one in machine.state.processes_of(b.ID) if one.stopping}
    assert stopping == {second.process}
    held = tuple(b.held(number, opened=b.opened(number, window=2)) for number in (1, 2))
    decision = d.ask(machine, b.registration(slots=2, held=held), 6)
    assert d.told(decision, m.Stop) == [
        m.Stop(job=b.ID, process=second.process, reason=SLOT_NEEDED)
    ]
    assert second.process not in d.leases(decision)


def test_a_started_process_that_is_to_go_takes_nothing() -> None:
    """It is told again when it opens, and hinders nobody."""
    machine, first = d.running(
        msgspec.structs.replace(d.SPEC, parallelism=2), slots=2, window=2
    )
    second = d.started(spread(machine, first.process, 9))
    decision = d.ask(machine, b.submit(b.OTHER), d.CLIENT)
    stop = m.Stop(job=b.ID, process=second.process, reason=SLOT_NEEDED)
    assert d.told(decision, m.Stop) == [stop]
    decision = d.ask(machine, b.opened(second.process, window=2), d.WORKER)
    assert (d.told(decision, m.Stop), d.leases(decision)) == ([stop], {})
    d.commit(machine, first.process, b.page(1))
    assert machine.state.crawls[b.ID].frontier.leases.count_of(second.process) == 0
