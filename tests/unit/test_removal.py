"""What ``prune`` asks and tells."""

import pytest
import trio

from dscrapy.cli.removal import prune_all, size_text
from dscrapy.messages import Prune, Pruned


@pytest.mark.parametrize("dry_run", [False, True])
def test_prune_goes_on_until_nothing_is_left(
    capsys: pytest.CaptureFixture[str], dry_run: bool
) -> None:
    """A look asks once, and tells how many more there are."""
    answers = [
        Pruned(call=0, jobs=("a", "b"), bytes=1000, left=1, left_bytes=48),
        Pruned(call=0, jobs=("c",), bytes=48, left=0, left_bytes=0),
    ]

    async def prune_some(asked: Prune) -> Pruned:
        assert asked.dry_run == dry_run
        return answers.pop(0)

    trio.run(prune_all, prune_some, Prune(call=0, dry_run=dry_run))
    out, err = capsys.readouterr()
    if dry_run:
        assert out == "a\nb\n"
        said = ["dscrapy: and 1 more", "dscrapy: 3 jobs would be removed, 1.0 KiB"]
        assert err.splitlines() == said
    else:
        assert out == "a\nb\nc\n"
        assert err == "dscrapy: 3 jobs removed, 1.0 KiB\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (2**40, "1.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_sizes_are_shown_with_two_figures_at_least(size: int, text: str) -> None:
    """In powers of 1024, as they are named."""
    assert size_text(size) == text
