"""The GPUs of a node behind the driver that the settings name (``gpu.driver``). Nobody else knows which one it is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actors.gpu.gpud_client import GpudClient
from actors.gpu.gpud_wire import default_socket
from actors.gpu.guarded_node import GuardedNode, ShadowNode
from actors.gpu.node_record import NodeRecord
from actors.gpu.own_gpud import OwnGpud, OwnGpudKeeper
from actors.gpu.simulated import SimulatedNode
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


@dataclass(frozen=True, slots=True)
class NodeSite:
    """A node of a run: the driver's name, the run's folder on this node, how many GPUs Ray says it has, and the model
    that work is charged to."""

    driver: str
    folder: Path
    node_id: str
    gpus: int
    spec: GpuSpec

    @property
    def file(self) -> Path:
        return _file(self.folder, self.node_id)


@dataclass(frozen=True, slots=True)
class GuardedSite:
    """What an agent needs whose node's clocks are set by gpud. ``shadow``: of simulated work on real GPUs."""

    client: GpudClient
    keeper: OwnGpudKeeper | None
    shadow: ShadowNode | None


def create_node(driver: str, folder: Path, node_id: str, gpus: int, spec: GpuSpec) -> GpuNode:
    """For an agent that sets clocks itself: open the node's GPUs. Of the simulated driver they are made here, ``gpus``
    of the model ``spec``, unless they exist already; their state is kept in ``folder``. Raises GpuError where there
    are none."""
    if driver == "nvml":
        from actors.gpu.nvml_node import NvmlNode

        return NvmlNode()
    return SimulatedNode.create(_file(folder, node_id), gpus, spec)


def open_guarded(site: NodeSite, ttl_max_s: float, dry_run: bool, socket: Path | None) -> GuardedSite:
    """For an agent whose node's clocks gpud sets: the node's gpud at ``socket``, else at its usual place, else one that
    is started here. Tells the run's other processes where it is. Raises GpuError where none answers."""
    shadow_of_real = site.driver != "simulated"
    found = socket or (default_socket() if shadow_of_real and default_socket().exists() else None)
    keeper, own_state = None, None
    if found is None:
        own_state = site.folder / f"gpud-{site.node_id[:12]}"
        simulated_file = None if shadow_of_real else site.file
        if simulated_file is not None:
            SimulatedNode.create(simulated_file, site.gpus, site.spec).close()
        found = site.folder / f"gpud-{site.node_id[:12]}.sock"
        keeper = OwnGpudKeeper(OwnGpud(found, own_state, ttl_max_s, dry_run, simulated_file))
        keeper.start()
    client = GpudClient(found)
    uuids = tuple(row["uuid"] for row in client.read(max_age_s=3600.0)["gpus"])
    own = None if own_state is None else str(own_state)
    shadow = SimulatedNode.create(site.file, max(site.gpus, len(uuids)), site.spec) if shadow_of_real else None
    if shadow is not None:
        # GPUs that Ray counts and the driver does not show: simulated work runs on them, nobody steers them.
        uuids += tuple(shadow.uuid_of(index) for index in range(len(uuids), site.gpus))
    NodeRecord(site.driver, str(found), uuids, own).write(site.folder, site.node_id)
    return GuardedSite(client, keeper, None if shadow is None else ShadowNode(shadow, uuids))


def open_charged(driver: str, folder: Path, node_id: str, owner: str = "") -> ChargeableNode:
    """For whoever stands for a model: the GPUs of this node, once its agent has made them; where gpud sets clocks, they
    are set for ``owner``. Raises GpuError where nothing is there after a while."""
    path = _file(folder, node_id)
    deadline_s = time.monotonic() + WAIT_FOR_NODE_S
    while not path.exists() or (driver != "simulated" and NodeRecord.read(folder, node_id) is None):
        if time.monotonic() > deadline_s:
            raise GpuError(f"no agent has opened the GPUs of node {node_id} within {WAIT_FOR_NODE_S:.0f} s")
        time.sleep(0.1)
    record = NodeRecord.read(folder, node_id)
    return SimulatedNode(path) if record is None else GuardedNode(path, record, owner)


def gpud_of(folder: Path, node_id: str) -> GpudClient | None:
    """To the gpud that sets this node's clocks; None where the agent does so itself."""
    record = NodeRecord.read(folder, node_id)
    return None if record is None else GpudClient(Path(record.socket))


def gpus_of(node: GpuNode, indices: Sequence[int]) -> tuple[Gpu, ...]:
    """The GPUs that Ray calls by these indices, in this order."""
    by_uuid = {gpu.uuid: gpu for gpu in node.gpus()}
    return tuple(by_uuid[node.uuid_of(index)] for index in indices)


def _file(folder: Path, node_id: str) -> Path:
    return folder / f"gpus-{node_id}.bin"


def measured_gpus(uuids: Sequence[str]) -> tuple[Gpu, ...]:
    """NVIDIA's GPUs themselves, for whoever reads them in a process that sets none. Raises GpuError for one that the
    driver does not show."""
    from actors.gpu.nvml_node import NvmlNode

    shown = {gpu.uuid: gpu for gpu in NvmlNode().gpus()}
    missing = [uuid for uuid in uuids if uuid not in shown]
    if missing:
        raise GpuError(f"NVML shows no GPU {missing[0]}; it shows {', '.join(shown) or 'none'}")
    return tuple(shown[uuid] for uuid in uuids)
