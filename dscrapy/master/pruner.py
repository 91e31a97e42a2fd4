"""Lets ended jobs go that are beyond what is to be kept.

It looks at the start, when a job is over, and now and then, since they grow older. How
long their logs are, it alone can tell; what goes, the machine decides.
"""

from functools import partial

import trio

from dscrapy.frontier.decision import OnMeasured, OnPrune
from dscrapy.master.committer import NO_SESSION, Committer
from dscrapy.master.files import JobFiles
from dscrapy.net.threads import InThread

# Jobs grow old, and out of being spared, by the minute.
LOOK_EVERY_S = 60.0
# Thousands of jobs may end at once; each look goes through all that are kept.
PAUSE_S = 1.0


async def prune(
    committer: Committer,
    files: JobFiles,
    *,
    in_thread: InThread = trio.to_thread.run_sync,
) -> None:
    """Run until cancelled."""
    while True:
        # Asked for before looking: what ends meanwhile is not missed.
        over = committer.jobs_over()
        await _look(committer, files, in_thread)
        await trio.sleep(PAUSE_S)
        with trio.move_on_after(LOOK_EVERY_S):
            await over.wait()


async def _look(committer: Committer, files: JobFiles, in_thread: InThread) -> None:
    state = committer.machine.state
    jobs = [
        identity
        for identity in state.ended
        if identity not in state.log_bytes and state.jobs[identity].is_over
    ]
    if jobs:
        # What was said of them is written.
        await files.caught_up()
        sizes = await in_thread(partial(files.log_sizes, jobs))
        await committer.submit(NO_SESSION, OnMeasured(sizes))
    if not committer.machine.keep.is_everything:
        await committer.submit(NO_SESSION, OnPrune())
