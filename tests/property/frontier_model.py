"""What a naive model of a frontier knows: everything is looked up in everything."""

import attrs
from hypothesis.stateful import RuleBasedStateMachine

from dscrapy.frontier.frontier import Frontier, Stored
from dscrapy.messages import DONT_FILTER, START_REQUEST

URLS = tuple(f"u{number}" for number in range(10))
HOSTS = ("a", "b", "c", "slow")
DELAY_S = 4.0
CONCURRENCY = 4
# What the settings below allow a process to hold of a host without having begun it.
BOUND = {"plain": 6, "slow": 3}
PROCESSES = (1, 2, 3)

Row = tuple[str, str, int, int]


@attrs.define
class Known:
    """A request as the model knows it."""

    row: Row
    place: tuple[int, int]
    holder: int | None = None
    came_back: bool = False
    # 0: not begun, 1: in its download, 2: past it.
    stage: int = 0
    deaths: int = 0
    deaths_alone: int = 0
    group: int = 0
    aside: bool = False

    @property
    def is_suspect(self) -> bool:
        return self.deaths >= 2 and not self.aside

    @property
    def is_pending(self) -> bool:
        return self.holder is None and not self.is_suspect and not self.aside

    @property
    def host(self) -> str:
        return self.row[1]


@attrs.define
class Peer:
    """A process as the model knows it."""

    window: int
    closing: bool = False


class NaiveFrontier(RuleBasedStateMachine):
    """The model beside the frontier; slow, and easy to believe."""

    def set_up(self, lifo: bool, start_lifo: bool) -> None:
        """Nothing is known; the project's order is fixed."""
        self.lifo, self.start_lifo = lifo, start_lifo
        self.frontier = Frontier()
        self.open: dict[int, Known] = {}
        self.seen: set[str] = set()
        self.next = 1
        self.bytes = 0
        self.added = self.finished = 0
        self.parts: list[tuple[Stored, list[Row], int]] = []
        # In the order in which they were first blamed.
        self.blamed: list[int] = []
        self.now = 1000.0
        self.forget_processes()

    def forget_processes(self) -> None:
        """As after a restart of the master."""
        self.peers: dict[int, Peer] = {}
        self.owner: dict[str, int] = {}
        self.draining: set[str] = set()
        self.reserved: dict[str, int] = {}
        # Hosts whose owners are to be told to give back what has not begun there.
        self.untold: set[str] = set()
        self.ruled = False
        self.last: dict[str, int] = {}
        self.rest: dict[str, float] = {}
        # Those that wait, in their order, and who has them.
        self.suspects: list[int] = []
        self.isolator: int | None = None

    # ---- what the model derives by looking at everything -------------------

    def leases(self, host: str = "", process: int = 0) -> list[int]:
        return [
            number
            for number, one in self.open.items()
            if one.holder is not None
            and (not host or one.host == host)
            and (not process or one.holder == process)
        ]

    def active(self, host: str = "", process: int = 0) -> list[int]:
        """Leases that are not past their download."""
        return [
            number
            for number in self.leases(host, process)
            if self.open[number].stage < 2
        ]

    def has_pending(self, host: str) -> bool:
        return any(one.host == host and one.is_pending for one in self.open.values())

    def busy(self, process: int) -> list[str]:
        return [
            host
            for host in HOSTS
            if self.owner.get(host) == process
            and host not in self.draining
            and self.has_pending(host)
        ]

    def free(self) -> list[str]:
        return [
            host
            for host in HOSTS
            if self.has_pending(host)
            and host not in self.owner
            and host not in self.reserved
            and not self.active(host)
        ]

    def bound(self, host: str, process: int) -> int:
        window = self.peers[process].window
        return 1 if window == 1 else BOUND["slow" if host == "slow" else "plain"]

    def unstarted(self, host: str) -> int:
        return sum(self.open[number].stage == 0 for number in self.leases(host))

    def may_lease(self, host: str, process: int) -> bool:
        if self.owner.get(host) == process:
            count = self.unstarted(host)
            return host not in self.draining and count < self.bound(host, process)
        if host in self.owner or self.active(host):
            return False
        return self.reserved.get(host, process) == process

    def key(self, number: int) -> tuple[int, bool, bool, int]:
        one = self.open[number]
        is_start = bool(one.row[3] & START_REQUEST)
        newest = self.start_lifo if is_start else self.lifo
        sign = -1 if newest else 1
        return -one.row[2], not one.came_back, is_start, sign * number

    # ---- changes of the model ----------------------------------------------

    def take(self, rows: list[Row], offset: int) -> int:
        filtered = 0
        for row in rows:
            length = len(row[0]) + 2
            if row[3] & DONT_FILTER or row[0] not in self.seen:
                if not row[3] & DONT_FILTER:
                    self.seen.add(row[0])
                self.open[self.next] = Known(row, (offset, length))
                self.next += 1
                self.added += 1
            else:
                filtered += 1
            offset += length + 1
        return filtered

    def disown(self, host: str) -> None:
        if host in self.owner:
            self.last[host] = self.owner.pop(host)
        self.draining.discard(host)
        self.untold.discard(host)

    def settle(self, host: str) -> None:
        """A host that is given up is free when its last download is over."""
        if host in self.draining and not self.active(host):
            self.disown(host)

    def back(self, number: int) -> None:
        one = self.open[number]
        one.holder, one.came_back, one.stage = None, True, 0
        if one.is_suspect:
            self.suspects.insert(0, number)
        self.settle(one.host)

    def end_isolation(self) -> None:
        """Who has the suspects is like others again when there are none."""
        process = self.isolator
        peer = self.peers.get(process or 0)
        if peer is None or peer.closing:
            self.isolator = None
        elif not self.suspects and not any(
            self.open[number].is_suspect for number in self.leases(process=process or 0)
        ):
            self.isolator = None
            self.reserved = {h: p for h, p in self.reserved.items() if p != process}

    def is_used(self, host: str) -> bool:
        """Whether a request of the host waits or is in its download."""
        return any(
            one.host == host and not one.aside and one.stage < 2
            for one in self.open.values()
        )

    def proceed(self, process: int, started: set[int], downloaded: set[int]) -> None:
        """A process has come further with some of its leases."""
        for number in started.intersection(self.leases(process=process)):
            self.open[number].stage = max(self.open[number].stage, 1)
        for number in downloaded.intersection(self.active(process=process)):
            one = self.open[number]
            one.stage = 2
            self.rest[one.host] = self.now
            self.settle(one.host)

    def look(self) -> None:
        """A change forgets hosts without requests, once there are rules."""
        if not self.ruled:
            return
        for host in HOSTS:
            if not self.is_used(host):
                self.disown(host)
                self.reserved.pop(host, None)

    def see_gift_taken(self, process: int, number: int) -> None:
        """Note that a host without leases was given up and taken, all in one call."""
        host = self.open[number].host
        assert host not in self.reserved
        assert process not in self.reserved.values()
        assert not self.active(host)
        if process == self.isolator:
            assert number in self.suspects
        else:
            assert not self.busy(process)
            assert not self.free()
            assert len(self.busy(self.owner[host])) >= 2
        self.disown(host)

    def see_gifts(self) -> None:
        """Note what was given up: only by owners of two, to processes with nothing."""
        for host, known in self.frontier._owners.hosts.items():
            if known.reserved_for is None:
                continue
            process = known.reserved_for.number
            if self.reserved.get(host) == process:
                continue
            assert process not in self.reserved.values()
            if process == self.isolator:
                assert host in {self.open[number].host for number in self.suspects}
            else:
                assert not self.busy(process)
                assert not self.free()
                assert len(self.busy(self.owner[host])) >= 2
            self.reserved[host] = process
            self.draining.add(host)
            self.settle(host)
            self.want_back(host)

    def want_back(self, host: str) -> None:
        """The owner of a host that drains is told, if it can give anything back."""
        owner = self.owner.get(host)
        if owner is not None and not self.peers[owner].closing and self.unstarted(host):
            self.untold.add(host)
