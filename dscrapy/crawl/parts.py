"""A run's lines on their way to the master: numbered parts under a credit.

No I/O and no clock: ``send`` takes whole messages. What is held here is bounded:
``PARTS_UNSEEN_MAX`` parts are under way, and whoever adds items is told by
``is_full`` to wait while more than ``UNSENT_BYTES_MAX`` gather behind them.
"""

from collections.abc import Callable

import msgspec

from dscrapy.messages import Commit, CommitSeen, Message, Run
from dscrapy.model import Outcome, Stats
from dscrapy.proto.framing import FRAME_BYTES_MAX

# A part goes when this much has gathered: large enough that a part's fsync is
# shared by many items, small enough that progress is seen and memory stays small.
PART_BYTES_MAX = 256 * 1024
# Parts that the master has not acknowledged. 16 of 256 KiB keep a fast line busy
# and bound what a crawl process and its worker hold while the master is away.
PARTS_UNSEEN_MAX = 16
# Beyond this, with no credit, items wait in the crawl: four parts.
UNSENT_BYTES_MAX = 4 * PART_BYTES_MAX
# The frame around the items: ids, an outcome with its traceback, JSON escapes.
ENVELOPE_BYTES_MAX = 64 * 1024
ITEM_BYTES_MAX = FRAME_BYTES_MAX - ENVELOPE_BYTES_MAX

_NULL = msgspec.Raw(b"null")


class ItemTooLargeError(Exception):
    """One item alone is larger than a message may be."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"one item is {size} bytes as JSON, the limit is {ITEM_BYTES_MAX}"
        )


class Parts:
    """The commit of one run, from its first item to its last answer."""

    def __init__(self, run: Run, send: Callable[[Message], None]) -> None:
        self._run = run
        self._send = send
        self._lines: list[bytes] = []
        self._tagged: list[bytes | None] = []
        self._sizes: list[int] = []
        self._bytes = 0
        self._next = 0
        self._unseen: set[int] = set()
        self._last: tuple[Outcome, Stats] | None = None
        self._last_number: int | None = None
        self.is_done = False

    @property
    def has_credit(self) -> bool:
        """Whether a part may be sent now."""
        return len(self._unseen) < PARTS_UNSEEN_MAX

    @property
    def is_full(self) -> bool:
        """Whether whoever adds items should wait for credit first."""
        return not self.has_credit and self._bytes >= UNSENT_BYTES_MAX

    def add(self, line: bytes, tagged: bytes | None) -> None:
        """Take an item's forms; ``ItemTooLargeError`` when no message can hold it."""
        assert self._last is None
        size = len(line) + len(tagged or b"null") + 2
        if size > ITEM_BYTES_MAX:
            raise ItemTooLargeError(size)
        self._lines.append(line)
        self._tagged.append(tagged)
        self._sizes.append(size)
        self._bytes += size
        self._send_full_parts()

    def flush(self) -> None:
        """Send what has gathered, as far as there is credit."""
        while self._lines and self.has_credit:
            self._send_part(last=False)

    def finish(self, outcome: Outcome, stats: Stats) -> None:
        """Send the rest and the last part, as soon as there is credit for each."""
        assert self._last is None
        self._last = (outcome, stats)
        self._go_on()

    def seen(self, answer: CommitSeen) -> None:
        """Take the master's answer to a part; it may come more than once."""
        self._unseen.discard(answer.part)
        if answer.part == self._last_number:
            self.is_done = True
        self._go_on()

    def _go_on(self) -> None:
        if self._last is None:
            self._send_full_parts()
            return
        if self._last_number is not None:
            return
        while self._bytes > PART_BYTES_MAX and self.has_credit:
            self._send_part(last=False)
        if self._bytes <= PART_BYTES_MAX and self.has_credit:
            self._send_part(last=True)

    def _send_full_parts(self) -> None:
        while self._bytes >= PART_BYTES_MAX and self.has_credit:
            self._send_part(last=False)

    def _send_part(self, *, last: bool) -> None:
        count = self._count_of_next_part()
        assert not last or count == len(self._lines)
        tagged = self._tagged[:count]
        outcome, stats = self._last if last and self._last else (None, {})
        number = self._next
        self._next += 1
        self._unseen.add(number)
        if last:
            self._last_number = number
        self._send(
            Commit(
                job=self._run.job,
                process=self._run.process,
                request=self._run.request,
                part=number,
                last=last,
                items=tuple(map(msgspec.Raw, self._lines[:count])),
                tagged=tuple(_raw(form) for form in tagged) if any(tagged) else (),
                outcome=outcome,
                stats=stats,
            )
        )
        self._bytes -= sum(self._sizes[:count])
        del self._lines[:count], self._tagged[:count], self._sizes[:count]

    def _count_of_next_part(self) -> int:
        """Return how many items make a part: at least one, up to the part's size."""
        count = total = 0
        for size in self._sizes:
            if count and total + size > PART_BYTES_MAX:
                break
            count += 1
            total += size
        return count


def _raw(form: bytes | None) -> msgspec.Raw:
    return _NULL if form is None else msgspec.Raw(form)
