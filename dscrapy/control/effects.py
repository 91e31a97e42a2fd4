"""What follows from a record outside the state: writes, bodies, leases, answers.

A write may be done again. Each names the length of the file at which it begins, so a
replay does the same writes at the same places, and cuts a file that a crash left
longer.
"""

import attrs
import msgspec

from dscrapy.control.state.processes import Process
from dscrapy.frontier.frontier import Granted


@attrs.frozen
class Append:
    """Write ``data`` at byte ``at`` of the file, which then ends there."""

    name: str
    at: int
    data: bytes


@attrs.frozen
class Move:
    """Write the first ``count`` bytes of ``spool`` at byte ``at`` of the file."""

    name: str
    at: int
    spool: str
    count: int


@attrs.frozen
class Discard:
    """The file may go once no replay can begin before this record, unless it is
    written to again."""

    name: str


@attrs.frozen
class Clear:
    """The folder of a removed job goes at once: a replay that writes into it comes to
    this write, too."""

    name: str


Write = Append | Move | Discard | Clear


def coalesced(writes: list[Write]) -> list[Write]:
    """Return the same writes; appends that continue each other become one."""
    result: list[Write] = []
    # Appends that may still be continued, by file: their place in the result.
    open_appends: dict[str, int] = {}
    pieces: dict[int, list[bytes]] = {}
    ends: dict[str, int] = {}
    for write in writes:
        if not isinstance(write, Append):
            # A move reads its spool as it is now.
            open_appends.clear()
            result.append(write)
            continue
        place = open_appends.get(write.name)
        if place is not None and ends[write.name] == write.at:
            pieces[place].append(write.data)
            ends[write.name] += len(write.data)
            continue
        open_appends[write.name] = len(result)
        pieces[len(result)] = [write.data]
        ends[write.name] = write.at + len(write.data)
        result.append(write)
    for place, parts in pieces.items():
        write = result[place]
        assert isinstance(write, Append)
        result[place] = Append(write.name, write.at, b"".join(parts))
    return result


@attrs.frozen
class Bodies:
    """Bodies of requests, which begin at byte ``at`` of the job's file of them."""

    job: str
    at: int
    payloads: tuple[msgspec.Raw, ...]


@attrs.define
class Effects:
    """The effects of records, in the order of the records.

    ``granted`` are new leases, with their process; ``answered`` are calls
    that waited for a job that has ended: session, call and job; ``touched`` are jobs
    that have changed, so that they are to be reconciled.
    """

    writes: list[Write] = attrs.field(factory=list)
    bodies: list[Bodies] = attrs.field(factory=list)
    granted: list[tuple[Process, Granted]] = attrs.field(factory=list)
    answered: list[tuple[int, int, str]] = attrs.field(factory=list)
    touched: list[str] = attrs.field(factory=list)

    def add(self, other: "Effects") -> None:
        """Add the effects of the next record."""
        # Most records lead to one or two of them.
        if other.writes:
            self.writes += other.writes
        if other.bodies:
            self.bodies += other.bodies
        if other.granted:
            self.granted += other.granted
        if other.answered:
            self.answered += other.answered
        if other.touched:
            self.touched += other.touched
