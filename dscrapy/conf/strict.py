"""The one strict converter for what people write: values as they are, or an error.

Stock cattrs turns ``None`` into ``"None"`` and ``"4"`` into 4; here every value must
have the type of its field, every key must be known, and an error names the key's path.
Checks of single fields belong in attrs validators, which raise ``FieldError``.
"""

import difflib
import functools
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.cols import (
    homogenous_tuple_structure_factory,
    list_structure_factory,
    mapping_structure_factory,
)
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from dscrapy.errors import ConfigError
from dscrapy.text import show

T = TypeVar("T")

# A file with more mistakes than this shows the first ones and counts the rest.
SHOWN_PROBLEMS_MAX = 4


class FieldError(ValueError):
    """A value that its own field (``key``) does not allow; raised by validators."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


class StrictError(ValueError):
    """Mistakes in a value: pairs of key path and reason, in the order of the fields."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        assert problems
        shown = [f"{key}: {reason}" if key else reason for key, reason in problems]
        super().__init__("; ".join(shown))
        self.problems = tuple(problems)

    def as_one(self) -> tuple[str, str]:
        """Return the first key, and its reason followed by the other problems."""
        (key, reason), *others = self.problems
        for other_key, other_reason in others[: SHOWN_PROBLEMS_MAX - 1]:
            reason += f"; {other_key}: {other_reason}"
        hidden = len(self.problems) - SHOWN_PROBLEMS_MAX
        return key, f"{reason}; and {hidden} more" if hidden > 0 else reason


def structure(value: object, cls: type[T], key: str = "") -> T:
    """Return ``value`` (from TOML or JSON) as ``cls``; ``key`` is its own path.

    Raises ``StrictError``.
    """
    try:
        return _converter().structure(value, cls)
    except (BaseValidationError, FieldError, _Mismatch) as error:
        raise StrictError(_flatten(error, key)) from None
    except RecursionError:
        raise StrictError([(key, "nested too deep")]) from None


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return a hint with those of ``names`` that are nearest to ``name``, or all."""
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known here: {', '.join(names)}"


class _Mismatch(ValueError):
    """A value of another kind than its field's."""


# Building the hooks costs more than using them, and a job file has many entries.
@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _int)
    converter.register_structure_hook(str, _str)
    converter.register_structure_hook(bool, _bool)
    converter.register_structure_hook(float, _float)

    def of_class(cls: type) -> Callable[[Any, Any], Any]:
        inner: Callable[[Any, Any], Any] = make_dict_structure_fn(cls, converter)
        return _guarded(inner, Mapping, "a table")

    converter.register_structure_hook_factory(attrs.has, of_class)
    # Stock cattrs iterates over whatever it is given: a text becomes its letters.
    for kind, accepted, words, factory in _CONTAINERS:
        _guard(converter, kind, accepted, words, factory)
    return converter


_CONTAINERS: tuple[tuple[type, type, str, Callable[..., Any]], ...] = (
    (list, list, "a list", list_structure_factory),
    (tuple, list, "a list", homogenous_tuple_structure_factory),
    (dict, Mapping, "a table", mapping_structure_factory),
)


def _guard(
    converter: cattrs.Converter,
    kind: type,
    accepted: type,
    words: str,
    factory: Callable[..., Any],
) -> None:
    """Let fields of this kind of container take lists (or tables) alone."""
    converter.register_structure_hook_factory(
        lambda cls: getattr(cls, "__origin__", None) is kind,
        lambda cls: _guarded(factory(cls, converter), accepted, words),
    )


def _guarded(
    inner: Callable[[Any, Any], Any], accepted: type, words: str
) -> Callable[[Any, Any], Any]:
    def hook(value: Any, cls: Any) -> Any:
        if not isinstance(value, accepted):
            raise _Mismatch(f"expected {words}, got {show(value)}")
        return inner(value, cls)

    return hook


def _int(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise _Mismatch(f"expected a whole number, got {show(value)}")
    return value


def _float(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise _Mismatch(f"expected a number, got {show(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Mismatch(f"expected a finite number, got {show(value)}")
    return number


def _bool(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise _Mismatch(f"expected true or false, got {show(value)}")
    return value


def _str(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise _Mismatch(f"expected text in quotes, got {show(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Mismatch(f"half of a surrogate pair in {show(value)}") from None
    return value


def _flatten(error: Exception, path: str) -> list[tuple[str, str]]:
    """Return (key path, reason) of every leaf of a tree of cattrs errors."""
    match error:
        case ClassValidationError() | IterableValidationError():
            problems = []
            named, unnamed = error.group_exceptions()
            for inner, note in named:
                problems += _flatten(inner, _step(path, note))
            for inner in unnamed:
                problems += _flatten(inner, path)
            return problems
        case ForbiddenExtraKeysError():
            names = [field.name for field in attrs.fields(error.cl)]
            return [
                (_join(path, name), f"unknown key; {did_you_mean(name, names)}")
                for name in sorted(error.extra_fields)
            ]
        case FieldError():
            return [(_join(path, error.key), error.reason)]
        case KeyError():
            return [(path, "missing")]
        case _Mismatch():
            return [(path, str(error))]
    # Any other error is a mistake in a class that is structured here.
    raise error


def _step(path: str, note: AttributeValidationNote | IterableValidationNote) -> str:
    if isinstance(note, AttributeValidationNote):
        return _join(path, note.name)
    if isinstance(note.index, int):
        return f"{path}[{note.index}]"
    return _join(path, note.index)


def _join(path: str, name: str) -> str:
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    name = name if plain else show(name)
    return f"{path}.{name}" if path else name


def parse_toml(path: Path | str, data: bytes) -> dict[str, Any]:
    """Return the document; ``path`` is for errors.

    Raises ``ConfigError`` with line and column.
    """
    try:
        # Editors on Windows put a byte order mark first.
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, f"line {line}", "not UTF-8") from None
    except RecursionError:
        raise ConfigError(path, "", "nested too deep") from None
    except ValueError as error:
        match = re.search(r" \(at (line \d+, column \d+|end of document)\)", str(error))
        where = match[1] if match else ""
        reason = str(error).removesuffix(match[0]) if match else str(error)
        raise ConfigError(path, where, reason) from None
