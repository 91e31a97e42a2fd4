"""Which host's first request goes next: a heap over the free hosts, one per process.

A host stands where it may be leased from: with the free ones if nobody has a right to
it, else with the holders that have room and with the process that it is reserved for.
What changes a host marks it as touched, and every public call of the frontier that
changes something ends with ``refresh``, which places the touched hosts: so questions
find all hosts in place and change nothing, and a lease costs the logarithm of their
number.
"""

import attrs

from dscrapy.frontier.politeness import Rules
from dscrapy.frontier.queues import Entry, Heads, Key
from dscrapy.frontier.rights import Host, Process, Rights


@attrs.define(eq=False)
class PriorityIndex:
    """Hosts with pending requests by what goes first there; see the module."""

    _rights: Rights
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
        if self._rights.politeness.rules is not None:
            for host in list(self._rights.touched.values()):
                self.place(host)

    def first(self, process: Process) -> tuple[Key, str] | None:
        """Return the key and the host of the request that a process should have next,
        None if neither the hosts that it has a right to nor the free ones have any."""
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
        del self._rights.touched[host.name]
        rules = self._rights.politeness.rules
        assert rules is not None
        heads = self._heads_for(host, rules)
        for old in host.heads:
            if old not in heads:
                old.drop(host.name)
        host.heads = heads
        if heads:
            key = host.queues.head(self._entries, rules.order)
            assert key is not None
            for one in heads:
                one.set(host.name, key)
        for right in host.rights.values():
            if host.pending and right.target:
                right.process.busy[host.name] = host
            else:
                right.process.busy.pop(host.name, None)

    def forget(self, host: Host) -> None:
        """Take out a host of which nothing is open, here and with its holders."""
        for heads in host.heads:
            heads.drop(host.name)
        self._rights.forget(host)

    def _heads_for(self, host: Host, rules: Rules) -> list[Heads]:
        if not host.pending:
            return []
        heads = [
            right.process.heads
            for right in host.rights.values()
            if right.unstarted
            < rules.bound(host.name, right.process.window, right.target)
            and right.target
        ]
        waiting = host.reserved_for
        if waiting is not None:
            is_new = waiting.number not in host.rights
            if is_new and self._rights.free_share(host) > 0:
                heads.append(waiting.heads)
        elif not host.rights:
            heads.append(self._free)
        return heads
