"""Programs that stand in for what a sandbox cannot have: networks and package indexes.

Each is a script whose name decides what it does. They know the few options that the
documents use, so another one fails as it would be wrong.

- ``ssh``: a tunnel to a machine that there is; on one computer it leads to itself
- ``rsync``: copies between the machines' homes
- ``python3``: this Python; ``-m venv`` makes an environment without its own ``pip``
- ``pip``: installs this project from a folder of it, and Scrapy; both are here already
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
# What ``pip`` installs -> programs that come with it: modules of this Python.
_INSTALLED = {"dscrapy": ("dscrapy", "scrapy"), "scrapy": ("scrapy",)}


def put_into(folder: Path) -> None:
    """Write the programs of a machine into ``folder``."""
    folder.mkdir(parents=True)
    for name in ("ssh", "rsync", "python3"):
        _write(folder / name, f"{sys.executable} -P {__file__} {name}")


def make_venv(folder: Path) -> None:
    """Make an environment with Python and ``pip``, as ``python3 -m venv`` does."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True
    )
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)}
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "documents.pth").write_text("\n".join(sorted(paths)))
    _write(folder / "bin" / "pip", f"{sys.executable} -P {__file__} pip {folder}")


def install(venv: Path, package: str) -> None:
    """Let ``package`` (a key of ``_INSTALLED``) be there in an environment."""
    for program in _INSTALLED[package]:
        _write(venv / "bin" / program, f"{venv}/bin/python -P -m {program}")


def _write(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)


# ---- the programs ---------------------------------------------------------------


def _ssh(arguments: Sequence[str]) -> None:
    match arguments:
        case ["-fN", "-L", forward, host] if re.fullmatch(
            r"(\d+):127\.0\.0\.1:\1", forward
        ):
            _home(host)
        case _:
            _fail(f"unknown options: {' '.join(arguments)}")


def _rsync(arguments: Sequence[str]) -> None:
    words = list(arguments)
    excluded: list[str] = []
    places: list[str] = []
    deletes = False
    while words:
        word = words.pop(0)
        if word == "--exclude":
            excluded.append(words.pop(0))
        elif word == "--delete":
            deletes = True
        elif word.startswith("-") and word not in ("-a", "-az"):
            _fail(f"unknown option: {word}")
        elif not word.startswith("-"):
            places.append(word)
    source, target = map(_place, places)
    if source.is_file():
        shutil.copy2(source, target / source.name if target.is_dir() else target)
        return
    # Without a slash at its end the folder itself is copied, into the target.
    target = target if places[0].endswith("/") else target / source.name
    if deletes and target.exists():
        shutil.rmtree(target)
    shutil.copytree(
        source,
        target,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=lambda _, names: {
            name for name in names for one in excluded if fnmatch(name, one)
        },
    )


def _place(text: str) -> Path:
    host, colon, path = text.rpartition(":")
    return _home(host) / path if colon else Path(text)


def _home(host: str) -> Path:
    """Return the home of a machine: a neighbour of our own."""
    home = Path(os.environ["HOME"]).parent / host
    if not home.is_dir():
        _fail(f"no machine {host}")
    return home


def _python3(arguments: Sequence[str]) -> None:
    match arguments:
        case ["-m", "venv", folder]:
            make_venv(Path(folder).absolute())
        case _:
            python = sys.executable
            os.execv(python, [python, *arguments])  # noqa: S606 - it becomes Python


def _pip(arguments: Sequence[str]) -> None:
    match arguments:
        case [venv, "install", *wanted] if wanted:
            for one in wanted:
                install(Path(venv), _project(one))
        case _:
            _fail(f"unknown options: {' '.join(arguments[1:])}")


def _project(wanted: str) -> str:
    """Return the name of what is to be installed: a folder's, or the one given."""
    name = re.split(r"[<>=~]", wanted)[0]
    if "/" in wanted:
        project = tomllib.loads((Path(wanted) / "pyproject.toml").read_text())
        name = project["project"]["name"]
    # It is not on a package index.
    if name not in _INSTALLED or (name == "dscrapy") != ("/" in wanted):
        _fail(f"no package {wanted}")
    return str(name)


def _fail(reason: str) -> NoReturn:
    sys.exit(f"{sys.argv[1]}: {reason}")


_PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "ssh": _ssh,
    "rsync": _rsync,
    "python3": _python3,
    "pip": _pip,
}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](sys.argv[2:])
