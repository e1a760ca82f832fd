"""The GPUs of a node behind the driver that the settings name (``gpu.driver``). Nobody else knows which one it is."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from control_plane.hardware.gpu_model import Activity, GpuSpec, GpuState
from control_plane.ports import Gpu, GpuError, GpuNode

WAIT_FOR_NODE_S = 20.0
"""A process may come to a node before the node's agent: the agent follows within a tick of the cluster manager."""


class ChargeableNode(GpuNode, Protocol):
    """GPUs whose work is charged to them instead of measured: they have no silicon, so whoever stands for a model says
    what it does. ``index`` is Ray's; times are nanoseconds of the node's monotonic clock."""

    @property
    def spec(self) -> GpuSpec: ...
    def index_of(self, uuid: str) -> int:
        """Raises GpuError where the node has no such GPU."""
        ...

    def state(self, index: int) -> GpuState: ...
    def set_activity(self, indices: Sequence[int], activity: Activity, at_ns: int | None = None) -> int:
        """The GPUs work like this from ``at_ns`` (now) on; returns the clock of the slowest, in MHz."""
        ...

    def work(self, index: int, activity: Activity, at_ns: int) -> GpuState:
        """One GPU works like this from ``at_ns`` on; its state then, with the energy up to it."""
        ...

    def lock_freq(self, index: int, freq_mhz: int, at_ns: int | None = None) -> None: ...
    def open_context(self, index: int, pid: int) -> None: ...
    def close_context(self, index: int, pid: int) -> None: ...


def create_node(driver: str, folder: Path, node_id: str, gpus: int, spec: GpuSpec) -> GpuNode:
    """For the node's agent: open the node's GPUs. Of the simulated driver they are made here, ``gpus`` of the model
    ``spec``, unless they exist already; their state is kept in ``folder``. Raises GpuError where there are none."""
    _check(driver)
    from actors.gpu.simulated import SimulatedNode

    return SimulatedNode.create(_file(folder, node_id), gpus, spec)


def open_charged(driver: str, folder: Path, node_id: str) -> ChargeableNode:
    """For whoever stands for a model: the GPUs of this node, once its agent has made them. Raises GpuError where the
    driver measures real work, and where nothing is there after a while."""
    _check(driver)
    from actors.gpu.simulated import SimulatedNode

    path = _file(folder, node_id)
    deadline_s = time.monotonic() + WAIT_FOR_NODE_S
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise GpuError(f"no agent has opened the GPUs of node {node_id} within {WAIT_FOR_NODE_S:.0f} s")
        time.sleep(0.1)
    return SimulatedNode(path)


def gpus_of(node: GpuNode, indices: Sequence[int]) -> tuple[Gpu, ...]:
    """The GPUs that Ray calls by these indices, in this order."""
    by_uuid = {gpu.uuid: gpu for gpu in node.gpus()}
    return tuple(by_uuid[node.uuid_of(index)] for index in indices)


def _file(folder: Path, node_id: str) -> Path:
    return folder / f"gpus-{node_id}.bin"


def _check(driver: str) -> None:
    if driver != "simulated":
        raise GpuError(f"gpu.driver {driver!r} is not known; there is 'simulated'")
