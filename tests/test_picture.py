"""The picture that the README opens with, and how it is drawn."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs import picture

# What a terminal is drawn with; nothing here can load anything.
DRAWING = {"svg", "title", "style", "defs", "clipPath", "rect", "g", "text", "circle"}
PLACES = re.compile(r"url\(#([^)]+)\)")


def _elements(svg: str) -> Iterator[ElementTree.Element]:
    return ElementTree.fromstring(svg).iter()  # noqa: S314 - of the project's own making


def _lines(svg: str) -> list[str]:
    """Return the text of the picture, line by line."""
    lines: dict[float, str] = {}
    for element in _elements(svg):
        if element.tag.endswith("}text") and "clip-path" in element.attrib:
            y = float(element.attrib["y"])
            lines[y] = lines.get(y, "") + (element.text or "")
    return [lines[y].replace("\xa0", " ") for y in sorted(lines)]


def _check_alone(svg: str) -> None:
    """The picture is well formed and refers to nothing but parts of its own."""
    elements = list(_elements(svg))
    assert {one.tag.rpartition("}")[2] for one in elements} <= DRAWING
    names = [name.rpartition("}")[2] for one in elements for name in one.attrib]
    assert not {"href", "src"} & set(names)
    ids = [one.attrib["id"] for one in elements if "id" in one.attrib]
    assert len(set(ids)) == len(ids)
    assert set(PLACES.findall(svg)) == set(ids)
    assert "url" not in PLACES.sub("", svg)
    assert "@" not in svg
    assert svg.count("://") == svg.count("http://127.") + svg.count("http://local") + 1


def test_the_picture_shows_both_claims() -> None:
    """One worker is killed, and the items are those of plain Scrapy."""
    svg = picture.SVG.read_text(encoding="utf-8")
    _check_alone(svg)
    text = " ".join(_lines(svg))
    assert "worker-2 is killed (SIGKILL)" in text
    ended = re.search(r"(\d+) items by dscrapy, (\d+) by plain Scrapy: the same$", text)
    assert ended, text
    assert ended[1] == ended[2]


def test_the_readme_shows_the_picture() -> None:
    """It stands at the top."""
    top = (picture.ROOT / "README.md").read_text().partition("\n## ")[0]
    assert "](docs/demo.svg)" in top


def test_what_a_terminal_shows_is_drawn() -> None:
    """Lines that were drawn anew show what they were last; colours and spaces stay."""
    svg = picture.draw(
        "\x1b[?25l  a\r\x1b[2K\x1b[1;31mred\x1b[0m <b>\r\n"
        "  one\r\x1b[2K  two\r\n\x1b[?25h\x1b[1;32mthe same\x1b[0m\r\n"
    )
    _check_alone(svg)
    assert _lines(svg) == ["red <b>", "  two", "the same"]
    bold = [line for line in svg.splitlines() if "font-weight: bold" in line]
    # The title's, and one for each colour.
    assert len(bold) == 3


@pytest.mark.parametrize("printed", ["a\x1b[2Jb", "a\x1b]0;title\x07", "-" * 81])
def test_what_cannot_be_drawn_is_refused(printed: str) -> None:
    """Nothing is drawn that a terminal would show otherwise."""
    with pytest.raises(ValueError, match=r"control sequence|would cut"):
        picture.draw(printed)


def test_a_terminal_has_its_size(tmp_path: Path) -> None:
    """The command sees a terminal of 80 columns; its status is told."""
    status, printed = picture.record(("sh", "-c", "stty size; exit 3"))
    assert status == 3
    assert printed.split() == ["24", "80"]
