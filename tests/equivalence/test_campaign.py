"""The campaign's own parts: what counts as a kill, and that each kind comes."""

import random
from collections import Counter
from pathlib import Path

import pytest
import trio

from dscrapy import messages as m
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import FrameReader, encode_frame
from tests import builders as b
from tests.equivalence.campaign import Tally
from tests.equivalence.held_leases import HeldLeases
from tests.equivalence.kill_choice import STAGES, VICTIMS, Chooser, Stage
from tests.equivalence.proxy import HANDSHAKE_FRAMES, Proxy, stage_of
from tests.equivalence.runs import Run, stats_in


def seen(*results: m.Seen) -> m.CommitsSeen:
    """Return an answer to process 1."""
    return m.CommitsSeen(job=b.ID, process=1, seen=results)


def test_a_lease_counts_until_its_last_part_is_answered() -> None:
    """A process holds from the grant until the answer to the last part."""
    leases = HeldLeases()
    assert not leases.holds([1])
    leases.from_master("w", b.grant(7))
    assert leases.holds([1])
    leases.from_worker("w", b.commits(1, m.Commit(request=7, part=0, last=False)))
    leases.from_master("w", seen(m.Seen(7, 0, 0, "stored")))
    assert leases.processes[1].leases == {7}
    assert leases.processes[1].unanswered == {(7, 0): "page"}
    leases.from_worker("w", b.commits(1, m.Commit(request=7, part=1)))
    assert not leases.processes[1].leases
    assert leases.holds([1])
    assert leases.find(b.ID, "w") == [1]
    leases.from_master("w", seen(m.Seen(7, 0, 1, "published")))
    assert not leases.holds([1])
    assert not leases.any_holds()


def test_what_is_released_or_ended_or_dead_holds_nothing() -> None:
    """A release, an end and the worker's death take leases away."""
    leases = HeldLeases()
    leases.from_master("w", b.grant(1, 2))
    leases.from_worker("w", m.Release(job=b.ID, process=1, requests=(1,)))
    assert leases.processes[1].leases == {2}
    leases.from_worker("w", b.ended(1))
    assert not leases.any_holds()
    leases.from_master("w", b.grant(3, process=2))
    leases.from_master("v", b.grant(4, process=3))
    leases.worker_died("w")
    assert leases.any_holds("v")
    assert not leases.any_holds("w")


def test_a_worker_that_comes_back_says_what_it_holds() -> None:
    """A registration replaces what was known of a worker."""
    leases = HeldLeases()
    leases.from_master("w", b.grant(1, 2))
    leases.from_worker(
        "w", b.registration(held=(m.HeldProcess(job=b.ID, process=1, requests=(2,)),))
    )
    assert leases.processes[1].leases == {2}
    leases.from_worker("w", b.registration())
    assert not leases.any_holds()


def test_of_several_processes_all_have_to_hold_something() -> None:
    """Where nobody knows which of two is meant, one that is idle spoils it."""
    leases = HeldLeases()
    leases.from_master("w", b.grant(1))
    leases.from_master("w", b.grant(process=2))
    assert leases.holds([1])
    assert not leases.holds([1, 2])


@pytest.mark.parametrize("seed", range(5))
def test_every_stage_and_victim_comes(seed: int) -> None:
    """Whatever the order of chances: each stage and victim is drawn, no two kills
    without a commit between them, and it ends."""
    rng = random.Random(seed)
    chooser = Chooser(random.Random(seed), 200)
    commits_between = 1
    for _ in range(1_000_000):
        if chooser.is_done:
            break
        stage: Stage = rng.choice(STAGES[:7] if rng.random() < 0.98 else STAGES)
        victim = chooser.wants(stage)
        if victim is not None and rng.random() < 0.7:
            assert commits_between
            commits_between = 0
            chooser.killed(stage, victim)
        if rng.random() < 0.2:
            commits_between += 1
            chooser.committed()
    assert chooser.is_done
    assert not chooser.missing
    assert {victim for victim, _ in chooser.counted} == set(VICTIMS)


def test_choices_follow_from_the_seed() -> None:
    """Two choosers of one seed draw the same kills."""
    drawn = []
    for _ in range(2):
        chooser = Chooser(random.Random("s"), 50)
        cells = []
        while not chooser.is_done:
            victim, stage = chooser.next
            cells.append(chooser.next)
            chooser.killed(stage, victim)
        drawn.append(cells)
    assert drawn[0] == drawn[1]


def test_commits_beside_leases_tell_their_own_stage() -> None:
    """A page among them makes it the moment's; else units say what they are of."""
    assert stage_of({"page", "idle"}, "sent") == "sent"
    assert stage_of({"idle"}, "sent") == "idle"
    assert stage_of({"closed"}, "journalled") == "finish"
    assert stage_of({"started", "start"}, "acknowledged") == "start"
    assert stage_of({"late"}, "sent") == "sent"


class Side:
    """A peer of the proxy: reads whole frames."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._frames = FrameReader()

    async def send(self, *payloads: bytes) -> None:
        """Send frames."""
        await self.stream.send_all(b"".join(map(encode_frame, payloads)))

    async def read(self) -> bytes | None:
        """Return the next frame, None at the end."""
        while (frame := self._frames.next_frame()) is None:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self._frames.feed(data)
        return frame


# A frame that was passed on is there sooner on one machine, however busy.
NOTHING_S = 0.3


@pytest.mark.parametrize("cut", [False, True])
async def test_a_frame_is_where_the_proxy_says_it_is(cut: bool) -> None:
    """Commits are at the master at ``sent``; the answer is not at the worker at
    ``journalled`` and is there at ``acknowledged``; a connection that the moment
    declares dead passes nothing more on."""
    commit = encode(b.commits(1, m.Commit(request=7)))
    answer = encode(seen(m.Seen(7, 0, 0, "published")))
    told: list[str] = []
    committed: list[str] = []
    sides: list[Side] = []
    accepted, over, done = trio.Event(), trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        sides.append(Side(stream))
        accepted.set()
        await done.wait()
        await stream.aclose()

    async def moment(stage: Stage, process: int) -> bool:
        told.append(stage)
        if stage == "sent":
            assert await sides[0].read() == commit
            await sides[0].send(answer)
        elif stage == "journalled":
            with trio.move_on_after(NOTHING_S):
                raise AssertionError(await worker.read())
            if cut:
                over.set()
            return cut
        else:
            assert await worker.read() == answer
            # Before the close: the proxy may cancel us once it sees that.
            over.set()
            await worker.stream.aclose()
        return False

    async with trio.open_nursery() as nursery:
        (master,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [master])
        proxy = Proxy(
            master.socket.getsockname()[1],
            HeldLeases(),
            moment,
            lambda: committed.append(told[-1]),
        )
        port = await nursery.start(proxy.serve)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            worker = Side(stream)
            hello, first = [b"{}"] * HANDSHAKE_FRAMES, encode(b.registration())
            await worker.send(*hello, first)
            await accepted.wait()
            await sides[0].send(*hello)
            for _ in hello:
                assert await worker.read() == b"{}"
                assert await sides[0].read() == b"{}"
            assert await sides[0].read() == first
            await worker.send(commit)
            await over.wait()
            # Either way the connection ends, at the proxy's hand or at the worker's.
            assert await sides[0].read() is None
            done.set()
        nursery.cancel_scope.cancel()
    whole = ["sent", "journalled", "acknowledged"]
    assert told == (whole[:2] if cut else whole)
    assert committed == ([] if cut else ["journalled"])


def test_a_lost_or_repeated_item_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """One item less, one twice, or a job that failed: each is wrong."""
    plain = Run(
        items=Counter("aab"),
        asked=(),
        stats={},
        pids=frozenset(),
        active_max=0,
        text="",
    )
    tally = Tally()
    assert tally.add("right", "succeeded", Counter("aba"), plain)
    assert not tally.add("lost", "succeeded", Counter("ab"), plain)
    assert not tally.add("repeated", "succeeded", Counter("aabb"), plain)
    assert not tally.add("failed", "failed", Counter("aab"), plain)
    assert (tally.jobs, tally.lost, tally.repeated) == (4, 1, 1)
    assert "- a" in capsys.readouterr().out


def test_scrapys_dump_is_read(tmp_path: Path) -> None:
    """Numbers and texts of the dump are read, whatever else stands in it."""
    log = (
        "x Dumping Scrapy stats:\n"
        "{'a/b': 12,\n"
        " 'elapsed_time_seconds': 0.5,\n"
        " 'finish_reason': 'finished',\n"
        " 'finish_time': datetime.datetime(2024, 2, 29),\n"
        " 'z': 3}\n"
    )
    assert stats_in(log) == {"a/b": 12, "finish_reason": "finished", "z": 3}
