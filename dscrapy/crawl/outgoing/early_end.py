"""The end of a process whose crawl or export never began; Scrapy is not imported."""

import sys
import time

from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import Alive, Commit, Commits, Done, Probe, Run
from dscrapy.model import Outcome


def report(link: Link, run: Run, outcome: Outcome) -> int:
    """Log and commit a failure, wait for the answer, and return the exit code."""
    sys.stderr.write(failure_log(outcome))
    sys.stderr.flush()
    commit = Commit(unit=1, kind="closed", end=outcome)
    link.send(Commits(job=run.job, process=run.process, commits=(commit,)))
    while True:
        match link.receive():
            case None | Done():
                return 0
            case Probe(number=number):
                link.send(Alive(number=number))
            case _:
                # Answers, stops and spans for a crawl that did not begin.
                continue


def failure_log(outcome: Outcome) -> str:
    """Return a failure as Scrapy would log it, for when there is no log yet."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    return (
        f"{stamp} [dscrapy] ERROR: The crawl failed: {outcome.text}\n"
        f"{outcome.traceback}"
    )
