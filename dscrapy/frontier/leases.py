"""Which process has which lease: processes come and go, and get requests.

Everything here is volatile: a snapshot has no processes, owners or leases. A call with
an instant (``now``) takes it from any one clock that does not run backwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import attrs

from dscrapy.frontier.open_requests import OpenRequests
from dscrapy.frontier.politeness import Rules
from dscrapy.frontier.priority_index import PriorityIndex
from dscrapy.frontier.quarantine import Quarantine
from dscrapy.frontier.readers import Readers
from dscrapy.frontier.rights import Host, Process, Rights
from dscrapy.messages import Opened, Share

NO_SHARES: Mapping[str, int] = MappingProxyType({})
NO_WAIT = Share()


@attrs.define(eq=False)
class Leases:
    """See the module; a process is named by its number."""

    _rights: Rights
    _index: PriorityIndex
    _requests: OpenRequests
    _quarantine: Quarantine
    _readers: Readers

    # ---- processes -------------------------------------------------------------

    def open_process(
        self, number: int, opened: Opened, now: float | None = None
    ) -> None:
        """Let a process take leases, by the rules of its message."""
        self._rights.politeness.tick(now)
        process = self._rights.process(number)
        if process.window != opened.window:
            process.window = opened.window
            # How many leases of a host are allowed may depend on the window.
            for host in process.hosts.values():
                self._rights.touch(host)
        rules = Rules.of(opened)
        if rules != self._rights.politeness.rules:
            # This is rare: all processes of a job run the same project.
            self._rights.politeness.rules = rules
            for host in self._rights.hosts.values():
                self._rights.touch(host)
        self._index.refresh()

    def close_process(self, number: int) -> None:
        """Let a process take no more leases; each of its rights ends once the process
        has no lease there."""
        process = self._rights.processes.get(number)
        if process is None:
            return
        process.closing = True
        self._rights.unreserve(process)
        for host in list(process.hosts.values()):
            self._rights.give_up(host, process)
        self._quarantine.end_isolation()
        self._index.refresh()

    def end_process(self, number: int, now: float) -> None:
        """Forget a process: its leases are pending, its rights end."""
        self._rights.politeness.tick(now)
        process = self._rights.processes.get(number)
        if process is None:
            return
        # The last one first: each suspect among them waits before all others.
        for request in sorted(process.leases, reverse=True):
            self._requests.give_up(request)
        for host in list(process.hosts.values()):
            self._rights.end(host, process)
        self._rights.unreserve(process)
        self._readers.forget_process(number)
        del self._rights.processes[number]
        self._quarantine.end_isolation()
        self._index.refresh()

    def hold(
        self,
        number: int,
        requests: Iterable[int],
        now: float,
        *,
        started: Iterable[int] = (),
        downloaded: Iterable[int] = (),
        shares: Mapping[str, int] = NO_SHARES,
    ) -> None:
        """Give a process exactly these leases, without the requests that it cannot
        have: those leased to another process, those done and those set aside. Some are
        started by now, and some of these downloaded. Its share of a host is all of it,
        but for those in ``shares``.

        For a process that comes back: its worker was cut off, or the master has
        restarted.
        """
        self._rights.politeness.tick(now)
        process = self._rights.process(number)
        kept = dict.fromkeys(requests)
        lost = [request for request in sorted(process.leases) if request not in kept]
        self.release(number, lost, now)
        for request in kept:
            if self._requests.may_be_leased(request):
                host = self._requests.host_of(request)
                if number not in host.rights:
                    self._rights.take_over(host, process, shares.get(host.name, 0))
                self._requests.lease(request, process)
                self._quarantine.resume(request, process)
        self._proceed(number, started, downloaded)
        for host in list(process.hosts.values()):
            self._rights.correct(host, process, shares.get(host.name, 0))
        self._index.refresh()

    def proceed(
        self,
        number: int,
        started: Iterable[int],
        downloaded: Iterable[int],
        now: float,
    ) -> None:
        """Note which leases a process has begun, and which it has downloaded; ignore
        requests that are not leased to it."""
        self._rights.politeness.tick(now)
        self._proceed(number, started, downloaded)
        self._index.refresh()

    def _proceed(
        self, number: int, started: Iterable[int], downloaded: Iterable[int]
    ) -> None:
        for request in started:
            if self._requests.holder(request) == number:
                self._requests.start(request)
        for request in downloaded:
            if self._requests.holder(request) == number:
                self._requests.end_download(request)

    def holder(self, request: int) -> int | None:
        """Return the number of the process that has leased a request, if one has."""
        return self._requests.holder(request)

    def all_wait(self, number: int) -> bool:
        """Tell whether a process has leases, and all are past their download."""
        waiting = self.waiting_count(number)
        return waiting > 0 and waiting == self.count_of(number)

    def waiting_count(self, number: int) -> int:
        """Return how many leases of a process are past their download."""
        process = self._rights.processes.get(number)
        return 0 if process is None else len(process.leases) - process.active

    def count_of(self, number: int) -> int:
        """Return how many leases a process has."""
        process = self._rights.processes.get(number)
        return 0 if process is None else len(process.leases)

    # ---- leases ----------------------------------------------------------------

    def grant(
        self, number: int, count: int, now: float
    ) -> tuple[list[int], dict[str, Share]]:
        """Lease up to ``count`` requests; return them and the hosts newly owned.

        Leases whose download is over take no place of the process's window.
        """
        self._rights.politeness.tick(now)
        requests: list[int] = []
        shares: dict[str, Share] = {}
        process = self._rights.processes.get(number)
        if process is None or process.closing:
            return requests, shares
        count = min(count, process.window - process.active)
        if number == self._quarantine.isolator:
            if not process.leases:
                requests = self._quarantine.group_for(process, count)
            for request in requests:
                self._lease(request, process, shares)
        else:
            while len(requests) < count:
                chosen = self._next_for(process)
                if chosen is None:
                    break
                self._lease(chosen, process, shares)
                requests.append(chosen)
        self._index.refresh()
        return requests, shares

    def _lease(self, request: int, process: Process, shares: dict[str, Share]) -> None:
        host = self._requests.host_of(request)
        wait_s = 0.0 if host.rights else self._wait_s(host, process)
        share = self._rights.take(host, process)
        if share is not None:
            before = shares.get(host.name, NO_WAIT)
            shares[host.name] = Share(
                count=share,
                recall=self._rights.next_recall - 1,
                wait_s=max(wait_s, before.wait_s),
            )
        self._requests.lease(request, process)
        self._index.place(host)

    def release(self, number: int, requests: Sequence[int], now: float) -> None:
        """Take back leases of a process; ignore requests that are not leased to it."""
        self._rights.politeness.tick(now)
        for request in requests:
            if self._requests.holder(request) == number:
                self._requests.give_back(request)
        self._index.refresh()

    def recalls(self) -> dict[int, dict[str, int]]:
        """Return what processes are to be told: the shares of hosts that they are to
        lower theirs to, 0 to give all back that they have not begun."""
        found: dict[int, dict[str, int]] = {}
        for (host, number), right in self._rights.recalls.items():
            found.setdefault(number, {})[host] = right.target
        return found

    @property
    def next_recall(self) -> int:
        """The number of the next recall."""
        return self._rights.next_recall

    def recalled(self, number: int, recall: int, hosts: Iterable[str]) -> None:
        """Note that a process was told so of these hosts, by the recall of this
        number."""
        self._rights.next_recall = recall + 1
        for host in hosts:
            self._rights.recalls.pop((host, number)).recall = recall

    def yielded(self, number: int, recall: int, shares: Mapping[str, int]) -> None:
        """Note that a process has lowered its shares of hosts to these, after the
        recall of this number."""
        process = self._rights.processes.get(number)
        for name, share in shares.items():
            host = self._rights.hosts.get(name)
            if host is not None and process is not None:
                self._rights.lowered(host, process, share, recall)
        self._index.refresh()

    def refuse(
        self, number: int, requests: Sequence[int], why: str, now: float
    ) -> None:
        """Take back leases that a process cannot read; another one may have them."""
        for request in requests:
            if self._requests.holder(request) == number:
                self._readers.refuse(request, number, why)
        self.release(number, requests, now)

    def _next_for(self, process: Process) -> int | None:
        if (refused := self._next_refused(process)) is not None:
            return refused
        while (first := self._index.first(process)) is None:
            if not self._give_up_for(process):
                return None
        (_, signed), _ = first
        return abs(signed)

    def _give_up_for(self, process: Process) -> bool:
        """Have another process give up a host for one without work, or lower its share
        of one, if one can."""
        if process.busy or process.reserved is not None or self._index.free_count:
            return False
        rights, holders = self._rights, self._rights.processes.values()
        donor = max(holders, key=lambda holder: len(holder.busy))
        host: Host | None
        if len(donor.busy) >= 2:
            newest_first = reversed(donor.busy.values())
            host = next(
                (one for one in newest_first if rights.may_reserve(one, process)), None
            )
            if host is not None:
                rights.reserve_right_of(host, donor, process)
        else:
            each = (one for holder in holders for one in holder.busy.values())
            shared = [
                one
                for one in each
                if rights.is_divisible(one) and rights.may_reserve(one, process)
            ]
            host = max(shared, key=lambda one: one.pending, default=None)
            if host is not None:
                rights.reserve(host, process)
        if host is None:
            return False
        self._index.place(host)
        return True

    def _wait_s(self, host: Host, process: Process) -> float:
        if host.last_request_at is None or host.last_holder in (None, process.number):
            return 0.0
        return self._rights.politeness.wait_s(host.name, host.last_request_at)

    # ---- requests that a process cannot read ------------------------------------

    def wrote(self, number: int, kinds: Iterable[int]) -> None:
        """Note that a process has written requests of these kinds."""
        self._readers.wrote(number, kinds)

    def unreadable(self) -> dict[int, str]:
        """Return requests that no open process can read, and why; none while no
        process is open."""
        able = self._rights.able_to_lease()
        if not able:
            return {}
        return {
            request: why
            for request, why in self._readers.refused.items()
            if self._requests.holder(request) is None
            and not self._readers.able(request, able)
        }

    def _next_refused(self, process: Process) -> int | None:
        """Return a request that others could not read and this process may have; its
        host is reserved for the process where that has no right to it."""
        if not self._readers.waiting:
            return None
        able = self._rights.able_to_lease()
        for request, host in self._readers.waiting.items():
            if process.number not in self._readers.able(request, able):
                continue
            if not self._rights.is_open_to(host, process):
                self._rights.reserve(host, process)
            if self._rights.is_open_to(host, process) and not self._is_full(
                host, process
            ):
                return request
        return None

    def _is_full(self, host: Host, process: Process) -> bool:
        rules = self._rights.politeness.rules
        assert rules is not None
        right = host.rights.get(process.number)
        if right is None:
            return False
        bound = rules.bound(host.name, process.window, right.target)
        return right.unstarted >= bound
