"""Bodies of requests on their way to the crawl processes that lease them.

Each job's bodies are in a file that is derived from the journal. Most requests are
leased soon after they came, so the most recent bodies stay in memory; so do all bodies
that are not written to the file yet.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from dscrapy.control.projections import requests_name
from dscrapy.frontier.frontier import Place
from dscrapy.master.files import whole_bytes
from dscrapy.master.storage import Storage

# Bytes of written bodies that may stay in memory, counted with their objects.
KEPT_BYTES_MAX = 64 * 1024 * 1024
# What a body costs beside its bytes: itself, its key and its places in dict and queue;
# rounded up from what they take in CPython 3.11 to 3.13.
BODY_BYTES = 450
# Bytes that are read around a body, since its neighbours are often leased with it.
READ_BYTES = 256 * 1024


class Bodies:
    """The bodies of all jobs. ``storage`` is read in the thread that calls ``read``."""

    def __init__(
        self, storage: Storage, *, kept_bytes_max: int = KEPT_BYTES_MAX
    ) -> None:
        self._storage = storage
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[tuple[str, int], bytes] = {}
        # The oldest first: the write that puts the body into its file, job, offset.
        self._order: deque[tuple[int, tuple[str, int], bytes]] = deque()
        self._new: list[tuple[tuple[str, int], bytes]] = []
        self._bytes = 0

    def keep(self, job: str, at: int, bodies: Iterable[msgspec.Raw]) -> None:
        """Keep bodies that are about to be written one after another at ``at``."""
        for body in bodies:
            data = bytes(body)
            self._kept[job, at] = data
            self._new.append(((job, at), data))
            self._bytes += len(data) + BODY_BYTES
            at += len(data) + 1

    def handed_over(self, write: int) -> None:
        """Take note that all bodies kept so far are in their files after that write."""
        self._order += [(write, *entry) for entry in self._new]
        self._new.clear()

    def trim(self, written: int) -> None:
        """Forget the oldest bodies beyond the limit whose write is done."""
        while self._order and self._bytes > self._kept_bytes_max:
            write, key, data = self._order[0]
            if write > written:
                return
            self._order.popleft()
            self._bytes -= len(data) + BODY_BYTES
            # A job that began anew may have put another body at this place.
            if self._kept.get(key) is data:
                del self._kept[key]

    def has_all(self, job: str, places: Sequence[Place]) -> bool:
        """Whether all are in memory, so that ``read`` reads no file."""
        return all((job, offset) in self._kept for offset, _ in places)

    def read(self, job: str, places: Sequence[Place]) -> tuple[msgspec.Raw | None, ...]:
        """Return the bodies at these places, None where one is missing in the file.

        Blocking, unless ``has_all``.
        """
        found: dict[Place, bytes] = {}
        missing: list[Place] = []
        for place in places:
            kept = self._kept.get((job, place[0]))
            if kept is None:
                missing.append(place)
            else:
                found[place] = kept
        found.update(self._from_file(job, sorted(missing)))
        return tuple(
            msgspec.Raw(found[place]) if place in found else None for place in places
        )

    def _from_file(self, job: str, places: list[Place]) -> dict[Place, bytes]:
        """Return the bodies that the file has; places near each other are one read."""
        found: dict[Place, bytes] = {}
        name = requests_name(job)
        start, chunk = 0, b""
        for offset, length in places:
            if offset + length > start + len(chunk) or offset < start:
                start = offset
                try:
                    chunk = self._storage.read(name, start, max(length, READ_BYTES))
                except FileNotFoundError:
                    chunk = b""
            data = chunk[offset - start : offset - start + length]
            if len(data) == whole_bytes(data) == length:
                found[offset, length] = data
        return found
