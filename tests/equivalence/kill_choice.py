"""Which kill comes next: a stage, a victim, and how many chances to let pass.

Pure but for its seed: the choices are drawn one after another from it, and events
alone decide when they come true. Between two kills some page is committed, so that a
campaign of kills always gets on.
"""

import random
from collections import Counter
from typing import Literal, get_args

import attrs

Stage = Literal[
    "start",
    "download",
    "downloaded",
    "callback",
    "early",
    "pipeline",
    "sent",
    "journalled",
    "acknowledged",
    "idle",
    "finish",
]
Victim = Literal["process", "worker", "master"]
STAGES: tuple[Stage, ...] = get_args(Stage)
VICTIMS: tuple[Victim, ...] = get_args(Victim)
# A killed worker or master takes longer to come back, so they die less often.
WEIGHTS = (5, 3, 2)
# Chances that are let pass at most: kills then fall anywhere within a crawl.
SKIPPED_MAX = 15
# Rare stages come a few times in a crawl: there only the very next chances.
SKIPPED_RARE_MAX = 1
RARE = frozenset({"idle", "finish"})
# How often a stage is drawn: waiting for a rare one costs half a crawl.
OFTEN, SELDOM = 3, 1
# Chances after which another kill is drawn, lest one that never counts stop all.
PATIENCE = 3000

Cell = tuple[Victim, Stage]


@attrs.define
class Chooser:
    """Draws kills until ``wanted`` of them were counted, some at each stage."""

    rng: random.Random
    wanted: int
    counted: Counter[Cell] = attrs.Factory(Counter)
    next: Cell = attrs.field(init=False)
    _skip: int = attrs.field(init=False)
    _patience: int = attrs.field(init=False)
    _moved_on: bool = True

    def __attrs_post_init__(self) -> None:
        self._draw()

    @property
    def is_done(self) -> bool:
        """Whether there were enough kills, at every stage."""
        return self.counted.total() >= self.wanted and not self.missing

    @property
    def missing(self) -> list[Stage]:
        """Stages at which nothing was killed yet."""
        return [stage for stage in STAGES if not self.at(stage)]

    def at(self, stage: Stage) -> int:
        """Return the number of kills at a stage."""
        return sum(self.counted[victim, stage] for victim in VICTIMS)

    def committed(self) -> None:
        """A page was committed: the next kill may come."""
        self._moved_on = True

    def wants(self, stage: Stage) -> Victim | None:
        """Return whom to kill now, at this stage, if anybody.

        The caller kills and calls ``killed``, or lets it be if that would not count.
        """
        if self.is_done or not self._moved_on:
            return None
        self._patience -= 1
        if self._patience <= 0:
            self._draw()
        if stage != self.next[1]:
            return None
        if self._skip > 0:
            self._skip -= 1
            return None
        return self.next[0]

    def killed(self, stage: Stage, victim: Victim) -> None:
        """Count a kill and draw the next."""
        self.counted[victim, stage] += 1
        self._moved_on = False
        self._draw()

    def _draw(self) -> None:
        # From the half on, what is missing comes first.
        late = self.counted.total() * 2 >= self.wanted
        stages = (late and self.missing) or STAGES
        weights = [SELDOM if one in RARE else OFTEN for one in stages]
        (stage,) = self.rng.choices(stages, weights)
        (victim,) = self.rng.choices(VICTIMS, WEIGHTS)
        self.next = victim, stage
        most = SKIPPED_RARE_MAX if stage in RARE else SKIPPED_MAX
        self._skip = self.rng.randint(0, most)
        self._patience = PATIENCE
