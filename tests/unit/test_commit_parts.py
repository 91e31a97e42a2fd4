"""Works in parts and frames under credit, sizes, units in order, repeated answers."""

import json
import random
from collections import Counter

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.control.events import PartStored
from dscrapy.control.item_lines import texts_of
from dscrapy.crawl.outgoing.child_requests import Child
from dscrapy.crawl.outgoing.commit_parts import (
    BYTES_UNSEEN_MAX,
    FRAME_BYTES,
    PART_BYTES_MAX,
    PARTS_UNSEEN_MAX,
    PIECE_BYTES_MAX,
    UNIT_BYTES_MAX,
    Sender,
    Timers,
    Work,
)
from dscrapy.model import JobSpec, Outcome
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame

RUN = m.Run(
    job="0" * 16, process=1, role="crawl", spec=JobSpec(project="p", spider="s")
)


class Master:
    """Collects what is sent; each message must fit a frame."""

    def __init__(self) -> None:
        self.frames: list[m.Commits] = []
        self.soon = 0
        self.sender = Sender(
            RUN,
            self.take,
            Timers(self.begin, lambda: None, lambda: None),
            lambda work: None,
        )

    def take(self, message: m.Message) -> None:
        assert isinstance(message, m.Commits)
        encode_frame(encode(message))
        self.frames.append(message)

    def begin(self) -> None:
        self.soon += 1

    @property
    def commits(self) -> list[m.Commit]:
        """All parts, also those that still gather."""
        self.sender.flush()
        return [one for frame in self.frames for one in frame.commits]

    def see(self, commit: m.Commit) -> None:
        seen = m.Seen(commit.request, commit.unit, commit.part, "stored")
        self.sender.acknowledged(m.CommitsSeen(job=RUN.job, process=1, seen=(seen,)))


HOSTS = ("a.example", "b.example", "")


def line(number: int, size: int) -> bytes:
    return b'{"n": %d, "x": "%s"}' % (number, b"x" * size)


def child(number: int, size: int = 10, host: str = "a") -> Child:
    body = b'{"n": %d, "x": "%s"}' % (number, b"x" * size)
    return Child(number.to_bytes(20, "big"), host, number, 0, body)


def numbers(raws: tuple[msgspec.Raw, ...]) -> list[int]:
    return [json.loads(bytes(raw))["n"] for raw in raws]


def texts(parts: list[m.Commit]) -> tuple[bytes, bytes]:
    """Return what the master makes of parts: lines, and their tagged forms."""
    lines, forms = zip(*map(texts_of, map(stored, parts)), strict=True)
    return b"".join(lines), b"".join(forms)


def stored(part: m.Commit) -> PartStored:
    return PartStored(
        job=RUN.job,
        process=1,
        request=part.request,
        unit=part.unit,
        part=part.part,
        items=part.items,
        tagged=part.tagged,
        piece=part.piece,
        children=part.children,
        filtered=0,
    )


def size_of(part: m.Commit) -> int:
    raws = (*part.items, *part.tagged, *part.children.bodies)
    texts = [bytes(raw) for raw in raws]
    if part.piece is not None:
        texts += [part.piece.line, part.piece.tagged]
    return sum(map(len, texts))


@pytest.mark.parametrize("seed", range(20))
def test_every_line_and_child_travels_once_and_in_order(seed: int) -> None:
    """Whatever sizes, answers and flushes: all of it, one last part, credit kept."""
    rng = random.Random(seed)
    master = Master()
    works = [Work("page", request=number) for number in (1, 2, 3)]
    given = {work.request: 0 for work in works}
    sizes: dict[tuple[int, int], tuple[int, bytes]] = {}
    unseen: list[m.Commit] = []
    answered = 0

    def answer(count: int) -> None:
        nonlocal answered
        fresh = master.commits[answered:]
        answered += len(fresh)
        unseen.extend(fresh)
        for _ in range(min(count, len(unseen))):
            master.see(unseen.pop(rng.randrange(len(unseen))))
        for request, held in Counter(one.request for one in unseen).items():
            assert held <= PARTS_UNSEEN_MAX, request
        # All but the last one left while there was room.
        assert sum(map(size_of, unseen[:-1])) < BYTES_UNSEEN_MAX

    for _ in range(300):
        work = rng.choice(works)
        size = rng.choice([1, 1000, 100_000, 600_000])
        if rng.random() < 0.03:
            size = rng.choice([PIECE_BYTES_MAX, 3 * PIECE_BYTES_MAX + 7])
        number = given[work.request] = given[work.request] + 1
        if number % 2:
            tagged = None if number % 3 else b'{"t":%d}' % number
            work.add_item(line(number, size), tagged)
            sizes[work.request, number] = size, tagged or b"null"
        else:
            work.add_child(child(number, size // 4, HOSTS[number % 3]))
        master.sender.grown(work)
        answer(rng.choice([0, 0, 1, 3]))
    for work in works:
        master.sender.settled(work)
    while unseen or len(master.commits) > answered:
        answer(5)
    for work in works:
        parts = [one for one in master.commits if one.request == work.request]
        assert [one.part for one in parts] == list(range(len(parts)))
        assert [one.last for one in parts] == [False] * (len(parts) - 1) + [True]
        count = given[work.request] + 1
        items = [
            (line(number, sizes[work.request, number][0]), *sizes[work.request, number])
            for number in range(1, count, 2)
        ]
        lines, forms = texts(parts)
        assert lines.splitlines() == [item[0] for item in items]
        assert forms.splitlines() == [item[2] for item in items]
        kept = [number for one in parts for number in numbers(one.children.bodies)]
        assert kept == list(range(2, count, 2))
        for one in parts:
            places = one.children
            hosts = [places.hosts[place] for place in places.host_of]
            assert hosts == [HOSTS[number % 3] for number in places.priorities]
            assert len(places.fingerprints) == 20 * len(places.bodies)
            assert list(places.priorities) == numbers(places.bodies)
            assert len(one.tagged) in (0, len(one.items))
    assert master.sender.is_quiet


def test_a_part_has_the_size_of_one() -> None:
    """Only a single thing makes a part larger than the limit."""
    master = Master()
    work = Work("page", request=1)
    for number in range(40):
        work.add_item(line(number, 50_000), None)
        work.add_child(child(number, 20_000))
    master.sender.settled(work)
    while master.commits and not master.sender.is_quiet:
        for one in master.commits:
            master.see(one)
    for one in master.commits:
        size = sum(len(bytes(raw)) for raw in (*one.items, *one.children.bodies))
        assert size <= PART_BYTES_MAX


def test_without_credit_a_lease_is_full_and_fills_no_further_part() -> None:
    """Whoever adds items can see it; an answer to a part changes it."""
    master = Master()
    work = Work("page", request=1)
    for number in range(PARTS_UNSEEN_MAX + 1):
        assert not work.is_full
        work.add_item(line(number, PART_BYTES_MAX), None)
        master.sender.grown(work)
    assert work.is_full
    assert len(master.commits) == PARTS_UNSEEN_MAX
    master.see(master.commits[0])
    assert not work.is_full
    assert len(master.commits) == PARTS_UNSEEN_MAX + 1


def test_commits_gather_into_frames() -> None:
    """Small ones share a frame until it is flushed or of its size."""
    master = Master()
    for request in range(1, 301):
        work = Work("page", request=request)
        work.add_item(line(request, 10_000), None)
        master.sender.settled(work)
    assert master.frames
    assert len(master.frames) == 300 * 10_000 // FRAME_BYTES
    # Each frame was begun once.
    assert master.soon == len(master.frames) + 1
    assert [one.request for one in master.commits] == list(range(1, 301))
    for frame in master.frames:
        assert len(encode(frame)) <= FRAME_BYTES


def test_units_are_numbered_and_finished_one_after_the_other() -> None:
    """A small unit waits for the parts of a large one that was settled before."""
    master = Master()
    large, small, last = Work("late"), Work("start", digest=b"12345678"), Work("closed")
    for number in range(3 * PARTS_UNSEEN_MAX):
        large.add_item(line(number, PART_BYTES_MAX), None)
        # Not settled: its number is not known yet, so nothing of it may leave.
        master.sender.grown(large)
    assert master.commits == []
    last.end = Outcome(finish_reason="finished")
    for work in (large, small, last):
        master.sender.settled(work)
    assert {one.unit for one in master.commits} == {1}
    seen = 0
    while not master.sender.is_quiet:
        fresh = master.commits[seen:]
        seen += len(fresh)
        assert fresh
        for one in fresh:
            master.see(one)
    assert [one.unit for one in master.commits if one.last] == [1, 2, 3]
    assert [one.unit for one in master.commits] == sorted(
        one.unit for one in master.commits
    )
    assert master.commits[-2].digest == b"12345678"
    assert master.commits[-1].end == Outcome(finish_reason="finished")


def test_stats_and_what_was_seen_travel_with_the_last_part() -> None:
    """Not before, and once."""
    master = Master()
    work = Work("page", request=7)
    work.add_item(line(1, 2 * PART_BYTES_MAX), None)
    work.delta.write("sum", "pages", 1)
    work.add_seen(b"f" * 20)
    master.sender.grown(work)
    work.delta.write("sum", "pages", 1)
    master.sender.settled(work)
    first, second = master.commits
    assert (first.stats, first.seen) == ({}, b"")
    assert second.stats == {"sum": {"pages": msgspec.Raw(b"2")}}
    assert second.seen == b"f" * 20
    assert not work.delta


def test_what_belongs_to_no_lease_rides_on_a_unit() -> None:
    """Asked for when the unit's last part is made; a lease's never asks."""
    rides: list[Work] = []
    timers = Timers(lambda: None, lambda: None, lambda: None)
    sender = Sender(RUN, lambda message: None, timers, rides.append)
    sender.settled(Work("page", request=1))
    unit = Work("start")
    sender.settled(unit)
    assert rides == [unit]


def test_answers_may_repeat_and_come_for_nothing() -> None:
    """The worker offers again what it has not seen answered."""
    master = Master()
    work = Work("page", request=1)
    master.sender.settled(work)
    (commit,) = master.commits
    assert not master.sender.is_quiet
    for _ in range(3):
        master.see(commit)
    assert master.sender.is_quiet
    master.see(m.Commit(request=99, part=5))
    assert master.commits == [commit]


def test_all_who_wait_for_an_answer_are_told() -> None:
    """Once, when the last part of a work is answered, however many they are."""
    master = Master()
    first: list[Work] = []
    second: list[Work] = []
    master.sender.when_answered(first.append)
    master.sender.when_answered(second.append)
    work = Work("page", request=1)
    work.add_item(line(1, PART_BYTES_MAX), None)
    master.sender.grown(work)
    master.sender.settled(work)
    part, last = master.commits
    master.see(part)
    assert first == second == []
    for _ in range(2):
        master.see(last)
    assert first == second == [work]


@pytest.mark.parametrize("tagged", [None, b'{"t":"%s"}' % (b"y" * PIECE_BYTES_MAX)])
def test_an_item_too_large_for_a_part_goes_in_pieces(tagged: bytes | None) -> None:
    """Of a unit too, with whole ones before and behind it; no frame is a long one."""
    master = Master()
    work = Work("start", digest=b"12345678")
    large = line(2, 5 * PIECE_BYTES_MAX)
    for text, form in ((line(1, 10), None), (large, tagged), (line(3, 10), b"{}")):
        work.add_item(text, form)
    work.add_child(child(1))
    master.sender.settled(work)
    while not master.sender.is_quiet:
        for one in master.commits:
            master.see(one)
    lines, forms = texts(master.commits)
    assert lines.splitlines() == [line(1, 10), large, line(3, 10)]
    assert forms.splitlines() == [b"null", tagged or b"null", b"{}"]
    assert [one.last for one in master.commits[:-1]] == [False] * (
        len(master.commits) - 1
    )
    assert len(master.commits[-1].children.bodies) == 1
    assert max(len(encode(frame)) for frame in master.frames) < 2 * FRAME_BYTES


def of_size(number: int, size: int) -> bytes:
    """Return a line that makes a part of a work larger by exactly so many bytes."""
    empty = Work("page", request=1)
    empty.add_item(line(number, 0), None)
    text = line(number, size - empty.bytes)
    exact = Work("page", request=1)
    exact.add_item(text, None)
    assert exact.bytes == size
    return text


def sent(lines: list[bytes], *, grows: bool = True) -> list[m.Commit]:
    """Return the parts of a page with these items, each part answered as it comes."""
    master = Master()
    work = Work("page", request=1)
    for text in lines:
        work.add_item(text, None)
        if grows:
            master.sender.grown(work)
            for one in master.commits:
                master.see(one)
    master.sender.settled(work)
    while not master.sender.is_quiet:
        for one in master.commits:
            master.see(one)
    return master.commits


@pytest.mark.parametrize("beside", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_item_at_a_parts_boundary_travels_once(before: int, beside: int) -> None:
    """One that fills the part exactly, or is a byte more or less: it is in one part,
    no other item is lost or there twice, and what fits goes together."""
    small = [of_size(number, 1000) for number in range(before)]
    room = PART_BYTES_MAX - 1000 * before
    lines = [*small, of_size(90, room + beside), of_size(91, 1000), of_size(92, 1000)]
    for grows in (False, True):
        parts = sent(lines, grows=grows)
        assert texts(parts)[0].splitlines() == lines
        first = numbers(parts[0].items)
        if beside <= 0:
            assert first == [*range(before), 90]
        elif before:
            # It would be too much there; alone it may be anything.
            assert first == (list(range(before)) if not grows else first)
        assert [one.part for one in parts] == list(range(len(parts)))
        assert [one.last for one in parts].count(True) == 1
        for one in parts:
            held = Work("page", request=1)
            for raw in one.items:
                held.add_item(bytes(raw), None)
            assert held.bytes <= PART_BYTES_MAX or len(one.items) == 1


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_a_page_that_fills_a_part_exactly_is_one_part(beside: int) -> None:
    """A byte less waits for more; what is full leaves, and alone it is the last too."""
    text = of_size(1, PART_BYTES_MAX + beside)
    assert len(sent([text], grows=False)) == (1 if beside <= 0 else 2)
    master = Master()
    work = Work("page", request=1)
    work.add_item(text, None)
    master.sender.grown(work)
    assert len(master.commits) == (0 if beside < 0 else 1)


@pytest.mark.parametrize("beside", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("pieces", [1, 2])
def test_an_item_at_a_pieces_boundary_travels_once(pieces: int, beside: int) -> None:
    """Whole up to the limit, in pieces above it; none of them is empty."""
    empty = Work("page", request=1)
    empty.add_item(line(2, 0), None)
    # What stands beside a line counts for a whole item alone.
    least = empty.bytes if pieces == 1 else len(line(2, 0))
    large = line(2, pieces * PIECE_BYTES_MAX + beside - least)
    lines = [line(1, 10), large, line(3, 10)]
    parts = sent(lines)
    assert texts(parts)[0].splitlines() == lines
    held = [one.piece for one in parts if one.piece is not None]
    assert bool(held) == (pieces > 1 or beside > 0)
    assert all(piece.line or piece.tagged for piece in held)
    assert [piece.end for piece in held].count(True) == bool(held)


def test_what_cannot_be_a_json_value_of_a_message_is_a_string_there() -> None:
    """A line that is no JSON and a form that nests too deep; the files hold them."""
    master = Master()
    work = Work("page", request=1)
    deep = b'{"$t":' * 2000 + b"[]" + b"}" * 2000
    work.add_item(b'{"a": NaN}', deep)
    master.sender.settled(work)
    (commit,) = master.commits
    lines, forms = texts([commit])
    assert lines == b'{"a": NaN}\n'
    assert json.loads(forms) == deep.decode()


def test_all_works_together_have_a_bound_and_take_turns() -> None:
    """Whoever holds most does not keep a small one waiting for longer than its turn."""
    master = Master()
    large = [Work("page", request=number) for number in (1, 2, 3)]
    for work in large:
        work.add_item(line(1, 20 * PIECE_BYTES_MAX), None)
        master.sender.settled(work)
    assert sum(map(size_of, master.commits[:-1])) < BYTES_UNSEEN_MAX
    assert {one.request for one in master.commits} == {1, 2}
    begun = len(master.commits)
    small = Work("page", request=4)
    small.add_item(line(1, 10), None)
    master.sender.settled(small)
    assert len(master.commits) == begun
    for one in master.commits[: len(large)]:
        master.see(one)
    assert [one.last for one in master.commits if one.request == 4] == [True]
    assert 3 in {one.request for one in master.commits}


def test_a_waiting_unit_goes_on_beside_leases() -> None:
    """It was out of turn when there was no room at all; units keep their order."""
    master = Master()
    for request in (1, 2):
        page = Work("page", request=request)
        page.add_item(line(1, 20 * PIECE_BYTES_MAX), None)
        master.sender.settled(page)
    units = [Work("late"), Work("late")]
    for unit in units:
        unit.add_item(line(1, 2 * PIECE_BYTES_MAX), None)
        master.sender.settled(unit)
    seen = 0
    while not master.sender.is_quiet:
        fresh = master.commits[seen:]
        seen += len(fresh)
        assert fresh, "nobody goes on"
        for one in fresh:
            master.see(one)
    parts = [(one.unit, one.part) for one in master.commits if one.unit]
    assert parts == sorted(parts)
    assert {unit for unit, _ in parts} == {1, 2}


def test_a_hundred_thousand_requests_that_stayed_leave_in_parts() -> None:
    """Their fingerprints go when a part is full, each once and in order; the last
    commit is no larger than any."""
    master, answered = Master(), 0
    work = Work("page", request=1)
    given = [number.to_bytes(20, "big") for number in range(100_000)]
    for fingerprint in given:
        work.add_seen(fingerprint)
        master.sender.grown(work)
        assert work.bytes <= PART_BYTES_MAX + 100
        if work.bytes < 100:
            master.sender.flush()
            for commit in master.commits[answered:]:
                answered += 1
                master.see(commit)
    master.sender.settled(work)
    told = [commit.seen for commit in master.commits]
    assert b"".join(told) == b"".join(given)
    assert len(told) > 5
    assert max(map(len, told)) < PART_BYTES_MAX


def test_a_large_unit_waits_on_the_disk() -> None:
    """Beyond a bound its items are not in memory; they leave in order, large ones too,
    and nothing stays open."""
    master = Master()
    work = Work("start")
    sizes = [200_000, 10, PIECE_BYTES_MAX * 2, 50_000, 0]
    given = [line(number, sizes[number % 5]) for number in range(80)]
    for number, one in enumerate(given):
        work.add_item(one, b"%d" % number if number % 3 else None)
    assert sum(item.size for item in work._items) <= UNIT_BYTES_MAX + PIECE_BYTES_MAX
    assert work._spill
    master.sender.settled(work)
    done = 0
    while done < len(master.commits):
        master.see(master.commits[done])
        done += 1
    assert master.commits[-1].last
    assert not work._spill
    lines, tagged, whole = [], [], [b"", b""]
    for commit in master.commits:
        lines += [bytes(one) for one in commit.items]
        tagged += [bytes(one) for one in commit.tagged or [b"null"] * len(commit.items)]
        if commit.piece is not None:
            whole = [whole[0] + commit.piece.line, whole[1] + commit.piece.tagged]
            if commit.piece.end:
                lines, tagged = [*lines, whole[0]], [*tagged, whole[1]]
                whole = [b"", b""]
    assert lines == given
    forms = [b"%d" % number if number % 3 else b"null" for number in range(80)]
    assert tagged == forms


def test_without_room_on_the_disk_a_unit_waits_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No item is lost for it."""

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    work, master = Work("start"), Master()
    monkeypatch.setattr("os.pwrite", full)
    given = [line(number, 200_000) for number in range(50)]
    for one in given:
        work.add_item(one, None)
    assert not work._spill
    master.sender.settled(work)
    done = 0
    while done < len(master.commits):
        master.see(master.commits[done])
        done += 1
    assert [bytes(one) for commit in master.commits for one in commit.items] == given
