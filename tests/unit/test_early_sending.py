"""When a process sends what its pages have asked for, and how far it has come."""

from typing import Any

import msgspec
import pytest

from dscrapy import messages as m
from dscrapy.crawl.codec.request_bodies import body_digest
from dscrapy.crawl.outgoing.child_requests import Child
from dscrapy.crawl.outgoing.commit_parts import PARTS_UNSEEN_MAX, Sender, Timers, Work
from dscrapy.model import JobSpec
from tests import builders as b

RUN = m.Run(job=b.ID, process=1, role="crawl", spec=JobSpec(project="p", spider="s"))


def child(number: int, flags: int = 0) -> Child:
    body = b'{"url":"http://a/%d"}' % number
    return Child(number.to_bytes(20, "big"), "a", 0, flags, body)


class Process:
    """A sender whose timers the test sets off; ``sent`` are its messages."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.flushes = self.ages = self.dues = 0
        self.sender = Sender(
            RUN,
            self.sent.append,
            Timers(self._flush, self._age, self._due),
            lambda work: None,
        )

    def _flush(self) -> None:
        self.flushes += 1

    def _age(self) -> None:
        self.ages += 1

    def _due(self) -> None:
        self.dues += 1

    def page(self, request: int, *children: int, again: bool = False) -> Work:
        """Return a page that has asked for these."""
        work = Work("page", request=request)
        work.again = again
        for number in children:
            self.ask_for(work, number)
        return work

    def ask_for(self, work: Work, number: int) -> None:
        work.add_child(child(number))
        self.sender.grown(work)

    def take(self) -> list[Any]:
        """Return what was sent since the last call, after all the turns of the event
        loop that a page that waits for nothing takes."""
        self.sender.flush()
        while self.dues:
            self.dues -= 1
            self.sender.send_due()
        self.sender.flush()
        sent = list(self.sent)
        self.sent.clear()
        return sent

    def parts(self) -> list[m.Commit]:
        """Return the parts that were sent since the last call."""
        return [part for message in self.take() for part in message.commits]

    def see(self, part: m.Commit) -> None:
        seen = m.Seen(part.request, part.unit, part.part, "taken")
        self.sender.acknowledged(m.CommitsSeen(job=RUN.job, process=1, seen=(seen,)))


def asked_for(part: m.Commit) -> list[int]:
    """Return the numbers of a part's requests."""
    bodies = [msgspec.json.decode(body) for body in part.children.bodies]
    return [int(body["url"].rpartition("/")[2]) for body in bodies]


def test_a_page_waits_until_it_is_finished_or_has_waited_a_while() -> None:
    """Nobody asks for its requests: they leave after the second look, in a part of
    their own, and the rest with the commit."""
    process = Process()
    work = process.page(1, 7, 8)
    assert (process.ages, process.take()) == (1, [])
    assert process.sender.age()
    assert process.take() == []
    assert not process.sender.age()
    (part,) = process.parts()
    assert (asked_for(part), part.last, part.part) == ([7, 8], False, 0)
    assert len(part.digests) == 2 * m.DIGEST_BYTES
    process.ask_for(work, 9)
    process.sender.settled(work)
    (part,) = process.parts()
    assert (asked_for(part), part.last, part.part) == ([9], True, 1)
    # No earlier run has given any: nothing is to be compared.
    assert part.digests == b""
    assert not process.sender.age()


def test_what_the_engine_asks_for_leaves_soon() -> None:
    """From when it has no lease until it gets one."""
    process = Process()
    first = process.page(1, 7)
    process.sender.ask()
    (part,) = process.parts()
    assert asked_for(part) == [7]
    second = process.page(2, 8)
    assert [asked_for(part) for part in process.parts()] == [[8]]
    process.sender.answer()
    process.ask_for(first, 9)
    process.ask_for(second, 10)
    assert process.take() == []


@pytest.mark.parametrize("who", ["the engine", "another process", "nobody"])
def test_a_page_that_waits_for_nothing_needs_no_early_part(who: str) -> None:
    """It is finished before the event loop has come round so often."""
    process = Process()
    work = process.page(1, 7)
    if who == "the engine":
        process.sender.ask()
    elif who == "another process":
        process.sender.set_short(is_short=True)
    else:
        process.sender.age()
        process.sender.age()
    process.sender.flush()
    assert (process.dues, process.sent) == (1, [])
    process.sender.settled(work)
    (part,) = process.parts()
    assert (asked_for(part), part.last) == ([7], True)


def test_each_page_has_all_the_turns() -> None:
    """Also one that came while the turns of pages ran that are finished meanwhile."""
    process = Process()
    process.sender.ask()
    first = process.page(1, 7)
    process.sender.settled(first)
    second = process.page(2, 8)
    assert process.dues == 1
    process.sender.send_due()
    assert process.dues == 2
    process.sender.settled(second)
    assert [(part.request, part.last) for part in process.parts()] == [
        (1, True),
        (2, True),
    ]


def test_what_another_process_waits_for_leaves_soon() -> None:
    """As long as the master says that work is short."""
    process = Process()
    work = process.page(1, 7)
    process.sender.set_short(is_short=True)
    assert [asked_for(part) for part in process.parts()] == [[7]]
    process.sender.set_short(is_short=False)
    process.ask_for(work, 8)
    assert process.take() == []


def test_items_stay_and_keep_their_order() -> None:
    """An early part has none; the commit has all."""
    process = Process()
    work = process.page(1)
    work.add_item(b'{"n":1}', None)
    process.ask_for(work, 7)
    work.add_item(b'{"n":2}', None)
    process.sender.ask()
    (part,) = process.parts()
    assert (asked_for(part), part.items) == ([7], ())
    process.sender.settled(work)
    (part,) = process.parts()
    assert [bytes(item) for item in part.items] == [b'{"n":1}', b'{"n":2}']


def test_early_parts_keep_the_credit() -> None:
    """So many of a page are unanswered; the next one has all that came since."""
    process = Process()
    work = process.page(1)
    process.sender.ask()
    sent: list[m.Commit] = []
    for number in range(PARTS_UNSEEN_MAX + 3):
        process.ask_for(work, number)
        sent += process.parts()
    assert len(sent) == PARTS_UNSEEN_MAX
    process.see(sent[0])
    (part,) = process.parts()
    assert asked_for(part) == [PARTS_UNSEEN_MAX, PARTS_UNSEEN_MAX + 1, 6]


def test_a_page_that_is_run_again_has_digests_of_all_its_requests() -> None:
    """Also in its last part; units have none."""
    process = Process()
    work = process.page(1, 7, again=True)
    process.sender.settled(work)
    unit = Work("late")
    unit.add_child(child(8))
    process.sender.settled(unit)
    page, late = process.parts()
    assert (len(page.digests), late.digests) == (m.DIGEST_BYTES, b"")


def test_who_takes_a_pages_place_is_none_of_its_other_requests() -> None:
    """A middleware may ask for requests before the response comes after all."""
    process = Process()
    work = process.page(1)
    work.add_child(child(7, m.DERIVED | m.DONT_FILTER))
    work.clear_derived()
    work.add_child(child(8, m.DERIVED))
    process.sender.settled(work)
    (part,) = process.parts()
    assert part.children.flags == (m.DONT_FILTER, m.DERIVED)


def test_an_abandoned_page_sends_nothing_early() -> None:
    """It is run again elsewhere."""
    process = Process()
    work = process.page(1, 7)
    process.sender.forget(work)
    process.sender.ask()
    assert process.take() == []


# ---- in order ------------------------------------------------------------------------


def test_in_order_all_leaves_with_the_question() -> None:
    """By no timer, and not with other commits: the master chooses by it."""
    process = Process()
    process.sender.keep_order()
    process.page(1, 7)
    process.sender.progress.start(1)
    process.sender.progress.end_download(1)
    assert (process.ages, process.dues) == (0, 0)
    (said,) = process.take()
    assert said == b.progress(1, started=(1,))
    assert process.take() == []
    process.sender.ask()
    (said,) = process.sent
    assert [asked_for(part) for part in said.commits] == [[7]]
    assert said.downloaded == (1,)


# ---- how far it has come -------------------------------------------------------------


def test_progress_is_said_once_and_not_of_what_is_committed_whole() -> None:
    """With commits where there are some."""
    process = Process()
    progress = process.sender.progress
    for request in (1, 2, 3):
        progress.start(request)
    progress.end_download(1)
    progress.receive(1)
    progress.end_download(2)
    process.sender.settled(process.page(1))
    (said,) = process.take()
    assert (said.started, said.downloaded, said.received) == ((2, 3), (2,), ())
    assert [part.request for part in said.commits] == [1]
    progress.receive(2)
    assert process.take() == [b.progress(1, received=(2,))]
    assert process.take() == []


# ---- digests -------------------------------------------------------------------------


def digest(**fields: Any) -> bytes:
    """Return the digest of a request's body."""
    return body_digest(msgspec.Raw(msgspec.json.encode({"url": "http://a/"} | fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"meta": {"download_latency": 0.1}},
        {"meta": {"download_slot": "a", "proxy": "p", "redirect_times": 1}},
        {"meta": {"retry_times": 2, "redirect_urls": ["x"], "depth": 0}},
    ],
)
def test_how_a_page_was_downloaded_does_not_count(fields: dict[str, Any]) -> None:
    """Its requests copy that from its meta, and it differs from run to run."""
    depth = {"meta": {"depth": 0}} if "depth" in fields["meta"] else {"meta": {}}
    assert digest(**fields) == digest(**depth)


def test_pickles_count_by_their_class_alone() -> None:
    """Two runs may pickle equal values differently."""

    def pickled(data: str, name: str = "yarl.URL") -> dict[str, Any]:
        return {"cb_kwargs": {"x": [{"$P": [name, data, "mac", []]}]}}

    assert digest(**pickled("one")) == digest(**pickled("two"))
    assert digest(**pickled("one")) != digest(**pickled("one", "pathlib.Path"))


def test_everything_else_counts() -> None:
    """Else one of two requests that differ would be lost."""
    every = [
        digest(),
        digest(url="http://b/"),
        digest(priority=1),
        digest(meta={"depth": 1}),
        digest(cb_kwargs={"n": 1}),
        digest(body="x"),
    ]
    assert len(set(every)) == len(every)


def test_a_body_that_nests_too_deep_for_python_has_a_digest() -> None:
    """Of its bytes."""
    deep = b"[" * 5000 + b"]" * 5000
    assert len(body_digest(msgspec.Raw(deep))) == m.DIGEST_BYTES
