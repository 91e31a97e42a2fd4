"""Marks the requests under way, for the worker to read when this process has died."""

import mmap

from dscrapy.proto.in_flight import (
    AWAITS_AT,
    FILE_BYTES,
    NUMBER,
    SLOT_BYTES,
    SLOTS_MAX,
    encode_url,
)


class InFlightTable:
    """The marks of ``proto.in_flight`` in the file ``fd``, mapped; see there."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, FILE_BYTES)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0

    def add(self, request: int, url: str) -> None:
        """Mark a request that is about to start; a second call changes its URL."""
        slot = self._slots.get(request)
        if slot is None:
            if not self._free:
                if self._used == SLOTS_MAX:
                    return
                self._free.append(self._used)
                self._used += 1
            slot = self._slots[request] = self._free.pop()
        at = slot * SLOT_BYTES
        NUMBER.pack_into(self._map, at, 0)
        text = encode_url(url)
        start = at + NUMBER.size
        self._map[start : start + len(text)] = text
        NUMBER.pack_into(self._map, at, request)

    def await_stdin(self, *, on: bool) -> None:
        """Mark whether the event loop stands still until there is input."""
        self._map[AWAITS_AT] = on

    def remove(self, request: int) -> None:
        """Wipe the mark of a request that is finished."""
        slot = self._slots.pop(request, None)
        if slot is not None:
            NUMBER.pack_into(self._map, slot * SLOT_BYTES, 0)
            self._free.append(slot)
