"""Entry of the crawl process: descriptors, signals, the first message."""

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dscrapy.crawl.insides.versions import check_version
from dscrapy.crawl.outgoing.early_end import report
from dscrapy.crawl.worker_side.in_flight_table import InFlightTable
from dscrapy.crawl.worker_side.lifeline import ignore_signals, watch_lifeline
from dscrapy.crawl.worker_side.stdin import give_empty_stdin, take_stdin
from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.errors import RemoteProtocolError, UnsupportedError
from dscrapy.messages import Local, Run
from dscrapy.model import Outcome


def main(argv: list[str]) -> int:
    """Run the job that the link's first message names; return the exit code."""
    link_fd, lifeline_fd, marks_fd = map(int, argv)
    for fd in (link_fd, lifeline_fd, marks_fd):
        os.set_inheritable(fd, False)
    watch_lifeline(lifeline_fd)
    ignore_signals()
    # The worker asks for the stacks of a process that has gone silent.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    link = Link(socket.socket(fileno=link_fd))
    try:
        run = link.receive()
    except (RemoteProtocolError, ConnectionError) as error:
        sys.stderr.write(f"The link to the worker is broken: {error}\n")
        return 1
    if not isinstance(run, Run):
        sys.stderr.write("The worker asked for no run\n")
        return 1
    local = run.local or Local(settings={})
    marks = InFlightTable(marks_fd)
    # Before any module of the project is imported, since the import may read stdin.
    if local.stdin:
        take_stdin(local.stdin, local.stdin_at, marks.await_stdin)
    elif run.no_stdin:
        give_empty_stdin(run.no_stdin)
    try:
        check_version()
    except UnsupportedError as error:
        outcome = Outcome(failure="unsupported", text=str(error))
        return report(link, run, outcome)
    with profiled(local.profile):
        # Scrapy takes a second to import; the lifeline is watched meanwhile. An export
        # loads exporters that a crawl does not need.
        if run.role == "export":
            from dscrapy.crawl.export.export_process import run_export

            return run_export(link, run)
        from dscrapy.crawl.run import run_job

        return run_job(link, run, marks)


@contextmanager
def profiled(path: bytes) -> Iterator[None]:
    """Write cProfile's stats of the block to this file, if there is one."""
    if not path:
        yield
        return
    # Imported here: a process that is not profiled does without it.
    import cProfile

    profile = cProfile.Profile()
    try:
        with profile:
            yield
    finally:
        profile.dump_stats(os.fsdecode(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
