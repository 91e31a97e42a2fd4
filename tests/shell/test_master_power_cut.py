"""The power goes at every single call to the disk: nothing that was answered is lost.

One life of a master (jobs, a run in parts, a snapshot in its middle, a second run,
a fresh retry) is cut at each of its calls; then the disk, as it may be found, starts a
new master. What was answered before must hold, and items are those of one run, whole.
"""

import random
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.model import Outcome
from dscrapy.net.connection import Connection
from tests.doubles.storage import MemoryStorage, PowerCut
from tests.shell.master_in_memory import MasterInMemory, running, submit

RUN = [b'{"n":1}', b'{"n":2}', b'{"n":3}']
# More calls than any life here makes.
CALLS_MAX = 400


@attrs.define
class Known:
    """What a client was told, or may still be true."""

    jobs: set[str] = attrs.field(factory=set)
    published: set[str] = attrs.field(factory=set)
    fresh: set[str] = attrs.field(factory=set)
    done: bool = False


async def live(master: MasterInMemory, known: Known) -> None:
    """The life; notes in ``known`` what was answered."""
    client = await master.connect("client")
    worker = await master.register("w")
    for number in (1, 2):
        if isinstance(await client_ask(client, submit(number)), m.Accepted):
            known.jobs.add(f"{number:016x}")
    await run_job(worker, known, snapshot=lambda: snapshot_soon(master))
    await run_job(worker, known, snapshot=lambda: None)
    first = f"{1:016x}"
    known.fresh.add(first)
    retry = m.ChangeJob(call=9, verb="retry", job=first, fresh=True)
    await client_ask(client, retry)
    known.published.discard(first)
    await run_job(worker, known, snapshot=lambda: None)
    await master.files.caught_up()
    known.done = True


def snapshot_soon(master: MasterInMemory) -> None:
    """Let the next group be followed by a snapshot."""
    master.committer._snapshot_at_bytes = 1


async def client_ask(client: Connection[Any], call: m.Message) -> Any:
    """Ask; a master that is gone ends the life."""
    await client.send(call)
    answer = await client.receive()
    if answer is None:
        raise trio.BrokenResourceError
    return answer


async def hear(worker: Connection[Any], kind: type[Any]) -> Any:
    """Return the next message of this kind."""
    while not isinstance(message := await worker.receive(), kind):
        if message is None:
            raise trio.BrokenResourceError
    return message


async def run_job(
    worker: Connection[Any], known: Known, *, snapshot: Callable[[], None]
) -> None:
    """Take a job and commit it in three parts, with a snapshot on the way."""
    start = await hear(worker, m.Start)
    for part, item in enumerate(RUN):
        last = part == len(RUN) - 1
        commit = m.Commit(
            job=start.job,
            process=start.process,
            request=start.request,
            part=part,
            last=last,
            items=(msgspec.Raw(item),),
            outcome=Outcome(finish_reason="finished") if last else None,
        )
        if part == 1:
            snapshot()
        await worker.send(commit)
        seen = await hear(worker, m.CommitSeen)
        assert seen.result == ("published" if last else "stored")
    known.published.add(start.job)
    ended = m.Ended(job=start.job, process=start.process, how="exited")
    await worker.send(ended)


async def life_until_cut(storage: MemoryStorage) -> Known:
    """Run a life until it is done or the power is gone."""
    known = Known()
    try:
        async with running(storage) as master:
            try:
                await live(master, known)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The master's side is gone; its own error follows.
                await trio.sleep_forever()
    except* PowerCut:
        assert not known.done
    return known


async def check(storage: MemoryStorage, known: Known) -> None:
    """A new master on this disk keeps what was answered."""
    async with running(storage) as master:
        jobs = master.committer.machine.state.jobs
        assert known.jobs <= set(jobs)
        for identity, job in jobs.items():
            data = await master.files.read(identity, "items", 0, 1000)
            lines = data.splitlines()
            assert lines in ([], RUN), "items of one whole run"
            assert (job.status == "succeeded") == (lines == RUN)
            if identity in known.published and identity not in known.fresh:
                assert lines == RUN


async def test_the_power_may_go_at_any_call(autojump_clock: MockClock) -> None:
    """Cut at call 0, 1, 2, ... of the disk until a life ends uncut; each disk is
    found in several of its possible states, and as a killed process leaves it."""
    cuts = 0
    for calls in range(CALLS_MAX):
        storage = MemoryStorage(rng=random.Random(calls))
        storage.make_folder("jobs")
        storage.make_folder("spool")
        storage.calls_left = calls
        known = await life_until_cut(storage)
        await check(storage.copy(), known)
        for seed in range(4):
            await check(storage.crash(random.Random(seed)), known)
        if known.done:
            break
        cuts += 1
    assert cuts > 40, "a life has many calls"
    assert known.done
