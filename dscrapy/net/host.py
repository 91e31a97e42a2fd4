"""What master and worker know of the machine they run on."""

import functools
import importlib.metadata
import platform
import time

import dscrapy
from dscrapy.model import Versions


def boot_instant() -> float:
    """Return an instant of a clock that counts suspend, in seconds.

    All processes of a machine read the same one.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@functools.cache
def own_versions() -> Versions:
    """Return the versions of what runs here."""
    return Versions(
        dscrapy=dscrapy.__version__,
        scrapy=importlib.metadata.version("scrapy"),
        python=platform.python_version(),
    )
