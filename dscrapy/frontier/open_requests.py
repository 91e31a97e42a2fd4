"""Where each open request of a job stands: pending, leased, apart or set aside.

Pending requests stand in the queues of their hosts. *Apart*, in no queue, are suspects
(``quarantine``) and requests that a process could not read (``readers``): they wait for
a certain process. Poisoned requests are set aside.

This module alone moves a request from one to another, so it alone keeps the counts of
its host, the leases of its process and the places where it waits in step.
"""

import attrs

from dscrapy.frontier.priority_index import PriorityIndex
from dscrapy.frontier.quarantine import DeathCounts, Quarantine
from dscrapy.frontier.queues import (
    APART,
    DOWNLOADED,
    STARTED,
    UNSTARTED,
    Entry,
    returned,
)
from dscrapy.frontier.readers import Readers
from dscrapy.frontier.rights import Host, Process, Right, Rights


@attrs.define(eq=False)
class OpenRequests:
    """See the module; ``entries`` by number, numbers rising."""

    entries: dict[int, Entry]
    _rights: Rights
    _index: PriorityIndex
    _counts: DeathCounts
    _quarantine: Quarantine
    _readers: Readers
    leased_count: int = attrs.field(init=False, default=0)

    @property
    def pending_count(self) -> int:
        """How many requests wait to be leased, those apart too."""
        return len(self.entries) - self.leased_count - len(self._counts.poisoned)

    def host_of(self, request: int) -> Host:
        """Return the host of a request that waits or is not past its download."""
        return self._rights.hosts[self.entries[request].host]

    def is_active(self, request: int) -> bool:
        """Tell whether the download of a leased request is not over."""
        return self.entries[request].stage != DOWNLOADED

    def holder(self, request: int) -> int | None:
        """Return the number of the process that has leased a request, if one has."""
        entry = self.entries.get(request)
        return None if entry is None else entry.process or None

    def may_be_leased(self, request: int) -> bool:
        """Tell whether a request is open and neither leased nor set aside."""
        entry = self.entries.get(request)
        is_waiting = entry is not None and not entry.process
        return is_waiting and request not in self._counts.poisoned

    # ---- durable ---------------------------------------------------------------

    def add(self, request: int, host_name: str, rank: int, place: range) -> None:
        """Add a pending request whose body is at ``place``."""
        host = self._rights.host(host_name)
        # The host object's text is shared: each message brings another copy.
        self.entries[request] = Entry(host.name, rank, place.start, len(place))
        host.queues.push(request, rank)
        host.pending += 1
        self._rights.touch(host)

    def done(self, request: int) -> bool:
        """Take out a request; False if it is not open."""
        entry = self.entries.pop(request, None)
        if entry is None:
            return False
        was_aside = request in self._counts.poisoned
        self._counts.forget(request)
        self._readers.forget(request)
        if was_aside:
            return True
        if entry.process:
            self._note_request(entry)
            self._end_lease(request, entry)
        else:
            host = self._rights.hosts[entry.host]
            self._stop_waiting(request, entry, host)
            if entry.process is None:
                host.queues.trim(entry.rank, self.entries)
        host_left = self._rights.hosts.get(entry.host)
        if host_left is not None and not host_left.rights and host_left.is_empty:
            self._index.forget(host_left)
        self._quarantine.end_isolation()
        return True

    def put_in_quarantine(self, request: int) -> None:
        """Put an open request that is a suspect now apart, if it is not leased."""
        entry = self.entries[request]
        if not entry.process:
            host = self._rights.hosts[entry.host]
            self._stop_waiting(request, entry, host)
            self._put_apart(request, entry, host)

    def set_aside(self, request: int) -> None:
        """Let an open request not be leased any more, until it is brought back."""
        entry = self.entries[request]
        if entry.process:
            self._end_lease(request, entry)
        else:
            self._stop_waiting(request, entry, self._rights.hosts[entry.host])
        entry.process = APART
        self._quarantine.end_isolation()

    def bring_back(self, request: int) -> None:
        """Let a request that was set aside, and is a suspect now, wait again."""
        entry = self.entries[request]
        self._put_apart(request, entry, self._rights.host(entry.host))

    # ---- volatile --------------------------------------------------------------

    def lease(self, request: int, process: Process) -> None:
        """Lease a request that may be leased, of a host that the process has a right
        to."""
        entry = self.entries[request]
        host = self._rights.hosts[entry.host]
        right = host.rights[process.number]
        self._stop_waiting(request, entry, host)
        entry.process = process.number
        process.leases.add(request)
        process.active += 1
        right.active += 1
        right.unstarted += 1
        self.leased_count += 1

    def start(self, request: int) -> None:
        """Note that the process of a lease has begun it, if that is new."""
        entry = self.entries[request]
        if entry.stage == UNSTARTED:
            entry.stage = STARTED
            host, right = self._right_of(entry)
            right.unstarted -= 1
            self._rights.touch(host)

    def end_download(self, request: int) -> None:
        """Note that the download of a leased request is over, if that is new."""
        entry = self.entries[request]
        if entry.stage != DOWNLOADED:
            self._note_request(entry)
            self._leave_host(entry)
            entry.stage = DOWNLOADED

    def give_up(self, request: int) -> None:
        """Let a lease of a process that has ended wait again, begun or not."""
        self._note_request(self.entries[request])
        self.give_back(request)

    def give_back(self, request: int) -> None:
        """Let a leased request wait again, before others of its priority."""
        entry = self.entries[request]
        self._end_lease(request, entry)
        host = self._rights.host(entry.host)
        entry.rank = returned(entry.rank)
        if self._counts.is_suspect(request) or request in self._readers.refused:
            self._put_apart(request, entry, host, comes_back=True)
        else:
            entry.process = None
            host.queues.push(request, entry.rank)
            host.pending += 1
            self._rights.touch(host)

    # ---- one change each -------------------------------------------------------

    def _stop_waiting(self, request: int, entry: Entry, host: Host) -> None:
        if entry.process == APART:
            in_quarantine = request in self._quarantine.waiting
            apart = self._quarantine if in_quarantine else self._readers
            del apart.waiting[request]
            host.apart -= 1
        else:
            host.pending -= 1
        self._rights.touch(host)

    def _put_apart(
        self, request: int, entry: Entry, host: Host, *, comes_back: bool = False
    ) -> None:
        entry.process = APART
        if not self._counts.is_suspect(request):
            self._readers.waiting[request] = host
        elif comes_back:
            self._quarantine.put_first(request, host)
        else:
            self._quarantine.waiting[request] = host
        host.apart += 1
        self._rights.touch(host)

    def _end_lease(self, request: int, entry: Entry) -> None:
        assert entry.process is not None
        self._rights.processes[entry.process].leases.remove(request)
        self.leased_count -= 1
        if entry.stage != DOWNLOADED:
            self._leave_host(entry)
        entry.stage = UNSTARTED

    def _note_request(self, entry: Entry) -> None:
        """Note that a lease's host may have been sent a request by now."""
        if entry.stage != DOWNLOADED:
            host = self._rights.hosts[entry.host]
            host.last_request_at = self._rights.politeness.now

    def _leave_host(self, entry: Entry) -> None:
        """Take a lease from its host: its download is over, or the lease is."""
        host, right = self._right_of(entry)
        right.process.active -= 1
        right.active -= 1
        right.unstarted -= entry.stage == UNSTARTED
        if right.target < right.share and not right.active:
            self._rights.end(host, right.process)
        self._rights.touch(host)

    def _right_of(self, entry: Entry) -> tuple[Host, Right]:
        """Return the host of a lease that is not past its download, and the right."""
        assert entry.process is not None
        host = self._rights.hosts[entry.host]
        return host, host.rights[entry.process]
