"""The checker's own ledger of what is durable, kept apart from the master's.

A group counts as durable when ``Journal.append`` has returned: that is its promise.
From the records it knows which commits have effect and which lines every job's
files must hold, in order, without asking the state; beside them a shadow of the state
takes each durable group from the first one on, and never a snapshot.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import attrs

from dscrapy.control import events as r
from dscrapy.control.apply import apply
from dscrapy.control.item_lines import line_of
from dscrapy.control.projections import JOBS_FOLDER, items_name, tagged_name
from dscrapy.control.state.processes import spool_key
from dscrapy.control.state.state import State
from dscrapy.errors import JournalFullError
from dscrapy.master.journal import Journal
from dscrapy.master.storage import Storage
from tests.sim.site import Line, Site

# Groups after which the master's state is compared with the ledger.
LIVE_CHECKED_ONE_IN = 12

Broken = Callable[[str, str], None]


@attrs.define(eq=False, kw_only=True)
class JobBook:
    """What a job has given in its present run; ``runs`` counts fresh ones."""

    lines: list[Line] = attrs.field(factory=list)
    counts: Counter[Line] = attrs.field(factory=Counter)
    requests: set[int] = attrs.field(factory=set)
    units: set[tuple[int, int]] = attrs.field(factory=set)
    runs: int = 1

    def content(self, form: int) -> bytes:
        """Return what the job's file of lines (0) or tagged forms (1) must hold."""
        return b"".join(line[form] + b"\n" for line in self.lines)


@attrs.define(eq=False, kw_only=True)
class Ledger:
    """See the module; ``site_of`` gives the site of a job by its id, ``ended`` is
    told of each end of a process, ``poisoned`` of each request that is set aside,
    ``live`` gives the state of the running master, and ``may_go`` tells whether
    somebody has asked to remove a job."""

    broken: Broken
    site_of: Callable[[str], Site]
    ended: Callable[[r.ProcessEnded], None]
    poisoned: Callable[[r.RequestPoisoned], None]
    live: Callable[[], State | None]
    may_go: Callable[[str], bool]
    payloads: list[bytes] = attrs.field(factory=list)
    under_way: bytes | None = None
    shadow: State = attrs.field(factory=State)
    jobs: dict[str, JobBook] = attrs.field(factory=dict)
    parts: dict[tuple[int, str], list[Line]] = attrs.field(factory=dict)
    # The beginning of an item of which the last part holds a piece.
    cut: dict[tuple[int, str], Line] = attrs.field(factory=dict)
    # Process, commit, part: also those that are void by now.
    stored: set[tuple[int, str, int]] = attrs.field(factory=set)
    # Jobs that have ended, processes of each that have not, and jobs that are gone.
    ends: set[str] = attrs.field(factory=set)
    running: Counter[str] = attrs.field(factory=Counter)
    removed: set[str] = attrs.field(factory=set)

    def take(self, payload: bytes) -> None:
        """A group is durable."""
        self.payloads.append(payload)
        for record in r.decode_group(payload):
            self._follow(record)
            self._note(record)
            apply(self.shadow, record)

    def book(self, job: str) -> JobBook:
        """Return the book of a job."""
        return self.jobs.setdefault(job, JobBook())

    def has(self, job: str, process: int, request: int, unit: int) -> bool:
        """Whether the commit of this request or unit has effect, durably."""
        book = self.book(job)
        return request in book.requests if request else (process, unit) in book.units

    def _follow(self, record: r.Record) -> None:
        """Take note of the lives of jobs."""
        job = getattr(record, "job", "")
        if job in self.removed:
            self.broken("something comes of a job that was removed", str(record))
        match record:
            case r.JobAdded() if record.id in self.removed:
                # Its submission came once more.
                self.removed.remove(record.id)
                del self.jobs[record.id]
            case r.ProcessStarted():
                self.running[job] += 1
            case r.ProcessEnded():
                self.running[job] -= 1
            case r.JobEnded():
                self.ends.add(job)
                crawl = self.shadow.crawls.get(job)
                is_whole = crawl is None or not crawl.frontier.pending_count
                if record.state == "succeeded" and not is_whole:
                    self.broken("a job succeeded with open requests", job)
            case r.JobAgain():
                self.ends.discard(job)
            case r.JobRemoved():
                self._remove(job)
            case _:
                pass

    def _remove(self, job: str) -> None:
        if job not in self.ends or self.running[job]:
            self.broken("a job is removed that has not ended", job)
        if not self.may_go(job):
            self.broken("a job is removed that nobody asked to remove", job)
        book = self.book(job)
        is_whole = book.counts == self.site_of(job).expected
        if self.shadow.jobs[job].status == "succeeded" and not is_whole:
            self.broken("a removed job had not all of its items", job)
        # What is acknowledged in the same moment had its effect.
        book.lines.clear()
        book.counts.clear()
        self.ends.discard(job)
        self.removed.add(job)

    def _note(self, record: r.Record) -> None:
        match record:
            case r.PartStored() | r.PartTaken():
                key = (record.process, spool_key(record.request, record.unit))
                self.parts.setdefault(key, []).extend(self._lines(key, record))
                self.stored.add((*key, record.part))
            case r.Published():
                self._publish(record)
            case r.ProcessEnded():
                self.ended(record)
                for key in [key for key in self.parts if key[0] == record.process]:
                    del self.parts[key]
                    self.cut.pop(key, None)
            case r.RequestPoisoned():
                self.poisoned(record)
            case r.JobAgain(fresh=True):
                book = self.book(record.job)
                book.lines.clear()
                book.counts.clear()
                book.runs += 1
            case _:
                pass

    def _publish(self, record: r.Published) -> None:
        key = (record.process, spool_key(record.request, record.unit))
        lines = self.parts.pop(key, []) + self._lines(key, record)
        if key in self.cut:
            self.broken("half an item has effect", f"{record.job} {key}")
        book = self.book(record.job)
        if self.has(record.job, record.process, record.request, record.unit):
            self.broken("a commit has effect twice", f"{record.job} {key}")
        if record.request:
            book.requests.add(record.request)
        else:
            book.units.add((record.process, record.unit))
        book.lines += lines
        book.counts.update(lines)
        expected = self.site_of(record.job).expected
        for line in lines:
            if book.counts[line] > expected[line]:
                text = (
                    f"{record.job} {line!r}: {book.counts[line]}, not {expected[line]}"
                )
                self.broken("an item too many", text)

    def _lines(
        self,
        key: tuple[int, str],
        record: r.AnyPart,
    ) -> list[Line]:
        """Return the items that a record completes."""
        if record.piece is None:
            lines = [line_of(item) for item in record.items]
            forms = [bytes(form) for form in record.tagged] or [b"null"] * len(lines)
            return list(zip(lines, forms, strict=True))
        line, form = self.cut.pop(key, (b"", b""))
        so_far = (line + record.piece.line, form + record.piece.tagged)
        if record.piece.end:
            return [so_far]
        self.cut[key] = so_far
        return []

    # ---- against a master and its disk ---------------------------------------------

    def check_state(self, state: State) -> None:
        """Let the state be that of all durable groups."""
        if state.encode_snapshot() != self.shadow.encode_snapshot():
            self.broken(
                "state differs from its journal", _difference(state, self.shadow)
            )
        for job, book in self.jobs.items():
            crawl = state.crawls.get(job)
            if crawl is None:
                continue
            again = [one for one in book.requests if crawl.frontier.is_open(one)]
            if again:
                self.broken("a published request is open", f"{job} {again}")

    def check_files(self, storage: Storage) -> None:
        """Let every file of items hold what is published, no more and no less."""
        difference = self.difference_of_files(storage)
        if difference:
            self.broken("a job's file differs from what is published", difference)

    def left_behind(self, storage: Storage) -> list[str]:
        """Return the jobs that are gone, and files of theirs are there."""
        try:
            return [job for job in storage.names(JOBS_FOLDER) if job in self.removed]
        except FileNotFoundError:
            return []

    def difference_of_files(self, storage: Storage) -> str:
        """Say which file of items holds something else, empty if none does."""
        if left := self.left_behind(storage):
            return f"files of jobs that were removed: {left}"
        for job, book in self.jobs.items():
            for form, name in enumerate((items_name(job), tagged_name(job))):
                try:
                    found = storage.read(name, 0, 1 << 30)
                except FileNotFoundError:
                    found = b""
                if found != book.content(form):
                    return f"{name}: {found!r}, not {book.content(form)!r}"
        return ""


def _difference(state: State, shadow: State) -> str:
    """Say where two states begin to differ, for people."""
    ours, theirs = state.encode_snapshot(), shadow.encode_snapshot()
    same = next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0
    )
    around = slice(max(same - 80, 0), same + 80)
    return f"state {ours[around]!r}, journal {theirs[around]!r}"


class BookedJournal(Journal):
    """The master's journal, with the ledger beside it."""

    ledger: Ledger

    def append(self, payload: bytes) -> None:
        self.ledger.under_way = payload
        try:
            super().append(payload)
        except JournalFullError:
            self.ledger.under_way = None
            raise
        ledger = self.ledger
        ledger.under_way = None
        ledger.take(payload)
        state = ledger.live()
        if state is not None and len(ledger.payloads) % LIVE_CHECKED_ONE_IN == 0:
            # All of the group was applied before it was appended.
            ledger.check_state(state)

    def groups(self) -> Iterator[bytes]:
        ledger = self.ledger
        for payload in super().groups():
            number = self.next_sequence - 1
            if number == len(ledger.payloads) + 1 and payload == ledger.under_way:
                # Its sync never returned, yet the disk has it.
                ledger.take(payload)
            elif (
                number > len(ledger.payloads) or ledger.payloads[number - 1] != payload
            ):
                ledger.broken("the journal holds another group", f"group {number}")
            yield payload
        if self.next_sequence - 1 < len(ledger.payloads):
            text = f"{self.next_sequence - 1} of {len(ledger.payloads)} are there"
            ledger.broken("durable groups are lost", text)
        ledger.under_way = None
