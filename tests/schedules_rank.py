"""One rank that runs every schedule of torch.distributed.pipelining under wattray's hooks, under torchrun.

torchrun … tests/schedules_rank.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as torch_schedules

from control_plane.training.schedules import user_order
from train_jobs.attach import attach_schedule, stages_of
from train_jobs.order import SessionError

MICROBATCHES, WIDTH = 4, 8
NAMES = {
    "FORWARD": "forward",
    "FULL_BACKWARD": "backward",
    "BACKWARD_INPUT": "backward_input",
    "BACKWARD_WEIGHT": "backward_weight",
}


def built(name: str, chunks: int) -> Any:
    torch.manual_seed(3)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    modules = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(ranks * chunks)]
    v_shaped = name == "ScheduleZBVZeroBubble"
    places = [rank, 2 * ranks - 1 - rank] if v_shaped else [rank + ranks * chunk for chunk in range(chunks)]
    stages = [PipelineStage(modules[place], place, ranks * chunks, torch.device("cpu")) for place in places]
    make = getattr(torch_schedules, name)
    several = issubclass(make, torch_schedules.PipelineScheduleMulti)
    return make(stages if several else stages[0], MICROBATCHES, loss_fn=nn.functional.mse_loss)


def torchs_order(schedule: Any) -> list[list[Any]]:
    """What torch says this rank computes: (name, micro-batch, chunk)."""
    ranks = dist.get_world_size()
    told = []
    for action in schedule.pipeline_order[dist.get_rank()]:
        if action is not None and action.computation_type.name in NAMES:
            name = NAMES[action.computation_type.name]
            told.append([name, action.microbatch_index, action.stage_index // ranks])
    return told


def gradients(schedule: Any) -> list[list[float]]:
    return [p.grad.flatten().tolist() for one in stages_of(schedule) for p in one.submod.parameters()]


def step(schedule: Any) -> None:
    torch.manual_seed(11)
    inputs = torch.randn(MICROBATCHES * 2, WIDTH)
    first = any(one.is_first for one in stages_of(schedule))
    last = any(one.is_last for one in stages_of(schedule))
    given: dict[str, Any] = {"target": inputs.roll(1, 1)} if last else {}
    schedule.step(*([inputs] if first else []), **given)


def main(folder: Path) -> None:
    told: dict[str, Any] = {}
    for name, chunks in (
        ("ScheduleGPipe", 1),
        ("Schedule1F1B", 1),
        ("ScheduleInterleaved1F1B", 2),
        ("ScheduleLoopedBFS", 2),
        ("ScheduleInterleavedZeroBubble", 2),
        ("ScheduleZBVZeroBubble", 2),
    ):
        plain = built(name, chunks)
        step(plain)
        schedule = built(name, chunks)
        try:
            attached = attach_schedule(schedule, f"job-{name.lower()}", strict=True)
        except SessionError as error:
            told[name] = {"refused": str(error)}
            continue
        with attached as energy:
            with energy.iteration():
                step(schedule)
            equal = gradients(plain) == gradients(schedule)
            # Outside an iteration nothing is looked at, inside a second one the order is checked.
            step(schedule)
            with energy.iteration():
                step(schedule)
            program = energy._session.order.program  # type: ignore[union-attr]
        programs: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(programs, program)
        user_order(programs, name)
        told[name] = {
            "heard": [[one.name, one.microbatch, one.chunk] for one in program],
            "torchs": torchs_order(schedule) if getattr(schedule, "pipeline_order", None) else None,
            "equal_gradients": equal,
            "hooks_left": [m for one in stages_of(schedule) for m in vars(one) if m.endswith("_one_chunk")],
        }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
    dist.destroy_process_group()
