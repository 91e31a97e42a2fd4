"""What all tests share: async tests run in trio, hypothesis profiles."""

import inspect
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, cast

import hypothesis
import pytest
import trio
import trio.testing

# A busy machine is no defect, and what a clock stops cannot be repeated: examples and
# steps bound a test, neither a deadline nor how long it took to draw an input. Speed
# belongs to the benchmarks. What a run found is printed so that any machine can repeat
# it.
hypothesis.settings.register_profile(
    "dev",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "ci",
    parent=hypothesis.settings.get_profile("dev"),
    derandomize=False,
    database=None,
)
hypothesis.settings.register_profile(
    "long", parent=hypothesis.settings.get_profile("ci"), max_examples=2000
)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


# A shell that starts the tests in the background has them ignore Ctrl-C, and so would
# the programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Virtual time that jumps whenever every task waits; a test's trio run uses it."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run an ``async def`` test in trio, under its MockClock fixture if it has one."""
    function = pyfuncitem.obj
    inner = getattr(function, "hypothesis", None)
    if inner is not None and inspect.iscoroutinefunction(inner.inner_test):
        # Hypothesis calls this once for each example.
        inner.inner_test = _in_trio(inner.inner_test)
    elif inspect.iscoroutinefunction(function):
        pyfuncitem.obj = _in_trio(function)


def _in_trio(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        clocks = [
            value for value in kwargs.values() if isinstance(value, trio.abc.Clock)
        ]
        assert len(clocks) <= 1, "a test has one clock"
        main = cast(Callable[[], Awaitable[None]], partial(function, *args, **kwargs))
        trio.run(main, clock=clocks[0] if clocks else None)

    return run
