"""Which host's first request goes next: a heap over the free hosts, one per process.

A host stands where it may be leased from: with the free ones, with its owner, with the
process that it is reserved for, or nowhere while it may not be leased from. What
changes a host marks it as touched, and every public call of the frontier that changes
something ends with ``refresh``, which places the touched hosts: so questions find all
hosts in place and change nothing, and a lease costs the logarithm of their number.
"""

import attrs

from dscrapy.frontier.owners import Host, Owners, Process
from dscrapy.frontier.politeness import Rules
from dscrapy.frontier.queues import Entry, Heads, Key


@attrs.define(eq=False)
class PriorityIndex:
    """Hosts with pending requests by what goes first there; see the module."""

    _owners: Owners
    _entries: dict[int, Entry]
    _free: Heads = attrs.field(init=False, factory=Heads)

    @property
    def free_count(self) -> int:
        """How many hosts any process may take."""
        return len(self._free)

    def refresh(self) -> None:
        """Place every touched host; this completes a change.

        Without rules nothing can be placed: no process is open.
        """
        if self._owners.politeness.rules is not None:
            for host in list(self._owners.touched.values()):
                self.place(host)

    def first(self, process: Process) -> tuple[Key, str] | None:
        """Return the key and the host of the request that a process should have next,
        None if its own hosts and the free ones have nothing for it."""
        own, free = process.heads.first(), self._free.first()
        if own is None or free is None:
            return own or free
        return min(own, free)

    def place(self, host: Host) -> None:
        """List a touched host where it may be leased from, with what goes first there;
        forget it if nothing is open there."""
        if host.is_empty:
            self.forget(host)
            return
        del self._owners.touched[host.name]
        rules = self._owners.politeness.rules
        assert rules is not None
        heads = self._heads_for(host, rules)
        if host.heads is not None and host.heads is not heads:
            host.heads.drop(host.name)
        host.heads = heads
        if heads is not None:
            key = host.queues.head(self._entries, rules.order)
            assert key is not None
            heads.set(host.name, key)
        if host.owner is not None:
            if host.pending and not host.draining:
                host.owner.busy[host.name] = host
            else:
                host.owner.busy.pop(host.name, None)

    def forget(self, host: Host) -> None:
        """Take out a host of which nothing is open, here and with its owner."""
        if host.heads is not None:
            host.heads.drop(host.name)
        self._owners.forget(host)

    def _heads_for(self, host: Host, rules: Rules) -> Heads | None:
        if not host.pending:
            return None
        owner = host.owner
        if owner is None:
            if host.active:
                # A process that does not own the host has requests under way there.
                return None
            return self._free if host.reserved_for is None else host.reserved_for.heads
        if host.draining or host.unstarted >= rules.bound(host.name, owner.window):
            return None
        return owner.heads
