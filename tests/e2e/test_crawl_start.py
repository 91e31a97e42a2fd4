"""start(), spider_opened and spider_idle in one process of a job, and its end."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dscrapy.crawl.run import STOP_LOCAL_S
from dscrapy.messages import (
    DONT_FILTER,
    START_REQUEST,
    Alive,
    Closing,
    Commits,
    Grant,
    Probe,
    Recall,
    Release,
    Share,
    Yielded,
)
from tests.e2e.crawl_harness import WAIT_S, CrawlProcess, pump
from tests.e2e.naive_master import JOB, NaiveMaster
from tests.e2e.small_site import SmallSite, small_site

FOLDER = Path(__file__).parent / "project"
Start = Callable[..., CrawlProcess]


@pytest.fixture
def site() -> Iterator[SmallSite]:
    with small_site() as site:
        yield site


def pages_of(process: CrawlProcess) -> Counter[str]:
    """Return the pages that have an item."""
    return Counter(json.loads(line)["page"] for line in process.lines)


def rss_bytes(process: CrawlProcess) -> int:
    """Return the process's resident memory."""
    pages = Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# ---- start() ------------------------------------------------------------------


def test_start_is_pulled_no_further_than_the_master_allows(start: Start) -> None:
    """With commits unanswered it stands still at exactly the bound."""
    process = start(
        "starts.py",
        FOLDER,
        credit=False,
        args={"how": "many", "site": "http://127.0.0.1:1", "count": "1000"},
    )

    def pulled() -> int:
        frames = (one for one in process.received if isinstance(one, Commits))
        return sum(one.kind == "start" for frame in frames for one in frame.commits)

    assert process.read_until(lambda: pulled() >= process.master.start_window)
    process.read_until(lambda: False, 1)
    assert pulled() == process.master.start_window


def test_start_goes_on_while_the_engine_holds_back(
    site: SmallSite, start: Start
) -> None:
    """No further than there are places for what it gives; when the engine can start no
    more, as fast as the elements come."""
    master = NaiveMaster(start_window=20, places=3)
    master.is_granting = False
    process = start(
        "starts.py",
        FOLDER,
        master=master,
        settings={"CONCURRENT_REQUESTS": "2"},
        args={"how": "many", "site": site.address, "count": "60", "ms": "60000"},
    )
    assert process.read_until(lambda: len(master.of_kind("start")) >= 3)
    process.read_until(lambda: False, 1)
    assert len(master.of_kind("start")) == 3
    master.is_granting = True
    master.advance()
    assert process.read_until(lambda: len(master.of_kind("start")) == 60)
    assert master.pages() == []
    process.kill()


def test_items_of_start_take_no_places(start: Start) -> None:
    """They go through the pipelines together, however few requests may be ahead."""
    master = NaiveMaster(places=1)
    args = {"how": "slow_items", "count": "30"}
    assert start("starts.py", FOLDER, master=master, args=args).finish() == 0
    assert max(json.loads(line)["together"] for line in master.lines) == 30


def test_items_of_start_make_no_room_for_requests(start: Start) -> None:
    """Once they are answered they are counted by both sides: what comes behind them is
    no further ahead than there are places."""
    master = NaiveMaster(places=3)
    master.is_granting = False
    args = {"how": "items_first", "count": "20", "site": "http://127.0.0.1:1"}
    process = start("starts.py", FOLDER, master=master, args=args)
    assert process.read_until(lambda: len(master.pending) >= 3)
    # It asks for an element when the answer to the last one allows that.
    process.send(Probe(number=1))
    assert process.read_until(lambda: Alive(number=1) in process.received)
    process.read_until(lambda: False, 1)
    assert len(master.lines) == 20
    assert len(master.pending) == 3


@pytest.mark.long
def test_many_start_requests_take_no_memory(start: Start) -> None:
    """All are with the master; the process is as large as after the first ones."""
    master = NaiveMaster(start_window=500)
    master.is_granting = False
    count = 50_000
    process = start(
        "starts.py",
        FOLDER,
        master=master,
        args={"how": "many", "site": "http://127.0.0.1:1", "count": str(count)},
    )
    assert process.read_until(lambda: len(master.pending) > 5000)
    early = rss_bytes(process)
    assert process.read_until(lambda: len(master.pending) == count)
    # An object for each would be a hundred bytes at least.
    assert rss_bytes(process) - early < 40 * count
    master.stop(process.number, "cancelled")
    assert process.finish() == 0


def test_a_start_of_no_order_goes_on_after_kills(site: SmallSite, start: Start) -> None:
    """Every element of a shuffled start() is committed as often as it is there."""
    master = NaiveMaster(start_window=20)
    args = {"how": "shuffled", "site": site.address, "count": "60"}
    kill_at = [25, 70]

    def has_come_far() -> bool:
        return sum(master.digests.values()) >= kill_at[0]

    while kill_at:
        process = start("starts.py", FOLDER, master=master, args=args)
        assert process.read_until(has_come_far)
        process.kill()
        kill_at.pop(0)
    assert start("starts.py", FOLDER, master=master, args=args).finish() == 0
    items = [json.loads(line) for line in master.lines]
    assert Counter(item["item"] for item in items if "item" in item) == dict.fromkeys(
        range(1, 60, 2), 2
    )
    assert Counter(item["page"] for item in items if "page" in item) == {
        str(number): 2 for number in range(0, 60, 2)
    }
    assert len(master.of_kind("started")) == 1


def test_items_of_start_are_units(start: Start) -> None:
    """Slow and dropped ones too; "started" comes when all have gone through."""
    process = start("starts.py", FOLDER, args={"how": "items"})
    assert process.finish() == 0
    kinds = [one.kind for one in process.master.commits]
    assert kinds == ["opened", "start", "start", "start", "started", "ending", "closed"]
    assert Counter(process.lines) == {
        '{"item": 3}': 1,
        '{"item": 1, "slow": 0.3}': 1,
    }
    assert process.stats["sum"]["item_dropped_count"] == 1


def test_what_else_start_does(site: SmallSite, start: Start) -> None:
    """It asks the engine, downloads inline and yields what cannot be encoded."""
    process = start("starts.py", FOLDER, args={"how": "mixed", "site": site.address})
    assert process.finish() == 0
    assert Counter(process.lines) == {
        '{"page": "1"}': 1,
        '{"page": "lambda"}': 1,
        '{"inline": "3"}': 1,
    }
    # The lambda's item is in the unit of the element that asked with it.
    assert sum(len(one.items) for one in process.master.of_kind("start")) == 2


def test_close_in_start_closes_the_job(start: Start) -> None:
    """The reason is the spider's, and start() does not count as exhausted."""
    process = start("starts.py", FOLDER, args={"how": "closes"})
    assert process.finish() == 0
    assert process.outcome.finish_reason == r"enough \ud800"
    assert process.lines == ['{"item": 1}']
    assert process.master.of_kind("started") == []


def test_odd_priorities_and_slots_travel(site: SmallSite, start: Start) -> None:
    """What no message can hold is told nearly; the request itself has it as it is."""
    process = start("starts.py", FOLDER, args={"how": "odd", "site": site.address})
    assert process.finish() == 0
    assert process.lines == ['{"page": "1"}'] * 3
    requests = process.master.requests.values()
    assert [one.priority for one in requests] == [1, 2**53, -(2**53)]
    assert {one.host for one in requests} == {r"\ud800"}


def test_an_error_in_start_is_told_after_what_came_before(start: Start) -> None:
    """ "started" carries it, behind the unit of a slow item; so does the end."""
    process = start("starts.py", FOLDER, args={"how": "fails"})
    assert process.finish() == 0
    kinds = [one.kind for one in process.master.commits]
    assert kinds == ["opened", "start", "started", "ending", "closed"]
    (started,) = process.master.of_kind("started")
    assert started.end is not None
    assert started.end.failure == "start_error"
    assert "LookupError: no more" in started.end.text
    assert process.outcome.finish_reason == "start_error"
    assert process.stats["sum"]["spider_exceptions/LookupError"] == 1


def test_only_the_leader_runs_start(site: SmallSite, start: Start) -> None:
    """Another process takes leases, is never idle, and is stopped at the end."""
    master = NaiveMaster()
    args = {"how": "many", "site": site.address, "count": "60"}
    first = start("starts.py", FOLDER, master=master, args=args)
    assert first.read_until(lambda: bool(master.digests))
    second = start("starts.py", FOLDER, master=master, args=args)
    master.is_finishing = False
    both = [first, second]
    assert pump(both, lambda: len(master.peers) == 2 and len(master.lines) == 60)
    assert pump(both, lambda: second.peer.opened is not None)
    master.is_finishing = True
    master.advance()
    assert pump(both, lambda: not master.peers)
    assert [one.process.wait(WAIT_S) for one in both] == [0, 0]
    assert sum(master.digests.values()) == 60
    assert second.outcome.finish_reason == "finished"


# ---- spider_opened and spider_idle ------------------------------------------------


def test_what_opening_asks_for_counts_once(site: SmallSite, start: Start) -> None:
    """In the leading process; a second one that opens as well asks for nothing."""
    master = NaiveMaster()
    master.is_finishing = False
    args = {"site": site.address, "how": "opened"}
    first = start("idles.py", FOLDER, master=master, args=args)
    second = start("idles.py", FOLDER, master=master, args=args)
    both = [first, second]
    assert pump(both, lambda: all(one.peer.opened for one in both))
    assert pump(both, lambda: len(master.lines) == 3)
    master.is_finishing = True
    master.advance()
    # The second one has nothing to wait for.
    assert pump(both, lambda: not master.peers, STOP_LOCAL_S / 2)
    assert pages_of(first) == {"first": 1, "opened": 1, "openedlocal": 1}
    assert len(master.of_kind("opened")) == 1
    assert Counter(site.paths) == {"/p/first": 1, "/p/opened": 1, "/p/openedlocal": 1}


@pytest.mark.parametrize("how", ["", "dontclose"])
def test_idle_asks_for_more_until_nothing_is_new(
    site: SmallSite, start: Start, how: str
) -> None:
    """Each idle is one unit, revokes the end, and is followed by another."""
    args = {"site": site.address, "rounds": "2", "how": how}
    process = start("idles.py", FOLDER, args=args)
    assert process.finish() == 0
    assert process.outcome.finish_reason == "finished"
    pages = {f"idle{number}{letter}": 1 for number in (1, 2) for letter in "ab"}
    assert pages_of(process) == {"first": 1, **pages}
    idles = process.master.of_kind("idle")
    assert [(one.finish, len(one.children.bodies)) for one in idles] == [(1, 2), (2, 2)]
    assert process.master.finish == 3
    assert process.log.count("] INFO: idle ") == (4 if how else 3)


def test_an_idle_handler_that_asks_for_the_same_for_ever_ends(
    site: SmallSite, start: Start
) -> None:
    """A duplicate revokes the end once; the second time it is known for one."""
    args = {"site": site.address, "how": "again"}
    process = start("idles.py", FOLDER, args=args)
    assert process.finish() == 0
    # The page of start_urls is not filtered, so the handler's first is new.
    assert pages_of(process) == {"first": 2}
    assert process.outcome.finish_reason == "finished"
    assert len(process.master.of_kind("idle")) == 1
    assert process.stats["sum"]["dupefilter/filtered"] == 1


def test_idle_asks_with_a_lambda(site: SmallSite, start: Start) -> None:
    """The unit waits for it, and the end for the unit."""
    args = {"site": site.address, "how": "lambda"}
    process = start("idles.py", FOLDER, args=args)
    assert process.finish() == 0
    assert pages_of(process) == {"first": 1, "lambda": 1}
    (idle,) = process.master.of_kind("idle")
    assert len(idle.items) == 1
    assert len(idle.seen) == 20


@pytest.mark.parametrize(
    ("how", "reason"), [("close", "idled"), ("closecallback", "seen")]
)
def test_close_in_a_handler_or_callback(
    site: SmallSite, start: Start, how: str, reason: str
) -> None:
    """The reason is told at once and with the end; what has begun is committed."""
    args = {"site": site.address, "how": how}
    process = start("idles.py", FOLDER, args=args)
    assert process.finish() == 0
    assert pages_of(process) == {"first": 1}
    assert process.outcome.finish_reason == reason
    closing = [one for one in process.received if isinstance(one, Closing)]
    assert [one.reason for one in closing] == [reason]


def test_nobody_is_idle_while_the_master_holds_requests(
    site: SmallSite, start: Start
) -> None:
    """Nothing is here and start() is exhausted, but the job is not at its end."""
    master = NaiveMaster()
    master.is_granting = False
    process = start("idles.py", FOLDER, master=master, args={"site": site.address})
    assert process.read_until(lambda: master.is_started)
    process.read_until(lambda: False, 1)
    assert "] INFO: idle " not in process.log
    assert not process.peer.closing
    master.is_granting = True
    master.advance()
    assert process.finish() == 0
    assert pages_of(process) == {"first": 1}
    assert process.log.count("] INFO: idle ") == 1


# ---- stop -----------------------------------------------------------------------


def stuck_crawl(site: SmallSite, start: Start, count: int) -> CrawlProcess:
    """Return a crawl of so many pages whose third and fourth one the site holds.

    Two slots of one host: of the sixteen and eight leases nearly all have to wait.
    """
    site.free = 2
    args = {"how": "many", "site": site.address, "count": str(count)}
    settings = {"CONCURRENT_REQUESTS_PER_DOMAIN": "2", "DOWNLOAD_DELAY": "0"}
    process = start("starts.py", FOLDER, args=args, settings=settings)
    lines, leases = process.master.lines, process.peer.leases
    assert process.read_until(lambda: len(lines) == 2 and len(leases) >= 22)
    return process


def test_a_stop_gives_back_what_has_not_begun(site: SmallSite, start: Start) -> None:
    """Each lease is committed or released; what is under way is finished."""
    process = stuck_crawl(site, start, count=500)
    master = process.master
    held = set(process.peer.leases)
    master.stop(process.number, "cancelled")

    def released() -> set[int]:
        releases = (one for one in process.received if isinstance(one, Release))
        return {number for one in releases for number in one.requests}

    assert process.read_until(lambda: len(released() & held) >= 18)
    site.let_go()
    assert process.finish() == 0
    assert process.outcome.finish_reason == "cancelled"
    flags = {request.flags for request in master.requests.values()}
    assert flags == {DONT_FILTER | START_REQUEST}
    assert not released() & master.done
    assert not process.peer.leases
    assert len(master.lines) == len(master.done)
    assert len([path for path in site.paths if path.startswith("/p")]) == len(
        master.done
    )


def test_a_recall_gives_back_what_has_not_begun_of_its_hosts(
    site: SmallSite, start: Start
) -> None:
    """What is under way is finished, and what is granted again later is done."""
    process = stuck_crawl(site, start, count=60)
    master = process.master
    held = set(process.peer.leases)
    master.is_granting = False
    for number, hosts in enumerate(({"b": 0}, {"127.0.0.1": 0, "b": 0}), 1):
        recall = Recall(job=JOB, process=process.number, number=number, hosts=hosts)
        process.send(recall)

    def releases() -> list[Release]:
        return [one for one in process.received if isinstance(one, Release)]

    assert process.read_until(lambda: bool(releases()))
    (release,) = releases()
    # The site holds two, one for each place of the slot.
    assert len(held.difference(release.requests)) == 2
    assert set(process.peer.leases) == held.difference(release.requests)
    site.let_go()
    master.is_granting = True
    master.advance()
    assert process.finish() == 0
    assert len([path for path in site.paths if path.startswith("/p")]) == 60


def test_a_share_of_a_host_is_kept(site: SmallSite, start: Start) -> None:
    """It is said to be smaller once no more is under way; what was given before that
    comes too late, what is given after it counts."""
    site.free = 0
    args = {"how": "many", "site": site.address, "count": "40"}
    settings = {"CONCURRENT_REQUESTS_PER_DOMAIN": "4", "DOWNLOAD_DELAY": "0"}
    process = start("starts.py", FOLDER, args=args, settings=settings)
    ids: dict[str, Any] = {"job": JOB, "process": process.number}
    host = "127.0.0.1"

    def answer(count: int) -> None:
        with site.lock:
            site.free += count
            site.lock.notify_all()

    def give(share: Share) -> None:
        grant = Grant(
            job=JOB,
            process=process.number,
            requests=(),
            hosts=(),
            host_of=(),
            bodies=(),
            shares={host: share},
        )
        process.send(grant)

    def yielded(host: str, share: int) -> Yielded:
        return Yielded(**ids, number=7, hosts={host: share})

    assert process.read_until(lambda: len(process.peer.leases) >= 22)
    assert site.has_come(lambda: site.at_once == 4)
    process.send(Recall(**ids, number=7, hosts={host: 2, "elsewhere": 3}))
    assert process.read_until(lambda: yielded("elsewhere", 3) in process.received)
    answer(1)
    assert site.has_come(lambda: site.at_once == 3)
    answer(1)
    assert process.read_until(lambda: yielded(host, 2) in process.received)
    assert site.at_once == 2
    give(Share(recall=6))
    answer(2)
    assert site.has_come(lambda: len(site.paths) == 6)
    process.send(Probe(number=1))
    assert process.read_until(lambda: Alive(number=1) in process.received)
    assert site.at_once == 2
    give(Share(recall=7))
    assert site.has_come(lambda: site.at_once == 4)
    site.let_go()
    assert process.finish() == 0
    assert site.most_at_once == 4
    assert sum(isinstance(one, Yielded) for one in process.received) == 2


def test_a_stop_finishes_what_cannot_leave_the_process(
    site: SmallSite, start: Start
) -> None:
    """A page with a lambda request that has not begun is committed whole."""
    master = NaiveMaster()
    master.is_answering = False
    args = {"site": site.address, "kinds": "local"}
    process = start("tracked.py", FOLDER, master=master, args=args)
    assert process.read_until(lambda: bool(master.offers))
    master.stop(process.number, "drained")
    assert process.read_until(lambda: bool(process.peer.closing))
    master.answer_offers()
    assert process.finish() == 0
    assert process.outcome.finish_reason == "drained"
    (page,) = (one for one in master.pages() if one.items)
    assert [item.get("local") for item in page.items] == [None, "lambda"]
