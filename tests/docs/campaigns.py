"""Commands that are not run to their end here, and what of them is proved instead.

They take minutes or hours; what they do has tests or campaigns of its own. Here it is
made sure that there is such a thing and that it knows the options named.
"""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which

ROOT = Path(__file__).parents[2]

# Beginning of a command -> why it is not run.
CAMPAIGNS = {
    "make demo": "tests/e2e/test_demo.py runs it, this would be a second time",
    "make test": "it would run itself",
    "make long": "minutes",
    "make check": "the same",
    "make help": "a list, no command",
    "make equivalence": "eight minutes",
    "make sim": "some of its seeds are tests",
    "make sim-bite": "six of its bugs are tests",
    "make chaos": "twenty minutes, and root",
    "make fuzz": "a quarter of an hour",
    "make foreign": "it wants Scrapy's own sources",
    "make waiting": "a measurement, five minutes",
    "make compat": "a package index, and minutes for each row",
    "make bench": "a measurement, half an hour",
    "make lock": "it wants a package index",
    "python -m tests.": "minutes, each",
    "python -m benchmarks": "measurements, minutes each",
}


def prove(command: str) -> bool:
    """Prove a campaign's name and options; False for what is to be run.

    Raises ``AssertionError`` for what there is not.
    """
    if not any(_begins(command, one) for one in CAMPAIGNS):
        return False
    if command.startswith("make "):
        prove_make(command)
    else:
        prove_module(command)
    return True


def _begins(command: str, beginning: str) -> bool:
    goes_on = command[len(beginning) : len(beginning) + 1]
    return command.startswith(beginning) and (
        not beginning[-1].isalpha() or goes_on in ("", " ", ".")
    )


def prove_make(command: str) -> None:
    """Let ``make`` say what it would do; what it would run has to know its options."""
    words = shlex.split(command)
    variables = [word.split("=", 1)[0] for word in words if "=" in word]
    for name in variables:
        makefile = (ROOT / "Makefile").read_text()
        assert f"$({name})" in makefile, f"{command}: make knows no {name}"
    make = which("make")
    assert make is not None
    # The environment counts as made.
    done = subprocess.run(
        [make, "-n", "-o", ".venv/.ready", *words[1:]],
        cwd=ROOT,
        # Options of a ``make`` that runs the tests are not for this one.
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    for found in re.finditer(r"python (-m \S.*)", done.stdout.replace("\\\n", " ")):
        if not found[1].startswith(("-m pip", "-m pytest", "-m venv")):
            prove_module(f"python {found[1]}")


def prove_module(command: str) -> None:
    """Compare the options of ``python -m MODULE ...`` with its help."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], command
    assert find_spec(words[2]), f"{command}: no such module"
    for word in words[3:]:
        option = word.split("=", 1)[0]
        if option.startswith("-") and option != "--help":
            known = rf"(?<![\w-]){option}(?![\w-])"
            assert re.search(known, _help_of(words[2])), f"{command}: no {option}"


@cache
def _help_of(module: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{module}: {done.stderr}"
    return done.stdout
