"""A rank's checkpoint: everything to go on with, and no bigger for a longer run."""

from pathlib import Path

import torch

from train_jobs.checkpoints import Progress, restore, save
from train_jobs.job import ModelSettings
from train_jobs.pipeline_model import batch, build_stage, loss_fn

MODEL = ModelSettings()


def trained(iterations: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = build_stage(MODEL, (2,), 0)
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    for number in range(iterations):
        step(module, optimizer, number)
    return module, optimizer


def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    inputs, targets = batch(MODEL, 2, number)
    loss = loss_fn(module(inputs), targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def test_a_restored_rank_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    module, optimizer = trained(3)
    save(tmp_path, 1, module, optimizer, Progress(3, (1.0, 1.5), profiled=True))
    again, its_optimizer = trained(0)
    assert restore(tmp_path, 1, again, its_optimizer) == Progress(3, (1.0, 1.5), profiled=True)
    losses = [(step(module, optimizer, n), step(again, its_optimizer, n)) for n in range(3, 6)]
    assert all(mine == its for mine, its in losses)


def test_a_checkpoint_has_the_same_size_after_any_iteration(tmp_path: Path) -> None:
    sizes = []
    for iterations in (2, 20_000):
        save(tmp_path, 0, *trained(2), Progress(iterations, (1.0, 1.0), profiled=True))
        sizes.append((tmp_path / "stage-0.pt").stat().st_size)
    assert abs(sizes[0] - sizes[1]) <= 64
