"""dscrapy and scrapy-redis as the comparison runs them: N crawl processes each.

Both crawl the same tree with the same callback and the same settings. A side can be
struck in three ways, each made good at once: a crawl process; a machine that crawls (a
worker with its process; of scrapy-redis, whose machine has nothing else, the process);
the server (the master; redis-server). scrapy-redis runs as its manual says: its
scheduler, dupefilter and item pipeline, a persistent queue, Redis with an append-only
file; processes that find nothing wait for more.
"""

import json
import shutil
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import Protocol

import attrs
import trio

from dscrapy.cli.serve import new_id
from dscrapy.model import JobSpec, Submission
from tests.chaos.rig import Rig, say, send
from tests.chaos.table import Skipped, Wrong
from tests.equivalence.ours import items_of
from tests.equivalence.runs import ROOT, Site, environment

PROJECT = ROOT / "tests" / "chaos" / "project"
VENV = ROOT / ".venv-peer"
PROCESSES = 3
# How long Redis may take to listen, and a crawl process to end when it is asked to.
START_S = 20.0
STOP_S = 20.0
# Queue and site quiet for so long: the crawl is over, or it hangs.
QUIET_S = 8.0
# Restarts of all processes because nothing moved although the queue holds requests.
HELP_MAX = 3


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


@attrs.frozen
class Crawl:
    """A run: where its processes leave files, the site, and how much there is of it.

    ``name`` is how the site knows it; pages take ``ms`` milliseconds each.
    """

    folder: Path
    site: Site
    name: str
    count: int
    ms: int

    @property
    def arguments(self) -> dict[str, str]:
        """Return the spider's arguments."""
        return {"port": str(self.site.port), "count": str(self.count)}

    @property
    def settings(self) -> dict[str, str]:
        """Return what the site needs to know: who asks, and how slow it is to be."""
        return {
            "USER_AGENT": self.name,
            "DEFAULT_REQUEST_HEADERS": json.dumps({"X-Ms": str(self.ms)}),
        }


class Side(Protocol):
    """One of the two; ``close`` ends what ``start`` began, also when that failed."""

    async def start(self) -> None:
        """Start everything; the crawl is then under way."""
        ...

    @property
    def note(self) -> str:
        """What else happened, for people."""
        ...

    async def strike(self, what: str, number: int) -> bool:
        """Kill something and start it again; False when nothing was there."""
        ...

    async def finish(self) -> Counter[str]:
        """Wait for the crawl's end; return its items."""
        ...

    def close(self) -> None:
        """End every process."""
        ...


@attrs.define
class Ours:
    """A master and three workers of one slot; a job of parallelism three."""

    crawl: Crawl
    rig: Rig
    job: str = ""
    note: str = ""

    async def start(self) -> None:
        """Start master and workers, and submit the job."""
        await self.rig.start_master()
        for number in range(PROCESSES):
            self.rig.start_worker(f"w{number}", slots=1)
        spec = JobSpec(
            project_dir=str(PROJECT),
            spider="tree",
            args=self.crawl.arguments,
            settings=self.crawl.settings,
            parallelism=PROCESSES,
        )
        what = Submission(id=new_id(), spec=spec)
        async with self.rig.client() as client:
            await client.submit([what])
        self.job = what.id

    async def strike(self, what: str, number: int) -> bool:
        """Kill something; what it ran goes on by itself."""
        name = f"w{number}"
        match what:
            case "process":
                pids = self.rig.crawl_pids(name) or self.rig.crawl_pids()
                if not pids:
                    return False
                send(pids[0], signal.SIGKILL)
            case "machine":
                self.rig.kill_worker(name)
                self.rig.start_worker(name, slots=1)
            case "server":
                await self.rig.kill_master()
        return True

    async def finish(self) -> Counter[str]:
        """Wait for the job."""
        async with self.rig.client() as client:
            shown = await client.wait(self.job)
            if shown.job is None or shown.job.state != "succeeded":
                raise Wrong(f"{shown.job}\n{shown.traceback}")
            return Counter(await items_of(client, self.job))

    def close(self) -> None:
        """End every process."""
        self.rig.cluster.close()


@attrs.define
class Theirs:
    """redis-server and three ``scrapy crawl``, each started again when it ends."""

    crawl: Crawl
    fsync: str
    port: int = attrs.Factory(free_port)
    helped: int = 0
    redis: subprocess.Popen[bytes] | None = None
    crawls: list[subprocess.Popen[bytes]] = attrs.Factory(list)

    @property
    def note(self) -> str:
        """How often somebody had to help."""
        text = f"all processes restarted by hand {self.helped} times"
        return text if self.helped else ""

    async def start(self) -> None:
        """Start Redis, push the start URL, and start the crawl processes."""
        await self._redis_again()
        url = f"http://127.0.0.1:{self.crawl.site.port}/page/0"
        self.ask("lpush", "tree:start_urls", json.dumps({"url": url}))
        self.crawls = [self._start_crawl() for _ in range(PROCESSES)]

    def ask(self, *words: str) -> str:
        """Ask Redis."""
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), *words],  # noqa: S607 - wherever the system has it
            check=True,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        return done.stdout.strip()

    async def _redis_again(self) -> None:
        """Start Redis on its files and wait until it answers."""
        self._start_redis()
        with trio.fail_after(START_S):
            while not self._answers():  # noqa: ASYNC110 - no event tells it
                await trio.sleep(0.02)

    def _start_redis(self) -> None:
        words = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port)]
        words += ["--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""]
        with (self.crawl.folder / "redis.txt").open("ab") as log:
            self.redis = subprocess.Popen(
                [*words, "--dir", str(self.crawl.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _answers(self) -> bool:
        try:
            return self.ask("ping") == "PONG"
        except subprocess.CalledProcessError:
            return False

    def _start_crawl(self) -> subprocess.Popen[bytes]:
        words = [str(VENV / "bin" / "python"), "-P", "-m", "scrapy", "crawl", "tree"]
        for name, value in self.crawl.arguments.items():
            words += ["-a", f"{name}={value}"]
        settings = {"REDIS_PORT": str(self.port), **self.crawl.settings}
        for name, value in settings.items():
            words += ["-s", f"{name}={value}"]
        with (self.crawl.folder / "crawls.txt").open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=PROJECT,
                env={**environment(), "SCRAPY_PROJECT": "redis"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def strike(self, what: str, number: int) -> bool:
        """Kill something and start it again."""
        if what == "server":
            assert self.redis is not None
            self.redis.kill()
            self.redis.wait()
            await self._redis_again()
        else:
            self.crawls[number].kill()
            self.crawls[number].wait()
            self.crawls[number] = self._start_crawl()
        return True

    async def finish(self) -> Counter[str]:
        """Wait until queue and site are quiet; help when only the site is."""
        while True:
            await self._quiet()
            waiting = int(self.ask("zcard", "tree:requests"))
            if not waiting or self.helped == HELP_MAX:
                break
            self.helped += 1
            say(f"   {waiting} requests wait and nothing moves: restarting all")
            for number in range(PROCESSES):
                await self.strike("process", number)
        await self._stop()
        return Counter(self.ask("lrange", "tree:items", "0", "-1").splitlines())

    async def _quiet(self) -> None:
        size, since = -1, trio.current_time()
        while trio.current_time() < since + QUIET_S:
            await trio.sleep(0.25)
            self._revive()
            now = self.crawl.site.log.stat().st_size
            if now != size:
                size, since = now, trio.current_time()

    def _revive(self) -> None:
        for number, crawl in enumerate(self.crawls):
            if crawl.poll() is not None:
                self.crawls[number] = self._start_crawl()

    async def _stop(self) -> None:
        """Ask every process to end, as Ctrl-C does, so that it hands in what it has."""
        for crawl in self.crawls:
            crawl.send_signal(signal.SIGINT)
        for crawl in self.crawls:
            with trio.move_on_after(STOP_S):
                while crawl.poll() is None:  # noqa: ASYNC110 - no event tells it
                    await trio.sleep(0.1)

    def close(self) -> None:
        """End every process."""
        for one in (*self.crawls, self.redis):
            if one is not None and one.poll() is None:
                one.kill()
                one.wait()


def check_there() -> dict[str, str]:
    """Return versions of what is compared with; raises ``Skipped``."""
    for program in ("redis-server", "redis-cli"):
        if shutil.which(program) is None:
            raise Skipped(f"no {program} (Debian: redis-server; `make chaos` as root)")
    python = VENV / "bin" / "python"
    if not python.exists():
        raise Skipped(f"no {VENV.name}: `make chaos` makes it")
    names = ("scrapy-redis", "redis", "scrapy")
    code = "import sys; from importlib.metadata import version as v; "
    code += "print(*map(v, sys.argv[1:]))"
    found = subprocess.run(
        [str(python), "-c", code, *names], check=True, capture_output=True, text=True
    )
    versions = dict(zip(names, found.stdout.split(), strict=True))
    server = subprocess.run(
        ["redis-server", "--version"],  # noqa: S607 - wherever the system has it
        check=True,
        capture_output=True,
        text=True,
    )
    words = dict(word.split("=", 1) for word in server.stdout.split() if "=" in word)
    return {**versions, "redis-server": words["v"]}
