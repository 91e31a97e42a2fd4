"""Failures of a project, as outcomes: a code, one line, a traceback.

Codes are those of ``endings.FAILURES``.
"""

from dscrapy.crawl.traces import user_trace
from dscrapy.model import Outcome

# A failure is one line in ``status`` and a traceback in ``show``.
TEXT_CHARS_MAX = 500
TRACEBACK_BYTES_MAX = 64 * 1024


class Failed(Exception):
    """The job cannot run; ``outcome`` says why."""

    def __init__(
        self, failure: str, text: str, cause: BaseException | None = None
    ) -> None:
        super().__init__(text)
        self.outcome = outcome_of(failure, text, cause)


def outcome_of(
    failure: str, text: str, cause: BaseException | None = None, finish_reason: str = ""
) -> Outcome:
    """Return a failure with a bounded text and the cause's traceback."""
    trace = ""
    if cause is not None:
        trace = user_trace(cause)
        data = trace.encode(errors="backslashreplace")
        # People look at the end: the innermost frame and the error.
        trace = data[-TRACEBACK_BYTES_MAX:].decode(errors="replace")
    line = " ".join(text.split()).encode(errors="backslashreplace").decode()
    return Outcome(
        finish_reason=finish_reason,
        failure=failure,
        text=line[:TEXT_CHARS_MAX],
        traceback=trace,
    )


def describe(error: BaseException) -> str:
    """Return the error's type and message."""
    return f"{type(error).__name__}: {error}"
