"""A host with open requests, and a process that may own it."""

import attrs

from dscrapy.frontier.queues import Heads, Queues


@attrs.define(eq=False, kw_only=True)
class Host:
    """A host with open requests; ``pending`` and ``leased`` count them, ``apart``
    those that are neither and wait for a process of their own.

    ``draining``: its owner gets no further leases. ``reserved``: the process that it
    is given up for. ``last_owner`` may have sent it a request at ``rest_at``.
    ``heads`` lists it now.
    """

    name: str
    queues: Queues = attrs.field(factory=Queues)
    pending: int = 0
    leased: int = 0
    apart: int = 0
    owner: int | None = None
    draining: bool = False
    reserved: int | None = None
    last_owner: int | None = None
    rest_at: float | None = None
    heads: Heads | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it can ever go out."""
        return not (self.pending or self.leased or self.apart)


@attrs.define(eq=False, kw_only=True)
class Process:
    """A process that is open or holds leases; ``window`` is 0 until it is open.

    It owns ``hosts``; those that are ``busy`` have pending requests and are not being
    given up. ``reserved`` is given up for it.
    """

    number: int
    window: int = 0
    closing: bool = False
    leases: set[int] = attrs.field(factory=set)
    hosts: dict[str, None] = attrs.field(factory=dict)
    busy: dict[str, None] = attrs.field(factory=dict)
    heads: Heads = attrs.field(factory=Heads)
    reserved: str | None = None
