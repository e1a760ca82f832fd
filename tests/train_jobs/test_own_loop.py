"""A user's own script under torchrun, on simulated GPUs behind gpud: no Ray anywhere."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gpud_process import GpudProcess, eventually
from tests_support import ROOT, free_ports

from actors.training_messages import owner_of
from train_jobs.job import JobError
from train_jobs.planes import GpudPlane
from train_jobs.schedule_lease import LeaseRefusedError

TTL_S = 2.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpudProcess]:
    folder = tmp_path_factory.mktemp("gpud")
    gpus = ["--driver", "simulated", "--simulated-file", str(folder / "gpus.bin"), "--simulated-gpus", "2"]
    process = GpudProcess(folder, {}, gpus).start()
    yield process
    process.end()


def torchrun(place: GpudProcess, iterations: int, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_ports(1)[0]), "tests/own_loop_rank.py", str(iterations), str(out)]
    here = {
        "WATTRAY_GPUD_SOCKET": str(place.socket),
        "WATTRAY_SIMULATED_GPUS": str(place.folder / "gpus.bin"),
        "WATTRAY_LEASE_TTL_S": str(TTL_S),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **here}, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def planned(place: GpudProcess, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("planned")
    process = torchrun(place, 40, out)
    _, told = process.communicate(timeout=150)
    assert process.returncode == 0, told[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_losses_are_those_of_the_script_without_wattray_to_the_bit(planned: list[dict[str, Any]]) -> None:
    losses = planned[1]["losses"]
    assert losses == planned[1]["plain_losses"]
    assert len(losses) == 40
    assert losses[-1] < losses[0]


def test_it_measures_itself_within_thirty_iterations_and_runs_as_planned(planned: list[dict[str, Any]]) -> None:
    energy_j = 0.0
    for rank in planned:
        assert rank["phase"] == "planned"
        assert rank["profiling"]["iterations"] <= 30
        assert rank["profiling"]["interpolation_error_ratio"] < 0.05
        assert rank["plan"]["measured_time_s"] <= 1.01 * rank["plan"]["all_max_time_s"]
        energy_j += rank["plan"]["measured_rank_energy_j"]
    plan = planned[0]["plan"]
    assert plan["planned_energy_j"] < 0.99 * plan["all_max_energy_j"]
    assert energy_j == pytest.approx(plan["planned_energy_j"], rel=0.02)


def test_clocks_and_leases_are_handed_back_at_the_end(place: GpudProcess, planned: list[dict[str, Any]]) -> None:
    del planned
    assert all(row["lease"] is None and row["max_mhz"] in (None, 1980) for row in place.rows().values())


def test_a_killed_job_leaves_no_clock_lowered_beyond_its_leases_time(place: GpudProcess, tmp_path: Path) -> None:
    process = torchrun(place, 10_000, tmp_path)
    try:
        eventually(lambda: any((row["max_mhz"] or 1980) < 1500 for row in place.rows().values()), 60)
    finally:
        leased = [row for row in place.rows().values() if row["lease"]]
        for rank in [*psutil.Process(process.pid).children(recursive=True), process]:
            rank.kill()
        process.communicate(timeout=20)
    killed_s = time.monotonic()
    assert leased
    eventually(lambda: all(row["lease"] is None for row in place.rows().values()), TTL_S + 3)
    assert time.monotonic() - killed_s <= TTL_S + 3
    assert all(row["max_mhz"] in (None, 1980) for row in place.rows().values())


def test_a_gpu_that_another_job_drives_is_refused(place: GpudProcess) -> None:
    plane = GpudPlane(place.socket)
    (first,) = plane.claim(owner_of("other", "1"), 1)
    assert plane.claim(owner_of("mine", "1"), 1) != (first,)
    with pytest.raises(LeaseRefusedError, match="0 of 1 are free; the others are leased to training:other/1"):
        plane.open(owner_of("mine", "1"), first)
    with pytest.raises(LeaseRefusedError, match="job two needs 2 GPUs, 0 of 2 are free"):
        plane.claim(owner_of("two", "1"), 2)
    for job in ("other", "mine"):
        place.client.reset(owner_of(job, "1"))


def test_more_ranks_than_gpus_are_told(place: GpudProcess) -> None:
    with pytest.raises(JobError, match=r"job mine has 3 ranks; gpud at .* has 2 GPUs: start fewer"):
        GpudPlane(place.socket).claim(owner_of("mine", "1"), 3)
