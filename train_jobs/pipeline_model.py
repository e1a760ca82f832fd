"""The network that is trained: residual layers cut into stages, and its data, the same on every rank and every run."""

import torch
from torch import nn

from train_jobs.job import ModelSettings


class ResidualLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.mix(x))


def build_stage(model: ModelSettings, layers: tuple[int, ...], stage: int) -> nn.Sequential:
    """The layers of one stage. The whole network's weights are drawn in order, so that every cut gives the same."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(model.seed)
    stages = [nn.Sequential(*(ResidualLayer(model.width) for _ in range(count))) for count in layers]
    torch.random.set_rng_state(generator_state)
    return stages[stage]


def batch(
    model: ModelSettings, microbatches: int, iteration: int, pipeline: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one iteration, each data-parallel pipeline's its own; the target is a fixed function of the
    input, so the loss can fall."""
    generator = torch.Generator().manual_seed((model.seed + 1009 * pipeline) * 1_000_003 + iteration)
    inputs = torch.randn(microbatches * model.microbatch_size, model.width, generator=generator)
    return inputs, torch.roll(inputs, 1, dims=1) * 0.5


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)
