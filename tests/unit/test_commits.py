"""Commits: the first of a request wins, parts and units count once, whoever says it."""

import time
from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import OnTick
from dscrapy.control.effects import Append, Move
from dscrapy.control.projections import items_name, tagged_name
from dscrapy.control.state.processes import Process
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import Outcome, Stats
from tests import builders as b
from tests.unit import machine_driver as d

# ---- the first commit wins -----------------------------------------------------------


def test_the_first_commit_of_a_request_wins() -> None:
    """A re-offered one is settled, whatever it holds, in one message or in two."""
    machine, start = d.crawling(2)
    other = b.page(1, items=(*b.ITEM, *b.ITEM))
    decision = d.commit(machine, start.process, b.page(1, items=b.ITEM), other)
    assert d.results(decision) == ["published", "settled"]
    assert d.results(d.commit(machine, start.process, other)) == ["settled"]
    assert machine.state.jobs[b.ID].begin().items == 1


def test_answers_name_what_they_answer() -> None:
    """For each part in order: request, unit and part."""
    machine, start = d.crawling(1)
    decision = d.commit(
        machine, start.process, b.page(1, last=False), b.unit(3, part=1), b.page(7)
    )
    assert d.told(decision, m.CommitsSeen) == [
        m.CommitsSeen(
            job=b.ID,
            process=start.process,
            seen=(
                m.Seen(1, 0, 0, "stored"),
                m.Seen(0, 3, 1, "settled"),
                m.Seen(7, 0, 0, "settled"),
            ),
        )
    ]


def test_a_commit_of_a_process_that_was_given_up_may_be_the_first() -> None:
    """The request is leased elsewhere by then; that process's commit comes second."""
    machine, first = d.crawling(1)
    d.carry_out(machine, machine.decide(0, OnTick(), d.later(100.0)))
    second = d.started(d.register(machine, 6, "v"))
    decision = d.ask(machine, b.opened(second.process), 6)
    assert d.leases(decision) == {second.process: [1]}
    d.ask(machine, b.registration(), 7)
    decision = d.commit(machine, first.process, b.page(1, items=b.ITEM), session=7)
    assert d.results(decision) == ["published"]
    assert d.told(decision, m.Finish, second.process)
    assert d.results(d.commit(machine, second.process, b.page(1), session=6)) == [
        "settled"
    ]
    assert machine.state.jobs[b.ID].begin().items == 1


def test_units_of_a_process_that_was_given_up_are_settled() -> None:
    """Nobody could tell any more whether they are there already."""
    machine, first = d.running()
    d.carry_out(machine, machine.decide(0, OnTick(), d.later(100.0)))
    d.ask(machine, b.registration(), 7)
    for kind in ("late", "start", "closed"):
        said = d.commit(machine, first.process, b.unit(1, kind), session=7)
        assert d.results(said) == ["settled"]


@pytest.mark.parametrize("state", ["unknown", "ready", "cancelled"])
def test_a_commit_for_a_job_that_does_not_run_is_settled(state: str) -> None:
    """Unknown here, or waiting: a master whose state was put back may be asked so."""
    machine = d.new_machine()
    if state != "unknown":
        d.ask(machine, d.submit())
    if state == "cancelled":
        d.ask(machine, m.ChangeJob(call=1, verb="cancel", job=b.ID))
    d.ask(machine, b.registration(slots=1), d.WORKER) if state != "ready" else None
    session = d.WORKER if state != "ready" else 8
    if state == "ready":
        drained = msgspec.structs.replace(b.registration(), draining=True)
        d.ask(machine, drained, session)
    decision = d.commit(machine, 4, b.page(1), b.unit(1), session=session)
    assert d.results(decision) == ["settled", "settled"]
    assert not machine.state.crawls


# ---- parts ---------------------------------------------------------------------------


def part(number: int, last: bool = False, **fields: Any) -> m.Commit:
    """Return one of several parts of request 1."""
    return b.part(1, number, last=last, items=b.ITEM, **fields)


def test_parts_count_once_in_order_and_all_at_once() -> None:
    """A part said again is answered again, a later one alone is worth nothing; the last
    one publishes all, then every part is settled. Requests have effect at once."""
    machine, start = d.crawling(1)

    def result(said: m.Commit) -> str:
        (one,) = d.results(d.commit(machine, start.process, said))
        return one

    assert result(part(1)) == "settled"
    decision = d.commit(machine, start.process, part(0, children=b.children(7, 8)))
    assert d.results(decision) == ["taken"]
    assert d.leases(decision) == {start.process: [2, 3]}
    assert result(part(0, children=b.children(7, 8))) == "taken"
    assert result(part(2, last=True)) == "settled"
    assert result(part(1)) == "stored"
    course, crawl = machine.state.jobs[b.ID].begin(), machine.state.crawls[b.ID]
    assert (course.items, crawl.frontier.pending_count) == (0, 0)
    assert crawl.frontier.seen_of(b.children(7).fingerprints) == (True,)
    assert result(part(2, last=True)) == "published"
    assert course.items == 3
    for said in (part(0), part(1), part(2, last=True), part(3, last=True)):
        assert result(said) == "settled"
    assert course.items == 3


def test_parts_in_one_message_count_on_each_other() -> None:
    """Each part of a message knows those before it, though none is applied yet."""
    machine, start = d.crawling(1)
    decision = d.commit(
        machine, start.process, part(0), part(1), part(1), part(3), part(2, last=True)
    )
    assert d.results(decision) == ["stored", "stored", "stored", "settled", "published"]
    assert machine.state.jobs[b.ID].begin().items == 3


def test_parts_of_a_process_that_was_given_up_are_void() -> None:
    """The rest of them is settled, so that its sender drops it; the request is done
    elsewhere, and no item of the stored parts shows."""
    machine, first = d.crawling(1)
    d.commit(machine, first.process, part(0, children=b.children(7)))
    d.carry_out(machine, machine.decide(0, OnTick(), d.later(100.0)))
    d.ask(machine, b.registration(), 7)
    for said in (part(0), part(1), part(1, last=True)):
        assert d.results(d.commit(machine, first.process, said, session=7)) == [
            "settled"
        ]
    crawl = machine.state.crawls[b.ID]
    assert crawl.stored == {}
    assert crawl.frontier.is_open(1)
    whole = part(0, last=True)
    assert d.results(d.commit(machine, first.process, whole, session=7)) == [
        "published"
    ]
    assert machine.state.jobs[b.ID].begin().items == 1


def test_stored_parts_give_way_to_another_processes_commit() -> None:
    """First come: half a commit keeps nobody from being first."""
    machine, first = d.crawling(
        1, msgspec.structs.replace(d.SPEC, parallelism=2), slots=2
    )
    d.commit(machine, first.process, part(0))
    # A zombie's whole commit of the same request.
    d.ask(machine, b.registration("v"), 7)
    decision = d.commit(machine, 99, b.page(1), session=7)
    assert d.results(decision) == ["published"]
    assert d.results(d.commit(machine, first.process, part(1, last=True))) == [
        "settled"
    ]
    assert machine.state.jobs[b.ID].begin().items == 0


# ---- an item in pieces ---------------------------------------------------------------


def piece(number: int, last: bool = False, **fields: Any) -> m.Commit:
    """Return a part of request 1 that holds a piece."""
    return b.page(1, part=number, last=last, piece=m.Piece(**fields))


def test_an_item_in_pieces_is_one_item_with_both_its_lines() -> None:
    """However its two texts are cut, and among whole ones; counted with its end."""
    machine, start = d.crawling(1)
    said = [
        part(0),
        piece(1, line=b'{"a"', tagged=b""),
        piece(2, line=b": 1}", tagged=b'{"$i'),
        piece(3, tagged=b'":["m:C",["a"]]}', end=True),
        piece(4, line=b"{}", tagged=b"null", end=True),
        part(5),
        piece(6, last=True, line=b"{}", tagged=b"null", end=True),
    ]
    files: dict[str, bytes] = {}
    decisions: list[str] = []
    for one in (*said[:3], said[2], *said[3:]):
        decision = machine.decide(d.WORKER, b.commits(start.process, one), d.NOW)
        decisions += d.results(decision)
        for write in machine.carry_out(decision).effects.writes:
            do(write, files)
    assert decisions == ["stored"] * 7 + ["published"]
    lines = b'%s\n{"a": 1}\n{}\n%s\n{}\n'
    (raw,) = b.ITEM
    assert files[items_name(b.ID)] == lines % (bytes(raw), bytes(raw))
    assert files[tagged_name(b.ID)].splitlines() == [
        b"null",
        b'{"$i":["m:C",["a"]]}',
        *[b"null"] * 3,
    ]
    course = machine.state.jobs[b.ID].begin()
    assert course.items == 5
    assert course.items_bytes == len(files[items_name(b.ID)])
    assert course.tagged_bytes == len(files[tagged_name(b.ID)])


def do(write: object, files: dict[str, bytes]) -> None:
    """Do a write as the master's files do."""
    match write:
        case Append(name=name, at=at, data=data):
            files[name] = files.get(name, b"")[:at] + data
        case Move(name=name, at=at, spool=spool, count=count):
            files[name] = files.get(name, b"")[:at] + files[spool][:count]
        case _:
            pass


@pytest.mark.parametrize(
    "said",
    [
        [piece(0, line=b"{\n}", tagged=b"null", end=True)],
        [piece(0, line=b"{}", tagged=b"nu\nll", end=True)],
        [piece(0, line=b"{", last=True)],
        [piece(0, line=b"{"), part(1)],
        [piece(0, line=b"{"), b.page(1, part=1)],
        [msgspec.structs.replace(piece(0, line=b"{"), items=b.ITEM)],
    ],
)
@pytest.mark.parametrize("is_one_message", [True, False])
def test_half_an_item_is_an_error_of_its_process(
    said: list[m.Commit], is_one_message: bool
) -> None:
    """Two lines in one, no end, or something else in between would spoil the files."""
    machine, start = d.crawling(1)
    count = 0 if is_one_message else len(said) - 1
    for one in said[:count]:
        d.commit(machine, start.process, one)
    before = machine.state.encode_snapshot()
    with pytest.raises(RemoteProtocolError, match="bad_commit"):
        d.commit(machine, start.process, *said[count:])
    assert machine.state.encode_snapshot() == before


# ---- children and counts -------------------------------------------------------------


def test_children_are_new_once_whoever_names_them() -> None:
    """Within a commit, within a message and over commits; ``dont_filter`` always."""
    machine, start = d.crawling(2)
    twice = b.children(7, 7)
    free = b.children(7, 7, flags=m.DONT_FILTER)
    decision = d.commit(
        machine,
        start.process,
        b.page(1, children=twice, seen=b.children(9).fingerprints),
        b.page(2, children=b.children(7, 9)),
        b.unit(3, children=free),
    )
    assert d.leases(decision) == {start.process: [3, 4, 5]}
    totals = machine.state.crawls[b.ID].totals
    assert totals.count("dupefilter/filtered") == 3
    assert totals.count("scheduler/enqueued") == 5
    assert totals.count("scheduler/dequeued") == 2


def test_what_parts_have_seen_counts_when_they_are_published() -> None:
    """Of every part, the last one's too; not before."""
    machine, start = d.crawling(1)
    crawl = machine.state.crawls[b.ID]
    every = [b.children(number).fingerprints for number in (7, 8, 9)]
    for number, fingerprint in enumerate(every):
        assert crawl.frontier.seen_of(b"".join(every)) == (False,) * 3
        last = number == 2
        d.commit(machine, start.process, part(number, last=last, seen=fingerprint))
    assert crawl.frontier.seen_of(b"".join(every)) == (True,) * 3
    copy = d.restarted(machine)
    assert copy.state.crawls[b.ID].frontier.seen_of(b"".join(every)) == (True,) * 3


def test_bodies_of_seen_children_are_not_written() -> None:
    """What is filtered for certain costs no room in the journal."""
    machine, start = d.crawling(2)
    d.commit(machine, start.process, b.page(1, children=b.children(7)))
    decision = d.commit(machine, start.process, b.page(2, children=b.children(7, 8)))
    (fact,) = (one for one in decision.records if isinstance(one, r.Published))
    assert (fact.children, fact.filtered) == (b.children(8), 1)


def test_offers_are_answered_by_what_is_seen() -> None:
    """In the order of the fingerprints, with the offer's number."""
    machine, start = d.crawling(1)
    offer = m.Offer(
        job=b.ID,
        process=start.process,
        number=3,
        fingerprints=b.children(1, 2).fingerprints,
    )
    assert d.told(d.ask(machine, offer, d.WORKER), m.Offered) == [
        m.Offered(job=b.ID, process=start.process, number=3, seen=(True, False))
    ]
    short = msgspec.structs.replace(offer, fingerprints=b"x")
    with pytest.raises(RemoteProtocolError, match="cut short"):
        d.ask(machine, short, d.WORKER)


def test_stats_count_with_their_commit_and_once() -> None:
    """What a commit adds is there when the commit is, and not when it is settled."""
    machine, start = d.crawling(1)
    stats: Stats = {"sum": {"response_received_count": msgspec.Raw(b"1")}}
    for _ in range(2):
        d.commit(machine, start.process, b.page(1, stats=stats))
    assert machine.state.jobs[b.ID].begin().pages == 1


# ---- units ---------------------------------------------------------------------------


def test_units_count_once_though_one_in_parts_is_overtaken() -> None:
    """Unit 3 travels in parts while 4 and 5 come whole; each has effect once."""
    machine, start = d.crawling(0)
    process = start.process

    def result(said: m.Commit) -> str:
        (one,) = d.results(d.commit(machine, process, said))
        return one

    assert result(b.unit(3, last=False, items=b.ITEM)) == "stored"
    assert result(b.unit(5, items=b.ITEM)) == "published"
    assert result(b.unit(4, items=b.ITEM)) == "published"
    assert [result(b.unit(number)) for number in (1, 2, 4, 5)] == ["settled"] * 4
    assert result(b.unit(3, part=1, items=b.ITEM)) == "published"
    assert result(b.unit(3, items=b.ITEM)) == "settled"
    known = machine.state.processes[process]
    assert (known.units, known.units_beyond) == (5, [])
    assert machine.state.jobs[b.ID].begin().items == 4


def test_a_unit_far_beyond_the_last_one_is_refused() -> None:
    """Whatever a process says of its units, a few of them are remembered."""
    machine, start = d.crawling(0)
    with pytest.raises(RemoteProtocolError, match="far beyond"):
        d.commit(machine, start.process, b.unit(2 + m.UNITS_AHEAD_MAX + 1))
    process = machine.state.processes[start.process]
    assert (process.units, process.units_beyond) == (2, [])
    ahead = 2 + m.UNITS_AHEAD_MAX
    assert d.results(d.commit(machine, start.process, b.unit(ahead))) == ["published"]
    assert process.units_beyond == [ahead]


def test_units_with_gaps_cost_little_and_are_bounded() -> None:
    """Units that were settled leave gaps: a process that goes on for long is not
    remembered unit by unit, and each is looked up at once."""
    process = Process(number=1, job=b.ID, worker="w")
    last = 6 * m.UNITS_AHEAD_MAX
    began = time.process_time()
    for number in range(2, last, 2):
        process.add_unit(number)
        assert process.has_unit(number)
    assert len(process.units_beyond) <= m.UNITS_AHEAD_MAX
    assert process.last_unit == last - 2
    # One that is given up is settled, one that may still come is not.
    assert process.has_unit(1)
    assert not process.has_unit(last - 3)
    # Some 0.1 s; half a minute where each looks at all of them.
    assert time.process_time() - began < 5


def test_only_the_leader_starts_opens_and_idles() -> None:
    """Others may commit what came late, and their end."""
    machine, first = d.running(msgspec.structs.replace(d.SPEC, parallelism=2), slots=2)
    given = [
        b.unit(number, "start", children=b.children(number, host=f"h{number}"))
        for number in range(1, 60)
    ]
    second = d.started(d.commit(machine, first.process, *given))
    d.ask(machine, b.opened(second.process), d.WORKER)
    for said, result in (
        (b.unit(1, "start"), "settled"),
        (b.unit(1, "started"), "settled"),
        (b.unit(1, "opened"), "settled"),
        (b.unit(1, "idle", finish=1), "settled"),
        (b.unit(1, "late"), "published"),
        (b.unit(2, "closed"), "published"),
        (b.unit(3, "late"), "settled"),
    ):
        decision = d.commit(machine, second.process, said)
        assert d.results(decision) == [result], said.kind
    course = machine.state.jobs[b.ID].begin()
    assert (course.start_done, course.opened, course.finish) == (False, False, 0)


def test_start_is_exhausted_once_and_opened_comes_once() -> None:
    """Also in one message; what comes after it is settled."""
    machine, start = d.running()
    decision = d.commit(
        machine,
        start.process,
        b.unit(1, "opened", children=b.children(1)),
        b.unit(2, "opened", children=b.children(2)),
    )
    assert d.results(decision) == ["published", "settled"]
    d.commit(machine, start.process, b.unit(3, "start"), b.unit(4, "started"))
    decision = d.commit(
        machine,
        start.process,
        b.unit(5, "start"),
        b.unit(6, "started"),
        b.unit(7, "opened"),
    )
    assert d.results(decision) == ["settled"] * 3


def test_idle_units_are_numbered() -> None:
    """Each answers the latest ``Finish``; an old one, or one too many, is settled."""
    machine, start = d.crawling(0)
    said = [b.unit(3, "idle", finish=2), b.unit(3, "idle", finish=1)]
    decision = d.commit(machine, start.process, *said, b.unit(4, "idle", finish=1))
    assert d.results(decision) == ["settled", "published", "settled"]
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=1, number=2)]
    decision = d.commit(
        machine, start.process, b.unit(5, "idle", finish=2, children=b.children(9))
    )
    assert d.results(decision) == ["published"]
    assert d.told(decision, m.Finish) == []
    decision = d.commit(machine, start.process, b.page(1))
    assert d.told(decision, m.Finish) == [m.Finish(job=b.ID, process=1, number=3)]


def test_a_process_commits_its_last_once() -> None:
    """What it says after that is settled, and it is told that it may end, once."""
    machine, start = d.running()
    closed = b.unit(1, "closed", end=Outcome(finish_reason="dscrapy_process_idles"))
    decision = d.commit(machine, start.process, closed)
    assert d.told(decision, m.Done) == [m.Done(job=b.ID, process=1, stats=None)]
    decision = d.commit(machine, start.process, closed, b.unit(2))
    assert d.results(decision) == ["settled", "settled"]
    assert d.told(decision, m.Done) == []
    decision = d.ask(machine, b.ended(start.process), d.WORKER)
    assert d.started(decision).process == start.process + 1


# ---- what contradicts itself ---------------------------------------------------------

NAMED = b.children(1)


@pytest.mark.parametrize(
    "said",
    [
        b.page(1, tagged=(msgspec.Raw(b"null"),)),
        m.Commit(),
        m.Commit(request=1, unit=1),
        m.Commit(request=-1),
        m.Commit(request=-1, unit=1, kind="late"),
        m.Commit(request=1, unit=-1),
        b.page(1, part=-1),
        b.page(1, kind="late"),
        m.Commit(unit=1, kind="page"),
        m.Commit(unit=1, kind="closed"),
        m.Commit(unit=1, kind="start", digest=b"1234567"),
        b.page(1, children=msgspec.structs.replace(NAMED, fingerprints=b"x")),
        b.page(1, children=msgspec.structs.replace(NAMED, host_of=())),
        b.page(1, children=msgspec.structs.replace(NAMED, host_of=(1,))),
        b.page(1, children=msgspec.structs.replace(NAMED, host_of=(-1,))),
        b.page(1, children=msgspec.structs.replace(NAMED, hosts=())),
        b.page(1, children=msgspec.structs.replace(NAMED, priorities=(1, 2))),
        b.page(1, children=msgspec.structs.replace(NAMED, flags=())),
        b.page(1, children=msgspec.structs.replace(NAMED, bodies=())),
        b.page(1, seen=b"x" * 21),
    ],
)
def test_a_malformed_commit_ends_the_session(said: m.Commit) -> None:
    """Also beside a sound one, of which nothing then has effect."""
    machine, start = d.crawling(1)
    with pytest.raises(RemoteProtocolError, match="bad_commit"):
        d.commit(machine, start.process, b.page(1), said)
    assert machine.state.crawls[b.ID].frontier.is_open(1)


def test_a_commit_for_anothers_process_ends_the_session() -> None:
    """Another worker's, or one of its own under another job's name."""
    machine, start = d.crawling(1)
    d.ask(machine, b.submit(b.OTHER))
    d.register(machine, 6, "v")
    with pytest.raises(RemoteProtocolError, match="another worker or another job"):
        d.commit(machine, start.process, b.page(1), session=6)
    other = started_for(machine, "v")
    with pytest.raises(RemoteProtocolError, match="another worker or another job"):
        d.ask(machine, b.commits(other, b.page(1)), 6)


def started_for(machine: Any, worker: str) -> int:
    """Return the number of the worker's one process."""
    (number,) = machine.state.workers[worker].processes
    assert isinstance(number, int)
    return number


def test_an_end_of_a_part_that_is_not_the_last_ends_nothing() -> None:
    """Before the last part nothing has effect."""
    machine, start = d.running()
    said = b.unit(1, "closed", last=False, end=b.FINISHED)
    assert d.results(d.commit(machine, start.process, said)) == ["stored"]
    assert not machine.state.processes[start.process].closed
