"""How soon does a lost worker's job run elsewhere, and a frozen one's never too soon?

A worker runs a long job, a second one is free. The first is killed with SIGKILL
(the kernel closes its connection at once) or frozen with SIGSTOP together with its
crawl process (the connection stays open and silent). A client on a kept connection
looks at the master's status every few milliseconds; the site's log tells when the
new process has sent its first request.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from benchmarks.fleet import (
    LOOK_S,
    Fleet,
    crawl_pids,
    freeze,
    running_fleet,
    until,
)
from benchmarks.report import header, say, spread, table
from dscrapy.client import Client
from dscrapy.conf.config import MasterConfig
from dscrapy.control.clock import BEAT_S
from dscrapy.messages import Status
from dscrapy.net.host import boot_instant
from tests.e2e.crawl_harness import PROJECT, requests_in, running_site

# Answers this slow keep the job running for longer than anything here takes.
PAGE_MS = 500
PAGES = 1_000_000


@attrs.frozen(kw_only=True)
class Loss:
    """Seconds after the kill or freeze; ``silence_s`` the silence when reaped.

    The master's own count begins with the last frame it heard, up to a heartbeat
    before the freeze.
    """

    reaped_s: float
    silence_s: float
    elsewhere_s: float
    process_s: float
    request_s: float


def _worker_of(status: Status) -> str:
    return next((one.workers[0] for one in status.running if one.workers), "")


async def one_loss(
    fleet: Fleet,
    address: str,
    log: Path,
    strike: Callable[[subprocess.Popen[bytes]], None],
) -> Loss:
    """Start two workers and a job, strike the one that runs it, and watch."""
    await fleet.start_master()
    first = await fleet.start_worker("first", 1)
    words = ("-a", f"site={address}", "-a", f"count={PAGES}", "-a", f"ms={PAGE_MS}")
    fleet.begin("submit", "pages", "--project", str(PROJECT), *words).finish()
    second = await fleet.start_worker("second", 1)
    async with fleet.client() as client:

        async def is_crawling() -> bool:
            return any(job.pages for job in (await client.status()).running)

        await until(is_crawling)
        assert _worker_of(await client.status()) == "first"
        struck = boot_instant()
        strike(first)
        heard, reaped, elsewhere = await _watch(client)
    process = await until(lambda: _has_process(second))
    # The struck one asks for nothing any more: what comes now is the new one's.
    await until(lambda: _has_asked(log, process))
    return Loss(
        reaped_s=reaped - struck,
        silence_s=reaped - heard,
        elsewhere_s=elsewhere - struck,
        process_s=process - struck,
        request_s=_asked(log, process)[0] - struck,
    )


async def _watch(client: Client) -> tuple[float, float, float]:
    """Return when the first worker was last heard, was gone, and lost its job."""
    heard = reaped = 0.0
    while True:
        status = await client.status()
        now = boot_instant()
        found = [one for one in status.workers if one.name == "first"]
        if found:
            heard = now - found[0].last_heartbeat_s
        elif not reaped:
            reaped = now
        if _worker_of(status) == "second":
            assert reaped
            return heard, reaped, now
        await trio.sleep(LOOK_S)


def _asked(log: Path, after: float) -> list[float]:
    """Return when requests came, after an instant."""
    return [at for at, _ in requests_in(log) if at > after]


async def _has_process(worker: subprocess.Popen[bytes]) -> bool:
    return bool(crawl_pids(worker))


async def _has_asked(log: Path, after: float) -> bool:
    return bool(_asked(log, after))


def kill(worker: subprocess.Popen[bytes]) -> None:
    """SIGKILL the worker; its crawl process ends by itself."""
    worker.send_signal(signal.SIGKILL)


def freeze_all(worker: subprocess.Popen[bytes]) -> None:
    """SIGSTOP the worker and its crawl process."""
    freeze([worker.pid, *crawl_pids(worker)])


async def _round(
    master: str, strike: Callable[[subprocess.Popen[bytes]], None]
) -> Loss:
    with tempfile.TemporaryDirectory() as name, running_fleet(master) as fleet:
        log = Path(name) / "site.txt"
        with running_site(log) as address:
            return await one_loss(fleet, address, log, strike)


def _rows(losses: list[Loss], what: str) -> list[str]:
    return [
        what,
        spread([one.reaped_s for one in losses], "s", 2),
        spread([one.elsewhere_s for one in losses], "s", 2),
        spread([one.process_s for one in losses], "s", 2),
        spread([one.request_s for one in losses], "s", 2),
    ]


async def measure(kills: int, freezes: int, die_after_s: float) -> None:
    """Run the rounds and print."""
    default = MasterConfig()
    killed: list[Loss] = []
    frozen: list[Loss] = []
    short = f"die_after_s = {die_after_s}"
    for number in range(max(kills, freezes)):
        if number < kills:
            killed.append(await _round("", kill))
        if number < freezes:
            frozen.append(await _round(short, freeze_all))
    long = await _round("", freeze_all)
    grace = f"reconnect_grace_s = {default.reconnect_grace_s:g}"
    titles = ["what", "reaped", "assigned", "new process", "its first request"]
    rows = [_rows(killed, f"SIGKILL, {grace}")] if killed else []
    if frozen:
        rows.append(_rows(frozen, f"SIGSTOP, {short}"))
    rows.append(_rows([long], f"SIGSTOP, die_after_s = {default.die_after_s:g}"))
    table([f"{titles[0]}; seconds after it", *titles[1:]], rows)
    over = [(one, die_after_s) for one in frozen] + [(long, default.die_after_s)]
    table(
        ["frozen", "silence when reaped, by the master's clock", "beyond die_after_s"],
        [
            [f"{span:g} s", f"{one.silence_s:.3f} s", f"{one.silence_s - span:+.3f} s"]
            for one, span in over
        ],
    )
    # What is looked at every few milliseconds is seen late by as much, never early.
    assert all(one.silence_s >= span for one, span in over), "reaped too early"
    say(
        f"n = {len(killed)} killed, {len(frozen)} + 1 frozen; median (min-max); the "
        f"master looks every {BEAT_S:g} s, this script every {LOOK_S * 1000:g} ms"
    )
    say()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--freezes", type=int, default=3)
    parser.add_argument("--die-after", type=float, default=6.0)
    options = parser.parse_args()
    header("recovery", sys.argv[1:])
    trio.run(measure, options.kills, options.freezes, options.die_after)


if __name__ == "__main__":
    main()
