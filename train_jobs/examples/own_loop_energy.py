"""The pipeline of own_loop.py under an energy plan: four lines more.

torchrun --nproc-per-node 2 train_jobs/examples/own_loop_energy.py
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import wattray.train


def main(iterations: int) -> list[float]:
    torch.manual_seed(7)
    rank, ranks, width = dist.get_rank(), dist.get_world_size(), 64
    blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2 * ranks + 1)]
    mine = blocks[2 * rank : 2 * rank + 2] + (blocks[-1:] if rank == ranks - 1 else [])
    module = nn.Sequential(*mine)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    stage = PipelineStage(module, rank, ranks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=nn.functional.mse_loss)
    history = []
    energy = wattray.train.attach(schedule, job="own-loop")
    for _ in range(iterations):
        inputs = torch.randn(16, width)
        losses: list[torch.Tensor] = []
        with energy.iteration():
            if rank == 0:
                schedule.step(inputs)
            else:
                schedule.step(target=inputs.roll(1, 1) * 0.5, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(torch.stack(losses).mean().detach()) if losses else 0.0)
    energy.close()
    return history


if __name__ == "__main__":
    dist.init_process_group("gloo")
    told = main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
    if dist.get_rank() == dist.get_world_size() - 1:
        print("last loss", told[-1])
    dist.destroy_process_group()
