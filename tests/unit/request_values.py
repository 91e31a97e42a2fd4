"""Children of pages and open processes, as the tests of the frontier need them."""

import hashlib
from collections.abc import Sequence

import msgspec

from dscrapy import messages as m
from dscrapy.model import CloseLimits, HostLimits


def fingerprint(url: str) -> bytes:
    """Return what stands for a request to ``url``."""
    return hashlib.sha1(url.encode(), usedforsecurity=False).digest()


def children(
    *urls: str,
    hosts: Sequence[str] = (),
    priorities: Sequence[int] = (),
    flags: Sequence[int] = (),
) -> m.Children:
    """Return requests to these; by default of one host, ordinary, of priority 0.

    The body of each is its url as JSON.
    """
    of = tuple(hosts) or ("h",) * len(urls)
    names = tuple(dict.fromkeys(of))
    return m.Children(
        fingerprints=b"".join(map(fingerprint, urls)),
        hosts=names,
        host_of=tuple(names.index(host) for host in of),
        priorities=tuple(priorities) or (0,) * len(urls),
        flags=tuple(flags) or (0,) * len(urls),
        bodies=tuple(msgspec.Raw(msgspec.json.encode(url)) for url in urls),
    )


def opened(
    process: int = 1,
    *,
    window: int = 100,
    lifo: bool = False,
    start_lifo: bool = False,
    concurrency: int = 8,
    delay_s: float = 0.0,
    hosts: dict[str, HostLimits] | None = None,
) -> m.Opened:
    """Return what a process tells when it is open."""
    return m.Opened(
        job="j",
        process=process,
        window=window,
        lifo=lifo,
        start_lifo=start_lifo,
        default_host=HostLimits(concurrency=concurrency, delay_s=delay_s),
        hosts=hosts or {},
        limits=CloseLimits(),
        has_feeds=False,
    )
