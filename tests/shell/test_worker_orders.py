"""What a worker makes of the orders of a master that plays a script."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.net.connection import Connection
from dscrapy.projects import code_digest
from dscrapy.proto.framing import FRAME_BYTES_MAX
from dscrapy.worker.agent import LEAVE_S, LOG_DRAIN_S, PROJECTS_NAMED_MAX
from dscrapy.worker.outbox import LOG_WAITING_BYTES_MAX, Outbox
from tests import builders as b
from tests.shell.manual_master import ordered
from tests.shell.worker_in_memory import Crawls, serving

# ---- starts --------------------------------------------------------------------------


async def test_a_start_that_comes_twice_starts_one_process(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whether the process still reads its project, runs or has ended."""
    async with ordered(tmp_path, Crawls(deaths=[1])) as (master, _, _, crawls):
        await master.say(b.start(), b.start())
        await master.say(b.start(), b.grant(1))
        await trio.sleep(5)
        await master.say(b.start())
        assert len(crawls.started) == 1
        assert len(master.ends()) == 1


async def test_a_process_knows_from_its_start_until_when_it_may_work(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The next heartbeat may be the one that is never answered."""
    async with ordered(tmp_path) as (master, _, _, crawls):
        await master.say(b.start())
        assert crawls.started[0].valid_until == pytest.approx(5.0)


async def test_a_start_is_told_with_the_digest_of_its_code(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And again on the next session: the first word of it may have been lost."""
    async with ordered(tmp_path) as (master, _, network, _):
        await master.say(b.start())
        digest = code_digest(tmp_path / "projects" / "p")
        started = m.Started(job=b.ID, process=1, digest=digest)
        assert started in master.heard[0]
        await master.comes_back(network)
        assert master.heard[1][0] == started


async def test_a_start_while_draining_is_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It crossed the drain on the way: nothing is started, the master is told why."""
    async with ordered(tmp_path, slots=2) as (master, worker, _, crawls):
        await master.say(b.start(1))
        worker.drain()
        await master.say(b.start(2))
        assert len(crawls.started) == 1
        (end,) = master.ends()
        assert (end.process, end.how) == (2, "refused")
        # The master knows the reason by then, so it holds nothing against the job.
        heard = master.heard[0]
        assert heard.index(m.Draining()) < heard.index(end)


async def test_no_more_processes_run_than_there_are_slots(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Also when more are ordered at once, before the first has read its project."""
    async with ordered(tmp_path, slots=2) as (master, _, _, crawls):
        await master.say(b.start(1), b.start(2), b.start(3))
        assert [one.start.process for one in crawls.started] == [1, 2]
        assert [(one.process, one.how) for one in master.ends()] == [(3, "refused")]


async def test_a_process_that_writes_feeds_takes_no_slot(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It runs beside a full house, and is nobody's reason to be refused."""
    async with ordered(tmp_path) as (master, worker, _, crawls):
        await master.say(
            b.start(1, role="export"), b.start(2), b.start(3, role="export")
        )
        assert [one.start.process for one in crawls.started] == [1, 2, 3]
        assert worker.busy == 1
        await master.say(b.start(4))
        assert [(one.process, one.how) for one in master.ends()] == [(4, "refused")]


async def test_a_process_that_is_given_up_takes_no_slot(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The master may order another one in its place in the same breath."""
    async with ordered(tmp_path) as (master, _, network, crawls):
        await master.say(b.start(1))
        master.drop = (1,)
        script = master.play

        async def at_once(connection: Connection[Any], register: m.Register) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(script, connection, register)
                await trio.testing.wait_all_tasks_blocked()
                await connection.send(b.start(2))

        network.serve = serving(at_once)
        await network.cut()
        await trio.sleep(1)
        assert [one.end for one in crawls.started] == ["killed", ""]
        assert [(one.process, one.how) for one in master.ends()] == [(1, "exited")]


async def test_a_process_that_cannot_be_started_is_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """That is this machine's trouble and not the job's doing."""
    crawls = Crawls(error=OSError("no memory"))
    async with ordered(tmp_path, crawls) as (master, *_):
        await master.say(b.start())
        (end,) = master.ends()
        assert (end.how, end.counted) == ("refused", False)
        assert "no memory" in end.text


# ---- projects ------------------------------------------------------------------------


async def test_an_unknown_project_fails_and_names_those_that_are_there(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A few of them, if there are many."""
    root = tmp_path / "projects"
    for number in range(2 * PROJECTS_NAMED_MAX):
        (root / f"q{number:02}").mkdir(parents=True)
        (root / f"q{number:02}" / "scrapy.cfg").write_text("")
    async with ordered(tmp_path) as (master, *_):
        await master.say(b.start(project="other"))
        (end,) = master.ends()
        assert end.how == "failed"
        assert end.outcome is not None
        assert end.outcome.failure == "unknown_project"
        assert f"no project other in {root}; projects there: p, q00, " in (
            end.outcome.text
        )
        assert end.outcome.text.endswith(f", q{PROJECTS_NAMED_MAX - 2:02}")


async def test_a_folder_that_is_not_on_this_machine_fails(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The text says whom ``--project DIR`` is for; one that is there runs."""
    async with ordered(tmp_path) as (master, _, _, crawls):
        await master.say(b.start(1, project_dir=str(tmp_path / "none")))
        (end,) = master.ends()
        assert end.outcome is not None
        assert "for workers on the same machine" in end.outcome.text
        await master.say(b.start(2, project_dir=str(tmp_path)))
        assert [one.folder for one in crawls.started] == [tmp_path]


async def test_a_folder_that_cannot_be_read_fails_its_job_and_not_the_worker(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The system refuses to look at all: the other jobs of this worker go on."""
    async with ordered(tmp_path, slots=2) as (master, _, _, crawls):
        await master.say(b.start(1))
        # Longer than any file name may be; as a folder of another user's is.
        await master.say(b.start(2, project_dir=f"/{'x' * 300}"))
        (end,) = master.ends()
        assert end.outcome is not None
        assert end.outcome.failure == "unknown_project"
        assert "cannot read" in end.outcome.text
        assert [one.end for one in crawls.started] == [""]


async def test_other_code_than_the_job_began_with_is_not_run(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is refused; the same code runs."""
    async with ordered(tmp_path) as (master, _, _, crawls):
        digest = code_digest(tmp_path / "projects" / "p")
        await master.say(b.start(1, digest="0" * 64))
        (end,) = master.ends()
        assert end.how == "other_code"
        assert crawls.started == []
        await master.say(b.start(2, digest=digest))
        assert len(crawls.started) == 1


# ---- sessions ------------------------------------------------------------------------


async def test_a_drain_during_a_registration_is_told_after_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The registration that is under way still says that the worker takes jobs."""
    async with ordered(tmp_path) as (master, worker, network, _):
        await master.say(b.start())
        master.late_s = 1.0
        await network.cut()
        await trio.sleep(0.5)
        assert len(master.heard) == 2
        worker.drain()
        await trio.sleep(1)
        assert m.Draining() in master.heard[1]


async def test_what_a_process_says_during_a_registration_is_told_after_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The registration under way names a lease that is given back meanwhile: without
    that word the master would count on it for ever."""
    async with ordered(tmp_path) as (master, _, network, crawls):
        await master.say(b.start(), b.grant(1, 2, 3))
        master.late_s = 0.5
        await network.cut()
        await trio.sleep(0.3)
        (crawl,) = crawls.started
        release = m.Release(job=b.ID, process=1, requests=(3,))
        crawl.say(release)
        await trio.sleep(0.7)
        assert master.registers[1].held[0].requests == (1, 2, 3)
        assert release in master.heard[1]


async def test_commits_of_a_dropped_process_are_offered_and_settled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The process is killed at once; what it had said is still for the master to
    judge, before its end, and forgotten when that has judged."""
    async with ordered(tmp_path) as (master, worker, network, crawls):
        await master.say(b.start(), b.grant(1, 2, 3))
        await trio.sleep(2.5)
        master.drop = (1, 77)
        register = await master.comes_back(network)
        assert register.held[0].requests == (1, 2, 3)
        assert crawls.started[0].end == "killed"
        first, second, end = master.told(m.Commits, m.Ended)
        assert [one.commits[0].request for one in (first, second)] == [1, 2]
        assert isinstance(end, m.Ended)
        await master.say(b.commits_seen(1, 2, result="settled"))
        assert not worker.outbox.is_settled
        await master.say(m.EndedSeen(process=1))
        assert worker.outbox.is_settled
        assert worker.processes == {}


async def test_the_end_of_a_process_comes_behind_all_that_it_committed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """On the session on which it dies and on the next one: its end voids leases, so
    what is committed has to be known first."""
    async with ordered(tmp_path, Crawls(deaths=[3])) as (master, _, network, _):
        await master.say(b.start(), b.grant(1, 2, 3, 4))
        await trio.sleep(5)

        def told() -> list[Any]:
            found = master.told(m.Commits, m.Ended)
            assert isinstance(found.pop(), m.Ended)
            return [one.commits[0].request for one in found]

        assert told() == [1, 2, 3]
        await master.say(b.commits_seen(2))
        # The fourth was leased to it when it died.
        assert (await master.comes_back(network)).held[0].requests == (1, 3)
        assert told() == [1, 3]
        await master.say(b.commits_seen(1, 3))
        assert (await master.comes_back(network)).held[0].requests == ()
        assert told() == []


async def test_a_worker_that_logs_out_holds_no_process(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The master may start the job elsewhere as soon as it hears of it."""
    async with ordered(tmp_path, slots=2) as (master, worker, _, crawls):
        await master.say(b.start(1), b.start(2))
        worker.stop()
        with trio.fail_after(LEAVE_S):
            while m.Leaving() not in master.heard[0]:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        assert [one.end for one in crawls.started] == ["killed", "killed"]


async def test_orders_for_a_process_that_is_gone_are_passed_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nor does a message disturb that belongs elsewhere."""
    async with ordered(tmp_path, Crawls(deaths=[0])) as (master, worker, *_):
        registered = b.registered()
        await master.say(b.start())
        assert len(master.ends()) == 1
        for process in (1, 9):
            await master.say(
                m.Stop(job=b.ID, process=process, reason="r"),
                b.grant(1, process=process),
                m.Done(job=b.ID, process=process, stats=None),
                m.CommitsSeen(job=b.ID, process=process, seen=()),
            )
        await master.say(m.EndedSeen(process=9), registered)
        assert worker.link.connected
        assert len(master.heard) == 1
        assert worker.processes[1].leased == set()


# ---- logs ----------------------------------------------------------------------------


async def test_a_flood_of_log_while_the_master_is_away_is_bounded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What was logged first is told, then how many lines are gone; commits that
    were made meanwhile come through whole."""
    async with ordered(tmp_path) as (master, _, network, crawls):
        await master.say(b.start(), b.grant(1, 2, 3, 4, 5))
        serve = network.serve
        await network.down()
        line = b"x" * 99 + b"\n"
        for _ in range(300):
            crawls.started[0].on_log(line * 100)
        await trio.sleep(5)
        network.serve = serve
        await trio.sleep(5)
        logs = [one.data for one in master.heard[1] if isinstance(one, m.Log)]
        log = b"".join(logs)
        assert len(log) < LOG_WAITING_BYTES_MAX + 1000
        kept = log.count(line)
        assert b"\n(%d lines of log dropped here)\n" % (300 * 100 - kept) in log
        commits = [one.commits[0].request for one in master.told(m.Commits)]
        assert commits == [1, 2, 3, 4, 5]


async def test_the_log_of_a_process_arrives_before_its_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its end closes the log: nothing of it may come behind."""
    async with ordered(tmp_path, Crawls(deaths=[1])) as (master, _, network, crawls):
        network.lag_s = 0.1
        await network.cut()
        await trio.sleep(2)
        await master.say(b.start(), b.grant(1))
        crawls.started[0].on_log(b"x\n" * 500_000)
        await trio.sleep(LOG_DRAIN_S)
        (end,) = master.ends()
        heard = master.heard[1]
        logs = [at for at, one in enumerate(heard) if isinstance(one, m.Log)]
        assert len(logs) > 12
        assert heard.index(end) > logs[-1]


async def test_a_process_that_ends_without_a_master_keeps_nobody_waiting(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its log may never leave; its end is ready for the next session at once."""
    async with ordered(tmp_path, Crawls(deaths=[2])) as (master, worker, network, _):
        await master.say(b.start(), b.grant(1, 2))
        await network.down()
        await trio.sleep(2.1)
        assert worker.outbox.has_log(1)
        network.serve = serving(master.play)
        await trio.sleep(2)
        heard = [type(one) for one in master.heard[1]]
        assert heard.index(m.Ended) < heard.index(m.Log)


@pytest.mark.parametrize("size", [1, FRAME_BYTES_MAX // 2])
async def test_a_commit_of_any_size_goes_through(
    size: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As it came from the crawl process, in one frame."""
    async with ordered(tmp_path) as (master, _, _, crawls):
        await master.say(b.start())
        (crawl,) = crawls.started
        item = msgspec.Raw(b'"%s"' % (b"x" * size))
        commit = m.Commit(unit=1, kind="late", items=(item,))
        crawl.commit(commit)
        await trio.sleep(0.5)
        assert master.told(m.Commits) == [b.commits(1, commit)]


async def test_a_worker_that_keeps_much_reads_on_when_it_is_answered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Without a master what processes commit is kept up to a bound; then they wait, and
    the first answers let all of them go on. A new session offers it all."""
    outbox = Outbox(kept_bytes_max=3_000)
    async with ordered(tmp_path, outbox=outbox) as (master, worker, network, crawls):
        await master.say(b.start())
        (crawl,) = crawls.started
        await network.cut()
        for _ in range(2):
            crawl.commit_unit("late", items=(msgspec.Raw(b'"%s"' % (b"x" * 1000)),))
        reads = 0

        async def read() -> None:
            nonlocal reads
            await worker.wait_room()
            reads += 1

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(read)
            await trio.sleep(5)
            assert reads == 0
            assert len(master.told(m.Commits)) == 2
            answer = m.Seen(0, 1, 0, "published")
            await master.say(m.CommitsSeen(job=b.ID, process=1, seen=(answer,)))
            assert reads == 2


async def test_a_session_that_begins_makes_room(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What only the last one was to hear is said by the registration: a process that
    filled the room with it is read on."""
    outbox = Outbox(kept_bytes_max=10_000)
    async with ordered(tmp_path, outbox=outbox) as (master, worker, network, crawls):
        await master.say(b.start(), b.grant(*range(1, 40)))
        (crawl,) = crawls.started
        await network.cut()
        for request in range(1, 40):
            crawl.say(m.Release(job=b.ID, process=1, requests=(request,)))
        with trio.fail_after(60):
            await worker.wait_room()
        assert not outbox.is_full
