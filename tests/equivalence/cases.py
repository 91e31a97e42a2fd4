"""What each spider of the project gives, counted by hand from its code.

``items`` and ``requests`` are totals of an undisturbed run; requests leave out
robots.txt and media files, which each process fetches for itself. ``stats`` are those
that say what the spider is there for; every other stable one is compared with plain
Scrapy's.
"""

import attrs
import scrapy

# Keys whose values follow from the pages alone; what is missing here depends on time,
# on the machine, or on how many processes there are (see docs/fidelity.md).
STABLE = (
    "depth/",
    "downloader/exception_",
    "downloader/request_count",
    "downloader/request_method_count/",
    "downloader/response_count",
    "downloader/response_status_count/",
    "dupefilter/",
    "file_",
    "finish_reason",
    "httperror/",
    "item_",
    "offsite/filtered",
    "request_depth_",
    "response_received_count",
    "retry/",
    "robotstxt/",
    "spider_exceptions/",
)
STABLE_WHOLE = frozenset({"scheduler/dequeued", "scheduler/enqueued"})
# What a process fetches for itself: these keys count it too.
FETCHED_APART = ("downloader/", "response_received_count")
# Scrapy counts the requests beyond ``DEPTH_LIMIT`` since 2.18.
TOO_DEEP = (
    {"depth/request_ignored_count": 4} if scrapy.version_info[:2] >= (2, 18) else {}
)


@attrs.frozen(kw_only=True)
class Case:
    """A spider and what it gives.

    ``apart`` are keys (by prefix) that several processes write more often than one.
    ``ordered``: the site sees one process's requests in plain Scrapy's order.
    ``shared``: its pages wait until a second process takes part. ``killed``: its
    items are the same when processes die. ``in_fast``: three processes run it in every
    test run, not in the whole suite alone.
    """

    name: str
    items: int
    requests: int
    stats: dict[str, int] = attrs.Factory(dict)
    apart: tuple[str, ...] = ()
    ordered: bool = False
    shared: bool = False
    killed: bool = True
    in_fast: bool = False


CASES = (
    # A tree: 1 + 3 + 9 pages, each an item.
    Case(name="sync_gen", items=13, requests=13, stats={"request_depth_max": 2}),
    Case(name="async_gen", items=13, requests=13),
    Case(name="coroutine", items=13, requests=13),
    # The hub and five of its ten links.
    Case(name="plain_list", items=6, requests=11),
    # Three errbacks that give an item, one page more of them, and one that is well;
    # the refused connection reaches no site.
    Case(
        name="errbacks",
        items=5,
        requests=5,
        stats={"spider_exceptions/LookupError": 1},
    ),
    # Three links each: one item, none, two.
    Case(
        name="raising",
        in_fast=True,
        items=9,
        requests=10,
        stats={"spider_exceptions/ValueError": 9},
    ),
    Case(name="many", items=20_006, requests=7),
    # Eight links, each with a chain of three, a page and a missing one.
    Case(
        name="inline",
        in_fast=True,
        items=8,
        requests=49,
        stats={"downloader/response_status_count/404": 8},
    ),
    Case(name="engine_crawl", items=16, requests=17),
    Case(name="carried", in_fast=True, items=12, requests=13),
    # The hub's twelve links: three items each, and a page more that gives two.
    Case(name="luggage", in_fast=True, items=60, requests=25, shared=True),
    # Eight chains of two closures, and an errback.
    Case(name="lambdas", in_fast=True, items=17, requests=18),
    Case(name="item_types", items=10, requests=11),
    # Of twenty items four are dropped, and four times a pipeline raises.
    Case(
        name="pipes",
        in_fast=True,
        items=12,
        requests=21,
        stats={"item_dropped_count": 4},
    ),
    Case(
        name="files", in_fast=True, items=6, requests=7, apart=("file_", *FETCHED_APART)
    ),
    # 4 * 2 + 4 * 3 + 2 * 3 + 2 requests, of which these are seconds and thirds.
    Case(
        name="retries",
        in_fast=True,
        items=11,
        requests=28,
        stats={
            "retry/count": 17,
            "retry/max_reached": 2,
            "retry/reason_count/too_short": 1,
        },
    ),
    # 1 first; 12 in chains; 2 to what is seen; 3 to one page; 1 off site; 4 of a loop;
    # 2 of a POST; 1 kept.
    Case(
        name="redirects",
        in_fast=True,
        items=9,
        requests=26,
        stats={"dupefilter/filtered": 3, "offsite/filtered": 1},
    ),
    # 3 ignored, 2 * 3 tries, 2 + 1 handled, 1 fine.
    Case(
        name="statuses",
        items=4,
        requests=13,
        stats={"httperror/response_ignored_count": 5, "retry/count": 4},
    ),
    # 1 + 3 tries that time out, 1 fine; 2 * 3 refused ones reach no site.
    Case(
        name="failures",
        items=5,
        requests=5,
        stats={"downloader/exception_count": 10, "retry/max_reached": 3},
    ),
    # A jar is a process's own, and so a kill loses it.
    Case(name="cookies", items=9, requests=13, killed=False),
    Case(name="forms", items=6, requests=7, stats={"dupefilter/filtered": 1}),
    # On each host one page, three that are forbidden, four that are not.
    Case(
        name="robots",
        in_fast=True,
        items=16,
        requests=10,
        stats={"robotstxt/forbidden": 6},
        apart=(
            "robotstxt/request_count",
            "robotstxt/response_count",
            "robotstxt/response_status_count/",
            *FETCHED_APART,
        ),
    ),
    Case(name="offsite", items=4, requests=4, stats={"offsite/filtered": 6}),
    # Depths 0 to 3 on each of four hosts.
    Case(
        name="depth",
        in_fast=True,
        items=16,
        requests=16,
        stats={
            **TOO_DEEP,
            "request_depth_max": 3,
            "request_depth_count/2": 4,
        },
    ),
    Case(
        name="dont_filter",
        in_fast=True,
        items=5,
        requests=5,
        stats={"dupefilter/filtered": 3},
    ),
    Case(name="selfish", items=2, requests=2, stats={"dupefilter/filtered": 1}),
    Case(name="priorities", items=14, requests=14, ordered=True),
    Case(name="fingerprint", items=5, requests=5, stats={"dupefilter/filtered": 8}),
    # The hub, the added page, four links; an item of the middleware for each but the
    # one that raises, which gives another, and of the callback for four.
    Case(name="edited", in_fast=True, items=10, requests=6),
    # The root of fifteen gives no item.
    Case(name="crawl_rules", items=14, requests=15),
    Case(
        name="sitemap",
        items=12,
        requests=28,
        stats={"httperror/response_ignored_count": 12},
    ),
    Case(name="xmlfeed", items=53, requests=5, stats={"dupefilter/filtered": 3}),
    Case(name="csvfeed", items=50, requests=2),
    Case(name="start_items", items=20, requests=10),
    Case(name="start_many", in_fast=True, items=400, requests=400),
    # One page, and three times four.
    Case(name="idle", in_fast=True, items=13, requests=13),
    Case(name="opened", in_fast=True, items=12, requests=12),
    Case(name="wide", in_fast=True, items=81, requests=81, shared=True),
    # Who dies with the class it made has nobody that can read what carries it.
    Case(
        name="one_sided",
        in_fast=True,
        items=81,
        requests=81,
        shared=True,
        killed=False,
    ),
)

# Where stock Scrapy is wrong these say so; dscrapy's side is right.
#
# - robots_burst: of requests that wait for one robots.txt, stock Scrapy 2.19 lets all
#   but the first two or so through, whatever it forbids.
# - burst: with asyncio, stock Scrapy 2.19 exceeds CONCURRENT_REQUESTS_PER_DOMAIN
#   whenever a transfer ends.
ROBOTS_BURST = Case(name="robots_burst", items=12, requests=0, in_fast=True)
BURST = Case(name="burst", items=30, requests=30, in_fast=True)
BURST_ALLOWED = 2


@attrs.frozen(kw_only=True)
class Closing:
    """A run that ends early, with what holds of it whoever runs it.

    ``counts`` is the key of the stats that the limit counts; the end comes at
    ``limit`` or after what was then under way. 0 is no bound. ``in_fast`` as above.
    """

    name: str
    spider: str
    reason: str
    settings: dict[str, str] = attrs.Factory(dict)
    arguments: dict[str, str] = attrs.Factory(dict)
    counts: str = ""
    limit: int = 0
    in_fast: bool = False


# Pages slow enough that what is told to all processes comes before the next page.
_SLOW = {"ms": "1500"}
# So slow that a span of seconds ends in mid-crawl, also on a busy machine.
_SLOWER = {"ms": "1500"}
CLOSINGS = (
    Closing(
        name="enough", spider="enough", reason="enough", arguments=_SLOW, in_fast=True
    ),
    Closing(
        name="itemcount",
        in_fast=True,
        spider="limits",
        reason="closespider_itemcount",
        settings={"CLOSESPIDER_ITEMCOUNT": "5"},
        arguments=_SLOW,
        counts="item_scraped_count",
        limit=5,
    ),
    Closing(
        name="pagecount",
        spider="limits",
        reason="closespider_pagecount",
        settings={"CLOSESPIDER_PAGECOUNT": "5"},
        arguments=_SLOW,
        counts="response_received_count",
        limit=5,
    ),
    Closing(
        name="pagecount_no_item",
        spider="limits",
        reason="closespider_pagecount_no_item",
        settings={"CLOSESPIDER_PAGECOUNT_NO_ITEM": "5"},
        arguments={"kind": "nothing", **_SLOW},
        counts="response_received_count",
        limit=5,
    ),
    Closing(
        name="errorcount",
        spider="limits",
        reason="closespider_errorcount",
        settings={"CLOSESPIDER_ERRORCOUNT": "3"},
        arguments={"kind": "errors", **_SLOW},
        counts="spider_exceptions/count",
        limit=3,
    ),
    Closing(
        name="timeout",
        spider="limits",
        reason="closespider_timeout",
        settings={"CLOSESPIDER_TIMEOUT": "3"},
        arguments=_SLOWER,
    ),
    Closing(
        name="timeout_no_item",
        spider="limits",
        reason="closespider_timeout_no_item",
        settings={"CLOSESPIDER_TIMEOUT_NO_ITEM": "3"},
        arguments={"kind": "nothing", **_SLOWER},
    ),
)
# Pages of a run of the closing spiders that nothing closes: the hub and its links.
CLOSING_ITEMS_MAX = 60
# What may be under way when a limit is reached: the project's CONCURRENT_REQUESTS in
# each process, and as much again that is started before it hears of it.
UNDER_WAY_MAX = 2 * 4


def stable(stats: dict[str, object], apart: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the stats that have to be equal, without those ``apart``."""
    return {
        key: value
        for key, value in stats.items()
        if (key.startswith(STABLE) or key in STABLE_WHOLE)
        and not (apart and key.startswith(apart))
    }
