"""Bugs to plant in the product, each of which the simulation has to find.

An edit that does not fit any more fails loudly: then the bug is to be planted anew in
what the product has become.
"""

import attrs

from tests.sim.planting import Edit

COMMITTER = "dscrapy.master.committer"
JOURNAL = "dscrapy.master.journal"
FILES = "dscrapy.master.files"
BODIES = "dscrapy.master.bodies"
COMMITS = "dscrapy.control.decide.commits"
CRAWLS = "dscrapy.control.state.crawls"
LEASES = "dscrapy.frontier.leases"
CAPACITY = "dscrapy.frontier.capacity"
FRONTIER = "dscrapy.frontier.frontier"
EARLY = "dscrapy.frontier.early_requests"
OPEN_REQUESTS = "dscrapy.frontier.open_requests"
PROCESSES = "dscrapy.control.state.processes"
APPLY = "dscrapy.control.apply"
REGISTRATION = "dscrapy.control.decide.registration"
MACHINE = "dscrapy.control.machine"
ENDS = "dscrapy.control.decide.process_exits"
RIGHTS = "dscrapy.frontier.rights"
QUARANTINE = "dscrapy.frontier.quarantine"
RUNNING = "dscrapy.control.decide.reconcile"
DERIVE = "dscrapy.control.projections"
RETENTION = "dscrapy.control.decide.retention"
CLOCK = "dscrapy.control.clock"
LINK = "dscrapy.worker.master_link"
AGENT = "dscrapy.worker.agent"
OUTBOX = "dscrapy.worker.outbox"
HELD = "dscrapy.worker.process_view"


@attrs.frozen
class Bug:
    """A bug by name, what it is for people, and where it is planted."""

    name: str
    what: str
    edits: tuple[Edit, ...]


def _bug(name: str, what: str, *edits: tuple[str, str, str]) -> Bug:
    return Bug(name, what, tuple(Edit(*edit) for edit in edits))


_COMMIT_BEGINS = """        if group.records:
            payload = r.encode_group(group.records)
"""
_ANSWERS = """        self._answer(group)
        await self._grant(group)
"""
_DECIDES_IN_TURN = """        for waiting in batch:
            self._decide(waiting.session, waiting.command, now, group)
"""

BUGS: tuple[Bug, ...] = (
    # ---- the six that are asked for -------------------------------------------------
    _bug(
        "answer before fsync",
        "answers leave before their group is synced",
        (COMMITTER, _COMMIT_BEGINS, f"        self._answer(group)\n{_COMMIT_BEGINS}"),
        (COMMITTER, _ANSWERS, "        await self._grant(group)\n"),
    ),
    _bug(
        "second commit applied",
        "a commit of a request that is done has effect once more",
        (
            COMMITS,
            "return not frame.crawl.frontier.is_open(commit.request)",
            "return False",
        ),
        (FRONTIER, "            assert was_open, request\n", ""),
    ),
    _bug(
        "requeue forgotten",
        "leases of a process that has ended are never pending again",
        (
            LEASES,
            "            self._requests.give_up(request)\n",
            "            pass\n",
        ),
    ),
    _bug(
        "leased before durable",
        "leases leave before their requests are synced",
        (
            COMMITTER,
            _COMMIT_BEGINS,
            f"        await self._grant(group)\n{_COMMIT_BEGINS}",
        ),
        (COMMITTER, _ANSWERS, "        self._answer(group)\n"),
    ),
    _bug(
        "decided against a stale state",
        "a group is decided as a whole before any of it is applied",
        (
            COMMITTER,
            _DECIDES_IN_TURN,
            "        late = [\n"
            "            self.machine.decide(waiting.session, waiting.command, now)\n"
            "            for waiting in batch\n"
            "            if not isinstance(waiting.command, m.GetStatus)\n"
            "        ]\n"
            "        for decision in late:\n"
            "            self._take(group, self.machine.carry_out(decision))\n"
            "        for waiting in batch:\n"
            "            if isinstance(waiting.command, m.GetStatus):\n"
            "                self._decide(\n"
            "                    waiting.session, waiting.command, now, group\n"
            "                )\n",
        ),
    ),
    _bug(
        "void part published",
        "a last part is published whose earlier parts went with their process",
        (
            COMMITS,
            "if commit.part > parts or (process is None and not commit.last):",
            "if process is None and not commit.last:",
        ),
    ),
    # ---- journal and files ----------------------------------------------------------
    _bug(
        "bodies forgotten too early",
        "what its file does not hold yet is forgotten to save memory",
        (BODIES, "            if write > written:\n                return\n", ""),
    ),
    _bug(
        "append without sync",
        "a group counts as durable that was only written",
        (
            JOURNAL,
            "file.sync()\n        except OSError as error:\n            # The",
            "file.size\n        except OSError as error:\n            # The",
        ),
    ),
    _bug(
        "no cut after a short write",
        "what a full disk took of a group stays in the segment",
        (
            JOURNAL,
            "                file.truncate(end)\n                file.sync()",
            "                file.sync()",
        ),
    ),
    _bug(
        "failed sync tried again",
        "a sync that failed counts as a full disk",
        (
            JOURNAL,
            "file.truncate(end)\n            self._fail(name, end, error)",
            "pass\n            self._refuse_full(name, error)",
        ),
    ),
    _bug(
        "torn tail cut too early",
        "with a torn tail goes the whole segment",
        (
            JOURNAL,
            "                self._put_aside(number, offset)",
            "                self._put_aside(number, min(offset, HEAD_BYTES))",
        ),
    ),
    _bug(
        "snapshot of a later state",
        "a snapshot is encoded when it is written, not when its segment begins",
        (
            COMMITTER,
            "write_snapshot(number, payload)",
            "write_snapshot(number, self.machine.state.encode_snapshot())",
        ),
    ),
    _bug(
        "snapshot before its files",
        "job files are not synced before the snapshot that stands on them",
        (FILES, "                self._sync()\n", ""),
    ),
    _bug(
        "spools go without a snapshot",
        "what was discarded goes though the snapshot found no room",
        (
            FILES,
            "                if not work.action():\n                    return\n",
            "                work.action()\n",
        ),
    ),
    _bug(
        "items not cut",
        "a restart writes behind what a job's file holds already",
        (FILES, "            file.truncate(write.at)\n", ""),
    ),
    _bug(
        "fresh keeps items",
        "a fresh run leaves the items of the run before",
        (
            DERIVE,
            "names = (items_name, tagged_name, requests_name)",
            "names = (requests_name,)",
        ),
    ),
    _bug(
        "snapshot without parts",
        "a snapshot forgets the children of stored parts",
        (
            CRAWLS,
            "stored={str(number): parts for number, parts in self.stored.items()},",
            "stored={},",
        ),
    ),
    _bug(
        "snapshot without digests",
        "a snapshot forgets which elements of start() are committed",
        (CRAWLS, 'skip=b"".join(self.skip.elements()),', 'skip=b"",'),
    ),
    _bug(
        "snapshot without what is seen",
        "a restart filters nothing that came before its snapshot",
        (FRONTIER, "seen=self._seen.dump(),", 'seen=b"",'),
    ),
    # ---- removal --------------------------------------------------------------------
    _bug(
        "files of the removed stay",
        "a removal that was cut short is not done again at the next start",
        (
            FILES,
            "                self._clear(write.name)\n",
            "                if self._short is None:\n"
            "                    self._clear(write.name)\n",
        ),
    ),
    _bug(
        "the removed come back with the power",
        "a snapshot is written before their files are surely gone",
        (FILES, "            self._storage.sync_folder(JOBS_FOLDER)\n", ""),
    ),
    _bug(
        "files go before their removal is durable",
        "a job is there after a crash, without its files",
        (
            COMMITTER,
            "            group.writes += decision.effects.writes\n",
            "            writes = decision.effects.writes\n"
            "            kinds = {type(one) for one in decision.records}\n"
            "            if r.JobRemoved in kinds:\n"
            "                self._files.hand_over_nowait(writes)\n"
            "            group.writes += writes\n",
        ),
    ),
    _bug(
        "a job is removed that runs",
        "who asks is not told that it has not ended",
        (RETENTION, "    elif not job.is_final:\n", "    elif False:\n"),
        (APPLY, "    assert job.is_final, job\n", ""),
    ),
    # ---- the frontier ---------------------------------------------------------------
    _bug(
        "nothing filtered",
        "requests that are seen are taken again",
        (FRONTIER, "new.append(len(table) > before)", "new.append(True)"),
        (
            FRONTIER,
            "if is_seen[at] or fingerprint in batch:",
            "if fingerprint in batch:",
        ),
    ),
    _bug(
        "parts have effect at once",
        "the children of a part are pending before it is published",
        (
            CRAWLS,
            "        stored = self.frontier.store(record.children, record.seen)\n",
            "        stored = self.frontier.store(record.children, record.seen)\n"
            "        self.frontier.publish([stored])\n",
        ),
    ),
    _bug(
        "unit applied twice",
        "a unit that is offered again has effect again",
        (COMMITS, " or process.has_unit(commit.unit):", ":"),
    ),
    _bug(
        "start() from its beginning",
        "the next leader is not told what to skip",
        (
            RUNNING,
            'digests = b"".join(self.crawl.skip.elements())',
            'digests = b""',
        ),
    ),
    _bug(
        "finished while leased",
        "the spider may close while requests are under way",
        (
            RUNNING,
            "return bool(frontier.pending_count or frontier.leased_count)",
            "return bool(frontier.pending_count)",
        ),
    ),
    _bug(
        "granted before all have spoken",
        "after its restart the master grants what a worker may hold",
        (
            RUNNING,
            "if job.is_final or self._waits_for_workers():",
            "if job.is_final:",
        ),
    ),
    _bug(
        "registration forgets leases",
        "what a process holds is pending again when its worker comes back",
        (
            CRAWLS,
            "            report.process,\n            report.requests,\n",
            "            report.process,\n            (),\n",
        ),
    ),
    # ---- pages past their download --------------------------------------------------
    _bug(
        "an early child twice",
        "what an earlier run of a page has given is added once more",
        (EARLY, "passed.append(rank <= counts[digest])", "passed.append(False)"),
    ),
    _bug(
        "early children forgotten by a snapshot",
        "a snapshot does not have what open pages have given",
        (FRONTIER, "early=self.early.dump(),", "early={},"),
    ),
    _bug(
        "a run begins anew with a restart",
        "a snapshot does not have what a run of a page has given",
        (
            PROCESSES,
            "        process.units_beyond.sort()\n",
            "        process.units_beyond.sort()\n"
            "        for spool in process.spools.values():\n"
            "            spool.given.clear()\n",
        ),
    ),
    _bug(
        "early children lost with their process",
        "what a page has asked for counts as there and has no effect before its commit",
        (
            FRONTIER,
            "filtered, _ = self._add_stored(part, values)",
            "filtered = 0",
        ),
        (FRONTIER, "return part.spent(), filtered", "return part, filtered"),
    ),
    _bug(
        "doubled by a retried hop",
        "who takes a page's place does not know what the page has given",
        (
            EARLY,
            "if counts is None or successor is None:",
            "if counts is None or successor is not None:",
        ),
    ),
    _bug(
        "a job ends while a page is open",
        "a job is finished when nothing is pending",
        (
            RUNNING,
            "return bool(frontier.pending_count or frontier.leased_count)",
            "return bool(frontier.pending_count)",
        ),
    ),
    _bug(
        "a stage survives its lease",
        "a request that comes back counts as downloaded still",
        (
            OPEN_REQUESTS,
            "            self._leave_host(entry)\n        entry.stage = UNSTARTED\n",
            "            self._leave_host(entry)\n",
        ),
    ),
    # ---- leases ---------------------------------------------------------------------
    _bug(
        "lost grants stay leased",
        "a lease that never arrived is not pending again",
        (
            LEASES,
            "[request for request in sorted(process.leases) if request not in kept]",
            "[]",
        ),
    ),
    _bug(
        "finish not said again",
        "what was lost with a connection is taken for said",
        (
            CRAWLS,
            "        if self.leader in (None, report.process):\n"
            "            # Whether the last of these messages arrived is not known.\n"
            "            self.start_may, self.finish_sent = (0, 0), 0\n",
            "",
        ),
    ),
    _bug(
        "request numbers used twice",
        "a fresh run numbers its requests from 1",
        (
            APPLY,
            "        course.next_request = crawl.frontier.next_request\n",
            "",
        ),
    ),
    _bug(
        "epoch stays",
        "a master's epoch is that of the one before",
        (MACHINE, "epoch=self.state.epoch + 1", "epoch=max(self.state.epoch, 1)"),
    ),
    _bug(
        "every death counts",
        "kills from outside are held against the job",
        (
            ENDS,
            'counted = command.counted and command.how == "exited"',
            'counted = command.how == "exited"',
        ),
    ),
    # ---- requests that kill ---------------------------------------------------------
    _bug(
        "nobody is blamed",
        "deaths are forgotten: a page that kills does so for ever",
        (
            CRAWLS,
            "self.frontier.count_death(record.blamed, alone=record.alone)",
            "0",
        ),
    ),
    _bug(
        "condemned too early",
        "one death alone is taken for proof",
        (QUARANTINE, "ALONE_DEATHS_MAX = 2", "ALONE_DEATHS_MAX = 1"),
    ),
    _bug(
        "suspects have company",
        "who has a suspect gets other requests beside it",
        (
            CAPACITY,
            "            return 0 if process.leases else process.window\n",
            "            pass\n",
        ),
        (
            LEASES,
            "if number == self._quarantine.isolator:",
            "if number == self._quarantine.isolator and self._quarantine.waiting:",
        ),
    ),
    _bug(
        "groups are not halved",
        "suspects whose process dies are tried together again",
        (
            QUARANTINE,
            "self.deaths[request].group = last + 1 + is_second",
            "self.deaths[request].group = last + 1",
        ),
    ),
    _bug(
        "suspects forgotten in a snapshot",
        "after it they run with the others",
        (
            FRONTIER,
            "                frontier._requests.put_in_quarantine(number)\n",
            "                pass\n",
        ),
    ),
    _bug(
        "the poisoned come back",
        "a snapshot makes them pending",
        (
            FRONTIER,
            "                frontier._requests.set_aside(number)\n",
            "                pass\n",
        ),
    ),
    _bug(
        "poisoned and not told",
        "the job succeeds without what is poisoned",
        ("dscrapy.control.state.verdict", "    if poisoned:\n", "    if False:\n"),
    ),
    # ---- liveness -------------------------------------------------------------------
    _bug(
        "reaped for the master's own stop",
        "time in which the master did not run counts as silence",
        (
            CLOCK,
            "min(max(instant - self._last, 0.0), self._gap_max_s)",
            "max(instant - self._last, 0.0)",
        ),
    ),
    _bug(
        "reaped too early",
        "a silent worker is given up after half of its time",
        (
            "dscrapy.control.state.workers",
            "return worker.heard_at + self.die_after_s",
            "return worker.heard_at + self.die_after_s / 2",
        ),
    ),
    _bug(
        "right lasts too long",
        "a worker's right to begin requests outlives its grace",
        (
            LINK,
            "valid_s=min(registered.die_after_s, registered.reconnect_grace_s),",
            "valid_s=registered.die_after_s + registered.reconnect_grace_s,",
        ),
    ),
    _bug(
        "two workers of one name",
        "a second worker takes over the name of one that lives",
        (
            REGISTRATION,
            "former_instance and former_instance != command.instance",
            "False",
        ),
    ),
    _bug(
        "nobody is dropped",
        "processes that were given up are not killed",
        (
            REGISTRATION,
            "drop=tuple(sorted(reported - (usable.keys() & expected))),",
            "drop=(),",
        ),
    ),
    # ---- hosts ----------------------------------------------------------------------
    _bug(
        "a share given twice",
        "a share that is to become smaller counts as smaller at once",
        (RIGHTS, "return sum(right.share for", "return sum(right.target for"),
    ),
    _bug(
        "a delayed host is shared",
        "two processes ask a host that one of them alone may ask",
        (
            RIGHTS,
            "limits(host.name).delay_s <= 0",
            "limits(host.name).delay_s <= 1e9",
        ),
    ),
    # ---- the worker -----------------------------------------------------------------
    _bug(
        "nothing offered again",
        "what was not answered is forgotten with its session",
        (OUTBOX, "self._unsent = deque(self._retained)", "self._unsent = deque()"),
    ),
    _bug(
        "unanswered commits not held",
        "a registration leaves out what has a commit under way",
        (AGENT, "view.report(self.outbox.requests_of(number))", "view.report(())"),
    ),
    _bug(
        "leases not told",
        "a registration leaves out the leases of a process",
        (
            HELD,
            "tuple(sorted(self.leased.union(unanswered)))",
            "tuple(sorted(unanswered))",
        ),
    ),
    _bug(
        "dropped processes live on",
        "a worker keeps the processes that the master gave up",
        (
            AGENT,
            "                view.scope.cancel()\n\n    async def wait_room",
            "                pass\n\n    async def wait_room",
        ),
    ),
)
SIX = tuple(bug.name for bug in BUGS[:6])


def bug_of(name: str) -> Bug:
    """Return a bug by its name."""
    return next(bug for bug in BUGS if bug.name == name)
