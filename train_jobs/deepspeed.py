"""DeepSpeed: its pipeline engine looks up what to do for each instruction in a table of its own (0.19).

The engine's table gets forward and backward passes that tell the hooks; the class's table stays as it is. The n-th
forward of a batch is micro-batch n, and so with backwards.
"""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from train_jobs.attach import RankOfPipeline, attach_rank
from train_jobs.attached import AttachedTraining
from train_jobs.order import SessionError
from train_jobs.stage_hooks import Watcher

KINDS = {"ForwardPass": FORWARD, "BackwardPass": BACKWARD}
"""DeepSpeed's instructions by name, so that it is not imported here."""


def attach_deepspeed(engine: Any, job: str, **options: Any) -> AttachedTraining:
    """Put a ``PipelineEngine`` under an energy plan: every rank calls it once, after ``deepspeed.initialize``, and runs
    ``engine.train_batch()`` inside ``iteration()``. Options as of ``wattray.train.attach``. Raises SessionError."""
    table = getattr(engine, "_INSTRUCTION_MAP", None)
    if table is None:
        raise SessionError(f"{type(engine).__name__} is no PipelineEngine of DeepSpeed: it has no instructions")

    def listen(watcher: Watcher) -> Callable[[], None]:
        engine._INSTRUCTION_MAP = {
            command: _telling(act, KINDS[command.__name__], watcher) if command.__name__ in KINDS else act
            for command, act in table.items()
        }

        def stop() -> None:
            engine.__dict__.pop("_INSTRUCTION_MAP", None)

        return stop

    ranks = tuple(dist.get_process_group_ranks(engine.grid.get_pipe_parallel_group()))
    parameters = sum(parameter.numel() for parameter in engine.module.parameters())
    return attach_rank(RankOfPipeline(ranks, 1, parameters, "deepspeed", listen), job, **options)


def _telling(act: Callable[..., Any], kind: str, watcher: Watcher) -> Callable[..., Any]:
    count = 0

    def told(engine: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        if not engine.module.training:
            # Evaluation has forwards of its own.
            act(engine, *args, **kwargs)
            return
        step = Instruction(kind, count)
        count = (count + 1) % engine.micro_batches
        watcher.begins(step)
        act(engine, *args, **kwargs)
        watcher.ended(step)

    return told
