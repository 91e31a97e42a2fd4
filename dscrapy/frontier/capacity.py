"""How much work there is for a job's processes, and how much more they could take."""

import attrs

from dscrapy.frontier.open_requests import OpenRequests
from dscrapy.frontier.politeness import at_once
from dscrapy.frontier.priority_index import PriorityIndex
from dscrapy.frontier.quarantine import Quarantine
from dscrapy.frontier.rights import Process, Rights

# A process gets no leases while more than this part of its window is taken. So grants
# come in batches, and the process still has more leases than its downloader takes at a
# time (two thirds of the window).
LOW_WATER = 0.75


@attrs.define(eq=False)
class Capacity:
    """Answers questions and changes nothing; a process is named by its number.

    A lease takes a place of its process's window until its download is over.
    """

    _rights: Rights
    _index: PriorityIndex
    _requests: OpenRequests
    _quarantine: Quarantine

    def room(self, number: int) -> int:
        """Return how many leases a process should be given now."""
        process = self._rights.processes.get(number)
        if process is None or process.closing:
            return 0
        if number == self._quarantine.isolator:
            return 0 if process.leases else process.window
        count = process.active
        return process.window - count if count <= process.window * LOW_WATER else 0

    def wants_process(self) -> bool:
        """Tell whether one more process would find work."""
        processes = self._rights.processes
        if any(len(process.busy) > 1 for process in processes.values()):
            return True
        return bool(self._index.free_count) and not any(map(self.room, processes))

    def spare_places(self) -> int:
        """Return how many requests beyond those that are pending the open processes
        could start at once; less than 0 where more are pending than could be started.

        A pending request counts like one in its download: it may be leased a moment
        later.
        """
        places = sum(map(self._places, self._rights.processes.values()))
        # Suspects wait for the isolator: they take no place of another process.
        pending = self._requests.pending_count - len(self._quarantine.waiting)
        return places - pending

    def is_short(self, *, was_short: bool) -> bool:
        """Tell whether processes have to wait for what the others' pages ask for.

        Work is short once nothing is pending, until it fills all processes.
        """
        is_empty = not self._requests.pending_count
        return (was_short or is_empty) and self.spare_places() > 0

    def waits_for_others(self, number: int) -> bool:
        """Tell whether a process could start more, but all pending requests wait for
        hosts of other processes."""
        process = self._rights.processes[number]
        is_able = self._places(process) > 0 and not process.busy
        return is_able and self._index.first(process) is None

    def workable_count(self) -> int:
        """Return how many hosts have pending requests that may be leased; a shared one
        counts for each of its holders."""
        processes = self._rights.processes.values()
        held = sum(len(process.busy) for process in processes)
        return held + self._index.free_count

    def occupied_count(self) -> int:
        """Return how many processes have downloads, but have a right to no host that
        counts as workable."""
        return sum(
            bool(process.active) and not process.busy and not process.closing
            for process in self._rights.processes.values()
        )

    def _places(self, process: Process) -> int:
        if process.closing or process.number == self._quarantine.isolator:
            return 0
        return at_once(process.window) - process.active
