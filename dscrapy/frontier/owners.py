"""Hosts with open requests, the processes, and who owns or waits for which host.

A process that takes a lease from a host becomes the host's owner: no other process gets
leases there, so the owner alone keeps the delay and the concurrency. A lease is of its
host until the download is over. The process ceases to be the owner when it ends or
closes, when nothing of the host is left, or when the host is *reserved* for another
process. Then the host *drains*: its owner gets no further leases there, is asked to
give back those that it has not begun, and the host changes hands once it has no lease.

Each change marks its host as *touched*; ``priority_index`` looks at the touched hosts
again before a request is chosen. All of this is volatile.
"""

import attrs

from dscrapy.frontier.politeness import Politeness
from dscrapy.frontier.queues import Heads, Queues


@attrs.define(eq=False, kw_only=True)
class Process:
    """A process that is open or has leases; ``window`` is 0 until it is open.

    ``active`` counts its leases whose download is not over. It owns ``hosts``; those
    that are ``busy`` have pending requests and do not drain. ``heads`` lists the hosts
    that only this process may lease from. It waits for the host that is ``reserved``.
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
class Host:
    """A host with open requests: ``pending``, ``active`` and ``apart`` count them.

    ``active`` are leased and their download is not over; ``unstarted`` of them have not
    begun. ``last_owner`` is the number of a process that may have sent the host a
    request at ``last_request_at``. ``heads`` lists the host now.
    """

    name: str
    queues: Queues = attrs.field(factory=Queues)
    pending: int = 0
    active: int = 0
    unstarted: int = 0
    apart: int = 0
    owner: Process | None = None
    draining: bool = False
    reserved_for: Process | None = None
    last_owner: int | None = None
    last_request_at: float | None = None
    heads: Heads | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no request of the host can be leased, now or later."""
        return not (self.pending or self.active or self.apart)

    def is_open_to(self, process: Process) -> bool:
        """Tell whether the process owns the host or may become its owner now."""
        if self.owner is not None:
            return self.owner is process
        return not self.active and self.reserved_for in (None, process)


@attrs.define(eq=False)
class Owners:
    """See the module; hosts by name, processes by number.

    ``touched`` is in order, so that the same calls always have the same effect.
    ``to_recall`` are hosts that drain for another process, and have leases that their
    owner has not begun and does not know to be wanted back.
    """

    politeness: Politeness = attrs.field(factory=Politeness)
    hosts: dict[str, Host] = attrs.field(init=False, factory=dict)
    processes: dict[int, Process] = attrs.field(init=False, factory=dict)
    touched: dict[str, Host] = attrs.field(init=False, factory=dict)
    to_recall: dict[str, Host] = attrs.field(init=False, factory=dict)

    def host(self, name: str) -> Host:
        """Return the host, which may be new."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name=name)
            if last := self.politeness.recall(name):
                host.last_owner, host.last_request_at = last
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

    # ---- host.owner and process.hosts -----------------------------------------

    def own(self, host: Host, process: Process) -> None:
        """Make a process the owner of a host that has none."""
        host.owner = process
        host.draining = process.closing
        process.hosts[host.name] = host
        self._end_reservation(host)
        self.touch(host)

    def disown(self, host: Host) -> None:
        """Take the host from its owner, if it has one."""
        owner = host.owner
        if owner is not None:
            del owner.hosts[host.name]
            owner.busy.pop(host.name, None)
            host.last_owner, host.owner = owner.number, None
        host.draining = False
        self.to_recall.pop(host.name, None)
        self.touch(host)

    def drain(self, host: Host) -> None:
        """Give the owner no further leases of the host, and take the host from it once
        it has none there, which may be at once."""
        host.draining = True
        self.touch(host)
        if not host.active:
            self.disown(host)

    def forget(self, host: Host) -> None:
        """Drop a host of which nothing is open; remember its last owner for as long as
        the next one has to wait."""
        self.disown(host)
        self._end_reservation(host)
        del self.hosts[host.name]
        del self.touched[host.name]
        self.politeness.remember(host.name, host.last_owner, host.last_request_at)

    # ---- host.reserved_for and process.reserved ---------------------------------

    def reserve(self, host: Host, process: Process) -> None:
        """Have a host given up for a process, unless either waits for another."""
        if process.reserved is None and host.reserved_for is None:
            host.reserved_for, process.reserved = process, host
            self.drain(host)
            self.recall(host)

    def recall(self, host: Host) -> None:
        """Have the owner of a host that drains told to give back what it can."""
        if host.owner is not None and not host.owner.closing and host.unstarted:
            self.to_recall[host.name] = host

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
