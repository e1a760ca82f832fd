"""What ranks agree on: small collectives over a process group (None: everybody)."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def latest(at_ns: int, group: dist.ProcessGroup | None = None) -> int:
    """The last of everybody's moments."""
    moment = torch.tensor([at_ns], dtype=torch.int64)
    dist.all_reduce(moment, dist.ReduceOp.MAX, group=group)
    return int(moment.item())


def everybody(claim: bool) -> bool:
    """Whether it is true of all."""
    claims = torch.tensor([int(claim)])
    dist.all_reduce(claims, dist.ReduceOp.MIN)
    return bool(claims.item())


def gathered(mine: Value) -> list[Value]:
    """Everybody's, by rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def average_gradients(module: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """Over the pipelines that hold the same stage; one collective, in the order of the parameters."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()
