"""How many ended jobs or crawls are kept: one rule for both."""

from typing import Self

import attrs

from dscrapy.conf.config import DAY_S, MasterConfig


@attrs.frozen(kw_only=True)
class Keep:
    """How many ended ones are kept, for how many days, with how many bytes; None is no
    limit. The one that ended last is kept whatever its bytes."""

    jobs: int | None = None
    days: float | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, config: MasterConfig) -> Self:
        """Return what the conf file says, where 0 is no limit."""
        return cls(
            jobs=config.keep_jobs or None,
            days=config.keep_days or None,
            bytes=config.keep_bytes or None,
        )

    @property
    def is_everything(self) -> bool:
        """Whether everything is kept."""
        return self.jobs is None and self.days is None and self.bytes is None

    def is_beyond(self, age_s: float, count: int, total: int) -> bool:
        """Whether the oldest of ``count`` with ``total`` bytes is to go; it ended
        ``age_s`` seconds ago."""
        return (
            (self.jobs is not None and count > self.jobs)
            or (self.days is not None and age_s > self.days * DAY_S)
            or (self.bytes is not None and total > self.bytes and count > 1)
        )
