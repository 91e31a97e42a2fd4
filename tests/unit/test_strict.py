"""The strict converter: nothing is coerced, every mistake is named by its path."""

import math
from typing import Any

import attrs
import pytest

from dscrapy.conf.strict import FieldError, StrictError, did_you_mean, structure
from dscrapy.text import SHOWN_CHARS_MAX, show


def _even(_: object, field: Any, value: int) -> None:
    if value % 2:
        raise FieldError(field.name, "must be even")


@attrs.frozen(kw_only=True)
class _Inner:
    whole: int = attrs.field(default=0, validator=_even)
    real: float = 0.0
    text: str = ""
    flag: bool = False
    texts: tuple[str, ...] = ()
    wholes: list[int] = attrs.field(factory=list)
    by_name: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class _Outer:
    inner: _Inner
    others: tuple[_Inner, ...] = ()


def _problems(value: object, key: str = "top") -> tuple[tuple[str, str], ...]:
    with pytest.raises(StrictError) as caught:
        structure(value, _Outer, key)
    return caught.value.problems


def test_good_values_stay_as_they_are() -> None:
    """Every kind of field takes its own kind; a whole number is a number too."""
    written = {
        "inner": {
            "whole": 4,
            "real": 3,
            "text": "t",
            "flag": True,
            "texts": ["a", "b"],
            "wholes": [1],
            "by_name": {"k": "v"},
        },
        "others": [{}, {"whole": 2}],
    }
    assert structure(written, _Outer) == _Outer(
        inner=_Inner(
            whole=4,
            real=3.0,
            text="t",
            flag=True,
            texts=("a", "b"),
            wholes=[1],
            by_name={"k": "v"},
        ),
        others=(_Inner(), _Inner(whole=2)),
    )
    real = structure(written, _Outer).inner.real
    assert type(real) is float


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("whole", "four", "expected a whole number, got 'four'"),
        ("whole", "4", "expected a whole number, got '4'"),
        ("whole", 4.0, "expected a whole number, got 4.0"),
        ("whole", True, "expected a whole number, got True"),
        ("whole", None, "expected a whole number, got None"),
        ("real", "1.5", "expected a number, got '1.5'"),
        ("real", True, "expected a number, got True"),
        ("real", math.nan, "expected a finite number, got nan"),
        ("real", -math.inf, "expected a finite number, got -inf"),
        ("real", 10**400, "expected a finite number, got 1000"),
        ("text", None, "expected text in quotes, got None"),
        ("text", 3, "expected text in quotes, got 3"),
        ("text", "\ud800", "half of a surrogate pair in '\\ud800'"),
        ("flag", 1, "expected true or false, got 1"),
        ("flag", "true", "expected true or false, got 'true'"),
        ("texts", "abc", "expected a list, got 'abc'"),
        ("texts", {"a": 1}, "expected a list, got {'a': 1}"),
        ("wholes", 3, "expected a list, got 3"),
        ("by_name", [1], "expected a table, got [1]"),
    ],
)
def test_another_kind_is_an_error(field: str, value: object, reason: str) -> None:
    """No value is coerced; the error names key, expectation and value."""
    ((key, text),) = _problems({"inner": {field: value}})
    assert key == f"top.inner.{field}"
    assert text.startswith(reason)


def test_every_mistake_is_named_with_its_path() -> None:
    """One pass finds all mistakes, those inside lists and tables included."""
    problems = _problems(
        {
            "inner": {"wholes": [1, "x"], "by_name": {"a b": 1}, "whole": 3},
            "others": [{}, {"txt": ""}],
            "extra": 1,
        }
    )
    assert set(problems) == {
        ("top.inner.wholes[1]", "expected a whole number, got 'x'"),
        ("top.inner.by_name.'a b'", "expected text in quotes, got 1"),
        ("top.others[1].txt", "unknown key; did you mean text or texts?"),
        ("top.extra", "unknown key; known here: inner, others"),
    }
    # Validators run once all fields are of their kind.
    assert _problems({"inner": {"whole": 3}}) == (("top.inner.whole", "must be even"),)


def test_missing_and_no_table_at_all() -> None:
    """A required key is reported as missing, a non-table as such."""
    assert _problems({}) == (("top.inner", "missing"),)
    assert _problems(3) == (("top", "expected a table, got 3"),)
    assert _problems([], "") == (("", "expected a table, got []"),)


def test_as_one_names_few_and_counts_the_rest() -> None:
    """An error is one line however many mistakes there are."""
    error = StrictError([(f"k{n}", f"r{n}") for n in range(7)])
    assert error.as_one() == ("k0", "r0; k1: r1; k2: r2; k3: r3; and 3 more")
    assert StrictError([("k", "r")]).as_one() == ("k", "r")


def test_show_is_short_whatever_the_value() -> None:
    """Long, huge and deep values are cut, none raises."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 1000, 10**5000, deep, "a\nb"):
        text = show(value)
        assert len(text) <= SHOWN_CHARS_MAX
        assert "\n" not in text
    while deep:
        # Unwound by hand: freeing it in one go would go as deep.
        deep = deep[0]


def test_did_you_mean_names_the_nearest_or_all() -> None:
    """A typing error finds its key, nonsense gets the whole list."""
    assert did_you_mean("slts", ["slots", "port"]) == "did you mean slots?"
    assert did_you_mean("qqqq", ["slots", "port"]) == "known here: slots, port"
