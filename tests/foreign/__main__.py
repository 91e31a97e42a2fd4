"""Run Scrapy's test spiders plain, with one process and with three; print a table.

``python -m tests.foreign SCRAPY``: the folder of an unpacked source distribution of
Scrapy, or of a checkout, of the version that is installed. Ends with 1 if anything
differs that ``cases`` does not name.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import scrapy

from tests.equivalence.runs import stats_in
from tests.foreign.cases import CASES, NOT_RUN, Case

PROJECT = Path(__file__).parent / "project"
# For hangs: the longest of these crawls takes some ten seconds.
WAIT_S = 300.0
# In the place of an exit code.
HANGS = -1000
# Stats that both have to have; others depend on time, machine or processes.
STATS = re.compile(
    r"finish_reason|response_received_count|item_(scraped|dropped).*|dupefilter/.*|"
    r"downloader/(request|response)_(count|method_count.*|status_count.*)|"
    r"downloader/exception.*|retry/.*|httperror/.*|spider_exceptions/.*|"
    r"request_depth_max|scheduler/(enqueued|dequeued)"
)


@attrs.frozen(kw_only=True)
class Outcome:
    """What one run showed."""

    code: int
    items: Counter[str]
    events: Counter[str]
    stats: dict[str, object]
    processes: int
    log: str


@attrs.frozen(kw_only=True)
class Bench:
    """Where runs take place: the folder with Scrapy's tests, its server's ports, a
    folder for files."""

    path: Path
    http: str
    https: str
    folder: Path

    def run(self, case: Case, processes: int | None) -> Outcome:
        """Run a case, plain where no number of processes is given."""
        kind = "plain" if processes is None else f"p{processes}"
        folder = self.folder / f"{case.name.replace(' ', '-').replace(',', '')}-{kind}"
        project = folder / "project"
        shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
        output, record = folder / "items.jsonl", folder / "record.jsonl"
        words = [sys.executable, "-P", "-m"]
        if processes is None:
            words += ["scrapy", "crawl", case.spider]
        else:
            words += ["dscrapy", "crawl", case.spider, "-p", str(processes), "--fresh"]
            words += ["--state", str(folder / "state")]
        words += ["-O", str(output), "-L", "INFO", "-s", f"RECORD={record}"]
        for name, value in {"http": self.http, "https": self.https}.items():
            if case.spider != "ExceptionSpider" and case.spider != "NoRequestsSpider":
                words += ["-a", f"{name}={value}"]
        for name, value in case.arguments.items():
            words += ["-a", f"{name}={value}"]
        for name, value in case.settings.items():
            words += ["-s", f"{name}={value}"]
        said = folder / "log.txt"
        with (
            said.open("wb") as log_file,
            subprocess.Popen(
                words,
                cwd=project,
                env=environment(self.path),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
            ) as process,
        ):
            try:
                code = process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = HANGS
        log = said.read_text(errors="replace")
        events = lines_of(record)
        return Outcome(
            code=code,
            items=Counter(lines_of(output)),
            events=Counter(json.dumps(json.loads(line)[1:]) for line in events),
            stats={k: v for k, v in stats_in(log).items() if STATS.fullmatch(k)},
            processes=len({json.loads(line)[0] for line in events}),
            log=log,
        )


def lines_of(path: Path) -> list[str]:
    """Return a file's lines, none where it is not there."""
    return path.read_text().splitlines() if path.exists() else []


def only_tests(sources: Path, folder: Path) -> Path:
    """Return a folder with Scrapy's ``tests`` alone: Scrapy is the installed one."""
    path = folder / "path"
    path.mkdir()
    (path / "tests").symlink_to(sources / "tests")
    return path


def environment(path: Path) -> dict[str, str]:
    """Return an environment in which ``tests`` is Scrapy's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DSCRAPY_", "SCRAPY_"))
    }
    return {**kept, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def server(path: Path) -> Iterator[tuple[str, str]]:
    """Run Scrapy's mock server; yield its ports for HTTP and HTTPS."""
    # As Scrapy's own test run does: the keys are in no release.
    subprocess.run(
        [sys.executable, "-c", "from tests import keys; keys.generate_keys()"],
        cwd=path,
        env=environment(path),
        check=True,
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.mockserver.http"],
        cwd=path,
        env=environment(path),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            http, https = (
                process.stdout.readline().strip().rpartition(":")[2] for _ in range(2)
            )
            if not https:
                sys.exit(f"the mock server of {path} does not start: see above")
            yield http, https
        finally:
            process.kill()


def difference(plain: Outcome, ours: Outcome, code: int) -> str:
    """Return what differs, empty if nothing does; ``code`` is to be our exit code."""
    found = []
    if ours.code != code:
        found.append(f"exit code {plain.code} and {ours.code}")
    for what, one, other in (
        ("items", plain.items, ours.items),
        ("events", plain.events, ours.events),
    ):
        if one != other:
            lost, more = one - other, other - one
            found.append(f"{what}: missing {dict(lost)}, added {dict(more)}")
    if plain.stats:
        names = plain.stats.keys() | ours.stats.keys()
        found += [
            f"{name}: {plain.stats.get(name)} and {ours.stats.get(name)}"
            for name in sorted(names)
            if plain.stats.get(name) != ours.stats.get(name)
        ]
    return "; ".join(found)


def compare(bench: Bench, case: Case) -> tuple[str, bool]:
    """Return a case's line of the table, and whether it is as it should be."""
    plain = bench.run(case, None)
    one, three = bench.run(case, 1), bench.run(case, 3)
    problems = []
    for name, ours in (("-p 1", one), ("-p 3", three)):
        code = plain.code if case.code is None else case.code
        differs = difference(plain, ours, code)
        if differs and not (name == "-p 3" and case.differs):
            problems.append(f"{name}: {differs}")
    note = f"-p 3 may differ: {case.differs}" if case.differs else case.why
    said = "; ".join(problems) or note
    state = "DIFFERS" if problems else "same"
    counts = f"{plain.events.total():4} events, {plain.items.total():3} items"
    line = f"{state:8} {case.name:52} {counts}, {three.processes} processes  {said}"
    return line.rstrip(), not problems


def unknown_spiders(path: Path) -> list[str]:
    """Return the spiders of Scrapy's that no case runs."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scrapy", "list"],
        cwd=PROJECT,
        env=environment(path),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"Scrapy's test spiders cannot be loaded from {path}: {done.stderr}")
    known = {case.spider for case in CASES} | NOT_RUN
    return sorted(set(done.stdout.split()) - known)


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.foreign", description=__doc__
    )
    parser.add_argument("sources", type=Path, help="folder with Scrapy's sources")
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    options = parser.parse_args()
    sources = options.sources.resolve()
    if not (sources / "tests" / "spiders.py").is_file():
        sys.exit(
            f"{sources} has no tests/spiders.py: name a folder of Scrapy's sources"
        )
    print(f"Scrapy {scrapy.__version__}, test spiders of {sources.name}")  # noqa: T201 - a table for people
    good = True
    with tempfile.TemporaryDirectory(prefix="dscrapy-foreign-") as folder:
        path = only_tests(sources, Path(folder))
        with server(path) as (http, https):
            bench = Bench(path=path, http=http, https=https, folder=Path(folder))
            cases = [case for case in CASES if options.only in case.name]
            with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
                for line, is_good in pool.map(lambda one: compare(bench, one), cases):
                    print(line, flush=True)  # noqa: T201 - a table for people
                    good = good and is_good
        for name in unknown_spiders(path):
            print(f"NOT RUN  {name}: no case has it")  # noqa: T201 - a table for people
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
