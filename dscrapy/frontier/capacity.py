"""How much work there is for a job's processes, and how much more they could take."""

import attrs

from dscrapy.frontier.open_requests import OpenRequests
from dscrapy.frontier.owners import Owners, Process
from dscrapy.frontier.politeness import at_once
from dscrapy.frontier.priority_index import PriorityIndex
from dscrapy.frontier.quarantine import Quarantine

# A process gets nothing while more than this part of its window is leased: so grants
# come in batches, and what is left is more than its downloader takes at a time (two
# thirds).
LOW_WATER = 0.75


@attrs.define(eq=False)
class Capacity:
    """Questions alone; a process is its number."""

    _owners: Owners
    _index: PriorityIndex
    _requests: OpenRequests
    _quarantine: Quarantine

    def room(self, number: int) -> int:
        """Return how many leases a process should be given now."""
        process = self._owners.processes.get(number)
        if process is None or process.closing:
            return 0
        count = len(process.leases)
        if number == self._quarantine.isolator:
            return 0 if count else 1
        return process.window - count if count <= process.window * LOW_WATER else 0

    def wants_process(self) -> bool:
        """Tell whether one more process would find work."""
        processes = self._owners.processes
        if any(len(process.busy) > 1 for process in processes.values()):
            return True
        return bool(self._index.free_count) and not any(map(self.room, processes))

    def spare_places(self) -> int:
        """Return how many requests beyond those that are pending the open processes
        could start at once; less than 0 where there are more than that.

        What is pending counts as what is leased: it may be so a moment later.
        """
        places = sum(map(self._places, self._owners.processes.values()))
        # Suspects wait for a process of their own: they take nobody's place.
        pending = self._requests.pending_count - len(self._quarantine.waiting)
        return places - pending

    def waits_for_others(self, number: int) -> bool:
        """Tell whether a process could start more, and all that is pending waits for
        hosts of others."""
        process = self._owners.processes[number]
        is_able = self._places(process) > 0 and not process.busy
        return is_able and self._index.first(process) is None

    def workable_count(self) -> int:
        """Return how many hosts have pending requests that may be leased."""
        processes = self._owners.processes.values()
        owned = sum(len(process.busy) for process in processes)
        return owned + self._index.free_count

    def occupied_count(self) -> int:
        """Return how many processes have leases, and no host of those that count as
        workable."""
        return sum(
            bool(process.leases) and not process.busy and not process.closing
            for process in self._owners.processes.values()
        )

    def _places(self, process: Process) -> int:
        if process.closing or process.number == self._quarantine.isolator:
            return 0
        return at_once(process.window) - len(process.leases)
