"""What every worker of a training job runs: measure, register, then iterate under the clock schedule in force.

One worker is one pipeline stage on one GPU. Rank 0 talks to the planner; the others hear of a new schedule from it.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import ray.train
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from actors import metrics
from actors.gpu.drivers import open_charged
from actors.runtime import run_folder
from actors.training_messages import ClockSchedule, TrainingSite
from control_plane.training.schedules import BACKWARD, FORWARD
from control_plane.training.straggler import stage_ratios
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.charged_pipeline import ChargedStage, Timeline
from train_jobs.checkpoints import Progress, restore, save
from train_jobs.job import Job
from train_jobs.log_file import Compared, Iterated, LogFile, Profiled, Scheduled, Started, read_log
from train_jobs.meter import MeasuredStep, Meter
from train_jobs.on_ray import call_planner, release_at_agent, renew_at_agent
from train_jobs.order import RankOrder
from train_jobs.pipeline_model import batch, build_stage, loss_fn
from train_jobs.planner_link import PlannerLink
from train_jobs.profile_sweep import blocking_power_w, sweep
from train_jobs.run_log import IterationRecord, MeasuredChoice, RunLog, ScheduleRecord, SpanRecord
from train_jobs.schedule_lease import ScheduleLease
from train_jobs.scheduled_clock import ScheduledClock
from train_jobs.session import RankProfile, TrainingSession, comparable, registration_of

NS = 1e-9
WAIT_S = 1.0
"""Between iterations, for the planner to answer. Our own job waits because no GPU time passes then, and
its plans come at the same iterations however busy the machine is."""
FIRST_WAIT_S = 0.05
RESUME_WAIT_S = 10.0

Value = TypeVar("Value")
Spans = tuple[tuple[MeasuredStep, ...], ...]
"""By rank."""


def train_loop(config: dict[str, Any]) -> None:
    """``config``: the job, the site it runs on, the GPUs chosen for it, by rank, and where the run's log is written."""
    torch.set_num_threads(1)
    job, site, uuids = Job.model_validate(config["job"]), config["site"], config["gpu_uuids"]
    rank = ray.train.get_context().get_world_rank()
    owner = f"training:{job.name}"
    node = open_charged(site.driver, run_folder(site.run_dir), site.node_id, owner)
    gpu = ChargedGpu(node, node.index_of(uuids[rank]))
    lease = ScheduleLease(renew_at_agent(site.node_id, owner, uuids[rank], site.lease_ttl_s), site.lease_ttl_s)
    program = job.order.order[rank]
    clock = ScheduledClock(gpu, lease, program, gpu.spec.max_freq_mhz)
    try:
        with TrainingSession(RankOrder(program, rank), Meter(gpu.look), clock, lease) as session:
            _Rank(job, site, session, gpu, Path(config["log_file"])).train()
    finally:
        gpu.close()
        release_at_agent(site.node_id, owner, uuids[rank])


@dataclass(frozen=True, slots=True)
class _Trained:
    """The network of one stage and what steps it."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Schedule1F1B


class _Rank:
    """One stage of the pipeline."""

    def __init__(self, job: Job, site: TrainingSite, session: TrainingSession, gpu: ChargedGpu, log: Path) -> None:
        self._job, self._site, self._session, self._gpu = job, site, session, gpu
        self._rank, self._log_path = session.order.rank, log
        self._last = self._rank == job.schedule.stages - 1
        # Where the control plane only recommends, no clock may be moved, not even to measure it. All ranks or none.
        self._managed = job.managed and _everybody(session.lease.may_lower())
        self._timeline = Timeline(job, session, gpu, dist.new_group(backend="gloo"))
        self._trained = self._build(
            lambda module: ChargedStage(
                module, self._rank, job.schedule.stages, torch.device("cpu"), timeline=self._timeline
            )
        )
        self._schedule: ClockSchedule | None = None
        self._progress = Progress()
        self._last_record: IterationRecord | None = None
        self._known = RunLog()
        """What the log held at the start and the profile; on the first rank."""
        self._log: LogFile | None = None

    def train(self) -> None:
        self._restore()
        if self._managed and not self._progress.profiled:
            self._measure()
        if self._managed and self._rank == 0:
            self._session.link = self._link()
        for iteration in range(self._progress.iterations, self._job.iterations):
            if self._managed:
                self._agree_on_schedule(iteration)
            spans = self._iterate(iteration)
            if self._session.link is not None:
                measured = [step for rank, steps in enumerate(spans) for step in comparable(rank, steps)]
                self._session.link.report(stage_ratios(self._known.choices(), len(spans), measured))
            done = iteration + 1
            if done == self._job.iterations and self._job.compare_losses:
                self._train_unmanaged()
            if done % self._job.checkpoint_every == 0 or done == self._job.iterations:
                self._checkpoint()
        if self._log is not None:
            self._log.close()

    # measuring and planning

    def _measure(self) -> None:
        """Every rank its own stage, all at once; the first one then knows the profile of the whole pipeline."""
        before_j = self._gpu.look().energy_j
        waits_w = blocking_power_w(self._job, self._gpu)
        measured = sweep(self._job, self._rank, self._gpu)
        spent_j = self._gpu.look().energy_j - before_j
        rows = [
            MeasuredChoice(
                stage=self._rank, instruction=name, freq_mhz=c.freq_mhz, time_s=c.time_s, energy_j=c.energy_j
            )
            for name, choices in measured.items()
            for c in choices
        ]
        gathered = _gathered((rows, spent_j, waits_w))
        self._progress.profiled = True
        profiled = Profiled(
            profile=tuple(row for ranks_rows, _, _ in gathered for row in ranks_rows),
            energy_j=sum(joules for _, joules, _ in gathered),
            blocking_power_w=sum(watts for _, _, watts in gathered) / len(gathered),
        )
        self._known = self._known.model_copy(
            update={"profile": profiled.profile, "blocking_power_w": profiled.blocking_power_w}
        )
        if self._log is not None:
            self._log.append(profiled)

    def _link(self) -> PlannerLink:
        job, choices, waits_w = self._job, self._known.choices(), self._known.blocking_power_w
        profiles = [
            RankProfile(rank, program, {name: choices[rank, name] for name in (FORWARD, BACKWARD)}, waits_w)
            for rank, program in enumerate(job.order.order)
        ]
        stages, done = job.schedule.stages, self._progress.iterations
        registration = registration_of(job.name, stages, profiles, job.switch_time_s, job.schedule.name)
        link = PlannerLink(registration, call_planner, known=done > 0)
        if done > 0:
            link.schedule_for(job.faults.degree_at(done), RESUME_WAIT_S)
        return link

    def _agree_on_schedule(self, iteration: int) -> None:
        """The first rank's schedule becomes everybody's."""
        schedule, link = self._schedule, self._session.link
        if link is not None:
            wait_s = WAIT_S if self._schedule is not None else FIRST_WAIT_S
            asked = link.schedule_for(self._job.faults.degree_at(iteration), wait_s)
            if asked is not None and iteration >= self._job.warmup_iterations:
                schedule = asked
        changed = torch.tensor([int(schedule is not self._schedule)])
        dist.broadcast(changed, 0)
        if not changed.item():
            return
        offered: list[ClockSchedule | None] = [schedule]
        dist.broadcast_object_list(offered, 0)
        self._schedule = schedule if self._rank == 0 else offered[0]
        assert self._schedule is not None
        self._session.apply(self._schedule)
        if self._log is not None:
            self._log.append(Scheduled(schedule=ScheduleRecord.of(self._schedule.figures, iteration)))

    # one iteration

    def _iterate(self, iteration: int) -> Spans:
        """Returns the whole pipeline's computations."""
        job, gpu = self._job, self._gpu
        start_ns = _latest(gpu.now_ns())
        before_j = gpu.reading(start_ns).energy_j
        self._timeline.start(iteration, start_ns)
        loss = self._step(self._trained, iteration)
        own_end_ns = _latest(self._timeline.free_ns)
        mine = self._session.end_iteration()
        own_s, degree = (own_end_ns - start_ns) * NS, job.faults.degree_at(iteration)
        if iteration < job.warmup_iterations:
            self._progress.healthy_s += (own_s,)
        straggler_s = degree * median(self._progress.healthy_s) if degree > 1 else 0.0
        end_ns = max(own_end_ns, start_ns + round(straggler_s / NS))
        gpu.sleep_until(end_ns)
        energy_j = gpu.reading(end_ns).energy_j - before_j
        gathered: list[tuple[float, tuple[MeasuredStep, ...], float]] = _gathered((energy_j, mine, loss))
        spans = tuple(steps for _, steps, _ in gathered)
        record = IterationRecord(
            iteration=iteration,
            loss=gathered[-1][2],
            time_s=(end_ns - start_ns) * NS,
            own_time_s=own_s,
            energy_j=sum(joules for joules, _, _ in gathered),
            degree=degree,
            straggler_time_s=straggler_s,
            planned_degree=0.0 if self._schedule is None else self._schedule.degree,
            slow_ratio=job.faults.slow_ratio_at(iteration),
            spans=(),
        )
        if self._last_record is None or self._last_record.kind != record.kind:
            record = record.model_copy(update={"spans": _span_records(spans, start_ns)})
        self._last_record = record
        self._progress.iterations = iteration + 1
        if self._log is not None:
            self._log.append(Iterated(iteration=record))
            self._publish(record)
        return spans

    def _step(self, trained: _Trained, iteration: int) -> float:
        """Forward, backward and update on one batch; the loss is known on the last stage."""
        inputs, targets = batch(self._job.model, self._job.schedule.microbatches, iteration)
        losses: list[torch.Tensor] = []
        if self._rank == 0:
            trained.pipeline.step(inputs)
        elif self._last:
            trained.pipeline.step(target=targets, losses=losses)
        else:
            trained.pipeline.step()
        trained.optimizer.step()
        trained.optimizer.zero_grad()
        return float(torch.stack(losses).mean().detach()) if losses else 0.0

    def _publish(self, record: IterationRecord) -> None:
        schedule = self._schedule
        planned_s, all_max_j = record.time_s, record.energy_j
        if schedule is not None:
            planned_s = schedule.planned_time_s
            all_max_j = schedule.all_max_energy_until_j(record.straggler_time_s)
        metrics.training_iteration(self._job.name, record.time_s, planned_s, record.energy_j, all_max_j, record.degree)

    # the network

    def _build(self, as_stage: Callable[[torch.nn.Module], PipelineStage]) -> _Trained:
        job = self._job
        module = build_stage(job.model, tuple(stage.layers for stage in job.stages), self._rank)
        optimizer = torch.optim.SGD(module.parameters(), job.model.learning_rate, momentum=0.9)
        return _Trained(module, optimizer, Schedule1F1B(as_stage(module), job.schedule.microbatches, loss_fn))

    def _train_unmanaged(self) -> None:
        """The same training again with nothing but torch: its losses must be the same to the last bit."""
        stages = self._job.schedule.stages
        plain = self._build(lambda module: PipelineStage(module, self._rank, stages, torch.device("cpu")))
        losses = [self._step(plain, iteration) for iteration in range(self._job.iterations)]
        last_stages = tuple(_gathered(losses)[-1])
        if self._log is not None:
            self._log.append(Compared(unmanaged_losses=last_stages))

    # checkpoints

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self._progress = restore(Path(folder), self._rank, self._trained.module, self._trained.optimizer)
        if self._rank == 0:
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
            save(Path(folder), self._rank, self._trained.module, self._trained.optimizer, self._progress)
            seen = {"iteration": last.iteration, "loss": last.loss, "pid": os.getpid()}
            ray.train.report(seen, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _latest(at_ns: int) -> int:
    moment = torch.tensor([at_ns], dtype=torch.int64)
    dist.all_reduce(moment, dist.ReduceOp.MAX)
    return int(moment.item())


def _everybody(claim: bool) -> bool:
    claims = torch.tensor([int(claim)])
    dist.all_reduce(claims, dist.ReduceOp.MIN)
    return bool(claims.item())


def _gathered(mine: Value) -> list[Value]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def _span_records(spans: Spans, start_ns: int) -> tuple[SpanRecord, ...]:
    return tuple(
        SpanRecord(
            stage=rank,
            instruction=measured.step.name,
            microbatch=measured.step.microbatch,
            begin_s=(measured.begin_ns - start_ns) * NS,
            end_s=(measured.end_ns - start_ns) * NS,
            freq_mhz=measured.freq_mhz,
        )
        for rank, steps in enumerate(spans)
        for measured in steps
    )
