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

Requests that are *apart* stand in no queue: suspects (``frontier.blame``), those that
are set aside, and those that a process could not read (``frontier.readers``). One
process at a time, the *isolator*, has the suspects, one after another, and nothing
beside them; a host that another one owns is given up for it. So it is for a process
that may have what others could not read.
"""

from collections.abc import Iterable, Sequence

import attrs

from dscrapy.frontier.owners import Host, Process
from dscrapy.frontier.politeness import Rests, Rules, at_once
from dscrapy.frontier.queues import APART, Entry, Heads, Key, returned
from dscrapy.frontier.readers import Readers
from dscrapy.messages import Opened, Share

# Above this part of its window a process gets nothing: so grants come in batches, yet
# it has left what its downloader takes at a time (two thirds of a window).
LOW_WATER = 0.75


@attrs.define(eq=False)
class Hosts:
    """The open requests of a job (``entries``), their hosts and who has them.

    ``now`` is an instant of any one clock that does not run backwards; a call without
    one is taken to be at the latest that was told.
    """

    entries: dict[int, Entry] = attrs.field(init=False, factory=dict)
    leased_count: int = attrs.field(init=False, default=0)
    readers: Readers = attrs.field(init=False, factory=Readers)
    # Suspects that nobody has leased, those that are leased too, and what is set aside.
    _suspects: dict[int, None] = attrs.field(init=False, factory=dict)
    # What a process could not read, and nobody has leased since.
    _refused: dict[int, None] = attrs.field(init=False, factory=dict)
    _watched: set[int] = attrs.field(init=False, factory=set)
    _aside: set[int] = attrs.field(init=False, factory=set)
    _isolator: int | None = attrs.field(init=False, default=None)
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
        host = self._host(host_name)
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
        self.readers.forget(number)
        if number in self._aside:
            self._aside.remove(number)
            return True
        self._watched.discard(number)
        host = self._hosts[entry.host]
        if entry.process:
            host.rest_at = self._now
            self._end_lease(number, entry, host)
        else:
            self._take_out(number, entry, host)
            if entry.process is None:
                host.queues.trim(entry.rank, self.entries)
        if host.owner is None and host.is_empty:
            self._forget(host)
        self._end_isolation()
        return True

    def suspect(self, number: int) -> None:
        """Let an open request go out alone from now on."""
        entry = self.entries[number]
        if number in self._watched or number in self._aside:
            return
        self._watched.add(number)
        if not entry.process:
            host = self._hosts[entry.host]
            self._take_out(number, entry, host)
            self._put_apart(number, entry, host)

    def set_aside(self, number: int) -> None:
        """Let an open request not go out any more, until it is brought back."""
        entry = self.entries[number]
        host = self._hosts[entry.host]
        if entry.process:
            self._end_lease(number, entry, host)
        else:
            self._take_out(number, entry, host)
        entry.process = APART
        self._watched.discard(number)
        self._aside.add(number)
        self._end_isolation()

    def bring_back(self, number: int) -> None:
        """Make a request that was set aside a suspect."""
        self._aside.remove(number)
        self._watched.add(number)
        entry = self.entries[number]
        self._put_apart(number, entry, self._host(entry.host))

    @property
    def aside_count(self) -> int:
        """How many requests are set aside."""
        return len(self._aside)

    def _host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name=name)
            if last := self._rests.take(name):
                host.last_owner, host.rest_at = last
        return host

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
        self._end_isolation()

    def end_process(self, number: int, now: float) -> None:
        """Forget a process: what it had is pending, and free after a delay."""
        self._tick(now)
        process = self._processes.get(number)
        if process is None:
            return
        for request in sorted(process.leases):
            entry = self.entries[request]
            host = self._hosts[entry.host]
            host.rest_at = now
            self._return(request, entry, host)
        for name in list(process.hosts):
            self._disown(self._hosts[name])
        self._unreserve(process)
        self.readers.forget_process(number)
        del self._processes[number]
        self._end_isolation()

    def hold(self, number: int, requests: Iterable[int], now: float) -> None:
        """Note what a process holds: exactly these, if nobody else has them."""
        self._tick(now)
        process = self._processes.setdefault(number, Process(number=number))
        held = dict.fromkeys(requests)
        self.release(
            number, [one for one in sorted(process.leases) if one not in held], now
        )
        for request in held:
            entry = self.entries.get(request)
            if entry is None or entry.process or request in self._aside:
                continue
            host = self._hosts[entry.host]
            self._lease(request, entry, host, process)
            is_alone = request in self._watched and not process.closing
            if is_alone and self._isolator is None:
                self._isolator = number
            if host.owner is None:
                self._own(host, process)
                host.draining = process.closing

    def room(self, number: int) -> int:
        """Return how many leases a process should be given now."""
        process = self._processes.get(number)
        if process is None or process.closing:
            return 0
        count = len(process.leases)
        if number == self._isolator:
            return 0 if count else 1
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

    def spare_places(self) -> int:
        """Return how many requests beyond those that are pending the open processes
        could start at once; less than 0 where there are more than that.

        What is pending counts as what is leased: it may be so a moment later.
        """
        pending = len(self.entries) - self.leased_count - len(self._aside)
        places = sum(map(self._places, self._processes.values()))
        # Suspects wait for a process of their own: they take nobody's place.
        return places - (pending - len(self._suspects))

    def waits_for_others(self, number: int) -> bool:
        """Tell whether a process could start more, and all that is pending waits for
        hosts of others."""
        self._place_touched()
        process = self._processes[number]
        is_able = self._places(process) > 0 and not process.busy
        return is_able and self._first(process) is None

    def _places(self, process: Process) -> int:
        if process.closing or process.number == self._isolator:
            return 0
        return at_once(process.window) - len(process.leases)

    # ---- suspects ----------------------------------------------------------

    @property
    def isolator(self) -> int | None:
        """The process that has the suspects, None without one or without suspects."""
        return self._isolator

    @property
    def wants_isolator(self) -> bool:
        """Whether suspects wait and no process is there for them."""
        return bool(self._suspects) and self._isolator is None

    def isolate(self, number: int) -> None:
        """Let an open process without leases have the suspects, and nothing else."""
        assert self._isolator is None
        assert not self.leased_by(number)
        self._isolator = number

    def _next_suspect(self, process: Process) -> int | None:
        """Return the first suspect whose host the process may have."""
        for request in self._suspects:
            if self._may_own(self._hosts[self.entries[request].host], process):
                return request
        for request in self._suspects:
            host = self._hosts[self.entries[request].host]
            self._reserve(host, process)
            if self._may_own(host, process):
                return request
        return None

    # ---- what a process could not read ---------------------------------------

    def refuse(
        self, number: int, requests: Sequence[int], why: str, now: float
    ) -> None:
        """Take back leases that a process cannot read; another one may have them."""
        for request in requests:
            entry = self.entries.get(request)
            if entry is not None and entry.process == number:
                self.readers.refuse(request, number, why)
        self.release(number, requests, now)

    def hopeless(self) -> dict[int, str]:
        """Return requests that no open process can read, and why; none while no
        process is open."""
        able = self._able_processes()
        if not able:
            return {}
        return {
            request: self.readers.refused[request]
            for request in self.readers.refused
            if not self.entries[request].process
            and not self.readers.able(request, able)
        }

    def _able_processes(self) -> list[int]:
        return [
            process.number
            for process in self._processes.values()
            if process.window and not process.closing
        ]

    def _next_refused(self, process: Process) -> int | None:
        """Return a request that others could not read and this process may have."""
        able = self._able_processes() if self._refused else []
        for request in self._refused:
            if process.number not in self.readers.able(request, able):
                continue
            host = self._hosts[self.entries[request].host]
            if not self._may_own(host, process):
                self._reserve(host, process)
            if self._may_own(host, process) and not self._is_full(host, process):
                return request
        return None

    def _is_full(self, host: Host, process: Process) -> bool:
        assert self._rules is not None
        return host.leased >= self._rules.bound(host.name, process.window)

    def _reserve(self, host: Host, process: Process) -> None:
        """Have a host given up for a process, unless either waits for another."""
        if process.reserved is None and host.reserved is None:
            host.reserved, process.reserved = process.number, host.name
            self._drain(host)

    @staticmethod
    def _may_own(host: Host, process: Process) -> bool:
        if host.owner is not None:
            return host.owner == process.number
        return not host.leased and host.reserved in (None, process.number)

    def _end_isolation(self) -> None:
        """Let the isolator be a process like others once it has no suspects."""
        process = self._processes.get(self._isolator or 0)
        if process is None or process.closing:
            self._isolator = None
        elif not self._suspects and not process.leases & self._watched:
            self._isolator = None
            self._unreserve(process)

    def workable_count(self) -> int:
        """Return how many hosts have pending requests that may be leased."""
        self._place_touched()
        owned = sum(len(process.busy) for process in self._processes.values())
        return owned + len(self._free)

    def occupied_count(self) -> int:
        """Return how many processes have leases, and no host of those that count."""
        return sum(
            bool(process.leases) and not process.busy and not process.closing
            for process in self._processes.values()
        )

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
            request = self._next_for(process)
            if request is None:
                break
            entry = self.entries[request]
            host = self._hosts[entry.host]
            if host.owner is None:
                shares[host.name] = Share(wait_s=self._wait_s(host, number, now))
                self._own(host, process)
            self._lease(request, entry, host, process)
            requests.append(request)
            self._place(host)
            if number == self._isolator:
                break
        return requests, shares

    def _next_for(self, process: Process) -> int | None:
        if process.number == self._isolator:
            return None if process.leases else self._next_suspect(process)
        if (refused := self._next_refused(process)) is not None:
            return refused
        while (first := self._first(process)) is None:
            if not self._give_up_for(process):
                return None
        (_, signed), _ = first
        return abs(signed)

    def release(self, number: int, requests: Sequence[int], now: float) -> None:
        """Take back leases of a process; ignore what is not leased to it."""
        self._tick(now)
        for request in requests:
            entry = self.entries.get(request)
            if entry is not None and entry.process == number:
                self._return(request, entry, self._hosts[entry.host])

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
        self._reserve(host, process)
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

    def _take_out(self, request: int, entry: Entry, host: Host) -> None:
        """Count a request that nobody has leased out of where it stands."""
        if entry.process == APART:
            del (self._suspects if request in self._suspects else self._refused)[
                request
            ]
            host.apart -= 1
        else:
            host.pending -= 1
        self._touched[host.name] = None

    def _put_apart(self, request: int, entry: Entry, host: Host) -> None:
        entry.process = APART
        among = self._suspects if request in self._watched else self._refused
        among[request] = None
        host.apart += 1
        self._touched[host.name] = None

    def _lease(self, request: int, entry: Entry, host: Host, process: Process) -> None:
        self._take_out(request, entry, host)
        entry.process = process.number
        process.leases.add(request)
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
        entry.rank = returned(entry.rank)
        if request in self._watched:
            self._put_apart(request, entry, host)
            # What has begun to be proven goes on.
            self._suspects = {request: None, **self._suspects}
            return
        if request in self.readers.refused:
            self._put_apart(request, entry, host)
            return
        entry.process = None
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
        if host.is_empty:
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
