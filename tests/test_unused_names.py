"""No public name of the package is used by tests alone: what nobody needs goes.

By name: of two things of one name one may be dead. What a framework calls is its own.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.test_tidy import Source, all_sources, dotted

# Names that nothing of ours uses, and who does.
USED_BY_OTHERS = {
    "example": "tests, for conf.example.toml",
    "format_help": "argparse, of a parser",
    "readinto": "io, of a raw file",
    "process_request": "Scrapy, of a middleware",
    "process_start": "Scrapy, of a middleware",
}
# What these define is called by name: asyncio, io, argparse, ast, pickle, Scrapy...
OUR_BASES = frozenset({"abc", "attrs", "dscrapy", "enum", "msgspec", "typing"})


def unused(sources: Iterable[Source]) -> Iterator[str]:
    """Every public name of the package is used by more than tests.

    By name alone: of two things of one name, one may be dead.
    """
    known: dict[str, str] = {}
    used = set(USED_BY_OTHERS)
    for source in sources:
        if source.path.parts[0] == "tests":
            continue
        used |= _loaded(source)
        if source.room and not source.is_example:
            for line, name in _defined(source):
                known.setdefault(name, f"{source.path}:{line}: {name}")
    for name in sorted(known.keys() - used):
        yield f"{known[name]} is used by nothing but tests"


def _defined(source: Source) -> Iterator[tuple[int, str]]:
    """Public names of the module, and of its classes that nobody else calls into."""
    tops = {name.split(".")[-1]: name.split(".")[0] for _, name in source.imports()}
    bodies: list[ast.Module | ast.ClassDef] = [source.tree]
    while bodies:
        for node in bodies.pop().body:
            names: list[str] = []
            match node:
                case ast.ClassDef(name=name):
                    names = [name]
                    bases = {dotted(base).split(".")[0] for base in node.bases}
                    if {tops.get(one, "dscrapy") for one in bases} <= OUR_BASES:
                        bodies.append(node)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    names = [name]
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names = [name]
                case ast.Assign(targets=targets):
                    names = [one.id for one in targets if isinstance(one, ast.Name)]
            yield from ((node.lineno, one) for one in names if not one.startswith("_"))


def _loaded(source: Source) -> set[str]:
    """What is read by name: variables, attributes, patterns, ``getattr``."""
    found: set[str] = set()
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Load()):
                found.add(name)
            case ast.MatchClass(kwd_attrs=names):
                found.update(names)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(x), *_]):
                found.add(str(x))
    return found


def test_no_name_is_used_by_tests_alone() -> None:
    """Neither a module's nor a class's."""
    assert list(unused(all_sources())) == []


def test_names_used_by_others_are_there() -> None:
    """The list of exceptions has none that is not needed any more."""
    known: set[str] = set()
    loaded: set[str] = set()
    for source in all_sources():
        if source.path.parts[0] != "tests":
            loaded |= _loaded(source)
        if source.room:
            known.update(name for _, name in _defined(source))
    assert known - loaded >= USED_BY_OTHERS.keys()


F = "def f():\n    pass\n"
TESTED = {"tests/x.py": "from dscrapy.net.x import f\nf()\n", "dscrapy/net/x.py": F}
USED = {"dscrapy/net/y.py": "from dscrapy.net import x\nx.f()\n"}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (TESTED, ["f"]),
        (TESTED | USED, []),
        ({"dscrapy/net/x.py": "class A:\n    at: int = 1\nA()\n"}, ["at"]),
        ({"dscrapy/net/x.py": "class A:\n    def g(self): self.g = 1\nA()\n"}, ["g"]),
        ({"dscrapy/net/x.py": "X = 1\n_Y = 2\n"}, ["X"]),
        ({"dscrapy/net/x.py": "X = 1\ngetattr(x, 'X', 0)\n"}, []),
        ({"dscrapy/net/x.py": "import io\nclass _A(io.RawIOBase):\n    x = 1\n"}, []),
        ({"docs/x.py": "x.f()\n", "dscrapy/net/x.py": F}, []),
        ({"dscrapy/demo/project/pydocs/x.py": F}, []),
    ],
)
def test_a_planted_name_is_found(files: dict[str, str], names: list[str]) -> None:
    """Those that are used, or that a framework uses, are not."""
    sources = [Source(Path(path), text) for path, text in files.items()]
    found = [line.split(": ")[1].split()[0] for line in unused(sources)]
    assert found == names
