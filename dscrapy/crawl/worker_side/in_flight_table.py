"""Marks the requests under way, for the worker to read when this process has died."""

import mmap
import os

from dscrapy.proto.in_flight import (
    AWAITS_AT,
    HEADER_BYTES,
    NUMBER,
    RAN_LAST_AT,
    SLOT_BYTES,
    SLOTS_FIRST,
    SLOTS_MAX,
    STAGE_AT,
    STAGES,
    Stage,
    encode_url,
    file_bytes,
)


class InFlightTable:
    """The marks of ``proto.in_flight`` in the file ``fd``, mapped; see there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._size = SLOTS_FIRST
        self._ran_last = 0
        self._map = self._mapped()

    def _mapped(self) -> mmap.mmap:
        size = file_bytes(self._size)
        os.ftruncate(self._fd, size)
        return mmap.mmap(self._fd, size)

    def add(self, request: int, url: str) -> None:
        """Mark a request that is about to start; a second call changes its URL."""
        slot = self._slots.get(request)
        if slot is None:
            slot = self._free_slot()
            if slot is None:
                return
            self._slots[request] = slot
        at = _place(slot)
        NUMBER.pack_into(self._map, at, 0)
        self._map[at + STAGE_AT] = 0
        text = encode_url(url)
        start = at + STAGE_AT + 1
        self._map[start : start + len(text)] = text
        NUMBER.pack_into(self._map, at, request)

    def _free_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        if self._used == self._size:
            if self._size >= SLOTS_MAX:
                return None
            self._size *= 2
            self._map = self._mapped()
        self._used += 1
        return self._used - 1

    def reach(self, request: int, stage: Stage) -> None:
        """Note that a marked request has come to this stage."""
        slot = self._slots.get(request)
        if slot is not None:
            self._map[_place(slot) + STAGE_AT] = STAGES.index(stage)

    def run(self, request: int) -> None:
        """Note that code of this request runs from now on; 0: of none."""
        if request != self._ran_last:
            self._ran_last = request
            NUMBER.pack_into(self._map, RAN_LAST_AT, request)

    def await_stdin(self, *, on: bool) -> None:
        """Mark whether the event loop stands still until there is input."""
        self._map[AWAITS_AT] = on

    def remove(self, request: int) -> None:
        """Wipe the mark of a request that is finished."""
        slot = self._slots.pop(request, None)
        if slot is not None:
            NUMBER.pack_into(self._map, _place(slot), 0)
            self._free.append(slot)


def _place(slot: int) -> int:
    return HEADER_BYTES + slot * SLOT_BYTES
