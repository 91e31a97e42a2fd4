"""Every way in which a process, and a job with it, can end: one table.

Plain data. ``control.state.verdict`` chooses a job's row; docs/reliability.md shows the
same rows, and a test compares them.
"""

from typing import Literal, NamedTuple

from dscrapy.model import Outcome

# What becomes of the project's FEEDS: ``written`` as plain Scrapy writes them;
# ``failed``: older files stay as they are, and the items go to NAME.failed;
# ``kept``: nothing is written. Files of -o and -O are written or go to NAME.failed by
# ``came_to_end``: the person who asked for them waits, and may have the items.
Files = Literal["written", "failed", "kept"]


class Ending(NamedTuple):
    """A row. ``state`` is the job's, empty where the job goes on.

    ``retry_helps``: an automatic retry, if one is left, comes before this end.
    ``came_to_end``: the crawl did its work, whatever else went wrong.
    """

    code: str
    meaning: str
    state: Literal["", "succeeded", "failed", "cancelled"] = ""
    retry_helps: bool = False
    came_to_end: bool = False
    files: Files = "kept"


def _failed(code: str, meaning: str, *, retry_helps: bool) -> Ending:
    """Return a row of a crawl that did not do its work."""
    return Ending(code, meaning, "failed", retry_helps=retry_helps, files="failed")


_ROWS = (
    # The job ends, its crawl has come to its end.
    Ending(
        "closed",
        "the spider closes: `finished`, `CloseSpider`, `CLOSESPIDER_*`; errors in "
        "callbacks, `close_spider` and `spider_closed` are logged and counted",
        "succeeded",
        came_to_end=True,
        files="written",
    ),
    Ending(
        "start_error",
        "`start()` raised; what it gave before is done",
        "failed",
        retry_helps=True,
        came_to_end=True,
        files="written",
    ),
    Ending(
        "set_aside",
        "requests that kill their process are set aside; the rest is done",
        "failed",
        came_to_end=True,
        files="written",
    ),
    Ending(
        "feeds_error",
        "the crawl is done, the project's `FEEDS` cannot be written",
        "failed",
        retry_helps=True,
        came_to_end=True,
    ),
    Ending(
        "end_error",
        "all is done, but what is called once in a job (a report, a mail): processes "
        "died of it `start_deaths_max` times",
        "failed",
        retry_helps=True,
        came_to_end=True,
        files="written",
    ),
    # The job ends, its crawl has not done its work.
    _failed("unknown_project", "no worker has the project", retry_helps=False),
    _failed("unknown_spider", "the project has no such spider", retry_helps=False),
    _failed("bad_arguments", "the spider does not take them", retry_helps=False),
    _failed(
        "unsupported", "the project asks for what cannot be had here", retry_helps=False
    ),
    _failed("import_error", "the project cannot be loaded", retry_helps=True),
    _failed(
        "open_error",
        "the spider cannot be opened: a pipeline's `open_spider` raised",
        retry_helps=True,
    ),
    _failed(
        "spider_error",
        "a component cannot be made, or Scrapy gave up the crawl",
        retry_helps=True,
    ),
    _failed(
        "died",
        "processes died `start_deaths_max` times by their own doing, without a commit "
        "in between",
        retry_helps=True,
    ),
    _failed("poisoned", "three requests in a row are set aside", retry_helps=False),
    Ending("internal_error", "a bug of the master's, met three times", "failed"),
    Ending("cancelled", "somebody cancelled it", "cancelled"),
    # A process ends, the job goes on.
    Ending("dscrapy_job_pauses", "the job is paused"),
    Ending("dscrapy_worker_drains", "its worker drains"),
    Ending("dscrapy_process_idles", "it found nothing to do beside the others"),
    Ending("dscrapy_slot_needed", "another job needs its slot, or `-p` was lowered"),
    Ending(
        "unfit",
        "it did not open, and another process did or another worker may have what is "
        "missing; its worker's code differs: that worker gets no more of the job",
    ),
    Ending("lost", "killed from outside, or its worker was lost"),
    Ending(
        "crashed",
        "it died by its own doing: the pages under way are blamed; a death without any "
        "counts for `died`",
    ),
)

ENDINGS = {row.code: row for row in _ROWS}
assert len(ENDINGS) == len(_ROWS)

# Failures that a process or a worker may report of a job: code -> whether the job's
# retries may help.
FAILURES = {
    row.code: row.retry_helps
    for row in _ROWS
    if row.state == "failed"
    and row.code not in ("set_aside", "feeds_error", "end_error", "internal_error")
}


def came_to_end(failure: Outcome | None) -> bool:
    """Whether a crawl that closes with this failure has done its work all the same."""
    if failure is None:
        return True
    return failure.failure in ENDINGS and ENDINGS[failure.failure].came_to_end
