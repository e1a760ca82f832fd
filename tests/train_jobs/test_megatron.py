"""Megatron-Core's own steps tell the hooks what runs: the real package, on a CPU."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from train_jobs.order import SessionError

pytest.importorskip("megatron.core", reason="the extra `megatron` is not installed")

MICROBATCHES = 3


class Inner:
    """Timers that were there before."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, name: str, log_level: int | None = None) -> Any:
        return _InnerTimer(name, self.told)


class _InnerTimer:
    def __init__(self, name: str, told: list[str]) -> None:
        self._name, self._told = name, told

    def start(self, barrier: bool = False) -> None:
        self._told.append(f"start {self._name}")

    def stop(self, barrier: bool = False) -> None:
        self._told.append(f"stop {self._name}")


def iterate(config: Any, model: torch.nn.Module) -> list[torch.Tensor]:
    """What forward_backward_no_pipelining does, which itself wants CUDA: a forward and a backward a micro-batch."""
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel.schedules import backward_step, forward_step

    def step(data: Any, of: torch.nn.Module) -> Any:
        return of(next(data)), lambda output: ((loss := output.square().mean()), {"loss": loss.detach()})

    config.timers("forward-backward", log_level=1).start(barrier=False)
    data, losses = iter(torch.ones(MICROBATCHES, 2, 4)), list[Any]()
    for _ in range(MICROBATCHES):
        output, _ = forward_step(step, data, model, MICROBATCHES, None, losses, config, 1)
        backward_step(None, output, None, ModelType.encoder_or_decoder, config)
    config.timers("forward-backward").stop()
    return [told["loss"] for told in losses]


class Model(torch.nn.Linear):
    """What Megatron asks of a model."""

    def set_input_tensor(self, tensor: Any) -> None:
        assert tensor is None or tensor == [None]


def test_the_order_that_megatron_runs_is_learnt_and_its_timers_go_on(alone: None) -> None:
    from megatron.core import ModelParallelConfig

    from train_jobs.megatron import attach_megatron

    inner = Inner()
    config = ModelParallelConfig(pipeline_dtype=torch.float32, timers=inner, deallocate_pipeline_outputs=False)
    torch.manual_seed(1)
    model = Model(4, 4)
    with attach_megatron(config, "mega", group=dist.group.WORLD, strict=True) as energy:
        for _ in range(2):
            with energy.iteration():
                losses = iterate(config, model)
        program = energy._session.order.program  # type: ignore[union-attr]
        assert energy.summary()["iterations"] == 1
    heard = [(step.name, step.microbatch) for step in program]
    assert heard == [(name, n) for n in range(MICROBATCHES) for name in ("forward", "backward")]
    assert config.timers is inner
    assert len(losses) == MICROBATCHES
    one = ["forward-compute", "backward-compute"] * MICROBATCHES
    both = [f"{act} {name}" for name in one for act in ("start", "stop")]
    assert inner.told[1 : len(both) + 1] == both


def test_virtual_stages_are_refused(alone: None) -> None:
    from megatron.core import ModelParallelConfig

    from train_jobs.megatron import attach_megatron

    config = ModelParallelConfig(pipeline_dtype=torch.float32)
    config.virtual_pipeline_model_parallel_size = 2
    with pytest.raises(SessionError, match="virtual_pipeline_model_parallel_size 2: set it to None"):
        attach_megatron(config, "mega", group=dist.group.WORLD)
