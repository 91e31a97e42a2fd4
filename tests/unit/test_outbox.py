"""What a worker keeps for the master: until it is acknowledged, bounded, in order."""

from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dscrapy import messages as m
from dscrapy.model import Outcome
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import FrameReader, encode_frame
from dscrapy.worker.outbox import (
    LOG_MESSAGE_BYTES_MAX,
    LOG_WAITING_BYTES_MAX,
    Outbox,
)

JOB = f"{1:016x}"
DECODER: Decoder[Any] = Decoder(m.FromWorker)


def commit(process: int, part: int, *, last: bool = False, size: int = 1) -> m.Commit:
    """Return a part of a commit with one item of about ``size`` bytes."""
    return m.Commit(
        job=JOB,
        process=process,
        request=m.RUN_REQUEST,
        part=part,
        last=last,
        items=(msgspec.Raw(b'"%s"' % (b"x" * size)),),
        outcome=Outcome(finish_reason="finished") if last else None,
    )


def end(process: int) -> m.Ended:
    """Return the end of a process."""
    return m.Ended(job=JOB, process=process, how="exited")


def seen(message: m.Commit, result: Any = "stored") -> m.CommitSeen:
    """Return the master's answer to a part."""
    return m.CommitSeen(
        job=message.job,
        process=message.process,
        request=message.request,
        part=message.part,
        result=result,
    )


def add(outbox: Outbox, message: m.Commit) -> None:
    """Retain a part as the worker does: with the frame it came in."""
    outbox.add_commit(message, encode_frame(encode(message)))


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
    """What was sent but not acknowledged goes again, before what came after it."""
    outbox = Outbox()
    parts = [commit(1, part) for part in range(3)]
    for part in parts:
        add(outbox, part)
    assert take_all(outbox) == parts
    assert not outbox.has_more
    outbox.seen_commit(seen(parts[0]))
    outbox.begin_session()
    outbox.add_end(end(1))
    assert take_all(outbox) == [*parts[1:], end(1)]
    outbox.begin_session()
    assert take_all(outbox) == [*parts[1:], end(1)]
    for part in parts[1:]:
        outbox.seen_commit(seen(part))
    assert not outbox.is_settled
    outbox.seen_end(1)
    assert outbox.is_settled
    outbox.begin_session()
    assert take_all(outbox) == []


def test_what_is_acknowledged_before_it_was_sent_again_is_not_sent_again() -> None:
    """An answer makes the frame that still waits for this session needless."""
    outbox = Outbox()
    add(outbox, commit(1, 0))
    add(outbox, commit(1, 1))
    outbox.begin_session()
    outbox.seen_commit(seen(commit(1, 0)))
    assert take_all(outbox) == [commit(1, 1)]


def test_a_settled_request_forgets_all_its_parts_and_no_others() -> None:
    """The end of its process, and the parts of other processes, still go."""
    outbox = Outbox()
    for process in (1, 2):
        for part in range(2):
            add(outbox, commit(process, part))
        outbox.add_end(end(process))
    outbox.seen_commit(seen(commit(1, 0), "settled"))
    assert take_all(outbox) == [end(1), commit(2, 0), commit(2, 1), end(2)]


@pytest.mark.parametrize("result", ["stored", "published"])
def test_an_acknowledged_part_forgets_itself_alone(result: str) -> None:
    """A part that the master has says nothing of the parts behind it."""
    outbox = Outbox()
    add(outbox, commit(1, 0))
    add(outbox, commit(1, 1))
    outbox.seen_commit(seen(commit(1, 0), result))
    assert take_all(outbox) == [commit(1, 1)]


def test_an_answer_to_what_is_not_retained_is_passed_over() -> None:
    """An answer may come twice, or of a process that is long forgotten."""
    outbox = Outbox()
    outbox.seen_commit(seen(commit(7, 3)))
    outbox.seen_end(7)
    assert outbox.is_settled


def test_a_message_of_the_session_goes_first_and_dies_with_it() -> None:
    """What only holds on this session is never sent on the next one."""
    outbox = Outbox()
    add(outbox, commit(1, 0))
    outbox.add_soon(m.Draining())
    assert messages_of(outbox.take(1)) == [m.Draining(), commit(1, 0)]
    outbox.add_soon(m.Draining())
    outbox.begin_session()
    assert take_all(outbox) == [commit(1, 0)]


def test_one_write_holds_about_as_many_bytes_as_asked_for() -> None:
    """Commits leave one after another, so that heartbeats get in between."""
    outbox = Outbox()
    parts = [commit(1, part, size=1000) for part in range(5)]
    for part in parts:
        add(outbox, part)
    assert messages_of(outbox.take(1500)) == parts[:2]
    assert messages_of(outbox.take(1)) == [parts[2]]
    assert take_all(outbox) == parts[3:]


def test_progress_is_only_worth_its_latest_state() -> None:
    """One message for each process, its last; none after the process's end."""
    outbox = Outbox()
    told = [
        m.Progress(job=JOB, process=1, pages=n, items=n, errors=0, in_flight=0)
        for n in range(4)
    ]
    other = msgspec.structs.replace(told[0], process=2)
    for progress in (*told[:3], other):
        outbox.add_progress(progress)
    assert take_all(outbox) == [told[2], other]
    outbox.add_progress(told[3])
    outbox.add_end(end(1))
    assert take_all(outbox) == [end(1)]


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


def test_logs_of_processes_do_not_wait_for_each_other() -> None:
    """One that floods leaves the others their share of every write."""
    outbox = Outbox()
    outbox.add_log(JOB, 1, b"x" * 10 * LOG_MESSAGE_BYTES_MAX)
    outbox.add_log(JOB, 2, b"quiet\n")
    add(outbox, commit(3, 0))
    first = messages_of(outbox.take(1))
    assert first[0] == commit(3, 0)
    assert m.Log(job=JOB, process=2, data=b"quiet\n") in first
    assert outbox.has_log(1)
    assert not outbox.has_log(2)


def test_pieces_of_a_line_that_are_dropped_are_told() -> None:
    """One endless line loses something too, and a line without an end travels."""
    outbox = Outbox()
    outbox.add_log(JOB, 1, b"y" * LOG_WAITING_BYTES_MAX)
    outbox.add_log(JOB, 1, b"z")
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
    """However sessions end and answers are lost: the master hears all parts, each
    process's in order and without a gap, and in the end nothing is retained."""
    outbox = Outbox()
    answers: deque[m.CommitSeen] = deque()
    heard: list[int] = []
    parts = 0

    def take(bytes_max: int) -> None:
        for message in messages_of(outbox.take(bytes_max)):
            # As the master: a part that it has is answered again, a gap never comes.
            assert message.part <= len(heard)
            if message.part == len(heard):
                heard.append(message.part)
            answers.append(seen(message))

    for step, count in [*course, ("session", 1)]:
        match step:
            case "commit":
                for _ in range(count):
                    add(outbox, commit(1, parts))
                    parts += 1
            case "take":
                take(100 * count)
            case "answer":
                for _ in range(min(count, len(answers))):
                    outbox.seen_commit(answers.popleft())
            case _:
                answers.clear()
                outbox.begin_session()
    while outbox.has_more:
        take(1)
    while answers:
        outbox.seen_commit(answers.popleft())
    assert heard == list(range(parts))
    assert outbox.is_settled
