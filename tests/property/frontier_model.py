"""What a naive model of a frontier knows: everything is looked up in everything."""

import attrs
from hypothesis.stateful import RuleBasedStateMachine

from dscrapy.frontier.frontier import Frontier, Stored
from dscrapy.frontier.rights import ALL
from dscrapy.messages import DONT_FILTER, START_REQUEST, Share

URLS = tuple(f"u{number}" for number in range(10))
HOSTS = ("a", "b", "c", "slow")
DELAY_S = 4.0
CONCURRENCY = 4
SLOW_CONCURRENCY = 7
# Leases of a slow host that a process may have without having begun them.
SLOW_BOUND = 3
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
class Right:
    """A process's share of a host, and what that is to become."""

    share: int
    target: int


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
        self.rights: dict[str, dict[int, Right]] = {host: {} for host in HOSTS}
        # Hosts that cannot be shared, as a process has said.
        self.whole: set[str] = set()
        self.reserved: dict[str, int] = {}
        # Whose shares are to become smaller, and who has not been told.
        self.untold: set[tuple[str, int]] = set()
        # By which recall the others were told.
        self.told: dict[tuple[str, int], int] = {}
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
            if process in self.rights[host]
            and self.rights[host][process].target
            and self.has_pending(host)
        ]

    def free(self) -> list[str]:
        return [
            host
            for host in HOSTS
            if self.has_pending(host)
            and not self.rights[host]
            and host not in self.reserved
        ]

    def bound(self, host: str, process: int) -> int:
        if self.peers[process].window == 1:
            return 1
        if host == "slow":
            return SLOW_BOUND
        target = self.rights[host][process].target
        return target + max((target + 1) // 2, 4)

    def unstarted(self, host: str, process: int) -> int:
        return sum(
            self.open[number].stage == 0 for number in self.leases(host, process)
        )

    def limit(self, host: str) -> int:
        if not self.ruled:
            return ALL
        return SLOW_CONCURRENCY if host == "slow" else CONCURRENCY

    def is_shared(self, host: str) -> bool:
        return self.ruled and host != "slow"

    def shares(self, host: str) -> int:
        return sum(right.share for right in self.rights[host].values())

    def free_share(self, host: str) -> int:
        if not self.rights[host]:
            return self.limit(host)
        return self.limit(host) - self.shares(host) if self.is_shared(host) else 0

    def may_lease(self, host: str, process: int) -> bool:
        right = self.rights[host].get(process)
        if right is not None:
            is_full = self.unstarted(host, process) >= self.bound(host, process)
            return right.target > 0 and not is_full
        if host in self.reserved:
            return self.reserved[host] == process and self.free_share(host) > 0
        return not self.rights[host]

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

    def end_right(self, host: str, process: int) -> None:
        del self.rights[host][process]
        self.told.pop((host, process), None)
        self.untold.discard((host, process))
        self.last[host] = process

    def lower(self, host: str, process: int, target: int) -> None:
        """What a share is to become; who closes need not be told."""
        right = self.rights[host][process]
        right.target = target
        self.told.pop((host, process), None)
        if target < right.share and not self.peers[process].closing:
            self.untold.add((host, process))
        else:
            self.untold.discard((host, process))

    def settle(self, host: str) -> None:
        """A share that is to become smaller ends with the last download."""
        for process, right in list(self.rights[host].items()):
            if right.target < right.share and not self.active(host, process):
                self.end_right(host, process)

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
                for process in list(self.rights[host]):
                    self.end_right(host, process)
                self.reserved.pop(host, None)
                self.whole.discard(host)

    def see_gifts(self) -> None:
        """Note which hosts wait for a process, since it has nothing."""
        for host, known in self.frontier._rights.hosts.items():
            waiting = known.reserved_for
            if waiting is not None and self.reserved.get(host) != waiting.number:
                self.see_gift(host, waiting.number)
                self.reserved[host] = waiting.number

    def see_gift(self, host: str, process: int) -> None:
        """Note what became of rights to a host for a process that waits, or waited,
        for it: one is given up, or all become smaller, so that there is one more."""
        assert process not in self.reserved.values()
        assert host not in self.reserved
        is_apart = process == self.isolator
        if is_apart:
            assert host in {self.open[number].host for number in self.suspects}
        else:
            assert not self.busy(process)
            assert not self.free()
        most = max((len(self.busy(one)) for one in self.peers), default=0)
        now = self.frontier._rights.hosts[host].rights
        lowered = []
        for other, right in list(self.rights[host].items()):
            assert other != process
            if other not in now:
                # It had nothing there.
                assert not self.active(host, other)
                self.end_right(host, other)
            elif now[other].target != right.target:
                assert now[other].share == right.share
                assert now[other].target < right.target
                lowered.append(other)
                self.lower(host, other, now[other].target)
        left = self.rights[host]
        targets = [right.target for right in left.values()]
        if any(left[other].target for other in lowered):
            # It is divided: each has its part, and one is for the process.
            assert is_apart or most < 2
            assert self.is_shared(host)
            assert host not in self.whole
            assert 0 < sum(targets) < self.limit(host)
            assert max(targets) <= -(-self.limit(host) // (len(left) + 1))
        elif lowered:
            assert len(lowered) == 1
            assert is_apart or len(self.gives(lowered[0], host)) >= 2

    def gives(self, process: int, host: str) -> list[str]:
        """The busy hosts of a process before it gave up a right to this one."""
        return [*self.busy(process), *([host] if self.has_pending(host) else [])]

    # ---- what the frontier may give --------------------------------------------

    def group_at_hand(self) -> list[int]:
        """Suspects of the first one's group whose hosts the isolator may have."""
        may = [n for n in self.suspects if self.may_have_alone(self.open[n].host)]
        return [n for n in may if self.open[n].group == self.open[may[0]].group]

    def best(self, process: int) -> int | None:
        choice = [
            number
            for number, one in self.open.items()
            if one.is_pending and self.may_lease(one.host, process)
        ]
        return min(choice, key=self.key, default=None)

    def may_have_alone(self, host: str) -> bool:
        assert self.isolator is not None
        right = self.rights[host].get(self.isolator)
        if right is not None:
            return right.target > 0
        is_free = self.reserved.get(host, self.isolator) == self.isolator
        return is_free and self.free_share(host) > 0

    def give(self, process: int, number: int, shares: dict[str, Share]) -> None:
        one = self.open[number]
        host, limit, free = one.host, self.limit(one.host), self.free_share(one.host)
        rights = self.rights[host]
        wait_s = 0.0
        if not rights and self.last.get(host, process) != process and host in self.rest:
            delay_s = DELAY_S if host == "slow" else 0.0
            wait_s = max(self.rest[host] + delay_s - self.now, 0.0)
        share = None
        if process not in rights:
            fair = -(-limit // (len(rights) + 1))
            share = min(free, fair)
            rights[process] = Right(share, share)
            self.reserved.pop(host, None)
        elif free > 0 and host not in self.reserved:
            right, fair = rights[process], -(-limit // len(rights))
            if right.target == right.share < fair:
                share = right.share = right.target = min(right.share + free, fair)
        if share is not None:
            waited = shares[host].wait_s if host in shares else 0.0
            count = 0 if share == limit else share
            last = self.frontier.leases.next_recall - 1
            shares[host] = Share(count=count, recall=last, wait_s=max(wait_s, waited))
        one.holder = process
        if number in self.suspects:
            self.suspects.remove(number)

    def take_over(self, host: str, process: int, share: int) -> None:
        """A process says that it has a right; others may have too much then."""
        if process in self.rights[host]:
            return
        others = self.shares(host)
        share = share or self.limit(host)
        self.rights[host][process] = Right(share, share)
        self.reserved.pop(host, None)
        if self.peers[process].closing:
            self.lower(host, process, 0)
        elif others:
            room = max(self.limit(host) - others, 0) if self.is_shared(host) else 0
            self.lower(host, process, min(share, room))

    def correct(self, host: str, process: int, share: int) -> None:
        """What a process says that it has is so, if the model knows no less."""
        right = self.rights[host][process]
        if not self.active(host, process):
            self.end_right(host, process)
            return
        right.share = min(right.share, share or right.share)
        self.lower(host, process, min(right.target, right.share))
