"""Requests of this process that wait for room in their download slots.

A request is given out only when its slot could send it now, so that the process can
still give back the requests that wait. Room is the number of transfers that a slot has
free, less the requests in its own queue and those on their way to it through the
downloader's middlewares.
"""

import heapq
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.cookies import CookiesMiddleware

from dscrapy.crawl.insides.slot_probes import (
    SharedSlot,
    download_slots,
    room_in,
    share_hosts,
    transfers_in,
)
from dscrapy.crawl.scrapy_side.crawl_settings import host_limits

T = TypeVar("T")


class Lease(NamedTuple):
    """A leased request that has not been started.

    ``values``: digest -> JSON of each value that the body refers to, perhaps of more.
    ``again``: an earlier run has given requests.
    """

    request: int
    host: str
    body: bytes
    values: Mapping[bytes, bytes] = MappingProxyType({})
    again: bool = False


class SlotCapacity:
    """How many more requests each download slot can take now.

    Of a host that other processes ask, too, this one has a share: so many requests
    under way at a time.
    """

    def __init__(self, crawler: Crawler, clock: Callable[[], float]) -> None:
        self._slots = download_slots(crawler)
        self._clock = clock
        self._default, self._limits = host_limits(crawler.settings)
        self._handed: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._shares: dict[str, int] = {}
        # AutoThrottle sets delays as it goes, and a host with a delay is not shared.
        is_steady = not crawler.settings.getbool("AUTOTHROTTLE_ENABLED")
        self._shares_hosts = share_hosts(crawler, self._shares.get) and is_steady
        self._crawler = crawler

    def wait(self, host: str, seconds: float) -> None:
        """Give the host no room for so long."""
        self._not_before[host] = self._clock() + seconds

    def set_share(self, host: str, share: int) -> None:
        """Note this process's share of a host; 0 for all there is."""
        if share:
            self._shares[host] = share
        else:
            self._shares.pop(host, None)

    def can_share(self, host: str) -> bool:
        """Whether this process could keep to a share of the host.

        Scrapy's slot has to say how much is under way, and to have the project's
        concurrency and no delay, whoever has set them. And the host has set no cookie:
        other processes would not have it.
        """
        if not self._shares_hosts or self._has_cookie(host):
            return False
        slot = self._slots.get(host)
        if slot is None:
            return True
        is_steady = slot.delay <= 0 and slot.concurrency == self._limit(host)
        return isinstance(slot, SharedSlot) and is_steady

    def _has_cookie(self, host: str) -> bool:
        cookies = self._crawler.get_downloader_middleware(CookiesMiddleware)
        if cookies is None:
            return False
        domains = {
            cookie.domain.lstrip(".") for jar in cookies.jars.values() for cookie in jar
        }
        return any(host == one or host.endswith(f".{one}") for one in domains)

    def keeps_share(self, host: str) -> bool:
        """Whether no more requests are under way than this process's share."""
        slot, share = self._slots.get(host), self._shares.get(host)
        return slot is None or share is None or transfers_in(slot) <= share

    def has_room(self, host: str) -> bool:
        """Whether the host's slot could send one more request now."""
        if self._not_before:
            not_before = self._not_before.get(host)
            if not_before is not None and self._clock() < not_before:
                return False
            self._not_before.pop(host, None)
        handed = self._handed.get(host, 0)
        slot = self._slots.get(host)
        if slot is None:
            limit = self._limit(host)
            return handed < min(limit, self._shares.get(host, limit))
        return room_in(slot) > handed

    def _limit(self, host: str) -> int:
        return self._limits.get(host, self._default).concurrency

    def hand(self, host: str) -> None:
        """Note that a request is on its way to the host's slot."""
        self._handed[host] = self._handed.get(host, 0) + 1

    def arrived(self, host: str) -> None:
        """Note that a request on its way has come to its slot, or never will."""
        remaining = self._handed[host] - 1
        if remaining:
            self._handed[host] = remaining
        else:
            del self._handed[host]


class Waiting(Generic[T]):
    """Requests that wait for room, by host; smaller orders go first."""

    def __init__(self) -> None:
        self._hosts: dict[str, list[tuple[tuple[int, int], T]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, host: str, order: tuple[int, int], value: T) -> None:
        """Put a value among those of its host; no two orders are equal."""
        heapq.heappush(self._hosts.setdefault(host, []), (order, value))
        self._count += 1

    def take(self, has_room: Callable[[str], bool]) -> T | None:
        """Return the first value whose host has room, or None."""
        first_host = ""
        first_order: tuple[int, int] | None = None
        for host, heap in self._hosts.items():
            if (first_order is None or heap[0][0] < first_order) and has_room(host):
                first_host, first_order = host, heap[0][0]
        if first_order is None:
            return None
        heap = self._hosts[first_host]
        _, value = heapq.heappop(heap)
        if not heap:
            del self._hosts[first_host]
        self._count -= 1
        return value

    def take_host(self, host: str) -> list[T]:
        """Return all values of a host and keep none of them."""
        heap = self._hosts.pop(host, [])
        self._count -= len(heap)
        return [value for _, value in sorted(heap)]

    def take_all(self) -> list[T]:
        """Return all values and keep none."""
        return [value for host in list(self._hosts) for value in self.take_host(host)]
