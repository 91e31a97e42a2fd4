"""Lets ended jobs go that are beyond what is to be kept.

It looks at the start, when a job is over, and now and then, since they grow older. What
goes, the machine decides; how long logs are, the files alone can tell.
"""

import trio

from dscrapy.control.decision import OnMeasured, OnPrune
from dscrapy.master.committer import NO_SESSION, Committer
from dscrapy.master.files import JobFiles

# Jobs grow old, and out of being spared, by the minute.
LOOK_EVERY_S = 60.0
# Thousands of jobs may end at once; each look goes through all that are kept.
PAUSE_S = 1.0


async def prune(committer: Committer, files: JobFiles) -> None:
    """Run until cancelled, or not at all where everything is kept."""
    keep = committer.machine.policy.keep
    if keep.is_everything:
        return
    while True:
        # Asked for before looking: what ends meanwhile is not missed.
        over = committer.jobs_over()
        if keep.bytes is not None:
            await measure(committer, files)
        await committer.submit(NO_SESSION, OnPrune())
        await trio.sleep(PAUSE_S)
        with trio.move_on_after(LOOK_EVERY_S):
            await over.wait()


async def measure(committer: Committer, files: JobFiles) -> None:
    """Let the state know how long the logs are of jobs that are over."""
    state = committer.machine.state
    jobs = [
        identity
        for identity in state.ended
        if identity not in state.log_bytes and state.jobs[identity].is_over
    ]
    if jobs:
        sizes = await files.log_sizes(jobs)
        await committer.submit(NO_SESSION, OnMeasured(sizes))
