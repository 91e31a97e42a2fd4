"""What every benchmark prints: machine, versions, command, and tables of samples."""

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence

import msgspec
import trio

from dscrapy.net.host import own_versions


def say(line: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def header(name: str, arguments: Sequence[str]) -> None:
    """Print what the figures below depend on."""
    versions = own_versions()
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    say(f"## {name}")
    say()
    say(f"command: python -m benchmarks.{name} {shlex.join(arguments)}".rstrip())
    say(
        f"machine: {os.cpu_count()} cores ({_processor()}), {platform.machine()}, "
        f"{platform.system()} {platform.release()}, load before {load}"
    )
    say(
        f"versions: dscrapy {versions.dscrapy}, Scrapy {versions.scrapy}, "
        f"Python {versions.python}, trio {trio.__version__}, "
        f"msgspec {msgspec.__version__}"
    )
    say()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def spread(samples: Sequence[float], unit: str, digits: int = 3) -> str:
    """Return median and range of samples, such as ``1.20 s (1.10-1.40)``."""
    middle = statistics.median(samples)
    low, high = min(samples), max(samples)
    if unit == "ms":
        middle, low, high = middle * 1000, low * 1000, high * 1000
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f}-{high:.{digits}f})"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table and an empty line."""
    lines = [titles, ["---"] * len(titles), *rows]
    for line in lines:
        assert len(line) == len(titles)
        say(f"| {' | '.join(line)} |")
    say()
