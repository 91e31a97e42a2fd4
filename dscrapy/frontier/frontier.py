"""The frontier of one job: its pending and leased requests, and the fingerprints seen.

A request is named by its number. Numbers rise from 1 and are never used again, so every
number below the next one that is not open is done, and done requests cost nothing.
Bodies stand in a file that is derived from the journal; the frontier knows their places
alone.

The *durable* calls, made in the journal's order, give the same frontier again, as does
a snapshot. The *volatile* ones say which processes are there and what they have
(``lease`` and the parts ``leases`` and ``quarantine``); a restart forgets them. Calls
take batches in columns, so that the tables behind them can change and the calls stay.
"""

import struct
from collections.abc import Collection, Iterable, Sequence
from types import MappingProxyType

import attrs
import msgspec

from dscrapy.frontier.capacity import Capacity
from dscrapy.frontier.early_requests import EarlyRequests, Given
from dscrapy.frontier.leases import Leases
from dscrapy.frontier.open_requests import OpenRequests
from dscrapy.frontier.priority_index import PriorityIndex
from dscrapy.frontier.quarantine import DeathCounts, Deaths, Poisoned, Quarantine
from dscrapy.frontier.queues import Entry, flags_of, priority_of, rank_of
from dscrapy.frontier.readers import Readers
from dscrapy.frontier.rights import Rights
from dscrapy.messages import (
    DERIVED,
    DONT_FILTER,
    FINGERPRINT_BYTES,
    KIND_MAX,
    Children,
    Share,
)

# Offset and length in the job's file of bodies.
Place = tuple[int, int]


@attrs.frozen
class Granted:
    """Leases in columns of one length, in the order in which they are to start.

    ``places`` are those of the bodies; ``values`` has the places of the values that a
    request refers to, for each request that refers to some. ``shares`` names the hosts
    that the process has a new right to. Of the pages ``again`` an earlier run has
    given requests.
    """

    requests: tuple[int, ...]
    hosts: tuple[str, ...]
    places: tuple[Place, ...]
    shares: dict[str, Share]
    values: dict[int, tuple[Place, ...]] = attrs.field(factory=dict)
    again: tuple[int, ...] = ()

    @property
    def all_places(self) -> tuple[Place, ...]:
        """The places of all bodies and values to read, each once."""
        values = (place for places in self.values.values() for place in places)
        return tuple(dict.fromkeys((*self.places, *values)))

    def split(self, missing: Collection[Place]) -> "tuple[Granted, tuple[int, ...]]":
        """Return the leases that need no missing place, and the requests that do."""
        if not missing:
            return self, ()
        kept, lacking = list[int](), list[int]()
        for at, request in enumerate(self.requests):
            needed = (self.places[at], *self.values.get(request, ()))
            if any(place in missing for place in needed):
                lacking.append(request)
            else:
                kept.append(at)
        whole = attrs.evolve(
            self,
            requests=tuple(self.requests[at] for at in kept),
            hosts=tuple(self.hosts[at] for at in kept),
            places=tuple(self.places[at] for at in kept),
            again=tuple(page for page in self.again if page not in lacking),
        )
        return whole, tuple(lacking)


class Stored(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Children without effect yet, in columns as in ``Children``.

    Their bodies, and then the values of this part, stand in the file from ``offset``
    on, each with a newline behind it that lengths do not count. ``seen`` are
    fingerprints of requests that stay in their process and never come here.
    """

    fingerprints: bytes
    hosts: tuple[str, ...]
    host_of: tuple[int, ...]
    priorities: tuple[int, ...]
    flags: tuple[int, ...]
    offset: int
    lengths: tuple[int, ...]
    kinds: tuple[int, ...] = ()
    value_lengths: tuple[int, ...] = ()
    uses: tuple[tuple[int, ...], ...] = ()
    seen: bytes = b""

    def value_places(self) -> list[Place]:
        """Return where the values of this part stand."""
        offset = self.offset + sum(self.lengths) + len(self.lengths)
        places = []
        for length in self.value_lengths:
            places.append((offset, length))
            offset += length + 1
        return places

    def spent(self) -> "Stored":
        """Return what is left of this part when its requests have taken effect."""
        offset = self.offset + sum(self.lengths) + len(self.lengths)
        return Stored(
            fingerprints=b"",
            hosts=(),
            host_of=(),
            priorities=(),
            flags=(),
            offset=offset,
            lengths=(),
            value_lengths=self.value_lengths,
            seen=self.seen,
        )


class FrontierSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The durable part of a frontier; open requests in columns, numbers rising.

    ``numbers``, ``host_of``, ``offsets`` and ``lengths`` are packed, 8 bytes each,
    ``flags`` one byte each. Requests that are ``poisoned`` are open, too; ``deaths``
    count against requests. ``kinds`` and ``values`` (places) have only those requests
    that have some. ``early`` has the digests of ``early_requests``.
    """

    next_request: int
    body_bytes: int
    seen: bytes
    hosts: tuple[str, ...]
    numbers: bytes
    host_of: bytes
    priorities: tuple[int, ...]
    flags: bytes
    offsets: bytes
    lengths: bytes
    deaths: dict[int, Deaths] = {}
    poisoned: dict[int, Poisoned] = {}
    kinds: dict[int, int] = {}
    values: dict[int, tuple[Place, ...]] = {}
    early: dict[int, bytes] = {}


@attrs.define(eq=False)
class Seen:
    """Exact set of fingerprints of ``FINGERPRINT_BYTES``, which come in one piece.

    It keeps their order, so that equal frontiers have equal snapshots.
    """

    _table: dict[bytes, None] = attrs.field(init=False, factory=dict)

    def __len__(self) -> int:
        return len(self._table)

    def add_many(self, fingerprints: bytes) -> list[bool]:
        """Add fingerprints; return whether each is new, also within the batch."""
        table, new = self._table, []
        for fingerprint in _split(fingerprints):
            before = len(table)
            table[fingerprint] = None
            new.append(len(table) > before)
        return new

    def test_many(self, fingerprints: bytes) -> list[bool]:
        """Return for each fingerprint whether it is in the set."""
        table = self._table
        return [fingerprint in table for fingerprint in _split(fingerprints)]

    def dump(self) -> bytes:
        """Return all fingerprints of the set, in one piece."""
        return b"".join(self._table)


def _split(fingerprints: bytes) -> list[bytes]:
    assert len(fingerprints) % FINGERPRINT_BYTES == 0
    return [
        fingerprints[at : at + FINGERPRINT_BYTES]
        for at in range(0, len(fingerprints), FINGERPRINT_BYTES)
    ]


def is_sound(children: Children) -> bool:
    """Tell whether all columns have one length and name hosts that are there.

    Callers check with this what a peer sends; the frontier relies on it.
    """
    count = len(children.bodies)
    return (
        len(children.fingerprints) == count * FINGERPRINT_BYTES
        and len(children.host_of) == count
        and len(children.priorities) == count
        and len(children.flags) == count
        and len(children.kinds) in (0, count)
        and len(children.uses) in (0, count)
        and all(0 <= host < len(children.hosts) for host in children.host_of)
        and all(0 <= kind <= KIND_MAX for kind in children.kinds)
    )


def uses_are_sound(children: Children, values: int) -> bool:
    """Tell whether all uses are of the first ``values`` values of their commit."""
    return all(0 <= at < values for use in children.uses for at in use)


def without(children: Children, passed_over: Sequence[bool]) -> Children:
    """Return the requests that are not passed over."""
    kept = [at for at, is_passed in enumerate(passed_over) if not is_passed]
    is_whole = len(kept) == len(children.bodies)
    return children if is_whole else _select(children, kept)


def payloads(children: Children) -> tuple[msgspec.Raw, ...]:
    """Return what the job's file of bodies gets of these requests, in order."""
    return children.bodies + children.values


@attrs.define(eq=False)
class Frontier:
    """See the module. ``next_request`` is the number of the request added next.

    ``body_bytes`` is the length of the job's file of bodies. ``early`` counts requests
    of open pages. ``leases`` takes what processes do, ``quarantine`` has the process
    that runs suspects, ``capacity`` answers whether there is work for more processes.
    """

    next_request: int = 1
    body_bytes: int = 0
    _values: dict[int, tuple[Place, ...]] = attrs.field(init=False, factory=dict)
    _seen: Seen = attrs.field(init=False, factory=Seen)
    early: EarlyRequests = attrs.field(init=False, factory=EarlyRequests)
    _deaths: DeathCounts = attrs.field(init=False, factory=DeathCounts)
    _readers: Readers = attrs.field(init=False, factory=Readers)
    _rights: Rights = attrs.field(init=False, factory=Rights)
    _index: PriorityIndex = attrs.field(init=False)
    _requests: OpenRequests = attrs.field(init=False)
    leases: Leases = attrs.field(init=False)
    quarantine: Quarantine = attrs.field(init=False)
    capacity: Capacity = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        entries: dict[int, Entry] = {}
        self._index = index = PriorityIndex(self._rights, entries)
        self.quarantine = Quarantine(self._rights, self._deaths)
        self._requests = OpenRequests(
            entries,
            self._rights,
            index,
            self._deaths,
            self.quarantine,
            self._readers,
        )
        parts = self._rights, index, self._requests, self.quarantine
        self.leases = Leases(*parts, self._readers)
        self.capacity = Capacity(*parts)

    # ---- durable -----------------------------------------------------------

    def unseen(self, children: Children) -> tuple[Children, int]:
        """Return the requests that ``add`` would take, and how many it would not."""
        is_seen = self._seen.test_many(children.fingerprints)
        batch: set[bytes] = set()
        kept: list[int] = []
        for at, fingerprint in enumerate(_split(children.fingerprints)):
            if not children.flags[at] & DONT_FILTER:
                if is_seen[at] or fingerprint in batch:
                    continue
                batch.add(fingerprint)
            kept.append(at)
        filtered = len(is_seen) - len(kept)
        return (_select(children, kept) if filtered else children), filtered

    def add(self, children: Children) -> int:
        """Number the requests that are not seen and make them pending; return how many
        were seen.

        The body of each, also of a seen one, takes its place in the file.
        """
        return self.publish([self.store(children)])

    def store(self, children: Children, seen: bytes = b"") -> Stored:
        """Give each body its place in the file, without any other effect."""
        lengths = tuple(len(bytes(body)) for body in children.bodies)
        stored = Stored(
            fingerprints=children.fingerprints,
            hosts=children.hosts,
            host_of=children.host_of,
            priorities=children.priorities,
            flags=children.flags,
            offset=self.body_bytes,
            lengths=lengths,
            kinds=children.kinds,
            value_lengths=tuple(len(bytes(value)) for value in children.values),
            uses=children.uses,
            seen=seen,
        )
        all_lengths = (*lengths, *stored.value_lengths)
        self.body_bytes += sum(all_lengths) + len(all_lengths)
        return stored

    def take_early(
        self,
        page: int,
        earlier: Sequence[Stored],
        part: Stored,
        given: Given,
        digests: bytes,
    ) -> tuple[Stored, int]:
        """Let the requests of one part have effect before its page is done.

        ``earlier`` are the parts of this run before it; ``given`` counts by digest what
        they and this one, of these ``digests``, have asked for. Return what is left of
        the part, and how many requests are seen.
        """
        values: list[Place] = []
        if part.uses:
            values += (place for each in earlier for place in each.value_places())
            values += part.value_places()
        filtered, _ = self._add_stored(part, values)
        self.early.note(page, given, digests)
        self._index.refresh()
        return part.spent(), filtered

    def publish(
        self,
        parts: Sequence[Stored],
        request: int = 0,
        given: Given = MappingProxyType({}),
    ) -> int:
        """Let a commit have effect: number the requests of its parts that are not seen
        by now and make them pending; return how many are seen.

        ``request`` is the request that the commit is of, which is done; 0 for none.
        ``given`` counts by digest what its run has asked for.
        """
        values: list[Place] = []
        filtered, successor = 0, None
        for part in parts:
            values += part.value_places()
            seen_count, successor = self._add_stored(part, values)
            filtered += seen_count
        for part in parts:
            self._seen.add_many(part.seen)
        if request:
            self.early.end(request, given, successor)
            self._values.pop(request, None)
            was_open = self._requests.done(request)
            assert was_open, request
        self._index.refresh()
        return filtered

    def _add_stored(
        self, stored: Stored, values: Sequence[Place]
    ) -> tuple[int, int | None]:
        """Make requests pending; return how many are seen, and the number of the one
        that takes its page's place, if one does."""
        offset, filtered, successor = stored.offset, 0, None
        kinds = stored.kinds or (0,) * len(stored.lengths)
        uses = stored.uses or ((),) * len(stored.lengths)
        for is_new, host, priority, flags, length, kind, use in zip(
            self._record(stored),
            stored.host_of,
            stored.priorities,
            stored.flags,
            stored.lengths,
            kinds,
            uses,
            strict=True,
        ):
            if is_new:
                place = range(offset, offset + length)
                rank = rank_of(priority, flags)
                self._requests.add(self.next_request, stored.hosts[host], rank, place)
                if kind:
                    self._readers.kinds[self.next_request] = kind
                if use:
                    self._values[self.next_request] = tuple(values[at] for at in use)
                if flags & DERIVED:
                    successor = self.next_request
                self.next_request += 1
            else:
                filtered += 1
            offset += length + 1
        return filtered, successor

    def done(self, request: int, now: float | None = None) -> bool:
        """Let a request be done; False if it was not open."""
        self._rights.politeness.tick(now)
        self._values.pop(request, None)
        self.early.forget(request)
        was_open = self._requests.done(request)
        self._index.refresh()
        return was_open

    def count_death(self, requests: Sequence[int], *, alone: bool) -> int:
        """Count the death of a process against open requests that it is blamed on;
        return how many are suspects for it from now on.

        ``alone``: the process had no other request.
        """
        new = 0
        for request in requests:
            if request in self._deaths.poisoned or not self.is_open(request):
                continue
            if self._deaths.add(request, alone=alone):
                self._requests.put_in_quarantine(request)
                new += 1
        self._index.refresh()
        return new

    def halve(self, requests: Sequence[int]) -> None:
        """Try these suspects, which were tried together, in two groups."""
        left = [request for request in requests if self.is_suspect(request)]
        if left:
            self._deaths.halve(left)

    def would_prove(self, request: int, *, alone: bool) -> bool:
        """Tell whether one more death would prove that the request is poisoned."""
        return self._deaths.would_prove(request, alone=alone)

    def is_suspect(self, request: int) -> bool:
        """Tell whether the request is tried apart."""
        return self._deaths.is_suspect(request)

    def set_aside(self, request: int, poisoned: Poisoned) -> None:
        """Let an open request never be leased again, unless it is pardoned."""
        self._requests.set_aside(request)
        self._deaths.set_aside(request, poisoned)
        self._index.refresh()

    def pardon(self) -> None:
        """Give the requests that are set aside another chance, each alone."""
        for request in self._deaths.pardon():
            self._requests.bring_back(request)
        self._index.refresh()

    @property
    def poisoned(self) -> dict[int, Poisoned]:
        """Requests that are set aside, and why."""
        return self._deaths.poisoned

    def seen_of(self, fingerprints: bytes) -> tuple[bool, ...]:
        """Return for each fingerprint whether it is seen."""
        return tuple(self._seen.test_many(fingerprints))

    def is_open(self, request: int) -> bool:
        """Tell whether a request is pending, leased or poisoned: not done."""
        return request in self._requests.entries

    @property
    def pending_count(self) -> int:
        """Requests that are to be leased."""
        return self._requests.pending_count

    @property
    def leased_count(self) -> int:
        """Requests that a process has leased."""
        return self._requests.leased_count

    def _record(self, stored: Stored) -> list[bool]:
        """Mark the fingerprints as seen; return for each request whether to take it."""
        if not any(flags & DONT_FILTER for flags in stored.flags):
            return self._seen.add_many(stored.fingerprints)
        looked_up = b"".join(
            fingerprint
            for fingerprint, flags in zip(
                _split(stored.fingerprints), stored.flags, strict=True
            )
            if not flags & DONT_FILTER
        )
        new = iter(self._seen.add_many(looked_up))
        return [bool(flags & DONT_FILTER) or next(new) for flags in stored.flags]

    # ---- volatile ----------------------------------------------------------

    def lease(self, process: int, count: int, now: float) -> Granted:
        """Lease to an open process up to ``count`` requests, never over its window."""
        requests, shares = self.leases.grant(process, count, now)
        entries = [self._requests.entries[request] for request in requests]
        return Granted(
            requests=tuple(requests),
            hosts=tuple(entry.host for entry in entries),
            places=tuple((entry.offset, entry.length) for entry in entries),
            values={
                request: self._values[request]
                for request in requests
                if request in self._values
            },
            shares=shares,
            again=tuple(request for request in requests if self.early.has(request)),
        )

    # ---- snapshot ----------------------------------------------------------

    def encode(self) -> FrontierSnapshot:
        """Return the durable part; equal for frontiers that had equal durable calls."""
        entries = self._requests.entries
        values = entries.values()
        hosts: dict[str, int] = {}
        host_of = [hosts.setdefault(entry.host, len(hosts)) for entry in values]
        return FrontierSnapshot(
            next_request=self.next_request,
            body_bytes=self.body_bytes,
            seen=self._seen.dump(),
            hosts=tuple(hosts),
            numbers=_pack(entries),
            host_of=_pack(host_of),
            priorities=tuple(priority_of(entry.rank) for entry in values),
            flags=bytes(flags_of(entry.rank) for entry in values),
            offsets=_pack(entry.offset for entry in values),
            lengths=_pack(entry.length for entry in values),
            deaths=dict(self._deaths.deaths),
            poisoned=dict(self._deaths.poisoned),
            kinds=dict(self._readers.kinds),
            values=dict(self._values),
            early=self.early.dump(),
        )

    @classmethod
    def decode(cls, snapshot: FrontierSnapshot) -> "Frontier":
        """Return the frontier of a snapshot: all that is open is pending."""
        frontier = cls(snapshot.next_request, snapshot.body_bytes)
        frontier._seen.add_many(snapshot.seen)
        for number, host, priority, flags, offset, length in zip(
            _unpack(snapshot.numbers),
            _unpack(snapshot.host_of),
            snapshot.priorities,
            snapshot.flags,
            _unpack(snapshot.offsets),
            _unpack(snapshot.lengths),
            strict=True,
        ):
            place = range(offset, offset + length)
            rank = rank_of(priority, flags)
            frontier._requests.add(number, snapshot.hosts[host], rank, place)
        frontier._readers.kinds.update(snapshot.kinds)
        frontier._values.update(snapshot.values)
        frontier.early.restore(snapshot.early)
        frontier._deaths.deaths.update(snapshot.deaths)
        frontier._deaths.poisoned.update(snapshot.poisoned)
        for number in snapshot.deaths:
            if number in snapshot.poisoned:
                frontier._requests.set_aside(number)
            elif frontier.is_suspect(number):
                frontier._requests.put_in_quarantine(number)
        return frontier


def _select(children: Children, kept: list[int]) -> Children:
    """Return the children at these places, with all hosts."""
    fingerprints = _split(children.fingerprints)
    return Children(
        fingerprints=b"".join(fingerprints[at] for at in kept),
        hosts=children.hosts if kept else (),
        host_of=tuple(children.host_of[at] for at in kept),
        priorities=tuple(children.priorities[at] for at in kept),
        flags=tuple(children.flags[at] for at in kept),
        bodies=tuple(children.bodies[at] for at in kept),
        kinds=tuple(children.kinds[at] for at in kept) if children.kinds else (),
        # All of them: later parts of the commit may refer to each by its number.
        values=children.values,
        uses=tuple(children.uses[at] for at in kept) if children.uses else (),
    )


def _pack(values: Iterable[int]) -> bytes:
    numbers = tuple(values)
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def _unpack(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 8}Q", data)
