"""A master with a bug in its decisions: it serves on, and what it cannot decide is set
aside. The bugs are planted in machines of their own."""

from typing import Any

import msgspec
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.frontier.clock import Now
from dscrapy.frontier.decision import Decision
from dscrapy.frontier.machine import Machine
from tests.shell.master_in_memory import (
    SPANS,
    CrawlInMemory,
    children,
    receive,
    running,
    submit,
)


class CannotCommitTwo(Machine):
    """Raises for any message with a commit of request 2."""

    def decide(self, session: int, command: Any, now: Now) -> Decision:
        if isinstance(command, m.Commits):
            assert all(commit.request != 2 for commit in command.commits), "a bug"
        return super().decide(session, command, now)


class CannotFollowUp(Machine):
    """Raises whenever the job of number 1 is looked at."""

    def follow_up(self, job: str, now: Now) -> Decision:
        assert job != f"{1:016x}", "a bug"
        return super().follow_up(job, now)


async def test_a_page_that_cannot_be_committed_is_set_aside(
    autojump_clock: MockClock,
) -> None:
    """It is offered with others, which are committed at once; done again twice; then
    the job ends with all else done, on the same session."""
    async with running(machine=CannotCommitTwo(spans=SPANS)) as master:
        client = await master.connect("client")
        await client.send(submit(1))
        await receive(client, m.Accepted)
        crawl = await CrawlInMemory.begun(await master.register("w"))
        given = children(*(b'{"n":%d}' % number for number in (1, 2, 3)))
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
    async with running(machine=CannotFollowUp(spans=SPANS)) as master:
        client = await master.connect("client")
        await client.send(submit(1))
        await receive(client, m.Accepted)
        worker = await master.register("w", slots=2)
        first = CrawlInMemory(worker, await receive(worker, m.Start))
        await client.send(submit(2))
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
