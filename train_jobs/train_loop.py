"""What every worker of a training job runs: measure, register, then iterate under the clock schedule in force.

One worker is one stage of one pipeline on one GPU. The first stage of a pipeline talks to the planner; the others hear
of a new schedule from it.
"""

import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from actors import metrics
from actors.gpu.drivers import open_charged
from actors.runtime import run_folder
from actors.training_messages import ClockSchedule, TrainingSite
from control_plane.hardware.stage_model import StageWork
from control_plane.training.job_spec import PipelineId
from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from control_plane.training.straggler import stage_ratios
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.charged_pipeline import Timeline
from train_jobs.checkpoints import Progress, restore, save
from train_jobs.collectives import everybody, gathered, latest
from train_jobs.job import Job
from train_jobs.log_file import Compared, Iterated, LogFile, Profiled, Scheduled, Started, read_log
from train_jobs.meter import MeasuredStep, Meter
from train_jobs.on_ray import call_planner, claim_gpus, release_at_agent, renew_at_agent
from train_jobs.order import RankOrder
from train_jobs.planner_link import PlannerLink
from train_jobs.profile_sweep import blocking_power_w, sweep
from train_jobs.run_log import IterationRecord, MeasuredChoice, RunLog, ScheduleRecord, SpanRecord
from train_jobs.schedule_lease import ScheduleLease
from train_jobs.scheduled_clock import ScheduledClock
from train_jobs.session import RankProfile, TrainingSession, comparable, registration_of
from train_jobs.stage_hooks import watch
from train_jobs.trained_stage import Place, TrainedStage, place_of

NS = 1e-9
WAIT_S = 1.0
"""Between iterations, for the planner to answer. Our own job waits because no GPU time passes then, and
its plans come at the same iterations however busy the machine is."""
FIRST_WAIT_S = 0.05
RESUME_WAIT_S = 10.0

Spans = tuple[tuple[MeasuredStep, ...], ...]
"""By rank."""


def train_loop(config: dict[str, Any]) -> None:
    """``config``: the job, the site it runs on, who leases its GPUs, and where the run's log is written."""
    torch.set_num_threads(1)
    job, site, owner = Job.model_validate(config["job"]), config["site"], config["owner"]
    rank = ray.train.get_context().get_world_rank()
    place = place_of(job, rank)
    # Those that the run leases, after a restart perhaps others: one rank asks for all.
    uuids = gathered(claim_gpus(job.name, owner, job.ranks, f"{job.ranks} ranks", site) if rank == 0 else ())[0]
    node = open_charged(site.driver, run_folder(site.run_dir), site.node_id, owner)
    gpu = ChargedGpu(node, node.index_of(uuids[rank]))
    lease = ScheduleLease(renew_at_agent(site.node_id, owner, [uuids[rank]], site.lease_ttl_s), site.lease_ttl_s)
    program = job.order.order[place.stage]
    clock = ScheduledClock(gpu, lease, program, gpu.spec.max_freq_mhz)
    try:
        with TrainingSession(RankOrder(program, place.stage), Meter(gpu.look), clock, lease) as session:
            _Rank(job, site, session, gpu, place, Path(config["log_file"])).train()
    finally:
        gpu.close()
        release_at_agent(site.node_id, owner, [uuids[rank]])


class _Rank:
    """One stage of one pipeline."""

    def __init__(
        self, job: Job, site: TrainingSite, session: TrainingSession, gpu: ChargedGpu, place: Place, log: Path
    ) -> None:
        self._job, self._site, self._session, self._gpu, self._place = job, site, session, gpu, place
        self._log_path = log
        # Where the control plane only recommends, no clock may be moved, not even to measure it. All ranks or none.
        self._managed = job.managed and everybody(session.lease.may_lower())
        self._iteration = 0
        self._timeline = Timeline(session, gpu, self._work, place.ranks, place.stage, place.moments_group)
        self._trained = TrainedStage(job, place)
        watch(self._trained.stage, 0, self._timeline)
        self._schedule: ClockSchedule | None = None
        self._progress = Progress()
        self._last_record: IterationRecord | None = None
        self._known = RunLog()
        """What the log held at the start and the profile; on the first rank."""
        self._log: LogFile | None = None

    def train(self) -> None:
        self._restore()
        if self._managed:
            self._measure()
        if self._managed and self._place.leads:
            self._session.link = self._link()
        for iteration in range(self._progress.iterations, self._job.iterations):
            if self._managed:
                self._agree_on_schedule(iteration)
            self._report(self._iterate(iteration))
            done = iteration + 1
            if done == self._job.iterations and self._job.compare_losses:
                self._train_unmanaged()
            if done % self._job.checkpoint_every == 0 or done == self._job.iterations:
                self._checkpoint()
        if self._log is not None:
            self._log.close()

    # measuring and planning

    def _work(self, step: Instruction) -> StageWork:
        """What a computation is charged in this iteration."""
        place, job = self._place, self._job
        work = job.costs.work(place.stage, step.name)
        return job.faults.slowed(work, place.stage, self._iteration, place.pipeline)

    def _measure(self) -> None:
        """Every rank its own stage, all at once, unless that was done before a restart; then every rank knows the
        profile of the whole pipeline, which is that of the first one."""
        if self._progress.profiled:
            self._known = gathered(self._known)[0]
            return
        profiled = self._measured()
        self._progress.profiled = True
        if self._log is not None:
            self._log.append(profiled)
        self._known = self._known.model_copy(
            update={"profile": profiled.profile, "blocking_power_w": profiled.blocking_power_w}
        )

    def _measured(self) -> Profiled:
        stage, before_j = self._place.stage, self._gpu.look().energy_j
        waits_w = blocking_power_w(self._job, self._gpu)
        measured = sweep(self._job, stage, self._gpu)
        spent_j = self._gpu.look().energy_j - before_j
        rows = [
            MeasuredChoice(stage=stage, instruction=name, freq_mhz=c.freq_mhz, time_s=c.time_s, energy_j=c.energy_j)
            for name, choices in measured.items()
            for c in choices
        ]
        everyones = gathered((rows if self._place.pipeline == 0 else [], spent_j, waits_w))
        return Profiled(
            profile=tuple(row for ranks_rows, _, _ in everyones for row in ranks_rows),
            energy_j=sum(joules for _, joules, _ in everyones),
            blocking_power_w=sum(watts for _, _, watts in everyones) / len(everyones),
        )

    def _link(self) -> PlannerLink:
        job, choices, waits_w = self._job, self._known.choices(), self._known.blocking_power_w
        profiles = [
            RankProfile(stage, program, {name: choices[stage, name] for name in (FORWARD, BACKWARD)}, waits_w)
            for stage, program in enumerate(job.order.order)
        ]
        stages, done = job.schedule.stages, self._progress.iterations
        registration = registration_of(job.name, stages, profiles, job.switch_time_s, job.schedule.name, job.policy)
        own = PipelineId(f"pipeline-{self._place.pipeline}")
        other = PipelineId(f"pipeline-{job.straggler.pipeline if job.straggler is not None else 1}")
        link = PlannerLink(registration, call_planner, done > 0, own, other)
        if done > 0:
            link.schedule_for(self._told_degree(done), RESUME_WAIT_S)
        return link

    def _told_degree(self, iteration: int) -> float:
        """What this rank tells the planner of other pipelines: only the first pipeline does."""
        return self._job.faults.announced_at(iteration) if self._place.pipeline == 0 else 1.0

    def _agree_on_schedule(self, iteration: int) -> None:
        """The schedule of a pipeline's first rank becomes that of all its ranks."""
        schedule, link = self._schedule, self._session.link
        wait_s = WAIT_S if self._schedule is not None else FIRST_WAIT_S
        asked: ClockSchedule | None = None
        if link is not None:
            asked = link.schedule_for(self._told_degree(iteration), wait_s)
        if self._place.stage_group is not None:
            # Every pipeline has been heard; what one reported may concern the others.
            everybody(True)
            asked = None if link is None else link.ask_again(wait_s)
        if asked is not None and iteration >= self._job.warmup_iterations:
            schedule = asked
        first, group = self._place.ranks[0], self._place.pipeline_group
        changed = torch.tensor([int(schedule is not self._schedule)])
        dist.broadcast(changed, first, group=group)
        if not changed.item():
            return
        offered: list[ClockSchedule | None] = [schedule]
        dist.broadcast_object_list(offered, first, group=group)
        self._schedule = schedule if self._place.leads else offered[0]
        assert self._schedule is not None
        self._session.apply(self._schedule)
        if self._log is not None:
            self._log.append(Scheduled(schedule=ScheduleRecord.of(self._schedule.figures, iteration)))

    def _report(self, spans: Spans) -> None:
        """Own compute times, before the collective: what every stage of this pipeline took over what it should."""
        link = self._session.link
        if link is not None:
            mine = [spans[rank] for rank in self._place.ranks]
            measured = [step for stage, steps in enumerate(mine) for step in comparable(stage, steps)]
            link.report(stage_ratios(self._known.choices(), len(mine), measured))

    # one iteration

    def _iterate(self, iteration: int) -> Spans:
        """Returns everybody's computations."""
        job, gpu = self._job, self._gpu
        self._iteration = iteration
        start_ns = latest(gpu.now_ns())
        before_j = gpu.reading(start_ns).energy_j
        self._timeline.start(start_ns)
        loss = self._trained.step(iteration)
        own_end_ns = latest(self._timeline.free_ns, self._place.pipeline_group)
        mine = self._session.end_iteration()
        self._trained.update()
        own_s, waited_for = (own_end_ns - start_ns) * NS, job.faults.waited_for_at(iteration)
        if iteration < job.warmup_iterations:
            self._progress.healthy_s += (own_s,)
        straggler_s = waited_for * median(self._progress.healthy_s) if waited_for > 1 else 0.0
        end_ns = latest(max(own_end_ns, start_ns + round(straggler_s / NS)))
        gpu.sleep_until(end_ns)
        energy_j = gpu.reading(end_ns).energy_j - before_j
        everyones: list[tuple[float, tuple[MeasuredStep, ...], float]] = gathered((energy_j, mine, loss))
        spans = tuple(steps for _, steps, _ in everyones)
        record = IterationRecord(
            iteration=iteration,
            loss=sum(loss for _, _, loss in everyones) / job.data_parallel,
            time_s=(end_ns - start_ns) * NS,
            own_time_s=own_s,
            energy_j=sum(joules for joules, _, _ in everyones),
            degree=job.faults.degree_at(iteration),
            straggler_time_s=straggler_s,
            planned_degree=0.0 if self._schedule is None else self._schedule.degree,
            slow_ratio=job.faults.slow_ratio_at(iteration),
            spans=(),
        )
        if self._last_record is None or self._last_record.kind != record.kind:
            record = record.model_copy(update={"spans": _span_records(spans, job.schedule.stages, start_ns)})
        self._last_record = record
        self._progress.iterations = iteration + 1
        if self._log is not None:
            self._log.append(Iterated(iteration=record))
            self._publish(record)
        return spans

    def _publish(self, record: IterationRecord) -> None:
        schedule = self._schedule
        planned_s, all_max_j = record.time_s, record.energy_j
        if schedule is not None:
            planned_s = schedule.planned_time_s
            all_max_j = schedule.all_max_energy_until_j(record.straggler_time_s) * self._job.data_parallel
        metrics.training_iteration(self._job.name, record.time_s, planned_s, record.energy_j, all_max_j, record.degree)

    def _train_unmanaged(self) -> None:
        """The same training again with nothing but torch: its losses must be the same to the last bit."""
        plain, losses = TrainedStage(self._job, self._place), []
        for iteration in range(self._job.iterations):
            losses.append(plain.step(iteration))
            plain.update()
        everyones = zip(*gathered(losses), strict=True)
        unmanaged = tuple(sum(of_ranks) / self._job.data_parallel for of_ranks in everyones)
        if self._log is not None:
            self._log.append(Compared(unmanaged_losses=unmanaged))

    # checkpoints

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                trained = self._trained
                self._progress = restore(Path(folder), self._place.rank, trained.module, trained.optimizer)
        if self._place.rank == 0:
            self._log = LogFile(self._log_path)
            self._log.append(Started(from_iteration=self._progress.iterations))
            self._known = read_log(self._log_path)
            kept = len(self._known.iterations)
            if kept != self._progress.iterations:
                raise RuntimeError(
                    f"{self._log_path} holds {kept} iterations, the checkpoint was made after "
                    f"{self._progress.iterations}: the log was removed or belongs to another run"
                )
            self._known = self._known.model_copy(update={"iterations": ()})

    def _checkpoint(self) -> None:
        if self._log is not None:
            self._log.sync()
        last = self._last_record
        assert last is not None
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), self._place.rank, self._trained.module, self._trained.optimizer, self._progress)
            seen = {"iteration": last.iteration, "loss": last.loss, "pid": os.getpid()}
            ray.train.report(seen, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _span_records(spans: Spans, stages: int, start_ns: int) -> tuple[SpanRecord, ...]:
    return tuple(
        SpanRecord(
            stage=rank % stages,
            pipeline=rank // stages,
            instruction=measured.step.name,
            microbatch=measured.step.microbatch,
            begin_s=(measured.begin_ns - start_ns) * NS,
            end_s=(measured.end_ns - start_ns) * NS,
            freq_mhz=measured.freq_mhz,
        )
        for rank, steps in enumerate(spans)
        for measured in steps
    )
