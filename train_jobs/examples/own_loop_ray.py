"""own_loop_energy.py under Ray Train, on the control plane that is up: the loop itself is the same.

ray job submit --address wattray://here --working-dir . -- python train_jobs/examples/own_loop_ray.py 60
"""

import sys
import tempfile
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer


def train_loop(config: dict[str, Any]) -> None:
    from train_jobs.examples.own_loop_energy import main

    losses = main(config["iterations"])
    with tempfile.TemporaryDirectory() as folder:
        ray.train.report({"loss": losses[-1]}, checkpoint=ray.train.Checkpoint.from_directory(folder))
    if ray.train.get_context().get_world_rank() == 1:
        print("last loss", losses[-1])


if __name__ == "__main__":
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"iterations": iterations},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.1}),
    )
    trainer.fit()
