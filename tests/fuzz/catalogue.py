"""The targets there are: where each stands, and whose branches guide the search.

Nothing of dscrapy is imported here: it must be instrumented while it is imported.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import attrs

# Names only, so that whoever reads a report finds the code.
WIRE = "tests.fuzz.wire"
PORTS = "tests.fuzz.ports"
MACHINE = "tests.fuzz.machine"
DISK = "tests.fuzz.disk"
FILES = "tests.fuzz.files"
CRAWL = "tests.fuzz.crawl"


@attrs.define
class Tally:
    """What a run has done; a target adds its frames and flipped bits."""

    executions: int = 0
    bytes: int = 0
    frames: int = 0
    flips: int = 0


# Takes an input; returns, or raises what is a finding. Adds to the tally.
Run = Callable[[bytes, Tally], None]


@attrs.frozen(kw_only=True)
class Target:
    """``seeds`` are inputs that get far; ``bytes_max`` bounds what is tried."""

    run: Run
    seeds: Callable[[], list[bytes]]
    bytes_max: int = 4096


@attrs.frozen
class Place:
    """Where a target stands, and the packages whose branches count."""

    module: str
    attribute: str
    guides: tuple[str, ...]


PLACES: dict[str, Place] = {
    "frames": Place(WIRE, "FRAMES", ("dscrapy.proto",)),
    "messages": Place(WIRE, "MESSAGES", ("dscrapy.proto",)),
    "process-link": Place(
        WIRE,
        "PROCESS_LINK",
        ("dscrapy.proto", "dscrapy.worker", "dscrapy.crawl.worker_side.worker_link"),
    ),
    "held": Place(WIRE, "HELD", ("dscrapy.worker",)),
    "master-port": Place(
        PORTS,
        "MASTER_PORT",
        ("dscrapy.proto", "dscrapy.net", "dscrapy.master", "dscrapy.frontier"),
    ),
    "worker-port": Place(
        PORTS, "WORKER_PORT", ("dscrapy.proto", "dscrapy.net", "dscrapy.worker")
    ),
    "dialler": Place(PORTS, "DIALLER", ("dscrapy.proto", "dscrapy.net")),
    "machine": Place(MACHINE, "MACHINE", ("dscrapy.frontier",)),
    "segment": Place(DISK, "SEGMENT", ("dscrapy.journal",)),
    "journal": Place(DISK, "JOURNAL", ("dscrapy.journal", "dscrapy.master.journal")),
    "snapshot": Place(DISK, "SNAPSHOT", ("dscrapy.journal", "dscrapy.frontier")),
    "records": Place(DISK, "RECORDS", ("dscrapy.control.events.journalled",)),
    "conf": Place(FILES, "CONF", ("dscrapy.conf.config", "dscrapy.conf.strict")),
    "jobfile": Place(
        FILES, "JOBFILE", ("dscrapy.conf.job_file", "dscrapy.conf.strict")
    ),
    "state-files": Place(FILES, "STATE_FILES", ("dscrapy.conf.config", "dscrapy.cli")),
    "names": Place(FILES, "NAMES", ("dscrapy.conf.job_file", "dscrapy.model")),
    "values": Place(CRAWL, "VALUES", ("dscrapy.crawl.codec.tags",)),
    "requests": Place(
        CRAWL,
        "REQUESTS",
        ("dscrapy.crawl.codec.tags", "dscrapy.crawl.codec.request_bodies"),
    ),
    "stats": Place(
        CRAWL, "STATS", ("dscrapy.crawl", "dscrapy.control.state.job_stats")
    ),
}


def load(name: str) -> Target:
    """Import a target, and with it what it fuzzes."""
    place = PLACES[name]
    found = getattr(import_module(place.module), place.attribute)
    return cast(Target, found)


def atheris_or_none() -> Any:
    """Return the module atheris, None where it is not installed."""
    try:
        return import_module("atheris")
    except ImportError:
        return None


def run_once(target: Target, data: bytes, tally: Tally) -> None:
    """Run the target on an input that counts."""
    tally.executions += 1
    tally.bytes += len(data)
    target.run(data, tally)


def replay(name: str, path: Path) -> None:
    """Run the target on the input of a file; raises what it raises."""
    run_once(load(name), path.read_bytes(), Tally())
