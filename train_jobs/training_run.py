"""Runs a training job on Ray Train and accounts for it: one call, one typed result."""

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from actors.runtime import PERSEUS_PLANNER, actor, gpu_agent_name
from actors.training_messages import JobFrontier, TrainingSite
from train_jobs.job import Job, JobError
from train_jobs.run_log import IterationRecord, RunLog, ScheduleRecord
from train_jobs.train_loop import LOG_FILE, train_loop

CALL_TIMEOUT_S = 15.0
WORKER_CPUS = 0.1
"""A worker sleeps while its simulated GPU computes."""
BEFORE, DURING, AFTER = "before", "during", "after"


class NoPlannerError(RuntimeError):
    """No planner runs on this Ray; the message says how to start one."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Iterations before, during or after the straggler, under a schedule, against all-max clocks."""

    name: str
    iterations: int
    iteration_time_s: float
    iteration_energy_j: float
    all_max_time_s: float
    all_max_energy_j: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run. The baseline is every clock at its highest: same iterations, same straggler, from the job's own
    profile at the highest clock."""

    job: Job
    log: RunLog
    frontier: JobFrontier | None
    energy_j: float
    baseline_energy_j: float
    slowdown_ratio: float
    stragglers_handled: int
    phases: tuple[Phase, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(record.loss for record in self.log.iterations)

    @property
    def losses_equal_unmanaged(self) -> bool | None:
        """None where the job did not ask for the comparison."""
        return self.losses == self.log.unmanaged_losses if self.log.unmanaged_losses else None

    def report(self) -> dict[str, Any]:
        """The values of report.json's `training`."""
        return {
            "job": self.job.name,
            "iterations": len(self.log.iterations),
            "energy_j": self.energy_j,
            "baseline_energy_j": self.baseline_energy_j,
            "energy_saved_ratio": 1 - self.energy_j / self.baseline_energy_j,
            "slowdown_ratio": self.slowdown_ratio,
            "stragglers_handled": self.stragglers_handled,
            "phases": [asdict(phase) for phase in self.phases],
            "schedules": [schedule.model_dump() for schedule in self.log.schedules],
            "profile_energy_j": self.log.profile_energy_j,
            "worker_starts": self.log.starts,
            "losses_equal_unmanaged": self.losses_equal_unmanaged,
            "losses": self.losses,
        }


def run_training(job: Job) -> TrainingResult:
    """Run the job to its end on the Ray this process has joined; blocks. Raises JobError where it does not fit the
    cluster, NoPlannerError where none plans, ray.train.TrainingFailedError past ``max_failures``."""
    site = training_site()
    uuids = _free_gpus(job, site)
    config = {"job": job.model_dump(mode="json"), "site": site, "gpu_uuids": uuids}
    storage = Path(tempfile.gettempdir()) / site.run_dir / "train"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=config,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.schedule.stages,
            resources_per_worker={"CPU": WORKER_CPUS},
            label_selector={"ray.io/node-id": site.node_id},
        ),
        run_config=ray.train.RunConfig(
            name=f"{job.name}-{secrets.token_hex(3)}",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    checkpoint = trainer.fit().checkpoint
    if checkpoint is None:
        raise RuntimeError(f"job {job.name} ended without a checkpoint")
    with checkpoint.as_directory() as folder:
        log = RunLog.model_validate_json((Path(folder) / LOG_FILE).read_text())
    return account(job, log, _frontier(job))


def training_site() -> TrainingSite:
    """Where training may run. Raises NoPlannerError."""
    try:
        site: TrainingSite = ray.get(actor(PERSEUS_PLANNER).site.remote(), timeout=CALL_TIMEOUT_S)
    except ValueError:
        raise NoPlannerError(
            "no perseus_planner runs on this Ray; start the control plane with `wattray up --config FILE`, "
            "where FILE holds `training: {gpus: 2}`"
        ) from None
    return site


def _free_gpus(job: Job, site: TrainingSite) -> tuple[str, ...]:
    """GPUs that no other job drives, one per stage."""
    stages = job.schedule.stages
    if len(site.gpu_uuids) < stages:
        raise JobError(
            f"job {job.name} has {stages} stages and needs as many GPUs; the control plane keeps "
            f"{len(site.gpu_uuids)} for training: set training.gpus to at least {stages} and start it again"
        )
    leases = ray.get(actor(gpu_agent_name(site.node_id)).leases.remote(), timeout=CALL_TIMEOUT_S)
    free = [uuid for uuid in site.gpu_uuids if uuid not in leases]
    if len(free) < stages:
        owners = sorted({leases[uuid][0] for uuid in site.gpu_uuids if uuid in leases})
        raise JobError(
            f"job {job.name} needs {stages} GPUs, {len(free)} of {len(site.gpu_uuids)} training GPUs are free; "
            f"the others are leased to {', '.join(owners)}"
        )
    return tuple(free[:stages])


def _frontier(job: Job) -> JobFrontier | None:
    if not job.managed:
        return None
    try:
        frontier: JobFrontier = ray.get(actor(PERSEUS_PLANNER).frontier.remote(job.name), timeout=CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError):
        # The planner went away after the last iteration: the run stands, its report lacks one plot.
        return None
    return frontier


def account(job: Job, log: RunLog, frontier: JobFrontier | None) -> TrainingResult:
    """The run against all-max clocks. A run without a schedule is its own baseline."""
    records = log.iterations
    baseline = [_all_max(record, log.schedules) for record in records]
    ideal_s = sum(time_s for time_s, _ in baseline)
    handled = {s.degree for s in log.schedules if s.degree > 1}
    served = {r.degree for r in records if r.degree > 1 and r.planned_degree == r.degree} & handled
    return TrainingResult(
        job=job,
        log=log,
        frontier=frontier,
        energy_j=sum(record.energy_j for record in records),
        baseline_energy_j=sum(energy_j for _, energy_j in baseline),
        slowdown_ratio=sum(record.time_s for record in records) / ideal_s,
        stragglers_handled=len(served),
        phases=_phases(job, records, baseline),
    )


def _all_max(record: IterationRecord, schedules: Sequence[ScheduleRecord]) -> tuple[float, float]:
    """Time and energy of this iteration with every clock at its highest, under the same straggler."""
    if not schedules:
        return record.time_s, record.energy_j
    known = schedules[0]
    time_s = max(known.all_max_time_s, record.straggler_time_s)
    return time_s, known.all_max_energy_j + known.blocking_power_w * (time_s - known.all_max_time_s)


def _phases(job: Job, records: Sequence[IterationRecord], baseline: Sequence[tuple[float, float]]) -> tuple[Phase, ...]:
    phases = []
    for name in (BEFORE, DURING, AFTER):
        mine = [(r, b) for r, b in zip(records, baseline, strict=True) if phase_of(job, r) == name]
        if mine:
            count = len(mine)
            phases.append(
                Phase(
                    name,
                    count,
                    sum(r.time_s for r, _ in mine) / count,
                    sum(r.energy_j for r, _ in mine) / count,
                    sum(time_s for _, (time_s, _) in mine) / count,
                    sum(energy_j for _, (_, energy_j) in mine) / count,
                )
            )
    return tuple(phases)


def phase_of(job: Job, record: IterationRecord) -> str:
    """Iterations at full clock, before the first schedule came, are of no phase ("")."""
    if record.planned_degree == 0:
        return ""
    if job.straggler is None or record.iteration < job.straggler.from_iteration:
        return BEFORE
    return DURING if record.iteration < job.straggler.to_iteration else AFTER
