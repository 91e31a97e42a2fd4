"""Blocking calls beside the event loop."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class InThread(Protocol):
    """Runs a blocking call beside the event loop: ``trio.to_thread.run_sync``.

    Under a virtual clock, where no thread may be waited for, it is run in place.
    """

    async def __call__(self, call: Callable[[], T], /) -> T:
        """Return what ``call`` returns."""
