"""``apply``, which alone changes the state: it applies one record.

``apply`` trusts its records: what is wrong with one is our own bug and asserts. The
same records lead to the same state and effects, decided now or replayed.
"""

from collections.abc import Callable
from sys import intern
from typing import Any

import msgspec

from dscrapy.control import events as r
from dscrapy.control.effects import Effects
from dscrapy.control.projections import effects_of
from dscrapy.control.state.closespider import Watch
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.feed_exports import note_end
from dscrapy.control.state.jobs import Course, Job, Schedule, position_of, project_label
from dscrapy.control.state.processes import Process
from dscrapy.control.state.state import State
from dscrapy.control.state.workers import Worker, forgive


def apply(state: State, record: r.Record | r.Volatile) -> Effects:
    """Apply ``record`` to the state; return its effects outside the state."""
    handler = _HANDLERS.get(type(record))
    assert handler is not None, record
    # The places of writes depend on the files' lengths before this record.
    effects = effects_of(state, record)
    handler(state, record, effects)
    return effects


# ---- jobs and schedules -------------------------------------------------------


def _master_started(state: State, record: r.MasterStarted, _: Effects) -> None:
    state.epoch = record.epoch


def _job_added(state: State, record: r.JobAdded, _: Effects) -> None:
    spec = record.spec
    assert record.id not in state.jobs
    job = Job(
        number=state.next_job,
        id=record.id,
        spec=msgspec.json.encode(spec),
        project=intern(project_label(spec)),
        spider=intern(spec.spider),
        name=spec.name,
        priority=spec.priority,
        parallelism=spec.parallelism,
        retries_left=spec.retries,
        submitted_at=record.at,
        schedule=record.schedule,
    )
    state.next_job += 1
    state.index(job)
    if record.schedule is not None:
        schedule = state.schedules[record.schedule]
        schedule.job = job.id
        schedule.runs += 1
        schedule.next_at = record.next_at


def _job_removed(state: State, record: r.JobRemoved, _: Effects) -> None:
    """Forget an ended job without processes; nothing in the state may grow with
    removed jobs."""
    job = state.jobs[record.job]
    assert job.is_final, job
    assert not job.has_processes, job
    del state.jobs[job.id]
    del state.order[position_of(state.order, job.number)]
    state.counts[job.state] -= 1
    if job.id in state.failed:
        state.failed.remove(job.id)
    for jobs in (state.ended, state.wide, state.exports_due):
        jobs.pop(job.id, None)
    state.crawls.pop(job.id, None)
    state.removing.pop(job.id, None)
    state.log_bytes.pop(job.id, None)
    forgive(state.workers.values(), job.id)
    schedule = state.schedules.get(job.schedule or "")
    if schedule is not None and schedule.job == job.id:
        schedule.job = None


def _job_changes(state: State, record: r.JobChange, effects: Effects) -> None:
    """Apply what changes one job, and where it stands among the others."""
    job = state.jobs[record.job]
    state.counts[job.state] -= 1
    match record:
        case r.JobEnded():
            _end_job(state, job, record)
            effects.answered += [
                (*call, job.id) for call in state.waiters.pop(job.id, [])
            ]
        case r.JobAgain():
            _begin_again(state, job, record)
        case r.JobPaused():
            job.paused, job.paused_at = record.on, record.at
        case r.ParallelismSet():
            job.parallelism = record.count
        case _:
            job.begin().note(record)
    state.counts[job.state] += 1
    state.note_wide(job)
    state.note_export_due(job)
    state.queue(job)
    effects.touched.append(job.id)


def _end_job(state: State, job: Job, record: r.JobEnded) -> None:
    job.status = record.state
    course = job.begin()
    course.reason = record.reason
    course.traceback = record.traceback
    course.finished_at = record.at
    course.cancelling = False
    course.came_to_end = record.came_to_end
    crawl = state.crawls.get(job.id)
    if crawl is not None:
        reason = course.closing or record.reason
        course.stats = msgspec.json.encode(crawl.totals.final(reason))
        course.next_request = crawl.frontier.next_request
        _let_go(state, job)
    if record.state == "failed":
        state.failed.append(job.id)
    state.ended[job.id] = None


def _let_go(state: State, job: Job) -> None:
    """Drop the crawl of a job that succeeded, once no process needs it."""
    if job.status == "succeeded" and not job.has_processes:
        state.crawls.pop(job.id, None)
        # A fresh run begins without these, and no view shows them.
        course = job.begin()
        course.feeds, course.batches, course.watch = None, (), Watch()


def _begin_again(state: State, job: Job, record: r.JobAgain) -> None:
    job.status = "ready"
    state.ended.pop(job.id, None)
    state.log_bytes.pop(job.id, None)
    course = job.begin()
    if record.automatic:
        job.retries_left -= 1
    else:
        job.paused = False
    if record.fresh:
        # The next process begins a new crawl; a process that still runs needs one now.
        state.crawls.pop(job.id, None)
        job.course = Course(
            processes_count=course.processes_count,
            next_request=course.next_request,
            errors=0,
        )
        if job.has_processes:
            state.crawls[job.id] = Crawl.begun_at(course.next_request)
        for process in state.processes_of(job.id):
            process.begin_anew()
    elif job.id in state.crawls:
        state.crawls[job.id].frontier.pardon()
    again = job.begin()
    if not record.automatic:
        # The code may have been mended: the job may begin with any copy of it.
        again.digest = ""
        forgive(state.workers.values(), job.id)
    else:
        live = [
            worker for worker in state.workers.values() if worker.session is not None
        ]
        if not any(worker.may_begin(job.id) for worker in live):
            # No connected worker may try the job: the retry would have no effect.
            forgive(state.workers.values(), job.id)
    again.begin_again(record.reason)
    if job.id in state.failed:
        state.failed.remove(job.id)


def _job_ran(state: State, record: r.JobRan, _: Effects) -> None:
    state.jobs[record.job].begin().watch = Watch(
        ran_s=record.ran_s,
        period_at=record.period_at,
        period_items=record.period_items,
    )


def _schedule_added(state: State, record: r.ScheduleAdded, _: Effects) -> None:
    state.schedules[record.id] = Schedule(
        id=record.id,
        spec=msgspec.json.encode(record.spec),
        every_s=record.every_s,
        next_at=record.at,
    )


def _schedule_cancelled(state: State, record: r.ScheduleCancelled, _: Effects) -> None:
    state.schedules[record.id].cancelled = True


def _schedule_paused(state: State, record: r.SchedulePaused, _: Effects) -> None:
    state.schedules[record.id].paused = record.on


def _schedule_removed(state: State, record: r.ScheduleRemoved, _: Effects) -> None:
    del state.schedules[record.id]


# ---- processes and what they commit -------------------------------------------


def _process_started(state: State, record: r.ProcessStarted, effects: Effects) -> None:
    job = state.jobs[record.job]
    assert record.process >= state.next_process
    state.next_process = record.process + 1
    course = job.begin()
    process = Process(
        number=record.process,
        job=job.id,
        worker=record.worker,
        instance=record.instance,
        role=record.role,
        beside=record.role == "export" and not course.closing,
    )
    if job.id not in state.crawls:
        state.crawls[job.id] = Crawl.begun_at(course.next_request)
    state.take_in(process)
    job.count_process(process.role, 1)
    course.processes_count += 1
    course.worker = intern(record.worker)
    course.reason = ""
    if course.started_at is None:
        course.started_at = record.at
    state.set_status(job, "running")
    state.queue(job)
    worker = state.workers.get(record.worker)
    if worker is not None:
        worker.take_in(process.number, process.role)
    state.note_export_due(job)
    effects.touched.append(job.id)


def _part_stored(state: State, record: r.PartStored, _: Effects) -> None:
    state.crawls[record.job].store(record, state.processes[record.process])


def _part_taken(state: State, record: r.PartTaken, effects: Effects) -> None:
    state.crawls[record.job].take_early(record, state.processes[record.process])
    effects.touched.append(record.job)


def _published(state: State, record: r.Published, effects: Effects) -> None:
    course = state.jobs[record.job].begin()
    process = state.processes.get(record.process)
    if process is not None and process.role == "export" and record.end is not None:
        note_end(course, record.end)
    state.crawls[record.job].publish(record, course, process)
    state.note_export_due(state.jobs[record.job])
    effects.touched.append(record.job)


def _process_ended(state: State, record: r.ProcessEnded, effects: Effects) -> None:
    process = state.forget_process(record.process)
    job = state.jobs[record.job]
    job.count_process(process.role, -1)
    course = job.begin()
    if process.role == "export":
        is_death = record.counted or record.how == "failed"
        course.export_deaths += is_death and not process.closed
    else:
        course.deaths += record.counted and not record.blamed
        course.end_failures += record.end_failed
    crawl = state.crawls.get(job.id)
    if crawl is not None:
        crawl.forget_process(process, record.at)
        crawl.count_death(record)
    if record.text and not job.is_final:
        course.reason = record.text
    if job.status == "running" and not job.has_processes:
        state.set_status(job, "ready")
    _let_go(state, job)
    state.note_export_due(job)
    state.queue(job)
    effects.touched.append(job.id)


def _concludes(state: State, record: r.Concludes, _: Effects) -> None:
    state.processes[record.process].concludes = True
    state.jobs[record.job].begin().conclusions += 1


def _request_poisoned(
    state: State, record: r.RequestPoisoned, effects: Effects
) -> None:
    state.crawls[record.job].set_aside(record, state.jobs[record.job].begin())
    effects.touched.append(record.job)


def _request_failed(state: State, record: r.RequestFailed, effects: Effects) -> None:
    state.crawls[record.job].fail(record, state.jobs[record.job].begin())
    effects.touched.append(record.job)


# ---- a crawl under way; none of it survives a restart -------------------------


def _process_known(state: State, record: r.ProcessKnown, effects: Effects) -> None:
    report = record.held
    state.unknown.discard(report.process)
    state.crawls[report.job].take_report(
        state.processes[report.process], report, record.at
    )
    state.note_export_due(state.jobs[report.job])
    effects.touched.append(report.job)


def _process_opened(state: State, record: r.ProcessOpened, effects: Effects) -> None:
    opened = record.opened
    process = state.processes[opened.process]
    state.crawls[opened.job].open_process(process, opened)
    state.note_export_due(state.jobs[opened.job])
    effects.touched.append(opened.job)


def _process_proceeds(
    state: State, record: r.ProcessProceeds, effects: Effects
) -> None:
    state.crawls[record.job].proceed(record)
    effects.touched.append(record.job)


def _process_stops(
    state: State, record: r.ProcessCloses | r.ProcessStops, effects: Effects
) -> None:
    process = state.processes.get(record.process)
    # One tick may give a worker up and then stop a process of that worker.
    if process is not None:
        state.crawls[record.job].stop(process)
    effects.touched.append(record.job)


def _process_idles(state: State, record: r.ProcessIdles, _: Effects) -> None:
    state.processes[record.process].idle_since = record.since


def _process_isolates(
    state: State, record: r.ProcessIsolates, effects: Effects
) -> None:
    state.crawls[record.job].frontier.quarantine.isolate(record.process)
    effects.touched.append(record.job)


def _companies_given(state: State, record: r.CompaniesGiven, effects: Effects) -> None:
    state.crawls[record.job].frontier.quarantine.give_companions()
    effects.touched.append(record.job)


def _process_waits(state: State, record: r.ProcessWaits, _: Effects) -> None:
    state.processes[record.process].waits_since = record.since


def _all_wait_noted(state: State, record: r.AllWaitNoted, _: Effects) -> None:
    state.crawls[record.job].all_wait = True


def _process_dismissed(state: State, record: r.ProcessDismissed, _: Effects) -> None:
    state.processes[record.process].dismissed = True


def _items_end_sent(state: State, record: r.ItemsEndSent, _: Effects) -> None:
    state.processes[record.process].items_end_sent = True


def _process_ordered(state: State, record: r.ProcessOrdered, _: Effects) -> None:
    state.processes[record.process].ordered = True


def _lead_given(state: State, record: r.LeadGiven, _: Effects) -> None:
    crawl = state.crawls[record.job]
    crawl.leader = record.process
    crawl.start_may, crawl.finish_sent = (0, 0), 0


def _start_may_given(state: State, record: r.StartMayGiven, _: Effects) -> None:
    state.crawls[record.job].start_may = record.upto, record.upto_free


def _work_short_sent(state: State, record: r.WorkShortSent, _: Effects) -> None:
    short = state.crawls[record.job].told_short
    if record.on:
        short.add(record.process)
    else:
        short.discard(record.process)


def _finish_sent(state: State, record: r.FinishSent, _: Effects) -> None:
    state.crawls[record.job].finish_sent = record.number


def _time_runs(state: State, record: r.TimeRuns, _: Effects) -> None:
    crawl = state.crawls.get(record.job)
    # The decision that ends a job stops the job's time after its end.
    if crawl is not None:
        crawl.runs_since = record.since


def _leases_wanted(state: State, record: r.LeasesWanted, effects: Effects) -> None:
    crawl = state.crawls[record.job]
    granted = crawl.frontier.lease(record.process, record.count, record.at)
    if granted.requests:
        process = state.processes[record.process]
        process.idle_since = None
        effects.granted.append((process, granted))
    if crawl.frontier.leases.recalls():
        effects.touched.append(record.job)


def _released(state: State, record: r.Released, effects: Effects) -> None:
    state.crawls[record.job].take_back(record)
    effects.touched.append(record.job)


def _hosts_recalled(state: State, record: r.HostsRecalled, _: Effects) -> None:
    leases = state.crawls[record.job].frontier.leases
    leases.recalled(record.process, record.number, record.hosts)


def _shares_yielded(state: State, record: r.SharesYielded, effects: Effects) -> None:
    leases = state.crawls[record.job].frontier.leases
    leases.yielded(record.process, record.number, record.hosts)
    effects.touched.append(record.job)


# ---- workers and whoever waits; none of it survives a restart -----------------


def _workers_expected(
    state: State, record: r.WorkersExpected, effects: Effects
) -> None:
    """After a replay: expect whoever holds processes to come back."""
    for process in state.processes.values():
        worker = state.workers.setdefault(
            process.worker,
            Worker(name=process.worker, since=record.now, expected=process.instance),
        )
        worker.take_in(process.number, process.role)
        state.unknown.add(process.number)
    effects.touched += state.crawls


def _worker_came(state: State, record: r.WorkerCame, _: Effects) -> None:
    register = record.register
    former = state.workers.get(register.name)
    if former is not None and former.session is not None:
        state.sessions.pop(former.session, None)
    state.workers[register.name] = Worker.come(
        register, record.session, record.now, former
    )
    state.sessions[record.session] = register.name


def _worker_heard(state: State, record: r.WorkerHeard, _: Effects) -> None:
    state.workers[record.name].heard_at = record.now


def _worker_away(state: State, record: r.WorkerAway, _: Effects) -> None:
    worker = state.workers[record.name]
    if worker.session is not None:
        state.sessions.pop(worker.session, None)
    worker.session = None
    worker.since = record.now


def _worker_gone(state: State, record: r.WorkerGone, _: Effects) -> None:
    worker = state.workers.pop(record.name)
    assert not worker.processes
    if worker.session is not None:
        state.sessions.pop(worker.session, None)


def _worker_drains(state: State, record: r.WorkerDrains, _: Effects) -> None:
    state.workers[record.name].draining = True


def _worker_barred(state: State, record: r.WorkerBarred, _: Effects) -> None:
    worker = state.workers[record.name]
    worker.bar(record.job, record.why, beside=record.beside)


def _worker_failed(state: State, record: r.WorkerFailed, _: Effects) -> None:
    failed = state.workers[record.name].failed
    failed[record.job] = failed.get(record.job, 0) + 1


def _workers_forgiven(state: State, record: r.WorkersForgiven, _: Effects) -> None:
    forgive(state.workers.values(), record.job)


def _waiter_added(state: State, record: r.WaiterAdded, _: Effects) -> None:
    waiting = state.waiters.setdefault(record.job, [])
    waiting.append((record.session, record.call))


def _removal_asked(state: State, record: r.RemovalAsked, effects: Effects) -> None:
    waiting = state.removing.setdefault(record.job, [])
    waiting.append((record.session, record.call))
    effects.touched.append(record.job)


def _logs_measured(state: State, record: r.LogsMeasured, _: Effects) -> None:
    for job, size in record.sizes.items():
        if job in state.ended:
            state.log_bytes[job] = size


def _session_gone(state: State, record: r.SessionGone, _: Effects) -> None:
    for job, waiting in list(state.waiters.items()):
        remaining = [entry for entry in waiting if entry[0] != record.session]
        if remaining:
            state.waiters[job] = remaining
        else:
            del state.waiters[job]
    for job, waiting in state.removing.items():
        remaining = [entry for entry in waiting if entry[0] != record.session]
        state.removing[job] = remaining


_HANDLERS: dict[type, Callable[[State, Any, Effects], None]] = {
    r.MasterStarted: _master_started,
    r.JobAdded: _job_added,
    r.JobRemoved: _job_removed,
    r.CrawlOpened: _job_changes,
    r.CodeSeen: _job_changes,
    r.FeedsBegun: _job_changes,
    r.Closes: _job_changes,
    r.JobEnded: _job_changes,
    r.JobAgain: _job_changes,
    r.JobPaused: _job_changes,
    r.ParallelismSet: _job_changes,
    r.CancelAsked: _job_changes,
    r.JobRan: _job_ran,
    r.ScheduleAdded: _schedule_added,
    r.ScheduleCancelled: _schedule_cancelled,
    r.SchedulePaused: _schedule_paused,
    r.ScheduleRemoved: _schedule_removed,
    r.ProcessStarted: _process_started,
    r.PartStored: _part_stored,
    r.PartTaken: _part_taken,
    r.Published: _published,
    r.ProcessEnded: _process_ended,
    r.Concludes: _concludes,
    r.RequestPoisoned: _request_poisoned,
    r.RequestFailed: _request_failed,
    r.ProcessKnown: _process_known,
    r.ProcessOpened: _process_opened,
    r.ProcessProceeds: _process_proceeds,
    r.ProcessCloses: _process_stops,
    r.ProcessStops: _process_stops,
    r.ProcessIdles: _process_idles,
    r.ProcessIsolates: _process_isolates,
    r.CompaniesGiven: _companies_given,
    r.ProcessWaits: _process_waits,
    r.AllWaitNoted: _all_wait_noted,
    r.ProcessDismissed: _process_dismissed,
    r.ItemsEndSent: _items_end_sent,
    r.ProcessOrdered: _process_ordered,
    r.LeadGiven: _lead_given,
    r.StartMayGiven: _start_may_given,
    r.WorkShortSent: _work_short_sent,
    r.FinishSent: _finish_sent,
    r.TimeRuns: _time_runs,
    r.LeasesWanted: _leases_wanted,
    r.Released: _released,
    r.HostsRecalled: _hosts_recalled,
    r.SharesYielded: _shares_yielded,
    r.WorkersExpected: _workers_expected,
    r.WorkerCame: _worker_came,
    r.WorkerHeard: _worker_heard,
    r.WorkerAway: _worker_away,
    r.WorkerGone: _worker_gone,
    r.WorkerDrains: _worker_drains,
    r.WorkerBarred: _worker_barred,
    r.WorkerFailed: _worker_failed,
    r.WorkersForgiven: _workers_forgiven,
    r.WaiterAdded: _waiter_added,
    r.RemovalAsked: _removal_asked,
    r.LogsMeasured: _logs_measured,
    r.SessionGone: _session_gone,
}
