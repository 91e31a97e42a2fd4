"""Open requests of one job by host: whose host it is, who holds which lease.

A host that a process took a lease from is its own: nobody else gets leases there, so
the process alone keeps the delay and the concurrency. It ceases to be the owner when
the process ends or closes, when nothing of the host is open, or when the process gives
the host up for another that has nothing to do: then it gets no further leases there,
and the host changes hands once none is left.

What changes a host only marks it as *touched*; the next call that asks for leases
places every touched host where it belongs: with its owner's, with the free ones, or
nowhere while it may not be leased. So adding is cheap, and a lease costs the logarithm
of the number of hosts. Owners, leases and marks are volatile: a snapshot has none.
"""

import heapq
from collections.abc import Iterable, Sequence

import attrs

from dscrapy.frontier.queues import Entry, Heads, Key, Order, Queues, returned
from dscrapy.messages import Opened, Share
from dscrapy.model import HostLimits

# Above this part of its window a process gets nothing: so grants come in batches, yet
# it has left what its downloader takes at a time (two thirds of a window).
LOW_WATER = 0.75
# A host's leases go beyond its concurrency by this part of it, rounded up (half), and
# by so many at least: what the slot takes next is there when a page is done. A commit
# and the leases that follow it take some 10 ms, in which a near site answers often.
PREFETCH_PART = 2
PREFETCH_MIN = 4
# With a delay one request goes out at a time; so many more cover the way to the master.
DELAYED_PREFETCH = 2


@attrs.frozen(kw_only=True)
class Rules:
    """What the project's settings ask for, as an open process told."""

    order: Order
    default: HostLimits
    hosts: dict[str, HostLimits]

    @classmethod
    def told(cls, opened: Opened) -> "Rules":
        """Return the rules of a process's message."""
        return cls(
            order=Order(lifo=opened.lifo, start_lifo=opened.start_lifo),
            default=opened.default_host,
            hosts=opened.hosts,
        )

    def delay_s(self, host: str) -> float:
        """Return the seconds between two requests to the host."""
        return self.hosts.get(host, self.default).delay_s

    def bound(self, host: str, window: int) -> int:
        """Return how many leases of the host a process may have at a time."""
        limits = self.hosts.get(host, self.default)
        if window == 1:
            return 1
        if limits.delay_s > 0:
            return 1 + DELAYED_PREFETCH
        concurrency = max(limits.concurrency, 1)
        return concurrency + max(-(-concurrency // PREFETCH_PART), PREFETCH_MIN)


@attrs.define(eq=False, kw_only=True)
class Host:
    """A host with open requests; ``pending`` and ``leased`` count them.

    ``draining``: its owner gets no further leases. ``reserved``: the process that it
    is given up for. ``last_owner`` may have sent it a request at ``rest_at``.
    ``heads`` lists it now.
    """

    name: str
    queues: Queues = attrs.field(factory=Queues)
    pending: int = 0
    leased: int = 0
    owner: int | None = None
    draining: bool = False
    reserved: int | None = None
    last_owner: int | None = None
    rest_at: float | None = None
    heads: Heads | None = None


@attrs.define(eq=False, kw_only=True)
class Process:
    """A process that is open or holds leases; ``window`` is 0 until it is open.

    It owns ``hosts``; those that are ``busy`` have pending requests and are not being
    given up. ``reserved`` is given up for it.
    """

    number: int
    window: int = 0
    closing: bool = False
    leases: set[int] = attrs.field(factory=set)
    hosts: dict[str, None] = attrs.field(factory=dict)
    busy: dict[str, None] = attrs.field(factory=dict)
    heads: Heads = attrs.field(factory=Heads)
    reserved: str | None = None


@attrs.define(eq=False)
class Rests:
    """Hosts without open requests whose next owner has to wait, as long as it has."""

    _last: dict[str, tuple[int, float, float]] = attrs.field(init=False, factory=dict)
    _ends: list[tuple[float, str]] = attrs.field(init=False, factory=list)

    def __len__(self) -> int:
        return len(self._last)

    def remember(self, host: str, owner: int, rest_at: float, until: float) -> None:
        """Keep until then who owned the host, and when it last had a request."""
        self._last[host] = owner, rest_at, until
        heapq.heappush(self._ends, (until, host))

    def take(self, host: str) -> tuple[int, float] | None:
        """Return owner and instant if they are known, and forget them."""
        last = self._last.pop(host, None)
        return None if last is None else last[:2]

    def expire(self, now: float) -> None:
        """Forget what does not matter any more."""
        while self._ends and self._ends[0][0] <= now:
            _, host = heapq.heappop(self._ends)
            last = self._last.get(host)
            # A host may have been remembered again since, for longer.
            if last is not None and last[2] <= now:
                del self._last[host]


@attrs.define(eq=False)
class Hosts:
    """The open requests of a job (``entries``), their hosts and who has them.

    ``now`` is an instant of any one clock that does not run backwards; a call without
    one is taken to be at the latest that was told.
    """

    entries: dict[int, Entry] = attrs.field(init=False, factory=dict)
    leased_count: int = attrs.field(init=False, default=0)
    _hosts: dict[str, Host] = attrs.field(init=False, factory=dict)
    _processes: dict[int, Process] = attrs.field(init=False, factory=dict)
    _free: Heads = attrs.field(init=False, factory=Heads)
    # In order, so that the same calls always have the same effect.
    _touched: dict[str, None] = attrs.field(init=False, factory=dict)
    _rests: Rests = attrs.field(init=False, factory=Rests)
    _rules: Rules | None = attrs.field(init=False, default=None)
    _now: float | None = attrs.field(init=False, default=None)

    # ---- requests ----------------------------------------------------------

    def add(self, number: int, host_name: str, rank: int, place: range) -> None:
        """Add a pending request whose body is at ``place``."""
        host = self._hosts.get(host_name)
        if host is None:
            host = self._hosts[host_name] = Host(name=host_name)
            if last := self._rests.take(host_name):
                host.last_owner, host.rest_at = last
        # The host's own text: each message brings a copy of its own.
        self.entries[number] = Entry(host.name, rank, place.start, len(place))
        host.queues.push(number, rank)
        host.pending += 1
        self._touched[host.name] = None

    def done(self, number: int, now: float | None) -> bool:
        """Take out a request; False if it is not open."""
        self._tick(now)
        entry = self.entries.pop(number, None)
        if entry is None:
            return False
        host = self._hosts[entry.host]
        if entry.process is None:
            host.pending -= 1
            host.queues.trim(entry.rank, self.entries)
            self._touched[host.name] = None
        else:
            host.rest_at = self._now
            self._end_lease(number, entry, host)
        if host.owner is None and not host.pending and not host.leased:
            self._forget(host)
        return True

    # ---- processes ---------------------------------------------------------

    def open_process(self, number: int, opened: Opened, now: float | None) -> None:
        """Let a process take leases, by the rules that it tells."""
        self._tick(now)
        process = self._processes.setdefault(number, Process(number=number))
        if process.window != opened.window:
            process.window = opened.window
            # The bounds of its hosts may follow from it.
            self._touched.update(process.hosts)
        rules = Rules.told(opened)
        if rules != self._rules:
            # Rare: all processes of a job run the same project.
            self._rules = rules
            self._touched.update(dict.fromkeys(self._hosts))

    def close_process(self, number: int) -> None:
        """Let a process take no more leases; its hosts are free once it has none."""
        process = self._processes.get(number)
        if process is None:
            return
        process.closing = True
        self._unreserve(process)
        for name in list(process.hosts):
            self._drain(self._hosts[name])

    def end_process(self, number: int, now: float) -> None:
        """Forget a process: what it had is pending, and free after a delay."""
        self._tick(now)
        process = self._processes.get(number)
        if process is None:
            return
        for request in list(process.leases):
            entry = self.entries[request]
            host = self._hosts[entry.host]
            host.rest_at = now
            self._return(request, entry, host)
        for name in list(process.hosts):
            self._disown(self._hosts[name])
        self._unreserve(process)
        del self._processes[number]

    def hold(self, number: int, requests: Iterable[int], now: float) -> None:
        """Note what a process holds: exactly these, if nobody else has them."""
        self._tick(now)
        process = self._processes.setdefault(number, Process(number=number))
        held = dict.fromkeys(requests)
        self.release(number, [one for one in process.leases if one not in held], now)
        for request in held:
            entry = self.entries.get(request)
            if entry is None or entry.process is not None:
                continue
            host = self._hosts[entry.host]
            self._lease(request, entry, host, process)
            if host.owner is None:
                self._own(host, process)
                host.draining = process.closing

    def room(self, number: int) -> int:
        """Return how many leases a process should be given now."""
        process = self._processes.get(number)
        if process is None or process.closing:
            return 0
        count = len(process.leases)
        return process.window - count if count <= process.window * LOW_WATER else 0

    def leased_by(self, number: int) -> int:
        """Return how many leases a process has."""
        process = self._processes.get(number)
        return 0 if process is None else len(process.leases)

    def wants_process(self) -> bool:
        """Tell whether one more process would find work."""
        self._place_touched()
        if any(len(process.busy) > 1 for process in self._processes.values()):
            return True
        return bool(self._free) and not any(map(self.room, self._processes))

    def workable_count(self) -> int:
        """Return how many hosts have pending requests that may be leased."""
        self._place_touched()
        owned = sum(len(process.busy) for process in self._processes.values())
        return owned + len(self._free)

    # ---- leases ------------------------------------------------------------

    def lease(
        self, number: int, count: int, now: float
    ) -> tuple[list[int], dict[str, Share]]:
        """Lease up to ``count`` requests; return them and the hosts newly owned."""
        self._tick(now)
        requests: list[int] = []
        shares: dict[str, Share] = {}
        process = self._processes.get(number)
        if process is None or process.closing:
            return requests, shares
        self._place_touched()
        count = min(count, process.window - len(process.leases))
        while len(requests) < count:
            first = self._first(process)
            if first is None:
                if self._give_up_for(process):
                    continue
                break
            (_, signed), name = first
            request, host = abs(signed), self._hosts[name]
            if host.owner is None:
                shares[name] = Share(wait_s=self._wait_s(host, number, now))
                self._own(host, process)
            self._lease(request, self.entries[request], host, process)
            requests.append(request)
            self._place(host)
        return requests, shares

    def release(self, number: int, requests: Sequence[int], now: float) -> None:
        """Take back leases of a process; ignore what is not leased to it."""
        self._tick(now)
        for request in requests:
            entry = self.entries.get(request)
            if entry is not None and entry.process == number:
                self._return(request, entry, self._hosts[entry.host])

    def give_up_host(self, now: float) -> None:
        """Let owners of several busy hosts give one up for each that has none."""
        self._tick(now)
        self._place_touched()
        for process in self._processes.values():
            if self.room(process.number):
                self._give_up_for(process)

    def _first(self, process: Process) -> tuple[Key, str] | None:
        """Return what goes first of the process's own hosts and the free ones."""
        own, free = process.heads.first(), self._free.first()
        if own is None or free is None:
            return own or free
        return min(own, free)

    def _give_up_for(self, process: Process) -> bool:
        """Have a host given up for a process without work, if one can be."""
        if process.busy or process.reserved is not None or self._free:
            return False
        donor = max(self._processes.values(), key=lambda one: len(one.busy))
        if len(donor.busy) < 2:
            return False
        host = self._hosts[next(reversed(donor.busy))]
        host.reserved, process.reserved = process.number, host.name
        self._drain(host)
        self._place(host)
        return True

    def _wait_s(self, host: Host, number: int, now: float) -> float:
        assert self._rules is not None
        delay_s = self._rules.delay_s(host.name)
        if host.rest_at is None or host.last_owner in (None, number):
            return 0.0
        return min(max(host.rest_at + delay_s - now, 0.0), delay_s)

    # ---- one change each ---------------------------------------------------

    def _tick(self, now: float | None) -> None:
        if now is not None:
            self._now = now

    def _lease(self, request: int, entry: Entry, host: Host, process: Process) -> None:
        entry.process = process.number
        process.leases.add(request)
        host.pending -= 1
        host.leased += 1
        self.leased_count += 1
        self._touched[host.name] = None

    def _end_lease(self, request: int, entry: Entry, host: Host) -> None:
        assert entry.process is not None
        process = self._processes[entry.process]
        process.leases.remove(request)
        host.leased -= 1
        self.leased_count -= 1
        if host.draining and not host.leased:
            self._disown(host)
        self._touched[host.name] = None

    def _return(self, request: int, entry: Entry, host: Host) -> None:
        """Make a leased request pending again, before others of its priority."""
        self._end_lease(request, entry, host)
        entry.process = None
        entry.rank = returned(entry.rank)
        host.queues.push(request, entry.rank)
        host.pending += 1

    def _own(self, host: Host, process: Process) -> None:
        host.owner = process.number
        process.hosts[host.name] = None
        self._unreserve_host(host)

    def _disown(self, host: Host) -> None:
        if host.owner is not None:
            owner = self._processes[host.owner]
            del owner.hosts[host.name]
            owner.busy.pop(host.name, None)
            host.last_owner, host.owner = host.owner, None
        host.draining = False
        self._touched[host.name] = None

    def _drain(self, host: Host) -> None:
        """Let the owner get no further leases; without any it is none any more."""
        host.draining = True
        self._touched[host.name] = None
        if not host.leased:
            self._disown(host)

    def _unreserve(self, process: Process) -> None:
        if process.reserved is not None:
            self._touched[process.reserved] = None
            self._unreserve_host(self._hosts[process.reserved])

    def _unreserve_host(self, host: Host) -> None:
        if host.reserved is not None:
            self._processes[host.reserved].reserved = None
            host.reserved = None

    def _forget(self, host: Host) -> None:
        """Drop a host of which nothing is open; its last owner counts for a delay."""
        self._disown(host)
        self._unreserve_host(host)
        if host.heads is not None:
            host.heads.drop(host.name)
        del self._hosts[host.name]
        self._touched.pop(host.name, None)
        if self._now is None or self._rules is None:
            return
        self._rests.expire(self._now)
        delay_s = self._rules.delay_s(host.name)
        if delay_s > 0 and host.last_owner is not None and host.rest_at is not None:
            until = host.rest_at + delay_s
            self._rests.remember(host.name, host.last_owner, host.rest_at, until)

    # ---- where a host belongs ------------------------------------------------

    def _place_touched(self) -> None:
        if self._rules is not None:
            for name in list(self._touched):
                self._place(self._hosts[name])

    def _place(self, host: Host) -> None:
        """List the host where it may be leased, with what goes first there."""
        if not host.pending and not host.leased:
            self._forget(host)
            return
        del self._touched[host.name]
        heads = self._heads_for(host)
        if host.heads is not None and host.heads is not heads:
            host.heads.drop(host.name)
        host.heads = heads
        if heads is not None:
            assert self._rules is not None
            key = host.queues.head(self.entries, self._rules.order)
            assert key is not None
            heads.set(host.name, key)
        if host.owner is not None:
            busy = self._processes[host.owner].busy
            if not host.pending or host.draining:
                busy.pop(host.name, None)
            else:
                busy[host.name] = None

    def _heads_for(self, host: Host) -> Heads | None:
        """Return where the host is listed, None while it may not be leased."""
        assert self._rules is not None
        if not host.pending:
            return None
        if host.owner is None:
            if host.leased:
                # One who does not own it has requests under way there.
                return None
            if host.reserved is None:
                return self._free
            return self._processes[host.reserved].heads
        owner = self._processes[host.owner]
        bound = self._rules.bound(host.name, owner.window)
        if host.draining or host.leased >= bound:
            return None
        return owner.heads
