"""Other versions of Scrapy and Python: the fast equivalence suite on each pair of them.

``python -m tests.compat [--scrapy 2.16 ...] [--python 3.11 ...] [--fresh]``

Each pair has an environment of its own in ``.compat/``, made once. Where no such Python
is found (as ``python3.N`` or below pyenv's folder), or an environment cannot be made,
the row says so: that is no failure, since nothing was run. The exit code is 1 if
anything failed, or nothing ran at all.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal, NamedTuple

from dscrapy.crawl.insides.versions import OLDEST, SUPPORTED

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
PYTHONS = ("3.11", "3.12", "3.13")
TESTS = ("tests/unit/test_probes.py", "tests/equivalence/test_fast.py")
# Written last: an environment that broke off is made again.
READY = ".ready"


def supported() -> tuple[str, ...]:
    """Return the minor versions of Scrapy that are supported, oldest first."""
    newest = int(SUPPORTED.rpartition(".")[2])
    return tuple(f"{OLDEST[0]}.{minor}" for minor in range(OLDEST[1], newest + 1))


class Row(NamedTuple):
    """What became of a pair; ``text`` is pytest's last line, or why it did not run."""

    python: str
    scrapy: str
    end: Literal["passed", "FAILED", "not run"]
    text: str


def find_python(version: str) -> Path | None:
    """Return an interpreter of this minor version that can make environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted(
        pyenv.glob(f"versions/{version}.*/bin/python"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])],
        reverse=True,
    )
    named = shutil.which(f"python{version}")
    for path in (*kept, *([Path(named)] if named else [])):
        # Also a shim that stands for no version at all.
        code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        done = _run(path, "-c", code)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    return None


def make(python: Path, scrapy: str, folder: Path) -> str:
    """Make an environment with this Scrapy; return why that failed, if it did."""
    if (folder / READY).exists():
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    own = folder / "bin" / "python"
    pip = ("-m", "pip", "--no-input", "--disable-pip-version-check", "-q", "install")
    # Most modules are never imported here: what is, Python compiles then.
    how = ("--no-compile", f"--constraint={_pins(folder)}")
    done = _run(python, "-m", "venv", folder)
    if done.returncode == 0:
        done = _run(own, *pip, *how, f"scrapy=={scrapy}.*", *_needed())
    if done.returncode != 0:
        return last_line(done.stderr) or f"exit code {done.returncode}"
    (folder / READY).touch()
    return ""


def _pins(folder: Path) -> Path:
    # All is as in every other environment, but for Scrapy.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    path = folder.with_name(f"{folder.name}.txt")
    path.write_text("\n".join(one for one in lines if not one.startswith("Scrapy==")))
    return path


def _needed() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    apart = ("scrapy", "mypy", "ruff", "coverage")
    return [one for one in wanted if re.split(r"\W", one)[0] not in apart]


def check(scrapy: str, python: str, folder: Path) -> Row:
    """Run the tests in an environment; what they print is kept beside it."""
    there = _run(
        folder / "bin" / "python", "-c", "import scrapy; print(scrapy.__version__)"
    )
    version = there.stdout.strip()
    if not version.startswith(f"{scrapy}."):
        return Row(python, scrapy, "FAILED", f"Scrapy {version} in {folder}")
    words = ("-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", *TESTS)
    done = _run(folder / "bin" / "python", *words)
    log = folder.with_name(f"{folder.name}.log")
    log.write_text(done.stdout + done.stderr)
    text = last_line(done.stdout)
    if done.returncode == 0:
        return Row(python, version, "passed", text)
    return Row(python, version, "FAILED", f"{text} (all of it: {log})")


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _run(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    # An environment's packages are its own: nothing of the caller's comes in.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [program, *words],
        cwd=ROOT,
        env=kept,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def carry_out(python: str, scrapy: str, *, is_fresh: bool) -> Row:
    """Make one pair's environment and run the tests in it."""
    path = find_python(python)
    if path is None:
        return Row(python, scrapy, "not run", f"no Python {python} here")
    folder = FOLDER / f"python{python}-scrapy{scrapy}"
    if is_fresh:
        shutil.rmtree(folder, ignore_errors=True)
    why = make(path, scrapy, folder)
    if why:
        return Row(python, scrapy, "not run", f"no environment: {why}")
    return check(scrapy, python, folder)


def render(row: Row) -> str:
    """Return a row as it is printed."""
    return f"{row.python:8} {row.scrapy:8} {row.end:8} {row.text}"


def say(line: str) -> None:
    """Print a line now: a row takes minutes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def exit_code(rows: list[Row]) -> int:
    """Return 0 where something passed and nothing failed."""
    ends = {row.end for row in rows}
    return 0 if "passed" in ends and "FAILED" not in ends else 1


def main() -> int:
    """Run what is asked for, one row after another."""
    known = supported()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scrapy", nargs="+", choices=known, default=known)
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=PYTHONS)
    parser.add_argument("--fresh", action="store_true", help="make environments anew")
    options = parser.parse_args()
    say(f"{'Python':8} {'Scrapy':8} result")
    rows = []
    for python in options.python:
        for scrapy in options.scrapy:
            rows.append(carry_out(python, scrapy, is_fresh=options.fresh))
            say(render(rows[-1]))
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
