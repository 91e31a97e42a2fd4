"""A walk through a document: its commands are typed, one after another, as they stand.

What the reader has is a folder for each machine, its home; state, configuration and
programs are found there alone. Commands follow from each other: a shell's folder and
variables stay. A command that serves (``SERVES``) runs on in a terminal of its own, as
the reader leaves it running; what the document shows of it is waited for. Any other has
to succeed, and what the document shows of it has to be seen.

Numbers of ports are exchanged for free ones, in commands and in files. The network is
loopback; for what that lacks see ``standins``. Some commands would take many minutes:
see ``campaigns``.
"""

import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import attrs

from tests.docs import campaigns, standins
from tests.docs.markdown import Block, MarkdownError, blocks
from tests.docs.shown_output import missing
from tests.docs.terminals import COLUMNS, ROWS, Terminal, Terminals

# Commands that go on until somebody ends them.
SERVES = re.compile(
    r"dscrapy (master|worker)\b|dscrapy status --watch\b|python3? \w+\.py\Z"
    # The next command ends it.
    r"|dscrapy crawl .*--pidfile\b"
)
# Below those that systems hand out by themselves.
_PORTS = range(20_000, 30_000)
_PORT = re.compile(r"(?<![\d.])(?:7411|8000)(?!\d)")
# Nobody who is alive is given up on a busy machine.
_SPANS = MappingProxyType(
    {
        "DSCRAPY_CLIENT_CONNECT_TIMEOUT_S": "1000",
        "DSCRAPY_MASTER_DIE_AFTER_S": "200",
        "DSCRAPY_MASTER_HANDSHAKE_TIMEOUT_S": "60",
    }
)


@attrs.define
class Machine:
    """A home, and the shell that somebody has open there."""

    home: Path
    folder: Path
    variables: dict[str, str]

    @classmethod
    def make(cls, home: Path) -> "Machine":
        """Make a machine whose user has nothing yet."""
        programs = home / ".programs"
        standins.put_into(programs)
        variables = {
            "HOME": str(home),
            "PWD": str(home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "TERM": "xterm",
            "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return cls(home, home, {**variables, **_SPANS})


@attrs.define
class Walk:
    """A walk through ``document``; ``folder`` is empty, for the homes.

    ``before`` names commands by their beginning, and what has to be so before they
    are typed where a reader would see it for himself.
    """

    document: Path
    folder: Path
    terminals: Terminals
    machines: dict[str, Machine] = attrs.field(factory=dict)
    before: Mapping[str, Callable[[], bool]] = attrs.field(factory=dict)
    _ports: dict[str, str] = attrs.field(factory=dict)
    # What was typed, and its terminal, in order.
    typed: list[tuple[str, Terminal]] = attrs.field(factory=list)

    def machine(self, name: str) -> Machine:
        """Return a machine, made when it is first named."""
        if name not in self.machines:
            self.machines[name] = Machine.make(self.folder / name)
            self.machines[name].variables["DSCRAPY_MASTER_PORT"] = self._port("7411")
        return self.machines[name]

    def run(self, first_machine: str) -> None:
        """Walk from top to bottom, on ``first_machine`` where nothing is said."""
        found = list(blocks(self.document.read_text()))
        for place, block in enumerate(found):
            after = found[place + 1] if place + 1 < len(found) else None
            shown = after.text if after and after.language == "text" else ""
            match block.language:
                case "sh":
                    for name in block.machines or (first_machine,):
                        self._type(block, self.machine(name), self._local(shown))
                case "text" if place == 0 or found[place - 1].language != "sh":
                    raise MarkdownError(f"{block.line}: no commands have shown this")
                case _ if block.file:
                    path = self.machine(first_machine).folder / block.file
                    path.write_text(f"{self._local(block.text)}\n")

    def terminal(self, command: str) -> Terminal:
        """Return where this was typed last."""
        return next(where for what, where in reversed(self.typed) if what == command)

    # ---- commands -------------------------------------------------------------

    def _type(self, block: Block, machine: Machine, shown: str) -> None:
        """Type the commands of a block; ``shown`` is what the document shows then."""
        opened: list[Terminal] = []
        for line, command in block.commands():
            where = f"{self.document.name}:{line}: {command}"
            if campaigns.prove(command):
                continue
            self._wait_before(command)
            if not SERVES.search(command):
                opened.append(self._finish(machine, command, where))
            elif shown:
                opened.append(self._serve(machine, command))
                self._wait_for(shown, opened)
            else:
                raise MarkdownError(f"{where}: show what is seen when it is there")
            self.typed.append((command, opened[-1]))
        lacks = missing(shown, _text(opened))
        place = f"{self.document.name}:{block.line}"
        assert not lacks, f"{place}: {lacks!r} is not in\n{_text(opened)}"

    def _wait_before(self, command: str) -> None:
        for beginning, holds in self.before.items():
            if command.startswith(beginning):
                self.terminals.until(holds, lambda: f"not ready for {command}")

    def _wait_for(self, shown: str, opened: list[Terminal]) -> None:
        """Wait until the last program shows this, or has ended."""
        self.terminals.until(
            lambda: not missing(shown, _text(opened)) or opened[-1].has_ended,
            lambda: f"{missing(shown, _text(opened))!r} is not in\n{_text(opened)}",
        )

    def _serve(self, machine: Machine, command: str) -> Terminal:
        words = ["sh", "-c", self._local(command)]
        return self.terminals.open(words, machine.variables, machine.folder)

    def _finish(self, machine: Machine, command: str, where: str) -> Terminal:
        """Run a command to its end; the shell's folder and variables stay."""
        after = self.folder / "variables"
        script = f"set -a\n{self._local(command)}\n" + _remember(after)
        terminal = self.terminals.open(
            ["sh", "-c", script], machine.variables, machine.folder
        )
        code = self.terminals.finish(terminal)
        assert code == 0, f"{where}: exit code {code}\n{terminal.text}"
        machine.variables = _variables(after)
        machine.folder = Path(machine.variables["PWD"])
        return terminal

    def _local(self, text: str) -> str:
        """Return ``text`` with ports that are free on this computer."""
        return _PORT.sub(lambda found: self._port(found[0]), text)

    def _port(self, number: str) -> str:
        if number not in self._ports:
            taken = {int(port) for port in self._ports.values()}
            self._ports[number] = str(next(_free_ports(taken)))
        return self._ports[number]


def _text(opened: list[Terminal]) -> str:
    return "\n".join(terminal.text for terminal in opened)


def _remember(path: Path) -> str:
    """Return what ends a shell: the command's exit code, its variables in ``path``."""
    show = "import os; print('\\0'.join(f'{k}={v}' for k, v in os.environ.items()))"
    command = [sys.executable, "-I", "-S", "-c", show]
    return f"code=$?\n{shlex.join(command)} >{shlex.quote(str(path))}\nexit $code\n"


def _variables(path: Path) -> dict[str, str]:
    pairs = path.read_text().removesuffix("\n").split("\0")
    return dict(pair.split("=", 1) for pair in pairs)


def _free_ports(taken: set[int]) -> Iterator[int]:
    """Yield ports that nobody listens on, other ones in each process."""
    begin = os.getpid() * 10 % len(_PORTS)
    for place in range(len(_PORTS)):
        port = _PORTS[(begin + place) % len(_PORTS)]
        with closing(socket.socket()) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in taken:
            yield port
