"""Long values that requests refer to: once in a commit, once on disk, once a grant."""

import json
from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.state.state import State
from dscrapy.crawl.codec.shared_values import value_digest
from dscrapy.crawl.outgoing.child_requests import Child
from dscrapy.crawl.outgoing.commit_parts import PART_BYTES_MAX, Sender, Timers, Work
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import JobSpec
from tests import builders as b
from tests.unit import machine_driver as d


def sharing(
    *numbers: int, uses: tuple[int, ...], values: tuple[bytes, ...] = ()
) -> m.Children:
    """Return requests of which each refers to these values of its commit."""
    return msgspec.structs.replace(
        b.children(*numbers),
        uses=(uses,) * len(numbers),
        values=tuple(map(msgspec.Raw, values)),
    )


def test_values_of_an_earlier_part_are_granted_with_their_requests() -> None:
    """They travel once in a commit, and stand once in the file of bodies."""
    machine, start = d.crawling(1, window=4)
    frontier = machine.state.crawls[b.ID].frontier
    before = frontier.body_bytes
    first = b.part(1, 0, children=sharing(11, uses=(0,), values=(b'"one"',)))
    second = b.page(1, part=1, children=sharing(12, 11, uses=(1, 0), values=(b"22",)))
    ((_, _, early),) = d.commit(machine, start.process, first).grants
    ((_, _, granted),) = d.commit(machine, start.process, second).grants
    one, two = (before + 9, 5), (before + 24, 2)
    assert early.all_places == ((before, 8), one)
    assert [place[0] for place in granted.places] == [before + 15]
    assert granted.values == {3: (two, one)}
    assert set(granted.all_places) == {*granted.places, one, two}
    # That of the request that was seen by then is not stored again.
    assert frontier.body_bytes == before + 27


def test_values_survive_a_snapshot() -> None:
    """The next master hands them on."""
    machine, start = d.crawling(1, window=4)
    given = sharing(11, uses=(0,), values=(b'"one"',))
    d.commit(machine, start.process, b.page(1, children=given))
    crawl = machine.state.crawls[b.ID].snapshot()
    state = State.decode_snapshot(machine.state.encode_snapshot())
    assert state.crawls[b.ID].snapshot() == crawl
    assert list(crawl.frontier.values) == [2]


def test_a_request_whose_value_never_came_ends_the_session() -> None:
    """Nothing of the commit has effect."""
    machine, start = d.crawling(1)
    for uses in ((0,), (-1,)):
        commit = b.page(1, children=sharing(11, uses=uses))
        with pytest.raises(RemoteProtocolError, match="refers to a value that"):
            d.commit(machine, start.process, commit)
    assert machine.state.crawls[b.ID].frontier.is_open(1)


def test_values_that_nobody_needs_are_not_kept() -> None:
    """All its requests are seen already."""
    machine, start = d.crawling(1)
    before = machine.state.crawls[b.ID].frontier.body_bytes
    given = sharing(1, uses=(0,), values=(b'"one"',))
    d.commit(machine, start.process, b.page(1, children=given))
    assert machine.state.crawls[b.ID].frontier.body_bytes == before


# ---- from the crawl process -------------------------------------------------------


def test_a_value_leaves_once_however_many_parts_there_are() -> None:
    """Each part has what its requests need and no earlier one had, and all of it is
    there."""
    sent: list[m.Commit] = []

    def send(message: Any) -> None:
        sent.extend(message.commits)
        seen = tuple(m.Seen(1, 0, one.part, "stored") for one in message.commits)
        answers.append(m.CommitsSeen(job=run.job, process=1, seen=seen))

    answers: list[m.CommitsSeen] = []
    run = m.Run(job=b.ID, process=1, role="crawl", spec=JobSpec(spider="s"))
    timers = Timers(lambda: None, lambda: None, lambda: None)
    sender = Sender(run, send, timers, lambda work: None)
    work = Work("page", request=1)
    every = {
        value_digest(data): data
        for data in (json.dumps(text * 90_000).encode() for text in "abcdef")
    }
    digests = list(every)
    for number in range(200):
        needed = (digests[number % 6], digests[number // 40])
        child = Child(
            number.to_bytes(m.FINGERPRINT_BYTES, "big"),
            "h",
            0,
            0,
            json.dumps("x" * 4000).encode(),
            values=tuple(dict.fromkeys(needed)),
        )
        work.add_child(child, every)
    sender.settled(work)
    while not sender.is_quiet:
        sender.flush()
        for answer in list(answers):
            answers.remove(answer)
            sender.acknowledged(answer)
    assert len(sent) > 3
    values: list[bytes] = []
    number = 0
    for commit in sent:
        children = commit.children
        assert sum(len(bytes(one)) for one in children.values) <= PART_BYTES_MAX
        values += map(bytes, children.values)
        for uses in children.uses:
            expected = (digests[number % 6], digests[number // 40])
            assert tuple(value_digest(values[at]) for at in uses) == tuple(
                dict.fromkeys(expected)
            )
            number += 1
    assert number == 200
    assert len(values) == 6
