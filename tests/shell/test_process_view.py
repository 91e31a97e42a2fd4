"""What a worker lets through between master and process, and says that it holds."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import WORKER_DRAINS
from dscrapy.worker.crawl_process import MESSAGES_WAITING_MAX
from dscrapy.worker.process_view import ProcessView
from tests import builders as b
from tests.shell.manual_master import LEAD, ordered
from tests.shell.worker_in_memory import Crawl, Crawls, Slow

# ---- what a process may say ----------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b.commits(1, m.Commit(unit=1, kind="late"), m.Commit(request=7)), "not_held"),
        # Given back, and committed whole.
        (b.commits(1, m.Commit(request=3)), "not_held"),
        (b.commits(1, m.Commit(request=1, part=1)), "not_held"),
        (b.commits(1, m.Commit()), "bad_commit"),
        (b.commits(1, m.Commit(request=2, unit=1)), "bad_commit"),
        (b.commits(1), "bad_commit"),
        # Units follow one another.
        (b.commits(1, m.Commit(unit=2, kind="late")), "bad_commit"),
        (b.commits(1, m.Commit(unit=10**12, kind="late")), "bad_commit"),
        (b.progress(1, started=(1, 7)), "not_held"),
        (b.progress(1, received=(3,)), "not_held"),
        (m.Release(job=b.ID, process=1, requests=(2, 7)), "not_held"),
        (m.Release(job=b.ID, process=1, requests=(1,)), "not_held"),
    ],
)
async def test_a_process_says_nothing_about_a_request_that_it_does_not_hold(
    said: m.FromProcess, code: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nothing of the message reaches the master."""
    async with ordered(tmp_path) as (master, _, _, crawls):
        await master.say(b.start(), b.grant(1, 2, 3))
        await trio.sleep(1)
        (crawl,) = crawls.started
        crawl.say(m.Release(job=b.ID, process=1, requests=(3,)))
        await trio.sleep(0.1)
        told = len(master.told(m.Commits, m.Release))
        with pytest.raises(RemoteProtocolError) as raised:
            crawl.say(said)
        assert raised.value.code == code
        await trio.sleep(0.1)
        assert len(master.told(m.Commits, m.Release)) == told == 2


def test_shares_are_known_as_the_process_knows_them() -> None:
    """Those that are not all there is; a grant that was overtaken by a recall, and an
    answer that a later share overtook, say nothing."""
    view = ProcessView(start=b.start())

    def give(recall: int, count: int = 0) -> None:
        share = m.Share(count=count, recall=recall)
        view.hand_on(b.grant(shares={"a": share}))

    def recall(number: int, share: int) -> None:
        hosts = {"a": share}
        view.hand_on(m.Recall(job=b.ID, process=1, number=number, hosts=hosts))

    def answer(number: int, share: int) -> None:
        hosts = {"a": share}
        view.hear(m.Yielded(job=b.ID, process=1, number=number, hosts=hosts))

    def shares() -> dict[str, int]:
        return view.report(()).shares

    give(0)
    assert shares() == {}
    recall(1, 4)
    give(0)
    assert shares() == {}
    answer(1, 4)
    assert shares() == {"a": 4}
    recall(2, 2)
    give(2, 5)
    answer(2, 2)
    assert shares() == {"a": 5}
    recall(3, 1)
    # It cannot share the host.
    answer(3, 0)
    assert shares() == {"a": 5}
    give(3)
    assert shares() == {}
    give(3, 2)
    view.end()
    assert shares() == {}


async def test_units_are_free_and_parts_keep_their_request(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A process commits units without a lease; the parts of a large commit need the
    lease until the last of them."""
    async with ordered(tmp_path) as (master, worker, _, crawls):
        await master.say(b.start())
        (crawl,) = crawls.started
        crawl.commit_unit("late")
        await master.say(b.grant(5))
        crawl.commit(m.Commit(request=5, last=False))
        crawl.commit(m.Commit(request=5, part=1, last=False))
        assert worker.processes[1].leased == {5}
        crawl.commit(m.Commit(request=5, part=2))
        assert worker.processes[1].leased == set()
        await trio.sleep(0.1)
        assert len(master.told(m.Commits)) == 4


# ---- what is held when the worker comes back -----------------------------------------


CLOSING = m.Closing(job=b.ID, process=1, reason="enough")
PROGRESS = b.progress(1, started=(2, 1), downloaded=(1,), received=(1,))
# What a process says that has leases of 1, 2 and 3; which of them it holds then, alive
# and dead.
STATES: dict[str, tuple[list[m.FromProcess], tuple[int, ...], tuple[int, ...]]] = {
    "leases": ([], (1, 2, 3), ()),
    "a commit": ([b.commits(1, m.Commit(request=2))], (1, 2, 3), (2,)),
    "a part": ([b.commits(1, m.Commit(request=3, last=False))], (1, 2, 3), (3,)),
    "a unit": ([b.commits(1, m.Commit(unit=1, kind="late"))], (1, 2, 3), ()),
    "given back": ([m.Release(job=b.ID, process=1, requests=(2, 3))], (1,), ()),
    "closing": ([CLOSING], (1, 2, 3), ()),
    "progress": ([PROGRESS], (1, 2, 3), ()),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("leads", [False, True])
@pytest.mark.parametrize("is_dead", [False, True])
async def test_a_registration_says_what_is_held(
    state: str, leads: bool, is_dead: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """In every state of a process the master learns of its leases, of those with a
    commit under way, whether it leads, what it asked of the frontier and whether it
    closes. Of a dead one it learns the same, but for leases, which are void."""
    said, alive, dead = STATES[state]
    crawls = Crawls(page_s=99)
    async with ordered(tmp_path, crawls) as (master, worker, network, _):
        await master.say(b.start(), *([LEAD] if leads else []), b.grant(1, 2, 3))
        (opened,) = master.told(m.Opened)
        for message in said:
            crawls.started[0].say(message)
        if is_dead:
            worker.processes[1].scope.cancel()
            await trio.sleep(1)
        expected = b.held(
            1,
            *(dead if is_dead else alive),
            opened=opened,
            leads=leads,
            closing="enough" if CLOSING in said else "",
            **_come(said if not is_dead else []),
        )
        assert (await master.comes_back(network)).held == (expected,)
        # The registration said it: nothing of it is told again.
        assert master.told(m.Opened, m.Release, m.Closing, m.Progress) == []


def _come(said: list[m.FromProcess]) -> dict[str, Any]:
    """Return how far the process has come, as a registration says it."""
    if PROGRESS not in said:
        return {}
    return {"started": (1, 2), "downloaded": (1,), "received": (1,)}


@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_batch_that_was_answered_in_part_is_held_for_the_rest(
    is_answered: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The master hears the whole batch again, but of the answered request it is not
    said that it is held."""
    async with ordered(tmp_path, Crawls(page_s=99)) as (master, _, network, crawls):
        await master.say(b.start(), b.grant(1, 2, 3))
        crawls.started[0].commit(m.Commit(request=2), m.Commit(request=3))
        await trio.sleep(0.1)
        (batch,) = master.told(m.Commits)
        await master.say(b.commits_seen(2))
        if is_answered:
            await master.say(b.commits_seen(3))
        register = await master.comes_back(network)
        assert register.held[0].requests == ((1,) if is_answered else (1, 3))
        assert master.told(m.Commits) == ([] if is_answered else [batch])


async def test_a_process_that_begins_is_held_without_a_word(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It reads its project yet; when it has ended and that is known, it is not held."""
    slow = Slow()
    crawls = Crawls(deaths=[0])
    async with ordered(tmp_path, crawls, in_thread=slow) as (master, _, network, _):
        await master.say(b.start())
        register = await master.comes_back(network)
        assert register.held == (m.HeldProcess(job=b.ID, process=1),)
        slow.go.set()
        await trio.sleep(0.5)
        await master.say(m.EndedSeen(process=1))
        assert (await master.comes_back(network)).held == ()


# ---- before a process has started ----------------------------------------------------


async def test_what_comes_before_its_process_is_not_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """All of it, in order, and a stop begins its grace."""
    slow = Slow()
    async with ordered(tmp_path, in_thread=slow) as (master, _, _, crawls):
        early = [
            m.Skip(job=b.ID, process=1, part=0, digests=b"d" * 8),
            LEAD,
            m.StartMay(job=b.ID, process=1, upto=5, upto_free=5),
            b.stop(),
        ]
        await master.say(b.start(), *early)
        slow.go.set()
        await trio.sleep(0.1)
        (crawl,) = crawls.started
        assert crawl.told[: len(early)] == early
        (closing,) = master.told(m.Closing)
        assert closing.reason == "cancelled"


async def test_a_process_that_never_begins_is_given_up_when_too_much_waits(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its folder is on a disk that hangs: none of what it was told may be dropped."""
    slow = Slow()
    async with ordered(tmp_path, in_thread=slow) as (master, _, _, crawls):
        may = [
            m.StartMay(job=b.ID, process=1, upto=number, upto_free=number)
            for number in range(MESSAGES_WAITING_MAX + 1)
        ]
        await master.say(b.start(), *may[:-1])
        await trio.sleep(1)
        assert master.ends() == []
        await master.say(may[-1])
        await trio.sleep(1)
        assert [one.process for one in master.ends()] == [1]
        assert crawls.started == []


# ---- exports -------------------------------------------------------------------------


async def test_an_export_gets_its_answers_whatever_happens_on_the_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its role is told, and what it asks is asked again on every session until the
    answer has come, which it hears."""
    async with ordered(tmp_path) as (master, _, network, crawls):
        await master.say(b.start(role="export"))
        (crawl,) = crawls.started
        assert crawl.start.role == "export"
        asked: list[m.FromProcess] = [
            m.Feeds(job=b.ID, process=1, lengths={"a.csv": 3}),
            m.Read(job=b.ID, process=1, file="items", offset=0, limit=10),
        ]
        for question in asked:
            crawl.say(question)
        for _ in range(2):
            await master.comes_back(network)
            assert master.told(m.Feeds, m.Read) == asked
        answers = [
            m.FeedsSeen(job=b.ID, process=1, lengths={"a.csv": 3}),
            m.ReadSeen(job=b.ID, process=1, file="items", offset=0, data=b"{}\n"),
        ]
        await master.say(*answers)
        assert crawl.told[-2:] == answers
        await master.comes_back(network)
        assert master.told(m.Feeds, m.Read) == []
        crawl.commit_unit("closed")
        await master.say(m.Done(job=b.ID, process=1, stats=None))
        crawl.stop(b.stop())
        await trio.sleep(1)
        assert crawl.end == "exited"
        assert len(master.ends()) == 1


# ---- drains --------------------------------------------------------------------------


def stops_of(crawl: Crawl) -> list[str]:
    """Return the reasons of all stops that a process was told."""
    return [one.reason for one in crawl.told if isinstance(one, m.Stop)]


async def test_a_drain_without_a_master_stops_the_processes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nobody else would: they finish what they started and give the rest back."""
    async with ordered(tmp_path, slots=2) as (master, worker, network, crawls):
        await master.say(b.start(), b.start(2), b.grant(1, 2, 3))
        await network.down()
        await trio.sleep(0.5)
        worker.drain()
        await trio.sleep(5)
        for crawl in crawls.started:
            assert stops_of(crawl) == [WORKER_DRAINS]
        assert len(crawls.started[0].worked) == 1
        assert worker.processes[1].closing == WORKER_DRAINS
        assert worker.processes[1].leased == set()


async def test_a_draining_worker_that_loses_its_master_stops_its_processes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The master would have told them, or has: those are not told twice."""
    async with ordered(tmp_path, slots=2) as (master, worker, network, crawls):
        await master.say(b.start(), b.start(2))
        worker.drain()
        await master.say(b.stop(WORKER_DRAINS))
        assert list(map(stops_of, crawls.started)) == [[WORKER_DRAINS], []]
        await network.down()
        await trio.sleep(1)
        assert list(map(stops_of, crawls.started)) == [[WORKER_DRAINS], [WORKER_DRAINS]]
