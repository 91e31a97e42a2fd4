"""Runs a project's crawler in this process, from loading it to the exit code."""

import logging
import os
from collections.abc import Callable
from typing import NoReturn

from scrapy.crawler import Crawler

from dscrapy.crawl.outcomes import Failed, describe, outcome_of
from dscrapy.crawl.outgoing.early_end import report
from dscrapy.crawl.project_loader import Loaded, load
from dscrapy.crawl.scrapy_side.addon import Overlay, install_addon
from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import Run


def run_project(
    link: Link, run: Run, make: Callable[[Loaded], tuple[Crawler, Overlay]]
) -> int:
    """Run a crawler of the project to its end and return the process's exit code.

    ``make`` returns the crawler, and the overlay of its settings.
    """
    try:
        loaded = load(run.spec, run.local)
        crawler, overlay = make(loaded)
        install_addon(crawler, overlay)
        loaded.process.crawl(crawler, **loaded.arguments)
    except Failed as failed:
        return report(link, run, failed.outcome)
    except Exception as error:  # noqa: BLE001 - the project's classes are user code
        return report(link, run, outcome_of("spider_error", describe(error), error))
    loaded.process.start()
    # Not finished: somebody stopped the reactor under the crawl, which is a death.
    return 0 if overlay.is_finished else 1


def leave(*, is_over: bool) -> NoReturn:
    """End the process at once, since its link has ended; ``is_over`` if the last commit
    was sent."""
    logging.shutdown()
    # Nobody waits for this process: no clean-up of the project's may hold it up.
    os._exit(0 if is_over else 1)
