"""Workers and crawl processes as a model of the frontier knows them, and a site.

The site is the same in every run of every job: each page gives pages of higher numbers
and one of lower, so that there is something to filter; some give the last page without
a filter; a handler of ``spider_idle`` pushes one more page the first time. So what a
job that succeeded has given is known.
"""

from typing import Any

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.control.effects import Append, Clear, Discard, Move
from dscrapy.frontier.politeness import at_once
from dscrapy.model import PROCESS_REASONS, Outcome
from tests import builders as b

STARTS = 3
PAGES = 12
IDLE_PAGE = 100
# A page and whether its request is not filtered.
Link = tuple[int, bool]


def children(*keys: int) -> m.Children:
    """Return the requests of these pages, on three hosts."""
    return linked(*((key, False) for key in keys))


def linked(*links: Link) -> m.Children:
    """Return these requests, on three hosts."""
    return b.children(
        *(key for key, _ in links),
        hosts=[f"h{key % 3}" for key, _ in links],
        flags=[m.DONT_FILTER * is_free for _, is_free in links],
    )


def digests(*links: Link) -> bytes:
    """Return the digests of these requests."""
    return b"".join(b"%06d.%d" % (key, is_free) for key, is_free in links)


def links_of(key: int) -> list[Link]:
    """Return what a page gives."""
    found = [one for one in (2 * key + 3, 2 * key + 4) if one < PAGES]
    lower = [key - 1] if 0 < key < PAGES else []
    # Two equal ones of one page are two requests.
    free = [PAGES - 1] * 2 if key == 1 else []
    return [*((one, False) for one in (*found, *lower)), *((one, True) for one in free)]


def expected_without(bad: int | None) -> list[bytes]:
    """Return what a job gives if this page never does."""
    lines = [b'{"s":%d}' % one for one in range(STARTS)]
    waiting = [(one, False) for one in (*range(STARTS), IDLE_PAGE)]
    seen: set[int] = set()
    while waiting:
        key, is_free = waiting.pop()
        if key == bad or (not is_free and key in seen):
            continue
        if not is_free:
            seen.add(key)
        lines.append(b'{"k":%d}' % key)
        waiting += links_of(key)
    return sorted(lines)


EXPECTED = expected_without(None)


class Files:
    """Derived files as bytes; writes at a wrong place are errors."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def write(self, write: Any) -> None:
        """Do a write as the master's files do."""
        match write:
            case Append():
                old = self.content.get(write.name, b"")
                assert len(old) >= write.at
                self.content[write.name] = old[: write.at] + write.data
            case Move():
                old = self.content.get(write.name, b"")
                data = self.content[write.spool][: write.count]
                assert len(old) >= write.at
                assert len(data) == write.count
                self.content[write.name] = old[: write.at] + data
            case Clear():
                for name in [one for one in self.content if write.name in one]:
                    del self.content[name]
            case Discard():
                # The real ones stay until the next snapshot, too.
                pass


@attrs.define(eq=False)
class Crawl:
    """One crawl process: what it holds and what it has not had answered.

    ``held`` are leases, request -> page; those ``again`` were run before, those
    ``downloaded`` were said to be; ``unacked`` are commits in their order, whose
    requests it holds as well.
    """

    start: m.Start
    window: int
    is_open: bool = False
    is_stopped: bool = False
    stop_reason: str = ""
    closing: str = ""
    is_ending: bool = False
    is_ordered: bool = False
    has_closed: bool = False
    may_end: bool = False
    leads: bool = False
    wants_start: bool = False
    skip: list[bytes] = attrs.field(factory=list)
    start_at: int = 0
    # ``StartMay``: while its engine holds back, and at any time.
    start_may: tuple[int, int] = (0, 0)
    start_units: int = 0
    started: bool = False
    finish: int = 0
    units: int = 0
    held: dict[int, int] = attrs.field(factory=dict)
    again: set[int] = attrs.field(factory=set)
    downloaded: set[int] = attrs.field(factory=set)
    unacked: list[m.Commit] = attrs.field(factory=list)
    # Parts of commits that are sent: request -> how many.
    parts: dict[int, int] = attrs.field(factory=dict)

    @property
    def number(self) -> int:
        """The process's number."""
        return self.start.process

    def opened(self) -> m.Opened:
        """Return what it says on opening."""
        return b.opened(
            self.number,
            self.start.job,
            window=self.window,
            lifo=True,
            concurrency=2,
            has_once=True,
        )

    def as_held(self) -> m.HeldProcess:
        """Return what its worker says of it."""
        waiting = {one.request for one in self.unacked if one.request}
        return b.held(
            self.number,
            *sorted({*self.held, *waiting}),
            job=self.start.job,
            downloaded=tuple(sorted(self.downloaded)),
            opened=self.opened() if self.is_open else None,
            leads=self.leads,
            closing=self.closing,
        )

    # ---- what it is told ---------------------------------------------------------

    def hear(self, message: m.Message) -> None:
        """Take a message of the master."""
        match message:
            case m.Skip():
                if message.part == 0:
                    self.skip = []
                every = message.digests
                self.skip += [every[at : at + 8] for at in range(0, len(every), 8)]
            case m.Lead():
                assert not self.leads, "told twice"
                self.leads, self.wants_start = True, message.start
            case m.StartMay():
                self.start_may = message.upto, message.upto_free
            case m.Finish():
                assert self.leads
                self.finish = message.number
            case m.Stop(reason=reason):
                self.is_stopped, self.stop_reason = True, reason
            case m.Retire() | m.Conclude():
                assert self.is_ending
                self.is_ordered = True
            case m.Done():
                assert self.has_closed
                self.may_end = True
            case m.CommitsSeen():
                for one in message.seen:
                    self.settle(one)

    def take(
        self, requests: tuple[int, ...], keys: list[int], again: tuple[int, ...]
    ) -> None:
        """Take leases."""
        assert self.is_open
        assert not set(requests) & self.held.keys()
        self.held.update(zip(requests, keys, strict=True))
        self.again.update(again)

    def forget(self, request: int) -> None:
        """Have a lease no more."""
        self.held.pop(request, None)
        self.parts.pop(request, None)
        self.again.discard(request)
        self.downloaded.discard(request)

    def settle(self, seen: m.Seen) -> None:
        """Forget a commit that was answered; one that is settled, with its rest."""
        self.unacked = [
            one
            for one in self.unacked
            if (one.request, one.unit) != (seen.request, seen.unit)
            or (seen.result in ("stored", "taken") and one.part != seen.part)
        ]
        if seen.request and seen.result not in ("stored", "taken"):
            self.forget(seen.request)

    # ---- what it says ------------------------------------------------------------

    def page(self, request: int, *, last: bool) -> m.Commit:
        """Return the next part of a page, or the whole of what is left of it."""
        key, part = self.held[request], self.parts.get(request, 0)
        self.parts[request] = part + 1
        # Each part has one of the page's links, the last has the others.
        links = links_of(key)[part:] if last else links_of(key)[part : part + 1]
        has_digests = request in self.again or not last
        commit = m.Commit(
            request=request,
            part=part,
            last=last,
            children=linked(*links),
            digests=digests(*links) if has_digests else b"",
            **_item_of(key, part, last=last),
        )
        self.unacked.append(commit)
        return commit

    def is_under_way(self, request: int) -> bool:
        """Whether its last part is sent."""
        return any(one.request == request and one.last for one in self.unacked)

    def unit(self, kind: Any, **fields: Any) -> m.Commit:
        """Return its next unit."""
        self.units += 1
        commit = m.Commit(unit=self.units, kind=kind, **fields)
        self.unacked.append(commit)
        return commit

    def next_of_start(self) -> m.Commit | None:
        """Return the next element of ``start()``, or its end; None: it has to wait."""
        if not self.wants_start or self.started:
            return None
        while self.start_at < STARTS:
            digest = self.start_at.to_bytes(m.DIGEST_BYTES, "big")
            if digest in self.skip:
                self.skip.remove(digest)
                self.start_at += 1
                continue
            if not self.may_take_start:
                return None
            at, self.start_at = self.start_at, self.start_at + 1
            self.start_units += 1
            return self.unit(
                "start",
                digest=digest,
                items=(msgspec.Raw(b'{"s":%d}' % at),),
                children=children(at),
            )
        if not self.may_take_start:
            return None
        self.started = True
        return self.unit("started")

    @property
    def may_take_start(self) -> bool:
        """Whether ``start()`` may be asked for its next element, or its end."""
        upto, upto_free = self.start_may
        holds_back = len(self.held) >= at_once(self.window)
        return self.start_units < (max(upto, upto_free) if holds_back else upto_free)

    def next_of_finish(self) -> m.Commit | str | None:
        """Answer ``Finish``: what the idle handler pushes the first time, or that the
        spider closes."""
        if not self.finish:
            return None
        number, self.finish = self.finish, 0
        if number == 1:
            return self.unit("idle", finish=1, children=children(IDLE_PAGE))
        return "finished"

    def last_of_all(self) -> m.Commit | None:
        """Return its last unit or the one before; None: it waits between them."""
        end = Outcome(finish_reason=self.closing)
        if not self.is_ending and self.closing not in PROCESS_REASONS:
            self.is_ending = True
            return self.unit("ending", end=end)
        if self.is_ending and not self.is_ordered:
            return None
        self.has_closed = True
        return self.unit("closed", end=end)


class Peer:
    """A worker as the model knows it; ``cut_after`` messages its connection breaks."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.instance = 0
        self.session: int | None = None
        self.cut_after: int | None = None
        self.crawls: dict[int, Crawl] = {}
        # Given up by the master: what they commit comes too late, or first.
        self.zombies: list[Crawl] = []

    def register(self) -> m.Register:
        """Return what it registers with."""
        held = tuple(crawl.as_held() for crawl in self.crawls.values())
        return b.registration(self.name, self.slots, held, str(self.instance))

    def forget(self) -> None:
        """Restart: nothing is held any more."""
        self.instance += 1
        self.crawls.clear()
        self.zombies.clear()


def _item_of(key: int, part: int, *, last: bool) -> dict[str, Any]:
    """Return what a part of a page holds of its item: all with the first one, or
    pieces in the first two."""
    line = b'{"k":%d}' % key
    if key % 2 == 0 or (part == 0 and last):
        return {"items": (msgspec.Raw(line),)} if part == 0 else {}
    match part:
        case 0:
            return {"piece": m.Piece(line=line[:3], tagged=b"nu")}
        case 1:
            return {"piece": m.Piece(line=line[3:], tagged=b"ll", end=True)}
        case _:
            return {}
