"""How far this process has come with its leases, as the master is still to be told.

A page that is committed before it was told of needs no word: its commit says all.
"""

from typing import Any


class LeaseProgress:
    """Notes what happens to leased requests, each named by its number.

    With ``is_in_order`` the end of a download is no news before ``let_go``: the
    master chooses the next lease by it, and is to do so when the engine asks.
    """

    def __init__(self) -> None:
        self.is_in_order = False
        self._held: dict[int, None] = {}
        self._started: dict[int, None] = {}
        self._downloaded: dict[int, None] = {}
        self._received: dict[int, None] = {}

    @property
    def is_news(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._started or self._downloaded or self._received)

    def start(self, request: int) -> None:
        """Note that a request has been given to Scrapy."""
        self._started[request] = None

    def end_download(self, request: int) -> None:
        """Note that the download of a request is over, with a response or without."""
        (self._held if self.is_in_order else self._downloaded)[request] = None

    def receive(self, request: int) -> None:
        """Note that a request has got a response."""
        self._received[request] = None

    def let_go(self) -> None:
        """Make news of the downloads that were held."""
        self._downloaded.update(self._held)
        self._held.clear()

    def forget(self, request: int) -> None:
        """Forget a request that is committed or given back."""
        for noted in (self._held, self._started, self._downloaded, self._received):
            noted.pop(request, None)

    def take(self) -> dict[str, Any]:
        """Return the news as fields of a message, and keep none."""
        fields = {
            "started": tuple(self._started),
            "downloaded": tuple(self._downloaded),
            "received": tuple(self._received),
        }
        for noted in (self._started, self._downloaded, self._received):
            noted.clear()
        return fields
