"""Which requests may have killed their process: suspects, and the poisoned.

A request that was under way when its process died by the job's own doing is blamed.
Blamed twice it is a *suspect*: it goes out alone from now on, to a process that has
nothing else. Blamed twice alone it is *poisoned*: set aside, and never leased again
unless the job is retried. So whatever shared a process with a bad request is cleared
by its own commit, and kills from outside, which blame nobody, condemn nobody.
"""

import attrs
import msgspec

# Deaths among others that make a suspect: one may be bad luck, and running alone is
# slow.
SHARED_DEATHS_MAX = 2
# Deaths alone that prove it.
ALONE_DEATHS_MAX = 2


class Poisoned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that was set aside: its URL as far as known, and why, for people."""

    url: str
    text: str


class Deaths(msgspec.Struct, array_like=True, gc=False):
    """The deaths that a request is blamed for."""

    shared: int = 0
    alone: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether the request goes out alone."""
        return self.shared >= SHARED_DEATHS_MAX


@attrs.define(eq=False)
class Blame:
    """What is known against requests that are not done, by number."""

    deaths: dict[int, Deaths] = attrs.field(factory=dict)
    poisoned: dict[int, Poisoned] = attrs.field(factory=dict)

    def is_suspect(self, request: int) -> bool:
        """Whether the request goes out alone."""
        deaths = self.deaths.get(request)
        return deaths is not None and deaths.is_suspect

    def add(self, request: int, *, alone: bool) -> None:
        """Blame the request for one death. A suspect that was not alone is no wiser."""
        deaths = self.deaths.setdefault(request, Deaths())
        if not deaths.is_suspect:
            deaths.shared += 1
        elif alone:
            deaths.alone += 1

    def would_prove(self, request: int, *, alone: bool) -> bool:
        """Whether one more death would prove that the request is poisoned."""
        deaths = self.deaths.get(request)
        return (
            alone
            and request not in self.poisoned
            and deaths is not None
            and deaths.is_suspect
            and deaths.alone + 1 >= ALONE_DEATHS_MAX
        )

    def set_aside(self, request: int, poisoned: Poisoned) -> None:
        """Keep the request as poisoned."""
        self.poisoned[request] = poisoned
        self.deaths[request] = Deaths(SHARED_DEATHS_MAX, ALONE_DEATHS_MAX)

    def pardon(self) -> list[int]:
        """Make the poisoned ones suspects again; return them."""
        pardoned = list(self.poisoned)
        for request in pardoned:
            self.deaths[request] = Deaths(SHARED_DEATHS_MAX)
        self.poisoned.clear()
        return pardoned

    def forget(self, request: int) -> None:
        """The request is done, whatever was held against it."""
        self.deaths.pop(request, None)
        self.poisoned.pop(request, None)
