"""The order of requests, in a host's queues and over hosts."""

from dscrapy.frontier.queues import (
    OUTDATED_HEADS_MIN,
    Entry,
    Heads,
    Order,
    Queues,
    flags_of,
    priority_of,
    rank_of,
    returned,
)
from dscrapy.messages import DONT_FILTER, START_REQUEST

FIFO = Order(lifo=False, start_lifo=False)


def test_ranks_order_requests() -> None:
    """Priority first, then what came back, then ordinary before start ones."""
    for priority in (-(10**30), -3, 0, 7, 2**70):
        ordinary = rank_of(priority, DONT_FILTER)
        start = rank_of(priority, START_REQUEST)
        ranks = [
            *(returned(ordinary), returned(start), ordinary, start),
            rank_of(priority - 1, 0),
        ]
        assert ranks == sorted(set(ranks))
        for rank in (ordinary, start, returned(ordinary), returned(start)):
            assert priority_of(rank) == priority
            assert returned(returned(rank)) == returned(rank)
        assert [flags_of(rank) for rank in ranks[:4]] == [0, START_REQUEST] * 2


def _filled(numbers: tuple[int, ...]) -> tuple[Queues, dict[int, Entry]]:
    queues, rank = Queues(), rank_of(0, 0)
    for number in numbers:
        queues.push(number, rank)
    return queues, {number: Entry("h", rank, 0, 0) for number in numbers}


def test_each_end_can_be_first() -> None:
    """Oldest or newest, by a rule of its own for start requests."""
    queues, entries = _filled((1, 2, 3))
    for number in (4, 5):
        entries[number] = Entry("h", rank_of(1, START_REQUEST), 0, 0)
        queues.push(number, entries[number].rank)
    for lifo in (False, True):
        for start_lifo in (False, True):
            key = queues.head(entries, Order(lifo=lifo, start_lifo=start_lifo))
            assert key is not None
            assert abs(key[1]) == (5 if start_lifo else 4)
    del entries[4], entries[5]
    assert queues.head(entries, FIFO) == (rank_of(0, 0), 1)
    assert queues.head(entries, Order(lifo=True, start_lifo=False)) == (
        *(rank_of(0, 0), -3),
    )


def test_what_left_is_dropped_and_may_come_back() -> None:
    """A number is where its entry says, whatever an old queue still holds."""
    queues, entries = _filled((1, 2, 3, 4))
    entries[2].process = entries[3].process = 9
    entries[3].rank = entries[2].rank = returned(rank_of(0, 0))
    for number in (3, 2):
        entries[number].process = None
        queues.push(number, entries[number].rank)
    # Leased from the middle and back: it is still in the queue.
    queues.push(2, entries[2].rank)
    order = []
    while key := queues.head(entries, FIFO):
        order.append(key[1])
        del entries[key[1]]
    assert order == [2, 3, 1, 4]
    assert queues.head(entries, FIFO) is None


def test_trimming_keeps_a_queue_small() -> None:
    """Done at either end they are gone at once, those in between with the next."""
    queues, entries = _filled(tuple(range(1, 101)))
    for number in (2, 1, 99, 100, 50):
        del entries[number]
        left = queues.trim(rank_of(0, 0), entries)
    assert list(left) == list(range(3, 99))


def test_heads_give_the_first_of_all() -> None:
    """Changed and dropped hosts count as they are now."""
    heads = Heads()
    assert heads.first() is None
    heads.set("a", (0, 5))
    heads.set("b", (0, 6))
    heads.set("a", (0, 7))
    heads.set("a", (0, 7))
    heads.drop("unknown")
    assert (heads.first(), len(heads)) == (((0, 6), "b"), 2)
    heads.drop("b")
    assert heads.first() == ((0, 7), "a")
    heads.set("b", (0, 6))
    heads.drop("a")
    assert heads.first() == ((0, 6), "b")


def test_outdated_heads_do_not_pile_up() -> None:
    """However often a host's first request changes, the heap follows the hosts."""
    heads = Heads()
    for host in range(10):
        heads.set(str(host), (0, 10**6 + host))
    for number in range(10_000):
        heads.set("x", (0, -number))
        assert len(heads._heap) <= 11 + OUTDATED_HEADS_MIN + 1
    assert heads.first() == ((0, -9999), "x")
    heads.drop("x")
    assert heads.first() == ((0, 10**6), "0")
