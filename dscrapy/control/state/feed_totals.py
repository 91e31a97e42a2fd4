"""What a job has written of its project's feeds, as its export processes report it.

A process reports all that stands in files of a feed, also those that earlier processes
wrote, so what is reported twice counts once. It learns of earlier batches from the
master.
"""

from msgspec import structs

from dscrapy.control import events as r
from dscrapy.control.state.jobs import Course
from dscrapy.model import FeedFiles

# Feeds of a job that are kept, the latest. Settings may name other feeds each time they
# are loaded (by the time, say).
FEEDS_KEPT_MAX = 100
# Characters of a feed's name and places together: longer than any path, URI or key can
# be. A feed with a longer text is left out, since one answer has to hold all feeds.
FEED_CHARS_MAX = 16_384
# Workers that are named for one feed at most.
WRITERS_KEPT_MAX = 10


def note_written(record: r.Published, course: Course, worker: str) -> None:
    """Note what an export process on this worker reports."""
    before = [batch.before for batch in record.batches if batch.before is not None]
    by_name = {feed.feed: feed for feed in course.written}
    for feed in (*before, *record.written):
        if len(feed.feed) + len(feed.first) + len(feed.last) > FEED_CHARS_MAX:
            continue
        earlier = by_name.pop(feed.feed, None)
        workers = () if earlier is None else earlier.workers
        if feed in record.written and _count(feed) == 1:
            # The first file takes the place of what was there.
            workers = ()
        has_grown = earlier is None or _count(feed) > _count(earlier)
        if (has_grown or not workers) and worker not in workers:
            workers = (*workers, worker)[:WRITERS_KEPT_MAX]
        by_name[feed.feed] = structs.replace(feed, workers=workers)
    course.written = tuple(by_name.values())[-FEEDS_KEPT_MAX:]


def _count(feed: FeedFiles) -> int:
    return feed.files + feed.failed
