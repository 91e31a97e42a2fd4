"""What the master remembers of one process of a job."""

from bisect import bisect_left, insort
from typing import Literal, Self

import attrs

from dscrapy.messages import UNITS_AHEAD_MAX, Opened

Role = Literal["crawl", "export"]


@attrs.define(kw_only=True)
class Spool:
    """The stored parts of one commit: their number, their whole items, and their bytes
    of lines and of tagged forms. ``is_open``: the bytes end with a piece of an item.
    ``given`` counts by digest the requests of a page that have effect already."""

    parts: int = 0
    items: int = 0
    items_bytes: int = 0
    tagged_bytes: int = 0
    filtered: int = 0
    is_open: bool = False
    given: dict[bytes, int] = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class LastingProcess:
    """The part of a process that survives a restart of the master.

    All units up to ``units`` are settled, and those in ``units_beyond``, which rise and
    are at most ``UNITS_AHEAD_MAX``. ``starts`` of the units were elements of
    ``start()``. ``spools`` holds commits of which parts are stored, by ``spool_key``.
    ``ending``: the process has committed all but what closing gives, and waits for an
    order; ``concludes``: it was told to end the job. ``closed``: it has made its last
    commit. ``instance`` is that of its worker, empty where an older master started the
    process. ``beside``: it writes feeds, and was started before the crawl was over.
    """

    number: int
    job: str
    worker: str
    instance: str = ""
    role: Role = "crawl"
    beside: bool = False
    units: int = 0
    units_beyond: list[int] = attrs.field(factory=list)
    starts: int = 0
    ending: bool = False
    concludes: bool = False
    closed: bool = False
    spools: dict[str, Spool] = attrs.field(factory=dict)

    @property
    def is_through(self) -> bool:
        """Whether all that its crawl gave is committed."""
        return self.ending or self.closed

    def has_unit(self, unit: int) -> bool:
        """Whether this unit has effect already."""
        at = bisect_left(self.units_beyond, unit)
        return unit <= self.units or self.units_beyond[at : at + 1] == [unit]

    def add_unit(self, unit: int) -> None:
        """Note that the unit has effect; later units may overtake one in parts."""
        beyond = self.units_beyond
        insort(beyond, unit)
        if len(beyond) > UNITS_AHEAD_MAX:
            # So many units came since: an older one is not under way any more.
            self.units = beyond[0] - 1
        passed = 0
        while passed < len(beyond) and beyond[passed] == self.units + 1:
            self.units += 1
            passed += 1
        del beyond[:passed]

    @property
    def last_unit(self) -> int:
        """The highest unit that has effect."""
        return self.units_beyond[-1] if self.units_beyond else self.units


@attrs.define(kw_only=True)
class Process(LastingProcess):
    """A process that the master counts on, with what is known since the master's start.

    ``opened`` is what its project asks for, None before its spider is open.
    ``stopping``: it was told to stop, or closes by itself, and takes no more leases.
    ``ordered``: it was told to retire or to conclude; ``dismissed``: it was told that
    its last commit has effect. ``items_end_sent``: it writes feeds, and was told that
    the crawl is over. ``idle_since`` is the instant since which it has had no lease, of
    the run clock, None while it has one; ``waits_since`` that since which all its
    leases have been past their download, without a commit.
    """

    opened: Opened | None = None
    stopping: bool = False
    ordered: bool = False
    dismissed: bool = False
    items_end_sent: bool = False
    idle_since: float | None = None
    waits_since: float | None = None

    def lasting(self) -> LastingProcess:
        """Return what survives a restart."""
        return LastingProcess(
            **{field.name: getattr(self, field.name) for field in _LASTING}
        )

    @classmethod
    def restore(cls, lasting: LastingProcess) -> Self:
        """Return the process of which an earlier master stored this part."""
        process = cls(
            **{field.name: getattr(lasting, field.name) for field in _LASTING}
        )
        # Earlier formats stored the units in the order in which they came.
        process.units_beyond.sort()
        return process

    def begin_anew(self) -> None:
        """Forget all that is known since the master's start: the job begins afresh."""
        fresh = self.restore(self)
        for field in attrs.fields(Process):
            setattr(self, field.name, getattr(fresh, field.name))


_LASTING = attrs.fields(LastingProcess)


def spool_key(request: int, unit: int) -> str:
    """Return what names a commit of a process: of a request or of a unit."""
    return f"r{request}" if request else f"u{unit}"
