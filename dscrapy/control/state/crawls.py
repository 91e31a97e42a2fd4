"""A job's crawl under way: its frontier, its stats, its leader, its stored parts.

``Course`` counts what a job has been through; ``Crawl`` is what the job works with, and
is dropped when the job has succeeded. Which process leads, is open or stops is
volatile.
"""

from collections import Counter
from collections.abc import Iterable

import attrs
import msgspec

from dscrapy.control import events as r
from dscrapy.control.item_lines import items_in, texts_of
from dscrapy.control.state.closespider import Counters
from dscrapy.control.state.feed_totals import note_written
from dscrapy.control.state.job_stats import POISONED_KEY, UNREADABLE_KEY, Totals
from dscrapy.control.state.jobs import Course
from dscrapy.control.state.processes import Process, Spool, spool_key
from dscrapy.frontier.early_requests import split_digests
from dscrapy.frontier.frontier import Frontier, FrontierSnapshot, Stored
from dscrapy.frontier.quarantine import Poisoned
from dscrapy.messages import DIGEST_BYTES, HeldProcess, Opened
from dscrapy.model import Stats


class CrawlSnapshot(msgspec.Struct, kw_only=True):
    """The part of a crawl that survives a restart; ``stored`` is by process number and
    ``spool_key``."""

    frontier: FrontierSnapshot
    totals: Stats
    skip: bytes
    stored: dict[str, dict[str, list[Stored]]]
    vain_deaths: int = 0


@attrs.define(kw_only=True)
class Crawl:
    """See the module. ``skip`` counts the digests of committed elements of ``start()``
    until it is exhausted. ``vain_deaths`` counts deaths of the job's own doing, one
    after another, that made no request a suspect."""

    frontier: Frontier = attrs.field(factory=Frontier)
    totals: Totals = attrs.field(factory=Totals)
    skip: Counter[bytes] = attrs.field(factory=Counter)
    stored: dict[int, dict[str, list[Stored]]] = attrs.field(factory=dict)
    vain_deaths: int = 0
    # volatile
    leader: int | None = None
    # The last ``StartMay`` that was sent to the leader: upto, upto_free.
    start_may: tuple[int, int] = (0, 0)
    finish_sent: int = 0
    counters: Counters = attrs.field(factory=Counters)
    # Requests that have got a response and are not done, and their processes.
    received: dict[int, int] = attrs.field(factory=dict)
    # The processes that were told last that work is short.
    told_short: set[int] = attrs.field(factory=set)
    # Whether all open pages have only waited for a while, with nothing else left.
    all_wait: bool = False
    # Since when the job's time runs, on from its ``Watch``; None: it stands.
    runs_since: float | None = None

    @classmethod
    def begun_at(cls, request: int) -> "Crawl":
        """Return a crawl whose requests are numbered from ``request``."""
        return cls(frontier=Frontier(next_request=request))

    def store(self, record: r.PartStored, process: Process) -> None:
        """Keep a part, without effect yet."""
        key = spool_key(record.request, record.unit)
        spool = _take_items(record, process, key)
        spool.filtered += record.filtered
        self._parts_of(process, key).append(
            self.frontier.store(record.children, record.seen)
        )

    def take_early(self, record: r.PartTaken, process: Process) -> None:
        """Let a page's requests have effect; keep the rest of the part."""
        key = spool_key(record.request, record.unit)
        spool = _take_items(record, process, key)
        for digest in split_digests(record.digests):
            spool.given[digest] = spool.given.get(digest, 0) + 1
        parts = self._parts_of(process, key)
        stored = self.frontier.store(record.children, record.seen)
        self.frontier.leases.wrote(process.number, filter(None, stored.kinds))
        before = self.frontier.next_request
        left, filtered = self.frontier.take_early(
            record.request, parts, stored, spool.given, record.digests
        )
        parts.append(left)
        added = self.frontier.next_request - before
        self._count(added, filtered + record.filtered, 0)

    def _parts_of(self, process: Process, key: str) -> list[Stored]:
        return self.stored.setdefault(process.number, {}).setdefault(key, [])

    def publish(
        self, record: r.Published, course: Course, process: Process | None
    ) -> None:
        """Let a commit have effect: its stored parts and the part in the record."""
        key = spool_key(record.request, record.unit)
        spool, parts = Spool(), list[Stored]()
        if process is not None:
            spool = process.spools.pop(key, spool)
            parts = self.stored.get(process.number, {}).pop(key, parts)
            if record.unit:
                process.add_unit(record.unit)
            process.waits_since = None
        filtered = spool.filtered + record.filtered
        before = self.frontier.next_request
        parts.append(self.frontier.store(record.children, record.seen))
        if process is not None:
            kinds = {kind for part in parts for kind in part.kinds if kind}
            self.frontier.leases.wrote(process.number, kinds)
        given = Counter(spool.given)
        if record.digests:
            given.update(split_digests(record.digests))
        filtered += self.frontier.publish(parts, record.request, given)
        self.all_wait = False
        self.received.pop(record.request, None)
        self._merge(record.stats)
        self._count(self.frontier.next_request - before, filtered, record.request)
        lines, forms = texts_of(record)
        course.items += spool.items + items_in(record)
        course.items_bytes += spool.items_bytes + len(lines)
        course.tagged_bytes += spool.tagged_bytes + len(forms)
        # A project may remove a count from its stats: the larger one stays.
        pages = self.totals.count("response_received_count")
        course.pages = max(course.pages, pages)
        course.errors = max(course.errors or 0, self.totals.errors)
        self._note_unit(record, course, process)

    def _count(self, added: int, filtered: int, request: int) -> None:
        """Count what Scrapy's own scheduler and dupefilter would have counted."""
        if added:
            self.totals.inc("scheduler/enqueued", added)
        if filtered:
            self.totals.inc("dupefilter/filtered", filtered)
        if request:
            self.totals.inc("scheduler/dequeued", 1)

    def _merge(self, delta: Stats) -> None:
        before = _counted(self.totals)
        self.totals.merge(delta)
        after = _counted(self.totals)
        items, pages, errors = (
            max(new - old, 0) for new, old in zip(after, before, strict=True)
        )
        self.counters.count(items=items, pages=pages, errors=errors)

    def _note_unit(
        self, record: r.Published, course: Course, process: Process | None
    ) -> None:
        if process is not None and process.role == "export":
            _note_export(record, course, process)
            return
        course.deaths = 0
        match record.kind:
            case "page":
                course.poisoned_streak = 0
            case "start":
                self.skip[record.digest] += 1
                if process is not None:
                    process.starts += 1
            case "started":
                course.start_done = True
                course.start_failure = record.end
                if record.end is None:
                    self.skip.clear()
            case "opened":
                course.opened = True
            case "idle":
                course.finish = record.finish
            case "ending" if process is not None:
                process.ending = True
            case "closed" if process is not None:
                process.closed = True
                course.concluded |= process.concludes

    def set_aside(self, record: r.RequestPoisoned, course: Course) -> None:
        """Set a request aside as poisoned."""
        self.received.pop(record.request, None)
        poisoned = Poisoned(url=record.url, text=record.text)
        self.frontier.set_aside(record.request, poisoned)
        self.totals.inc(POISONED_KEY, 1)
        course.poisoned_streak += 1
        course.errors = self.totals.errors

    def fail(self, record: r.RequestFailed, course: Course) -> None:
        """Let a request be done that no process could read."""
        self.received.pop(record.request, None)
        is_open = self.frontier.done(record.request)
        assert is_open
        self.totals.inc("scheduler/dequeued", 1)
        self.totals.inc(UNREADABLE_KEY, 1)
        course.errors = self.totals.errors

    def open_process(self, process: Process, opened: Opened) -> None:
        """Let a process take leases, by the settings of its project."""
        process.opened = opened
        self.frontier.leases.open_process(process.number, opened)

    def proceed(self, record: r.ProcessProceeds) -> None:
        """Note how far a process has come with its leases."""
        self.frontier.leases.proceed(
            record.process, record.started, record.downloaded, record.at
        )
        self._receive(record.process, record.received)

    def _receive(self, process: int, requests: Iterable[int]) -> None:
        for request in requests:
            if self.frontier.leases.holder(request) == process:
                self.received[request] = process

    def stop(self, process: Process) -> None:
        """Let a process take no more leases: it was told to stop, or closes."""
        # One that writes feeds holds neither leases nor a slot.
        if process.role == "crawl":
            process.stopping = True
            self.frontier.leases.close_process(process.number)

    def take_report(self, process: Process, report: HeldProcess, at: float) -> None:
        """Take over what a worker reports of its process; forget all else."""
        if report.opened is not None:
            self.open_process(process, report.opened)
        process.dismissed = process.items_end_sent = process.ordered = False
        self.frontier.leases.hold(
            report.process,
            report.requests,
            at,
            started=report.started,
            downloaded=report.downloaded,
            shares=report.shares,
        )
        self._receive(report.process, report.received)
        # Whether that message arrived is not known.
        self.told_short.discard(report.process)
        if report.closing:
            self.stop(process)
        if report.leads and self.leader is None:
            self.leader = report.process
        elif not report.leads and self.leader == report.process:
            # The order to lead never arrived.
            self.leader = None
        if self.leader in (None, report.process):
            # Whether the last of these messages arrived is not known.
            self.start_may, self.finish_sent = (0, 0), 0

    def take_back(self, record: r.Released) -> None:
        """Let leases be pending again, for others if the process cannot read them."""
        process, requests, why = record.process, record.requests, record.unreadable
        if why:
            self.frontier.leases.refuse(process, requests, why, record.at)
        else:
            self.frontier.leases.release(process, requests, record.at)

    def forget_process(self, process: Process, now: float) -> None:
        """Take back what a process had: leases, the lead, parts without effect."""
        number = process.number
        self.frontier.leases.end_process(number, now)
        self.stored.pop(number, None)
        self.told_short.discard(number)
        self.received = {
            request: holder
            for request, holder in self.received.items()
            if holder != number
        }
        if self.leader == number:
            self.leader = None
            self.start_may, self.finish_sent = (0, 0), 0

    def count_death(self, record: r.ProcessEnded) -> None:
        """Count a death against the requests that it is blamed on."""
        new = self.frontier.count_death(record.blamed, alone=record.alone)
        self.frontier.halve(record.halved)
        if new or record.alone or record.halved:
            self.vain_deaths = 0
        elif record.blamed:
            self.vain_deaths += 1

    def snapshot(self) -> CrawlSnapshot:
        """Return what survives a restart."""
        return CrawlSnapshot(
            frontier=self.frontier.encode(),
            totals=self.totals.encode(),
            skip=b"".join(self.skip.elements()),
            stored={str(number): parts for number, parts in self.stored.items()},
            vain_deaths=self.vain_deaths,
        )

    @classmethod
    def restore(cls, snapshot: CrawlSnapshot) -> "Crawl":
        """Return the crawl of a snapshot."""
        skip = snapshot.skip
        digests = (
            skip[at : at + DIGEST_BYTES] for at in range(0, len(skip), DIGEST_BYTES)
        )
        totals = Totals.decode(snapshot.totals)
        items, pages, errors = _counted(totals)
        return cls(
            frontier=Frontier.decode(snapshot.frontier),
            totals=totals,
            counters=Counters(items=items, pages=pages, errors=errors),
            skip=Counter(digests),
            stored={int(process): keys for process, keys in snapshot.stored.items()},
            vain_deaths=snapshot.vain_deaths,
        )


def _take_items(record: r.Part, process: Process, key: str) -> Spool:
    """Add the items of a part to those of the commit's earlier parts."""
    spool = process.spools.setdefault(key, Spool())
    assert spool.parts == record.part
    spool.parts += 1
    lines, forms = texts_of(record)
    spool.items += items_in(record)
    spool.items_bytes += len(lines)
    spool.tagged_bytes += len(forms)
    if record.piece is not None:
        spool.is_open = not record.piece.end
    return spool


def _note_export(record: r.Published, course: Course, process: Process) -> None:
    """Take what an export process has delivered, or its end."""
    if record.batches:
        course.batches = record.batches
    note_written(record, course, process.worker)
    if record.delivered:
        feeds = course.feeds or {}
        course.feeds = {
            name: feeds[name] for name in feeds if name not in record.delivered
        }
    if record.kind == "batch":
        course.export_deaths = 0
    process.closed |= record.kind == "closed"


def _counted(totals: Totals) -> tuple[int, int, int]:
    """Return the items, pages and errors that ``CLOSESPIDER_*`` count."""
    return (
        totals.count("item_scraped_count"),
        totals.count("response_received_count"),
        totals.count("spider_exceptions/count"),
    )
