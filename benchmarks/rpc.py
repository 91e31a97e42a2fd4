"""How many calls a second does the master answer, and at what CPU?

The smallest call over authenticated connections to a real master, beside the standard
library's ``xmlrpc.server``: as it comes, which is a connection for each call, and
with kept connections and threads. Every client is a process of its own.
"""

import argparse
import contextlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import attrs
import trio

from benchmarks.fleet import WAIT_S, cpu_s, environment, running_fleet
from benchmarks.report import header, say, spread, table
from tests.e2e.crawl_harness import ROOT

KINDS = {
    "dscrapy": "dscrapy, `Ping`",
    "once": "`xmlrpc.server` as it comes",
    "kept": "`xmlrpc.server`, HTTP/1.1, threads",
}


@attrs.frozen
class Server:
    """A server process, its port and what a client has to prove."""

    pid: int
    port: int
    token: str = ""


@attrs.frozen(kw_only=True)
class Round:
    """Calls a second; CPU seconds a call of the server and of the clients."""

    rate: float
    server_s: float
    client_s: float


def _peer(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.rpc_peer", *words],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _say_to(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def xmlrpc_server(kind: str) -> Iterator[Server]:
    """Run an XML-RPC server."""
    with _peer("serve", kind) as process:
        try:
            yield Server(process.pid, int(_hear(process)))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(WAIT_S)


def one_round(kind: str, server: Server, clients: int, calls: int) -> Round:
    """Let clients make ``calls`` calls each, all at the same time."""
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(_peer("call", kind, str(server.port)))
            for _ in range(clients)
        ]
        for peer in peers:
            _say_to(peer, server.token)
        for peer in peers:
            assert _hear(peer) == "ready"
        before = cpu_s(server.pid)
        for peer in peers:
            _say_to(peer, str(calls))
        results = [[float(word) for word in _hear(peer).split()] for peer in peers]
        used_s = cpu_s(server.pid) - before
    begins, ends, cpus = zip(*results, strict=True)
    total = clients * calls
    return Round(
        rate=total / (max(ends) - min(begins)),
        server_s=used_s / total,
        client_s=sum(cpus) / total,
    )


def measure(servers: dict[str, Server], rounds: int, calls: int) -> None:
    """Take turns and print."""
    found: dict[tuple[int, str], list[Round]] = defaultdict(list)
    for _ in range(rounds):
        for clients in (1, 8):
            for kind, server in servers.items():
                # As many calls in all, within a factor of two.
                each = calls if clients == 1 else calls // 4
                result = one_round(kind, server, clients, each)
                found[clients, kind].append(result)
    rows = [
        [
            str(clients),
            KINDS[kind],
            spread([one.rate for one in results], "/s", 0),
            _microseconds([one.server_s for one in results]),
            _microseconds([one.client_s for one in results]),
        ]
        for (clients, kind), results in sorted(found.items())
    ]
    table(
        ["clients", "server", "calls", "server CPU a call", "client CPU a call"], rows
    )
    say(
        f"{rounds} rounds taking turns, {calls} calls by one client, "
        f"{calls // 4} by each of eight; median (min-max)"
    )
    say()


def _microseconds(samples: list[float]) -> str:
    return spread([one * 1e6 for one in samples], "us", 0)


async def run(rounds: int, calls: int) -> None:
    """Start the servers and measure."""
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(running_fleet())
        master, _ = await fleet.start_master()
        token = (fleet.state / "token").read_text().strip()
        servers = {"dscrapy": Server(master.pid, fleet.port, token)}
        for kind in ("once", "kept"):
            servers[kind] = stack.enter_context(xmlrpc_server(kind))
        measure(servers, rounds, calls)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    options = parser.parse_args()
    header("rpc", sys.argv[1:])
    trio.run(run, options.rounds, options.calls)


if __name__ == "__main__":
    main()
