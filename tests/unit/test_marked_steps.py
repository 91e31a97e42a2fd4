"""A mark before each step of a page's code, whatever kind of code it is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Generator, Iterator
from typing import Any

import pytest

from dscrapy.crawl.insides.marked_steps import Marked, marked_output


class Turns:
    """Notes which page's code runs; the code of ``page`` may look."""

    def __init__(self) -> None:
        self.now = 0
        self.marks = 0

    def of(self, page: int) -> Any:
        """Return the mark of a page."""

        def mark() -> None:
            self.now = page
            self.marks += 1

        return mark


def test_coroutines_take_turns_and_each_step_is_marked() -> None:
    """Three pages wait in one loop; whoever is resumed finds its own mark."""
    turns = Turns()

    async def code(page: int) -> int:
        for _ in range(5):
            assert turns.now == page
            await asyncio.sleep(0)
        with pytest.raises(KeyError):
            await fails()
        assert turns.now == page
        return page

    async def fails() -> None:
        await asyncio.sleep(0.001)
        raise KeyError

    async def main() -> list[Any]:
        return await asyncio.gather(
            *(_await(Marked(code(page), turns.of(page))) for page in (1, 2, 3))
        )

    assert asyncio.run(main()) == [1, 2, 3]


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def test_a_cancel_reaches_the_code() -> None:
    """It may clean up, marked as well, and await more."""
    turns = Turns()
    seen: list[int] = []

    async def code() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            seen.append(turns.now)
            await asyncio.sleep(0)
            seen.append(turns.now)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(_await(Marked(code(), turns.of(7))))
        await asyncio.sleep(0)
        turns.now = 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == [7, 7]


def test_generators_are_marked_before_each_element() -> None:
    """Two callbacks whose elements are drawn by turns; errors come through."""
    turns = Turns()

    def callback(page: int) -> Iterator[int]:
        for number in range(3):
            assert turns.now == page
            yield number
        raise KeyError(page)

    one, two = (marked_output(callback(page), turns.of(page)) for page in (1, 2))
    assert isinstance(one, Generator)
    assert [next(drawn) for _ in range(3) for drawn in (one, two)] == [0, 0, 1, 1, 2, 2]
    for drawn in (one, two):
        with pytest.raises(KeyError):
            next(drawn)


def test_async_generators_are_marked_at_each_step() -> None:
    """Also within an element."""
    turns = Turns()

    async def callback(page: int) -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            assert turns.now == page
            yield number

    async def drawn(page: int) -> list[int]:
        output = marked_output(callback(page), turns.of(page))
        return [number async for number in output]

    async def main() -> list[list[int]]:
        return list(await asyncio.gather(drawn(1), drawn(2)))

    assert asyncio.run(main()) == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("output", [None, [1, 2], {"a": 1}, ()])
def test_what_has_run_is_left_as_it_is(output: Any) -> None:
    """No code of it is to come."""
    turns = Turns()
    assert marked_output(output, turns.of(1)) is output
    assert turns.marks == 0
