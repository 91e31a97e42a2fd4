"""A master lets ended jobs go: files, state and journal agree, whatever crashes."""

import random

import attrs
import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.control.decide.retention import SPARED_S
from dscrapy.control.decision import Policy
from dscrapy.control.effects import Append, Write
from dscrapy.control.machine import Machine
from dscrapy.keep import Keep
from dscrapy.master.journal import Journal
from dscrapy.master.pruner import LOOK_EVERY_S, PAUSE_S, measure, prune
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import SPANS, CrawlInMemory, MasterInMemory, running

IDS = [b.job_id(number) for number in range(4)]


async def fill(master: MasterInMemory) -> None:
    """Add four jobs that are cancelled, with logs of 100 bytes."""
    client = await master.connect("client")
    for identity in IDS:
        await master.ask(client, b.submit(identity))
        master.files.log_nowait(identity, b"x" * 100)
        cancel = m.ChangeJob(call=2, verb="cancel", job=identity)
        await master.ask(client, cancel)
        await trio.sleep(1)
    await master.files.caught_up()


def ruled(keep: Keep) -> Machine:
    """A machine with these rules."""
    return Machine(policy=Policy(spans=SPANS, keep=keep))


async def test_the_oldest_go_by_the_bytes_of_their_logs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not while they are young; then with their folders, and a restart agrees."""
    storage = MemoryStorage()
    async with running(storage, machine=ruled(Keep(bytes=250))) as master:
        master.nursery.start_soon(_prune, master)
        await fill(master)
        assert storage.names("jobs") == IDS
        await trio.sleep(SPARED_S + 200)
        await master.files.caught_up()
        assert list(master.committer.machine.state.jobs) == IDS[2:]
        assert storage.names("jobs") == IDS[2:]
        master.nursery.cancel_scope.cancel()
    for left in (storage.copy(), storage.crash(random.Random(1))):
        async with running(left) as again:
            assert list(again.committer.machine.state.jobs) == IDS[2:]
            assert left.names("jobs") == IDS[2:]
            again.nursery.cancel_scope.cancel()


async def test_a_start_applies_the_rules_to_what_ended_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Rules that came with the restart, too."""
    storage = MemoryStorage()
    async with running(storage) as master:
        await fill(master)
        master.nursery.cancel_scope.cancel()
    await trio.sleep(2 * SPARED_S)
    machine = ruled(Keep(jobs=1))
    async with running(storage.copy(), machine=machine) as master:
        # The state that a replay gives is that of the machine it had.
        machine = master.committer.machine
        machine.policy = attrs.evolve(machine.policy, keep=Keep(jobs=1))
        with trio.move_on_after(10):
            await _prune(master)
        assert list(master.committer.machine.state.jobs) == IDS[3:]
        master.nursery.cancel_scope.cancel()


async def test_a_snapshot_waits_until_removed_files_are_surely_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A power cut brings none of them back that no replay would remove again."""
    storage = MemoryStorage()
    async with running(storage, snapshot_after_bytes=1) as master:
        await fill(master)
        client = await master.connect("client")
        for call, identity in enumerate(IDS[:2]):
            await master.ask(client, m.Remove(call=call, job=identity))
            await trio.sleep(1)
        await master.files.caught_up()
        master.nursery.cancel_scope.cancel()
    assert Journal.open(storage.copy()).snapshot is not None
    for seed in range(20):
        left = storage.crash(random.Random(seed))
        async with running(left) as again:
            assert list(again.committer.machine.state.jobs) == IDS[2:]
            assert left.names("jobs") == IDS[2:]
            again.nursery.cancel_scope.cancel()


async def test_who_reads_of_a_removed_job_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In one line, not left waiting; ``files`` remembers nothing of it."""
    async with running() as master:
        await fill(master)
        client = await master.connect("client")
        removed = await master.ask(client, m.Remove(call=1, job=IDS[0]))
        assert removed == m.Accepted(call=1, count=1)
        read = m.ReadFile(call=2, job=IDS[0], file="log", offset=0, limit=10)
        refused = await master.ask(client, read)
        assert (refused.code, IDS[0] in refused.text) == ("no_such_job", True)
        master.nursery.cancel_scope.cancel()


async def test_without_rules_nothing_is_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Neither at what has ended nor at its logs, before somebody asks; on a full disk
    the answer does not wait for what has no room."""
    storage = MemoryStorage()
    async with running(storage) as master:
        with trio.fail_after(1):
            await _prune(master)
        await fill(master)
        state = master.committer.machine.state
        assert state.log_bytes == {}
        client = await master.connect("client")
        asked = m.Prune(call=1, keep_jobs=1, dry_run=True)
        assert (await master.ask(client, asked)).bytes == 300
        assert state.log_bytes == dict.fromkeys(IDS, 100)
        state.log_bytes.clear()
        storage.room = storage.used_bytes()
        items: list[Write] = [Append("jobs/x/items.jsonl", 0, b"x")]
        assert master.files.hand_over_nowait(items)
        with trio.fail_after(10):
            assert (await master.ask(client, asked)).bytes == 300
        master.nursery.cancel_scope.cancel()


async def test_logs_are_measured_only_where_bytes_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A rule of another kind needs no look at any file."""
    async with running(machine=ruled(Keep(jobs=10))) as master:
        master.nursery.start_soon(_prune, master)
        await fill(master)
        await trio.sleep(SPARED_S)
        state = master.committer.machine.state
        assert (list(state.jobs), state.log_bytes) == (IDS, {})
        master.nursery.cancel_scope.cancel()


async def test_a_log_is_measured_when_nothing_more_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not while the job's process is on its way out."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        crawl = await CrawlInMemory.begun(await master.register("w"))
        assert await crawl.commit(crawl.unit("started")) == ["published"]
        closing = m.Closing(job=crawl.job, process=crawl.process, reason="finished")
        await crawl.worker.send(closing)
        assert await crawl.commit(crawl.unit("closed")) == ["published"]
        await crawl.hear(m.Done)
        state = master.committer.machine.state
        assert state.jobs[crawl.job].is_final
        await measure(master.committer, master.files)
        await master.ask(client, m.Ping(call=3))
        assert state.log_bytes == {}
        master.files.log_nowait(crawl.job, b"x" * 10)
        ended = b.ended(crawl.process, crawl.job)
        await crawl.worker.send(ended)
        await crawl.hear(m.EndedSeen)
        await measure(master.committer, master.files)
        await master.ask(client, m.Ping(call=3))
        assert state.log_bytes == {crawl.job: 10}
        master.nursery.cancel_scope.cancel()


async def test_the_end_of_a_job_is_seen_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it pushes out does not wait for the next look at the clock."""
    async with running(machine=ruled(Keep(jobs=1))) as master:
        master.nursery.start_soon(_prune, master)
        client = await master.connect("client")
        state = master.committer.machine.state
        for number in (1, 2):
            await master.ask(client, b.submit(number))
            cancel = m.ChangeJob(call=2, verb="cancel", job=b.job_id(number))
            await master.ask(client, cancel)
            await trio.sleep(2 * PAUSE_S)
            if number == 1:
                # Until right after a look.
                await trio.sleep(20 * (LOOK_EVERY_S + PAUSE_S) - PAUSE_S)
        assert list(state.jobs) == [b.job_id(2)]
        master.nursery.cancel_scope.cancel()


async def _prune(master: MasterInMemory) -> None:
    await prune(master.committer, master.files)
