"""How a job ends: decided from its course, once all of its processes have closed.

What counts is, in this order: that the job was cancelled, a failure that belongs to it,
the reason for which its spider closed. Of two failures, or of two reasons to close, the
first one counts.
"""

import attrs

from dscrapy.control.state.jobs import Course
from dscrapy.endings import ENDINGS, FAILURES, Ending
from dscrapy.frontier.quarantine import Poisoned


@attrs.frozen
class Verdict:
    """A row of the table, with the reason and the traceback that people see."""

    ending: Ending
    reason: str
    traceback: str = ""


CANCELLED = Verdict(ENDINGS["cancelled"], "cancelled")


def verdict_of(course: Course, poisoned: dict[int, Poisoned]) -> Verdict | None:
    """Return how the job ends, None if it goes on with another process."""
    if course.cancelling:
        return CANCELLED
    failure = course.failure
    if failure is not None:
        # An unknown code can only come from a process of another version.
        code = failure.failure if failure.failure in FAILURES else "unsupported"
        return Verdict(ENDINGS[code], failure.text, failure.traceback)
    if not course.closing:
        return None
    failure = course.feeds_failure
    if failure is not None:
        return Verdict(ENDINGS["feeds_error"], failure.text, failure.traceback)
    failure = course.end_failure
    if failure is not None:
        return Verdict(ENDINGS["end_error"], failure.text, failure.traceback)
    if poisoned:
        return Verdict(ENDINGS["set_aside"], _poisoned_text(poisoned))
    return Verdict(ENDINGS["closed"], course.closing)


def wants_export(course: Course, ending: Ending) -> bool:
    """Whether the project's feeds are to be written before the job ends so."""
    if course.feeds_done or ending.files == "kept":
        return False
    return ending.files == "written" or course.items > 0


def _poisoned_text(poisoned: dict[int, Poisoned]) -> str:
    request, first = next(iter(poisoned.items()))
    summary = "1 request is poisoned" if len(poisoned) == 1 else "requests are poisoned"
    if len(poisoned) > 1:
        summary = f"{len(poisoned)} {summary}, the first"
    url = first.url or f"request {request}"
    return f"{summary}: {url} ({first.text}); the rest is done"
