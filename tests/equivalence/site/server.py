"""A site of many hosts whose answers follow from the request alone.

``server.py [--log FILE] [--stages SOCKET] [--port N]`` serves on 127.0.0.1 to
127.0.0.8, all on one port (a free one), prints it on one line, and ends when its stdin
does. Nothing is remembered between requests, so one that is repeated after a kill gets
the same answer.

Every request is one line of the log, a JSON array: the run (its User-Agent), host,
method, path, cookies, digest of the body, who asked (a process), number of requests
of that run and host that were under way.

Headers of the test project's own: ``X-Retry`` (which try this is), ``X-Ms`` (how
long to wait before the answer, milliseconds), ``X-Pid`` (who asks), ``X-Together``
(answer when so many processes of the run have asked for something: the one thing that
the site remembers). With ``--stages`` every request is told to that socket, and held
until it is answered.

Paths:

- ``/leaf/NAME``, ``/tree/DEPTH/WIDTH/PATH``, ``/deep/N``, ``/hub/COUNT``
- ``/status/CODE/NAME``, ``/flaky/K/NAME``, ``/redirect/K/NAME``, ``/to/CODE/HOST/PATH``
- ``/slow/MS/NAME``, ``/cookie/set/NAME``, ``/cookie/show/NAME``, ``/form``, ``/echo``
- ``/media/NAME``, ``/sitemaps.xml``, ``/sitemap/N.xml``, ``/feed.xml``, ``/feed.csv``
- ``/robots.txt``, ``/private/NAME``, ``/page/N`` (2.5 kB), ``/heavy/N`` (40 kB)
- ``/flood/NAME``: as much as the client takes, up to 4 GiB
"""

import argparse
import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))
# Longer waits would outlast the tests' own limits.
MS_MAX = 60_000
# A run's processes come within this, or what is to be shared is not.
TOGETHER_S_MAX = 900.0
# One port has to be free on all hosts: a taken one is bad luck, not more.
TRIES = 20
FLOOD_PIECE = b"<p>More and more.</p>" * 50_000
FLOOD_BYTES_MAX = 4 * 1024**3


class Log:
    """The log of all hosts; counts what is under way."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", buffering=1) if path else None
        self._lock = threading.Lock()
        self._active: Counter[tuple[str, str]] = Counter()
        self._pids: dict[str, set[str]] = {}
        self._came = threading.Condition()

    def begin(self, run: str, host: str, rest: list[str]) -> None:
        """Append a request."""
        with self._lock:
            self._active[run, host] += 1
            line = [run, host, *rest, self._active[run, host]]
            if self._file is not None:
                self._file.write(json.dumps(line) + "\n")

    def together(self, run: str, pid: str, count: int) -> None:
        """Note who asks; wait until ``count`` processes of the run have asked."""
        with self._came:
            pids = self._pids.setdefault(run, set())
            pids.add(pid)
            self._came.notify_all()
            self._came.wait_for(lambda: len(pids) >= count, TOGETHER_S_MAX)

    def end(self, run: str, host: str) -> None:
        """A request is answered."""
        with self._lock:
            self._active[run, host] -= 1


class Stages:
    """Tells the campaign's socket of each request, and waits for its answer."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = threading.local()

    def tell(self, run: str, pid: str) -> None:
        """Say that a process's download is under way; each thread has a connection."""
        if not self._path or not pid:
            return
        sock = getattr(self._local, "sock", None)
        with contextlib.suppress(OSError):
            if sock is None:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.connect(self._path)
                self._local.sock = sock
            sock.sendall(f"download {pid} {run}\n".encode())
            sock.recv(1)


class Host(ThreadingHTTPServer):
    """One address; serves in daemon threads."""

    daemon_threads = True
    # Crawls open many connections at once.
    request_queue_size = 256

    def __init__(self, host: str, port: int, log: Log, stages: Stages) -> None:
        super().__init__((host, port), Handler)
        self.host = host
        self.log = log
        self.stages = stages

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed or lost patience."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # the stub's own name for it is private


class Handler(BaseHTTPRequestHandler):
    """Answers from the request alone."""

    server: Host
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet; else each answer waits for an ACK.
    wbufsize = -1

    def do_GET(self) -> None:
        """Answer one request."""
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        run, host = self.headers.get("User-Agent", ""), self.server.host
        digest = hashlib.sha256(body).hexdigest()[:16] if body else ""
        cookies = self.headers.get("Cookie", "")
        pid = self.headers.get("X-Pid", "")
        rest = [self.command, self.path, cookies, digest, pid]
        self.server.log.begin(run, host, rest)
        try:
            self.server.stages.tell(run, pid)
            count = int(self.headers.get("X-Together") or 0)
            self.server.log.together(run, pid, count)
            words = urlsplit(self.path).path.strip("/").split("/")
            ms = int(self.headers.get("X-Ms") or 0)
            if words[0] == "slow":
                ms = int(words[1])
            time.sleep(min(ms, MS_MAX) / 1000)
            self._route(words, body)
        finally:
            self.server.log.end(run, host)

    def _route(self, words: list[str], body: bytes) -> None:
        port = self.server.server_address[1]
        match words:
            case ["status", code, name]:
                self._answer(page(f"status {code} {name}"), code=int(code))
            case ["flaky", k, name]:
                failing = int(self.headers.get("X-Retry") or 0) < int(k)
                self._answer(page(f"flaky {name}"), code=503 if failing else 200)
            case ["redirect", k, name]:
                left = int(k) - 1
                path = f"/redirect/{left}/{name}" if left > 0 else f"/leaf/{name}"
                self._answer("", code=302, location=path)
            case ["to", code, number, *path]:
                url = f"http://127.0.0.{number}:{port}/{'/'.join(path)}"
                self._answer("", code=int(code), location=url)
            case ["cookie", "set", name]:
                self._answer(page(f"set {name}"), cookie=f"name={name}; Path=/")
            case ["cookie", "show", _]:
                self._answer(json.dumps(self.headers.get("Cookie", "")), kind="json")
            case ["echo"]:
                kind = self.headers.get("Content-Type", "")
                told = [self.command, kind.partition(";")[0], body.decode()]
                self._answer(json.dumps(told), kind="json")
            case ["flood", _]:
                self._flood()
            case ["media", name]:
                self._answer(f"media {name}\n" * 50, kind="octet")
            case _:
                status, text, kind = document(words, port)
                self._answer(text, code=status, kind=kind)

    def _flood(self) -> None:
        """Answer without a length, and without an end that a client lives to see."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", KINDS["html"])
        self.end_headers()
        for _ in range(FLOOD_BYTES_MAX // len(FLOOD_PIECE)):
            self.wfile.write(FLOOD_PIECE)

    def _answer(
        self,
        text: str,
        *,
        code: int = 200,
        kind: str = "html",
        location: str = "",
        cookie: str = "",
    ) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", KINDS[kind])
        self.send_header("Content-Length", str(len(data)))
        if location:
            self.send_header("Location", location)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; the site has its own log."""


KINDS = {
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "xml": "application/xml",
    "csv": "text/csv; charset=utf-8",
    "text": "text/plain",
    "octet": "application/octet-stream",
}


def host_of(name: str) -> int:
    """Return the number of the host that a page of this name stands on."""
    return 1 + zlib.crc32(name.encode()) % len(HOSTS)


def document(words: list[str], port: int) -> tuple[int, str, str]:
    """Return code, text and kind of what depends on the path alone."""
    match words:
        case ["leaf" | "private" | "slow" as kind, *name]:
            return 200, page(f"{kind} {'/'.join(name)}"), "html"
        case ["tree", depth, width, *path]:
            return 200, tree(int(depth), int(width), "".join(path), port), "html"
        case ["deep", number]:
            links = [f"/deep/{int(number) + 1}"]
            return 200, page(f"deep {number}", links), "html"
        case ["hub", count]:
            links = [url_of(f"leaf/{n}", port) for n in range(int(count))]
            return 200, page(f"hub {count}", links), "html"
        case ["form"]:
            return 200, page("form", extra=FORM), "html"
        case ["page" | "heavy" as kind, number]:
            return 200, weighty(kind, int(number)), "html"
        case ["robots.txt"]:
            return 200, "User-agent: *\nDisallow: /private\n", "text"
        case _:
            found = listing(words, port)
            return found or (404, page("not found"), "html")


def listing(words: list[str], port: int) -> tuple[int, str, str] | None:
    """Return site maps and feeds."""
    match words:
        case ["sitemaps.xml"]:
            locs = [url_of(f"sitemap/{n}.xml", port) for n in range(3)]
            return 200, sitemap("sitemapindex", "sitemap", locs), "xml"
        case ["sitemap", name]:
            part = name.partition(".")[0]
            kinds = ("leaf/map", "status/404/map")
            locs = [url_of(f"{k}-{part}-{n}", port) for k in kinds for n in range(4)]
            return 200, sitemap("urlset", "url", locs), "xml"
        case ["feed.xml"]:
            entries = "".join(
                f"<entry id='{n}'><name>näme {n}</name></entry>" for n in range(25)
            )
            return 200, f"<?xml version='1.0'?><feed>{entries}</feed>", "xml"
        case ["feed.csv"]:
            rows = [f"{n};näme {n};{n * 7}" for n in range(25)]
            return 200, "\n".join(["id;name;price", *rows, ""]), "csv"
    return None


FORM = (
    "<form action='/echo' method='post'><input type='hidden' name='token' value='t7'>"
    "<input name='q' value='nothing'><input type='submit' name='go' value='go'></form>"
)


def url_of(path: str, port: int) -> str:
    """Return the address of a page on the host that its path gives it."""
    return f"http://127.0.0.{host_of(path)}:{port}/{path}"


def page(title: str, links: list[str] | None = None, extra: str = "") -> str:
    """Return a small page."""
    anchors = "\n".join(f'<a href="{escape(link)}">link</a>' for link in links or [])
    title = escape(unquote(title))
    return (
        f"<html><head><title>{title}</title></head><body><h1>{title}</h1>"
        f"{extra}{anchors}</body></html>"
    )


def tree(depth: int, width: int, path: str, port: int) -> str:
    """Return a page of a tree: links to its children, on many hosts."""
    children = [f"{path}{n}" for n in range(width)] if len(path) < depth else []
    links = [url_of(f"tree/{depth}/{width}/{child}", port) for child in children]
    return page(f"tree {path or 'root'}", links)


def sitemap(outer: str, inner: str, locs: list[str]) -> str:
    """Return a site map."""
    entries = "".join(f"<{inner}><loc>{loc}</loc></{inner}>" for loc in locs)
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f"<?xml version='1.0'?><{outer} xmlns='{space}'>{entries}</{outer}>"


def weighty(kind: str, number: int) -> str:
    """Return a page of about 2.5 kB, or 40 kB with 200 links; 2N+1 and 2N+2 follow."""
    links = [f"/{kind}/{2 * number + 1}", f"/{kind}/{2 * number + 2}"]
    if kind == "heavy":
        links += [f"/leaf/{number}-{n}?a=1&b={n}#part" for n in range(198)]
    text = "".join(
        f"<p class='t{n}'>Words that fill paragraph {n} of page {number}.</p>"
        for n in range(40 if kind == "page" else 500)
    )
    return page(f"{kind} {number}", links, f"<b class='price'>{number}</b>{text}")


def bind(log: Log, stages: Stages, port: int) -> list[Host]:
    """Return a server on each host, all on one port; 0 is any."""
    for _ in range(TRIES):
        first = Host(HOSTS[0], port, log, stages)
        found = [first]
        try:
            for host in HOSTS[1:]:
                found.append(Host(host, first.server_address[1], log, stages))
        except OSError:
            for server in found:
                server.server_close()
            continue
        return found
    raise SystemExit("no port is free on all hosts")


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--stages", default="")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    hosts = bind(Log(arguments.log), Stages(arguments.stages), arguments.port)
    for host in hosts:
        threading.Thread(target=host.serve_forever, daemon=True).start()
    sys.stdout.write(f"{hosts[0].server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
