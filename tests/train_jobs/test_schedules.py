"""Every schedule of torch.distributed.pipelining under the hooks, two ranks, no planner: one torchrun for all."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from tests_support import ROOT, free_ports

from actors.gpu.simulated import SimulatedNode
from control_plane.training.schedules import one_f_one_b

PLANNED = (
    "ScheduleGPipe",
    "Schedule1F1B",
    "ScheduleInterleaved1F1B",
    "ScheduleLoopedBFS",
    "ScheduleInterleavedZeroBubble",
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("schedules")
    SimulatedNode.create(folder / "gpus.bin", 2).close()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_ports(1)[0]), "tests/schedules_rank.py", str(folder)]
    here = {
        "WATTRAY_SIMULATED_GPUS": str(folder / "gpus.bin"),
        "WATTRAY_GPUD_SOCKET": str(folder / "none.sock"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **here}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", PLANNED)
def test_the_order_that_is_learnt_is_torchs_and_nothing_is_changed(told: list[dict[str, Any]], name: str) -> None:
    for number, rank in enumerate(told):
        expected = rank[name]["torchs"]
        if name == "Schedule1F1B":
            # torch's own table of this one (2.13) is not what it runs.
            expected = [[step.name, step.microbatch, 0] for step in one_f_one_b(2, 4).order[number]]
        assert rank[name]["heard"] == expected
        assert len(rank[name]["heard"]) >= 8
        assert rank[name]["equal_gradients"] is True
        assert rank[name]["hooks_left"] == []


def test_zero_bubble_has_both_parts_of_its_backwards(told: list[dict[str, Any]]) -> None:
    kinds = {step[0] for step in told[0]["ScheduleInterleavedZeroBubble"]["heard"]}
    assert {"forward", "backward_input", "backward_weight"} <= kinds


def test_a_placement_that_cannot_be_planned_for_is_told_on_every_rank(told: list[dict[str, Any]]) -> None:
    for rank in told:
        refused = rank["ScheduleZBVZeroBubble"]["refused"]
        assert (
            "rank 0 runs stage 3 as its chunk 1, expected stage 2: V-shaped placements are not planned for" in refused
        )
