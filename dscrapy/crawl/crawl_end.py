"""How a crawl ends: noted while it closes, sent with its last commits."""

from typing import Any

from scrapy import Spider

from dscrapy.crawl.codec.request_bodies import clean_text
from dscrapy.crawl.outcomes import TEXT_CHARS_MAX, Failed, describe, outcome_of
from dscrapy.errors import UnsupportedError
from dscrapy.model import PROCESS_REASONS, WORKER_DRAINS, Outcome

# Our reason for a close -> Scrapy's, which the spider, its log and its stats have. Ours
# says that the job goes on.
_IN_SCRAPY = {WORKER_DRAINS: "shutdown"}


class CrawlEnd:
    """The end of one crawl.

    ``stop_reason`` is why the master stops the process, None before it does; ``reason``
    is why the spider has closed, by the name that the master knows.
    """

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.reason = ""
        # The error that start() raised.
        self.start_error: BaseException | None = None

    @property
    def stop_in_scrapy(self) -> str:
        """The reason for the stop that the spider sees."""
        assert self.stop_reason is not None
        return _IN_SCRAPY.get(self.stop_reason, self.stop_reason)

    @property
    def is_shutdown(self) -> bool:
        """Whether the process ends as a plain Scrapy does at a signal."""
        return self.reason in _IN_SCRAPY

    @property
    def is_of_process(self) -> bool:
        """Whether the process closes and its job goes on."""
        return self.reason in PROCESS_REASONS

    def close_for(self, reason: Any) -> None:
        """Note the reason for which the spider closes, as Scrapy names it."""
        self.reason = reason_text(reason)
        if self.stop_reason and self.stop_in_scrapy == self.reason:
            self.reason = self.stop_reason

    def outcome(self) -> Outcome:
        """Return the end of a crawl that Scrapy brought to an end."""
        if self.reason != "start_error":
            return Outcome(finish_reason=self.reason)
        error = self.start_error
        text = "start() raised "
        text += "an error" if error is None else describe(error)
        return outcome_of("start_error", text, error, self.reason)

    def failure(
        self, error: BaseException, spider: Spider | None, *, is_opening: bool
    ) -> Outcome:
        """Return the end of a crawl that Scrapy itself gave up with this error.

        ``spider`` is None if it could not be made; ``is_opening`` if pipelines were
        opening.
        """
        code = _failure_code(error, spider, is_opening=is_opening)
        if isinstance(error, Failed | UnsupportedError):
            # The text of these errors is complete.
            return outcome_of(code, str(error), error.__cause__, self.reason)
        return outcome_of(code, describe(error), error, self.reason)


def reason_text(reason: Any) -> str:
    """Return a reason to close, which the project may give as anything, as text."""
    return clean_text(str(reason))[:TEXT_CHARS_MAX]


def _failure_code(
    error: BaseException, spider: Spider | None, *, is_opening: bool
) -> str:
    match error:
        case Failed():
            return error.outcome.failure
        case UnsupportedError():
            return "unsupported"
        case _ if is_opening:
            return "open_error"
        case ImportError() | SyntaxError():
            return "import_error"
    # There is no spider: its __init__ or from_crawler raised.
    return "bad_arguments" if spider is None else "spider_error"
