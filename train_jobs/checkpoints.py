"""What one rank needs to go on after a restart: its network and how far it was. The same size after any iteration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(slots=True)
class Progress:
    """How far a rank has come."""

    iterations: int = 0
    healthy_s: tuple[float, ...] = ()
    """What the warm-up iterations at full clock took."""
    profiled: bool = False
    """The whole pipeline's profile is in the run's log."""


def save(folder: Path, rank: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer, now: Progress) -> None:
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iterations": now.iterations,
        "healthy_s": list(now.healthy_s),
        "profiled": now.profiled,
    }
    torch.save(state, _file(folder, rank))


def restore(folder: Path, rank: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Brings network and optimizer to where they were."""
    state: dict[str, Any] = torch.load(_file(folder, rank), weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(state["iterations"], tuple(state["healthy_s"]), state["profiled"])


def _file(folder: Path, rank: int) -> Path:
    return folder / f"stage-{rank}.pt"
