"""`import wattray.train` costs next to nothing, and wrong use is told."""

import subprocess
import sys

import pytest
import torch
from tests_support import ROOT

import wattray.train
from train_jobs.cuda_rank import device_uuid
from train_jobs.order import SessionError


def test_neither_torch_nor_ray_is_loaded_until_something_is_attached() -> None:
    code = "import sys, wattray.train; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "ray", "numpy", "pydantic"}.isdisjoint(loaded.stdout.split())


def test_what_is_no_schedule_is_told() -> None:
    with pytest.raises(SessionError, match=r"list is no schedule of torch\.distributed\.pipelining: it has no stages"):
        wattray.train.attach([], job="mine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_machine_without_a_gpu_is_told() -> None:
    with pytest.raises(SessionError, match="torch sees no CUDA device; for simulated GPUs name"):
        device_uuid()


def test_a_name_that_is_no_jobs_is_told() -> None:
    with pytest.raises(SessionError, match="job 'My Job': a name has lower-case letters"):
        wattray.train.attach(None, job="My Job")
