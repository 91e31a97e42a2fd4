"""Pending requests in the order in which they go out: of one host, and over hosts.

A request's *rank* says where it stands: smaller goes first. Larger priorities go first;
within a priority, as in Scrapy's priority queue, requests of callbacks go before those
of ``start()``, and requests that were leased and came back before both. Within a rank
the number decides, newest or oldest first. So (rank, number or -number) orders all
requests.

Both structures are lazy. A queue may hold numbers of requests that are not pending
there any more: ``entries`` says which are. Such a number is dropped when it comes to an
end of the queue.
"""

import heapq
from bisect import bisect_left
from collections import deque

import attrs
import msgspec

from dscrapy.messages import START_REQUEST

# A rank's lowest bits: the request is of start(); it was not leased before.
_OF_START = 1
_FIRST_TIME = 2
_KIND_BITS = 2

# Outdated heads are thrown out when they are more than the valid ones, and not before
# there are this many: fewer cost less to walk over than a new heap.
OUTDATED_HEADS_MIN = 64

# (rank, number) or, where the newest goes first, (rank, -number).
Key = tuple[int, int]

# Stands in place of a process for requests in no queue; no process has this number.
APART = 0

# How far a process has come with a lease: not begun, in its download, past that (its
# callback runs, or its items are in the pipelines).
UNSTARTED, STARTED, DOWNLOADED = range(3)


class Entry(msgspec.Struct, gc=False):
    """A request that is not done; ``process`` has the lease.

    ``process`` is None for a pending request, ``APART`` for one that is apart or set
    aside (``open_requests``). ``stage`` is that of its lease. The body is ``length``
    bytes at ``offset`` of the job's file of bodies.
    """

    host: str
    rank: int
    offset: int
    length: int
    process: int | None = None
    stage: int = UNSTARTED


def rank_of(priority: int, flags: int) -> int:
    """Return the rank of a request that was never leased."""
    kind = _FIRST_TIME | (_OF_START if flags & START_REQUEST else 0)
    return (-priority << _KIND_BITS) | kind


def returned(rank: int) -> int:
    """Return the rank after a lease that ended without the request being done."""
    return rank & ~_FIRST_TIME


def priority_of(rank: int) -> int:
    """Return Scrapy's priority."""
    return -(rank >> _KIND_BITS)


def flags_of(rank: int) -> int:
    """Return the flags that the frontier keeps."""
    return START_REQUEST if rank & _OF_START else 0


@attrs.frozen(kw_only=True)
class Order:
    """Which end of a queue is taken first: ``lifo`` is the newest."""

    lifo: bool
    start_lifo: bool


@attrs.define(eq=False)
class Queues:
    """The pending requests of one host: a queue per rank, numbers rising."""

    _by_rank: dict[int, deque[int]] = attrs.field(init=False, factory=dict)
    # A heap of the keys of ``_by_rank``.
    _ranks: list[int] = attrs.field(init=False, factory=list)

    def push(self, number: int, rank: int) -> None:
        """Put a request in; a number above all others costs nothing, another a search.

        A request that needs a search comes back from a lease, and leases are few.
        """
        queue = self._by_rank.get(rank)
        if queue is None:
            queue = self._by_rank[rank] = deque()
            heapq.heappush(self._ranks, rank)
        if not queue or queue[-1] < number:
            queue.append(number)
            return
        at = bisect_left(queue, number)
        # A number that left the middle of the queue is still there.
        if queue[at] != number:
            queue.insert(at, number)

    def head(self, entries: dict[int, Entry], order: Order) -> Key | None:
        """Return the key of the request that goes first, None if there is none."""
        while self._ranks:
            rank = self._ranks[0]
            if queue := self.trim(rank, entries):
                lifo = order.start_lifo if rank & _OF_START else order.lifo
                return (rank, -queue[-1]) if lifo else (rank, queue[0])
            del self._by_rank[rank]
            heapq.heappop(self._ranks)
        return None

    def trim(self, rank: int, entries: dict[int, Entry]) -> deque[int]:
        """Drop numbers that are not pending from both ends; return the queue."""
        queue = self._by_rank[rank]
        while queue and not _is_pending(entries.get(queue[0]), rank):
            queue.popleft()
        while queue and not _is_pending(entries.get(queue[-1]), rank):
            queue.pop()
        return queue


def _is_pending(entry: Entry | None, rank: int) -> bool:
    return entry is not None and entry.process is None and entry.rank == rank


@attrs.define(eq=False)
class Heads:
    """The first request of each of several hosts, and the first of all at once."""

    _current: dict[str, Key] = attrs.field(init=False, factory=dict)
    _heap: list[tuple[Key, str]] = attrs.field(init=False, factory=list)

    def __len__(self) -> int:
        return len(self._current)

    def set(self, host: str, key: Key) -> None:
        """Note or change what goes first at the host."""
        if self._current.get(host) == key:
            return
        self._current[host] = key
        heapq.heappush(self._heap, (key, host))
        outdated = len(self._heap) - len(self._current)
        if outdated > max(OUTDATED_HEADS_MIN, len(self._current)):
            self._heap = [(key, host) for host, key in self._current.items()]
            heapq.heapify(self._heap)
        self._drop_outdated()

    def drop(self, host: str) -> None:
        """Forget the host, which may be unknown."""
        if self._current.pop(host, None) is not None:
            self._drop_outdated()

    def first(self) -> tuple[Key, str] | None:
        """Return what goes first of all, and its host."""
        return self._heap[0] if self._heap else None

    def _drop_outdated(self) -> None:
        """Drop outdated keys until the heap begins with a valid one."""
        heap, current = self._heap, self._current
        while heap and current.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
