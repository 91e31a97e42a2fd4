"""What leases and units gave, on its way to the master: commits in parts and frames.

No I/O and no clock. A ``Work`` gathers what one leased request or one unit gives. A
large lease travels in numbered parts as it grows, at most ``PARTS_UNSEEN_MAX`` of them
unanswered; whoever adds items is told by ``is_full`` to wait meanwhile. A unit gets
its number when it is finished, since the master takes units strictly in order; until
then all of it is held here. Commits gather until ``flush`` into frames of about
``FRAME_BYTES``. What is sent is forgotten: the worker keeps it until it is answered.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from dscrapy.crawl.stats import Delta
from dscrapy.messages import Children, Commit, Commits, CommitsSeen, Message, Run
from dscrapy.model import Outcome
from dscrapy.proto.framing import FRAME_BYTES_MAX

# A part goes when this much has gathered: large enough that a part's fsync is
# shared by many items, small enough that memory stays small.
PART_BYTES_MAX = 256 * 1024
# Parts of one commit that the master has not acknowledged. Many pages finish at a
# time, so a few each keep the line busy and bound what all of them hold.
PARTS_UNSEEN_MAX = 4
# Commits that gather into one frame; precedent: nsq's --max-msg-size.
FRAME_BYTES = 1024 * 1024
# The frame around the items: ids, an outcome with its traceback, JSON escapes.
ENVELOPE_BYTES_MAX = 64 * 1024
ITEM_BYTES_MAX = FRAME_BYTES_MAX - ENVELOPE_BYTES_MAX
# What a child costs in a commit beside its body and host: fingerprint, numbers.
_CHILD_BYTES = 48
# What a commit costs beside what it holds.
_COMMIT_BYTES = 200
# What a number costs in a commit's stats, with its key.
_STAT_BYTES = 50

_NULL = msgspec.Raw(b"null")


class ItemTooLargeError(Exception):
    """One item alone is larger than a message may be."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"one item is {size} bytes as JSON, the limit is {ITEM_BYTES_MAX}"
        )


class Child(NamedTuple):
    """A request that a lease or unit gave; fields as in ``messages.Children``."""

    fingerprint: bytes
    host: str
    priority: int
    flags: int
    body: bytes


class Work:
    """A leased request (``request`` > 0) or a unit of this kind, and what it gave."""

    __slots__ = (
        "_children",
        "_items",
        "bytes",
        "child_fingerprints",
        "delta",
        "digest",
        "end",
        "finish",
        "is_settled",
        "kind",
        "local_count",
        "next_part",
        "open",
        "outcome",
        "request",
        "seen",
        "sent_last",
        "unit",
        "unseen",
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
        self.digest = digest
        self.finish = finish
        self.end = end
        self.outcome = ""
        self.delta = Delta()
        # What has to end before the work is settled; and how many of its requests
        # never left this process.
        self.open = 0
        self.local_count = 0
        self.is_settled = False
        self.child_fingerprints: set[bytes] = set()
        self.seen: list[bytes] = []
        # On its way: its number as a unit, its next part, the unanswered ones.
        self.unit = 0
        self.next_part = 0
        self.unseen: set[int] = set()
        self.sent_last = False
        self.bytes = 0
        self._items: deque[tuple[bytes, bytes | None, int]] = deque()
        self._children: deque[tuple[Child, int]] = deque()

    @property
    def has_credit(self) -> bool:
        """Whether a part of it may be sent now."""
        return len(self.unseen) < PARTS_UNSEEN_MAX

    @property
    def is_full(self) -> bool:
        """Whether whoever adds items should wait for credit first."""
        return self.request > 0 and not self.has_credit and self.bytes >= PART_BYTES_MAX

    def add_item(self, line: bytes, tagged: bytes | None) -> None:
        """Take an item's forms; ``ItemTooLargeError`` when no message can hold it."""
        size = len(line) + len(tagged or b"null") + 2
        if size > ITEM_BYTES_MAX:
            raise ItemTooLargeError(size)
        self._items.append((line, tagged, size))
        self.bytes += size

    def add_child(self, child: Child) -> None:
        """Take a request that the master is to keep."""
        size = len(child.body) + len(child.host) + _CHILD_BYTES
        self._children.append((child, size))
        self.bytes += size

    def take_part(self) -> tuple[dict[str, Any], int]:
        """Return the fields of the next part and its size: at least one thing."""
        items: list[tuple[bytes, bytes | None, int]] = []
        children: list[Child] = []
        total = 0
        while self._items and (
            not items or total + self._items[0][2] <= PART_BYTES_MAX
        ):
            items.append(self._items.popleft())
            total += items[-1][2]
        while not self._items and self._children:
            child, size = self._children[0]
            if total and total + size > PART_BYTES_MAX:
                break
            children.append(child)
            self._children.popleft()
            total += size
        self.bytes -= total
        fields: dict[str, Any] = {}
        if items:
            fields["items"] = tuple(msgspec.Raw(line) for line, _, _ in items)
            if any(tagged is not None for _, tagged, _ in items):
                fields["tagged"] = tuple(_raw(tagged) for _, tagged, _ in items)
        if children:
            fields["children"] = columns(children)
        return fields, total


class Sender:
    """Turns works into ``Commits`` of one process.

    ``send`` takes whole messages; ``soon`` is called when something has begun to
    gather, and ``flush`` is to follow. ``ride`` is called before a unit's last part
    is made: it adds the stats that belong to no lease.
    """

    def __init__(
        self,
        run: Run,
        send: Callable[[Message], None],
        soon: Callable[[], None],
        ride: Callable[[Work], None],
    ) -> None:
        self._run = run
        self._send = send
        self._soon = soon
        self._ride = ride
        # Called with each work whose last part is answered.
        self.answered: Callable[[Work], None] = lambda work: None
        self._works: dict[tuple[int, int], Work] = {}
        self._units: deque[Work] = deque()
        self._next_unit = 1
        self._gathered: list[Commit] = []
        self._gathered_bytes = 0

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was settled has been answered."""
        return not self._works and not self._units

    def grown(self, work: Work) -> None:
        """Send full parts of an unfinished lease, as far as there is credit."""
        if work.request and work.bytes >= PART_BYTES_MAX:
            self._send_parts(work)

    def settled(self, work: Work) -> None:
        """Send the rest of a finished work, as soon as there is credit for each part.

        Units leave in the order of these calls.
        """
        assert not work.is_settled
        work.is_settled = True
        if work.request:
            self._send_parts(work)
        else:
            self._units.append(work)
            self._send_units()

    def seen(self, answer: CommitsSeen) -> None:
        """Take the master's answers; each may come more than once."""
        for one in answer.seen:
            work = self._works.get((one.request, one.unit))
            if work is None:
                continue
            work.unseen.discard(one.part)
            if work.sent_last and not work.unseen:
                del self._works[one.request, one.unit]
                self.answered(work)
            elif work.request:
                self._send_parts(work)
        self._send_units()

    def flush(self) -> None:
        """Send what has gathered."""
        if self._gathered:
            commits = tuple(self._gathered)
            self._gathered = []
            self._gathered_bytes = 0
            self._send(
                Commits(job=self._run.job, process=self._run.process, commits=commits)
            )

    def _send_units(self) -> None:
        while self._units:
            work = self._units[0]
            if not work.unit:
                work.unit = self._next_unit
                self._next_unit += 1
            if not self._send_parts(work):
                return
            self._units.popleft()

    def _send_parts(self, work: Work) -> bool:
        """Send parts as far as they are full or the work is settled; True at its end.

        The rest of a settled work that fits one part goes with the last.
        """
        while not work.sent_last and work.has_credit:
            is_last = work.is_settled and work.bytes <= PART_BYTES_MAX
            if not is_last and work.bytes < PART_BYTES_MAX:
                break
            self._send_part(work, is_last)
        return work.sent_last

    def _send_part(self, work: Work, is_last: bool) -> None:
        fields, size = work.take_part()
        if is_last:
            assert work.bytes == 0
            work.sent_last = True
            if work.unit:
                self._ride(work)
            fields["stats"] = work.delta.encoded()
            # Contexts of tasks that outlive their callback keep the work alive.
            work.delta.clear()
            fields["seen"] = b"".join(work.seen)
            work.seen.clear()
            work.child_fingerprints.clear()
            size += len(fields["seen"]) * 2 + sum(
                _STAT_BYTES + len(bytes(value))
                for group in fields["stats"].values()
                for value in group.values()
            )
        number = work.next_part
        work.next_part += 1
        work.unseen.add(number)
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
                outcome=work.outcome if is_last else "",
                end=work.end if is_last else None,
                **fields,
            ),
            size + _COMMIT_BYTES,
        )

    def _gather(self, commit: Commit, size: int) -> None:
        if self._gathered and self._gathered_bytes + size > FRAME_BYTES:
            self.flush()
        self._gathered.append(commit)
        self._gathered_bytes += size
        if self._gathered_bytes >= FRAME_BYTES:
            self.flush()
        elif len(self._gathered) == 1:
            self._soon()


def columns(children: Iterable[Child]) -> Children:
    """Return requests as they travel."""
    places: dict[str, int] = {}
    fingerprints, host_of, priorities, flags, bodies = [], [], [], [], []
    for child in children:
        fingerprints.append(child.fingerprint)
        host_of.append(places.setdefault(child.host, len(places)))
        priorities.append(child.priority)
        flags.append(child.flags)
        bodies.append(msgspec.Raw(child.body))
    return Children(
        fingerprints=b"".join(fingerprints),
        hosts=tuple(places),
        host_of=tuple(host_of),
        priorities=tuple(priorities),
        flags=tuple(flags),
        bodies=tuple(bodies),
    )


def _raw(form: bytes | None) -> msgspec.Raw:
    return _NULL if form is None else msgspec.Raw(form)
