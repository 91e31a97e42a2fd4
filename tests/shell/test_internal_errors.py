"""A master with a bug in its decisions: it serves on, and what it cannot decide is set
aside. The bugs are planted in machines of their own."""

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.control.clock import Now
from dscrapy.control.decision import Decision, OnTick
from dscrapy.control.machine import Machine
from dscrapy.net.connection import Connection
from tests import builders as b
from tests.doubles.bugs import plant_in_show, plant_in_start, plant_in_tick
from tests.shell.master_in_memory import POLICY, CrawlInMemory, receive, running


class CannotCommitTwo(Machine):
    """Raises for any message with a commit of request 2."""

    def decide(self, session: int, command: Any, now: Now) -> Decision:
        if isinstance(command, m.Commits):
            assert all(commit.request != 2 for commit in command.commits), "a bug"
        return super().decide(session, command, now)


class CannotFollowUp(Machine):
    """Raises whenever the job of number 1 is looked at."""

    def reconcile(self, job: str, now: Now) -> Decision:
        assert job != b.job_id(1), "a bug"
        return super().reconcile(job, now)


async def test_a_page_that_cannot_be_committed_is_set_aside(
    autojump_clock: MockClock,
) -> None:
    """It is offered with others, which are committed at once; done again twice; then
    the job ends with all else done, on the same session."""
    async with running(machine=CannotCommitTwo(policy=POLICY)) as master:
        client = await master.connect("client")
        await client.send(b.submit(1))
        await receive(client, m.Accepted)
        crawl = await CrawlInMemory.begun(await master.register("w"))
        given = b.children(*(b'{"n":%d}' % number for number in (1, 2, 3)))
        assert await crawl.commit(crawl.unit("start", children=given)) == ["published"]
        assert await crawl.commit(crawl.unit("started")) == ["published"]
        while len(crawl.bodies) < 3:
            await crawl.hear(m.Grant)
        crawl.bodies.clear()
        pages = {
            number: m.Commit(request=number, items=(msgspec.Raw(b'{"n":%d}' % number),))
            for number in (1, 2, 3)
        }
        await crawl.send(*pages.values())
        seen = [await crawl.hear(m.CommitsSeen) for _ in pages]
        assert [one.seen[0].result for one in seen] == [
            "published",
            "settled",
            "published",
        ]
        for _ in range(2):
            while not crawl.bodies:
                await crawl.hear(m.Grant)
            assert crawl.bodies.popitem()[0] == 2
            assert await crawl.commit(pages[2]) == ["settled"]
        await crawl.hear(m.Finish)
        await crawl.finish()
        await client.send(m.ShowJob(call=2, job=crawl.job))
        shown = await receive(client, m.Shown)
        assert (shown.job.state, shown.job.items, shown.job.poisoned) == (
            "failed",
            2,
            1,
        )
        assert shown.poisoned[0].url == "request 2"


async def test_a_job_that_cannot_be_followed_up_holds_up_no_other(
    autojump_clock: MockClock,
) -> None:
    """It fails in the end; another one runs to its end on the same worker."""
    async with running(machine=CannotFollowUp(policy=POLICY)) as master:
        client = await master.connect("client")
        await client.send(b.submit(1))
        await receive(client, m.Accepted)
        worker = await master.register("w", slots=2)
        first = CrawlInMemory(worker, await receive(worker, m.Start))
        await client.send(b.submit(2))
        await receive(client, m.Accepted)
        second = await CrawlInMemory.begun(worker)
        await second.succeed(b'{"n":1}')
        await first.send(first.unit("late"))
        await client.send(m.ShowJob(call=2, job=second.job))
        assert (await receive(client, m.Shown)).job.state == "succeeded"
        for _ in range(2):
            await first.commit(first.unit("late"))
        await client.send(m.ShowJob(call=3, job=first.job))
        shown = await receive(client, m.Shown)
        assert shown.job.state == "failed"
        assert shown.job.reason.startswith("internal error")


FIRST, SECOND = (b.job_id(number) for number in (1, 2))


async def show(client: Connection[Any], job: str) -> Any:
    """Return what a client sees of a job."""
    await client.send(m.ShowJob(call=9, job=job))
    return await receive(client, m.Shown)


async def test_a_job_that_cannot_be_assigned_holds_up_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays ready at first, and runs when the bug was a passing one; the next job
    runs to its end; in the end the first one fails. The master serves on."""
    plant_in_start(monkeypatch, FIRST)
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2, 3))
        worker = await master.register("w")
        for number in (2, 3):
            crawl = await CrawlInMemory.begun(worker)
            assert crawl.job == b.job_id(number)
            await crawl.succeed(b'{"n":1}')
        shown = await show(client, FIRST)
        assert shown.job.state == "failed"
        assert shown.job.reason.startswith("internal error")
        monkeypatch.undo()
        await master.ask(client, m.ChangeJob(call=2, verb="retry", job=FIRST))
        crawl = await CrawlInMemory.begun(worker)
        assert crawl.job == FIRST
        await crawl.succeed(b'{"n":1}')
        assert (await show(client, FIRST)).job.state == "succeeded"
        assert master.failure is None


class CountsTicks(Machine):
    """Counts how often it is asked what is due."""

    ticks = 0

    def decide(self, session: int, command: Any, now: Now) -> Decision:
        self.ticks += isinstance(command, OnTick)
        return super().decide(session, command, now)


async def test_deadlines_that_raise_hold_up_no_other_and_spin_not(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that cannot be looked at fails in the end. Meanwhile schedules make their
    runs, silent workers are given up, and nothing is looked at more often than at the
    beats of the clock."""
    machine = CountsTicks(policy=POLICY)
    async with running(machine=machine) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1))
        worker = await master.register("w")
        await CrawlInMemory.begun(worker)
        silent = await master.register("silent")
        plant_in_tick(monkeypatch, FIRST)
        await master.ask(client, b.submit(2, every_s=3600.0))
        began = trio.current_time()
        while trio.current_time() < began + 10:
            await worker.send(m.Heartbeat(number=1))
            await receive(worker, m.HeartbeatSeen)
            await trio.sleep(1)
        assert (await show(client, FIRST)).job.state == "failed"
        assert (await show(client, f"{SECOND}-1")).job.state == "running"
        # Two for each beat while one raises, and one beside each group with records.
        assert 10 <= machine.ticks < 60
        while await silent.receive() is not None:
            pass
        assert "silent" not in master.committer.machine.state.workers
        assert master.failure is None


async def test_an_answer_that_cannot_be_made_costs_no_other_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls and commits of one group are answered, but for the one that shows the job;
    who waits for it hears of the error, too. What is committed is there."""
    async with running() as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2))
        worker = await master.register("w", slots=2)
        first, second = [await CrawlInMemory.begun(worker) for _ in range(2)]
        assert {first.job, second.job} == {FIRST, SECOND}
        waiting = await master.connect("client")
        await waiting.send(m.WaitJob(call=5, job=first.job))
        plant_in_show(monkeypatch, first.job)
        for number, job in enumerate((first.job, second.job, first.job)):
            await client.send(m.ShowJob(call=number, job=job))
        said = [await client.receive() for _ in range(3)]
        assert [type(one) for one in said] == [m.Refused, m.Shown, m.Refused]
        assert {one.code for one in said if isinstance(one, m.Refused)} == {
            "internal_error"
        }
        await first.succeed(b'{"n":1}')
        await second.succeed(b'{"n":2}')
        refused = await receive(waiting, m.Refused)
        assert (refused.call, refused.code) == (5, "internal_error")
        monkeypatch.undo()
        for job in (FIRST, SECOND):
            assert (await show(client, job)).job.state == "succeeded"
        assert master.failure is None


class CannotTellGrants(Machine):
    """Raises whenever leases of the job of number 1 are to be told."""

    def complete(self, decision: Decision) -> None:
        granted = decision.effects.granted
        assert all(one.job != FIRST for one, _ in granted), "a bug"
        super().complete(decision)


async def test_leases_that_cannot_be_told_are_not_lost(
    autojump_clock: MockClock,
) -> None:
    """The worker's session ends, so that it says what it holds; the third time the job
    fails. Another job on the same worker comes to its end."""
    async with running(machine=CannotTellGrants(policy=POLICY)) as master:
        client = await master.connect("client")
        await master.ask(client, b.submit(1, 2))
        worker = await master.register("w", slots=2)
        first, second = [await CrawlInMemory.begun(worker) for _ in range(2)]
        if first.job != FIRST:
            first, second = second, first
        await first.send(first.unit("start", children=b.children(b"[1]")))
        for _ in range(2):
            while await worker.receive() is not None:
                pass
            worker = await master.connect("worker")
            held = tuple(
                b.held(one.process, job=one.job, leads=True) for one in (first, second)
            )
            await worker.send(b.registration("w", slots=2, held=held))
        while await worker.receive() is not None:
            pass
        assert (await show(client, FIRST)).job.state == "failed"
        worker = await master.connect("worker")
        await worker.send(b.registration("w", slots=2, held=held))
        second.worker = worker
        await second.succeed(b'{"n":2}')
        assert (await show(client, SECOND)).job.state == "succeeded"
