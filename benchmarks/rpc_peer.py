"""The other processes of the ``rpc`` benchmark: clients, and the XML-RPC server.

``rpc_peer serve once|kept`` serves XML-RPC on a free port, prints it, and ends when
its stdin does. ``rpc_peer call KIND PORT`` reads a token (one line, may be empty),
connects, says ``ready``, reads how many calls to make, makes them, and prints the
instants of begin and end and its CPU seconds.
"""

import sys
import threading
import time
import xmlrpc.client
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

import trio

from benchmarks.report import say
from dscrapy.client import Client, Target
from dscrapy.messages import Ping
from dscrapy.net.host import boot_instant

CONNECT_TIMEOUT_S = 10.0


class KeptHandler(SimpleXMLRPCRequestHandler):
    """Keeps the connection, which the standard handler closes after each call."""

    protocol_version = "HTTP/1.1"


class ThreadedServer(ThreadingMixIn, SimpleXMLRPCServer):
    """A thread for each connection, or a kept one would shut out the others."""

    daemon_threads = True


def serve(kept: bool) -> None:
    """Serve XML-RPC until stdin ends."""
    address = ("127.0.0.1", 0)
    server: SimpleXMLRPCServer
    if kept:
        server = ThreadedServer(address, KeptHandler, logRequests=False)
    else:
        server = SimpleXMLRPCServer(address, logRequests=False)

    def ping(call: Any) -> Any:
        return call

    server.register_function(ping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(str(server.server_address[1]))
    sys.stdin.read()


def call_xmlrpc(port: int) -> None:
    """Make calls with the standard library's client."""
    sys.stdin.readline()
    with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}/") as proxy:
        assert proxy.ping(0) == 0
        count = _wait_for_go()
        begin, cpu = boot_instant(), time.process_time()
        for number in range(count):
            assert proxy.ping(number) == number
        _report(begin, cpu)


async def call_dscrapy(port: int) -> None:
    """Make calls with the client that every command uses."""
    token = sys.stdin.readline().strip()
    target = Target(host="127.0.0.1", port=port, token=token, token_from=str(port))
    async with Client(lambda: target, connect_timeout_s=CONNECT_TIMEOUT_S) as client:
        await client.call(Ping(call=0))
        count = _wait_for_go()
        begin, cpu = boot_instant(), time.process_time()
        for _ in range(count):
            await client.call(Ping(call=0))
        _report(begin, cpu)


def _wait_for_go() -> int:
    say("ready")
    return int(sys.stdin.readline())


def _report(begin: float, cpu_before_s: float) -> None:
    say(f"{begin} {boot_instant()} {time.process_time() - cpu_before_s}")


def main() -> None:
    """Do what the arguments say."""
    match sys.argv[1:]:
        case ["serve", kind]:
            serve(kind == "kept")
        case ["call", "dscrapy", port]:
            trio.run(call_dscrapy, int(port))
        case ["call", _, port]:
            call_xmlrpc(int(port))
        case other:
            raise SystemExit(f"not understood: {other}")


if __name__ == "__main__":
    main()
