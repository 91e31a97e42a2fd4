"""Jobs of a real master and workers, submitted and read by a client."""

import json
from pathlib import Path

import trio

from dscrapy.cli.serve import new_id
from dscrapy.cli.terminal.render import stats_values
from dscrapy.client import Client, Target
from dscrapy.messages import ReadFile, Shown
from dscrapy.model import JobSpec, Submission
from tests.e2e.cluster import Cluster
from tests.equivalence.runs import PROJECT, WAIT_S, Run, Site, settings_of

CHUNK_BYTES = 1024 * 1024


def port_of(state: Path) -> int:
    """Return the port of the master that listens; it keeps it when restarted."""
    port = json.loads((state / "endpoint.json").read_text())["port"]
    assert isinstance(port, int)
    return port


def client_of(state: Path, port: int) -> Client:
    """Return a client of a master; it waits for one that is restarted."""
    token = (state / "token").read_text().strip()

    def find() -> Target:
        return Target(host="127.0.0.1", port=port, token=token, token_from=str(state))

    return Client(find, connect_timeout_s=WAIT_S, patient=True)


def submission(
    site: Site,
    folder: Path,
    spider: str,
    run: str,
    *,
    processes: int,
    arguments: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
) -> Submission:
    """Return a job of the project; ``run`` names it to the site."""
    spec = JobSpec(
        project_dir=str(PROJECT),
        spider=spider,
        args=site.arguments(arguments or {}),
        settings=settings_of(run, folder, settings or {}),
        parallelism=processes,
        name=run,
    )
    return Submission(id=new_id(), spec=spec)


async def items_of(client: Client, job: str) -> list[str]:
    """Return the lines of a job's items."""
    data = bytearray()
    while True:
        chunk = await client.read_file(
            ReadFile(call=0, job=job, file="items", offset=len(data), limit=CHUNK_BYTES)
        )
        data += chunk.data
        if not chunk.data:
            return data.decode().splitlines()


async def run_job(cluster: Cluster, site: Site, what: Submission) -> Run:
    """Submit a job, wait for its success, and return what it gave."""
    async with client_of(cluster.state, port_of(cluster.state)) as client:
        with trio.fail_after(WAIT_S):
            await client.submit([what])
            shown = await client.wait(what.id)
        assert shown.job is not None
        assert shown.job.state == "succeeded", described(shown, cluster)
        items = await items_of(client, what.id)
    stats: dict[str, object] = dict(stats_values(shown.stats))
    return site.run(what.spec.name, items, stats, described(shown, cluster))


def described(shown: Shown, cluster: Cluster) -> str:
    """Return a job for people."""
    return f"{shown.job}\n{shown.traceback}\nlogs: {cluster.folder}"
