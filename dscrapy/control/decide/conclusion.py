"""How a job's last processes leave, and which of them ends the job.

A process whose pages are committed commits *ending* and waits before ``spider_closed``.
When the job goes on without it, or another process ends the job, the master orders it
to retire. The process that stays (the leader, if it can) is ordered to conclude, with
the job's stats, once the others are gone and the feeds are written; its last commit is
the job's. If it dies, another process is started only to conclude, where the project
has something to call once in a job.
"""

from collections.abc import Iterable

import attrs

from dscrapy.control import events as r
from dscrapy.control.decision import Decision
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.jobs import Job
from dscrapy.control.state.processes import Process
from dscrapy.control.state.verdict import verdict_of, wants_export
from dscrapy.messages import Conclude, Done, Retire
from dscrapy.model import Stats


@attrs.frozen
class Conclusion:
    """Decides for one job; adds to ``decision``."""

    decision: Decision
    job: Job
    crawl: Crawl
    processes: list[Process]

    def reconcile(self) -> None:
        """Decide the orders of ending processes, and whether the job ends."""
        course = self.job.progress
        processes = self.processes
        self._dismiss(processes)
        crawling = [process for process in processes if process.role == "crawl"]
        if not (course.closing or course.cancelling):
            self.retire(crawling)
        if all(process.is_through for process in processes):
            self._conclude(crawling)

    def _conclude(self, crawling: list[Process]) -> None:
        """End a job all of whose processes are through; do nothing while it waits for
        one of them, for its feeds, or for another process."""
        job, course = self.job, self.job.progress
        verdict = verdict_of(course, self.crawl.frontier.poisoned)
        if verdict is None:
            return
        if verdict.ending.retry_helps and job.retries_left > 0:
            self.decision.records.append(
                r.JobAgain(
                    job=job.id,
                    fresh=False,
                    automatic=True,
                    reason=f"retry after: {verdict.reason}",
                    at=self.decision.now.wall,
                )
            )
            return
        waiting = [process for process in crawling if not process.closed]
        chosen = self._choose(waiting)
        self.retire(process for process in waiting if process is not chosen)
        if wants_export(course, verdict.ending):
            return
        if chosen is not None and crawling == [chosen]:
            self._let_conclude(chosen)
        elif not waiting and not course.wants_another:
            self.decision.end_job(job, verdict)

    def _choose(self, waiting: list[Process]) -> Process | None:
        """Return the process that ends the job: one ordered to, else the leader."""
        leader = self.crawl.leader
        return min(
            (
                process
                for process in waiting
                if process.concludes or not process.ordered
            ),
            key=lambda process: (
                not process.concludes,
                process.number != leader,
                process.number,
            ),
            default=None,
        )

    def retire(self, processes: Iterable[Process]) -> None:
        """Let waiting processes close without what is called once in a job."""
        for process in processes:
            if process.ending and not process.closed:
                self._order(process, Retire(job=self.job.id, process=process.number))

    def _let_conclude(self, process: Process) -> None:
        job, number = self.job.id, process.number
        if not process.concludes:
            self.decision.records.append(r.Concludes(job=job, process=number))
        conclude = Conclude(
            job=job,
            process=number,
            stats=self.crawl.totals.encode(),
            again=self.job.progress.conclusions > process.concludes,
        )
        self._order(process, conclude)

    def _order(self, process: Process, order: Retire | Conclude) -> None:
        if process.ordered:
            return
        self.decision.records.append(
            r.ProcessOrdered(job=self.job.id, process=process.number)
        )
        self.decision.notify(process, order)

    def _dismiss(self, processes: list[Process]) -> None:
        """Let processes end that have made their last commit; the last process of a
        crawl that ends gets the job's stats."""
        course = self.job.progress
        reason = "cancelled" if course.cancelling else course.closing
        is_open = not all(
            process.closed for process in processes if process.role == "crawl"
        )
        for process in processes:
            if not process.closed or process.dismissed:
                continue
            stats: Stats | None = None
            if reason and not is_open and process.role == "crawl":
                stats = self.crawl.totals.final(reason)
                is_open = True
            self.decision.records.append(
                r.ProcessDismissed(job=self.job.id, process=process.number)
            )
            done = Done(job=self.job.id, process=process.number, stats=stats)
            self.decision.notify(process, done)
