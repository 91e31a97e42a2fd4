"""A run's parts under credit, sizes and repeated answers."""

import random

import pytest

from dscrapy.crawl.parts import (
    ITEM_BYTES_MAX,
    PART_BYTES_MAX,
    PARTS_UNSEEN_MAX,
    UNSENT_BYTES_MAX,
    ItemTooLargeError,
    Parts,
)
from dscrapy.messages import Commit, CommitSeen, Message, Run
from dscrapy.model import JobSpec, Outcome
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame

RUN = Run(job="0" * 16, process=1, request=1, spec=JobSpec(project="p", spider="s"))
DONE = Outcome(finish_reason="finished")


class Master:
    """Collects what is sent; each message must fit a frame."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.parts = Parts(RUN, self.take)

    def take(self, message: Message) -> None:
        assert isinstance(message, Commit)
        assert message.part == len(self.commits)
        assert not self.commits or not self.commits[-1].last
        encode_frame(encode(message))
        self.commits.append(message)

    def see(self, part: int) -> None:
        seen = CommitSeen(job=RUN.job, process=1, request=1, part=part, result="stored")
        self.parts.seen(seen)

    @property
    def lines(self) -> list[bytes]:
        return [bytes(raw) for commit in self.commits for raw in commit.items]


def line(number: int, size: int) -> bytes:
    return b'{"n": %d, "x": "%s"}' % (number, b"x" * size)


@pytest.mark.parametrize("seed", range(20))
def test_every_line_travels_once_and_in_order(seed: int) -> None:
    """Whatever sizes, answers and flushes: all lines, one last part, credit kept."""
    rng = random.Random(seed)
    master = Master()
    lines = [line(n, rng.choice([1, 1000, 100_000, 600_000])) for n in range(120)]
    unseen: list[int] = []
    answered = 0

    def answer(count: int) -> None:
        nonlocal answered
        unseen.extend(range(answered + len(unseen), len(master.commits)))
        assert len(unseen) <= PARTS_UNSEEN_MAX
        for _ in range(min(count, len(unseen))):
            # In any order, sometimes twice.
            part = unseen.pop(0)
            answered += 1
            master.see(part)
            if rng.random() < 0.2:
                master.see(part)

    for one in lines:
        master.parts.add(one, b"1" if rng.random() < 0.3 else None)
        assert master.parts.is_full or master.parts._bytes < UNSENT_BYTES_MAX
        if rng.random() < 0.3:
            master.parts.flush()
        answer(rng.choice([0, 0, 1, 5]))
    master.parts.finish(DONE, {})
    while not master.parts.is_done:
        answer(1)
    assert master.lines == lines
    assert [commit.last for commit in master.commits].count(True) == 1
    assert master.commits[-1].last
    assert master.commits[-1].outcome == DONE


def test_without_credit_nothing_is_sent_and_it_is_full() -> None:
    """The sixteenth unanswered part is the last until an answer comes."""
    master = Master()
    for number in range(PARTS_UNSEEN_MAX):
        master.parts.add(line(number, PART_BYTES_MAX), None)
    assert len(master.commits) == PARTS_UNSEEN_MAX
    assert not master.parts.has_credit
    assert not master.parts.is_full
    master.parts.add(line(16, UNSENT_BYTES_MAX), None)
    master.parts.flush()
    master.parts.finish(DONE, {})
    assert len(master.commits) == PARTS_UNSEEN_MAX
    assert master.parts.is_full
    master.see(0)
    assert len(master.commits) == PARTS_UNSEEN_MAX + 1
    assert not master.commits[-1].last
    master.see(1)
    assert master.commits[-1].last


def test_small_items_gather_until_a_flush() -> None:
    """Items below the size of a part wait for the tick, then go together."""
    master = Master()
    master.parts.add(line(1, 10), None)
    master.parts.add(line(2, 10), b'{"$t":[]}')
    assert master.commits == []
    master.parts.flush()
    master.parts.flush()
    assert [len(commit.items) for commit in master.commits] == [2]
    assert [bytes(raw) for raw in master.commits[0].tagged] == [b"null", b'{"$t":[]}']


def test_the_largest_item_fits_a_frame_and_the_next_is_refused() -> None:
    """The limit leaves room for the message around the item."""
    master = Master()
    master.parts.add(line(1, ITEM_BYTES_MAX - 30), None)
    assert len(master.commits) == 1
    with pytest.raises(ItemTooLargeError, match=str(ITEM_BYTES_MAX)):
        master.parts.add(line(1, ITEM_BYTES_MAX), None)
    master.parts.finish(DONE, {})
    assert len(master.lines) == 1


def test_done_is_the_answer_to_the_last_part_alone() -> None:
    """Answers to other parts, or to parts never sent, do not end the run."""
    master = Master()
    master.parts.add(line(1, PART_BYTES_MAX), None)
    master.parts.finish(DONE, {})
    assert [commit.last for commit in master.commits] == [False, True]
    master.see(0)
    master.see(7)
    assert not master.parts.is_done
    master.see(1)
    assert master.parts.is_done
