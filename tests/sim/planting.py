"""Plant a bug: product modules are imported with a piece of their source replaced.

To be called before anything of the product is imported; the modules themselves stay as
they are on the disk, and all else runs as it is.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

import attrs


@attrs.frozen
class Edit:
    """In this module, ``old`` stands exactly once, and is to be ``new``."""

    module: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """Return the source with the edit; ``ValueError`` when it does not fit."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.module}: {count} times there, not once: {self.old}"
            )
        return source.replace(self.old, self.new)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from its file with some edits."""

    edits: Sequence[Edit]

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = Path(path).read_text()
        for edit in self.edits:
            source = edit.apply(source)
        return compile(source, path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        mine = [edit for edit in self._edits if edit.module == fullname]
        if not mine:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None, fullname
        assert spec.origin is not None, fullname
        spec.loader = _Loader(fullname, spec.origin)
        spec.loader.edits = mine
        return spec


def plant(edits: Sequence[Edit]) -> None:
    """Let the edits hold for all imports from now on."""
    early = [edit.module for edit in edits if edit.module in sys.modules]
    assert not early, f"imported already: {early}"
    sys.meta_path.insert(0, _Finder(edits))
