"""The GPUs of a node behind gpud for whoever stands for a model: work is charged to simulated GPUs, clocks are gpud's.

Where the GPUs themselves are simulated the file is theirs. Where they are real the file is a shadow of them: same
UUIDs, and their clocks, which the node's agent copies into it every second.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.gpu.gpud_client import GpudClient
from actors.gpu.node_record import NodeRecord
from actors.gpu.simulated import SimulatedGpu, SimulatedNode
from control_plane.hardware.gpu_model import Activity, GpuSpec, GpuState
from control_plane.ports import Gpu, GpuError

log = logging.getLogger(__name__)


class ShadowNode:
    """For the agent: brings the shadow's clocks to those of the real GPUs."""

    def __init__(self, node: SimulatedNode, uuids: Sequence[str]) -> None:
        self._node, self._uuids = node, tuple(uuids)

    def follow(self, clocks_mhz: Mapping[str, int]) -> None:
        """By UUID; a clock is rounded down to one of the model's."""
        for index, uuid in enumerate(self._uuids[: self._node.count]):
            if uuid in clocks_mhz:
                freq_mhz = self._node.spec.supported_at_most(clocks_mhz[uuid])
                if self._node.state(index).target_mhz != freq_mhz:
                    self._node.lock_freq(index, freq_mhz)


class GuardedNode:
    """``ChargeableNode`` whose clocks are set through gpud, for ``owner``, who must hold a schedule lease."""

    def __init__(self, path: Path, record: NodeRecord, owner: str) -> None:
        self._charged = SimulatedNode(path)
        self._client, self._owner, self._uuids = GpudClient(Path(record.socket)), owner, record.uuids
        self._is_shadow = record.driver != "simulated"

    @property
    def spec(self) -> GpuSpec:
        return self._charged.spec

    def gpus(self) -> Sequence[Gpu]:
        return [SimulatedGpu(self._charged, index, uuid) for index, uuid in enumerate(self._uuids)]

    def uuid_of(self, ray_index: int) -> str:
        if not 0 <= ray_index < len(self._uuids):
            raise GpuError(f"the node has GPUs 0..{len(self._uuids) - 1}, not {ray_index}")
        return self._uuids[ray_index]

    def index_of(self, uuid: str) -> int:
        if uuid not in self._uuids:
            raise GpuError(f"the node has no GPU {uuid}")
        return self._uuids.index(uuid)

    def state(self, index: int) -> GpuState:
        return self._charged.state(index)

    def set_activity(self, indices: Sequence[int], activity: Activity, at_ns: int | None = None) -> int:
        return self._charged.set_activity(indices, activity, at_ns)

    def work(self, index: int, activity: Activity, at_ns: int) -> GpuState:
        return self._charged.work(index, activity, at_ns)

    def lock_freq(self, index: int, freq_mhz: int, at_ns: int | None = None) -> None:
        """Now, whatever moment was asked for. A clock that gpud refuses stays as it is, which is logged."""
        wanted_mhz = None if freq_mhz >= self.spec.max_freq_mhz else freq_mhz
        try:
            refused = self._client.set(self._owner, {self._uuids[index]: wanted_mhz}).refused
        except GpuError as error:
            log.error("GPU %s is not set to %d MHz: %s", self._uuids[index], freq_mhz, error)
            return
        for uuid, refusal in refused.items():
            log.error("GPU %s is not set to %d MHz: %s", uuid, freq_mhz, refusal.message)
        if self._is_shadow and not refused:
            self._charged.lock_freq(index, freq_mhz, at_ns)

    def open_context(self, index: int, pid: int) -> None:
        self._charged.open_context(index, pid)

    def close_context(self, index: int, pid: int) -> None:
        self._charged.close_context(index, pid)

    def reap(self) -> int:
        return self._charged.reap()

    def close(self) -> None:
        self._client.close()
        self._charged.close()
