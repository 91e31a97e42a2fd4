"""The cluster's state machine: decide, apply, reconcile, place.

``handle`` decides a command and applies the decision, ``settle`` does the same for all
that follows from it. Deciding is pure: a step that raises leaves the state as it was,
and ``own_bugs`` decides about the command or job instead, so that no other one ends.

The caller makes the records durable, in order, before it sends the messages of the same
decision.
"""

from collections.abc import Collection

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control import views
from dscrapy.control.apply import apply
from dscrapy.control.clock import Now
from dscrapy.control.decide import damage, deadlines, retention
from dscrapy.control.decide.client_calls import decide_call
from dscrapy.control.decide.placement import place
from dscrapy.control.decide.reconcile import JobReconciler
from dscrapy.control.decide.worker_reports import decide_worker, process_of
from dscrapy.control.decision import (
    Bug,
    Command,
    Decision,
    OnClosed,
    OnDamage,
    OnMeasured,
    OnMissing,
    OnPrune,
    OnTick,
    Policy,
    StepError,
)
from dscrapy.control.own_bugs import Fallbacks
from dscrapy.control.state.state import State
from dscrapy.errors import RemoteProtocolError


@attrs.define(kw_only=True)
class Machine:
    """See the module."""

    state: State = attrs.field(factory=State)
    policy: Policy = attrs.field(factory=Policy)
    # Jobs that have changed; each is reconciled once, the latest first.
    _touched: dict[str, None] = attrs.field(factory=dict)
    _fallbacks: Fallbacks = attrs.field(factory=Fallbacks)

    # ---- the loop -------------------------------------------------------------

    def begin(self, now: Now) -> Decision:
        """Return the first decision of a starting master, after the replay."""
        decision = self.decision(now)
        decision.records += [
            r.WorkersExpected(now=now.run),
            r.MasterStarted(epoch=self.state.epoch + 1, at=now.wall),
        ]
        return decision

    def handle(self, session: int, command: Command, now: Now) -> list[Decision]:
        """Decide the command, carry the decision out and return it in a list.

        What follows from it is left to ``settle``, but for a process that keeps
        Scrapy's order: its next lease is chosen from what is pending at this command.
        Where deciding raises, one or more other decisions take its place.
        """
        try:
            decision = self.decide(session, command, now)
        except RemoteProtocolError as error:
            decision = self.decision(now)
            self._fallbacks.for_violation(decision, session, command, error)
        except StepError as error:
            assert isinstance(command, OnTick)
            decision = self.decision(now, Bug("looking at", str(error), error))
            self._fallbacks.for_tick(decision, error.culprit)
            remaining = OnTick(exclude=command.exclude | {error.culprit})
            return [self.carry_out(decision), *self.handle(session, remaining, now)]
        except Exception as error:  # noqa: BLE001 - a bug ends one command, not the master
            if isinstance(command, m.Commits) and len(command.commits) > 1:
                return [
                    decision
                    for commit in command.commits
                    for decision in self.handle(
                        session,
                        msgspec.structs.replace(command, commits=(commit,)),
                        now,
                    )
                ]
            bug = Bug("deciding", type(command).__name__, error)
            decision = self.decision(now, bug)
            self._fallbacks.for_command(decision, session, command)
        done = [self.carry_out(decision)]
        if self._asks_in_order(command):
            done += self.settle(now)
        return done

    def settle(self, now: Now) -> list[Decision]:
        """Carry out and return all decisions that follow from changes.

        Afterwards nothing is left to reconcile or to place.
        """
        done: list[Decision] = []
        excluded: set[str] = set()
        while True:
            while (job := self._next_touched()) is not None:
                done.append(self.carry_out(self._reconciled(job, now)))
            try:
                placed = self.place(now, excluded)
            except StepError as error:
                placed = self.decision(now, Bug("placing", str(error), error))
                self._fallbacks.for_job(placed, "place", error.culprit[1])
                excluded.add(error.culprit[1])
            except Exception as error:  # noqa: BLE001 - tried again with the next command
                done.append(self.decision(now, Bug("placing", "", error)))
                return done
            if placed is None:
                return done
            done.append(self.carry_out(placed))

    def carry_out(self, decision: Decision) -> Decision:
        """Apply the decision's records, complete its messages and return it."""
        self._apply(decision)
        try:
            self.complete(decision)
        except Exception as error:  # noqa: BLE001 - the records stand, whatever was to leave
            decision.bugs.append(Bug("completing a decision", "", error))
            instead = self.decision(decision.now)
            self._fallbacks.for_completion(instead, decision)
            self._apply(instead)
            self._fallbacks.refuse_all(instead, instead.effects.answered)
            decision.take(instead)
        return decision

    def _asks_in_order(self, command: Command) -> bool:
        """Whether a process that has one request at a time asks for the next one."""
        if not isinstance(command, m.Commits | m.Progress) or not command.downloaded:
            return False
        process = self.state.processes.get(command.process)
        opened = None if process is None else process.opened
        return opened is not None and opened.window == 1

    def _apply(self, decision: Decision) -> None:
        for record in decision.records:
            decision.effects.add(apply(self.state, record))
        for job in decision.effects.touched:
            self._touched[job] = None

    def complete(self, decision: Decision) -> None:
        """Add the messages that depend on the state after the decision's records.

        Those are grants of new leases, the answers of ``shows``, and the answers to
        calls that waited for a job that has ended.
        """
        for process, granted in decision.effects.granted:
            worker = self.state.workers[process.worker]
            assert worker.session is not None
            decision.grants.append((worker.session, process, granted))
        for session, call, identity in decision.all_shows:
            shown = views.show(self.state, call, identity)
            assert shown is not None
            decision.send(session, shown)

    def _next_touched(self) -> str | None:
        """Return a job to be reconciled, None when there is none."""
        while self._touched:
            job, _ = self._touched.popitem()
            if job in self.state.crawls or job in self.state.removing:
                return job
        return None

    def _reconciled(self, job: str, now: Now) -> Decision:
        try:
            return self.reconcile(job, now)
        except Exception as error:  # noqa: BLE001 - a bug at one job must not stop the others
            decision = self.decision(now, Bug("reconciling", job, error))
            self._fallbacks.for_job(decision, "reconcile", job)
            return decision

    # ---- the steps, which change nothing ----------------------------------------

    def decision(self, now: Now, *bugs: Bug) -> Decision:
        """Return a decision about nothing yet."""
        return Decision(state=self.state, now=now, policy=self.policy, bugs=list(bugs))

    def decide(self, session: int, command: Command, now: Now) -> Decision:
        """Return the decision about ``command`` of this session.

        Raises ``RemoteProtocolError`` when the session must end for the command, and
        ``StepError`` when a tick raises at a job, worker or schedule.
        """
        decision = self.decision(now)
        match command:
            case m.Commits():
                # By far the most frequent command, so it comes first.
                decide_worker(decision, session, command)
            case OnTick():
                deadlines.tick(decision, command)
            case OnClosed():
                self._closed(decision, session)
            case OnMissing():
                damage.missing(decision, command)
            case OnDamage():
                damage.damaged(decision, command)
            case OnMeasured():
                decision.records.append(r.LogsMeasured(sizes=command.sizes))
            case OnPrune():
                retention.prune_by_itself(decision)
            case m.Prune():
                retention.prune(decision, session, command)
            case _ if isinstance(command, m.FromWorker):
                decide_worker(decision, session, command)
            case _:
                decide_call(decision, session, command)
        return decision

    def reconcile(self, job: str, now: Now) -> Decision:
        """Return what a job needs next, as it stands."""
        decision = self.decision(now)
        if job in self.state.removing and self.state.jobs[job].is_over:
            retention.remove_at_last(decision, job)
        elif job in self.state.crawls:
            reconciler = JobReconciler.of(decision, job)
            reconciler.reconcile()
            reconciler.mind_time()
        return decision

    def place(self, now: Now, exclude: Collection[str] = ()) -> Decision | None:
        """Return the next assignment, None when there is none to make.

        Jobs of ``exclude`` are left out. Raises ``StepError`` for the job at which it
        raises.
        """
        decision = self.decision(now)
        return decision if place(decision, exclude) else None

    def next_deadline_s(self, now: Now) -> float:
        """Return in how many seconds ``OnTick`` may have something to do.

        When it raises, ``OnTick`` will raise too, and name what it raised at.
        """
        return deadlines.next_deadline_s(self.decision(now))

    def holds(self, session: int, message: m.Log | m.Read) -> bool:
        """Whether the worker of this session holds the message's process."""
        worker = self.state.sessions.get(session, "")
        found = process_of(self.state, message.process, message.job, worker)
        return found is not None

    def _closed(self, decision: Decision, session: int) -> None:
        decision.records.append(r.SessionGone(session=session))
        name = self.state.sessions.get(session)
        if name is not None:
            decision.records.append(r.WorkerAway(name=name, now=decision.now.run))

    # ---- signs of life ----------------------------------------------------------

    def heard(self, session: int, now: Now) -> None:
        """Take any frame that a worker sent as a sign of life."""
        name = self.state.sessions.get(session)
        if name is not None:
            apply(self.state, r.WorkerHeard(name=name, now=now.run))
