"""Jobs whose first process may start, the best first: by priority, then first come."""

import heapq
from collections.abc import Iterator

import attrs

# Highest priority first, then the order of submission; then the job's id.
Entry = tuple[int, int, str]
# Entries that are left out are dropped from the heap once they are more than the
# others, and more than this: to drop a few does not pay.
LEFT_OUT_MIN = 64


@attrs.define
class ReadyJobs:
    """A heap that is read in order without being changed, so that deciding is pure.

    Each job stands in it once. A job that is taken out leaves its entry behind, which
    counts again when the job comes back.
    """

    _heap: list[Entry] = attrs.field(factory=list)
    _entries: set[Entry] = attrs.field(factory=set)
    _left_out: set[Entry] = attrs.field(factory=set)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids in order; each costs the logarithm of the number before it."""
        heap = self._heap
        # Places in the heap whose parents were yielded; each is before its children.
        places = [(heap[0], 0)] if heap else []
        while places:
            entry, at = heapq.heappop(places)
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(places, (heap[child], child))
            if entry in self._entries:
                yield entry[2]

    def add(self, entry: Entry) -> None:
        """Put the job in, if it is not there."""
        if entry in self._entries:
            return
        self._entries.add(entry)
        if entry in self._left_out:
            self._left_out.remove(entry)
        else:
            heapq.heappush(self._heap, entry)

    def discard(self, entry: Entry) -> None:
        """Take the job out, if it is there."""
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        self._left_out.add(entry)
        while self._heap and self._heap[0] in self._left_out:
            self._left_out.remove(heapq.heappop(self._heap))
        if len(self._left_out) > max(len(self._entries), LEFT_OUT_MIN):
            self._heap = list(self._entries)
            heapq.heapify(self._heap)
            self._left_out.clear()
