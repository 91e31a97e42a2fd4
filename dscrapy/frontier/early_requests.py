"""Requests that took effect before the page that asked for them was finished.

A page may be run more than once: its process dies, or was given up and is not dead yet.
Each run asks for the page's requests anew, and ``dont_filter`` requests are compared
with no others. So a request of a page has a *digest*, which its process makes of what
the request holds. For each open page it is counted how many requests of a digest are
*there*, from whichever runs. The k-th request of a digest in one run is passed over if
k or more are there; else it is added, and is there from now on.

So after any number of runs, cut short anywhere, as many are there of each digest as the
run with the most of it has asked for. The counts end with the page. Where the page is
done by a request that takes its place (it was redirected, or is tried again), what its
earlier runs gave and the last did not is counted for that request.
"""

from collections import Counter
from collections.abc import Mapping

import attrs

from dscrapy.messages import DIGEST_BYTES

# How many requests of each digest one run of a page has asked for.
Given = Mapping[bytes, int]


def split_digests(digests: bytes) -> list[bytes]:
    """Return digests that come in one piece."""
    return [
        digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)
    ]


@attrs.define(eq=False)
class EarlyRequests:
    """How many requests of each digest are there, by the number of the open page."""

    _counts: dict[int, Counter[bytes]] = attrs.field(init=False, factory=dict)

    def has(self, page: int) -> bool:
        """Tell whether a page has requests that are there."""
        return page in self._counts

    def differs(self, page: int, given: Given) -> bool:
        """Tell whether other runs have asked for requests that this one has not."""
        counts = self._counts.get(page, Counter[bytes]())
        return any(count > given.get(digest, 0) for digest, count in counts.items())

    def passed_over(
        self, page: int, given: Given, undecided: Counter[bytes], digests: bytes
    ) -> list[bool]:
        """Return for each of a run's next requests whether one is there already, beside
        those ``given`` and those ``undecided`` before them; add them to the latter."""
        counts = self._counts.get(page, Counter[bytes]())
        passed = []
        for digest in split_digests(digests):
            undecided[digest] += 1
            rank = given.get(digest, 0) + undecided[digest]
            passed.append(rank <= counts[digest])
        return passed

    def note(self, page: int, given: Given, digests: bytes) -> None:
        """Note that the latest requests of a run, of these digests, are there; they are
        among those ``given``."""
        counts = self._counts.setdefault(page, Counter())
        for digest in split_digests(digests):
            counts[digest] = max(counts[digest], given[digest])

    def end(self, page: int, given: Given, successor: int | None) -> None:
        """Forget a page that is done by the run that has ``given`` so much; a successor
        takes its place."""
        counts = self._counts.pop(page, None)
        if counts is None or successor is None:
            return
        left = counts - Counter(given)
        if left:
            self._counts[successor] = left

    def forget(self, page: int) -> None:
        """Forget a page that is done without a run."""
        self._counts.pop(page, None)

    def dump(self) -> dict[int, bytes]:
        """Return for each page the digests that are there, each as often as it is."""
        return {
            page: b"".join(counts.elements()) for page, counts in self._counts.items()
        }

    def restore(self, dumped: Mapping[int, bytes]) -> None:
        """Take what ``dump`` returned."""
        for page, digests in dumped.items():
            self._counts[page] = Counter(split_digests(digests))
