"""Requests that may have killed their process, and the process that tries them apart.

When a process dies by the job's own doing, its death counts against the requests that
it is blamed on. Two deaths make a request a *suspect*: from now on it is tried apart,
by a process that has no others. Suspects are tried in groups; a group whose process
dies is halved, so that a bad request among many is found soon. Two more deaths, alone,
prove a suspect *poisoned*: like a dead letter it is set aside, and never leased again
unless the job is retried. So a request that only shared a process with a bad one is
cleared by its own commit. Kills from outside count against no request.

Suspects stand in no queue. One process at a time, the *isolator*, has them, group after
group, and nothing beside them; a host that another process has the right to is reserved
for it. The counts and groups are durable; the waiting suspects and the isolator are
volatile.
"""

from collections.abc import Sequence

import attrs
import msgspec

from dscrapy.frontier.rights import Host, Process, Rights

# So many deaths make a suspect: a single one may be bad luck, and running alone is
# slow.
SHARED_DEATHS_MAX = 2
# So many deaths of a suspect, alone in its process, prove that it is poisoned.
ALONE_DEATHS_MAX = 2


class Poisoned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that was set aside: its URL if known, and why; both are for people."""

    url: str
    text: str


class Deaths(msgspec.Struct, array_like=True, gc=False):
    """The deaths that count against a request; the group in which it is tried."""

    shared: int = 0
    alone: int = 0
    group: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether the request is tried apart."""
        return self.shared >= SHARED_DEATHS_MAX


@attrs.define(eq=False)
class DeathCounts:
    """The deaths that count against requests that are not done, by number."""

    deaths: dict[int, Deaths] = attrs.field(factory=dict)
    poisoned: dict[int, Poisoned] = attrs.field(factory=dict)

    def is_suspect(self, request: int) -> bool:
        """Whether the request is tried apart."""
        deaths = self.deaths.get(request)
        return deaths is not None and deaths.is_suspect

    def group_of(self, request: int) -> int:
        """Return the group of a suspect."""
        return self.deaths[request].group

    def halve(self, requests: Sequence[int]) -> None:
        """Make two groups of suspects that were tried together."""
        last = max(deaths.group for deaths in self.deaths.values())
        for at, request in enumerate(requests):
            is_second = 2 * at >= len(requests)
            self.deaths[request].group = last + 1 + is_second

    def add(self, request: int, *, alone: bool) -> bool:
        """Count one death; return whether it makes the request a suspect.

        A death among others counts nothing against a request that is a suspect already.
        """
        deaths = self.deaths.setdefault(request, Deaths())
        if not deaths.is_suspect:
            deaths.shared += 1
            return deaths.is_suspect
        deaths.alone += alone
        return False

    def would_prove(self, request: int, *, alone: bool) -> bool:
        """Whether one more death would prove that the request is poisoned."""
        deaths = self.deaths.get(request)
        return (
            alone
            and request not in self.poisoned
            and deaths is not None
            and deaths.is_suspect
            and deaths.alone + 1 >= ALONE_DEATHS_MAX
        )

    def set_aside(self, request: int, poisoned: Poisoned) -> None:
        """Keep the request as poisoned."""
        self.poisoned[request] = poisoned
        self.deaths[request] = Deaths(SHARED_DEATHS_MAX, ALONE_DEATHS_MAX)

    def pardon(self) -> list[int]:
        """Make the poisoned requests suspects again; return them."""
        pardoned = list(self.poisoned)
        for request in pardoned:
            self.deaths[request] = Deaths(SHARED_DEATHS_MAX)
        self.poisoned.clear()
        return pardoned

    def forget(self, request: int) -> None:
        """Forget a request that is done: its commit clears it."""
        self.deaths.pop(request, None)
        self.poisoned.pop(request, None)


@attrs.define(eq=False)
class Quarantine:
    """The suspects that are not leased, and the process that has suspects.

    ``waiting`` is in the order in which they go out, each with its host; ``isolator``
    is the number of the process, None without one or without suspects.
    """

    _rights: Rights
    _counts: DeathCounts
    waiting: dict[int, Host] = attrs.field(init=False, factory=dict)
    isolator: int | None = attrs.field(init=False, default=None)

    @property
    def wants_isolator(self) -> bool:
        """Whether suspects wait and no process is there for them."""
        return bool(self.waiting) and self.isolator is None

    def isolate(self, number: int) -> None:
        """Let an open process without leases have the suspects, and nothing else."""
        assert self.isolator is None
        process = self._rights.processes.get(number)
        assert process is None or not process.leases
        self.isolator = number

    def resume(self, request: int, process: Process) -> None:
        """Make a process that returns with a suspect the isolator, if there is none."""
        is_able = self.isolator is None and not process.closing
        if is_able and self._counts.is_suspect(request):
            self.isolator = process.number

    def put_first(self, request: int, host: Host) -> None:
        """Let a suspect that was leased wait before those that were never leased."""
        self.waiting = {request: host, **self.waiting}

    def group_for(self, process: Process, count: int) -> list[int]:
        """Return up to ``count`` suspects of one group whose hosts the isolator may
        have."""
        first = self._first_for(process)
        if first is None:
            return []
        group = self._counts.group_of(first)
        found = [
            request
            for request, host in self.waiting.items()
            if self._counts.group_of(request) == group
            and self._rights.is_open_to(host, process)
        ]
        return found[:count]

    def give_companions(self) -> None:
        """Let the isolator have other requests, too: its suspects wait for them."""
        assert self.isolator is not None
        process = self._rights.processes.get(self.isolator)
        if process is not None:
            self._rights.unreserve(process)
        self.isolator = None

    def _first_for(self, process: Process) -> int | None:
        for request, host in self.waiting.items():
            if self._rights.is_open_to(host, process):
                return request
        for request, host in self.waiting.items():
            self._rights.reserve(host, process)
            if self._rights.is_open_to(host, process):
                return request
        return None

    def end_isolation(self) -> None:
        """Make the isolator an ordinary process again once there are no suspects."""
        if self.isolator is None:
            return
        process = self._rights.processes.get(self.isolator)
        if process is None or process.closing:
            self.isolator = None
        elif not self.waiting and not any(map(self._counts.is_suspect, process.leases)):
            self.isolator = None
            self._rights.unreserve(process)
