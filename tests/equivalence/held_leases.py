"""What each crawl process holds, from the frames between workers and master.

Pure. A process holds the leases it was granted and has not committed, and commits
that were sent and not answered. A process that died holds nothing.
"""

from collections.abc import Iterable

import attrs

from dscrapy import messages as m

# Number of the request and of the unit of a commit, one of which is 0.
Commit = tuple[int, int]


@attrs.define
class Held:
    """A crawl process: its leases, and its unanswered commits with their kind."""

    job: str
    worker: str
    leases: set[int] = attrs.Factory(set)
    unanswered: dict[Commit, str] = attrs.Factory(dict)

    @property
    def holds(self) -> bool:
        """Whether its death has to be made good by somebody."""
        return bool(self.leases or self.unanswered)


@attrs.define
class HeldLeases:
    """All crawl processes by number."""

    processes: dict[int, Held] = attrs.Factory(dict)

    def from_worker(self, worker: str, message: object) -> None:
        """Note what a worker said."""
        match message:
            case m.Register():
                self._registered(worker, message)
            case m.Commits():
                held = self._held(worker, message.job, message.process)
                for one in message.commits:
                    held.unanswered[one.request, one.unit] = one.kind
                    if one.last:
                        held.leases.discard(one.request)
            case m.Release():
                held = self._held(worker, message.job, message.process)
                held.leases.difference_update(message.requests)
            case m.Ended():
                self.processes.pop(message.process, None)

    def from_master(self, worker: str, message: object) -> None:
        """Note what the master said to a worker."""
        match message:
            case m.Start(role="crawl"):
                self._held(worker, message.job, message.process)
            case m.Grant():
                held = self._held(worker, message.job, message.process)
                held.leases.update(message.requests)
            case m.CommitsSeen() if message.process in self.processes:
                unanswered = self.processes[message.process].unanswered
                for one in message.seen:
                    # These answer a part; the last one is still to come.
                    if one.result not in ("stored", "taken"):
                        unanswered.pop((one.request, one.unit), None)

    def kinds(self, message: m.CommitsSeen) -> set[str]:
        """Return the kinds of the commits that an answer is about."""
        held = self.processes.get(message.process)
        known = held.unanswered if held is not None else {}
        return {known.get((one.request, one.unit), "page") for one in message.seen}

    def find(self, job: str, worker: str) -> list[int]:
        """Return the processes of a job at a worker."""
        return [
            number
            for number, held in self.processes.items()
            if held.job == job and held.worker == worker
        ]

    def holds(self, numbers: Iterable[int]) -> bool:
        """Whether there are such processes, and each of them holds something."""
        found = [self.processes.get(number) for number in numbers]
        return bool(found) and all(held is not None and held.holds for held in found)

    def any_holds(self, worker: str = "") -> bool:
        """Whether any process holds something, at this worker or at all."""
        return any(
            held.holds
            for held in self.processes.values()
            if worker in ("", held.worker)
        )

    def worker_died(self, worker: str) -> None:
        """Its processes end with it."""
        for number in [n for n, h in self.processes.items() if h.worker == worker]:
            del self.processes[number]

    def _held(self, worker: str, job: str, process: int) -> Held:
        return self.processes.setdefault(process, Held(job, worker))

    def _registered(self, worker: str, message: m.Register) -> None:
        self.worker_died(worker)
        for one in message.held:
            held = self._held(worker, one.job, one.process)
            held.leases.update(one.requests)
