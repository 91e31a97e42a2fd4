"""``DSCRAPY_*`` variables: one for each key of ``conf.toml``.

A key's variable is its table and name in capitals: ``port`` of ``[dscrapy.master]`` is
``DSCRAPY_MASTER_PORT``, ``state`` of ``[dscrapy]`` is ``DSCRAPY_STATE``.
``DSCRAPY_MASTER`` is ``master`` of clients and workers at once, ``DSCRAPY_CONF`` names
the file. A variable that is set to nothing counts as not set.
"""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import attrs

from dscrapy.conf.strict import FieldError
from dscrapy.errors import UsageError
from dscrapy.text import show

A = TypeVar("A")

PREFIX = "DSCRAPY_"
MASTER = "DSCRAPY_MASTER"
# Settings of projects, which a person may have in the environment, too.
SETTINGS = frozenset(
    {"DSCRAPY_ITEM_BYTES_MAX", "DSCRAPY_ONCE_PER_JOB", "DSCRAPY_PICKLE"}
)
# How alike a name must be to be taken for a slip of the pen; DSCRAPY_MASTER_PROT is.
ALIKE = 0.85


def name_of(section: str, key: str) -> str:
    """Return the variable of a key; ``section`` is empty for ``[dscrapy]`` itself."""
    return PREFIX + "_".join(filter(None, (section, key))).upper()


def in_section(environ: Mapping[str, str], section: str, table: A) -> A:
    """Return the table with the keys that variables set; raises ``UsageError``."""
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for field in attrs.fields(cast(Any, type(table))):
        name = name_of(section, field.name)
        if field.name == "master" and not environ.get(name):
            name = MASTER
        if text := environ.get(name):
            names[field.name] = name
            values[field.name] = _value(name, text, type(field.default))
    try:
        return cast(A, attrs.evolve(cast(Any, table), **values))
    except FieldError as error:
        # A check of several keys may name a key that no variable sets.
        where = names.get(error.key) or ", ".join(names.values())
        raise UsageError(f"{where}: {error.reason}") from None


def _value(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UsageError(f"{name}: must be {wanted[kind]}, got {show(text)}") from None


def remarks(environ: Mapping[str, str], names: frozenset[str]) -> list[str]:
    """Return a line about each variable that looks like one of ``names`` and is none.

    Other ``DSCRAPY_*`` variables belong to somebody else.
    """
    keys = {name.split("_", 2)[-1]: name for name in sorted(names, reverse=True)}
    tables = tuple(f"{PREFIX}{name}_" for name in ("MASTER", "WORKER", "CLIENT"))
    lines = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in names | SETTINGS:
            continue
        meant = keys.get(name.removeprefix(PREFIX)) or next(
            iter(difflib.get_close_matches(name, sorted(names), 1, ALIKE)), None
        )
        if meant is not None:
            lines.append(f"there is no variable {name}: did you mean {meant}?")
        elif name.startswith(tables):
            lines.append(f"there is no variable {name}: it has no effect")
    return lines
