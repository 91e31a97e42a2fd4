"""What does a master with very many jobs weigh, and how fast does it come back?

The jobs are submitted by one ``submit --file`` and wait, since there is no worker.
The master is then killed and started again, from the journal alone and, on a copy of
its state, from a snapshot, by turns with one that has no jobs; it counts as back when
it answers a status call.
"""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from benchmarks.fleet import (
    LOOK_S,
    Done,
    Fleet,
    cpu_s,
    resident_bytes,
    running_fleet,
    until,
)
from benchmarks.report import header, say, spread, table
from dscrapy.cli.serve import new_id
from dscrapy.messages import Ping
from dscrapy.model import JobSpec, Submission
from dscrapy.net.host import boot_instant

# A journal this long is not cut by default within this benchmark's sizes, so that
# both kinds of restart can be told apart.
NO_SNAPSHOT = f"snapshot_after_bytes = {2**60}"
SNAPSHOT_SOON = "snapshot_after_bytes = 1"
CALLS = 200


@attrs.frozen(kw_only=True)
class Start:
    """One start of the master."""

    wall_s: float
    cpu_s: float
    resident_bytes: int
    status_s: float


def write_jobs(path: Path, count: int) -> None:
    """Write jobs such as a person's file has them, each with a name and a url."""
    with path.open("w") as file:
        for number in range(count):
            job = {
                "name": f"shop-{number}",
                "project": "shops",
                "spider": "products",
                "urls": [f"https://shop-{number}.example.com/products?page=1"],
                "args": {"category": "books", "limit": "1000"},
            }
            file.write(f"{json.dumps(job)}\n")


def journal_bytes(fleet: Fleet) -> int:
    """Return the size of the journal, snapshots included."""
    names = ("journal-*.log", "snapshot-*.bin")
    found = [path for name in names for path in fleet.state.rglob(name)]
    assert found
    return sum(path.stat().st_size for path in found)


async def start(fleet: Fleet) -> Start:
    """Start the master and kill it when it has answered."""
    process, wall_s = await fleet.start_master()
    used_s = cpu_s(process.pid)
    status_s = await status_call(fleet)
    held = resident_bytes(process.pid)
    fleet.end(process, signal.SIGKILL)
    return Start(wall_s=wall_s, cpu_s=used_s, resident_bytes=held, status_s=status_s)


async def status_call(fleet: Fleet) -> float:
    """Return the seconds of a status call on a kept connection."""
    async with fleet.client() as client:
        await client.status()
        begin = boot_instant()
        for _ in range(CALLS):
            await client.status()
        return (boot_instant() - begin) / CALLS


async def pause_while(fleet: Fleet, act: Callable[[], Awaitable[None]]) -> float:
    """Return the longest that another client waited for an answer meanwhile."""
    longest = 0.0
    async with fleet.client() as client, trio.open_nursery() as nursery:
        await client.call(Ping(call=0))

        async def act_then_stop() -> None:
            await act()
            nursery.cancel_scope.cancel()

        nursery.start_soon(act_then_stop)
        while True:
            begin = boot_instant()
            await client.call(Ping(call=0))
            longest = max(longest, boot_instant() - begin)
            await trio.sleep(LOOK_S)
    return longest


async def make_snapshots(fleet: Fleet) -> float:
    """Let a master write snapshots; return the longest pause of one."""
    fleet.configure(SNAPSHOT_SOON)
    process, _ = await fleet.start_master()
    await _snapshot_other_than(fleet, set())
    known = _snapshots(fleet)
    spec = JobSpec(project="shops", spider="products", name="one-more")

    async def make_another() -> None:
        async with fleet.client() as client:
            await client.submit([Submission(id=new_id(), spec=spec)])
        await _snapshot_other_than(fleet, known)

    pause_s = await pause_while(fleet, make_another)
    # Ending it properly lets the write under way come to its end.
    fleet.end(process, signal.SIGTERM)
    fleet.configure(NO_SNAPSHOT)
    return pause_s


def _snapshots(fleet: Fleet) -> set[Path]:
    return set(fleet.state.rglob("snapshot-*.bin"))


async def _snapshot_other_than(fleet: Fleet, known: set[Path]) -> None:
    """Wait until there is one snapshot, a new one: those before it are removed."""

    async def is_there() -> bool:
        found = _snapshots(fleet)
        return len(found) == 1 and not found & known

    await until(is_there)


def _row(what: str, starts: list[Start]) -> list[str]:
    return [
        what,
        spread([one.wall_s for one in starts], "s", 2),
        spread([one.cpu_s for one in starts], "s", 2),
        spread([one.resident_bytes / 2**20 for one in starts], "MiB", 1),
        spread([one.status_s for one in starts], "ms", 2),
    ]


async def measure(count: int, rounds: int) -> None:
    """Submit, restart both ways, and print."""
    with (
        running_fleet(NO_SNAPSHOT) as fleet,
        running_fleet(NO_SNAPSHOT) as saved,
        running_fleet(NO_SNAPSHOT) as empty,
    ):
        jobs = fleet.folder / "jobs.jsonl"
        write_jobs(jobs, count)
        process, _ = await fleet.start_master()
        before = resident_bytes(process.pid), cpu_s(process.pid)
        done: list[Done] = []

        async def submit_all() -> None:
            command = fleet.begin("submit", "--file", str(jobs))
            done.append(await trio.to_thread.run_sync(command.finish))

        submit_pause_s = await pause_while(fleet, submit_all)
        (submit,) = done
        assert len(submit.output.split()) == count
        master_s = cpu_s(process.pid) - before[1]
        grown = resident_bytes(process.pid) - before[0]
        async with fleet.client() as client:
            assert (await client.status()).jobs == {"ready": count}
        fleet.end(process, signal.SIGKILL)
        plain_bytes = journal_bytes(fleet)
        shutil.copytree(fleet.state, saved.state)
        snapshot_pause_s = await make_snapshots(saved)
        snapshot_bytes = journal_bytes(saved)
        none: list[Start] = []
        replayed: list[Start] = []
        restored: list[Start] = []
        for _ in range(rounds):
            none.append(await start(empty))
            replayed.append(await start(fleet))
            restored.append(await start(saved))
        file_bytes = jobs.stat().st_size
    table(
        [f"submitting {count} jobs", ""],
        [
            ["`submit --file`, start to exit", f"{submit.wall_s:.2f} s"],
            ["another client waits at most", f"{submit_pause_s:.2f} s"],
            ["CPU of the command", f"{submit.cpu_s:.2f} s"],
            ["CPU of the master", f"{master_s:.2f} s"],
            ["memory of the master grows by", f"{grown / 2**20:.1f} MiB"],
            ["that is per job", f"{grown / count:.0f} bytes"],
            ["the file of jobs, per job", f"{file_bytes / count:.0f} bytes"],
            ["journal", f"{plain_bytes} bytes, {plain_bytes / count:.0f} a job"],
            ["journal after a snapshot", f"{snapshot_bytes} bytes"],
            ["a snapshot: a client waits at most", f"{snapshot_pause_s:.2f} s"],
        ],
    )
    table(
        ["start of a master with", "until it answers", "CPU", "memory", "status call"],
        [
            _row("no jobs", none),
            _row(f"{count} jobs, journal alone", replayed),
            _row(f"{count} jobs, snapshot", restored),
        ],
    )
    say(f"n = {rounds} starts each, taking turns; median (min-max)")
    say()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    header("many_jobs", sys.argv[1:])
    trio.run(measure, options.jobs, options.rounds)


if __name__ == "__main__":
    main()
