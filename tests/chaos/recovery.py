"""How soon what a lost worker had runs elsewhere; ``benchmarks.recovery`` has more."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.fleet import running_fleet
from benchmarks.recovery import Loss, freeze_all, kill, one_loss
from tests.chaos.table import Wrong
from tests.e2e.crawl_harness import running_site

DIE_AFTER_S = 6.0
GRACE_S = 2.0
CONF = f"die_after_s = {DIE_AFTER_S}\nreconnect_grace_s = {GRACE_S}\nheartbeat_s = 0.5"
# Beyond the span itself, until the job has a process at another worker.
SLACK_S = 1.0
ROUNDS = 2


async def how_soon(folder: Path, seed: int, minutes: float) -> str:
    """Kill a worker, freeze another, and see when their job is elsewhere."""
    del seed, minutes
    killed = [await _round(folder, f"k{n}", kill) for n in range(ROUNDS)]
    frozen = [await _round(folder, f"f{n}", freeze_all) for n in range(ROUNDS)]
    for losses, span_s in ((killed, GRACE_S), (frozen, DIE_AFTER_S)):
        for loss in losses:
            if loss.elsewhere_s > span_s + SLACK_S:
                raise Wrong(f"{loss.elsewhere_s:.2f} s, the span is {span_s:g} s")
    return (
        f"SIGKILL, reconnect_grace_s = {GRACE_S:g}: assigned elsewhere after "
        f"{_spread(killed)}; SIGSTOP, die_after_s = {DIE_AFTER_S:g}: after "
        f"{_spread(frozen)}"
    )


def _spread(losses: list[Loss]) -> str:
    return ", ".join(f"{one.elsewhere_s:.2f} s" for one in losses)


async def _round(
    folder: Path, name: str, strike: Callable[[subprocess.Popen[bytes]], None]
) -> Loss:
    log = folder / f"site-{name}.txt"
    with running_fleet(CONF) as fleet, running_site(log) as address:
        return await one_loss(fleet, address, log, strike)
