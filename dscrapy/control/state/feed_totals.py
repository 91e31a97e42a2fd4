"""What a job has written of its project's feeds, as its export processes tell it.

A process says of each feed all that stands in files of it, whoever wrote them, so what
is told twice counts once. It learns of batches before it from the master.
"""

from msgspec import structs

from dscrapy.control import events as r
from dscrapy.control.state.jobs import Course
from dscrapy.model import FeedFiles

# Feeds of a job that are known. Settings may name others each time they are loaded (by
# the time, say); the latest stay.
FEEDS_KEPT_MAX = 100
# Characters of a feed's name and places together: longer than any path, URI or key can
# be; what is longer is not told of, since an answer has to hold all feeds.
FEED_CHARS_MAX = 16_384
# Workers that are named for one feed.
WRITERS_KEPT_MAX = 10


def note_written(record: r.Published, course: Course, worker: str) -> None:
    """Take what an export process on this worker tells."""
    before = [one.before for one in record.batches if one.before is not None]
    known = {one.feed: one for one in course.written}
    for one in (*before, *record.written):
        if len(one.feed) + len(one.first) + len(one.last) > FEED_CHARS_MAX:
            continue
        earlier = known.pop(one.feed, None)
        workers = () if earlier is None else earlier.workers
        if one in record.written and _count(one) == 1:
            # It takes the place of what was there.
            workers = ()
        is_more = earlier is None or _count(one) > _count(earlier)
        if (is_more or not workers) and worker not in workers:
            workers = (*workers, worker)[:WRITERS_KEPT_MAX]
        known[one.feed] = structs.replace(one, workers=workers)
    course.written = tuple(known.values())[-FEEDS_KEPT_MAX:]


def _count(one: FeedFiles) -> int:
    return one.files + one.failed
