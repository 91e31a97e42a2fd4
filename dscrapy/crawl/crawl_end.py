"""How a crawl ends: noted while it closes, told with its last commits."""

from typing import Any

from scrapy import Spider

from dscrapy.crawl.codec.request_bodies import clean_text
from dscrapy.crawl.outcomes import TEXT_CHARS_MAX, Failed, describe, outcome_of
from dscrapy.errors import UnsupportedError
from dscrapy.model import PROCESS_REASONS, WORKER_DRAINS, Outcome

# What Scrapy calls it when its process is told to end. The spider, its log and its
# stats have that name; ours says that the job goes on.
_IN_SCRAPY = {WORKER_DRAINS: "shutdown"}


class CrawlEnd:
    """``stop_reason`` is why the master stops the process, None before it does;
    ``reason`` is what the spider has closed for, by the name that the master knows."""

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.reason = ""
        # What start() raised.
        self.start_error: BaseException | None = None

    @property
    def stop_in_scrapy(self) -> str:
        """What the spider is told why it is stopped."""
        assert self.stop_reason is not None
        return _IN_SCRAPY.get(self.stop_reason, self.stop_reason)

    @property
    def is_shutdown(self) -> bool:
        """Whether the process was told to end, as Scrapy's own may be."""
        return self.reason in _IN_SCRAPY

    @property
    def is_of_process(self) -> bool:
        """Whether the process closes and its job goes on."""
        return self.reason in PROCESS_REASONS

    def close_for(self, reason: Any) -> None:
        """Note what Scrapy says that the spider closes for."""
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
            # Their text says it all.
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
