"""The supported versions of Scrapy, checked before any of it is imported."""

import inspect
from importlib import metadata
from typing import Any

from dscrapy.errors import UnsupportedError

# As in pyproject.toml. A newer Scrapy is not refused for its version: the probes name
# the parts that it lacks.
OLDEST = (2, 16)
SUPPORTED = "Scrapy 2.16 to 2.19"


def check_version() -> None:
    """Raise ``UnsupportedError`` where the installed Scrapy is too old, or none is."""
    try:
        version = metadata.version("scrapy")
    except metadata.PackageNotFoundError:
        raise UnsupportedError(f"Scrapy is not installed: {_needed()}") from None
    if _minor(version) < OLDEST:
        raise UnsupportedError(f"Scrapy {version} is too old: {_needed()}")


def _needed() -> str:
    return f"dscrapy needs {SUPPORTED} (pip install 'scrapy>={OLDEST[0]}.{OLDEST[1]}')"


def _minor(version: str) -> tuple[int, ...]:
    # "2.16.0rc1": the first two are numbers in every version that Scrapy has had.
    return tuple(int(part) for part in version.split(".")[:2])


def names_in(owner: type[Any], method: str) -> frozenset[str]:
    """Return the attributes and globals that a method's code uses; none without it."""
    function = inspect.unwrap(getattr(owner, method, None))  # type: ignore[arg-type]  # None has no code
    code = getattr(function, "__code__", None)
    return frozenset() if code is None else frozenset(code.co_names)
