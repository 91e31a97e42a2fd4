"""The requests that a lease or unit gave, on their way to the master, part by part.

Data that many requests carry (a page's document, say) is a *value*: it travels once in
a commit, in the part of the first request that refers to it. Values are numbered as
they leave; the master stores them beside the bodies.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from dscrapy.messages import Children

# Bytes of a child in a commit beside its body and host: fingerprint, numbers.
_CHILD_BYTES = 48
NO_VALUES: Mapping[bytes, bytes] = MappingProxyType({})


class Child(NamedTuple):
    """A request that a lease or unit gave; fields as in ``messages.Children``.

    ``values`` are digests of the values that its body refers to.
    """

    fingerprint: bytes
    host: str
    priority: int
    flags: int
    body: bytes
    kind: int = 0
    values: tuple[bytes, ...] = ()


class ChildQueue:
    """Requests of one commit that have not been sent yet."""

    __slots__ = ("_children", "_numbers", "_values")

    def __init__(self) -> None:
        self._children: deque[tuple[Child, int]] = deque()
        # Values that wait for their first request to leave; numbers of those sent.
        self._values: dict[bytes, bytes] = {}
        self._numbers: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._children)

    def add(self, child: Child, values: Mapping[bytes, bytes] = NO_VALUES) -> int:
        """Take a request with the values of its digests; return the bytes it adds."""
        size = len(child.body) + len(child.host) + _CHILD_BYTES
        added = size
        for digest in child.values:
            if digest not in self._numbers and digest not in self._values:
                self._values[digest] = values[digest]
                added += len(values[digest])
        self._children.append((child, size))
        return added

    def take(self, bytes_max: int, *, at_least_one: bool) -> tuple[Children, int]:
        """Return requests of at most about ``bytes_max`` bytes, and their bytes."""
        children: list[Child] = []
        values: list[bytes] = []
        total = 0
        while self._children:
            child, size = self._children[0]
            new = [digest for digest in child.values if digest in self._values]
            size += sum(len(self._values[digest]) for digest in new)
            is_first = at_least_one and not children
            if not is_first and total + size > bytes_max:
                break
            self._children.popleft()
            children.append(child)
            total += size
            for digest in new:
                self._numbers[digest] = len(self._numbers)
                values.append(self._values.pop(digest))
        return columns(children, values, self._numbers), total

    def clear_flag(self, flag: int) -> None:
        """Take a flag from all requests."""
        self._children = deque(
            (Child(*child[:3], child.flags & ~flag, *child[4:]), size)
            for child, size in self._children
        )

    def clear(self) -> None:
        """Forget which values were sent: no request follows that refers to them."""
        self._numbers.clear()


def columns(
    children: Iterable[Child],
    values: Iterable[bytes] = (),
    numbers: Mapping[bytes, int] = MappingProxyType({}),
) -> Children:
    """Return requests as they travel; ``numbers`` are those of their values."""
    places: dict[str, int] = {}
    fingerprints, host_of, priorities, flags, bodies = [], [], [], [], []
    kinds: list[int] = []
    uses: list[tuple[int, ...]] = []
    for child in children:
        fingerprints.append(child.fingerprint)
        host_of.append(places.setdefault(child.host, len(places)))
        priorities.append(child.priority)
        flags.append(child.flags)
        bodies.append(msgspec.Raw(child.body))
        kinds.append(child.kind)
        uses.append(tuple(numbers[digest] for digest in child.values))
    return Children(
        fingerprints=b"".join(fingerprints),
        hosts=tuple(places),
        host_of=tuple(host_of),
        priorities=tuple(priorities),
        flags=tuple(flags),
        bodies=tuple(bodies),
        kinds=tuple(kinds) if any(kinds) else (),
        values=tuple(map(msgspec.Raw, values)),
        uses=tuple(uses) if any(uses) else (),
    )
