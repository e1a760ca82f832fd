"""One rank of the examples, under torchrun: runs them and writes what came of it.

torchrun … tests/own_loop_rank.py ITERATIONS FOLDER [alone]
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

import wattray.train
from train_jobs.examples import own_loop, own_loop_energy


def energy_loop(iterations: int) -> dict[str, Any]:
    """The example's losses, and what was attached to it says at its end."""
    attach, told = wattray.train.attach, {}

    def kept(*args: Any, **kwargs: Any) -> Any:
        one = attach(*args, strict=True, **kwargs)
        close = one.close

        def told_and_closed() -> None:
            told.update(one.summary(), seen=[asdict(seen) for seen in one.iterations])
            close()

        one.close = told_and_closed
        return one

    wattray.train.attach = kept
    try:
        return {"losses": own_loop_energy.main(iterations), **told}
    finally:
        wattray.train.attach = attach


if __name__ == "__main__":
    dist.init_process_group("gloo")
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    result = energy_loop(count)
    result["plain_losses"] = own_loop.main(count)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
