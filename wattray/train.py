"""A user's own torch pipeline under an energy plan, in a few lines; torch is imported only by ``attach``.

import wattray.train

with wattray.train.attach(schedule, job="my-job") as energy:
    for batch in data:
        with energy.iteration():
            schedule.step(batch)
        optimizer.step()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from control_plane.training.job_record import Policy
    from train_jobs.attached import AttachedTraining

__all__ = ["attach"]


def attach(
    schedule: Any,
    job: str,
    *,
    policy: "Policy" = "perseus",
    strict: bool = False,
    switch_time_s: float | None = None,
) -> "AttachedTraining":
    """Listen to ``schedule``, one of ``torch.distributed.pipelining``, and run it under a plan.

    Every rank calls it once, before training, in a process group that is there (torchrun, Ray Train). The control plane
    is that of the Ray the process belongs to; else clocks are set through the node's gpud and the planner runs inside
    the job; without gpud clocks are only recommended. ``policy`` names who chooses the clocks. ``switch_time_s`` is
    what a clock change takes (default: what the GPU is known for). Losses are not touched.

    Raises SessionError where schedule and stages disagree or GPUs are missing, and LeaseRefusedError where another job
    holds one. Later faults are logged and bring clocks to full; with ``strict`` they are raised in the loop.
    """
    from train_jobs.attach import attach_schedule

    return attach_schedule(schedule, job, policy=policy, strict=strict, switch_time_s=switch_time_s)
