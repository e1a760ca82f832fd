"""A schedule that torchtitan makes is attached where it is made: the real package, on a CPU."""

from typing import Any

import pytest
import torch
from torch.distributed.pipelining import PipelineStage

titan = pytest.importorskip(
    "torchtitan.distributed.pipeline_parallel", reason="the extra `torchtitan` is not installed"
)

MICROBATCHES = 3


def pipelining_fn(model: torch.nn.Module, **_: Any) -> Any:
    """As torchtitan's own for one stage; the schedule is its builder's."""
    from torchtitan.config import ParallelismConfig

    stage = PipelineStage(model, 0, 1, torch.device("cpu"))
    parallelism = ParallelismConfig(
        pipeline_parallel_degree=1, pipeline_parallel_schedule="GPipe", pipeline_parallel_microbatch_size=2
    )
    schedule = titan._build_pipeline_schedule(
        parallelism=parallelism,
        local_batch_size=2 * MICROBATCHES,
        stages=[stage],
        loss_fn=lambda output, target: (torch.nn.functional.mse_loss(output, target), {}),
    )
    return schedule, [model], True, True


def test_every_step_of_a_schedule_that_torchtitan_makes_is_an_iteration(alone: None) -> None:
    from train_jobs.torchtitan import energy_aware

    torch.manual_seed(1)
    model = torch.nn.Linear(4, 4)
    schedule, parts, first, last = energy_aware(pipelining_fn, "titan", strict=True)(model)
    assert (parts, first, last) == ([model], True, True)
    with schedule.energy as energy:
        for _ in range(3):
            schedule.step(torch.ones(6, 4), target=torch.zeros(6, 4))
        program = energy._session.order.program
        assert energy.summary()["iterations"] == 2
    names = [(step.name, step.microbatch) for step in program]
    assert names == [(name, n) for name in ("forward", "backward") for n in range(MICROBATCHES)]
