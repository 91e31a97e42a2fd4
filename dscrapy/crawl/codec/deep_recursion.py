"""Calls that recurse deeper than the interpreter allows by itself.

Values that nest deep are read and written by code that calls itself for each level,
in C as well, so a raised limit alone would trade an error for a crash of the process.
Such a call runs in a thread whose stack is large enough for the raised limit, while
the calling one waits for it: it sees the same context variables, and nothing of the
project runs beside it.
"""

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Levels of calls: ``items.DEPTH_MAX`` levels of a value, at four calls and up to three
# levels of JSON each, doubled for calls of the project's own classes.
RECURSION_MAX = 20_000
# Four KiB for each level, of which a call through C takes about one. Only pages of the
# stack that are touched take memory, and they go with the thread.
STACK_BYTES = 80 * 1024 * 1024


def deeply(call: Callable[[], T]) -> T:
    """Return what ``call`` returns or raise what it raises, with a deep stack.

    ``RecursionError`` beyond ``RECURSION_MAX``, ``RuntimeError`` when there can be no
    further thread.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            errors.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=_in(context, run), name="deep", daemon=True)
    limit = sys.getrecursionlimit()
    stack = threading.stack_size(STACK_BYTES)
    try:
        sys.setrecursionlimit(max(limit, RECURSION_MAX))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(stack)
        sys.setrecursionlimit(limit)
    if errors:
        raise errors[0]
    return results[0]


def _in(context: contextvars.Context, call: Callable[[], None]) -> Callable[[], Any]:
    return lambda: context.run(call)
