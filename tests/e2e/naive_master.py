"""A master of a few dicts for crawl processes under test: one job, no disk, no time.

It grants whatever is pending to whoever has room in its window, first come first
served; what the real master adds (hosts, limits, durability) is not tested here.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from dscrapy import messages as m
from dscrapy.model import Outcome, Stats

JOB = "1" * 16
# The key of its pickles.
KEY = b"k" * 32


class Request(NamedTuple):
    """A request as the master knows it."""

    host: str
    priority: int
    flags: int
    body: bytes
    fingerprint: bytes


class Page(NamedTuple):
    """A committed lease: its request, what it gave, decoded, and its parts.

    ``results`` are the statuses and errors that its downloads ended with, as the stats
    that came with it count them.
    """

    request: dict[str, Any]
    results: list[str]
    items: list[Any]
    children: list[dict[str, Any]]
    parts: list[m.Commit]


def results_in(stats: Stats) -> list[str]:
    """Return which statuses of responses and errors of downloads are counted there."""
    counted = ("response_status_count/", "exception_type_count/")
    return sorted(
        name.rpartition("/")[2].rpartition(".")[2]
        for name in stats.get("sum", {})
        if name.removeprefix("downloader/").startswith(counted)
    )


class Peer:
    """What the master knows of one crawl process."""

    def __init__(self, process: int, send: Callable[[m.Message], None]) -> None:
        self.process = process
        self.send = send
        self.opened: m.Opened | None = None
        self.leases: dict[int, Request] = {}
        # Those that are past their download, and what their pages have asked for early.
        self.downloaded: set[int] = set()
        self.given: dict[int, Counter[bytes]] = {}
        self.parts: dict[tuple[int, int], list[m.Commit]] = {}
        self.last_unit = 0
        self.starts = 0
        self.may = (0, 0)
        self.closing = ""
        self.is_ending = False
        self.is_ordered = False
        self.outcome: Outcome | None = None


class NaiveMaster:
    """The state of one job.

    ``start_window`` bounds start units ahead of those committed, ``places`` those that
    are pending and leased, too, unless the engine holds back. ``is_granting`` False
    holds leases back, ``is_finishing`` False the end, ``is_ordering`` False those that
    are ending; ``is_answering`` False leaves offers in ``offers`` until
    ``answer_offers``.
    """

    def __init__(self, start_window: int = 50, places: int | None = None) -> None:
        self.start_window = start_window
        self.places = places
        self.is_granting = True
        self.is_finishing = True
        self.is_answering = True
        self.is_ordering = True
        self.offers: list[m.Offer] = []
        self.peers: dict[int, Peer] = {}
        self.leader: Peer | None = None
        # All requests ever; those that nobody holds; those that are committed.
        self.requests: dict[int, Request] = {}
        self.pending: dict[int, Request] = {}
        self.done: set[int] = set()
        # What open pages have asked for early, in any process.
        self.early: dict[int, Counter[bytes]] = {}
        self.seen: set[bytes] = set()
        self.digests: Counter[bytes] = Counter()
        self.is_started = False
        self.has_opened = False
        self.finish = 0
        self.is_finish_sent = False
        self.next_request = 1
        self.filtered = 0
        # What is published, in order.
        self.published: list[list[m.Commit]] = []
        self.lines: list[str] = []
        self.tagged: list[bytes] = []
        self.stats: dict[str, dict[str, Any]] = {}

    @property
    def commits(self) -> list[m.Commit]:
        """The last part of each published commit."""
        return [parts[-1] for parts in self.published]

    def of_kind(self, kind: str) -> list[m.Commit]:
        """Return the published commits of this kind."""
        return [commit for commit in self.commits if commit.kind == kind]

    def pages(self) -> list["Page"]:
        """Return the committed leases in order."""
        return [
            Page(
                json.loads(self.requests[parts[-1].request].body),
                results_in(parts[-1].stats),
                [json.loads(line) for line, _ in items_of(parts)],
                [
                    json.loads(bytes(raw))
                    for part in parts
                    for raw in part.children.bodies
                ],
                parts,
            )
            for parts in self.published
            if parts[-1].request
        ]

    # ---- processes --------------------------------------------------------------

    def came(self, process: int, send: Callable[[m.Message], None]) -> None:
        """Take up a process that was started."""
        self.peers[process] = Peer(process, send)

    def lost(self, process: int) -> None:
        """Take back what a dead process had."""
        peer = self.peers.pop(process)
        self.pending.update(peer.leases)
        if self.leader is peer:
            self.leader = None
            self.is_finish_sent = False
        self.advance()

    def stop(self, process: int, reason: str) -> None:
        """Ask a process to close."""
        self.peers[process].send(m.Stop(job=JOB, process=process, reason=reason))

    # ---- messages ---------------------------------------------------------------

    def take(self, message: Any) -> None:
        """Take a message of a process."""
        peer = self.peers[message.process]
        match message:
            case m.Opened():
                peer.opened = message
            case m.Commits():
                results = tuple(self._commit(peer, one) for one in message.commits)
                peer.send(m.CommitsSeen(job=JOB, process=peer.process, seen=results))
                peer.downloaded.update(message.downloaded)
                if peer.outcome is not None:
                    self._closed(peer)
            case m.Progress():
                peer.downloaded.update(message.downloaded)
            case m.Release(requests=requests):
                for number in requests:
                    self.pending[number] = peer.leases.pop(number)
            case m.Yielded():
                pass
            case m.Closing(reason=reason):
                peer.closing = reason
            case m.Offer():
                self.offers.append(message)
                if self.is_answering:
                    self.answer_offers()
            case _:
                raise AssertionError(message)
        self.advance()

    def answer_offers(self) -> None:
        """Answer all offers that wait."""
        while self.offers:
            offer = self.offers.pop(0)
            seen = tuple(one in self.seen for one in chunks(offer.fingerprints))
            answer = m.Offered(
                job=JOB, process=offer.process, number=offer.number, seen=seen
            )
            self.peers[offer.process].send(answer)

    def advance(self) -> None:
        """Say all that is to be said now."""
        open_ones = [p for p in self.peers.values() if p.opened and not p.closing]
        if self.leader is None and open_ones:
            self._lead(open_ones[0])
        if self.is_granting:
            for peer in open_ones:
                self._grant(peer)
        self._order()
        leader = self.leader
        if leader is None or leader.closing:
            return
        self._let_start(leader)
        is_idle = not self.pending and not any(p.leases for p in self.peers.values())
        if (
            is_idle
            and self.is_started
            and self.has_opened
            and not self.is_finish_sent
            and self.is_finishing
        ):
            self.finish += 1
            self.is_finish_sent = True
            leader.send(m.Finish(job=JOB, process=leader.process, number=self.finish))

    def _let_start(self, leader: Peer) -> None:
        upto = leader.starts + self.start_window
        free = upto
        if self.places is not None:
            taken = len(self.pending) + sum(len(p.leases) for p in self.peers.values())
            free = max(leader.starts + self.places - taken, leader.may[1])
        if (upto, free) != leader.may and not self.is_started:
            leader.may = upto, free
            leader.send(
                m.StartMay(job=JOB, process=leader.process, upto=upto, upto_free=free)
            )

    def _order(self) -> None:
        """Let those that end retire, but for the last one: it ends the job."""
        for peer in list(self.peers.values()):
            if not peer.is_ending or peer.is_ordered or not self.is_ordering:
                continue
            if len(self.peers) == 1:
                peer.is_ordered = True
                stats = self.stats_on_the_wire()
                conclude = m.Conclude(
                    job=JOB, process=peer.process, stats=stats, again=False
                )
                peer.send(conclude)
            elif peer is not self.leader:
                peer.is_ordered = True
                peer.send(m.Retire(job=JOB, process=peer.process))
            else:
                for other in self.peers.values():
                    if other is not peer and not other.closing:
                        self.stop(other.process, peer.closing or "finished")

    def _lead(self, peer: Peer) -> None:
        self.leader = peer
        digests = b"".join(sorted(self.digests.elements()))
        step = 1000 * m.DIGEST_BYTES
        for part, place in enumerate(range(0, len(digests), step)):
            data = digests[place : place + step]
            peer.send(m.Skip(job=JOB, process=peer.process, part=part, digests=data))
        peer.send(
            m.Lead(
                job=JOB,
                process=peer.process,
                start=not self.is_started,
                opened=not self.has_opened,
            )
        )

    def _grant(self, peer: Peer) -> None:
        assert peer.opened is not None
        active = peer.leases.keys() - peer.downloaded
        room = peer.opened.window - len(active)
        if room <= 0 or not self.pending:
            return
        opened = peer.opened

        def order(number: int) -> tuple[int, bool, int]:
            one = self.pending[number]
            is_start = bool(one.flags & m.START_REQUEST)
            last_first = opened.start_lifo if is_start else opened.lifo
            return -one.priority, is_start, -number if last_first else number

        numbers = sorted(self.pending, key=order)[:room]
        requests = [self.pending.pop(number) for number in numbers]
        peer.leases.update(zip(numbers, requests, strict=True))
        hosts = list({request.host: 0 for request in requests})
        self.is_finish_sent = False
        peer.send(
            m.Grant(
                job=JOB,
                process=peer.process,
                requests=tuple(numbers),
                hosts=tuple(hosts),
                host_of=tuple(hosts.index(request.host) for request in requests),
                bodies=tuple(msgspec.Raw(request.body) for request in requests),
                again=tuple(number for number in numbers if number in self.early),
            )
        )

    # ---- commits ----------------------------------------------------------------

    def _commit(self, peer: Peer, commit: m.Commit) -> m.Seen:
        is_old = (
            commit.request in self.done
            if commit.request
            else commit.unit <= peer.last_unit
        )
        result: Any = "settled"
        if not is_old:
            parts = peer.parts.setdefault((commit.request, commit.unit), [])
            assert commit.part == len(parts), "parts come in order"
            parts.append(commit)
            result = "stored"
            if commit.request and not commit.last and commit.children.bodies:
                self._take_early(peer, commit)
                result = "taken"
            if commit.last:
                del peer.parts[commit.request, commit.unit]
                self._publish(peer, parts)
                result = "published"
        return m.Seen(commit.request, commit.unit, commit.part, result)

    def _publish(self, peer: Peer, parts: list[m.Commit]) -> None:
        last = parts[-1]
        assert all(part.kind == last.kind for part in parts)
        self.published.append(parts)
        if last.request:
            assert last.kind == "page"
            self.done.add(last.request)
            # The first commit wins, whoever sends it.
            self.pending.pop(last.request, None)
            for one in self.peers.values():
                one.leases.pop(last.request, None)
        else:
            assert last.unit == peer.last_unit + 1, "units come in order"
            peer.last_unit = last.unit
        for part in parts:
            self.seen.update(chunks(part.seen))
        if last.request and last.digests:
            self._take_early(peer, last)
        else:
            for part in (last,) if last.request else parts:
                self._add(part.children)
        self.early.pop(last.request, None)
        for line, form in items_of(parts):
            self.lines.append(line)
            self.tagged.append(form)
        self._merge(last.stats)
        match last.kind:
            case "start":
                self.digests[last.digest] += 1
                peer.starts += 1
            case "started":
                self.is_started = True
            case "opened":
                self.has_opened = True
            case "idle":
                assert last.finish == self.finish
                self.is_finish_sent = False
            case "ending":
                peer.is_ending = True
            case "closed":
                peer.outcome = last.end

    def _take_early(self, peer: Peer, commit: m.Commit) -> None:
        """Add what a page asks for, but for what an earlier run of it has given."""
        there = self.early.setdefault(commit.request, Counter())
        given = peer.given.setdefault(commit.request, Counter())
        passed_over = []
        assert len(commit.digests) == len(commit.children.bodies) * m.DIGEST_BYTES
        for at in range(0, len(commit.digests), m.DIGEST_BYTES):
            digest = commit.digests[at : at + m.DIGEST_BYTES]
            given[digest] += 1
            passed_over.append(given[digest] <= there[digest])
            there[digest] = max(there[digest], given[digest])
        self._add(commit.children, passed_over)

    def _add(self, children: m.Children, passed_over: Sequence[bool] = ()) -> None:
        columns = (children.host_of, children.priorities, children.flags)
        fingerprints = chunks(children.fingerprints)
        passed = passed_over or [False] * len(fingerprints)
        for is_passed, fingerprint, place, priority, flags, body in zip(
            passed, fingerprints, *columns, children.bodies, strict=True
        ):
            if is_passed:
                continue
            if not flags & m.DONT_FILTER:
                if fingerprint in self.seen:
                    self.filtered += 1
                    continue
                self.seen.add(fingerprint)
            request = Request(
                children.hosts[place], priority, flags, bytes(body), fingerprint
            )
            self.requests[self.next_request] = request
            self.pending[self.next_request] = request
            self.next_request += 1

    def _merge(self, stats: Stats) -> None:
        for operation, group in stats.items():
            if operation == "drop":
                for key in group:
                    for others in self.stats.values():
                        others.pop(key, None)
                continue
            held = self.stats.setdefault(operation, {})
            for key, raw in group.items():
                value = json.loads(bytes(raw))
                if operation == "sum":
                    held[key] = held.get(key, 0) + value
                elif operation in ("max", "min") and key in held:
                    held[key] = (max if operation == "max" else min)(held[key], value)
                else:
                    held[key] = value

    def _closed(self, peer: Peer) -> None:
        self.pending.update(peer.leases)
        peer.leases.clear()
        del self.peers[peer.process]
        is_end = self.leader is peer
        if is_end:
            self.leader = None
            for other in self.peers.values():
                self.stop(other.process, peer.closing or "finished")
        stats = self.stats_on_the_wire() if is_end else None
        peer.send(m.Done(job=JOB, process=peer.process, stats=stats))

    def stats_on_the_wire(self) -> Stats:
        """Return the job's stats as they travel."""
        return {
            operation: {
                key: msgspec.Raw(json.dumps(value).encode())
                for key, value in group.items()
            }
            for operation, group in self.stats.items()
        }


def chunks(data: bytes) -> list[bytes]:
    """Return the fingerprints of a column."""
    assert len(data) % m.FINGERPRINT_BYTES == 0
    return [
        data[place : place + m.FINGERPRINT_BYTES]
        for place in range(0, len(data), m.FINGERPRINT_BYTES)
    ]


def items_of(parts: list[m.Commit]) -> list[tuple[str, bytes]]:
    """Return the lines of a commit's items, each with its tagged form."""
    items: list[tuple[str, bytes]] = []
    line = form = b""
    for part in parts:
        assert len(part.tagged) in (0, len(part.items))
        forms = map(bytes, part.tagged or (b"null",) * len(part.items))
        items += zip(map(line_of, part.items), forms, strict=True)
        if part.piece is None:
            assert not line, "an item in pieces goes on to its end"
            continue
        line, form = line + part.piece.line, form + part.piece.tagged
        if part.piece.end:
            items.append((line.decode(), form))
            line = form = b""
    assert not line
    return items


def line_of(raw: msgspec.Raw) -> str:
    """Return the line of ``items.jsonl`` for one of a commit's items."""
    text = bytes(raw).decode()
    if not text.startswith('"'):
        return text
    line = json.loads(text)
    assert isinstance(line, str)
    return line
