"""A driver: the examples' loops, with and without wattray, in two workers of Ray Train on the Ray at ADDRESS.

python tests/own_loop_ray.py ADDRESS ITERATIONS FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer


def train_loop(config: dict[str, Any]) -> None:
    sys.path[:0] = config["paths"]
    from own_loop_rank import energy_loop

    from train_jobs.examples import own_loop

    told = energy_loop(config["iterations"])
    told["plain_losses"] = own_loop.main(config["iterations"])
    rank = ray.train.get_context().get_world_rank()
    (Path(config["folder"]) / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    from train_jobs.training_run import connect

    connect(sys.argv[1])
    tests = Path(__file__).resolve().parent
    TorchTrainer(
        train_loop,
        train_loop_config={
            "iterations": int(sys.argv[2]),
            "folder": sys.argv[3],
            "paths": [str(tests), str(tests.parent)],
        },
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.1}),
        run_config=ray.train.RunConfig(storage_path=sys.argv[3]),
    ).fit()
