"""What leases and units gave, on its way to the master: commits in parts and frames.

This module has no clock, and no I/O but the spill on the disk. A ``Work`` gathers what
one leased request or one unit gives. A large lease travels in numbered parts as it
grows, at most ``PARTS_UNSEEN_MAX`` of them unanswered; meanwhile ``is_full`` asks
callers to wait before they add items. The requests that a page has asked for leave
early, in a part of their own, where somebody waits for them: the engine (``ask``),
another process (``set_short``), or, when some time has passed (``age``), perhaps the
page itself; but a page gets time to be finished first, counted in turns of the event
loop, since only a page that waits for something takes more turns. A unit gets its
number when it is finished, since the master takes units strictly in order; until then
all of it is held here, items beyond ``UNIT_BYTES_MAX`` on the disk (``item_spill``). An
item that no part can hold goes in pieces, each in a part of its own. All works together
have at most about ``BYTES_UNSEEN_MAX`` unanswered; works with more to send take turns,
one part at a time.
Commits gather until ``flush`` into frames of about ``FRAME_BYTES``. A commit is
forgotten when it is sent: the worker keeps it until it is answered.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from dscrapy.crawl.codec.items import wire_form, wire_line
from dscrapy.crawl.codec.request_bodies import body_digest
from dscrapy.crawl.outgoing.child_requests import NO_VALUES, Child, ChildQueue
from dscrapy.crawl.outgoing.item_spill import Spill
from dscrapy.crawl.outgoing.progress import LeaseProgress
from dscrapy.crawl.scrapy_side.stats_collector import Delta
from dscrapy.messages import (
    DERIVED,
    FINGERPRINT_BYTES,
    Children,
    Commit,
    Commits,
    CommitsSeen,
    Message,
    Piece,
    Progress,
    Run,
)
from dscrapy.model import Outcome

# A part goes when this much has gathered: large enough that a part's fsync is
# shared by many items, small enough that memory stays small.
PART_BYTES_MAX = 256 * 1024
# Parts of one commit that the master has not acknowledged. Many pages finish at a
# time, so a few parts of each keep the line busy and bound the memory of all.
PARTS_UNSEEN_MAX = 4
# Commits that gather into one frame; precedent: nsq's --max-msg-size.
FRAME_BYTES = 1024 * 1024
# Bytes of an item in one part; a larger item goes in pieces of that size. As JSON they
# are a third more, far below the longest frame.
PIECE_BYTES_MAX = FRAME_BYTES
# Bytes of all works' parts that the master has not acknowledged, which the worker
# keeps: two of the largest works at full speed, or thousands of pages.
BYTES_UNSEEN_MAX = 8 * 1024 * 1024
# Bytes of an unfinished unit's items that wait in memory; further items wait on this
# machine's disk. Few units have more: those with chains of local requests.
UNIT_BYTES_MAX = 4 * 1024 * 1024
# Bytes of a commit beside its items, requests and stats.
_COMMIT_BYTES = 200
# Bytes of a fingerprint in a commit, in base64.
_SEEN_BYTES = 27
# Bytes of a request's digest in a commit, in base64.
_DIGEST_BYTES = 11
# Bytes of a number in a commit's stats, with its key.
_STAT_BYTES = 50

_NULL = msgspec.Raw(b"null")


class _Whole(NamedTuple):
    """An item that fits a part, as it travels; ``size`` counts both forms."""

    line: bytes
    tagged: bytes | None
    size: int


class _InPieces:
    """The unsent rest of an item that does not fit a part."""

    __slots__ = ("_line", "_tagged", "size")

    def __init__(self, line: bytes, tagged: bytes) -> None:
        self.size = len(line) + len(tagged)
        self._line = memoryview(line)
        self._tagged = memoryview(tagged)

    def take(self) -> Piece:
        """Return the next piece."""
        line, self._line = _split(self._line, PIECE_BYTES_MAX)
        room = PIECE_BYTES_MAX - len(line)
        tagged, self._tagged = _split(self._tagged, room)
        is_end = not self._line and not self._tagged
        return Piece(line=bytes(line), tagged=bytes(tagged), end=is_end)


class Work:
    """A leased request (``request`` > 0) or a unit of ``kind``, and what it gave."""

    __slots__ = (
        "_children",
        "_in_pieces",
        "_items",
        "_seen_fingerprints",
        "_spill",
        "again",
        "bytes",
        "child_fingerprints",
        "delta",
        "digest",
        "end",
        "finish",
        "is_queued",
        "is_settled",
        "kind",
        "local_count",
        "next_part",
        "open",
        "request",
        "sent_last",
        "unit",
        "unseen",
        "wants_early",
    )

    def __init__(
        self,
        kind: Any,
        *,
        request: int = 0,
        digest: bytes = b"",
        finish: int = 0,
        end: Outcome | None = None,
    ) -> None:
        self.kind = kind
        self.request = request
        # The page was run before, and gave requests then.
        self.again = False
        self.digest = digest
        self.finish = finish
        self.end = end
        self.delta = Delta()
        # How many holds keep the work from being settled; and how many of its requests
        # never left this process.
        self.open = 0
        self.local_count = 0
        self.is_settled = False
        self.child_fingerprints: set[bytes] = set()
        # The work on its way: its number as a unit, the number of its next part, the
        # sizes of unanswered parts by number; and whether it waits for its turn.
        self.unit = 0
        self.next_part = 0
        self.unseen: dict[int, int] = {}
        self.is_queued = False
        self.wants_early = False
        self.sent_last = False
        self.bytes = 0
        self._items: deque[_Whole | _InPieces] = deque()
        self._in_pieces = 0
        self._children = ChildQueue()
        self._seen_fingerprints = bytearray()
        self._spill = Spill()

    @property
    def may_send(self) -> bool:
        """Whether the work has a part to send and credit for it."""
        if self.sent_last or len(self.unseen) >= PARTS_UNSEEN_MAX:
            return False
        return self.is_settled or self.bytes >= PART_BYTES_MAX or self.sends_early

    @property
    def sends_early(self) -> bool:
        """Whether the next part holds requests alone, since somebody waits for them."""
        is_small = not self.is_settled and self.bytes < PART_BYTES_MAX
        return is_small and self.wants_early and self.has_children

    @property
    def has_children(self) -> bool:
        """Whether the work has requests to send."""
        return bool(self._children)

    @property
    def fits_part(self) -> bool:
        """Whether one part can hold all that has not been sent."""
        return not self._in_pieces and self.bytes <= PART_BYTES_MAX

    @property
    def is_full(self) -> bool:
        """Whether callers should wait until a part is sent before they add items."""
        return self.request > 0 and self.bytes >= PART_BYTES_MAX

    def add_item(self, line: bytes, tagged: bytes | None) -> None:
        """Take an item's line and tagged form, as they are to stand in the files."""
        item = _form(line, tagged)
        self.bytes += item.size
        if isinstance(item, _InPieces):
            self._in_pieces += 1
        if not self.request and (self._spill or self.bytes > UNIT_BYTES_MAX):
            # Where the disk is full the item waits in memory, before those on the disk.
            with contextlib.suppress(OSError):
                self._spill.put(line, tagged)
                return
        self._items.append(item)

    def add_child(
        self, child: Child, values: Mapping[bytes, bytes] = NO_VALUES
    ) -> None:
        """Take a request that the master is to keep, with the values of its body."""
        self.bytes += self._children.add(child, values)

    def add_seen(self, fingerprint: bytes) -> None:
        """Take the fingerprint of a request that never left this process."""
        self._seen_fingerprints += fingerprint
        self.bytes += _SEEN_BYTES

    def clear_derived(self) -> None:
        """Let none of the requests stand for the page: it got a response after all."""
        if self.has_children:
            self._children.clear_flag(DERIVED)

    def forget_values(self) -> None:
        """Forget values: no request follows that could refer to them."""
        self._children.clear()

    def take_early(self) -> tuple[dict[str, Any], int]:
        """Return the fields of a part that holds requests alone, and its size."""
        children, size = self._children.take(PART_BYTES_MAX, at_least_one=True)
        self.bytes -= size
        self.wants_early = self.has_children
        return {"children": children}, size

    def take_part(self) -> tuple[dict[str, Any], int]:
        """Return the fields of the next part and its size.

        The part has at least one item, piece, request or fingerprint, if any is left.
        """
        fields: dict[str, Any] = {}
        self._refill()
        if self._items and isinstance(self._items[0], _InPieces):
            fields["piece"], total = self._take_piece(self._items[0])
        else:
            items = self._take_items()
            total = sum(item.size for item in items)
            if items:
                fields["items"] = tuple(msgspec.Raw(item.line) for item in items)
                if any(item.tagged is not None for item in items):
                    fields["tagged"] = tuple(_raw(item.tagged) for item in items)
        has_all_items = not self._items and not self._spill
        if has_all_items and self._children:
            room = PART_BYTES_MAX - total
            children, size = self._children.take(room, at_least_one=not total)
            total += size
            if children.bodies:
                fields["children"] = children
        if self._seen_fingerprints and has_all_items and not self._children:
            count = max(PART_BYTES_MAX - total, 0) // _SEEN_BYTES
            fields["seen"] = bytes(self._seen_fingerprints[: count * FINGERPRINT_BYTES])
            total += len(fields["seen"]) // FINGERPRINT_BYTES * _SEEN_BYTES
            del self._seen_fingerprints[: count * FINGERPRINT_BYTES]
        self.bytes -= total
        return fields, total

    def _refill(self) -> None:
        """Read the items of the next part from the disk."""
        ready_bytes = sum(item.size for item in self._items) if self._spill else 0
        while self._spill and ready_bytes <= PART_BYTES_MAX:
            item = _form(*self._spill.get())
            self._items.append(item)
            ready_bytes += item.size

    def _take_items(self) -> list[_Whole]:
        items: list[_Whole] = []
        total = 0
        while self._items:
            item = self._items[0]
            if isinstance(item, _InPieces):
                break
            if items and total + item.size > PART_BYTES_MAX:
                break
            self._items.popleft()
            items.append(item)
            total += item.size
        return items

    def _take_piece(self, item: _InPieces) -> tuple[Piece, int]:
        piece = item.take()
        if piece.end:
            self._items.popleft()
            self._in_pieces -= 1
        return piece, len(piece.line) + len(piece.tagged)


class Timers(NamedTuple):
    """Functions that have methods of a ``Sender`` called later.

    ``flush``: ``Sender.flush``, soon, since there is something to send. ``age``:
    ``Sender.age``, now and then, as long as that returns True, since a page has
    requests to send. ``due``: ``Sender.send_due``, when the event loop has come round
    so often that a page that waits for nothing is finished.
    """

    flush: Callable[[], None]
    age: Callable[[], None]
    due: Callable[[], None]


class Sender:
    """Turns works into ``Commits`` of one process.

    ``send`` takes whole messages. ``add_loose_stats`` is called before a unit's last
    part is made: it adds the stats that belong to no lease.

    With ``is_in_order`` nothing that the choice of the next lease depends on leaves
    before the engine asks for a request.
    """

    def __init__(
        self,
        run: Run,
        send: Callable[[Message], None],
        timers: Timers,
        add_loose_stats: Callable[[Work], None],
    ) -> None:
        self._run = run
        self._send = send
        self._timers = timers
        self._add_loose_stats = add_loose_stats
        self._answered: list[Callable[[Work], None]] = []
        self._works: dict[tuple[int, int], Work] = {}
        self._units: deque[Work] = deque()
        self._next_unit = 1
        # Works that may send, in the order of their turns.
        self._queue: deque[Work] = deque()
        self._unseen_bytes = 0
        self._gathered: list[Commit] = []
        self._gathered_bytes = 0
        self.progress = LeaseProgress()
        # Unfinished pages with requests that have not been sent: those that came since
        # the last call of ``age``, those from before it, and those whose requests leave
        # at the next call of ``send_due``.
        self._recent: dict[Work, None] = {}
        self._older: dict[Work, None] = {}
        self._due: dict[Work, None] = {}
        self._will_send_due = False
        # The engine has asked for a request, and this process has no lease for it.
        self._is_asked = False
        self._is_short = False

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was settled has been answered."""
        return not self._works and not self._units

    def when_answered(self, callback: Callable[[Work], None]) -> None:
        """Call ``callback``, beside earlier ones, with each work that is answered."""
        self._answered.append(callback)

    def grown(self, work: Work) -> None:
        """Send full parts of an unfinished lease, as far as there is credit."""
        if not work.request:
            return
        if work.has_children and not self._has_noted(work):
            self._recent[work] = None
            if not self.is_in_order:
                self._timers.age()
                self._hasten()
        self._queue_up(work)
        self._send_queued()

    def keep_order(self) -> None:
        """Let ``is_in_order`` hold from now on."""
        self.progress.is_in_order = True

    @property
    def is_in_order(self) -> bool:
        """Whether requests go out in Scrapy's order, one at a time."""
        return self.progress.is_in_order

    def ask(self) -> None:
        """Send what may bring a lease, until ``answer``: the engine asks for a request
        and there is none."""
        self._is_asked = True
        self.progress.let_go()
        if self.is_in_order:
            self._send_early(self._recent)
            self.flush()
            return
        self._hasten()
        if self.progress.is_news:
            self._timers.flush()

    def answer(self) -> None:
        """Note that the engine gets what it asked for."""
        self._is_asked = False

    def set_short(self, *, is_short: bool) -> None:
        """Note whether the master says that another process waits for requests."""
        self._is_short = is_short
        self._hasten()

    def age(self) -> bool:
        """Let pages that were there at the last call be due; return whether there are
        others with requests to send."""
        if not self._will_send_due:
            self._let_be_due(self._older)
            self._older, self._recent = self._recent, {}
        return bool(self._older or self._recent)

    def _hasten(self) -> None:
        """Let all pages be due if somebody waits for requests.

        Pages that came while others are due wait for ``send_due``.
        """
        if (self._is_asked or self._is_short) and not self._will_send_due:
            self._let_be_due(self._older | self._recent)
            self._older = {}
            self._recent = {}

    def _let_be_due(self, works: dict[Work, None]) -> None:
        self._due = works
        if works:
            self._will_send_due = True
            self._timers.due()

    def send_due(self) -> None:
        """Send the requests of pages that are due and not finished."""
        self._will_send_due = False
        self._send_early(self._due)
        self._hasten()

    def _has_noted(self, work: Work) -> bool:
        return work in self._recent or work in self._older or work in self._due

    def forget(self, work: Work) -> None:
        """Send no early part of this page."""
        for works in (self._recent, self._older, self._due):
            works.pop(work, None)

    def _send_early(self, works: dict[Work, None]) -> None:
        for work in works:
            work.wants_early = True
            self._queue_up(work)
        works.clear()
        self._send_queued()

    def settled(self, work: Work) -> None:
        """Send the rest of a finished work, as soon as there is credit for each part.

        Units leave in the order of these calls.
        """
        assert not work.is_settled
        work.is_settled = True
        if work.request:
            self.forget(work)
            self._queue_up(work)
        else:
            self._units.append(work)
            self._queue_unit()
        self._send_queued()

    def acknowledged(self, answer: CommitsSeen) -> None:
        """Take the master's answers; each may come more than once."""
        for ack in answer.seen:
            work = self._works.get((ack.request, ack.unit))
            if work is None:
                continue
            self._unseen_bytes -= work.unseen.pop(ack.part, 0)
            if work.sent_last and not work.unseen:
                del self._works[ack.request, ack.unit]
                for callback in self._answered:
                    callback(work)
            else:
                self._queue_up(work)
        self._send_queued()

    def flush(self) -> None:
        """Send what has gathered."""
        ids: dict[str, Any] = {"job": self._run.job, "process": self._run.process}
        if self._gathered:
            commits = tuple(self._gathered)
            self._gathered = []
            self._gathered_bytes = 0
            self._send(Commits(**ids, commits=commits, **self.progress.take()))
        elif self.progress.is_news:
            self._send(Progress(**ids, **self.progress.take()))

    def _queue_up(self, work: Work) -> None:
        if work.may_send and not work.is_queued:
            work.is_queued = True
            self._queue.append(work)

    def _queue_unit(self) -> None:
        """Queue the first unit that is not sent to its end."""
        while self._units and self._units[0].sent_last:
            self._units.popleft()
        if self._units:
            work = self._units[0]
            if not work.unit:
                work.unit = self._next_unit
                self._next_unit += 1
            self._queue_up(work)

    def _send_queued(self) -> None:
        """Send a part of each work in turn, as long as there is credit for all.

        The rest of a settled work that fits one part goes with the last.
        """
        while self._queue and self._unseen_bytes < BYTES_UNSEEN_MAX:
            work = self._queue.popleft()
            work.is_queued = False
            self._send_part(work, is_last=work.is_settled and work.fits_part)
            self._queue_up(work)
            if work.unit and work.sent_last:
                self._queue_unit()

    def _send_part(self, work: Work, *, is_last: bool) -> None:
        fields, size = work.take_early() if work.sends_early else work.take_part()
        children: Children | None = fields.get("children")
        if children is not None and work.request and (work.again or not is_last):
            fields["digests"] = b"".join(map(body_digest, children.bodies))
            size += _DIGEST_BYTES * len(children.bodies)
        if is_last:
            assert work.bytes == 0
            work.sent_last = True
            self.progress.forget(work.request)
            if work.unit:
                self._add_loose_stats(work)
            fields["stats"] = work.delta.encoded()
            # Contexts of tasks that outlive their callback keep the work alive.
            work.delta.clear()
            work.child_fingerprints.clear()
            work.forget_values()
            size += sum(
                _STAT_BYTES + len(bytes(value))
                for group in fields["stats"].values()
                for value in group.values()
            )
        number = work.next_part
        work.next_part += 1
        work.unseen[number] = size + _COMMIT_BYTES
        self._unseen_bytes += work.unseen[number]
        self._works[work.request, work.unit] = work
        self._gather(
            Commit(
                request=work.request,
                unit=work.unit,
                part=number,
                last=is_last,
                kind=work.kind,
                digest=work.digest,
                finish=work.finish,
                end=work.end if is_last else None,
                **fields,
            ),
            work.unseen[number],
        )

    def _gather(self, commit: Commit, size: int) -> None:
        if self._gathered and self._gathered_bytes + size > FRAME_BYTES:
            self.flush()
        self._gathered.append(commit)
        self._gathered_bytes += size
        if self._gathered_bytes >= FRAME_BYTES:
            self.flush()
        elif len(self._gathered) == 1:
            self._timers.flush()


def _form(line: bytes, tagged: bytes | None) -> _Whole | _InPieces:
    if len(line) + len(tagged or b"null") + 2 > PIECE_BYTES_MAX:
        return _InPieces(line, tagged or b"null")
    line, tagged = wire_line(line), wire_form(tagged)
    return _Whole(line, tagged, len(line) + len(tagged or b"null") + 2)


def _split(data: memoryview, at: int) -> tuple[memoryview, memoryview]:
    return data[:at], data[at:]


def _raw(form: bytes | None) -> msgspec.Raw:
    return _NULL if form is None else msgspec.Raw(form)
