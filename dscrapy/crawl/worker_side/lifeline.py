"""The end of this process with its worker, and signals that it ignores."""

import os
import signal
import threading
from types import FrameType


def watch_lifeline(fd: int) -> None:
    """Kill this process when the other end of the pipe is closed: the worker has died.

    A thread watches, since user code may block the event loop for ever.
    (Linux's death signal would be sent when the worker's *thread* ends.)
    """
    thread = threading.Thread(
        target=_die_at_end, args=(fd,), name="lifeline", daemon=True
    )
    thread.start()


def ignore_signals() -> None:
    """Let SIGTERM and SIGINT pass: the worker decides when this process stops.

    With a handler, not SIG_IGN, which programs that the project starts inherit.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _do_nothing)


def _die_at_end(fd: int) -> None:
    while os.read(fd, 1):
        # Nobody writes to the pipe; a byte would not be its end.
        continue
    pid = os.getpid()
    if os.getpgrp() == pid:
        # Programs that the project has started (browsers) belong to the same group.
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    return
