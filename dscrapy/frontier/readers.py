"""Who can read which requests: a body may need classes that a process does not have.

A request's *kind* stands for the classes that its body needs beside those which any
process of the job has; 0 is none. A request that a process could not read goes to a
process that has written requests of its kind; where there is none, to any process that
has not refused the kind. When all open processes have refused it, no reader is left.
Which process has written or refused a kind is volatile.
"""

from collections.abc import Iterable

import attrs

from dscrapy.frontier.rights import Host


@attrs.define(eq=False)
class Readers:
    """Kinds of open requests, and what is known of processes.

    ``kinds`` has the requests whose kind is not 0; ``refused`` those that a process
    could not read, and why; ``waiting`` the refused ones that are neither leased nor
    suspects, each with its host.
    """

    kinds: dict[int, int] = attrs.field(factory=dict)
    refused: dict[int, str] = attrs.field(init=False, factory=dict)
    waiting: dict[int, Host] = attrs.field(init=False, factory=dict)
    _writers: dict[int, set[int]] = attrs.field(init=False, factory=dict)
    _unable: dict[int, set[int]] = attrs.field(init=False, factory=dict)

    def wrote(self, process: int, kinds: Iterable[int]) -> None:
        """Note that a process has written requests of these kinds."""
        for kind in kinds:
            self._writers.setdefault(kind, set()).add(process)

    def refuse(self, request: int, process: int, why: str) -> None:
        """Note that a process could not read a request."""
        self.refused[request] = why
        kind = self.kinds.get(request, 0)
        self._unable.setdefault(kind, set()).add(process)

    def able(self, request: int, processes: Iterable[int]) -> set[int]:
        """Return which of these open processes may have a request that was refused."""
        kind = self.kinds.get(request, 0)
        able = set(processes) - self._unable.get(kind, set())
        return able & self._writers.get(kind, set()) or able

    def forget(self, request: int) -> None:
        """Forget a request that is done."""
        self.kinds.pop(request, None)
        self.refused.pop(request, None)

    def forget_process(self, process: int) -> None:
        """Forget a process that has ended."""
        for by_kind in (self._writers, self._unable):
            for kind, processes in list(by_kind.items()):
                processes.discard(process)
                if not processes:
                    del by_kind[kind]
