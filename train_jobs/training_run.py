"""Runs a training job on Ray Train and accounts for it: one call, one typed result."""

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from actors.runtime import PERSEUS_PLANNER, actor, run_folder
from actors.training_messages import JobFrontier, TrainingSite, owner_of
from train_jobs.claims import new_run
from train_jobs.gloo import GlooConfig
from train_jobs.job import Job, NoPlannerError
from train_jobs.log_file import LOG_FILE, read_log
from train_jobs.log_follower import Progress, followed
from train_jobs.on_ray import claim_gpus, release_at_agent, renew_at_agent
from train_jobs.schedule_lease import ScheduleLease
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

    Raises JobError where it does not fit the cluster, LeaseRefusedError where others have the GPUs or the job runs
    already, NoPlannerError where none plans, and ray.train.TrainingFailedError past ``max_failures``.
    """
    site = training_site()
    pipelines = job.data_parallel
    shape = f"{job.schedule.stages} stages" + (f" in each of {pipelines} pipelines" if pipelines > 1 else "")
    run = new_run()
    owner = owner_of(job.name, run)
    uuids = claim_gpus(job.name, owner, job.ranks, shape, site)
    # Until the workers hold them.
    waiting = ScheduleLease(renew_at_agent(site.node_id, owner, uuids, site.lease_ttl_s), site.lease_ttl_s)
    storage, name = run_folder(site.run_dir) / "train", f"{job.name}-{run}"
    log_file = storage / name / LOG_FILE
    config = {"job": job.model_dump(mode="json"), "site": site, "owner": owner, "log_file": str(log_file)}

    def heard(done: int) -> None:
        if log_file.exists():
            waiting.end()
        progress(done)

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
    try:
        with followed(log_file, heard):
            trainer.fit()
    finally:
        waiting.end()
        release_at_agent(site.node_id, owner, uuids)
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


def _frontier(job: Job) -> JobFrontier | None:
    if not job.managed:
        return None
    try:
        frontier: JobFrontier = ray.get(actor(PERSEUS_PLANNER).frontier.remote(job.name), timeout=CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError):
        # The planner went away after the last iteration: the run stands, its report lacks one plot.
        return None
    return frontier
