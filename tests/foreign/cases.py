"""Which of Scrapy's test spiders run, with what, and which differences are known.

The arguments and settings are those of Scrapy's own tests (``test_crawl.py``); where
the server would draw links by chance it is asked for an order, since two runs are
compared.
"""

import attrs

ORDERED = {"total": "10", "show": "20", "order": "desc"}
SLOW = {"total": "40", "show": "40", "maxlatency": "3"}
NARROW = {"CONCURRENT_REQUESTS_PER_DOMAIN": "2"}
START_RAISED = "a job whose start() raised has failed: exit code 1, plain ends with 0"
OK = "/status?n=200"


@attrs.frozen(kw_only=True)
class Case:
    """A spider with its arguments and settings.

    ``differs`` names what may differ with three processes, and why; "" where nothing
    may. ``code`` is the exit code where it is not plain Scrapy's, ``why`` says why.
    """

    name: str
    spider: str
    arguments: dict[str, str] = attrs.field(factory=dict)
    settings: dict[str, str] = attrs.field(factory=dict)
    differs: str = ""
    code: int | None = None
    why: str = ""


def _case(name: str, spider: str = "", differs: str = "", **arguments: str) -> Case:
    return Case(name=name, spider=spider or name, arguments=arguments, differs=differs)


CASES: tuple[Case, ...] = (
    _case("FollowAllSpider", **ORDERED),
    # Slow enough for other processes to get their share.
    Case(
        name="FollowAllSpider, slow",
        spider="FollowAllSpider",
        arguments=ORDERED | SLOW,
        settings=NARROW,
    ),
    _case("ItemSpider", **ORDERED),
    Case(
        name="ItemSpider, slow",
        spider="ItemSpider",
        arguments=ORDERED | SLOW,
        settings=NARROW,
    ),
    _case("ErrorSpider", **ORDERED),
    _case(
        "MaxItemsAndRequestsSpider",
        differs="it counts in attributes of the spider, and each process has its own",
        **ORDERED,
        max_items="4",
        max_requests="5",
    ),
    Case(
        name="FollowAllSpider, delay",
        spider="FollowAllSpider",
        arguments=ORDERED,
        settings={"DOWNLOAD_DELAY": "0.1", "DOWNLOAD_DELAY_JITTER": "0"},
    ),
    _case("DelaySpider", n="0.5"),
    Case(
        name="DelaySpider, timeout",
        spider="DelaySpider",
        arguments={"n": "5"},
        settings={"DOWNLOAD_TIMEOUT": "0.35"},
    ),
    Case(
        name="DelaySpider, timeout after headers",
        spider="DelaySpider",
        arguments={"n": "5", "b": "1"},
        settings={"DOWNLOAD_TIMEOUT": "0.35"},
    ),
    _case("SlowSpider", n="0.5"),
    _case("SimpleSpider", url=OK),
    _case("SimpleSpider, 503", "SimpleSpider", url="/status?n=503"),
    _case("SimpleSpider, no server", "SimpleSpider", url="http://127.0.0.1:1/"),
    _case("SimpleSpider, no such host", "SimpleSpider", url="http://no.such.invalid./"),
    _case("SimpleSpider, dropped", "SimpleSpider", url="/drop?abort=0"),
    _case("SimpleSpider, aborted", "SimpleSpider", url="/drop?abort=1"),
    Case(
        name="SimpleSpider, partial",
        spider="SimpleSpider",
        arguments={"url": "/partial"},
        settings={"DOWNLOAD_TIMEOUT": "1"},
    ),
    _case("SimpleSpider, redirected", "SimpleSpider", url="/redirect"),
    _case("SimpleSpider, bad header", "SimpleSpider", url="/bad-header"),
    _case("SimpleSpider, broken chunks", "SimpleSpider", url="/broken-chunked"),
    _case("SimpleSpider, not HTTP", "SimpleSpider", url="/raw?raw=not+HTTP"),
    _case("LogSpider"),
    _case("AsyncDefSpider", url=OK),
    _case("AsyncDefAsyncioSpider", url=OK),
    _case("AsyncDefAsyncioReturnSpider", url=OK),
    _case("AsyncDefAsyncioReturnSingleElementSpider", url=OK),
    _case("AsyncDefAsyncioReqsReturnSpider", url=OK),
    _case("AsyncDefAsyncioGenExcSpider", url=OK),
    _case("AsyncDefDeferredDirectSpider", url=OK),
    _case("AsyncDefDeferredWrappedSpider", url=OK),
    _case("AsyncDefDeferredMaybeWrappedSpider", url=OK),
    _case("AsyncDefAsyncioGenSpider", url=OK),
    _case("AsyncDefAsyncioGenLoopSpider", url=OK),
    _case("AsyncDefAsyncioGenComplexSpider"),
    _case("BrokenStartSpider", **ORDERED),
    Case(
        name="BrokenStartSpider, at once",
        spider="BrokenStartSpider",
        arguments={"fail_before_yield": "1"},
        code=1,
        why=START_RAISED,
    ),
    Case(
        name="BrokenStartSpider, yielding",
        spider="BrokenStartSpider",
        arguments={"fail_yielding": "1"},
        code=1,
        why=START_RAISED,
    ),
    _case("StartItemSpider"),
    _case("StartGoodAndBadOutput"),
    _case("SingleRequestSpider", seed=OK),
    _case("SingleRequestSpider, 404", "SingleRequestSpider", seed="/status?n=404"),
    _case("SingleRequestSpider, dropped", "SingleRequestSpider", seed="/drop?abort=1"),
    Case(
        name="DuplicateStartSpider",
        spider="DuplicateStartSpider",
        settings={"CONCURRENT_REQUESTS": "1"},
    ),
    Case(
        name="DuplicateStartSpider, filtered",
        spider="DuplicateStartSpider",
        arguments={"dont_filter": "0", "distinct_urls": "3", "dupe_factor": "4"},
        settings={"CONCURRENT_REQUESTS": "1"},
    ),
    _case("CrawlSpiderWithParseMethod"),
    _case("CrawlSpiderWithAsyncCallback"),
    _case("CrawlSpiderWithAsyncGeneratorCallback"),
    _case("CrawlSpiderWithErrback"),
    _case("CrawlSpiderWithoutErrback"),
    _case("CrawlSpiderWithProcessRequestCallbackKeywordArguments"),
    _case("BytesReceivedCallbackSpider"),
    _case("BytesReceivedErrbackSpider"),
    _case("HeadersReceivedCallbackSpider"),
    _case("HeadersReceivedErrbackSpider"),
    _case(
        "HeadersReceivedCallbackSpider, https",
        "HeadersReceivedCallbackSpider",
        is_secure="1",
    ),
    _case("ExceptionSpider"),
    _case("NoRequestsSpider"),
)

# Bases of the others, that crawl nothing by themselves.
NOT_RUN = frozenset({"MockServerSpider", "RawResponseSpider", "MetaSpider"})
