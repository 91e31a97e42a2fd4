"""Commands about master and workers: ``status``, ``workers``, ``drain``."""

import sys
import time
from argparse import Namespace

import trio

from dscrapy.cli.connect import (
    at,
    client_config,
    for_each,
    make_client,
    run_client,
)
from dscrapy.cli.terminal.render import (
    dump,
    status_blocks,
    status_json,
    worker_json,
    workers_table,
)
from dscrapy.cli.terminal.screen import (
    Block,
    decorated,
    is_decorated,
    make_console,
    plain,
    print_blocks,
    write_line,
)
from dscrapy.client import Client
from dscrapy.messages import Status
from dscrapy.model import JobView

# How often --watch asks.
WATCH_S = 1.0
# Waiting jobs that a screen has room for, beside the running ones.
WAITING_MAX = 10
# Rates settle over this span; shorter ones jump with every page.
RATE_SPAN_S = 5.0


def status(options: Namespace) -> int:
    """Show what there is and what goes on."""
    config = client_config(options)
    if options.at is not None:
        config = at(config, options.at)

    async def converse() -> None:
        async with make_client(config, patient=options.watch) as client:
            if options.watch:
                await _watch(client)
            elif options.json:
                await _print_json(client)
            else:
                print_blocks(await _look(client, RateMeter()))

    trio.run(converse)
    return 0


async def _print_json(client: Client) -> None:
    answer = await client.status()
    # A worker knows the jobs that it runs, no others.
    jobs = answer.running if answer.role == "worker" else await client.jobs()
    write_line(dump(status_json(answer, jobs)))


async def _watch(client: Client) -> None:
    meter = RateMeter()
    if not is_decorated(sys.stdout):
        while True:
            write_line(f"{plain(await _look(client, meter))}\n")
            await trio.sleep(WATCH_S)
    from rich.live import Live

    # Redrawn by us alone: rich's own thread would race with trio's signals.
    with Live(
        console=make_console(sys.stdout), auto_refresh=False, screen=False
    ) as live:
        while True:
            live.update(decorated(await _look(client, meter)), refresh=True)
            await trio.sleep(WATCH_S)


async def _look(client: Client, meter: "RateMeter") -> list[Block]:
    answer = await client.status()
    meter.see(answer, trio.current_time())
    waiting = await _waiting(client, answer)
    return status_blocks(answer, meter.rates(), time.time(), waiting)


async def _waiting(client: Client, answer: Status) -> list[JobView]:
    """Return the first jobs that wait, which a worker does not know of."""
    states = tuple(state for state in ("ready", "paused") if answer.jobs.get(state))
    if answer.role == "worker" or not states:
        return []
    return await client.jobs(states, limit=WAITING_MAX)


class RateMeter:
    """Pages a second by job id, over the last few sights of a status."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, int]]] = {}

    def see(self, answer: Status, now: float) -> None:
        """Take a status seen at ``now`` (monotonic seconds)."""
        seen: dict[str, list[tuple[float, int]]] = {}
        for job in answer.running:
            sights = [*self._seen.get(job.id, []), (now, job.pages)]
            if len(sights) > 1 and sights[-1][1] < sights[-2][1]:
                # The job runs again from the start.
                sights = sights[-1:]
            while len(sights) > 2 and now - sights[1][0] >= RATE_SPAN_S:
                del sights[0]
            seen[job.id] = sights
        self._seen = seen

    def rates(self) -> dict[str, float]:
        """Return the rates of jobs that were seen at least twice."""
        return {
            job: (sights[-1][1] - sights[0][1]) / (sights[-1][0] - sights[0][0])
            for job, sights in self._seen.items()
            if sights[-1][0] > sights[0][0]
        }


def workers(options: Namespace) -> int:
    """List the workers."""
    answer = run_client(options, Client.status)
    if options.json:
        write_line(dump([worker_json(worker) for worker in answer.workers]))
    else:
        print_blocks([workers_table(answer.workers)])
    return 0


def drain(options: Namespace) -> int:
    """Let workers finish and leave."""

    async def act(client: Client) -> int:
        return await for_each(options.workers, client.drain)

    return run_client(options, act)
