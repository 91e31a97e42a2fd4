"""Where a Scrapy project is, and whether two copies of its code are the same.

Reads files and nothing else; the command line and the worker use the same rules,
so that their digests agree.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

PROJECT_FILE = "scrapy.cfg"
# A folder with this file is a virtual environment, not code of the project.
_VENV_FILE = "pyvenv.cfg"
_READ_BYTES = 1024 * 1024


def find_project(path: Path) -> Path | None:
    """Return the closest folder with a ``scrapy.cfg``, ``path`` or above it."""
    folder = path.absolute()
    for candidate in (folder, *folder.parents):
        if (candidate / PROJECT_FILE).is_file():
            return candidate
    return None


def code_digest(folder: Path) -> str:
    """Return a SHA-256 (hex) over the code in ``folder``: names and contents.

    Code is ``scrapy.cfg`` and each ``*.py`` file, except in hidden folders,
    ``__pycache__`` and virtual environments. In a folder without ``scrapy.cfg``
    (where a single spider file lies, which may be anyone's home) only the files
    in it and the packages in it count. Raises ``OSError`` for a file that cannot
    be read.
    """
    whole = hashlib.sha256()
    for name in sorted(_code_files(folder)):
        content = _file_digest(folder / name)
        # Fixed lengths, so that no two trees can spell the same bytes.
        whole.update(hashlib.sha256(os.fsencode(name)).digest())
        whole.update(content)
    return whole.hexdigest()


def _code_files(folder: Path) -> Iterator[str]:
    """Yield names relative to ``folder``, parted by ``/``, in no order."""
    is_project = (folder / PROJECT_FILE).is_file()
    for parent, subfolders, files in os.walk(folder, onerror=_raise):
        subfolders[:] = [
            name
            for name in subfolders
            if _is_code_folder(Path(parent, name), packages_only=not is_project)
        ]
        for name in files:
            path = Path(parent, name)
            if (name.endswith(".py") or name == PROJECT_FILE) and path.is_file():
                yield path.relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    # A folder that cannot be listed would otherwise be left out in silence.
    raise error


def _is_code_folder(path: Path, *, packages_only: bool) -> bool:
    if path.name.startswith(".") or path.name == "__pycache__":
        return False
    if packages_only:
        return (path / "__init__.py").is_file()
    return not (path / _VENV_FILE).is_file()


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.digest()
