"""What a worker knows of one of its crawl processes, from the messages that pass.

The master grants leases and may restart; the process may send anything. From the
messages of both the worker knows what to register, and which messages to let through.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs
import trio

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.worker.crawl_process import MESSAGES_WAITING_MAX, Death


class Process(Protocol):
    """A crawl process as its worker sees it; ``CrawlProcess`` says what each does."""

    async def run(self) -> Death: ...
    def tell(self, message: m.ToCrawl) -> None: ...
    def extend(self, until: float) -> None: ...
    def stop(self, message: m.Stop) -> None: ...
    def wait_for_order(self) -> None: ...
    def retire(self, message: m.Retire) -> None: ...


@attrs.define(kw_only=True, eq=False)
class ProcessView:
    """A process of this worker whose end the master has not acknowledged.

    ``leased`` are the requests granted to it that it has neither given back nor
    committed whole; ``started``, ``downloaded`` and ``received`` are those of which its
    ``Progress`` said so; ``shares`` are those of hosts that it does not have all of, as
    it knows them; ``pages`` and ``items`` count what it has committed; ``units``
    is the last unit of which it has committed anything.
    """

    start: m.Start
    process: Process | None = None
    ended: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    digest: str = ""
    opened: m.Opened | None = None
    leads: bool = False
    closing: str = ""
    leased: set[int] = attrs.field(factory=set)
    started: set[int] = attrs.field(factory=set)
    downloaded: set[int] = attrs.field(factory=set)
    received: set[int] = attrs.field(factory=set)
    shares: dict[str, int] = attrs.field(factory=dict)
    # The last recall of each host, unless it was given a share since.
    _recalls: dict[str, int] = attrs.field(factory=dict)
    pages: int = 0
    items: int = 0
    units: int = 0
    is_stopping: bool = False
    # Messages from before there is a process: a Stop, and the few that the master sends
    # to a process that has not opened its spider.
    _early: list[m.ToProcess] = attrs.field(factory=list)

    # ---- from the master --------------------------------------------------------

    def hand_on(self, message: m.ToProcess) -> None:
        """Hand a message of the master to the process, or keep it until it is there."""
        if self.ended:
            return
        match message:
            case m.Grant():
                self.leased.update(message.requests)
                self._note_shares(message.shares)
            case m.Recall():
                self._recalls.update(dict.fromkeys(message.hosts, message.number))
            case m.Lead():
                self.leads = True
            case m.Stop():
                self.is_stopping = True
            case _:
                pass
        if self.process is not None:
            _deliver(self.process, message)
        elif len(self._early) < MESSAGES_WAITING_MAX:
            self._early.append(message)
        else:
            # The start hangs, and no message may be lost: the process is given up.
            self.scope.cancel()

    def _note_shares(self, shares: Mapping[str, m.Share]) -> None:
        for host, share in shares.items():
            if share.recall < self._recalls.get(host, 0):
                continue
            self._recalls.pop(host, None)
            if share.count:
                self.shares[host] = share.count
            else:
                self.shares.pop(host, None)

    def begin(self, process: Process) -> None:
        """Hand the early messages to the process, which is about to run."""
        self.process = process
        early, self._early = self._early, []
        for message in early:
            _deliver(process, message)

    def end(self) -> None:
        """Take note of the process's end: its leases are void, its commits stand."""
        self.process = None
        self.ended = True
        for requests in (self.leased, self.started, self.downloaded, self.received):
            requests.clear()
        self.shares.clear()
        self._recalls.clear()
        self._early.clear()

    # ---- from the process -------------------------------------------------------

    def hear(self, message: m.FromProcess) -> None:
        """Take note of a message of the process.

        Raises ``RemoteProtocolError`` for a request that it does not hold, and for a
        unit that does not follow the last one.
        """
        match message:
            case m.Commits():
                self._proceed(message)
                self._commit(message.commits)
            case m.Progress():
                self._proceed(message)
            case m.Release():
                self._check_leased(message.requests)
                self._forget(message.requests)
            case m.Yielded():
                for host, share in message.hosts.items():
                    if share and self._recalls.get(host) == message.number:
                        self.shares[host] = share
            case m.Opened():
                self.opened = message
            case m.Closing():
                self.closing = message.reason
            case m.Offer() | m.Feeds() | m.Read():
                pass

    def _commit(self, commits: tuple[m.Commit, ...]) -> None:
        if not commits:
            raise RemoteProtocolError("bad_commit", "a message without a commit")
        for commit in commits:
            if bool(commit.request) == bool(commit.unit):
                raise RemoteProtocolError(
                    "bad_commit", "a commit is of one request or of one unit"
                )
            if commit.request:
                self._check_leased((commit.request,))
                if commit.last:
                    self._forget((commit.request,))
                    self.pages += 1
            elif self.units <= commit.unit <= self.units + 1:
                self.units = commit.unit
            else:
                raise RemoteProtocolError(
                    "bad_commit", f"a unit that does not follow {self.units}"
                )
            self.items += len(commit.items)
            self.items += commit.piece is not None and commit.piece.end
            if commit.kind == "ending" and self.process is not None:
                self.process.wait_for_order()

    def _proceed(self, progress: m.ProgressFields) -> None:
        for new, requests in (
            (progress.started, self.started),
            (progress.downloaded, self.downloaded),
            (progress.received, self.received),
        ):
            self._check_leased(new)
            requests.update(new)

    def _forget(self, requests: Iterable[int]) -> None:
        for known in (self.leased, self.started, self.downloaded, self.received):
            known.difference_update(requests)

    def leased_of(self, under_way: Iterable[m.UnderWay]) -> tuple[m.UnderWay, ...]:
        """Return the leased ones among these: the process may have marked anything."""
        return tuple(entry for entry in under_way if entry.request in self.leased)

    def _check_leased(self, requests: Iterable[int]) -> None:
        foreign = next(
            (request for request in requests if request not in self.leased), None
        )
        if foreign is not None:
            raise RemoteProtocolError("not_held", f"it does not hold request {foreign}")

    # ---- at registration --------------------------------------------------------

    def report(self, unanswered: Iterable[int]) -> m.HeldProcess:
        """Return the process as a registration lists it; ``unanswered`` requests have a
        commit that the master has not answered."""
        return m.HeldProcess(
            job=self.start.job,
            process=self.start.process,
            requests=tuple(sorted(self.leased.union(unanswered))),
            started=tuple(sorted(self.started)),
            downloaded=tuple(sorted(self.downloaded)),
            received=tuple(sorted(self.received)),
            opened=self.opened,
            leads=self.leads,
            closing=self.closing,
            shares=dict(self.shares),
        )


def _deliver(process: Process, message: m.ToProcess) -> None:
    if isinstance(message, m.Stop):
        process.stop(message)
    elif isinstance(message, m.Retire):
        process.retire(message)
    else:
        process.tell(message)
