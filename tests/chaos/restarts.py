"""Masters and workers that come back otherwise, twice, or in another order."""

import random
import re
import signal
from collections import Counter
from pathlib import Path

import trio

from tests.chaos.kills import WORKS, pages_of
from tests.chaos.rig import FACT_LIMIT_S, Rig, Work, conf, running_rig, until
from tests.chaos.table import Wrong

LONG = Work("weighty", {"count": "400"}, {"ms": "150"})
# What the master is restarted with, one after the other; every third one has the
# settings of the beginning.
CONFS: tuple[dict[str, str], ...] = (
    {"heartbeat_s": "1.0", "die_after_s": "8.0", "reconnect_grace_s": "3.0"},
    {"start_deaths_max": "1", "segment_bytes_max": "65536"},
    {},
    {"snapshot_after_bytes": "10000", "heartbeat_s": "0.1", "die_after_s": "1.5"},
    {"disk_free_bytes_min": "0", "reconnect_grace_s": "0.5", "log_bytes_max": "65536"},
    {},
)
SLOTS = (1, 3, 2)


async def other_settings(folder: Path, seed: int, minutes: float) -> str:
    """In mid-job the master has other settings, and a worker other slots."""
    del minutes
    restarts: Counter[str] = Counter()
    async with running_rig(folder, random.Random(f"settings-{seed}")) as rig:
        await rig.plain(LONG)
        await rig.start_master()
        for name in ("w0", "w1"):
            rig.start_worker(name)
        async with rig.client() as client:
            for number, keys in enumerate(CONFS):
                # A job may end meanwhile; the next restart meets another one.
                if number % 3 == 0:
                    job = await rig.submit(client, LONG, 3)
                await pages_of(rig, job, 30 * (number % 3) + 10)
                await _stop_master(rig, number)
                rig.cluster.conf.write_text(conf(keys))
                await rig.start_master()
                restarts["master"] += 1
                name = f"w{number % 2}"
                rig.kill_worker(name)
                rig.start_worker(name, slots=SLOTS[number % len(SLOTS)])
                restarts["worker"] += 1
                if number % 3 == 2:
                    await rig.check(client, job, LONG)
        return (
            f"master restarted {restarts['master']} times with other settings, "
            f"workers {restarts['worker']} times with other slots; {rig.counts}"
        )


async def _stop_master(rig: Rig, number: int) -> None:
    """End it by SIGTERM and SIGKILL by turns."""
    master = rig.cluster.master
    assert master is not None
    master.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
    await trio.to_thread.run_sync(master.wait, FACT_LIMIT_S)


async def same_name(folder: Path, seed: int, minutes: float) -> str:
    """A second worker of a name is refused, and one after the first's death is not."""
    del minutes
    async with running_rig(folder, random.Random(f"names-{seed}")) as rig:
        await rig.plain(LONG)
        await rig.start_master()
        rig.start_worker("w")
        async with rig.client() as client:
            job = await rig.submit(client, LONG, 1)
            await pages_of(rig, job, 10)
            second = rig.cluster.start_worker("w")
            status = await trio.to_thread.run_sync(second.wait, FACT_LIMIT_S)
            said = re.findall(r"^.*master at .*\bw\b.*$", rig.cluster.log(), re.M)
            if status == 0 or not said:
                raise Wrong(f"the second worker ends with {status}: {said}")
            # The first one's successor says the same name before it is given up.
            rig.kill_worker("w")
            rig.start_worker("w")
            await rig.check(client, job, LONG)
        return (
            f"the second one exits with {status} ({said[-1].strip()!r}), its successor "
            f"is taken; {rig.counts}"
        )


async def early_worker(folder: Path, seed: int, minutes: float) -> str:
    """A worker waits for a master that comes later, with a state folder still to be."""
    del minutes
    work = next(one for one in WORKS if one.spider == "wide")
    async with running_rig(folder, random.Random(f"early-{seed}")) as rig:
        await rig.plain(work)
        rig.start_worker("w")

        async def waits() -> bool:
            return "waiting for" in rig.cluster.log()

        await until(waits, "a worker that says what it waits for")
        await rig.start_master()
        async with rig.client() as client:
            await rig.run(client, work, 1)
        return f"it waited, and ran what was submitted; {rig.counts}"
