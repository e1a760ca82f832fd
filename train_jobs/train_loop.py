"""What every worker of a training job runs: measure, register, then iterate under the clock schedule in force.

One worker is one pipeline stage on one GPU. Rank 0 talks to the planner; the others hear of a new schedule from it.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from actors import metrics
from actors.gpu.drivers import open_charged
from actors.runtime import run_folder
from actors.training_messages import ClockSchedule, JobRegistration, TrainingSite
from control_plane.training.job_spec import StageRatios
from control_plane.training.straggler import MeasuredComputation, stage_ratios
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.charged_pipeline import BACKWARD, FORWARD, ChargedStage, StageSpan, Timeline
from train_jobs.frequency_hook import FrequencyHook
from train_jobs.job import Job
from train_jobs.pipeline_model import batch, build_stage, loss_fn
from train_jobs.planner_link import PlannerLink
from train_jobs.profile_sweep import blocking_power_w, sweep
from train_jobs.run_log import (
    LOG_FILE,
    IterationRecord,
    MeasuredChoice,
    RunLog,
    ScheduleRecord,
    SpanRecord,
    with_schedule,
)
from train_jobs.schedule_lease import ScheduleLease, release_at_agent, renew_at_agent

log = logging.getLogger(__name__)

NS = 1e-9
RESUME_PATIENCE_S = 10.0

Value = TypeVar("Value")


def train_loop(config: dict[str, Any]) -> None:
    """``config``: the job, the site it runs on and the GPUs chosen for it, by rank."""
    torch.set_num_threads(1)
    job, site, uuids = Job.model_validate(config["job"]), config["site"], config["gpu_uuids"]
    rank = ray.train.get_context().get_world_rank()
    node = open_charged(site.driver, run_folder(site.run_dir), site.node_id)
    gpu = ChargedGpu(node, node.index_of(uuids[rank]))
    owner = f"training:{job.name}"
    lease = ScheduleLease(renew_at_agent(site.node_id, owner, uuids[rank], site.lease_ttl_s), site.lease_ttl_s)
    try:
        _Rank(job, site, rank, gpu, lease).train()
    finally:
        lease.end()
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

    def __init__(self, job: Job, site: TrainingSite, rank: int, gpu: ChargedGpu, lease: ScheduleLease) -> None:
        self._job, self._site, self._rank, self._gpu, self._lease = job, site, rank, gpu, lease
        self._last = rank == job.schedule.stages - 1
        # Where the control plane only recommends, no clock may be moved, not even to measure it.
        self._managed = job.managed and lease.may_lower()
        program = [(step, number) for step, number in one_f_one_b_program(job, rank)]
        self._hook = FrequencyHook(gpu, lease, program, gpu.spec.max_freq_mhz)
        moments = dist.new_group(backend="gloo")
        self._timeline = Timeline(job, rank, gpu, self._hook, moments)
        self._trained = self._build(
            lambda module: ChargedStage(module, rank, job.schedule.stages, torch.device("cpu"), timeline=self._timeline)
        )
        self._schedule: ClockSchedule | None = None
        self._log = RunLog()
        self._records: list[IterationRecord] = []

    def train(self) -> None:
        self._restore()
        if self._managed and not self._log.profile:
            self._measure()
        link = self._link() if self._managed and self._rank == 0 else None
        for iteration in range(len(self._records), self._job.iterations):
            if self._managed:
                self._agree_on_schedule(link, iteration)
            spans = self._iterate(iteration)
            if link is not None:
                link.report(self._stage_ratios(spans), self._schedule)
            done = iteration + 1
            if done == self._job.iterations and self._job.compare_losses:
                self._train_unmanaged()
            if done % self._job.checkpoint_every == 0 or done == self._job.iterations:
                self._checkpoint()

    # measuring and planning

    def _measure(self) -> None:
        """Every rank its own stage, all at once; the log then holds the profile of the whole pipeline."""
        before_j = self._gpu.counter_j(self._gpu.now_ns())
        waits_w = blocking_power_w(self._job, self._gpu)
        measured = sweep(self._job, self._rank, self._gpu)
        spent_j = self._gpu.counter_j(self._gpu.now_ns()) - before_j
        rows = [
            MeasuredChoice(
                stage=self._rank, instruction=name, freq_mhz=c.freq_mhz, time_s=c.time_s, energy_j=c.energy_j
            )
            for name, choices in measured.items()
            for c in choices
        ]
        gathered = _gathered((rows, spent_j, waits_w))
        self._log = self._log.model_copy(
            update={
                "profile": tuple(row for ranks_rows, _, _ in gathered for row in ranks_rows),
                "profile_energy_j": sum(joules for _, joules, _ in gathered),
                "blocking_power_w": sum(watts for _, _, watts in gathered) / len(gathered),
            }
        )

    def _link(self) -> PlannerLink:
        schedule = self._job.schedule
        registration = JobRegistration(
            self._job.name,
            self._log.choices(),
            schedule.name,
            schedule.stages,
            schedule.microbatches,
            self._log.blocking_power_w,
            self._job.switch_time_s,
        )
        link = PlannerLink(self._job.name, registration)
        if not self._records:
            link.register()
        else:
            link.schedule_for(self._job.degree_at(len(self._records)), RESUME_PATIENCE_S)
        return link

    def _agree_on_schedule(self, link: PlannerLink | None, iteration: int) -> None:
        """Rank 0's schedule becomes everybody's."""
        schedule = self._schedule
        if link is not None:
            patience_s = {} if self._schedule is not None else {"patience_s": 0.05}
            asked = link.schedule_for(self._job.degree_at(iteration), **patience_s)
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
        self._hook.apply(self._schedule.ranks[self._rank], self._gpu.now_ns())
        record = _schedule_record(self._schedule, iteration)
        self._log = self._log.model_copy(update={"schedules": with_schedule(self._log.schedules, record)})

    def _stage_ratios(self, spans: Sequence[StageSpan]) -> StageRatios:
        """Measured over profiled times; while a clock settles, a computation has none to compare with."""
        measured = [
            MeasuredComputation(span.stage, span.instruction, span.freq_mhz, (span.end_ns - span.begin_ns) * NS)
            for span in spans
            if span.settled
        ]
        return stage_ratios(self._log.choices(), self._job.schedule.stages, measured)

    # one iteration

    def _iterate(self, iteration: int) -> list[StageSpan]:
        """Returns the whole pipeline's computations."""
        job, gpu = self._job, self._gpu
        start_ns = _latest(gpu.now_ns())
        before_j = gpu.counter_j(start_ns)
        self._timeline.start(iteration, start_ns)
        loss = self._step(self._trained, iteration)
        own_end_ns = _latest(self._timeline.free_ns)
        degree = job.degree_at(iteration)
        straggler_s = degree * self._healthy_s() if degree > 1 else 0.0
        end_ns = max(own_end_ns, start_ns + round(straggler_s / NS))
        gpu.sleep_until(end_ns)
        energy_j = gpu.counter_j(end_ns) - before_j
        gathered: list[tuple[float, list[StageSpan], float]] = _gathered((energy_j, self._timeline.spans, loss))
        record = IterationRecord(
            iteration=iteration,
            loss=gathered[-1][2],
            time_s=(end_ns - start_ns) * NS,
            own_time_s=(own_end_ns - start_ns) * NS,
            energy_j=sum(joules for joules, _, _ in gathered),
            degree=degree,
            straggler_time_s=straggler_s,
            planned_degree=0.0 if self._schedule is None else self._schedule.degree,
            slow_ratio=job.slow_ratio_at(iteration),
            spans=(),
        )
        if not self._records or self._records[-1].kind != record.kind:
            spans = tuple(_span_record(span) for _, spans, _ in gathered for span in spans)
            record = record.model_copy(update={"spans": spans})
        self._records.append(record)
        if self._rank == 0:
            self._publish(record)
        return [span for _, spans, _ in gathered for span in spans]

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

    def _healthy_s(self) -> float:
        """What an iteration at full clock takes: measured in the warm-up."""
        return median(record.own_time_s for record in self._records[: self._job.warmup_iterations])

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
        self._log = self._log.model_copy(update={"unmanaged_losses": tuple(_gathered(losses)[-1])})

    # checkpoints

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder) / f"stage-{self._rank}.pt", weights_only=True)
                self._trained.module.load_state_dict(state["module"])
                self._trained.optimizer.load_state_dict(state["optimizer"])
                self._log = RunLog.model_validate_json((Path(folder) / LOG_FILE).read_text())
                self._records = list(self._log.iterations)
        self._log = self._log.model_copy(update={"starts": self._log.starts + 1})

    def _checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            state = {"module": self._trained.module.state_dict(), "optimizer": self._trained.optimizer.state_dict()}
            torch.save(state, Path(folder) / f"stage-{self._rank}.pt")
            if self._rank == 0:
                whole = self._log.model_copy(update={"iterations": tuple(self._records)})
                (Path(folder) / LOG_FILE).write_text(whole.model_dump_json())
            last = self._records[-1]
            seen = {"iteration": last.iteration, "loss": last.loss, "pid": os.getpid()}
            ray.train.report(seen, checkpoint=ray.train.Checkpoint.from_directory(folder))


def one_f_one_b_program(job: Job, stage: int) -> list[tuple[str, int]]:
    """What one stage runs, in torch's order and the planner's: one forward per later stage, then in turn."""
    warmup, count = job.schedule.stages - 1 - stage, job.schedule.microbatches
    program = [(FORWARD, number) for number in range(min(warmup, count))]
    for number in range(count):
        if number + warmup < count:
            program.append((FORWARD, number + warmup))
        program.append((BACKWARD, number))
    return program


def _latest(at_ns: int) -> int:
    moment = torch.tensor([at_ns], dtype=torch.int64)
    dist.all_reduce(moment, dist.ReduceOp.MAX)
    return int(moment.item())


def _gathered(mine: Value) -> list[Value]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def _span_record(span: StageSpan) -> SpanRecord:
    return SpanRecord(
        stage=span.stage,
        instruction=span.instruction,
        microbatch=span.microbatch,
        begin_s=span.begin_ns * NS,
        end_s=span.end_ns * NS,
        freq_mhz=span.freq_mhz,
    )


def _schedule_record(schedule: ClockSchedule, iteration: int) -> ScheduleRecord:
    return ScheduleRecord(
        degree=schedule.degree,
        first_iteration=iteration,
        deadline_s=schedule.deadline_s,
        planned_time_s=schedule.planned_time_s,
        planned_energy_j=schedule.planned_energy_j,
        lower_bound_j=schedule.lower_bound_j,
        regime=schedule.regime,
        t_min_s=schedule.t_min_s,
        t_star_s=schedule.t_star_s,
        all_max_time_s=schedule.all_max_time_s,
        all_max_energy_j=schedule.all_max_energy_j,
        blocking_power_w=schedule.blocking_power_w,
        stage_ratios=schedule.stage_ratios,
    )
