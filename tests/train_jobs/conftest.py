"""What tests of adapters share: a process group of one rank on one simulated GPU, without a control plane."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from tests_support import free_ports

from actors.gpu.simulated import SimulatedNode


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    SimulatedNode.create(tmp_path / "gpus.bin", 1).close()
    monkeypatch.setenv("WATTRAY_SIMULATED_GPUS", str(tmp_path / "gpus.bin"))
    monkeypatch.setenv("WATTRAY_GPUD_SOCKET", str(tmp_path / "none.sock"))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_ports(1)[0]}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
