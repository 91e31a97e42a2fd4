"""Whose code runs: a mark is set before each step of a callback or a pipeline.

Steps of many pages take turns in one event loop, and Python tells nobody when a
coroutine is resumed. So what a page's code gives is wrapped: a generator before each of
its elements, a coroutine before each of its steps.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from typing import Any

Mark = Callable[[], None]


class Marked(Awaitable[Any]):
    """Awaits something, and calls ``mark`` before each of its steps."""

    __slots__ = ("_awaitable", "_mark")

    def __init__(self, awaitable: Awaitable[Any], mark: Mark) -> None:
        self._awaitable = awaitable
        self._mark = mark

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._awaitable.__await__()
        step: Any = steps.__next__
        argument: tuple[Any, ...] = ()
        while True:
            self._mark()
            try:
                yielded = step(*argument)
            except StopIteration as end:
                return end.value
            try:
                sent = yield yielded
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - thrown in here for the steps
                step, argument = steps.throw, (error,)
            else:
                # An iterator that is no generator has no ``send``.
                step = steps.__next__ if sent is None else steps.send
                argument = () if sent is None else (sent,)


def marked_output(output: Any, mark: Mark) -> Any:
    """Return what a callback gave; code that is still to run calls ``mark``."""
    if isinstance(output, AsyncIterator):
        return _marked_async(output, mark)
    if isinstance(output, Iterator):
        return _marked(output, mark)
    return output


def _marked(elements: Iterator[Any], mark: Mark) -> Generator[Any, None, None]:
    while True:
        mark()
        try:
            element = next(elements)
        except StopIteration:
            return
        yield element


async def _marked_async(
    elements: AsyncIterator[Any], mark: Mark
) -> AsyncGenerator[Any, None]:
    while True:
        try:
            element = await Marked(elements.__anext__(), mark)
        except StopAsyncIteration:
            return
        yield element
