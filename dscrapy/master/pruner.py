"""Removes ended jobs beyond the limits of ``keep_jobs``, ``keep_days``, ``keep_bytes``.

It runs at the master's start, when a job is over, and every minute, since jobs grow
older. The machine decides which jobs go; the lengths of logs come from the files.
"""

import trio

from dscrapy.control.decision import OnMeasured, OnPrune
from dscrapy.master.committer import NO_SESSION, Committer
from dscrapy.master.files import JobFiles

# Jobs reach ``keep_days``, or the end of the time they are spared, without any event.
LOOK_EVERY_S = 60.0
# Thousands of jobs may end at once; each look goes through all that are kept.
PAUSE_S = 1.0


async def prune(committer: Committer, files: JobFiles) -> None:
    """Run until cancelled, or not at all where everything is kept."""
    keep = committer.machine.policy.keep
    if keep.is_everything:
        return
    while True:
        # Get the event before looking, so that no end in between is missed.
        over = committer.jobs_over()
        if keep.bytes is not None:
            await measure(committer, files)
        await committer.submit(NO_SESSION, OnPrune())
        await trio.sleep(PAUSE_S)
        with trio.move_on_after(LOOK_EVERY_S):
            await over.wait()


async def measure(committer: Committer, files: JobFiles) -> None:
    """Tell the state how long the logs of jobs are that are over."""
    state = committer.machine.state
    jobs = [
        identity
        for identity in state.ended
        if identity not in state.log_bytes and state.jobs[identity].is_over
    ]
    if jobs:
        sizes = await files.log_sizes(jobs)
        await committer.submit(NO_SESSION, OnMeasured(sizes))
