"""Runs a training job on Ray Train and accounts for it: one call, one typed result."""

import secrets

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from actors.runtime import PERSEUS_PLANNER, actor, gpu_agent_name, run_folder
from actors.training_messages import JobFrontier, TrainingSite
from train_jobs.gloo import GlooConfig
from train_jobs.job import Job, JobError, NoPlannerError
from train_jobs.log_file import LOG_FILE, read_log
from train_jobs.log_follower import Progress, followed
from train_jobs.training_result import TrainingResult, account
from train_jobs.worker import work

CALL_TIMEOUT_S = 15.0
WORKER_CPUS = 0.1
"""A worker sleeps while its simulated GPU computes."""


def connect(address: str) -> None:
    """Join the Ray at ``address`` as a job's driver.

    Ray Train's guard of its placement group looks for "the" Ray of the host; where several run it must be told which,
    or it takes the job for dead and ends it.
    """
    ray.init(
        address=address,
        runtime_env={"env_vars": {"RAY_ADDRESS": address}},
        logging_level="warning",
        log_to_driver=False,
    )


def run_training(job: Job, progress: Progress = lambda _: None) -> TrainingResult:
    """Run the job to its end on the Ray this process has joined (see ``connect``); blocks. ``progress`` is told how
    many iterations are done, by a thread of its own.

    Raises JobError where it does not fit the cluster, NoPlannerError where none plans, and
    ray.train.TrainingFailedError past ``max_failures``.
    """
    site = training_site()
    pipelines = job.data_parallel
    shape = f"{job.schedule.stages} stages" + (f" in each of {pipelines} pipelines" if pipelines > 1 else "")
    uuids = free_gpus(job.name, job.ranks, shape, site)
    storage, name = run_folder(site.run_dir) / "train", f"{job.name}-{secrets.token_hex(3)}"
    log_file = storage / name / LOG_FILE
    config = {"job": job.model_dump(mode="json"), "site": site, "gpu_uuids": uuids, "log_file": str(log_file)}
    trainer = DataParallelTrainer(
        work,
        train_loop_config=config,
        backend_config=GlooConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.ranks,
            resources_per_worker={"CPU": WORKER_CPUS},
            label_selector={"ray.io/node-id": site.node_id},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with followed(log_file, progress):
        trainer.fit()
    return account(job, read_log(log_file), _frontier(job))


def run_with_baseline(job: Job, progress: Progress = lambda _: None) -> TrainingResult:
    """As ``run_training``, and the same job once more, really run, with every clock at its highest. ``progress`` counts
    the iterations of both runs. Of a job that is all-max already the one run is both."""
    result = run_training(job, progress)
    if not job.managed:
        return result
    done = job.iterations
    all_max = run_training(job.model_copy(update={"policy": "all-max"}), lambda count: progress(done + count))
    return account(job, result.log, result.frontier, all_max.log)


def training_site() -> TrainingSite:
    """Where training may run. Raises NoPlannerError."""
    try:
        site: TrainingSite = ray.get(actor(PERSEUS_PLANNER).site.remote(), timeout=CALL_TIMEOUT_S)
    except ValueError:
        raise NoPlannerError("no perseus_planner runs on this Ray") from None
    return site


def free_gpus(job: str, needed: int, shape: str, site: TrainingSite) -> tuple[str, ...]:
    """GPUs that no other job drives, ``needed`` of them; ``shape`` says what the job needs them for. Raises JobError
    where there are not so many."""
    if len(site.gpu_uuids) < needed:
        raise JobError(
            f"job {job} has {shape} and needs as many GPUs; the control plane keeps "
            f"{len(site.gpu_uuids)} for training: set training.gpus to at least {needed} and start it again"
        )
    leases = ray.get(actor(gpu_agent_name(site.node_id)).leases.remote(), timeout=CALL_TIMEOUT_S)
    free = [uuid for uuid in site.gpu_uuids if uuid not in leases]
    if len(free) < needed:
        owners = sorted({leases[uuid][0] for uuid in site.gpu_uuids if uuid in leases})
        raise JobError(
            f"job {job} needs {needed} GPUs, {len(free)} of {len(site.gpu_uuids)} training GPUs are free; "
            f"the others are leased to {', '.join(owners)}"
        )
    return tuple(free[:needed])


def _frontier(job: Job) -> JobFrontier | None:
    if not job.managed:
        return None
    try:
        frontier: JobFrontier = ray.get(actor(PERSEUS_PLANNER).frontier.remote(job.name), timeout=CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError):
        # The planner went away after the last iteration: the run stands, its report lacks one plot.
        return None
    return frontier
