"""Reads words of the command line: numbers, spans, sizes, pairs.

Each raises ``argparse.ArgumentTypeError``, which says what was expected.
"""

import argparse
import math

PORT_MAX = 65535


def pair(text: str) -> tuple[str, str]:
    """Return name and value of ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a whole number, got {text!r}"
        ) from None


def natural(text: str) -> int:
    """Return a whole number that is not negative."""
    return at_least(0, text)


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    return at_least(1, text)


def at_least(least: int, text: str) -> int:
    """Return a whole number that is not smaller than ``least``."""
    number = whole(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"expected {least} or more, got {text!r}")
    return number


def port(text: str) -> int:
    """Return a TCP port; 0 lets the system choose."""
    number = whole(text)
    if not 0 <= number <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"expected a port (0-65535), got {text!r}")
    return number


def days(text: str) -> float:
    """Return days, which may be a fraction."""
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not (0 <= days < math.inf):
        raise argparse.ArgumentTypeError(f"expected days, as 30 or 0.5, got {text!r}")
    return days


def size(text: str) -> int:
    """Return bytes; K, M, G and T stand for powers of 1024."""
    shift = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isascii() or not digits.isdecimal() or len(digits) > len("9" * 15):
        raise argparse.ArgumentTypeError(
            f"expected bytes, as 1000000, 500M or 10G, got {text!r}"
        )
    return int(digits) << shift


def seconds(text: str) -> float:
    """Return a span that is longer than nothing."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    # Not finite, or not positive, is no span to wait.
    if not (0 < seconds < math.inf):
        raise argparse.ArgumentTypeError(f"expected seconds, as 5 or 0.5, got {text!r}")
    return seconds
