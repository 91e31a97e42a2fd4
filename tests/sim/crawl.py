"""A crawl process of the simulation: what a real one does with a site, as tasks.

It stands behind the interface that its worker knows (``process_view.Process``). Between
it and its worker is what a socket pair would be: what it has written still counts after
its death, and it goes on while its worker is stopped.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import trio

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.model import PROCESS_REASONS, Outcome, Stats
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame
from dscrapy.worker.crawl_process import Death
from tests import builders as b
from tests.sim.killable_programs import Program
from tests.sim.site import Page, Ref, Site, children, digests, host_of

if TYPE_CHECKING:
    from tests.sim.machines import Machine

# What each page adds to the job's stats.
_PAGE: Stats = {"sum": {"response_received_count": msgspec.Raw(b"1")}}


# Requests that a host lets be under way at a time.
CONCURRENCY = 2
# Of so many hosts that are to be shared the process says that it cannot.
REFUSED_PART = 0.1
# So many units that ask for something come in two parts.
UNIT_IN_PARTS = 0.3
# Of so many downloads the page is to be tried again.
RETRY_PART = 0.08


@attrs.define(eq=False)
class Work:
    """A page under way: its download is over then, or its next part is due.

    ``unsent`` are requests that the page has asked for; ``early_at`` is when they leave
    before the next part. ``items`` counts the parts that hold some.
    """

    request: int
    page: Page
    due_at: float
    again: bool
    is_downloaded: bool = False
    unsent: tuple[Ref, ...] = ()
    early_at: float = math.inf
    part: int = 0
    items: int = 0


@attrs.define(eq=False, kw_only=True)
class SimCrawl:
    """See the module; made by a worker with the fields from ``start`` on.

    ``inbox`` are leases that it has not begun, ``working`` those that it has.
    """

    machine: "Machine"
    site: Site
    rng: random.Random
    start: m.Start
    folder: Path
    process_silent_s: float
    stop_grace_s: float
    on_message: Callable[[m.FromProcess, bytes], None]
    on_log: Callable[[bytes], None]
    wait_room: Callable[[], Awaitable[None]]
    valid_until: float = math.inf
    program: Program = attrs.field(init=False)
    inbox: deque[tuple[int, Page, bool]] = attrs.field(factory=deque)
    shares: dict[str, int] = attrs.field(factory=dict)
    _owed: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    _recalls: dict[str, int] = attrs.field(factory=dict)
    working: dict[int, Work] = attrs.field(factory=dict)
    is_done: bool = False
    death: Death | None = None
    _told: deque[m.ToCrawl] = attrs.field(factory=deque)
    _said: deque[m.FromProcess] = attrs.field(factory=deque)
    _commits: list[m.Commit] = attrs.field(factory=list)
    _started: dict[int, None] = attrs.field(factory=dict)
    _downloaded: dict[int, None] = attrs.field(factory=dict)
    _flush_at: float = math.inf
    _heard: trio.Event = attrs.field(factory=trio.Event)
    _spoke: trio.Event = attrs.field(factory=trio.Event)
    _ended: trio.Event = attrs.field(factory=trio.Event)
    _units: int = 0
    _lead: m.Lead | None = None
    _skip: Counter[bytes] = attrs.field(factory=Counter)
    _element: int = 0
    _element_at: float = 0.0
    _starts: int = 0
    _start_may: tuple[int, int] = (0, 0)
    _finish: int = 0
    _stop_reason: str = ""
    _closing: str = ""
    _is_ending: bool = False
    _order: m.Retire | m.Conclude | None = None
    _has_closed: bool = False

    def __attrs_post_init__(self) -> None:
        self.program = Program(f"{self.start.job[-2:]}/{self.start.process}")

    @property
    def is_alive(self) -> bool:
        """Whether it still may do anything."""
        return self.death is None

    @property
    def has_right(self) -> bool:
        """Whether it may begin a request now, as far as it knows."""
        return self.is_alive and self.machine.boot() <= self.valid_until

    def unstarted(self) -> set[int]:
        """Return the leases that it may still begin, those not yet read included."""
        told = [one for one in self._told if isinstance(one, m.Grant)]
        unread = {request for grant in told for request in grant.requests}
        return {request for request, _, _ in self.inbox} | unread

    # ---- said by the worker -------------------------------------------------------

    def tell(self, message: m.ToCrawl) -> None:
        self._told.append(message)
        self._wake()

    def extend(self, until: float) -> None:
        self.tell(m.Valid(until=until))

    def stop(self, message: m.Stop) -> None:
        self.tell(message)

    def wait_for_order(self) -> None:
        pass

    def retire(self, message: m.Retire) -> None:
        self.tell(message)

    def _wake(self) -> None:
        self._heard.set()
        self._heard = trio.Event()

    # ---- its life, in its worker --------------------------------------------------

    async def run(self) -> Death:
        """Run it to its end; killed when cancelled."""
        self.machine.crawls[self.start.process] = self
        try:
            async with trio.open_nursery() as nursery:
                self.program.run_in(nursery, self._live)
                nursery.start_soon(self._pump)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
            self._hand_on()
        finally:
            self.kill("killed by its worker", counted=False)
        assert self.death is not None
        return self.death

    def kill(self, text: str, *, counted: bool, lose: bool = False) -> None:
        """End it at once; with ``lose`` what it has written and nobody read is gone."""
        if self.death is not None:
            return
        # As its worker reads them after a death that counts.
        ran_last = self.rng.choice([0, *self.working])
        marks = tuple(
            m.UnderWay(
                request=work.request,
                url=f"page/{work.page.key}",
                stage="waits" if work.is_downloaded else "download",
                ran_last=work.request == ran_last,
            )
            for work in self.working.values()
        )
        self.death = Death(
            counted=counted,
            text=f"crawl process {text}",
            under_way=marks if counted else (),
        )
        if counted:
            self.machine.world.checker.died(self)
        if lose:
            self._said.clear()
        self.program.kill()
        self._ended.set()

    async def _pump(self) -> None:
        while True:
            await self.wait_room()
            self._hand_on()
            await self._spoke.wait()

    def _hand_on(self) -> None:
        self._spoke = trio.Event()
        while self._said:
            message = self._said.popleft()
            try:
                self.on_message(message, encode_frame(encode(message)))
            except RemoteProtocolError as error:
                self.machine.world.checker.broken("process turned away", str(error))

    # ---- its life, on its own -----------------------------------------------------

    async def _live(self) -> None:
        with self.program.scope:
            await trio.sleep(self.rng.uniform(0.05, 1.0))
            self._say(self._opened())
            while not self._step():
                with trio.move_on_at(self._next_at()):
                    await self._heard.wait()
            self.death = Death(counted=True, text="crawl process exited with code 0")
            self._ended.set()

    def _opened(self) -> m.Opened:
        site = self.site
        return b.opened(
            **self._ids,
            window=site.window,
            lifo=site.lifo,
            concurrency=CONCURRENCY,
            delay_s=site.delay_s,
        )

    def _next_at(self) -> float:
        dues = [min(work.due_at, work.early_at) for work in self.working.values()]
        if self._may_pull():
            dues.append(self._element_at)
        return min([self._flush_at, *dues])

    def _step(self) -> bool:
        """Do all that can be done now; True when it is over."""
        now = trio.current_time()
        while self._told:
            self._hear(self._told.popleft())
        for work in list(self.working.values()):
            if work.early_at <= now:
                self._give_early(work)
            if work.due_at > now:
                continue
            if work.is_downloaded:
                self._give_part(work, now)
            else:
                self._end_download(work, now)
        if not self._closing:
            self._begin_pages(now)
            self._lead_on(now)
        self._yield()
        if self._closing and not self.working:
            self._leave()
        if now >= self._flush_at:
            self._flush()
        return self.is_done

    def _hear(self, message: m.ToCrawl) -> None:
        match message:
            case m.Grant():
                self._take(message)
            case m.Recall():
                self._lower(message.number, message.hosts)
            case m.CommitsSeen():
                for one in message.seen:
                    if one.result == "settled":
                        # Somebody else's commit won: the rest would be dropped, too.
                        self.working.pop(one.request, None)
                        self._started.pop(one.request, None)
                        self._downloaded.pop(one.request, None)
            case m.Valid():
                self.valid_until = message.until
            case m.Skip():
                if message.part == 0:
                    self._skip.clear()
                every = message.digests
                for at in range(0, len(every), m.DIGEST_BYTES):
                    self._skip[every[at : at + m.DIGEST_BYTES]] += 1
            case m.Lead():
                self._take_lead(message)
            case m.StartMay():
                self._start_may = message.upto, message.upto_free
            case m.Finish():
                self._finish = message.number
            case m.Stop():
                self._close(message.reason)
            case m.Retire() | m.Conclude():
                self._order = self._order or message
            case m.Done():
                self.is_done = True
            case _:
                pass

    def _take(self, grant: m.Grant) -> None:
        pages = [self.site.pages[b.number_of(body)] for body in grant.bodies]
        if self._closing:
            self._say(m.Release(**self._ids, requests=grant.requests))
            return
        for host, share in grant.shares.items():
            if share.recall >= self._recalls.get(host, 0):
                self._recalls.pop(host, None)
                self._owed.pop(host, None)
                self.shares[host] = share.count or CONCURRENCY
        for request, page in zip(grant.requests, pages, strict=True):
            self.inbox.append((request, page, request in grant.again))

    def _lower(self, number: int, hosts: dict[str, int]) -> None:
        """Lower shares of hosts that another process waits for; where nothing is to be
        left, give back what has not begun."""
        given_back = [
            one for one in self.inbox if hosts.get(host_of(one[1].key), 1) == 0
        ]
        if given_back:
            self.machine.world.counts["leases recalled"] += len(given_back)
            self.inbox = deque(one for one in self.inbox if one not in given_back)
            requests = tuple(request for request, _, _ in given_back)
            self._say(m.Release(**self._ids, requests=requests))
        for host, share in hosts.items():
            self._recalls[host] = number
            if share and self.rng.random() < REFUSED_PART:
                self._say(m.Yielded(**self._ids, number=number, hosts={host: 0}))
            elif share:
                self.shares[host] = share
                self._owed[host] = number, share
        self._yield()

    def _yield(self) -> None:
        """Say which shares are lowered."""
        for host, (number, share) in list(self._owed.items()):
            if self.downloads_at(host) <= share:
                self.machine.world.counts["shares lowered"] += 1
                del self._owed[host]
                hosts = {host: share}
                self._say(m.Yielded(**self._ids, number=number, hosts=hosts))

    def downloads_at(self, host: str) -> int:
        """Return how many requests it has under way at a host."""
        return sum(
            host_of(work.page.key) == host and not work.is_downloaded
            for work in self.working.values()
        )

    def _may_begin(self, page: Page) -> bool:
        host = host_of(page.key)
        share = self.shares.get(host, CONCURRENCY)
        return self.downloads_at(host) < share

    def _leave(self) -> None:
        """Say that all is committed, wait for an order unless only this process stops,
        and close."""
        end = Outcome(finish_reason=self._closing)
        if not self._is_ending and self._closing not in PROCESS_REASONS:
            self._is_ending = True
            self._unit("ending", end=end)
            self._flush()
        waits = self._is_ending and self._order is None
        if not waits and not self._has_closed:
            self._has_closed = True
            self._unit("closed", end=end)
            self._flush()

    # ---- pages --------------------------------------------------------------------

    @property
    def _downloads(self) -> int:
        return sum(not work.is_downloaded for work in self.working.values())

    def _begin_pages(self, now: float) -> None:
        for request, page, again in list(self.inbox):
            if self._downloads >= self.site.at_once or not self.has_right:
                break
            if not self._may_begin(page):
                continue
            self.inbox.remove((request, page, again))
            self.machine.world.checker.begun(self, request, host_of(page.key))
            due_at = now + page.seconds * self.rng.uniform(0.5, 1.5)
            self.working[request] = Work(request, page, due_at, again)
            self._started[request] = None
            self._flush_soon()

    def _end_download(self, work: Work, now: float) -> None:
        page = work.page
        if page.kills:
            self.kill("was killed by SIGSEGV", counted=True)
            return
        if page.redirect is not None or self.rng.random() < RETRY_PART:
            # The hop ends with the request that takes its place.
            is_retry = page.redirect is None
            ref = Ref(page=page.key, dont_filter=True)
            if page.redirect is not None:
                ref = Ref(page=page.redirect)
            self._say_part(work, (ref,), derived=True, last=True)
            self.machine.world.counts["hops retried"] += is_retry
            return
        work.is_downloaded = True
        work.unsent = page.refs
        work.early_at = now + self.rng.choice((0.0, 0.0, 0.25, math.inf))
        work.due_at = now + page.waits * self.rng.uniform(0.5, 1.5) / page.parts
        self._downloaded[work.request] = None
        self._flush_soon()

    def _give_early(self, work: Work) -> None:
        work.early_at = math.inf
        count = self.rng.randint(0, len(work.unsent))
        refs, work.unsent = work.unsent[:count], work.unsent[count:]
        if refs:
            self.machine.world.counts["early parts"] += 1
            self._say_part(work, refs, last=False)

    def _give_part(self, work: Work, now: float) -> None:
        page = work.page
        last = work.items == page.parts - 1
        count = len(work.unsent) if last else self.rng.randint(0, len(work.unsent))
        refs, work.unsent = work.unsent[:count], work.unsent[count:]
        fields: dict[str, Any] = page.part(work.items)
        self._say_part(work, refs, last=last, stats=_PAGE if last else {}, **fields)
        work.items += 1
        work.due_at = now + page.waits / page.parts

    def _say_part(
        self,
        work: Work,
        refs: tuple[Ref, ...],
        *,
        last: bool,
        derived: bool = False,
        **fields: Any,
    ) -> None:
        has_digests = work.again or not last
        commit = m.Commit(
            request=work.request,
            part=work.part,
            last=last,
            children=children(*refs, derived=derived),
            digests=digests(*refs) if has_digests else b"",
            **fields,
        )
        self._commit(commit)
        work.part += 1
        if last:
            del self.working[work.request]
            self._started.pop(work.request, None)
            self._downloaded.pop(work.request, None)

    # ---- leading ------------------------------------------------------------------

    def _take_lead(self, lead: m.Lead) -> None:
        self._lead = lead
        self._element_at = trio.current_time()
        if lead.opened and self.site.opened:
            self._unit("opened", children=children(*self.site.opened))

    def _may_pull(self) -> bool:
        is_over = self._element > len(self.site.elements)
        if self._lead is None or not self._lead.start or is_over or self._closing:
            return False
        upto, upto_free = self._start_may
        holds_back = self._downloads >= self.site.at_once
        may = self._starts < (max(upto, upto_free) if holds_back else upto_free)
        if may or self._element == len(self.site.elements):
            return may
        return bool(self._skip[self.site.elements[self._element].digest])

    def _lead_on(self, now: float) -> None:
        while self._may_pull() and self._element_at <= now:
            if self._element == len(self.site.elements):
                self._unit("started")
            else:
                element = self.site.elements[self._element]
                if self._skip[element.digest]:
                    self._skip[element.digest] -= 1
                else:
                    self._starts += 1
                    self._unit("start", **element.fields())
                    self._element_at = now + self.rng.choice((0.0, 0.1, 0.5))
            self._element += 1
        if self._finish and not self.working and not self.inbox:
            self._be_idle()

    def _be_idle(self) -> None:
        number, self._finish = self._finish, 0
        if number <= len(self.site.idle):
            refs = self.site.idle[number - 1]
            self._unit("idle", finish=number, children=children(*refs))
        else:
            self._close("finished")

    def _close(self, reason: str) -> None:
        if self._closing:
            return
        self._flush()
        self._closing = reason
        self._say(m.Closing(**self._ids, reason=reason))
        if self.inbox:
            given_back = tuple(request for request, _, _ in self.inbox)
            self.inbox.clear()
            self._say(m.Release(**self._ids, requests=given_back))

    # ---- what it says -------------------------------------------------------------

    @property
    def _ids(self) -> Any:
        return {"job": self.start.job, "process": self.start.process}

    def _unit(self, kind: Any, **fields: Any) -> None:
        self._units += 1
        unit, part = self._units, 0
        if "children" in fields and self.rng.random() < UNIT_IN_PARTS:
            # What it asks for goes ahead, and much may happen before the rest does.
            told: dict[str, Any] = {
                key: fields[key] for key in ("digest", "finish") if key in fields
            }
            told["children"] = fields.pop("children")
            self._commit(m.Commit(unit=unit, kind=kind, last=False, **told))
            self._flush()
            part = 1
        self._commit(m.Commit(unit=unit, kind=kind, part=part, **fields))
        if part:
            self._flush_at = trio.current_time() + self.rng.uniform(0.05, 2.0)

    def _commit(self, commit: m.Commit) -> None:
        self._commits.append(commit)
        self._flush_soon()

    def _flush_soon(self) -> None:
        # Commits gather for a moment, as the real ones do.
        wait_s = self.rng.choice((0.0, 0.0, 0.005, 0.2))
        self._flush_at = min(self._flush_at, trio.current_time() + wait_s)

    def _flush(self) -> None:
        self._flush_at = math.inf
        commits, self._commits = tuple(self._commits), []
        progress: dict[str, Any] = {
            "started": tuple(self._started),
            "downloaded": tuple(self._downloaded),
            "received": tuple(self._downloaded),
        }
        self._started.clear()
        self._downloaded.clear()
        if commits:
            self._say(m.Commits(**self._ids, commits=commits, **progress))
        elif any(progress.values()):
            self._say(m.Progress(**self._ids, **progress))

    def _say(self, message: m.FromProcess) -> None:
        self._said.append(message)
        self._spoke.set()
