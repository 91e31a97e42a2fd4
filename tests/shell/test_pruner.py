"""A master lets ended jobs go: files, state and journal agree, whatever crashes."""

import random

import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.frontier.machine import Machine
from dscrapy.frontier.retention import SPARED_S
from dscrapy.keep import Keep
from dscrapy.master.pruner import prune
from dscrapy.model import JobSpec, Submission
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import SPANS, MasterInMemory, in_place, running

IDS = [f"{number:016x}" for number in range(4)]


async def fill(master: MasterInMemory) -> None:
    """Add four jobs that are cancelled, with logs of 100 bytes."""
    client = await master.connect("client")
    for identity in IDS:
        one = Submission(id=identity, spec=JobSpec(project="p", spider="s"))
        submit = m.Submit(call=1, part=0, last=True, submissions=(one,))
        await master.ask(client, submit)
        master.files.log_nowait(identity, b"x" * 100)
        cancel = m.ChangeJob(call=2, verb="cancel", job=identity)
        await master.ask(client, cancel)
        await trio.sleep(1)
    await master.files.caught_up()


def ruled(keep: Keep) -> Machine:
    """A machine with these rules."""
    return Machine(spans=SPANS, keep=keep)


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
        master.committer.machine.keep = Keep(jobs=1)
        with trio.move_on_after(10):
            await _prune(master)
        assert list(master.committer.machine.state.jobs) == IDS[3:]
        master.nursery.cancel_scope.cancel()


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


async def _prune(master: MasterInMemory) -> None:
    await prune(master.committer, master.files, in_thread=in_place)
