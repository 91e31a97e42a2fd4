"""Hosts with open requests, the processes, and who has or waits for a right to a host.

A process sends requests only to hosts that it has a *right* to, which comes with a
lease. The first process that leases from a host gets all of its concurrency. With a
delay it keeps the host for itself, so it alone keeps the delay. Without one, a process
that has nothing else to do gets a *share*: those of all holders are whole numbers that
sum to the host's concurrency, so there are at most as many holders. A holder whose
share is to become smaller is told so (``recalls``); until it has answered, its old
share counts, unless it has no lease there.

A right ends when its process ends or closes, when nothing of the host is left, or when
the process *gives it up* for another one: it gets no further leases there, is told to
give back those that it has not begun, and the right ends once it has no lease. A lease
is of its host until the download is over. A process that waits for a right has the
host *reserved*.

Each change marks its host as *touched*; ``priority_index`` looks at the touched hosts
again before a request is chosen. All of this is volatile.
"""

import attrs

from dscrapy.frontier.politeness import Politeness
from dscrapy.frontier.queues import Heads, Queues

# More than any host's concurrency.
ALL = 2**31


@attrs.define(eq=False, kw_only=True)
class Process:
    """A process that is open or has leases; ``window`` is 0 until it is open.

    ``active`` counts its leases whose download is not over. It has rights to ``hosts``;
    those that are ``busy`` have pending requests and are not given up. ``heads`` lists
    the hosts from which it may lease and not every process may. It waits for the host
    that is ``reserved``.
    """

    number: int
    window: int = 0
    closing: bool = False
    leases: set[int] = attrs.field(factory=set)
    active: int = 0
    hosts: "dict[str, Host]" = attrs.field(factory=dict)
    busy: "dict[str, Host]" = attrs.field(factory=dict)
    heads: Heads = attrs.field(factory=Heads)
    reserved: "Host | None" = None


@attrs.define(eq=False, kw_only=True)
class Right:
    """A process's right to a host: to have up to ``share`` requests under way there.

    ``target`` is less than ``share`` while the process is to lower its share, and 0
    when it gives the right up; ``recall`` is the number of the recall that told it so,
    0 before that. ``active`` of its leases there are not past their
    download; ``unstarted`` of them have not begun.
    """

    process: Process
    share: int
    target: int
    recall: int = 0
    active: int = 0
    unstarted: int = 0


@attrs.define(eq=False, kw_only=True)
class Host:
    """A host with open requests: ``pending`` and ``apart`` count them.

    ``rights`` are by process number. It ``is_whole`` if a process could not share it.
    ``last_holder`` is the number of a process that may have sent the host a request at
    ``last_request_at``. ``heads`` list the host now.
    """

    name: str
    queues: Queues = attrs.field(factory=Queues)
    pending: int = 0
    apart: int = 0
    rights: dict[int, Right] = attrs.field(factory=dict)
    reserved_for: Process | None = None
    is_whole: bool = False
    last_holder: int | None = None
    last_request_at: float | None = None
    heads: list[Heads] = attrs.field(factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether no request of the host can be leased, now or later."""
        is_active = any(right.active for right in self.rights.values())
        return not (self.pending or self.apart or is_active)

    @property
    def shares(self) -> int:
        """The sum of all shares."""
        return sum(right.share for right in self.rights.values())


@attrs.define(eq=False)
class Rights:
    """See the module; hosts by name, processes by number.

    ``touched`` is in order, so that the same calls always have the same effect.
    ``recalls`` are rights whose processes do not know their target, by host and
    process.
    """

    politeness: Politeness = attrs.field(factory=Politeness)
    hosts: dict[str, Host] = attrs.field(init=False, factory=dict)
    processes: dict[int, Process] = attrs.field(init=False, factory=dict)
    touched: dict[str, Host] = attrs.field(init=False, factory=dict)
    recalls: dict[tuple[str, int], Right] = attrs.field(init=False, factory=dict)
    next_recall: int = attrs.field(init=False, default=1)

    def host(self, name: str) -> Host:
        """Return the host, which may be new."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name=name)
            if last := self.politeness.recall(name):
                host.last_holder, host.last_request_at = last
        return host

    def process(self, number: int) -> Process:
        """Return the process, which may be new."""
        return self.processes.setdefault(number, Process(number=number))

    def able_to_lease(self) -> list[int]:
        """Return the numbers of the processes that are open and do not close."""
        return [
            process.number
            for process in self.processes.values()
            if process.window and not process.closing
        ]

    def touch(self, host: Host) -> None:
        """Have a host placed anew at the end of the change that is under way."""
        self.touched[host.name] = host

    # ---- who may lease ------------------------------------------------------------

    def is_open_to(self, host: Host, process: Process) -> bool:
        """Tell whether the process has a right to the host or may get one now."""
        right = host.rights.get(process.number)
        if right is not None:
            return right.target > 0
        is_free = host.reserved_for in (None, process)
        return is_free and self.free_share(host) > 0

    def free_share(self, host: Host) -> int:
        """Return the part of a host's concurrency that nobody has."""
        if not host.rights:
            return self._limit(host)
        return self._limit(host) - host.shares if self._is_shared(host) else 0

    def _limit(self, host: Host) -> int:
        """How many requests may be under way. Where that is not known yet, somebody who
        has a right has all of it."""
        rules = self.politeness.rules
        return ALL if rules is None else max(rules.limits(host.name).concurrency, 1)

    def _is_shared(self, host: Host) -> bool:
        """Whether several processes may have rights to the host."""
        rules = self.politeness.rules
        return rules is not None and rules.limits(host.name).delay_s <= 0

    # ---- host.rights and process.hosts ----------------------------------------------

    def take(self, host: Host, process: Process) -> int | None:
        """Give a process a right to a host that is open to it, or a larger share where
        one is free. Return its share if that is new: 0 stands for all there is."""
        limit, free = self._limit(host), self.free_share(host)
        right = host.rights.get(process.number)
        if right is None:
            fair = -(-limit // (len(host.rights) + 1))
            self._add(host, process, min(free, fair))
        elif free <= 0 or host.reserved_for is not None or right.target < right.share:
            return None
        else:
            fair = -(-limit // len(host.rights))
            if right.share >= fair:
                return None
            right.share = right.target = min(right.share + free, fair)
            self.touch(host)
        share = host.rights[process.number].share
        return 0 if share == limit else share

    def take_over(self, host: Host, process: Process, share: int) -> None:
        """Note a right that a process says it has; 0 stands for all there is.

        What others have has to become less, if it is too much for all.
        """
        limit = self._limit(host)
        others = host.shares
        self._add(host, process, share or limit)
        right = host.rights[process.number]
        room = max(limit - others, 0) if self._is_shared(host) else int(not others)
        if others and right.target > room:
            self._lower(host, right, room)

    def _add(self, host: Host, process: Process, share: int) -> None:
        target = 0 if process.closing else share
        host.rights[process.number] = Right(process=process, share=share, target=target)
        process.hosts[host.name] = host
        self._end_reservation(host)
        self.touch(host)

    def end(self, host: Host, process: Process) -> None:
        """End a process's right to a host."""
        del host.rights[process.number]
        del process.hosts[host.name]
        process.busy.pop(host.name, None)
        self.recalls.pop((host.name, process.number), None)
        host.last_holder = process.number
        self.touch(host)

    def give_up(self, host: Host, process: Process) -> None:
        """Let a process have no further leases of the host, and end its right once it
        has none, which may be at once."""
        right = host.rights[process.number]
        if not right.active:
            self.end(host, process)
        elif right.target:
            self._lower(host, right, 0)

    def lowered(self, host: Host, process: Process, share: int, recall: int) -> None:
        """Note that a process has lowered its share to this, after the recall of this
        number; 0 says that it cannot.

        An answer to an earlier recall says nothing: shares may have risen since.
        """
        right = host.rights.get(process.number)
        if right is None or not right.target or not 0 < recall == right.recall:
            return
        if not share:
            host.is_whole = True
            self._lower(host, right, right.share)
            self._end_reservation(host)
        elif right.target <= share < right.share:
            right.share = share
        self.touch(host)

    def correct(self, host: Host, process: Process, share: int) -> None:
        """Take the share that a process says it has, 0 for all there is, after messages
        to it and from it may have been lost."""
        right = host.rights[process.number]
        if not right.active:
            # Where it has no lease it may not know of its share.
            self.end(host, process)
            return
        right.share = min(right.share, share or right.share)
        self._lower(host, right, min(right.target, right.share))

    def _lower(self, host: Host, right: Right, target: int) -> None:
        """Set what a share is to become, and have the process told if it can be."""
        right.target, right.recall = target, 0
        key = host.name, right.process.number
        if right.target < right.share and not right.process.closing:
            self.recalls[key] = right
        else:
            self.recalls.pop(key, None)
        self.touch(host)

    def forget(self, host: Host) -> None:
        """Drop a host of which nothing is open; remember its last holder for as long as
        the next one has to wait."""
        for right in list(host.rights.values()):
            self.end(host, right.process)
        self._end_reservation(host)
        del self.hosts[host.name]
        del self.touched[host.name]
        self.politeness.remember(host.name, host.last_holder, host.last_request_at)

    # ---- host.reserved_for and process.reserved ---------------------------------

    def may_reserve(self, host: Host, process: Process) -> bool:
        """Tell whether neither the host nor the process waits for another."""
        return process.reserved is None and host.reserved_for is None

    def reserve(self, host: Host, process: Process) -> None:
        """Have a right to a host given up, or shares made smaller, for a process."""
        if not self.may_reserve(host, process):
            return
        self._let_wait(host, process)
        for right in list(host.rights.values()):
            # It has nothing under way there, and nothing to give back.
            if not right.active:
                self.end(host, right.process)
        if self.free_share(host) <= 0:
            if self.is_divisible(host):
                self._divide(host)
            else:
                self._free_one(host)

    def reserve_right_of(self, host: Host, donor: Process, process: Process) -> None:
        """Have a process give up its right to a host for another process."""
        self._let_wait(host, process)
        self.give_up(host, donor)

    def _let_wait(self, host: Host, process: Process) -> None:
        host.reserved_for, process.reserved = process, host
        self.touch(host)

    def is_divisible(self, host: Host) -> bool:
        """Tell whether one process more can have a share of the host."""
        return (
            self._is_shared(host)
            and not host.is_whole
            and len(host.rights) < self._limit(host)
        )

    def _divide(self, host: Host) -> None:
        """Have the holders lower their shares to what is fair with one process more."""
        limit, count = self._limit(host), len(host.rights) + 1
        for at, right in enumerate(list(host.rights.values())):
            fair = limit // count + (at < limit % count)
            if right.target > fair:
                self._lower(host, right, fair)

    def _free_one(self, host: Host) -> None:
        """Have the holder that has had its right longest give it up."""
        right = next((one for one in host.rights.values() if one.target), None)
        if right is not None:
            self.give_up(host, right.process)

    def unreserve(self, process: Process) -> None:
        """Let a process wait for no host any more."""
        if process.reserved is not None:
            self.touch(process.reserved)
            self._end_reservation(process.reserved)

    @staticmethod
    def _end_reservation(host: Host) -> None:
        if host.reserved_for is not None:
            host.reserved_for.reserved = None
            host.reserved_for = None
