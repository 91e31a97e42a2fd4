"""A frontier against a naive model, and its order against Scrapy's own queue."""

from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)
from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.pqueues import ScrapyPriorityQueue
from scrapy.squeues import FifoMemoryQueue, LifoMemoryQueue

from dscrapy.frontier.frontier import Frontier, FrontierSnapshot
from dscrapy.frontier.quarantine import Poisoned
from dscrapy.messages import DONT_FILTER, START_REQUEST, Children, Share
from dscrapy.model import HostLimits
from tests import builders as b
from tests.property.frontier_model import (
    CONCURRENCY,
    DELAY_S,
    HOSTS,
    PROCESSES,
    SLOW_CONCURRENCY,
    URLS,
    NaiveFrontier,
    Peer,
    Row,
)

ROW = st.tuples(
    st.sampled_from(URLS),
    st.sampled_from(HOSTS),
    st.integers(-1, 1),
    st.sampled_from((0, 0, 0, DONT_FILTER, START_REQUEST, DONT_FILTER | START_REQUEST)),
)
ROWS = st.lists(ROW, max_size=8)


def columns(rows: list[Row]) -> Children:
    """Return the rows as children."""
    if not rows:
        return Children()
    urls, hosts, priorities, flags = zip(*rows, strict=True)
    return b.children(*urls, hosts=hosts, priorities=priorities, flags=flags)


class FrontierModel(NaiveFrontier):
    """What may be asked of a frontier, in any order."""

    @initialize(lifo=st.booleans(), start_lifo=st.booleans())
    def begin(self, lifo: bool, start_lifo: bool) -> None:
        """Nothing is known; the project's order is fixed."""
        self.set_up(lifo, start_lifo)

    # ---- rules ---------------------------------------------------------------

    @rule(rows=ROWS)
    def add(self, rows: list[Row]) -> None:
        offset, self.bytes = self.bytes, self.bytes + len(rows) * 5
        assert self.frontier.add(columns(rows)) == self.take(rows, offset)

    @rule(rows=ROWS)
    def unseen(self, rows: list[Row]) -> None:
        kept, filtered = self.frontier.unseen(columns(rows))
        known, expected = set(self.seen), []
        for row in rows:
            if row[3] & DONT_FILTER or row[0] not in known:
                expected.append(row)
            if not row[3] & DONT_FILTER:
                known.add(row[0])
        told = [
            (
                msgspec.json.decode(body),
                kept.hosts[kept.host_of[at]],
                kept.priorities[at],
                kept.flags[at],
            )
            for at, body in enumerate(kept.bodies)
        ]
        assert told == expected
        assert filtered == len(rows) - len(expected)

    @rule(rows=ROWS)
    def store(self, rows: list[Row]) -> None:
        offset, self.bytes = self.bytes, self.bytes + len(rows) * 5
        self.parts.append((self.frontier.store(columns(rows)), rows, offset))

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.parts) - 1))
        stored, rows, offset = self.parts.pop(at)
        assert self.frontier.publish([stored]) == self.take(rows, offset)

    @rule(url=st.sampled_from(URLS))
    def see(self, url: str) -> None:
        self.frontier.publish([self.frontier.store(Children(), b.fingerprint(url))])
        self.seen.add(url)

    @rule(data=st.data(), told=st.booleans())
    def done(self, data: st.DataObject, told: bool) -> None:
        number = data.draw(st.integers(1, self.next))
        self.finish(number, told)

    @precondition(lambda self: self.leases())
    @rule(data=st.data())
    def done_leased(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(self.leases())), True)

    def finish(self, number: int, told: bool) -> None:
        one = self.open.pop(number, None)
        self.finished += one is not None
        assert self.frontier.done(number, self.now if told else None) == bool(one)
        if one is None:
            return
        if number in self.blamed:
            self.blamed.remove(number)
        if number in self.suspects:
            self.suspects.remove(number)
        if one.aside:
            return
        if one.holder is not None:
            if one.stage < 2:
                self.rest[one.host] = self.now
            self.settle(one.host)
        if not self.is_used(one.host) and not self.rights[one.host]:
            self.reserved.pop(one.host, None)
            self.whole.discard(one.host)
        self.end_isolation()

    @rule(number=st.integers(1, 30), alone=st.booleans())
    def blame(self, number: int, alone: bool) -> None:
        """Requests are blamed for a death: twice makes a suspect, twice alone proof."""
        self.blame_all([number], alone)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), process=st.sampled_from(PROCESSES), lose=st.booleans())
    def suspect(self, data: st.DataObject, process: int, lose: bool) -> None:
        """Some become suspects at once; a process may have them, and lose them."""
        several = st.lists(st.sampled_from(sorted(self.open)), max_size=3, unique=True)
        self.blame_all(data.draw(several) * 2, False)
        if process in self.peers and not self.leases(process=process):
            self.isolate(process)
            self.lease_to(process, 2)
            if lose:
                self.end(process)

    def blame_all(self, numbers: list[int], alone: bool) -> None:
        for number in numbers:
            one = self.open.get(number)
            proves = one is not None and one.is_suspect and one.deaths_alone > 0
            told = self.frontier.would_prove(number, alone=alone)
            assert told == (alone and proves)
            self.frontier.count_death([number], alone=alone)
            if one is None or one.aside:
                continue
            if number not in self.blamed:
                self.blamed.append(number)
            if one.deaths >= 2:
                one.deaths_alone += alone
                continue
            one.deaths += 1
            if one.is_suspect and one.holder is None:
                self.suspects.append(number)

    @precondition(lambda self: self.suspects)
    @rule(data=st.data())
    def halve(self, data: st.DataObject) -> None:
        """Suspects that were tried together make two groups."""
        several = st.lists(st.sampled_from(self.suspects), min_size=1, unique=True)
        numbers = data.draw(several)
        last = max(self.open[number].group for number in self.blamed)
        self.frontier.halve(numbers)
        for at, number in enumerate(numbers):
            self.open[number].group = last + 1 + (2 * at >= len(numbers))

    @rule(number=st.integers(1, 30))
    def set_aside(self, number: int) -> None:
        one = self.open.get(number)
        if one is None or one.aside:
            return
        self.frontier.set_aside(number, Poisoned(url="u", text="why"))
        one.aside, one.group = True, 0
        one.holder, one.stage = None, 0
        if number in self.suspects:
            self.suspects.remove(number)
        if number not in self.blamed:
            self.blamed.append(number)
        self.settle(one.host)
        self.end_isolation()

    @rule()
    def pardon(self) -> None:
        aside = list(self.frontier.poisoned)
        assert sorted(aside) == sorted(n for n, one in self.open.items() if one.aside)
        self.frontier.pardon()
        for number in aside:
            one = self.open[number]
            one.aside, one.deaths, one.deaths_alone, one.group = False, 2, 0, 0
            self.suspects.append(number)

    @rule(process=st.sampled_from(PROCESSES))
    def isolate(self, process: int) -> None:
        """A process that has nothing may have the suspects."""
        wanted = bool(self.suspects) and self.isolator is None
        assert self.frontier.quarantine.wants_isolator == wanted
        peer = self.peers.get(process)
        if wanted and peer and not peer.closing and not self.leases(process=process):
            self.frontier.quarantine.isolate(process)
            self.isolator = process

    @rule(process=st.sampled_from(PROCESSES), window=st.sampled_from((1, 4, 9)))
    def open_process(self, process: int, window: int) -> None:
        if process not in self.peers:
            self.peers[process] = Peer(window)
        self.tell(process)

    def tell(self, process: int) -> None:
        told = b.opened(
            process,
            window=self.peers[process].window,
            lifo=self.lifo,
            start_lifo=self.start_lifo,
            concurrency=CONCURRENCY,
            hosts={"slow": HostLimits(concurrency=SLOW_CONCURRENCY, delay_s=DELAY_S)},
        )
        self.frontier.leases.open_process(process, told, self.now)
        self.ruled = True

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def close_process(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(sorted(self.peers)))
        self.frontier.leases.close_process(process)
        self.peers[process].closing = True
        self.reserved = {h: p for h, p in self.reserved.items() if p != process}
        for host in HOSTS:
            if process in self.rights[host]:
                self.lower(host, process, 0)
                self.settle(host)
        self.end_isolation()

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def end_process(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.peers))))

    def end(self, process: int) -> None:
        self.frontier.leases.end_process(process, self.now)
        for number in reversed(self.leases(process=process)):
            if self.open[number].stage < 2:
                self.rest[self.open[number].host] = self.now
            self.back(number)
        for host in HOSTS:
            if process in self.rights[host]:
                self.end_right(host, process)
        self.reserved = {h: p for h, p in self.reserved.items() if p != process}
        del self.peers[process]
        self.end_isolation()

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), count=st.integers(0, 12))
    def lease(self, data: st.DataObject, count: int) -> None:
        process = data.draw(st.sampled_from(sorted(self.peers)))
        self.lease_to(process, count)

    def lease_to(self, process: int, count: int) -> int:
        granted = self.frontier.lease(process, count, self.now)
        if self.peers[process].closing:
            assert granted.requests == ()
            return 0
        self.look()
        left = min(
            count, self.peers[process].window - len(self.active(process=process))
        )
        shares: dict[str, Share] = {}
        if process == self.isolator:
            self.check_group(process, granted.requests, left)
            for number in granted.requests:
                self.give(process, number, shares)
            self.see_gifts()
            assert granted.shares == shares
            return len(granted.requests)
        for at, number in enumerate(granted.requests):
            assert at < left
            if self.best(process) is None:
                # What follows was given up for it just now.
                self.see_gift(self.open[number].host, process)
                self.reserved[self.open[number].host] = process
            assert number == self.best(process)
            self.give(process, number, shares)
            one = self.open[number]
            assert (one.host, one.place) == (granted.hosts[at], granted.places[at])
            count = self.unstarted(one.host, process)
            assert count <= self.bound(one.host, process)
        if len(granted.requests) < left:
            assert self.best(process) is None
        self.see_gifts()
        assert granted.shares == shares
        return len(granted.requests)

    def check_group(self, process: int, requests: tuple[int, ...], count: int) -> None:
        """The isolator gets suspects of one group, when it has none."""
        if self.leases(process=process):
            assert requests == ()
            return
        if requests and not self.group_at_hand():
            self.see_gift(self.open[requests[0]].host, process)
            self.reserved[self.open[requests[0]].host] = process
        assert list(requests) == self.group_at_hand()[:count]

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), numbers=st.sets(st.integers(1, 30), max_size=6))
    def release(self, data: st.DataObject, numbers: set[int]) -> None:
        process = data.draw(st.sampled_from(sorted(self.peers)))
        self.frontier.leases.release(process, sorted(numbers), self.now)
        for number in numbers.intersection(self.leases(process=process)):
            self.back(number)

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        started=st.sets(st.integers(1, 30), max_size=6),
        downloaded=st.sets(st.integers(1, 30), max_size=6),
    )
    def come_further(
        self, data: st.DataObject, started: set[int], downloaded: set[int]
    ) -> None:
        process = data.draw(st.sampled_from(sorted(self.peers)))
        self.frontier.leases.proceed(
            process, sorted(started), sorted(downloaded), self.now
        )
        self.proceed(process, started, downloaded)

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        numbers=st.sets(st.integers(1, 30), max_size=6),
        started=st.sets(st.integers(1, 30), max_size=6),
        downloaded=st.sets(st.integers(1, 30), max_size=6),
        shares=st.dictionaries(st.sampled_from(HOSTS), st.integers(1, 4), max_size=2),
    )
    def hold(
        self,
        data: st.DataObject,
        numbers: set[int],
        started: set[int],
        downloaded: set[int],
        shares: dict[str, int],
    ) -> None:
        process = data.draw(st.sampled_from(sorted(self.peers)))
        self.frontier.leases.hold(
            process,
            sorted(numbers),
            self.now,
            started=sorted(started),
            downloaded=sorted(downloaded),
            shares=shares,
        )
        for number in self.leases(process=process):
            if number not in numbers:
                self.back(number)
        for number in sorted(numbers):
            one = self.open.get(number)
            if one is None or one.holder is not None or one.aside:
                continue
            self.take_over(one.host, process, shares.get(one.host, 0))
            one.holder = process
            if one.is_suspect:
                self.suspects.remove(number)
                if self.isolator is None and not self.peers[process].closing:
                    self.isolator = process
        self.proceed(process, started, downloaded)
        for host in HOSTS:
            if process in self.rights[host]:
                self.correct(host, process, shares.get(host, 0))

    @rule()
    def recall(self) -> None:
        """Whose shares are to become smaller is told once."""
        expected: dict[int, dict[str, int]] = {}
        for host, process in self.untold:
            target = self.rights[host][process].target
            expected.setdefault(process, {})[host] = target
        told = self.frontier.leases.recalls()
        assert told == expected
        for process, hosts in told.items():
            number = self.frontier.leases.next_recall
            self.frontier.leases.recalled(process, number, hosts)
            for host in hosts:
                self.told[host, process] = number
        self.untold.clear()
        assert self.frontier.leases.recalls() == {}

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        host=st.sampled_from(HOSTS),
        share=st.integers(0, 4),
        late=st.booleans(),
    )
    def yielded(self, data: st.DataObject, host: str, share: int, late: bool) -> None:
        """A process has lowered its share, or cannot; or it answers an old recall."""
        process = data.draw(st.sampled_from(sorted(self.peers)))
        number = self.told.get((host, process), 0)
        recall = number - 1 if late else number
        self.frontier.leases.yielded(process, recall, {host: share})
        right = self.rights[host].get(process)
        if right is None or not right.target or late or not number:
            return
        if not share:
            self.whole.add(host)
            self.reserved.pop(host, None)
            self.lower(host, process, right.share)
        elif right.target <= share < right.share:
            right.share = share

    @rule()
    def give_up_host(self) -> None:
        """Whoever has room asks for a request: where it has no work, owners of
        several busy hosts give one up for it."""
        for process in sorted(self.peers):
            if self.frontier.capacity.room(process):
                self.lease_to(process, 1)

    @rule()
    def wants_process(self) -> None:
        wanted = self.frontier.capacity.wants_process()
        self.look()
        full = not any(map(self.frontier.capacity.room, self.peers))
        spare = any(len(self.busy(process)) > 1 for process in self.peers)
        work = sum(len(self.busy(process)) for process in self.peers)
        count = work + len(self.free()) if self.ruled else 0
        assert self.frontier.capacity.workable_count() == count
        assert wanted == (self.ruled and (spare or (full and bool(self.free()))))

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        if self.peers:
            # Some call has to bring the instant.
            self.frontier.leases.release(min(self.peers), (), self.now)

    @rule()
    def restart(self) -> None:
        """A snapshot is the same frontier, but for what is volatile."""
        data = msgspec.json.encode(self.frontier.encode())
        snapshot = msgspec.json.decode(data, type=FrontierSnapshot)
        self.frontier = Frontier.decode(snapshot)
        assert self.frontier.encode() == snapshot
        self.forget_processes()
        for one in self.open.values():
            one.holder, one.came_back, one.stage = None, False, 0
        self.suspects = [n for n in self.blamed if self.open[n].is_suspect]

    @invariant()
    def counts_agree(self) -> None:
        self.look()
        frontier = self.frontier
        leased = len(self.leases())
        assert frontier.leased_count == leased
        aside = sum(one.aside for one in self.open.values())
        assert frontier.pending_count == len(self.open) - leased - aside
        assert frontier.quarantine.isolator == self.isolator
        assert (frontier.next_request, frontier.body_bytes) == (self.next, self.bytes)
        assert self.added == self.finished + len(self.open)
        for number in range(self.next + 2):
            assert frontier.is_open(number) == (number in self.open)
        asked = b"".join(map(b.fingerprint, URLS))
        assert frontier.seen_of(asked) == tuple(url in self.seen for url in URLS)
        for process in PROCESSES:
            mine = len(self.leases(process=process))
            assert frontier.leases.count_of(process) == mine
            peer = self.peers.get(process)
            if peer is None or peer.closing:
                assert frontier.capacity.room(process) == 0
            elif process == self.isolator:
                room = 0 if mine else peer.window
                assert frontier.capacity.room(process) == room
            else:
                active = len(self.active(process=process))
                missing = peer.window - active
                few = active * 4 <= peer.window * 3
                assert frontier.capacity.room(process) == (missing if few else 0)

    def teardown(self) -> None:
        """At the end everything can be leased and done, by one new process."""
        if not hasattr(self, "frontier"):
            return
        for process in list(self.peers):
            self.end(process)
        self.peers[9] = Peer(window=5)
        self.tell(9)
        self.pardon()
        while self.open:
            if self.frontier.quarantine.wants_isolator and not self.leases(process=9):
                self.frontier.quarantine.isolate(9)
                self.isolator = 9
            assert self.lease_to(9, 5) or self.leases(process=9)
            for number in self.leases(process=9):
                self.finish(number, True)
        assert self.frontier.pending_count == self.frontier.leased_count == 0
        assert self.added == self.finished == self.frontier.next_request - 1


TestFrontier = FrontierModel.TestCase
TestFrontier.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None
)


@pytest.mark.parametrize("lifo", [False, True])
@pytest.mark.parametrize("start_lifo", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.integers(-2, 2), st.booleans(), st.sampled_from(HOSTS)),
        ),
        max_size=60,
    )
)
def test_one_process_takes_the_order_of_scrapys_queue(
    lifo: bool, start_lifo: bool, steps: list[tuple[int, bool, str] | None]
) -> None:
    """With a window of 1 it is exactly that of one priority queue, over all hosts."""
    queue: Any = ScrapyPriorityQueue(
        Crawler(Spider),
        LifoMemoryQueue if lifo else FifoMemoryQueue,
        "",
        start_queue_cls=LifoMemoryQueue if start_lifo else FifoMemoryQueue,
    )
    frontier = Frontier()
    frontier.leases.open_process(
        1, b.opened(window=1, lifo=lifo, start_lifo=start_lifo)
    )
    urls: dict[tuple[int, int], str] = {}
    # As many more as take out at the end what is left.
    for number, step in enumerate(steps + [None] * len(steps)):
        if step is None:
            expected = queue.pop()
            granted = frontier.lease(1, 9, float(number))
            got = [urls[place] for place in granted.places]
            assert got == ([] if expected is None else [expected.url])
            for request in granted.requests:
                assert frontier.done(request, float(number))
            continue
        priority, is_start, host = step
        url = f"http://h/{number}"
        queue.push(Request(url, priority=priority, meta={"is_start_request": is_start}))
        flags = DONT_FILTER | (START_REQUEST if is_start else 0)
        urls[frontier.body_bytes, len(url) + 2] = url
        frontier.add(
            b.children(url, hosts=[host], priorities=[priority], flags=[flags])
        )
    assert frontier.pending_count == 0
    assert len(queue) == 0
