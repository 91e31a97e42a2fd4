"""Entry of the crawl process: descriptors, signals, the first message."""

import faulthandler
import os
import signal
import socket
import sys

from dscrapy.crawl.link import Link
from dscrapy.crawl.marks import Marks
from dscrapy.crawl.process import ignore_signals, watch_lifeline
from dscrapy.errors import RemoteProtocolError
from dscrapy.messages import Run


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
    # Scrapy takes a second to import; the lifeline is watched meanwhile.
    from dscrapy.crawl.run import run_job

    return run_job(link, run, Marks(marks_fd))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
