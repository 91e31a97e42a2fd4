"""What a project's settings allow towards hosts, and how long a next holder waits."""

import heapq

import attrs

from dscrapy.frontier.queues import Order
from dscrapy.messages import Opened
from dscrapy.model import HostLimits

# A process has more leases of a host that it has not begun than the host's concurrency:
# more by this part of it (a half, rounded up), and by at least this many. So the
# download slot has its next request when a download is over: the leases that follow
# take some 10 ms, in which a near site answers often.
PREFETCH_PART = 2
PREFETCH_MIN = 4
# With a delay requests go out one after another; so many leases cover the time of the
# way to the master and back.
DELAYED_PREFETCH = 3


def at_once(window: int) -> int:
    """Return how many of a window's leases a process can have under way.

    It holds the other leases so that it need not wait for the next grant.
    """
    return (2 * window + 2) // 3


@attrs.frozen(kw_only=True)
class Rules:
    """What the project's settings ask for, by the message of an open process."""

    order: Order
    default: HostLimits
    hosts: dict[str, HostLimits]

    @classmethod
    def of(cls, opened: Opened) -> "Rules":
        """Return the rules that a process's message gives."""
        return cls(
            order=Order(lifo=opened.lifo, start_lifo=opened.start_lifo),
            default=opened.default_host,
            hosts=opened.hosts,
        )

    def limits(self, host: str) -> HostLimits:
        """Return the limits of a host."""
        return self.hosts.get(host, self.default)

    def bound(self, host: str, window: int, share: int) -> int:
        """Return how many leases of the host a process with this share may have that it
        has not begun; what it has begun is bounded by Scrapy itself."""
        if window == 1:
            return 1
        if self.limits(host).delay_s > 0:
            return DELAYED_PREFETCH
        return share + max(-(-share // PREFETCH_PART), PREFETCH_MIN)


@attrs.define(eq=False)
class Cooldowns:
    """The last holders of forgotten hosts, for as long as the next one would wait."""

    _last: dict[str, tuple[int, float, float]] = attrs.field(init=False, factory=dict)
    _ends: list[tuple[float, str]] = attrs.field(init=False, factory=list)

    def __len__(self) -> int:
        return len(self._last)

    def remember(
        self, host: str, holder: int, last_request_at: float, until: float
    ) -> None:
        """Note the host's last holder and request, and until when they matter."""
        self._last[host] = holder, last_request_at, until
        heapq.heappush(self._ends, (until, host))

    def take(self, host: str) -> tuple[int, float] | None:
        """Return the last holder and its request's instant, if known; forget both."""
        last = self._last.pop(host, None)
        return None if last is None else last[:2]

    def expire(self, now: float) -> None:
        """Forget hosts whose time is over."""
        while self._ends and self._ends[0][0] <= now:
            _, host = heapq.heappop(self._ends)
            last = self._last.get(host)
            # A host may have been remembered again since, for longer.
            if last is not None and last[2] <= now:
                del self._last[host]


@attrs.define(eq=False)
class Politeness:
    """The rules that hold, and the waits that follow from them.

    ``rules`` are those of the process that opened last, None before one has. ``now`` is
    the latest instant of a call.
    """

    rules: Rules | None = None
    now: float | None = None
    cooldowns: Cooldowns = attrs.field(init=False, factory=Cooldowns)

    def tick(self, now: float | None) -> None:
        """Take the instant of a call; a call without one is at the latest known."""
        if now is not None:
            self.now = now

    def wait_s(self, host: str, last_request_at: float) -> float:
        """Return what is left of the delay since another process's request."""
        assert self.rules is not None
        assert self.now is not None
        delay_s = self.rules.limits(host).delay_s
        return min(max(last_request_at + delay_s - self.now, 0.0), delay_s)

    def remember(
        self, host: str, holder: int | None, last_request_at: float | None
    ) -> None:
        """Note the last holder of a host that is forgotten, as long as it matters."""
        if self.rules is None or self.now is None:
            return
        self.cooldowns.expire(self.now)
        delay_s = self.rules.limits(host).delay_s
        if delay_s > 0 and holder is not None and last_request_at is not None:
            self.cooldowns.remember(
                host, holder, last_request_at, last_request_at + delay_s
            )

    def recall(self, host: str) -> tuple[int, float] | None:
        """Return a host's last holder and its request's instant, while they matter."""
        return self.cooldowns.take(host)
