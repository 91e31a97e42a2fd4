"""Probes of the downloader's slots: see ``probes``."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from scrapy import Request
from scrapy.core.downloader import Slot
from scrapy.crawler import Crawler

from dscrapy.crawl.insides.probes import engine_of
from dscrapy.crawl.insides.versions import names_in


def download_slots(crawler: Crawler) -> dict[str, Any]:
    """Return the downloader's slots by host, a dict that changes with them.

    Touches: ``downloader.slots``.
    Why: a request is given out only when its slot can send it.
    Found: 2.16 to 2.19.
    Else: a downloader of the project's own; the limits in the settings count alone.
    """
    slots: dict[str, Any] = getattr(engine_of(crawler).downloader, "slots", {})
    return slots


def room_in(slot: Any) -> int:
    """Return how many more requests a download slot could send now.

    Touches: ``Slot.free_transfer_slots`` and ``Slot.queue`` of the downloader.
    Why: as ``download_slots``.
    Found: 2.16 to 2.19.
    Else: an error of ours: a downloader that has slots has Scrapy's.
    """
    free: int = slot.free_transfer_slots() - len(slot.queue)
    return free


def transfers_in(slot: Any) -> int:
    """Return how many requests of a download slot are under way.

    Touches: ``Slot.transferring``.
    Why: a share is lowered once no more requests are under way.
    Found: 2.16 to 2.19.
    Else: as ``room_in``.
    """
    return len(slot.transferring)


def counts_transfers_late(downloader: type[Any]) -> bool:
    """Whether a downloader counts a transfer only when its task has begun.

    Touches: the code of ``Downloader._process_queue``, and ``_wait_for_download``.
    Why: an error: when one transfer ends, all of a slot's queue is sent.
    Found: 2.16 to 2.19 have it.
    Else: nothing is mended.
    """
    transfer = getattr(downloader, "_wait_for_download", None)
    starts = names_in(downloader, "_process_queue")
    return (
        inspect.iscoroutinefunction(transfer)
        and "_wait_for_download" in starts
        and "transferring" not in starts
    )


def counting_at_once(base: type[Any]) -> type[Any]:
    """Return a subclass of a downloader that counts a transfer when it is asked for.

    Touches: ``Downloader._wait_for_download`` and ``Slot.transferring``.
    Why: the mend for ``counts_transfers_late``, which is to be asked first.
    Found: 2.16 to 2.19.
    Else: ``counts_transfers_late`` has said no.
    """

    class CountingDownloader(base):  # type: ignore[misc]  # a base of run time
        # No coroutine function: its first line runs when the downloader calls it,
        # before it looks for the next free place.
        def _wait_for_download(
            self, slot: Any, request: Request, *args: Any
        ) -> Coroutine[Any, Any, None]:
            slot.transferring.add(request)
            waiting: Coroutine[Any, Any, None] = super()._wait_for_download(
                slot, request, *args
            )
            return waiting

    return CountingDownloader


class SharedSlot(Slot):
    """A download slot of a host of which this process may have a share alone.

    ``share`` returns it, None for all that the project allows.
    """

    __slots__ = ("share",)
    share: Callable[[], int | None]

    def free_transfer_slots(self) -> int:
        free: int = super().free_transfer_slots()
        share = self.share()
        return free if share is None else min(free, share - len(self.transferring))


def sharing(base: type[Any]) -> type[Any]:
    """Return a subclass of Scrapy's downloader whose slots are ``SharedSlot``s; its
    ``share_of`` returns a host's share. Any other downloader is returned as it is.

    Touches: ``Downloader._get_slot`` and ``slots``, ``Slot.free_transfer_slots``, and
    all that a ``Slot`` has when it is new.
    Why: several processes ask one host, together no more than the project allows.
    Found: 2.16 to 2.19.
    Else: hosts are not shared: each has one process at a time.
    """
    if not callable(getattr(base, "_get_slot", None)):
        return base

    class SharingDownloader(base):  # type: ignore[misc]  # a base of run time
        @staticmethod
        def share_of(host: str) -> int | None:
            return None

        def _get_slot(self, request: Request, *args: Any) -> tuple[str, Any]:
            host, slot = super()._get_slot(request, *args)
            if type(slot) is Slot:
                slot = self.slots[host] = _shared(slot, lambda: self.share_of(host))
            return host, slot

    return SharingDownloader


def _shared(slot: Slot, share: Callable[[], int | None]) -> SharedSlot:
    """Return a new slot as one that may be shared; touches as in ``sharing``."""
    new = SharedSlot.__new__(SharedSlot)
    for name in getattr(slot, "__dict__", None) or Slot.__slots__:
        setattr(new, name, getattr(slot, name))
    new.share = share
    return new


def share_hosts(crawler: Crawler, share_of: Callable[[str], int | None]) -> bool:
    """Let the downloader's slots keep within shares; False where it has other slots.

    Touches: nothing of Scrapy's; ``share_of`` is ours.
    Why: as ``sharing``.
    Found: 2.16 to 2.19.
    Else: False.
    """
    downloader = engine_of(crawler).downloader
    if not hasattr(downloader, "share_of"):
        return False
    downloader.share_of = share_of
    return True
