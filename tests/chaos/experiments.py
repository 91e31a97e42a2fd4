"""All rows, in the order in which they run."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from tests.chaos.deaths import (
    crowded,
    floods,
    out_of_memory,
    outside_kills,
    own_deaths,
    poisoned,
)
from tests.chaos.disk import full_disk
from tests.chaos.kills import long_stops, random_kills
from tests.chaos.network import bad_network
from tests.chaos.network_namespaces import cut_links
from tests.chaos.peer import against_scrapy_redis
from tests.chaos.recovery import how_soon
from tests.chaos.restarts import early_worker, other_settings, same_name


@attrs.frozen
class Row:
    """An experiment: folder, seed and minutes in, what was counted out.

    ``limit_s`` is what it may take beside the minutes of random kills.
    """

    name: str
    what: str
    run: Callable[[Path, int, float], Awaitable[str]]
    limit_s: float = 300.0


ROWS = (
    Row("kills", "signals to anything at random moments", random_kills),
    Row("stops", "a master and a worker stopped beyond die_after_s", long_stops),
    Row("deaths", "exit, segfault and abort in callbacks", own_deaths),
    Row("memory", "the kernel kills for lack of memory", out_of_memory),
    Row("floods", "a response takes all memory while it is read", floods),
    Row("crowd", "memory runs out while 2,000 pages wait", crowded),
    Row("outside", "200 kills from outside poison nothing", outside_kills, 480),
    Row("poison", "a page that always segfaults", poisoned),
    Row("network", "resets, delays, half-open and held connections", bad_network),
    Row("namespaces", "veth links cut and healed, one way too", cut_links),
    Row("disk", "the master's disk is full at many points", full_disk),
    Row("settings", "a master and workers restarted with others", other_settings),
    Row("names", "a second worker of one name", same_name),
    Row("early", "a worker that is there before the master", early_worker),
    Row("recovery", "from a kill or freeze to leases elsewhere", how_soon),
    Row("peer", "the same kills for scrapy-redis", against_scrapy_redis, 900),
)
