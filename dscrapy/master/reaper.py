"""Beats the run clock, and wakes the committer when a deadline has passed.

Silent or lost workers and schedules have deadlines. The machine decides what to do
about them, after all commands that were received before.
"""

import trio

from dscrapy.control.clock import BEAT_S
from dscrapy.control.decision import OnTick
from dscrapy.master.committer import NO_SESSION, Committer


async def reap(committer: Committer) -> None:
    """Run until cancelled."""
    while True:
        await trio.sleep(BEAT_S)
        if committer.next_deadline_s(committer.now()) == 0:
            await committer.submit(NO_SESSION, OnTick())
