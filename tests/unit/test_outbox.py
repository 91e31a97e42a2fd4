"""What a worker keeps for the master: until it is acknowledged, bounded, in order."""

import gc
import sys
import tracemalloc
from collections import deque
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.worker.outbox import (
    LOG_MESSAGE_BYTES_MAX,
    LOG_WAITING_BYTES_MAX,
    Outbox,
)
from tests import builders as b

JOB = b.ID
DECODER: Decoder[Any] = Decoder(m.FromWorker)


def commit(process: int, *requests: int, size: int = 1) -> m.Commits:
    """Return whole commits of these requests, each with an item of ``size`` bytes."""
    item = msgspec.Raw(b'"%s"' % (b"x" * size))
    commits = tuple(m.Commit(request=number, items=(item,)) for number in requests)
    return b.commits(process, *commits)


def end(process: int) -> m.Ended:
    """Return the end of a process."""
    return b.ended(process)


def seen(
    message: m.Commits, *only: int, result: Literal["stored", "settled"] = "stored"
) -> m.CommitsSeen:
    """Return the master's answer to commits, or to ``only`` some of them."""
    answers = tuple(
        m.Seen(one.request, one.unit, one.part, result)
        for one in message.commits
        if not only or one.request in only
    )
    return m.CommitsSeen(job=JOB, process=message.process, seen=answers)


def add(outbox: Outbox, message: m.Commits | m.Offer | m.Feeds | m.Read) -> None:
    """Retain a message as the worker does: with the frame it came in."""
    outbox.retain(message, encode_frame(encode(message)))


def messages_of(data: bytes) -> list[Any]:
    """Return the messages of what ``take`` gave."""
    frames = FrameReader()
    frames.feed(data)
    found = []
    while (frame := frames.next_frame()) is not None:
        found.append(DECODER.decode(frame))
    assert frames.is_between_frames
    return found


def take_all(outbox: Outbox, bytes_max: int = 1 << 30) -> list[Any]:
    """Return all that there is to send now, taken bit by bit."""
    found = []
    while outbox.has_more:
        found += messages_of(outbox.take(bytes_max))
    return found


def log_of(messages: list[Any]) -> bytes:
    """Return the bytes of the logs among the messages."""
    return b"".join(one.data for one in messages if isinstance(one, m.Log))


def test_retained_messages_are_offered_again_on_every_session_in_order() -> None:
    """What was sent but not answered goes again, before what came after it."""
    outbox = Outbox()
    commits = [commit(1, number) for number in range(1, 4)]
    for one in commits:
        add(outbox, one)
    assert take_all(outbox) == commits
    assert not outbox.has_more
    outbox.hear(seen(commits[0]))
    outbox.begin_session()
    outbox.add_end(end(1))
    assert take_all(outbox) == [*commits[1:], end(1)]
    outbox.begin_session()
    assert take_all(outbox) == [*commits[1:], end(1)]
    for one in commits[1:]:
        outbox.hear(seen(one))
    assert not outbox.is_settled
    outbox.hear(m.EndedSeen(process=1))
    assert outbox.is_settled
    outbox.begin_session()
    assert take_all(outbox) == []


def test_what_is_answered_before_it_was_sent_again_is_not_sent_again() -> None:
    """An answer makes the frame that still waits for this session needless."""
    outbox = Outbox()
    add(outbox, commit(1, 1))
    add(outbox, commit(1, 2))
    outbox.begin_session()
    outbox.hear(seen(commit(1, 1)))
    assert take_all(outbox) == [commit(1, 2)]


def test_a_batch_that_is_answered_in_part_is_offered_again_whole() -> None:
    """The rest of its answers may be lost with the session; the master knows what it
    has. Only the last answer forgets the batch."""
    outbox = Outbox()
    batch = commit(1, 5, 6, 7)
    add(outbox, batch)
    take_all(outbox)
    outbox.hear(seen(batch, 6))
    assert outbox.requests_of(1) == {5, 7}
    outbox.begin_session()
    assert take_all(outbox) == [batch]
    outbox.hear(seen(batch, 5, 6))
    outbox.begin_session()
    assert take_all(outbox) == [batch]
    outbox.hear(seen(batch, 7))
    assert outbox.is_settled


@pytest.mark.parametrize("result", ["stored", "settled"])
def test_an_answer_forgets_the_part_it_names_and_no_other(
    result: Literal["stored", "settled"],
) -> None:
    """Parts are told apart by process, request, unit and number, and also a dropped
    one says nothing of those behind it: each has an answer of its own."""
    outbox = Outbox()
    parts = [
        m.Commit(request=1, part=0, last=False),
        m.Commit(request=1, part=1),
        m.Commit(request=2),
        m.Commit(unit=1, kind="start"),
    ]
    batches = [b.commits(process, part) for process in (1, 2) for part in parts]
    for at, batch in enumerate(batches):
        for other in batches[at:]:
            add(outbox, other)
        take_all(outbox)
        outbox.hear(seen(batch, result=result))
        outbox.begin_session()
        assert take_all(outbox) == batches[at + 1 :]
        for other in batches[at + 1 :]:
            outbox.hear(seen(other))


def test_an_answer_to_what_is_not_retained_is_passed_over() -> None:
    """An answer may come twice, or of a process that is long forgotten."""
    outbox = Outbox()
    outbox.hear(seen(commit(7, 3)))
    outbox.hear(m.EndedSeen(process=7))
    outbox.hear(m.Offered(job=JOB, process=7, number=1, seen=()))
    assert outbox.is_settled


OFFER = m.Offer(job=JOB, process=1, number=1, fingerprints=b"f" * 20)
FEEDS = m.Feeds(job=JOB, process=1, lengths={"a": 1})
READ = m.Read(job=JOB, process=1, file="items", offset=9, limit=5)
QUESTIONS: list[tuple[Any, Any, Any]] = [
    (
        OFFER,
        m.Offered(job=JOB, process=1, number=1, seen=(True,)),
        m.Offered(job=JOB, process=1, number=2, seen=(True,)),
    ),
    (
        FEEDS,
        m.FeedsSeen(job=JOB, process=1, lengths={}),
        m.FeedsSeen(job=JOB, process=2, lengths={}),
    ),
    (
        READ,
        m.ReadSeen(job=JOB, process=1, file="items", offset=9, data=b""),
        m.ReadSeen(job=JOB, process=1, file="tagged", offset=9, data=b""),
    ),
]


@pytest.mark.parametrize(("question", "answer", "other"), QUESTIONS)
def test_a_question_is_asked_until_its_own_answer_comes(
    question: Any, answer: Any, other: Any
) -> None:
    """A process that waits for an answer waits for ever if it is lost."""
    outbox = Outbox()
    add(outbox, question)
    take_all(outbox)
    outbox.hear(other)
    outbox.begin_session()
    assert take_all(outbox) == [question]
    outbox.hear(answer)
    outbox.begin_session()
    assert take_all(outbox) == []


def test_the_dead_ask_nothing_but_what_they_committed_stands() -> None:
    """With the end of a process its questions go, and nobody else's."""
    outbox = Outbox()
    add(outbox, commit(1, 1))
    for question in (OFFER, FEEDS, READ):
        add(outbox, question)
    other = msgspec.structs.replace(OFFER, process=2)
    add(outbox, other)
    outbox.add_end(end(1))
    assert take_all(outbox) == [commit(1, 1), other, end(1)]


def test_what_waits_for_its_answer_cannot_be_said_again() -> None:
    """One answer could not tell the two apart, and one of them would stay for ever."""
    outbox = Outbox()
    add(outbox, commit(1, 1, 2))
    add(outbox, READ)
    for again in (commit(1, 2, 3), READ):
        with pytest.raises(RemoteProtocolError, match="not answered"):
            add(outbox, again)
    assert take_all(outbox) == [commit(1, 1, 2), READ]
    assert outbox.requests_of(1) == {1, 2}


def test_the_requests_of_a_process_are_those_without_an_answer() -> None:
    """Units have no request, and other processes have their own."""
    outbox = Outbox()
    add(outbox, commit(1, 1, 2))
    add(outbox, commit(2, 3))
    unit = m.Commit(unit=9, kind="closed")
    add(outbox, b.commits(1, unit))
    outbox.hear(seen(commit(1, 1)))
    assert outbox.requests_of(1) == {2}
    assert outbox.requests_of(2) == {3}
    assert outbox.requests_of(3) == set()


def test_a_message_of_the_session_goes_first_and_dies_with_it() -> None:
    """What only holds on this session is never sent on the next one."""
    outbox = Outbox()
    add(outbox, commit(1, 1))
    outbox.add_soon(m.Draining())
    assert messages_of(outbox.take(1)) == [m.Draining(), commit(1, 1)]
    outbox.add_soon(m.Draining())
    outbox.begin_session()
    assert take_all(outbox) == [commit(1, 1)]


def test_one_write_holds_about_as_many_bytes_as_asked_for() -> None:
    """Commits leave one after another, so that heartbeats get in between."""
    outbox = Outbox()
    batches = [commit(1, number, size=1000) for number in range(1, 6)]
    for one in batches:
        add(outbox, one)
    assert messages_of(outbox.take(1500)) == batches[:2]
    assert messages_of(outbox.take(1)) == [batches[2]]
    assert take_all(outbox) == batches[3:]


def test_a_log_travels_whole_in_bounded_messages() -> None:
    """No message is longer than its bound, whatever came in at a time."""
    outbox = Outbox()
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    for at in range(0, len(text), 50_000):
        outbox.add_log(JOB, 1, text[at : at + 50_000])
    assert outbox.has_log(1)
    messages = take_all(outbox)
    assert log_of(messages) == text
    assert max(len(one.data) for one in messages) <= LOG_MESSAGE_BYTES_MAX
    assert all(one.data.endswith(b"\n") for one in messages)
    assert not outbox.has_log(1)


def test_a_flood_of_log_is_bounded_and_its_loss_is_counted() -> None:
    """While nobody takes the log it stays within its bound; what is dropped is
    counted, in the log, where it would have stood."""
    outbox = Outbox()
    line = b"x" * 99 + b"\n"
    chunk = line * 500
    count = 3 * LOG_WAITING_BYTES_MAX // len(chunk)
    for _ in range(count):
        outbox.add_log(JOB, 1, chunk)
    first = messages_of(outbox.take(1))
    outbox.add_log(JOB, 1, b"after\n")
    log = log_of(first + take_all(outbox))
    assert len(log) <= LOG_WAITING_BYTES_MAX + 100
    kept = log.count(line)
    dropped = count * 500 - kept
    assert dropped > 0
    assert log == line * kept + b"(%d lines of log dropped here)\nafter\n" % dropped


def test_lines_dropped_before_a_silence_are_counted_too() -> None:
    """The loss is told although nothing is logged after the flood."""
    outbox = Outbox()
    chunk = b"x\n" * 30_000
    count = 2 * LOG_WAITING_BYTES_MAX // len(chunk)
    for _ in range(count):
        outbox.add_log(JOB, 1, chunk)
    log = log_of(take_all(outbox))
    dropped = count * 30_000 - log.count(b"x\n")
    assert dropped > 0
    assert log.endswith(b"\n(%d lines of log dropped here)\n" % dropped)
    assert not outbox.has_log(1)


def test_the_note_of_dropped_lines_stands_on_a_line_of_its_own() -> None:
    """A log that was cut inside a line does not swallow the note."""
    outbox = Outbox()
    outbox.add_log(JOB, 1, b"y" * LOG_WAITING_BYTES_MAX)
    outbox.add_log(JOB, 1, b"z\nz\n")
    log = log_of(take_all(outbox))
    assert log.endswith(b"y\n(2 lines of log dropped here)\n")


def test_the_lines_of_several_processes_stay_whole() -> None:
    """A piece of a line waits for its end, or for the end of its process: what others
    log comes in between."""
    outbox = Outbox()
    outbox.add_log(JOB, 1, b"one\ntw")
    outbox.add_log(JOB, 2, b"thr")
    assert take_all(outbox) == [m.Log(job=JOB, process=1, data=b"one\n")]
    assert outbox.has_log(1)
    assert not outbox.has_more
    outbox.add_log(JOB, 2, b"ee\n")
    assert take_all(outbox) == [m.Log(job=JOB, process=2, data=b"three\n")]
    assert not outbox.has_log(2)
    outbox.end_log(1)
    outbox.end_log(2)
    assert take_all(outbox) == [m.Log(job=JOB, process=1, data=b"tw")]
    assert not outbox.has_log(1)


def test_logs_of_processes_do_not_wait_for_each_other() -> None:
    """One that floods leaves the others their share of every write."""
    outbox = Outbox()
    outbox.add_log(JOB, 1, b"x" * 10 * LOG_MESSAGE_BYTES_MAX)
    outbox.add_log(JOB, 2, b"quiet\n")
    add(outbox, commit(3, 1))
    first = messages_of(outbox.take(1))
    assert first[0] == commit(3, 1)
    assert m.Log(job=JOB, process=2, data=b"quiet\n") in first
    assert outbox.has_log(1)
    assert not outbox.has_log(2)


def test_pieces_of_a_line_that_are_dropped_are_told() -> None:
    """One endless line loses something too, and a line without an end travels."""
    outbox = Outbox()
    outbox.add_log(JOB, 1, b"y" * LOG_WAITING_BYTES_MAX)
    outbox.add_log(JOB, 1, b"z")
    assert len(log_of(messages_of(outbox.take(1)))) == LOG_MESSAGE_BYTES_MAX
    messages = take_all(outbox)
    assert max(len(one.data) for one in messages) <= LOG_MESSAGE_BYTES_MAX
    assert log_of(messages).endswith(b"y\n(1 lines of log dropped here)\n")


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Return what happens to an outbox: a step and how many messages it concerns."""
    names = st.sampled_from(["commit", "take", "answer", "session"])
    return draw(st.lists(st.tuples(names, st.integers(1, 4)), max_size=60))


@given(steps())
def test_the_master_misses_nothing_whatever_happens_on_the_way(
    course: list[tuple[str, int]],
) -> None:
    """However sessions end and answers are lost, whole or in part: the master hears
    all units, in order and without a gap, and in the end nothing is retained."""
    outbox = Outbox()
    answers: deque[m.Seen] = deque()
    heard: list[int] = []
    units = 0

    def batch(count: int) -> m.Commits:
        numbers = range(units + 1, units + 1 + count)
        commits = tuple(m.Commit(unit=number, kind="late") for number in numbers)
        return b.commits(1, *commits)

    def take(bytes_max: int) -> None:
        for message in messages_of(outbox.take(bytes_max)):
            for one in message.commits:
                # As the master: a unit that it has is answered again, no gap comes.
                assert one.unit <= len(heard) + 1
                if one.unit == len(heard) + 1:
                    heard.append(one.unit)
                answers.append(m.Seen(0, one.unit, 0, "published"))

    def answer(count: int) -> None:
        some = tuple(answers.popleft() for _ in range(min(count, len(answers))))
        outbox.hear(m.CommitsSeen(job=JOB, process=1, seen=some))

    for step, count in [*course, ("session", 1)]:
        match step:
            case "commit":
                add(outbox, batch(count))
                units += count
            case "take":
                take(100 * count)
            case "answer":
                answer(count)
            case _:
                answers.clear()
                outbox.begin_session()
    while outbox.has_more:
        take(1)
    answer(len(answers))
    assert heard == list(range(1, units + 1))
    assert outbox.is_settled


# ---- how much is kept ----------------------------------------------------------------


@pytest.mark.parametrize("many", [1, 50])
def test_what_is_kept_is_counted_with_its_objects(many: int) -> None:
    """Tiny commits cost many times their bytes: the count is never below what they
    take, and answered it is nothing."""
    outbox = Outbox()
    messages = [
        commit(1, *range(first, first + many)) for first in range(1, 10_000, many)
    ]
    frames = [encode_frame(encode(one)) for one in messages]
    frames_bytes = sum(map(sys.getsizeof, frames))
    gc.collect()
    tracemalloc.start()
    for message, frame in zip(messages, frames, strict=True):
        outbox.retain(message, frame)
    held = tracemalloc.get_traced_memory()[0] + frames_bytes
    tracemalloc.stop()
    assert held <= outbox.kept_bytes <= 3 * held
    for message in messages:
        outbox.hear(seen(message))
    assert (outbox.kept_bytes, outbox.is_settled) == (0, True)


def test_it_is_full_until_enough_is_answered() -> None:
    """What is told in one session only counts too, until it is sent or another one
    begins; the ends of processes are taken all the same."""
    outbox = Outbox(kept_bytes_max=20_000)
    first, second = commit(1, 1, size=15_000), commit(1, 2, size=15_000)
    add(outbox, first)
    assert not outbox.is_full
    add(outbox, second)
    assert outbox.is_full
    outbox.add_end(end(1))
    outbox.hear(seen(first))
    assert not outbox.is_full
    for _ in range(50):
        outbox.add_soon(m.Release(job=JOB, process=1, requests=(1,)))
    assert outbox.is_full
    outbox.begin_session()
    assert not outbox.is_full
    for _ in range(50):
        outbox.add_soon(m.Release(job=JOB, process=1, requests=(1,)))
    outbox.take(1 << 30)
    outbox.hear(seen(second))
    outbox.hear(m.EndedSeen(process=1))
    assert outbox.kept_bytes == 0


def test_a_frame_in_turn_comes_after_what_was_retained_before_it() -> None:
    """And before what comes later; on this session only."""
    outbox = Outbox()
    first, second = commit(1, 1), commit(1, 2)
    said = b.progress(1, started=(3,), job=JOB)
    add(outbox, first)
    outbox.add_in_turn(encode_frame(encode(said)))
    add(outbox, second)
    kept = outbox.kept_bytes
    assert take_all(outbox) == [first, said, second]
    assert outbox.kept_bytes < kept
    outbox.add_in_turn(encode_frame(encode(said)))
    outbox.begin_session()
    assert take_all(outbox) == [first, second]
    outbox.hear(seen(first))
    outbox.hear(seen(second))
    assert outbox.kept_bytes == 0
