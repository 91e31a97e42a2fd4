"""When a job needs a process that writes its feeds.

A job needs one when its crawl is over, and before that when the committed items fill a
batch of one of its feeds (``batch_item_count``). An export process that runs when the
crawl ends writes the rest, too.
"""

from collections.abc import Callable

from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.jobs import Course, Job
from dscrapy.control.state.processes import Process
from dscrapy.control.state.verdict import verdict_of, wants_export
from dscrapy.model import FEEDS_WRITTEN, PROCESS_REASONS, Outcome

# After so many deaths of a job's export processes without a delivered batch, batches
# wait for the end of the crawl, where such a death is the job's failure.
BESIDE_DEATHS_MAX = 3


def is_over(job: Job, crawling: Callable[[str], list[Process]]) -> bool:
    """Whether the job's crawl is over and its feeds are to be written.

    ``crawling`` gives the processes of a job that crawl.
    """
    course = job.course
    if course is None or job.is_final or course.cancelling or course.role != "export":
        return False
    # Whether requests are set aside makes no difference to the files.
    verdict = verdict_of(course, {})
    if verdict is None or not wants_export(course, verdict.ending):
        return False
    processes = crawling(job.id)
    # A crawl process that waits for the feeds must end, also in a paused job.
    if job.paused and not processes:
        return False
    return all(process.is_through for process in processes)


def is_export_due(
    job: Job, crawl: Crawl | None, crawling: Callable[[str], list[Process]]
) -> bool:
    """Whether a process that writes feeds is to be started."""
    if job.exports or crawl is None:
        return False
    return is_over(job, crawling) or _is_batch_due(job, crawling)


def _is_batch_due(job: Job, crawling: Callable[[str], list[Process]]) -> bool:
    course = job.course
    if course is None or not course.has_feeds or not job.is_crawling:
        return False
    if course.export_deaths >= BESIDE_DEATHS_MAX:
        return False
    opened = (process.opened for process in crawling(job.id))
    first = next((message.batch_items for message in opened if message is not None), 0)
    if not first:
        return False
    return course.items >= min(
        (batch.full_at for batch in course.batches), default=first
    )


def note_end(course: Course, end: Outcome) -> None:
    """Note the end of an export process, as its last commit says it."""
    if course.closing:
        course.feeds_done |= not end.failure and end.finish_reason == FEEDS_WRITTEN
    elif end.failure or end.finish_reason not in PROCESS_REASONS:
        # The feeds cannot be written now, so no process tries again before the end.
        course.export_deaths = BESIDE_DEATHS_MAX
